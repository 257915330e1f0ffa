"""The commands in the blocks of README.md and docs/: where each is run, and what is printed by those that run here.

`problem` names the commands that nobody runs. `run` runs those that read in a finished project, in this process; and
`missing` compares what they print with the block that the page shows after them: words and columns, not numbers.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from tests.dag import ROOT
from tests.whole_project import Project

FENCED = re.compile(r"^```([a-z]*)[^\n]*\n(.*?)^```", re.M | re.S)
INDENTED = re.compile(r"(?:^    .*\n|^\n)+", re.M)

# The test that runs it, and how: words of that file. Where they name a page, its blocks are run, and the command is in
# one of them. The key is how the command begins.
ELSEWHERE = {
    "make flow": ("tests/flows/test_restore.py", '"-m", "flows.restore"'),
    "python -m flows.restore": ("tests/flows/test_restore.py", '"-m", "flows.restore"'),
    "python -m flows.restore --dask": ("tests/flows/test_docs.py", 'blocks("distributed.md")'),
    "python -m flows.sweep": ("tests/flows/test_docs.py", 'blocks("schedules.md")'),
    "python -m flows.serve": ("tests/flows/test_docs.py", 'blocks("schedules.md")'),
    "python -m flows.machines": ("tests/flows/test_docs.py", 'blocks("distributed.md")'),
    "prefect": ("tests/flows/test_docs.py", 'blocks("schedules.md")'),
    "restorelcc share": ("tests/flows/test_docs.py", 'blocks("sharing.md")'),
    "restorelcc push": ("tests/flows/test_docs.py", 'blocks("sharing.md")'),
    "restorelcc pull": ("tests/flows/test_docs.py", 'blocks("sharing.md")'),
    "git": ("tests/flows/test_docs.py", 'blocks("sharing.md")'),
    "export": ("tests/flows/test_docs.py", 'blocks("schedules.md")'),
    "mkdir": ("tests/flows/test_docs.py", 'blocks("schedules.md")'),
    "echo": ("tests/flows/test_docs.py", 'blocks("sharing.md")'),
    "dvc repro": ("tests/test_end_to_end.py", ".repro()"),
    "dvc exp run": ("tests/flows/test_experiments.py", '"dvc", "exp", "run"'),
    "restorelcc restore": ("tests/pipeline/test_restore.py", '["restore", '),
    "accelerate launch": ("tests/stages/compensate/test_processes.py", "accelerate.commands.launch"),
    "dvc commit --force": ("tests/flows/test_exact.py", 'dvc(["commit", "--force"'),
}
# Why nobody runs it.
NOT_RUN = {
    "make test": "it runs this test",
    "make repro MODEL=": "a model of the hub, or a package of 180 MB",
    "make study": "hours",
    "make ablation": "hours",
    "make bench": "a measurement, minutes",
    "python -m benchmarks.gpu_restore": "a GPU",
    "restorelcc plan --model llama-7b": "asks the hub for the config",
    "restorelcc restore --dense meta-llama": "downloads a model",
    "grep": "it leaves out lines of what the command before it prints",
    "dask": "two machines",
    "python -m flows.restore --dask tcp:": "two machines",
}
# What reads, or writes a folder of its own, runs here.
HERE = {"restorelcc", "dvc", "make"}
PROGRAMS = {key.split()[0] for key in (*ELSEWHERE, *NOT_RUN)} | HERE | {"python", "pip", "uv"}
EXIT = {"restorelcc check --set 'grid.pruning=[wanda-2of1]'": 2}  # where it is not 0
SILENT = {  # what prints nothing: no number differs from the last commit; or it goes to a file
    "dvc metrics diff",
    "restorelcc --log-json inspect restored > inspection.txt",
}
_BEFORE = (
    "restorelcc recover --model tiny --pruning wanda-0.5 --recovery masked",
    "restorelcc export --pruned DIR --compensation compensation.safetensors --out restored",
)
_OUT = re.compile(r"--out (\S+)|init (\S+)")


class Command(NamedTuple):
    """A command of a page, without comments; and the block of text that follows its own block, if it ends it."""

    page: str
    text: str
    shown: str | None


def pages() -> list[Path]:
    found = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "results").glob("*.md"))]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *found]


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, or "" where the page does not say; text) of each block of code, in the order of the page."""
    text, found = page.read_text(encoding="utf-8"), []
    for match in FENCED.finditer(text):
        found.append((match.start(), match[1], match[2]))
    masked = FENCED.sub(lambda match: "x" * len(match[0]), text)
    for match in INDENTED.finditer(masked):
        if match[0].strip():
            body = "\n".join(line[4:] for line in match[0].strip("\n").splitlines())
            found.append((match.start(), "", body))
    return [(language, body) for _, language, body in sorted(found)]


def commands() -> Iterator[Command]:
    """Every command in a block of a page."""
    for page in pages():
        own = blocks(page)
        for position, (language, body) in enumerate(own):
            after = own[position + 1] if position + 1 < len(own) else ("", "")
            found = list(_commands(language, body))
            for number, text in enumerate(found):
                shown = after[1] if number == len(found) - 1 and after[0] == "text" else None
                yield Command(page.name, text, None if shown and list(_commands(*after)) else shown)


def _commands(language: str, body: str) -> Iterator[str]:
    if language not in ("", "bash", "console", "text"):
        return
    for line in body.replace("\\\n", " ").splitlines():
        if language == "console" and not line.startswith("$ "):
            continue
        line = line.removeprefix("$ ")
        if language == "bash" or line.split(" ")[0] in PROGRAMS:
            yield from filter(None, map(str.strip, " ".join(_words(line)).split("&&")))


def _words(line: str) -> Iterator[str]:
    """The words of a line of a shell, quotes and all, without comments; whatever joins two commands is &&."""
    lexer = shlex.shlex(line, posix=False, punctuation_chars=";|&")
    lexer.whitespace_split = True
    return ("&&" if set(word) <= set(";|&") else word for word in lexer)


def way(text: str) -> str | None:
    """ "here", the test that runs a command, or the reason why none does; None for a command that nobody knows."""
    tables = ({key: test for key, (test, _) in ELSEWHERE.items()}, NOT_RUN)
    known = {key: value for table in tables for key, value in table.items() if text.startswith(key)}
    if known:
        return known[max(known, key=len)]
    return "here" if text.split()[0] in HERE else None


def runs_nothing(start: str, test: str, words: str) -> str | None:
    """What shows that a test of ELSEWHERE does not run the commands that begin so, as far as its text tells."""
    if not (ROOT / test).is_file() or words not in (ROOT / test).read_text(encoding="utf-8"):
        return f"{start}: {words!r} is not in {test}"
    page = re.search(r"\w+\.md", words)
    if page and not any(each.page == page[0] and each.text.startswith(start) for each in commands()):
        return f"{start}: not in {page[0]}, whose blocks {test} runs"
    return None


def run_in_a_finished_project(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    """Every command that runs here, once, in the order of the pages. The project's settings are what they were."""
    before = (project.folder / "params.yaml").read_bytes()
    try:
        _lay_out(project, capfd)
        done, wrong = set(), []
        for command in commands():
            if way(command.text) == "here" and (command.text, command.shown) not in done:
                done.add((command.text, command.shown))
                ended = run(command, project, capfd)
                code, printed = ended.code, ended.out + ended.err
                lost = [] if command.shown is None else missing(command.shown, printed)
                lost += [] if printed or command.text in SILENT else ["anything"]
                if command.text == "restorelcc table":
                    lost += [title for title in _titles_of_the_readme() if title not in printed.splitlines()[1]]
                if code != EXIT.get(command.text, 0) or lost or "Traceback" in printed:
                    wrong.append(f"{command.page}: {command.text}: exit {code}, not printed: {lost}, but\n{printed}")
        assert not wrong, "\n\n".join(wrong)
    finally:
        (project.folder / "params.yaml").write_bytes(before)


def _titles_of_the_readme() -> list[str]:
    """The columns of README.md's first table, which are some of those that `make repro` prints, for two models."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    titles = [title.rpartition(":")[2].strip() for title in re.findall(r"^\|(.*)\|$", text, re.M)[0].split("|")]
    return [title for title in titles if title]


def _lay_out(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    """What the pages name: folders of checkpoints, a compensation, data, a model `mine`, results that are committed."""
    folder, cell = project.folder, "data/tiny/wanda-0.5"
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copytree(folder / "data/tiny/dense", folder / "dense")
    for name in ("my-pruned", "DIR", "PRUNED", "wanda"):
        shutil.copytree(folder / cell / "pruned", folder / name)
    shutil.copy(folder / cell / "heads-0.25/compensation.safetensors", folder)
    rows = [{"question": f"is the fox number {number} red ?", "response": "yes , it is"} for number in range(20)]
    for name in ("pairs.jsonl", "texts.jsonl", "heldout.jsonl", "texts.txt"):
        texts = [row if name == "pairs.jsonl" else {"text": " ".join(row.values()) * 30} for row in rows]
        (folder / name).write_text("\n".join(map(json.dumps, texts)))
    content = project.params()
    content["models"]["mine"] = {
        "source": "./dense",
        "sequence_length": 32,
        "data": {"instructions": "pairs.jsonl", "calibration": "texts.jsonl", "heldout": "heldout.jsonl"},
    }
    project.write_params(content)
    project.run("git", "add", "--all")
    project.run("git", "-c", "user.name=T", "-c", "user.email=t@localhost", "commit", "--quiet", "--message", "results")
    masked = ["restorelcc", "recover", "--model", "tiny", "--pruning", "wanda-0.5", "--recovery", "masked"]
    for text in (
        shlex.join(masked),
        "restorelcc export --pruned DIR --compensation compensation.safetensors --out restored",
    ):
        ended = run(Command("", text, None), project, capfd)
        assert ended.code == 0, ended.err


class Done(NamedTuple):
    """What a command ended with, and printed on each stream."""

    code: int
    out: str
    err: str = ""


def run(command: Command, project: Project, capfd: pytest.CaptureFixture[str]) -> Done:
    """It is run in a project; what it is to write is taken away first."""
    folder = project.folder
    text, _, file = command.text.partition(" > ")
    for found in _OUT.findall(text):
        shutil.rmtree(folder / next(filter(None, found)), ignore_errors=True)
    words = shlex.split(text)
    if words[0] == "make":  # with the environment that there is
        return Done(0, project.run("make", "-o", ".venv/.ready", *words[1:]))
    capfd.readouterr()
    before = dict(os.environ)
    try:
        with chdir(folder):
            code = {"restorelcc": _restorelcc, "dvc": _dvc}[words[0]](words)
    finally:
        os.environ.clear()
        os.environ.update(before)
    told = capfd.readouterr()
    if file:
        (folder / file).write_text(told.out)
    return Done(code, told.out, told.err)


def _restorelcc(words: list[str]) -> int:
    from restorelcc.__main__ import main
    from restorelcc.release.verify import logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", words)
        patch.setattr(logits, "subprocess", SimpleNamespace(run=_script_here))
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def _script_here(command: list[str], *, cwd: str, **_: Any) -> SimpleNamespace:
    """The script by which `verify` computes logits with transformers alone, without the seconds of a new process."""
    import runpy

    with pytest.MonkeyPatch.context() as patch, chdir(cwd):
        patch.setattr("sys.argv", command[2:])
        runpy.run_path(command[2], run_name="__main__")
    return SimpleNamespace(returncode=0, stdout="", stderr="")


def _dvc(words: list[str]) -> int:
    from dvc.cli import main

    return int(main(words[1:]) or 0)


def missing(shown: str, printed: str) -> list[str]:
    """The lines that a page shows and that are not printed in this order; `...` is what it leaves out."""
    lines = iter([_shape(line) for line in printed.splitlines()])
    wanted = [line for line in shown.splitlines() if line.strip() not in ("", "...")]
    return [line for line in wanted if not any(_is_shown(line, other) for other in lines)]


def _is_shown(line: str, shape: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, _shape(line).split("..."))), shape) is not None


def _shape(line: str) -> str:
    """A line without what differs from run to run: numbers, digests, how wide its columns are."""
    line = re.sub(r"\b[0-9a-f]{12,}\b", "0", line)
    line = re.sub(r"-?\d[\d,.]*(e-?\d+)?", "0", line)
    return " ".join(re.sub(r"([─-])\1+", r"\1", line).split())

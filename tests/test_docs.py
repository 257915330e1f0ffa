"""What README.md and docs/ tell a reader to type or to open: commands, options, targets, keys, paths and links exist.

No command runs here. tests/docs_commands.py says who runs each: tests/test_end_to_end.py those that read, and
tests/flows/test_docs.py those of the how-tos for teams.
"""

from __future__ import annotations

import copy
import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from benchmarks.readme_picture import PICTURE, draw, means
from restorelcc.base.errors import BadInput
from restorelcc.cli.app import app
from restorelcc.pipeline.params import Params, checked
from tests import docs_commands
from tests.dag import ROOT
from tests.docs_commands import FENCED, blocks, missing, pages, runs_nothing, way

PAGES = pages()
TARGET = re.compile(r"^([a-z-]+):", re.M)


def named(pages: list[Path]) -> list[Any]:
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command of a page, of its blocks and of its sentences, without comments."""
    prose = FENCED.sub("", page.read_text(encoding="utf-8"))
    lines = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    for language, text in blocks(page):
        if language in ("", "bash", "console", "text"):
            lines += text.replace("\\\n", " ").splitlines()
    for line in lines:
        for part in re.split(r"&&|\|\||[;|]", re.sub(r"\s# .*", "", line).removeprefix("$ ")):
            words = re.match(r"(?:[A-Z_]+=\S+ )*((?:restorelcc|make|python -m) .*)", part.strip())
            if words:
                yield shlex.split(words[1].replace("'", '"') if words[1].count("'") % 2 else words[1], comments=True)


def _of(page: Path, program: str) -> list[list[str]]:
    return [words[1:] for words in commands(page) if words[0] == program]


@cache
def _verbs() -> dict[str, Any]:
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def problem(words: list[str]) -> str | None:
    """What is wrong with the words after `restorelcc`, without running them."""
    top = {option for each in typer.main.get_command(app).params for option in (*each.opts, *each.secondary_opts)}
    while words and words[0].startswith("-"):  # before the verb; none of them takes a value
        if words[0] not in top | {"--help", "-h"}:
            return f"no option {words[0]}"
        words = words[1:]
    if not words:
        return None
    verb = _verbs().get(words[0])
    if verb is not None and hasattr(verb, "commands") and len(words) > 1:
        verb, words = verb.commands.get(words[1]), words[1:]
    if verb is None:
        return f"no verb {words[0]}"
    known = {option for each in verb.params for option in (*each.opts, *each.secondary_opts)} | {"--help", "-h"}
    wrong = [word for word in words if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in known]
    return f"no option {wrong} of {words[0]}" if wrong else None


@pytest.mark.parametrize("page", named(PAGES))
def test_every_command_of_ours_has_its_verb_and_options(page: Path) -> None:
    found = [(words, problem(words)) for words in _of(page, "restorelcc") if words]
    assert not [each for each in found if each[1]]


def test_a_wrong_verb_or_option_is_found() -> None:
    assert problem(["restor", "--dense", "x"]) == "no verb restor"
    assert problem(["restore", "--dens", "x"]) == "no option ['--dens'] of restore"
    assert problem(["compensation", "show", "x"]) is None
    assert problem(["-q", "restore", "--dense", "x"]) is None
    assert problem(["--quit", "restore"]) == "no option --quit"
    assert problem(["compensation", "hide", "x"]) == "no verb hide"


def test_every_command_of_a_block_is_run_somewhere_or_it_is_said_why_not() -> None:
    found = list(docs_commands.commands())
    assert len(found) > 80
    assert not [f"{each.page}: {each.text}" for each in found if way(each.text) is None], "see tests/docs_commands.py"
    texts = [each.text for each in found]
    for table in (docs_commands.ELSEWHERE, docs_commands.NOT_RUN):
        assert not [start for start in table if not any(text.startswith(start) for text in texts)], "no page has it now"
    assert not [wrong for each in docs_commands.ELSEWHERE.items() if (wrong := runs_nothing(each[0], *each[1]))]


def test_a_table_that_names_a_test_which_runs_nothing_of_it_is_found() -> None:
    processes = "tests/stages/compensate/test_processes.py"
    assert runs_nothing("dvc commit --force", processes, "--force") == (
        f"dvc commit --force: '--force' is not in {processes}"
    )
    assert runs_nothing("restorelcc push", "tests/flows/test_docs.py", 'blocks("schedules.md")') == (
        "restorelcc push: not in schedules.md, whose blocks tests/flows/test_docs.py runs"
    )
    assert runs_nothing("git", "tests/flows/none.py", "git") is not None


def test_what_a_page_shows_is_compared_in_shape_and_a_new_program_is_found() -> None:
    printed = "head  wide  10 %\n────────\nrow       0.5  -\nrow        12  a1b2c3d4e5f6\ndone\n"
    assert missing("head wide 3 %\n...\nrow 7 0123456789ab\ndone", printed) == []
    assert missing("head narrow 3 %\nrow 1 -", printed) == ["head narrow 3 %", "row 1 -"]
    assert missing("head ...\ndone", printed) == [] and missing("done\nhead ...", printed) == ["head ..."]
    assert way("rm -rf results") is None and way("restorelcc new") == "here"
    assert way("restorelcc restore --dense x") == "tests/pipeline/test_restore.py"


@pytest.mark.parametrize("page", named(PAGES))
def test_every_target_of_make_exists(page: Path) -> None:
    targets = set(TARGET.findall((ROOT / "Makefile").read_text()))
    asked = {word for words in _of(page, "make") for word in words if re.fullmatch(r"[a-z][a-z-]+", word)}
    assert asked <= targets


@pytest.mark.parametrize("page", named(PAGES))
def test_every_module_of_ours_exists(page: Path) -> None:
    modules = {words[1] for words in _of(page, "python") if words[0] == "-m"}
    ours = {name for name in modules if name.partition(".")[0] in ("restorelcc", "flows", "benchmarks")}
    assert not [name for name in ours if importlib.util.find_spec(name) is None]


def settings(page: Path) -> Iterator[dict[str, Any]]:
    """The blocks that are parts of params.yaml, as what they say."""
    for language, text in blocks(page):
        if language == "yaml" or (not language and re.match(r"[a-z]+:(\s*\n| [{\[])", text)):
            lines = [
                line for line in text.splitlines() if not line.strip().startswith(("make ", "restorelcc ", "dvc "))
            ]
            content = yaml.safe_load("\n".join(lines))
            if isinstance(content, dict) and content.keys() <= Params.model_fields.keys():
                yield content


def laid_over(below: Any, above: Any) -> Any:
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return below | {key: laid_over(below.get(key), value) for key, value in above.items()}


def shipped_with(part: dict[str, Any]) -> Params:
    shipped = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    part = copy.deepcopy(part)
    models = part.setdefault("models", {})
    for name in part.get("prune", {}).get("external", {}).keys() - shipped["models"].keys():
        models.setdefault(name, {})
    for entry in models.values():  # a part of an entry may leave out what every entry has
        if isinstance(entry, dict):
            entry.setdefault("source", "./dense")
            entry.setdefault("data", dict.fromkeys(("calibration", "instructions", "heldout"), "file.jsonl"))
    return checked(laid_over(shipped, part))


@pytest.mark.parametrize("page", named(PAGES))
def test_every_part_of_params_yaml_is_valid(page: Path) -> None:
    for part in settings(page):
        shipped_with(part)


def test_parts_of_params_yaml_are_found_and_a_wrong_key_is_refused() -> None:
    assert len(list(settings(ROOT / "README.md"))) == 1
    assert sum(len(list(settings(page))) for page in PAGES) >= 10
    with pytest.raises(BadInput, match="sampels"):
        shipped_with({"prune": {"sampels": 3}})


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.M)
    plain = [re.sub(r"[^\w\s-]", "", title.lower()).strip() for title in titles]
    return {re.sub(r"[\s-]+", "-", title) for title in plain}


@pytest.mark.parametrize("page", named(PAGES))
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"`[^`]*`", "", FENCED.sub("", page.read_text(encoding="utf-8")))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", named(PAGES))
def test_every_path_of_the_repository_exists(page: Path) -> None:
    spans = re.findall(
        r"`((?:restorelcc|tests|benchmarks|flows|docs|versions)/[\w./-]+)`", page.read_text(encoding="utf-8")
    )
    made = {"docs/results/smollm2.md", "versions/code/", "restorelcc/original.json"}  # by commands
    assert not [path for path in spans if path not in made and not (ROOT / path).exists()]


def test_readme_shows_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    text = dict(blocks(ROOT / "README.md"))["console"]
    command, sentence = text.strip().splitlines()
    words = shlex.split(command)[2:]
    with pytest.raises(BadInput) as refused:
        app([*words, "--params", str(ROOT / "params.yaml")], standalone_mode=False)
    assert sentence == f"restorelcc: error: {refused.value}"


def test_the_picture_shows_the_table_of_the_readme() -> None:
    def texts(svg: str) -> list[str]:
        return re.findall(r"<text[^>]*>([^<]*)</text>", svg)

    found = means((ROOT / "README.md").read_text(encoding="utf-8"))
    assert list(found) == ["dense", "dense, int8", "dense, int4", "pruned", "heads 0.1", "heads 0.25"]
    written = PICTURE.read_text(encoding="utf-8")
    assert texts(written) == texts(draw(found)), "run python -m benchmarks.readme_picture"
    assert {f"{mean:.1f}" for mean in found.values()} <= set(texts(written))
    assert len(written) < 10_000
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160

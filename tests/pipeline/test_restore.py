"""`restorelcc restore`, as a user runs it: any pruned checkpoint, or pruning first."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner, Result

from restorelcc.base.cell import Cell
from restorelcc.base.documents import read_metrics
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.cli.app import app
from restorelcc.models.checkpoints import save_checkpoint
from restorelcc.pipeline.scaffold import new_project
from restorelcc.release.export.export import ExportOptions, export_checkpoint
from restorelcc.release.folders import check_apart
from restorelcc.release.verify.files import Violation
from restorelcc.release.verify.verify import subject, verify
from tests import pico
from tests.here import stages_run_here
from tests.release.export.restored import pruned_model
from tests.stages.prune.project import words

QUICK = ["--set", "probe.steps=5", "--set", "compensate.epochs=1", "--set", "compensate.learning_rates=[0.05]"]
QUICK += ["--threads", "1", "--head-ratio", "0.25"]


@pytest.fixture(autouse=True)
def ran(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The commands of stages that DVC ran."""
    monkeypatch.setenv("RESTORELCC_PROGRESS", "0")
    with stages_run_here() as commands:
        yield commands


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with dense/, pruned/ (by another tool), pairs.jsonl and texts.txt."""
    folder = tmp_path_factory.mktemp("given")
    tokenizer = pico.word_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    save_checkpoint(folder / "dense", pico.pico("mistral"), tokenizer)
    pruned_model("mistral").save_pretrained(folder / "pruned")  # as `save_pretrained` of a model leaves it
    rng = random.Random(0)

    def words(count: int, least: int = 3, beyond: int = 60) -> str:
        return " ".join(f"w{rng.randrange(least, beyond)}" for _ in range(count))

    # Responses of three words only: that is learned, and holds for the validation pairs.
    rows = [{"instruction": words(5), "input": words(2), "output": words(3, 9, 12)} for _ in range(40)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "texts.txt").write_text("\n".join(words(30) for _ in range(30)))
    return folder


def _invoked(*arguments: object) -> Result:
    done = CliRunner().invoke(app, ["restore", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def _restore(*arguments: object) -> str:
    return _invoked(*arguments).output


def test_a_checkpoint_that_another_tool_pruned(given: Path, tmp_path: Path, ran: list[str]) -> None:
    sources = ["--dense", given / "dense", "--pruned", given / "pruned", "--instructions", given / "pairs.jsonl"]
    output = _restore(*sources, "--out", tmp_path / "out", *QUICK)
    assert "50.00% of the targeted weights are zero" in output
    assert "pruned has no tokenizer: the dense model's is used (tokenizer.json" in output
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (given / "dense" / name).read_bytes()
    record = json.loads((tmp_path / "out" / "restorelcc.json").read_text())
    assert record["route"]["relabelled_from"] == "mistral"
    assert record["sparsity"]["patterns"] == ["2:4", "4:8"]
    trained_on = {f"compensation.{name}.parquet" for name in ("train", "valid", "contrast")}
    assert {
        "pruned",
        "compensation",
        "compensation.components",
        "compensation.ranking",
        "pruned.dense",
    } | trained_on <= set(record["parents"])
    assert all(parent["path"] for parent in record["parents"].values())
    restored, pruned = (AutoModelForCausalLM.from_pretrained(f) for f in (tmp_path / "out", given / "pruned"))
    with torch.no_grad():
        difference = restored(input_ids=pico.tokens()).logits - pruned(input_ids=pico.tokens()).logits
    assert difference.abs().max() > 1e-3
    steps = [title for title, _ in verify(subject(tmp_path / "out", None, None), logits=False)]
    assert steps.count("parents") == len(record["parents"])
    # The checkpoint that was given, or a copy of it elsewhere, is the one that this was made from; another is not.
    shutil.copytree(given / "pruned", tmp_path / "copy")
    list(verify(subject(tmp_path / "out", tmp_path / "copy", None), logits=False))
    offsets = tmp_path / "out.work/data/model/external-given/heads-0.25/compensation.safetensors"
    shutil.copy(given / "dense" / "tokenizer.json", tmp_path / "copy")
    export_checkpoint(tmp_path / "copy", offsets, tmp_path / "again", ExportOptions())
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()
    pico.pico("mistral").save_pretrained(tmp_path / "copy")
    with pytest.raises(BadInput, match="the compensation was trained for another pruned model"):
        export_checkpoint(tmp_path / "copy", offsets, tmp_path / "third", ExportOptions())
    with pytest.raises(Violation, match="copy is not the pruned that the checkpoint was made from"):
        list(verify(subject(tmp_path / "out", tmp_path / "copy", None), logits=False))
    # Again, with another head ratio: only what depends on it runs.
    work = tmp_path / "out.work"
    before, bytes_before = _times(work), _bytes(work)
    assert all(path.stat().st_nlink > 1 for path in before), "what is in the cache too is on the disk once"
    ran.clear()
    _restore(*sources, "--out", tmp_path / "out", "--overwrite", *QUICK, "--head-ratio", "0.5")
    assert ran == ["compensate --model model --pruning external-given --head_ratio 0.5"]
    after = _times(work)
    assert {path.parent.name for path in set(after) - set(before)} == {"heads-0.5"}
    assert all(after[path] == before[path] for path in before)
    other = tmp_path / "other"
    save_checkpoint(other, pruned_model("mistral"), pico.word_tokenizer())
    # Another dense model: everything that reads it runs.
    ran.clear()
    _restore(*sources[2:], "--dense", other, "--out", tmp_path / "out", "--overwrite", *QUICK)
    assert {"dense", "capture_dense", "extract", "probe", "compensate"} <= {command.split()[0] for command in ran}
    # The first again: every stage comes back from the cache.
    ran.clear()
    done = _invoked(*sources, "--out", tmp_path / "out", "--overwrite", "--json", *QUICK)
    assert ran == [] or ran == ["inputs --model model"]
    assert "compensate was computed before and is restored from the cache" in done.stderr
    told = json.loads(done.stdout)
    assert (told["folder"], told["work"], told["results"]) == (str(tmp_path / "out"), str(work), None)
    assert told["record"]["route"]["folded"] and told["training"]["valid_loss"] > 0
    assert bytes_before.items() <= _bytes(work).items()
    # Another method: what comes before it is there.
    ran.clear()
    output = _restore(*sources, "--out", tmp_path / "out", "--overwrite", *QUICK[:-2], "--method", "masked")
    assert {command.split()[0] for command in ran} <= {"inputs", "recover"} and "recover" in ran[-1]
    assert "masked: all surviving weights trained" in output and "recovered by masked" in output
    record = json.loads((tmp_path / "out" / "restorelcc.json").read_text())
    assert (record["method"]["name"], record["recovery"]) == ("masked", "masked")
    assert record["sparsity"]["patterns"] == ["2:4", "4:8"] and record["route"]["relabelled_from"] is None
    assert "`masked`" in (tmp_path / "out" / "README.md").read_text()


def _times(work: Path) -> dict[Path, int]:
    """When each artifact was written."""
    files = [path for path in (work / "data").rglob("*") if path.is_file() and "logs" not in path.parts]
    return {path: path.stat().st_mtime_ns for path in files if "inputs" not in path.parts}


def _bytes(work: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in _times(work)}


def test_pruning_first(given: Path, tmp_path: Path) -> None:
    data = ["--instructions", given / "pairs.jsonl", "--calibration", given / "texts.txt"]
    (tmp_path / "heldout.txt").write_text("w3 w4 w5 w6 w7 w8 w9\nw9 w8 w7 w6 w5 w4 w3 w2\n" * 20)
    output = _restore(
        "--dense", given / "dense", "--pruning", "wanda-0.5", *data, "--out", tmp_path / "out", *QUICK,
        "--work", tmp_path / "work", "--set", "prune.sequence_length=24", "--max-shard-size", "20KB",
        "--heldout", tmp_path / "heldout.txt", "--set", "evaluate.sanity_gate=false",
    )  # fmt: skip
    work = Layout(tmp_path / "work")
    cells = [Cell("model"), Cell("model", "wanda-0.5"), Cell("model", "wanda-0.5", "0.25")]
    for name, cell in zip(("dense", "pruned", "heads 0.25"), cells, strict=True):
        perplexity = f"{read_metrics(work.metrics(cell))['perplexity']['value']:,.2f}"
        assert any(line.startswith(name) and perplexity in line.split() for line in output.splitlines()), output
        assert perplexity.replace(",", "") in (tmp_path / "out" / "README.md").read_text().replace(",", "")
    assert "(pairs that were not trained on)" in output
    record = json.loads((tmp_path / "out" / "restorelcc.json").read_text())
    assert record["pruning"] == "wanda-0.5"
    assert record["config"]["prune"]["sequence_length"] == 24
    assert record["sparsity"]["share"] == pytest.approx(0.5)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert (tmp_path / "work" / "data/model/wanda-0.5/pruned/sparsity.json").is_file()
    # Another method is measured in place of the heads, of which the grid then has none.
    output = _restore(
        "--dense", given / "dense", "--pruning", "wanda-0.5", *data, "--out", tmp_path / "shifted", *QUICK[:-2],
        "--work", tmp_path / "work", "--set", "prune.sequence_length=24", "--method", "meanshift",
        "--heldout", tmp_path / "heldout.txt", "--set", "evaluate.sanity_gate=false",
    )  # fmt: skip
    perplexity = (
        f"{read_metrics(work.metrics(Cell('model', 'wanda-0.5', recovery='meanshift')))['perplexity']['value']:,.2f}"
    )
    assert any("meanshift" in line and perplexity in line.split() for line in output.splitlines()), output
    assert "heads 0.25" not in output
    card = (tmp_path / "shifted" / "README.md").read_text()
    assert "`meanshift`: FLAP-style" in card and perplexity.replace(",", "") in card.replace(",", "")


def _spoken(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


SHAPES: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "alpaca": lambda question, answer: {"instruction": question, "input": "", "output": answer},
    "completion": lambda question, answer: {"prompt": question, "completion": answer},
    "choice": lambda question, answer: {"question": question, "choices": ["w3", answer], "answer": "B"},
    "chat": _spoken,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_texts_that_are_not_given_are_questions_and_responses_of_every_format(
    shape: str, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from restorelcc.base.tables import read_texts
    from restorelcc.pipeline import oneshot

    pairs = [(words(4, n), words(3, 50 + n)) for n in range(120)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(SHAPES[shape](*pair)) for pair in pairs))
    tokenizer = pico.word_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    save_checkpoint(tmp_path / "dense", pico.pico("mistral"), tokenizer)
    monkeypatch.setattr(oneshot, "TARGET", "corpus")
    request = oneshot.Request(
        dense=str(tmp_path / "dense"), pruned=str(given / "pruned"), pruning=None, head_ratio="0.25",
        instructions=str(file), calibration=None, work=tmp_path / "work", threads=1,
    )  # fmt: skip
    with oneshot.run_chain(request) as done:
        corpus = done.layout.corpus(Cell("model"))
    expected = [f"{question}\n{answer}" for question, answer in pairs]
    assert read_texts(corpus / "heldout.parquet") == expected
    assert sorted(read_texts(corpus / "calibration.parquet")) == sorted(expected)
    assert json.loads((corpus / "sources.json").read_text())["instructions"]["rows"]["used"] == 120


def test_files_code_and_packages_that_change_are_computed_again_and_nothing_else(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ran: list[str]
) -> None:
    from restorelcc.pipeline import oneshot, scaffold, versions

    pairs = tmp_path / "pairs.jsonl"
    pairs.write_bytes((given / "pairs.jsonl").read_bytes())
    monkeypatch.setattr(oneshot, "TARGET", "corpus")
    request = oneshot.Request(
        dense=str(given / "dense"), pruned=str(given / "pruned"), pruning=None, head_ratio="0.25",
        instructions=str(pairs), calibration=None, work=tmp_path / "work", threads=1,
    )  # fmt: skip

    def stages() -> list[str]:
        ran.clear()
        with oneshot.run_chain(request):
            pass
        return [command.split()[0] for command in ran]

    assert stages() == ["inputs", "corpus"]
    assert stages() == []
    pairs.write_text("\n".join(pairs.read_text().splitlines()[1:]))
    assert stages() == ["corpus"]
    for module in (scaffold, versions):
        monkeypatch.setattr(module, "installed", lambda package, real=versions.installed: _other(package, real))
    assert stages() == ["corpus"], "another jinja2"
    for module in (scaffold, versions):
        monkeypatch.setattr(module, "code_digest", lambda folder, real=versions.code_digest: real(folder)[::-1])
    assert stages() == ["inputs", "corpus"]
    (tmp_path / "work" / "dvc.lock").write_text("cut o")
    assert stages() == ["inputs"], "the outputs of corpus come back from the run-cache"


def _other(package: str, real: Callable[[str], str | None]) -> str | None:
    return "0.1" if package == "jinja2" else real(package)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--pruning": "wanda-0.5"}, "either --pruned .* or --pruning"),
        ({"--pruned": None}, "either --pruned .* or --pruning"),
        ({"--dense": "/nowhere/model"}, r"--dense '/nowhere/model' is not a folder"),
        ({"--instructions": "none.jsonl"}, r"--instructions 'none.jsonl' is not usable: .*alpaca"),
        ({"--pruned": None, "--pruning": "wanda-2of1"}, "N must be at least 1 and less than M"),
        (
            {"--pruned": None, "--pruning": "wanda-0.5", "--calibration": "x.txt"},
            r"--calibration 'x.txt' is not usable",
        ),
        ({"--calibration": "x.txt"}, r"--calibration 'x.txt' is not usable"),
        ({"--head-ratio": "some"}, "--head-ratio 'some' is not a number"),
        ({"--method": "maskd"}, "--method 'maskd' is not a recovery method: .*did you mean 'masked'"),
        ({"--method": "refined-0.5"}, "is a way to prune: give --pruning refined-0.5"),
        ({"--method": "lora"}, "--method lora leaves an adapter .* --merge zeros-filled or"),
        ({"--method": "lora", "--merge": "all"}, "--merge 'all': it is zeros-filled or zeros-kept"),
        ({"--merge": "zeros-kept"}, "--merge 'zeros-kept': .* for lora, dora and eora alone"),
        ({"--method": "bias", "--head-ratio": "0.1"}, "--head-ratio is for methods that choose heads, and bias does"),
        ({"--head-ratio": "1.5"}, "give a number above 0 .*and at most 1"),
        ({"--max-shard-size": "big"}, "--max-shard-size 'big' is not a size"),
        ({"--heldout": "x.txt"}, r"--heldout 'x.txt' is not usable"),
        ({"--evaluate": "arc_easy"}, "--evaluate needs --heldout"),
        ({"--set": "probe.stepz=1"}, "did you mean 'probe.steps'"),
    ],
)
def test_bad_input_is_one_sentence(given: Path, tmp_path: Path, changes: dict[str, str | None], message: str) -> None:
    options = {"--dense": given / "dense", "--pruned": given / "pruned", "--instructions": given / "pairs.jsonl"}
    options |= {"--out": tmp_path / "out"} | changes
    arguments = [str(part) for pair in options.items() if pair[1] is not None for part in pair]
    with pytest.raises(BadInput, match=message):
        CliRunner().invoke(app, ["restore", *arguments], catch_exceptions=False)
    assert not list(tmp_path.iterdir()), "no work folder is made either"


def test_what_cannot_be_is_told_before_anything_is_made(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = given / "pruned" / "model.safetensors"
    options = ["--dense", given / "dense", "--instructions", given / "pairs.jsonl", "--pruned"]
    out = ("--out", tmp_path / "out")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    pico.pico("mistral", vocab_size=80).save_pretrained(tmp_path / "wide")
    pico.pico("gpt2").save_pretrained(tmp_path / "gpt2")
    for further, message in (
        ((file, "--out", tmp_path / "out"), f"--pruned '{file}' is not a folder: give the folder of a checkpoint"),
        ((given / "pruned", "--out", "/"), "/ holds the folder that this command runs in"),
        ((given / "pruned", "--out", "."), ". holds the folder that this command runs in"),
        (
            (given / "pruned", *out, "--heldout", given / "texts.txt", "--evaluate", "arc_esay"),
            "arc_esay",
        ),
        ((tmp_path / "wide", *out), "does not fit the dense model: its vocab_size is 80, not 64"),
        ((tmp_path / "gpt2", *out), "is of the family 'gpt2', the dense model of 'mistral'"),
    ):
        with pytest.raises(BadInput, match=re.escape(message)):
            CliRunner().invoke(app, ["restore", *map(str, options), *map(str, further)], catch_exceptions=False)


def test_data_and_tasks_are_never_in_the_folder_that_is_replaced(given: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / "tasks").mkdir(parents=True)
    (tmp_path / "mine" / "tasks" / "own.yaml").write_text("task: own\n")
    for name in ("pairs.jsonl", "texts.txt"):
        shutil.copyfile(given / name, tmp_path / "mine" / name)
    options = ["--dense", given / "dense", "--pruned", given / "pruned", "--out", tmp_path / "mine", "--overwrite"]
    elsewhere = ["--instructions", given / "pairs.jsonl"]
    for further, name in (
        (["--instructions", tmp_path / "mine" / "pairs.jsonl"], "pairs.jsonl"),
        (["--instructions", f"self:{tmp_path / 'mine' / 'pairs.jsonl'}"], "pairs.jsonl"),
        ([*elsewhere, "--calibration", tmp_path / "mine" / "*.txt"], "texts.txt"),
        ([*elsewhere, "--heldout", given / "texts.txt", "--evaluate", tmp_path / "mine" / "tasks"], "tasks"),
    ):
        with pytest.raises(BadInput, match=f"{name} contain one another: give an output folder outside"):
            CliRunner().invoke(app, ["restore", *map(str, [*options, *further])], catch_exceptions=False)
    assert not (tmp_path / "mine.work").exists()


def test_links_to_data_tasks_and_models_are_never_in_the_folder_that_is_replaced(given: Path, tmp_path: Path) -> None:
    """What they lead to would stay, and the links would not."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own.yaml").write_text("task: own\n")
    (tmp_path / "mine").mkdir()
    for name in ("pairs.jsonl", "texts.txt", "dense", "pruned"):
        (tmp_path / "mine" / name).symlink_to(given / name)
    (tmp_path / "mine" / "tasks").symlink_to(tmp_path / "tasks")
    (tmp_path / "mine" / "all").symlink_to(given)
    (tmp_path / "same").symlink_to(tmp_path / "mine")
    whole = {"--dense": given / "dense", "--pruned": given / "pruned", "--instructions": given / "pairs.jsonl"}
    for further, name in (
        ({"--instructions": tmp_path / "mine" / "pairs.jsonl"}, "pairs.jsonl"),
        ({"--instructions": tmp_path / "mine" / "all" / "pairs.jsonl"}, "pairs.jsonl"),
        ({"--instructions": tmp_path / "same" / "pairs.jsonl"}, "pairs.jsonl"),
        ({"--calibration": tmp_path / "mine" / "*.txt"}, "texts.txt"),
        ({"--heldout": given / "texts.txt", "--evaluate": tmp_path / "mine" / "tasks"}, "tasks"),
        ({"--dense": tmp_path / "mine" / "dense"}, "dense"),
        ({"--pruned": tmp_path / "mine" / "pruned"}, "pruned"),
    ):
        arguments = [str(part) for pair in (whole | further).items() for part in pair]
        for out in ("mine", "same"):
            with pytest.raises(BadInput, match=f"{name} contain one another: give an output folder outside"):
                CliRunner().invoke(
                    app,
                    ["restore", *arguments, "--out", str(tmp_path / out), "--overwrite"],
                    catch_exceptions=False,
                )
    assert not [path for path in tmp_path.iterdir() if path.name not in ("tasks", "mine", "same")]
    check_apart(tmp_path / "other", tmp_path / "mine" / "dense", tmp_path / "same")


def test_a_gguf_file_is_checked_and_taken(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from restorelcc.pipeline import oneshot
    from tests.gguf_files import tiny, write_gguf

    class Taken(Exception):
        pass

    def taken(request: oneshot.Request) -> None:
        raise Taken(request)

    write_gguf(tmp_path / "model.gguf", tiny("llama"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(oneshot, "run_chain", taken)
    options = ["--dense", "../model.gguf", "--instructions", given / "pairs.jsonl", "--out", "../out"]
    with pytest.raises(Taken) as found:
        CliRunner().invoke(app, ["restore", *map(str, options), "--pruning", "wanda-0.5"], catch_exceptions=False)
    request = found.value.args[0]
    assert oneshot.model_source("--dense", request.dense) == str((tmp_path / "model.gguf").resolve())
    assert request.work.resolve() == tmp_path / "out.work" and not list((tmp_path / "here").iterdir())
    (tmp_path / "model.gguf").write_bytes(b"GGU")
    with pytest.raises(BadInput, match=r"model\.gguf"):
        CliRunner().invoke(app, ["restore", *map(str, options), "--pruning", "wanda-0.5"], catch_exceptions=False)


def test_a_work_folder_that_restore_has_not_made_is_left_alone(given: Path, tmp_path: Path) -> None:
    """Its parameters, cache and remotes would be lost."""
    project = tmp_path / "project"
    new_project(project)
    kept = {path: path.read_bytes() for path in project.rglob("*") if path.is_file() and ".git" not in path.parts}
    options = ["--dense", given / "dense", "--pruned", given / "pruned", "--instructions", given / "pairs.jsonl"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "dvc.yaml").write_text("stages: {}")
    for folder in (project, tmp_path / "other"):
        with pytest.raises(BadInput, match=r"was not made by `restore`, which would replace what is there"):
            arguments = [*options, "--out", tmp_path / "out", "--work", folder]
            CliRunner().invoke(app, ["restore", *map(str, arguments)], catch_exceptions=False)
    assert kept == {path: path.read_bytes() for path in kept}


def test_a_second_restore_in_one_work_folder_waits_before_it_writes_there(tmp_path: Path) -> None:
    from restorelcc.pipeline.oneshot import _held

    order: list[str] = []

    def other() -> None:
        with _held(tmp_path / "work"):
            order.append("second")

    with _held(tmp_path / "work"):
        waiting = Thread(target=other)
        waiting.start()
        waiting.join(0.5)
        order.append("first")
    waiting.join(60)
    assert order == ["first", "second"]


def test_the_model_may_write_its_data_itself(tmp_path: Path) -> None:
    from restorelcc.pipeline import oneshot

    file = tmp_path / "asked.jsonl"
    file.write_text('{"question": "one?"}\n')
    request = oneshot.Request(
        dense="org/model", pruned=None, pruning="wanda-0.5", head_ratio=None,
        instructions=f"self:{file}", calibration="self", work=tmp_path / "work",
    )  # fmt: skip
    data = oneshot._project(request)["models"]["model"]["data"]
    assert data == {"instructions": f"self:{file}", "calibration": "self", "heldout": str(file)}
    with pytest.raises(BadInput, match="--heldout 'self' is not usable"):
        oneshot._project(replace(request, heldout="self"))


def test_task_files_are_found_from_the_folder_that_the_command_ran_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from restorelcc.pipeline import oneshot

    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "mine.yaml").write_text("task: mine\n")
    (tmp_path / "asked.jsonl").write_text('{"question": "one?"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    request = oneshot.Request(
        dense="org/model", pruned=None, pruning="wanda-0.5", head_ratio=None,
        instructions="asked.jsonl", calibration=None, work=tmp_path / "work",
        tasks=("t/mine.yaml", "t", "~/t", "rte", "lost.yaml"),
    )  # fmt: skip
    whole = tmp_path.resolve() / "t"
    found = oneshot._settled(request)[0]["models"]["model"]["tasks"]
    assert found == [str(whole / "mine.yaml"), str(whole), str(whole), "rte", str(whole.with_name("lost.yaml"))]

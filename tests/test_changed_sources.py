"""A folder that params.yaml names - the dense model, an external pruned one - and that changed in place after it was
used: every stage that reads it, and export, refuses; `restorelcc check` says so; `restore` computes anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from restorelcc.__main__ import main
from restorelcc.base.cell import Cell
from restorelcc.base.digest import file_digest, model_digest
from restorelcc.base.documents import write_document
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import DataFiles, ModelEntry
from restorelcc.base.weights import INDEX, WHOLE
from restorelcc.compensation.compensation import Compensation
from restorelcc.compensation.file import write_compensation
from restorelcc.models.architectures import head_layout, prunable_linears
from restorelcc.models.checkpoints import save_checkpoint, write_reference
from restorelcc.models.references import pinned_source
from restorelcc.pipeline.params import load_params
from restorelcc.pipeline.sources import compare_sources
from restorelcc.release.export.cell import cell_options
from restorelcc.release.export.export import ExportOptions, export_checkpoint
from restorelcc.stages.capture.stage import run_dense as capture_dense
from restorelcc.stages.capture.stage import run_pruned as capture_pruned
from restorelcc.stages.compensate import CompensateConfig
from restorelcc.stages.compensate.stage import run as compensate
from restorelcc.stages.corpus.local import read_file
from restorelcc.stages.evaluate.stage import run_dense, run_pruned, run_recovered, run_restored
from restorelcc.stages.prune.stage import run as prune
from restorelcc.stages.recover import RecoverConfig
from restorelcc.stages.recover.stage import run as recover
from tests import pico
from tests.dag import ROOT
from tests.recovery_project import ENTRY, EVALUATE, recovery_project, write_components
from tests.stages.capture.project import CONFIG as CAPTURE
from tests.stages.capture.project import tuples, write_tuples
from tests.stages.prune.project import CONFIG as PRUNE

CELL = Cell("pico", "wanda-0.5")
DENSE, RESTORED, RECOVERED = Cell("pico"), replace(CELL, head_ratio="0.25"), replace(CELL, recovery="meanshift")
TRAIN = CompensateConfig(learning_rates=(0.01,), epochs=1, batch_size=8, max_tokens=16)
DISTILLED = TRAIN.model_copy(update={"start": "ridge"})
OTHER = RecoverConfig(learning_rates=(0.01,), epochs=1, batch_size=8, max_tokens=16)


def _export(layout: Layout) -> None:
    params = load_params(ROOT / "params.yaml")
    options = cell_options(RESTORED, lambda alias, name: getattr(params, name), layout)
    export_checkpoint(layout.pruned(CELL), layout.compensation(RESTORED), layout.root / "exported", options)


STAGES: dict[str, Callable[[Layout], object]] = {
    "prune": lambda layout: prune(replace(CELL, pruning="wanda-0.6"), PRUNE, ENTRY, layout),
    "capture_dense": lambda layout: capture_dense(DENSE, CAPTURE, ENTRY, layout),
    "capture_pruned": lambda layout: capture_pruned(CELL, CAPTURE, ENTRY, layout),
    "compensate": lambda layout: compensate(RESTORED, TRAIN, ENTRY, layout),
    "compensate distilled": lambda layout: compensate(RESTORED, DISTILLED, ENTRY, layout),
    "recover": lambda layout: recover(RECOVERED, OTHER, ENTRY, layout),
    "evaluate_dense": lambda layout: run_dense(DENSE, EVALUATE, ENTRY, layout),
    "evaluate_pruned": lambda layout: run_pruned(CELL, EVALUATE, ENTRY, layout),
    "evaluate_restored": lambda layout: run_restored(RESTORED, EVALUATE, ENTRY, layout),
    "evaluate_recovered": lambda layout: run_recovered(RECOVERED, EVALUATE, ENTRY, layout),
    "export": _export,
}
OF_DENSE = ("prune", "capture_dense", "compensate distilled", "recover", "evaluate_dense", "export")
OF_PRUNED = tuple(name for name in STAGES if name not in ("prune", "capture_dense", "evaluate_dense"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose dense and pruned model are folders of the user's, with all that a finished grid has."""
    root = tmp_path_factory.mktemp("finished") / "project"
    layout = recovery_project(root)
    for name, folder in (("dense", layout.dense(CELL)), ("pruned", layout.pruned(CELL))):
        folder.rename(root / name)
        write_reference(folder, pinned_source("key", str(root / name), None, root))
    parents = {"dense": model_digest(layout.dense(CELL))}
    parents["calibration"] = file_digest(layout.corpus(CELL) / "calibration.parquet")
    write_document(layout.pruned(CELL) / "sparsity.json", {"parents": parents, "layers": []})
    heads = head_layout(pico.pico())
    write_components(layout, heads)
    write_tuples(layout, tuples(12))
    for name in ("evaluate_dense", "evaluate_pruned", "compensate", "evaluate_restored", "recover"):
        STAGES[name](layout)
    return root


@pytest.fixture
def layout(finished: Path, tmp_path: Path) -> Layout:
    """The project, at the place that its references name, as often as it is needed."""
    kept = finished.with_name("kept")
    if not kept.exists():
        shutil.copytree(finished, kept)
    shutil.rmtree(finished)
    shutil.copytree(kept, finished)
    return Layout(finished)


def _prune_again(folder: Path) -> None:
    model = pico.pico()
    for _, _, linear in prunable_linears(model):
        linear.weight[linear.weight.abs() < linear.weight.abs().median() * 1.2] = 0
    model.save_pretrained(folder)


def _new_chat_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")


CHANGES = {"weights": _prune_again, "tokenizer": _new_chat_template}


def test_with_nothing_changed_all_of_it_runs(layout: Layout) -> None:
    for name, stage in STAGES.items():
        stage(layout)
        assert name == "export" or (layout.root / "data").is_dir()


@pytest.mark.parametrize("part", CHANGES)
@pytest.mark.parametrize(
    ("which", "stage"), [("dense", name) for name in OF_DENSE] + [("pruned", name) for name in OF_PRUNED]
)
def test_every_stage_that_reads_a_changed_folder_refuses(which: str, stage: str, part: str, layout: Layout) -> None:
    CHANGES[part](layout.root / which)
    before = {path: path.read_bytes() for path in layout.data.rglob("*") if path.is_file()}
    with pytest.raises(BadInput, match=rf"{which} has changed since .*\({part}\).* run `dvc repro`") as caught:
        STAGES[stage](layout)
    assert "\n" not in str(caught.value)
    assert before == {path: path.read_bytes() for path in layout.data.rglob("*") if path.is_file()}
    assert not (layout.root / "exported").exists()


# --- restorelcc check


def _said(layout: Layout, entry: ModelEntry, *prunings: str) -> list[str]:
    found = compare_sources("pico", entry, layout, prunings)
    assert not any(comparison.stale for comparison in found), "what changed here is DVC's to see"
    return [comparison.sentence for comparison in found]


def test_check_notes_what_changed(layout: Layout) -> None:
    entry = ENTRY.model_copy(update={"source": str(layout.root / "dense")})
    assert _said(layout, entry, "wanda-0.5", "wanda-0.7") == []
    _prune_again(layout.root / "pruned")
    _new_chat_template(layout.root / "pruned")
    _new_chat_template(layout.root / "dense")
    assert _said(layout, entry, "wanda-0.5") == [
        f"the weights and tokenizer in {layout.root}/pruned changed since `prune` ran: `dvc repro` runs the "
        "stages that depend on it",
        f"the tokenizer in {layout.root}/dense changed since `dense` ran: `dvc repro` runs the stages that depend on "
        "it",
    ]
    assert len(_said(layout, entry)) == 1, "a pruning that left the grid is nobody's"
    (layout.root / "dense").rename(layout.root / "gone")
    assert _said(layout, entry.model_copy(update={"source": "else/where"})) == [], "params.yaml says so"


def test_check_notes_data_files_that_changed(layout: Layout) -> None:
    for name in ("pairs.jsonl", "texts.txt", "old.txt"):
        (layout.root / name).write_text("a")
    roles = {
        "calibration": {"source": "texts.txt", "sha256": file_digest(layout.root / "texts.txt")},
        "instructions": {"source": "pairs", "path": "pairs.jsonl", "sha256": file_digest(layout.root / "pairs.jsonl")},
        "heldout": {"source": "old.txt"},  # of before digests were recorded
    }
    write_document(layout.corpus(CELL) / "sources.json", roles)
    entry = ENTRY.model_copy(update={"source": str(layout.root / "dense")})
    assert _said(layout, entry) == []
    (layout.root / "pairs.jsonl").write_text("b")
    (layout.root / "old.txt").write_text("b")
    (layout.root / "texts.txt").unlink()
    said = _said(layout, entry)
    assert len(said) == 2
    assert "data.calibration" in said[0] and "texts.txt is gone" in said[0]
    assert "data.instructions" in said[1] and "pairs.jsonl changed since `corpus` ran: `dvc repro` runs" in said[1]


def test_check_compares_every_file_of_a_folder_or_pattern(layout: Layout) -> None:
    rows = layout.root / "rows"
    rows.mkdir()
    for name in ("a", "b"):
        (rows / f"{name}.jsonl").write_text(json.dumps({"question": name, "response": name}) + "\n")
    roles = {
        role: read_file(path, str(path)).origin
        for role, path in (("instructions", rows), ("heldout", rows / "*.jsonl"))
    }
    write_document(layout.corpus(CELL) / "sources.json", roles)
    entry = ENTRY.model_copy(update={"source": str(layout.root / "dense")})
    assert _said(layout, entry) == []
    (rows / "b.jsonl").write_text("{}\n")
    assert [f"{rows} changed" in _said(layout, entry)[0], "*.jsonl changed" in _said(layout, entry)[1]] == [True, True]
    (rows / "b.jsonl").unlink()
    (rows / "a.jsonl").unlink()
    assert "is gone" in _said(layout, entry)[1]


def test_check_of_a_changed_folder_is_a_note_and_no_failure(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    (layout.root / "texts.txt").write_text("w1 w2 w3\n")
    (layout.root / "pairs.jsonl").write_text('{"prompt": "w1", "completion": "w2"}\n')
    data = DataFiles(calibration="texts.txt", instructions="pairs.jsonl", heldout="texts.txt").model_dump()
    content["models"] = {"pico": {"source": str(layout.root / "dense"), "data": data}}
    content["grid"] |= {"model": ["pico"], "pruning": ["external-x"]}
    content["prune"]["external"] = {"pico": {"x": {"source": str(layout.root / "pruned")}}}
    layout.pruned(CELL).parent.rename(layout.pruned(CELL).parent.with_name("external-x"))
    (layout.root / "params.yaml").write_text(yaml.safe_dump(content))
    _prune_again(layout.root / "pruned")
    monkeypatch.setattr("sys.argv", ["restorelcc", "check", "--params", str(layout.root / "params.yaml")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert f"note: the weights in {layout.root}/pruned changed since `prune` ran" in capsys.readouterr().err


# --- two models in one folder, where a user names it


def _two_models(folder: Path) -> None:
    (folder / WHOLE).rename(folder / "kept")
    pico.pico().save_pretrained(folder, max_shard_size="8KB")
    (folder / "kept").rename(folder / WHOLE)


def _refused(arguments: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["restorelcc", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("restorelcc: error: ")]
    assert (ended.value.code, len(said)) == (2, 1), said
    assert WHOLE in said[0] and INDEX in said[0] and "two models" in said[0]


@pytest.mark.parametrize("option", ["--dense", "--pruned"])
def test_restore_refuses_two_models_in_one_folder(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("dense", "pruned"):
        save_checkpoint(tmp_path / name, pico.pico(), pico.word_tokenizer())
    rows = [{"question": "w3 w4", "response": f"w{5 + number}"} for number in range(12)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _two_models(tmp_path / option.removeprefix("--"))
    sources = ["--dense", tmp_path / "dense", "--pruned", tmp_path / "pruned"]
    _refused(
        ["restore", *sources, "--instructions", tmp_path / "pairs.jsonl", "--out", tmp_path / "out"],
        monkeypatch,
        capfd,
    )
    assert not (tmp_path / "out").exists()


def test_inspect_engines_export_and_verify_refuse_two_models_in_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, compensation, out = tmp_path / "pruned", tmp_path / "compensation.safetensors", tmp_path / "out"
    save_checkpoint(folder, pico.pico(), pico.word_tokenizer())
    heads = head_layout(pico.pico())
    offset = torch.zeros(heads.layers, heads.heads, heads.head_dim)
    write_compensation(compensation, Compensation(offset), {"pruned": model_digest(folder)})
    export_checkpoint(folder, compensation, out, ExportOptions())
    _two_models(folder)
    _two_models(out)
    files: list[Any] = ["--pruned", folder, "--compensation", compensation, "--out", tmp_path / "again"]
    for arguments in (["inspect", folder], ["engines", folder], ["export", *files], ["inspect", out]):
        _refused(arguments, monkeypatch, capsys)
    assert not (tmp_path / "again").exists()
    monkeypatch.setattr("sys.argv", ["restorelcc", "verify", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "two models" in capsys.readouterr().err

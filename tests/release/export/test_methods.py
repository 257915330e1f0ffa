"""What each way to recover ships: biases, a sparse checkpoint, both, or an adapter merged into the weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from restorelcc.base.digest import REFERENCE
from restorelcc.base.documents import read_document, read_metrics, write_document
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.recoveries import RECOVERIES, method
from restorelcc.cli.app import app
from restorelcc.models.architectures import prunable_linears
from restorelcc.models.references import pinned_source, write_reference
from restorelcc.models.tensor_files import stored_tensors
from restorelcc.release.export.apply import remove_compensation
from restorelcc.release.export.cell import cell_options, cell_parts, export_cell, method_name
from restorelcc.release.provenance import parents_of
from restorelcc.release.verify.files import Violation, check_parent
from restorelcc.release.verify.tensors import check_zeros_kept
from restorelcc.release.verify.verify import Subject, _why_none, subject, verify
from restorelcc.stages.evaluate.stage import run_recovered
from restorelcc.stages.prune import PruneConfig
from restorelcc.stages.recover import RecoverConfig
from restorelcc.stages.recover.stage import run
from restorelcc.training.config import SITES
from tests.recovery_project import CELL, ENTRY, EVALUATE, evaluated_project

CONFIG = RecoverConfig(learning_rates=(0.05,), epochs=1, batch_size=8, max_tokens=16, rank=2)
CASES = {"meanshift": None, "masked": None, "masked-compensated": None, "eora": "zeros-kept", "lora": "zeros-filled"}


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    found = evaluated_project(tmp_path_factory.mktemp("project"))
    for name in CASES:
        run(dataclasses.replace(CELL, recovery=name), CONFIG, ENTRY, found)
    return found


def _export(name: str, layout: Layout, out: Path) -> dict:
    cell, merge = dataclasses.replace(CELL, recovery=name), CASES[name]
    parts = cell_parts(cell, layout, merge)
    sections = {"recover": CONFIG}
    options = cell_options(cell, lambda _, section: sections.get(section, PruneConfig()), layout, merge=merge)
    return export_cell(parts, out, options, merge)


def _zeros(folder: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return {name: linear.weight == 0 for _, name, linear in prunable_linears(model)}


@pytest.mark.usefixtures("stock_forks")
@pytest.mark.parametrize("name", CASES)
def test_a_method_is_exported_by_its_name_and_verified(name: str, layout: Layout, tmp_path: Path) -> None:
    record = _export(name, layout, tmp_path / "out")
    assert record["method"]["name"] == record["recovery"] == name
    steps = list(verify(subject(tmp_path / "out", None, None)))
    assert dict(steps)["method"].startswith(f"{name}: ") and dict(steps)["logits"].startswith("max |difference|")
    before, after = _zeros(layout.pruned(CELL)), _zeros(tmp_path / "out")
    kept = all(bool((after[name] | ~zeros).all()) for name, zeros in before.items())
    assert kept == (CASES[name] != "zeros-filled")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"`{name}`: " in card
    assert ("The surviving weights are new." in card) == (kept and name != "meanshift")
    assert ("- sparse" in card) == kept
    parents = record["parents"]
    assert {"recovery.pruned", "recovery.dense"} <= set(parents)
    assert ("compensation" in parents) == (name in ("meanshift", "masked-compensated"))
    assert ("pruned" in parents) == (CASES[name] is None)


AGAINST = {
    "meanshift": "tensors of the pruned checkpoint unchanged",
    "masked": "zeros of the pruned checkpoint are zeros here, and the other weights are new",
    "masked-compensated": "zeros of the pruned checkpoint are zeros here, and the other weights are new",
    "eora": "zeros of the pruned checkpoint are zeros here, and the other weights are new",
    "lora": "not compared: the adapter was merged into the weights and fills its zeros",
}


@pytest.mark.parametrize("name", CASES)
def test_the_pruned_model_is_what_an_export_is_held_against(name: str, layout: Layout, tmp_path: Path) -> None:
    """Also where a method has new weights of it, which the record calls `pruned`."""
    pruned, weights = layout.pruned(CELL), layout.recovered(dataclasses.replace(CELL, recovery=name)) / "model"
    _export(name, layout, tmp_path / "out")

    def found(against: Path) -> str:
        return next(said for title, said in verify(subject(tmp_path / "out", against, None)) if title == "against")

    assert AGAINST[name] in found(pruned)
    if weights.is_dir():
        assert "unchanged" in found(weights)
    with pytest.raises(Violation, match=r"is not the (recovery\.)?pruned that the checkpoint was made from"):
        found(layout.dense(CELL))


def test_a_pruned_model_that_was_a_reference_without_content_is_compared_by_its_tensors(
    layout: Layout, tmp_path: Path
) -> None:
    """As an earlier version recorded it, and as a hub id is."""
    pruned, path = layout.pruned(CELL), tmp_path / "out" / "restorelcc.json"
    record = _export("masked", layout, tmp_path / "out")
    former = {"path": None, "digest": "a" * 64}
    write_document(path, record | {"parents": record["parents"] | {"recovery.pruned": former}})
    with pytest.raises(Violation, match=r"is not the recovery\.pruned that"):  # gone, and only zeros can be compared
        list(verify(subject(tmp_path / "out", pruned, None), logits=False))
    assert "not compared" in check_parent("pruned", tmp_path / "out", former, pruned), "all of its tensors will be"
    reference = tmp_path / "reference"
    write_reference(reference, pinned_source("key", str(pruned), None, tmp_path))
    recorded = former | {"path": "../reference"}
    write_document(path, record | {"parents": record["parents"] | {"recovery.pruned": recorded}})
    found = list(verify(subject(tmp_path / "out", pruned, None), logits=False))
    said = f"recovery.pruned {'a' * 12} (the recorded digest may be of a reference to it: not compared)"
    assert ("parents", said) in found
    assert AGAINST["masked"] in dict(found)["against"]
    check_parent("recovery.pruned", tmp_path / "out", recorded, pruned)
    with pytest.raises(Violation, match=r"is not the recovery\.pruned that"):
        check_parent("recovery.pruned", tmp_path / "out", recorded, layout.dense(CELL))
    content = read_document(reference / REFERENCE)
    del content["digests"]
    write_document(reference / REFERENCE, content)
    check_parent("recovery.pruned", tmp_path / "out", recorded, pruned)


@pytest.mark.parametrize(
    ("parents", "against", "said"),
    [
        (
            {"pruned": {"digest": "b" * 64}, "recovery.pruned": {"digest": "a" * 64}},
            True,
            "of new weights, which the pr",
        ),
        ({"recovery.pruned": {"digest": "a" * 64}}, False, "of new weights, which the pruned checkpoint does not have"),
        ({"pruned": {"digest": "b" * 64}}, False, "and the pruned checkpoint is gone, give --against"),
    ],
)
def test_where_heads_were_cut_out_of_new_weights_nothing_asks_for_the_pruned_model(
    parents: dict, against: bool, said: str, layout: Layout, tmp_path: Path
) -> None:
    record = {"parents": parents, "method": {"weights": "trained"}}
    assert _why_none(Subject(tmp_path, record, layout.pruned(CELL) if against else None, None)).startswith(said)


def test_a_zero_that_new_weights_fill_is_named(layout: Layout, tmp_path: Path) -> None:
    _export("lora", layout, tmp_path / "out")
    stored, pruned = stored_tensors(tmp_path / "out"), stored_tensors(layout.pruned(CELL))
    name = "model.layers.0.self_attn.q_proj.weight"
    first = torch.nonzero(pruned[name].read() == 0)[0].tolist()
    with pytest.raises(
        Violation, match=rf"{name} fills a zero of the pruned checkpoint, first at \[{first[0]}, {first[1]}\]"
    ):
        check_zeros_kept(stored, {name: pruned[name]})


def test_the_content_of_a_model_that_was_referred_to_is_recorded(layout: Layout) -> None:
    """By it a copy elsewhere is known."""
    recorded = {"recovery.pruned": "a" * 64, "recovery.pruned_content": "b" * 64}
    parents = parents_of(layout.pruned(CELL), None, {}, {}, recorded)
    assert parents["recovery.pruned"].content == "b" * 64 and set(parents) == {"pruned", "recovery.pruned"}


def test_weights_that_gained_nothing_are_told_apart_from_biases_that_did(layout: Layout, tmp_path: Path) -> None:
    path = layout.recovered(dataclasses.replace(CELL, recovery="masked-compensated")) / "recovery.json"
    document = read_document(path)
    assert (document["no_change"], document["weights_unchanged"]) == (False, False)
    try:
        write_document(path, document | {"weights_unchanged": True})
        record = _export("masked-compensated", layout, tmp_path / "out")
    finally:
        write_document(path, document)
    assert record["method"]["weights"] == "unchanged" and record["route"]["folded"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Training the weights gained nothing" in card and "surviving weights are new" not in card
    assert "A constant offset restores the mean" in card and "recovered by the method `masked-compensated`" in card


def test_the_compensation_of_trained_weights_is_taken_out_again(layout: Layout, tmp_path: Path) -> None:
    _export("masked-compensated", layout, tmp_path / "out")
    remove_compensation(tmp_path / "out", tmp_path / "again")
    cell = dataclasses.replace(CELL, recovery="masked-compensated")
    trained = layout.recovered(cell) / "model" / "model.safetensors"
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == trained.read_bytes()


@pytest.mark.parametrize("name", ["lora", "masked-compensated"])
def test_the_card_has_the_numbers_of_what_is_written_and_none_of_anything_else(
    name: str, layout: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = dataclasses.replace(CELL, recovery=name)
    run_recovered(cell, EVALUATE, ENTRY, layout)
    metrics = read_metrics(layout.metrics(cell))
    written = metrics["variants"]["merged"] if name == "lora" else metrics
    capsys.readouterr()
    _export(name, layout, tmp_path / "out")
    assert "leaves out" not in capsys.readouterr().err
    shown = f"| {written['perplexity']['value']:.2f} (heldout) |"
    assert shown in (tmp_path / "out" / "README.md").read_text()
    weights = json.loads((tmp_path / "out" / "restorelcc.json").read_text())["method"]["weights"]
    assert weights == ("merged" if name == "lora" else "trained")
    run(cell, CONFIG.model_copy(update={"learning_rates": (0.02,)}), ENTRY, layout)
    _export(name, layout, tmp_path / "again")
    assert "leaves out the numbers of the restored model, which" in capsys.readouterr().err
    card = (tmp_path / "again" / "README.md").read_text()
    assert "None were measured for this checkpoint." in card and shown not in card


def test_details_from_before_adapters_had_a_digest_can_be_read(layout: Layout, tmp_path: Path) -> None:
    cell = dataclasses.replace(CELL, recovery="eora")
    run_recovered(cell, EVALUATE, ENTRY, layout)
    details = read_document(layout.details(cell))
    assert details["digests"].pop("adapter") and list(details["digests"]) == ["model"]
    write_document(layout.details(cell), details)
    _export("eora", layout, tmp_path / "out")
    assert "None were measured for this checkpoint." in (tmp_path / "out" / "README.md").read_text()


def test_an_adapter_that_is_not_merged_and_other_misuse_are_refused(layout: Layout) -> None:
    for recovery, merge, said in (
        ("lora", None, "lora leaves an adapter beside the weights"),
        ("masked", "zeros-kept", "--merge is for methods that leave an adapter, and masked does not"),
        ("lora", "yes", "--merge 'yes': it is zeros-filled or zeros-kept"),
    ):
        with pytest.raises(BadInput, match=said):
            cell_parts(dataclasses.replace(CELL, recovery=recovery), layout, merge)


CELL_NAMES = ["--model", "pico", "--pruning", "wanda-0.5"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*CELL_NAMES, "--method", "masked", "--head-ratio", "0.1"], "one of --head-ratio and --method"),
        (["--method", "masked"], "one of --head-ratio and --method"),
        (["--pruned", "p", "--compensation", "c", "--method", "masked"], "one of --head-ratio and --method"),
        (["--pruned", "p", "--compensation", "c", "--merge", "zeros-kept"], "--merge is of a cell of the grid"),
    ],
)
def test_export_refuses_names_that_do_not_go_together(arguments: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=said):
        CliRunner().invoke(app, ["export", "--out", str(tmp_path / "out"), *arguments], catch_exceptions=False)


def test_every_method_says_which_biases_its_result_needs() -> None:
    for name, found in RECOVERIES.items():
        assert method("--method", name) is found
        assert found.ships == "checkpoint" or bool(found.sites) == (found.ships == "biases")
        assert set(found.sites) <= {"heads", *SITES}
    assert method_name(CELL, ("o",)) == "heads" and method_name(CELL, SITES) == "every-bias"

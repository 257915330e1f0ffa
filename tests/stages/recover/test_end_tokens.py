"""An external checkpoint that was lent the dense model's generation config ends texts where the dense model does: as it
is loaded, as it is recovered, and as it is exported."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from restorelcc.base.documents import read_json, write_json
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.manifest import write_manifest
from restorelcc.compensation.compensation import Compensation
from restorelcc.compensation.file import write_compensation
from restorelcc.models.architectures import head_layout
from restorelcc.models.checkpoints import lend_generation, lend_tokenizer, load_entry, write_reference
from restorelcc.models.continuation import end_tokens
from restorelcc.models.references import pinned_source
from restorelcc.release.export.cell import cell_options, cell_parts, export_cell
from restorelcc.release.export.export import ExportOptions, export_checkpoint
from restorelcc.stages.recover import RecoverConfig
from restorelcc.stages.recover.stage import run
from tests import pico
from tests.recovery_project import CELL, ENTRY, recovery_project, write_components
from tests.release.export.restored import heads_of

CONFIG = RecoverConfig(learning_rates=(0.02,), epochs=1, batch_size=8, max_tokens=16)
GENERATION, ENDS = "generation_config.json", [2, 9]


def _lent(root: Path, *, own: list[int] | None = None, former: bool = False, tokenizer: bool = False) -> Layout:
    """The pruned model is elsewhere. own: end tokens of its own; former: names as of old; tokenizer: it has one."""
    layout = recovery_project(root / "project")
    dense = layout.dense(CELL) / GENERATION
    write_json(dense, read_json(dense) | {"eos_token_id": ENDS})
    elsewhere = layout.pruned(CELL).rename(root / "elsewhere")
    own_tokenizer = [] if tokenizer else elsewhere.glob("tokenizer*")
    for path in [*own_tokenizer, elsewhere / "sparsity.json", elsewhere / GENERATION]:
        path.unlink()
    if own is not None:
        write_json(elsewhere / GENERATION, {"eos_token_id": own})
    if former:
        file = elsewhere / "model.safetensors"
        save_file(
            {name.removeprefix("model."): value for name, value in load_file(file).items()}, file, {"format": "pt"}
        )
    write_reference(layout.pruned(CELL), pinned_source("k", str(elsewhere), None, root))
    assert bool(lend_tokenizer(layout.dense(CELL), layout.pruned(CELL))) == (not tokenizer)
    assert lend_generation(layout.dense(CELL), layout.pruned(CELL)) == (own is None)
    write_manifest(layout.pruned(CELL))
    write_components(layout, head_layout(pico.pico()))
    return layout


def _ends(layout: Layout, which: str) -> list[int]:
    return end_tokens(load_entry(getattr(layout, which)(CELL), ENTRY))


@pytest.mark.parametrize("tokenizer", [False, True])
@pytest.mark.parametrize("former", [False, True])
def test_both_models_end_texts_at_the_same_tokens(former: bool, tokenizer: bool, tmp_path: Path) -> None:
    layout = _lent(tmp_path, former=former, tokenizer=tokenizer)
    assert _ends(layout, "pruned") == _ends(layout, "dense") == ENDS


def test_a_generation_config_of_its_own_goes_first(tmp_path: Path) -> None:
    layout = _lent(tmp_path, own=[5, 2])
    assert _ends(layout, "pruned") == [5, 2]
    run(dataclasses.replace(CELL, recovery="masked"), CONFIG, ENTRY, layout)
    written = layout.recovered(dataclasses.replace(CELL, recovery="masked")) / "model" / GENERATION
    assert written.read_bytes() == (tmp_path / "elsewhere" / GENERATION).read_bytes()


def test_a_lent_one_that_was_changed_is_refused(tmp_path: Path) -> None:
    layout = _lent(tmp_path)
    write_json(layout.pruned(CELL) / GENERATION, {"eos_token_id": 7})
    with pytest.raises(BadInput, match=f"{GENERATION} was changed since it was written"):
        _ends(layout, "pruned")


@pytest.mark.parametrize("former", [False, True])
@pytest.mark.parametrize("name", ["masked", "reconstruct"])
def test_what_is_recovered_and_exported_keeps_every_end_token(name: str, former: bool, tmp_path: Path) -> None:
    layout, cell = _lent(tmp_path, former=former), dataclasses.replace(CELL, recovery=name)
    run(cell, CONFIG, ENTRY, layout)
    folder = layout.recovered(cell) / "model"
    assert (folder / GENERATION).read_bytes() == (layout.dense(CELL) / GENERATION).read_bytes()
    assert end_tokens(load_entry(folder, ENTRY)) == ENDS
    export_cell(cell_parts(cell, layout), tmp_path / "out", cell_options(cell, lambda *_: CONFIG, layout))
    assert read_json(tmp_path / "out" / GENERATION)["eos_token_id"] == ENDS


@pytest.mark.parametrize(("former", "tokenizer"), [(False, False), (True, False), (False, True)])
def test_an_export_with_a_compensation_keeps_every_end_token(former: bool, tokenizer: bool, tmp_path: Path) -> None:
    layout = _lent(tmp_path, former=former, tokenizer=tokenizer)
    write_compensation(tmp_path / "free.safetensors", Compensation(heads_of(pico.pico())), {})
    export_checkpoint(layout.pruned(CELL), tmp_path / "free.safetensors", tmp_path / "out", ExportOptions())
    assert read_json(tmp_path / "out" / GENERATION)["eos_token_id"] == ENDS

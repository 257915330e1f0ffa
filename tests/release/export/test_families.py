"""hooked == folded == exported and reloaded in a fresh process, and != pruned, for every family and dtype."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from restorelcc.compensation.compensation import Compensation
from restorelcc.compensation.fold import fold
from restorelcc.compensation.hooks import compensated
from restorelcc.models.architectures import FAMILIES, family_of, head_layout
from restorelcc.models.biases import LLAMA_EQUIVALENTS
from restorelcc.models.tensor_files import stored_tensors
from restorelcc.release.export.export import ExportOptions, export_checkpoint
from restorelcc.release.verify.logits import Loaded, load_fresh
from tests import pico
from tests.fresh import verify_in_forks
from tests.release.export.restored import heads_of, pruned_model, sites_of, write_pair

DTYPES = (torch.float32, torch.bfloat16)
# Linears beside the out-projection that the written class can carry a bias on.
SITES = {
    family: tuple(path for path in row.linears if family in LLAMA_EQUIVALENTS or row.bias_route(path) != "none")
    for family, row in FAMILIES.items()
}
CASES = [(family, dtype) for family in pico.FAMILIES for dtype in DTYPES]


@dataclass
class Exported:
    """One case: logits [B, T, V] in float32 arithmetic, made in memory and by the fresh process."""

    folder: Path
    pruned_folder: Path
    record: dict[str, Any]
    pruned_BTV: Tensor
    hooked_BTV: Tensor
    folded_BTV: Tensor
    loaded: Loaded


@torch.no_grad()
def _in_memory(model: Any, compensation: Compensation) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the pruned, the hooked and the folded model; folding changes the model."""
    model = model.float()
    tokens = pico.tokens()
    pruned = model(input_ids=tokens).logits
    with compensated(model, compensation):
        hooked = model(input_ids=tokens).logits
    fold(model, compensation)
    return pruned, hooked, model(input_ids=tokens).logits


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, torch.dtype], Exported]:
    root = tmp_path_factory.mktemp("families")
    made = {}
    for number, (family, dtype) in enumerate(CASES):
        model = pruned_model(family, dtype)
        compensation = Compensation(heads_of(model), sites_of(model, SITES[family]))
        pair = write_pair(root / str(number), model, compensation)
        folder = root / str(number) / "out"
        record = export_checkpoint(pair.pruned, pair.compensation, folder, ExportOptions(max_shard_bytes=8_000))
        made[family, dtype] = (folder, pair.pruned, record, *_in_memory(model, compensation))
    with verify_in_forks():
        loaded = load_fresh([(folder, pico.tokens().tolist()) for folder, *_ in made.values()])
    return {case: Exported(*values, found) for (case, values), found in zip(made.items(), loaded, strict=True)}


@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_a_fresh_process_gets_the_hooked_models_logits(exported: Any, family: str, dtype: torch.dtype) -> None:
    case = exported[family, dtype]
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert case.loaded.report[kind] == []
    assert case.loaded.report["dtype"] == str(dtype).removeprefix("torch.")
    if dtype == torch.float32:
        bound = 1e-5
        assert float((case.folded_BTV - case.hooked_BTV).abs().max()) <= bound
    else:  # the model's own rounding: what computing in bfloat16 instead of float32 does to the same numbers
        bound = float((case.loaded.own_BTV - case.loaded.float32_BTV).abs().max())
    assert float((case.loaded.float32_BTV - case.hooked_BTV).abs().max()) <= bound
    assert float((case.hooked_BTV - case.pruned_BTV).abs().max()) > 10 * bound


@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_no_weight_is_touched_and_nothing_but_biases_is_added(exported: Any, family: str, dtype: torch.dtype) -> None:
    case = exported[family, dtype]
    pruned, written = stored_tensors(case.pruned_folder), stored_tensors(case.folder)
    folded = set(case.record["route"]["folded"])
    for name, tensor in pruned.items():
        same = torch.equal(written[name].read().view(torch.uint8), tensor.read().view(torch.uint8))
        assert same == (name not in folded), name
    added = set(written) - set(pruned)
    assert added == set(case.record["route"]["added"])
    assert all(name.endswith(".bias") and written[name].dtype == dtype for name in added)
    assert not any(written[name].read().any() for name in added - folded)
    assert case.record["route"]["added_parameters"] == sum(written[name].read().numel() for name in added)
    carrying = sum(written[name].read().numel() for name in added & folded)
    assert case.record["route"]["carrying_parameters"] == carrying
    assert case.record["sparsity"]["patterns"] == ["2:4", "4:8"]
    assert len(list(case.folder.glob("*.safetensors"))) > 1


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_shapes_are_such_that_the_classic_slips_show(family: str) -> None:
    model = pico.pico(family)
    layout = head_layout(model)
    assert layout.layers != layout.heads
    if family_of(model).free_head_dim and family not in ("qwen2", "phi"):
        assert layout.width != model.config.hidden_size
        assert model.config.num_key_value_heads < layout.heads


def test_mistral_and_qwen2_become_llama_and_others_stay(exported: Any) -> None:
    for (family, _), case in exported.items():
        expected = "llama" if family in LLAMA_EQUIVALENTS else family
        assert case.record["route"]["model_type"] == expected
        assert case.record["route"]["relabelled_from"] == (family if expected != family else None)
        assert (case.loaded.report["class"] == "LlamaForCausalLM") == (expected == "llama")

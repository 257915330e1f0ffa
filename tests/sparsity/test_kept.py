"""A checkpoint in which single weights are written over: all else in it stays, in bits, dtypes, names and files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from restorelcc.base.documents import read_json
from restorelcc.models.architectures import prunable_linears
from restorelcc.models.checkpoints import load_model
from restorelcc.models.tensor_bytes import tensor_bytes
from restorelcc.models.tensor_files import stored_tensors
from restorelcc.sparsity.kept import KeptCheckpoint
from restorelcc.sparsity.patterns import retained
from tests import pico
from tests.release.export.restored import pruned_model

CPU = torch.device("cpu")
F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64


def _contents(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Dtype, shape and bytes of every tensor."""
    return {name: (each.code, each.shape, bytes(each.content())) for name, each in tensor_bytes(folder).items()}


def _bits(values: list[float], dtype: torch.dtype) -> bytes:
    return torch.tensor(values, dtype=dtype).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    ("value", "computed", "before", "stored", "expected"),
    [
        ([1.5, 2.0], F32, [1.5, 1.0], F32, [1.5, 2.0]),
        ([1.0, -0.0, 0.0], F32, [1.0, 0.0, -0.0], F32, [1.0, 0.0, -0.0]),  # the stored sign of a zero
        ([1.0 + 2**-9, 3.0], F32, [1.0, 1.0], BF16, [1.0, 3.0]),  # rounded to the nearest
        ([1e-45, 2.0], F32, [1.0, 1.0], BF16, [2.0**-126, 2.0]),  # the number next to 0
        ([1e-9, 2.0], F32, [1.0, 1.0], F16, [2.0**-24, 2.0]),
        ([1.0, 3.0], BF16, [1.0 + 2**-20, 1.0], F32, [1.0 + 2**-20, 3.0]),  # digits that bfloat16 lacks
        ([0.0, 1.0], F16, [1e-9, 1.0], F32, [1e-9, 1.0]),  # 0 in float16 alone
        ([1.0, 0.5], F32, [1.0 + 2**-40, 1.0], F64, [1.0 + 2**-40, 0.5]),
        ([1.0, 1.0078125], BF16, [1.0009765625, 1.0], F16, [1.0009765625, 1.0078125]),
    ],
)
def test_what_did_not_move_keeps_its_bits_and_what_did_is_rounded_to_no_zero(
    value: list[float], computed: torch.dtype, before: list[float], stored: torch.dtype, expected: list[float]
) -> None:
    found = retained(torch.tensor(value, dtype=computed), torch.tensor(before, dtype=stored))
    assert found.dtype == stored
    assert found.view(torch.uint8).numpy().tobytes() == _bits(expected, stored)


@pytest.mark.parametrize("computed", [F32, BF16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gemma3", "gpt_neox"])
def test_one_linear_is_written_and_nothing_else(family: str, computed: torch.dtype, tmp_path: Path) -> None:
    """In shards, with norms wider than the rest; of a class that stores weights turned, or several experts by name."""
    model = pruned_model(family, BF16)
    for name, part in model.named_parameters():
        if part.ndim == 1 and "norm" in name:
            part.data = part.data.float() + 2.0**-20
    model.save_pretrained(tmp_path / "source", max_shard_size="16KB")
    before = _contents(tmp_path / "source")
    assert {code for code, _, _ in before.values()} == ({"BF16", "F32"} if family != "gpt2" else {"BF16"})
    kept = KeptCheckpoint(tmp_path / "source", tmp_path / "copy")
    assert _contents(tmp_path / "copy") == before
    network = load_model(tmp_path / "source", computed, CPU)
    _, name, linear = list(prunable_linears(network))[1]
    with torch.no_grad():
        linear.weight[linear.weight != 0] += 0.3
        wanted_OI = linear.weight.to(BF16)
    kept.write(network, [linear])
    after = _contents(tmp_path / "copy")
    assert [key for key in before if after[key] != before[key]] == [f"{name}.weight"]
    stored = stored_tensors(tmp_path / "copy")[f"{name}.weight"].as_linear(family == "gpt2")
    assert torch.equal(stored.read(), wanted_OI)
    assert torch.equal(linear.weight, wanted_OI.to(computed)), "what will be read back"
    for path in (tmp_path / "source").iterdir():
        if path.suffix != ".safetensors":
            assert (tmp_path / "copy" / path.name).read_bytes() == path.read_bytes()
    assert torch.equal(_weight(tmp_path / "copy", name), wanted_OI.float())


def _weight(folder: Path, name: str) -> torch.Tensor:
    linears = {found: linear for _, found, linear in prunable_linears(load_model(folder, F32, CPU))}
    return linears[name].weight


def test_tied_embeddings_are_stored_once_and_stay(tmp_path: Path) -> None:
    pruned_model("llama", BF16, tie_word_embeddings=True).save_pretrained(tmp_path / "source")
    KeptCheckpoint(tmp_path / "source", tmp_path / "copy")
    assert _contents(tmp_path / "copy") == _contents(tmp_path / "source")
    assert "lm_head.weight" not in _contents(tmp_path / "copy")


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("family", "prefix"), [("llama", "model."), ("gpt2", "transformer.")])
def test_former_names_become_those_of_the_class_with_the_same_bits(
    family: str, prefix: str, mixed: bool, tmp_path: Path
) -> None:
    """As a model saved without its head has them, and GPT-2 on the hub."""
    pruned_model(family, BF16).save_pretrained(tmp_path / "source")
    masks = pico.store_masks(tmp_path / "source", family) if family in pico.MASKS else []
    file = tmp_path / "source" / "model.safetensors"
    tensors = {
        name: value.float() + 2.0**-20 if mixed and name.endswith(("norm.weight", "ln_1.weight")) else value
        for name, value in load_file(file).items()
    }
    save_file(tensors, file, {"format": "pt"})
    present = _contents(tmp_path / "source")
    save_file({name.removeprefix(prefix): value for name, value in tensors.items()}, file, {"format": "pt"})
    kept = KeptCheckpoint(tmp_path / "source", tmp_path / "copy")
    assert _contents(tmp_path / "copy") == {name: each for name, each in present.items() if name not in masks}
    network = load_model(tmp_path / "source", F32, CPU)
    _, name, linear = next(prunable_linears(network))
    linear.weight.data *= 3
    kept.write(network, [linear])
    assert torch.equal(_weight(tmp_path / "copy", name), linear.weight)
    assert read_json(tmp_path / "copy" / "config.json")["dtype"] == "bfloat16"


@pytest.mark.parametrize("with_zeros", [False, True])
def test_what_was_removed_stays_removed_where_a_number_is_zero_in_the_models_dtype(
    with_zeros: bool, tmp_path: Path
) -> None:
    """1e-9 is 0 in float16. A weight that training left alone keeps it; a pruned one is 0."""
    model = pico.pico()
    _, name, linear = next(prunable_linears(model))
    linear.weight.data[0] = 1e-9
    model.save_pretrained(tmp_path / "source")
    kept, network = KeptCheckpoint(tmp_path / "source", tmp_path / "copy"), load_model(tmp_path / "source", F16, CPU)
    kept.write(network, [linear for _, _, linear in prunable_linears(network)], with_zeros=with_zeros)
    row = stored_tensors(tmp_path / "copy")[f"{name}.weight"].read()[0]
    assert torch.equal(row, torch.full_like(row, 0.0 if with_zeros else 1e-9))


def test_a_process_whose_checkpoint_is_not_shipped_writes_nothing_and_has_the_same_model(tmp_path: Path) -> None:
    model = pruned_model("llama", BF16)
    model.save_pretrained(tmp_path / "source")
    before = _contents(tmp_path / "source")
    found = []
    for shipped in (True, False):
        kept = KeptCheckpoint(tmp_path / "source", tmp_path / f"copy-{shipped}", shipped=shipped)
        network = load_model(tmp_path / "source", F32, CPU)
        linears = [linear for _, _, linear in prunable_linears(network)]
        for linear in linears:
            linear.weight.data *= 1.01
        kept.write(network, linears)
        found.append([linear.weight for linear in linears])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert _contents(tmp_path / "source") == before != _contents(tmp_path / "copy-True")
    assert not (tmp_path / "copy-False").exists()

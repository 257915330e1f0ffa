"""Single tensors read from and written over in safetensors files."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from restorelcc.base.errors import BadInput
from restorelcc.base.weights import weight_files
from restorelcc.models.tensor_files import stored_tensors

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8)


def _saved(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {str(dtype): (torch.randn(3, 5) * 9).to(dtype) for dtype in DTYPES} | {"none": torch.empty(0, 4)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return tensors


def test_what_is_read_is_what_safetensors_reads(tmp_path: Path) -> None:
    tensors, stored = _saved(tmp_path), stored_tensors(tmp_path)
    assert set(stored) == set(tensors)
    for name, tensor in tensors.items():
        assert stored[name].shape == tuple(tensor.shape)
        assert torch.equal(stored[name].read(), tensor)


def test_overwriting_one_tensor_leaves_the_others(tmp_path: Path) -> None:
    tensors, stored = _saved(tmp_path), stored_tensors(tmp_path)
    new = torch.randn(5, 3).T  # not contiguous, and of another dtype than the one stored
    stored["torch.bfloat16"].overwrite(new)
    found = load_file(tmp_path / "model.safetensors")
    assert torch.equal(found.pop("torch.bfloat16"), new.to(torch.bfloat16))
    assert all(torch.equal(value, tensors[name]) for name, value in found.items())
    with pytest.raises(ValueError, match="no place"):
        stored["torch.bfloat16"].overwrite(torch.zeros(2, 2))


def test_files_that_are_none_are_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"holds no \.safetensors file"):
        weight_files(tmp_path)
    for content in (b"", b"\xff" * 40, (9).to_bytes(8, "little") + b"not json!"):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(BadInput, match="not a readable safetensors file"):
            stored_tensors(tmp_path)


def test_weights_beside_the_checkpoint_are_left_out(tmp_path: Path) -> None:
    _saved(tmp_path)
    save_file({"other": torch.zeros(1)}, tmp_path / "consolidated.safetensors")
    assert "other" not in stored_tensors(tmp_path)

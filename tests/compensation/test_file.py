"""compensation.safetensors: what is written is what is read, and anything else is refused in one sentence."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from restorelcc.base.cell import Cell
from restorelcc.base.errors import BadInput
from restorelcc.compensation.compensation import Compensation, Site
from restorelcc.compensation.file import check_ratio, read_compensation, write_compensation
from restorelcc.models.tensors import write_tensors

OFFSET = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
DOWN = Site(2, "mlp.down_proj")


def test_it_comes_back_with_its_sites_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "compensation.safetensors"
    trained = {"heads": torch.tensor([[0, 1]], dtype=torch.int32), "beta": torch.ones(1, 6), "bias": torch.ones(1, 6)}
    write_compensation(path, Compensation(OFFSET, {DOWN: torch.ones(16)}), {"model": "m"}, trained)
    assert set(load_file(path)) == {"offset", "site.2.mlp.down_proj", "heads", "beta", "bias"}
    found, metadata = read_compensation(path)
    assert torch.equal(found.offset_LHD, OFFSET)
    assert torch.equal(found.sites[DOWN], torch.ones(16))
    assert metadata == {"model": "m"}
    first = path.read_bytes()
    write_compensation(path, found, metadata, trained)
    assert path.read_bytes() == first


def test_a_file_that_is_there_stays_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "compensation.safetensors"
    write_compensation(path, Compensation(OFFSET), {})
    first = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("save_file", "encoded"):
        with monkeypatch.context() as patch:
            patch.setattr(f"restorelcc.models.tensors.{name}", full)
            with pytest.raises(OSError, match="No space"):
                write_compensation(path, Compensation(2 * OFFSET), {})
        assert path.read_bytes() == first and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": OFFSET}, "is not a compensation"),
        ({"offset": OFFSET[0]}, r"shape \[layers, heads, head dim\].*\(4, 6\)"),
        ({"offset": OFFSET, "site.down_proj": torch.ones(3)}, "is not site.<layer>.<linear>"),
        ({"offset": OFFSET, "site.0.mlp.down_proj": torch.ones(3, 3)}, r"of shape \(3, 3\)"),
        ({"offset": OFFSET * float("inf")}, "NaN or infinity in offset"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    write_tensors(tmp_path / "file.safetensors", tensors, {})
    with pytest.raises(BadInput, match=message):
        read_compensation(tmp_path / "file.safetensors")


def test_a_compensation_of_another_head_ratio_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "compensation.safetensors"
    for cell in (Cell("m", "wanda-0.5", "0.1"), Cell("m", "wanda-0.5", "auto"), Cell("m", "wanda-0.5", recovery="ffn")):
        check_ratio(path, {"head_ratio": "0.1"}, cell)
    check_ratio(path, {}, Cell("m", "wanda-0.5", "0.25"))
    with pytest.raises(BadInput, match=r"was trained for the head ratio 0\.1, not 0\.25"):
        check_ratio(path, {"head_ratio": "0.1"}, Cell("m", "wanda-0.5", "0.25"))

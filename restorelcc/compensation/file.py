"""`compensation.safetensors`: the offset of every head, further sites, and what they were trained as.

And the names in the folder of another recovery method: a document, and a compensation, a whole checkpoint, both, or
an adapter.

Letters: P chosen heads, L layers, H heads, D head dim, O output features of a linear.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from restorelcc.base.cell import AUTO, Cell
from restorelcc.base.digest import files_digest
from restorelcc.base.errors import BadInput
from restorelcc.compensation.compensation import SITE_PREFIX, Compensation, parse_site
from restorelcc.models.tensors import read_all_tensors, write_tensors

# In the folder of another recovery method:
DOCUMENT = "recovery.json"  # name, kind ("compensation", "checkpoint" or "adapter"), parents, training
COMPENSATION = "compensation.safetensors"
MODEL = "model"
ADAPTER = "adapter"
_OF_AN_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")  # peft's names

OFFSET = "offset"
# How the offsets were made: the chosen heads [P, 2], and beta and b [P, D] of RestoreLCC eq. 8.
TRAINED = ("heads", "beta", "bias")


def write_compensation(
    path: Path, compensation: Compensation, metadata: dict[str, str], trained: dict[str, Tensor] | None = None
) -> None:
    """offset [L, H, D], one `site.<layer>.<linear>` [O] per further site, and the tensors of `trained` (TRAINED)."""
    tensors = {OFFSET: compensation.offset_LHD.detach().float().cpu()}
    for site, value_O in compensation.sites.items():
        tensors[site.tensor_name] = value_O.detach().float().cpu()
    for name, value in (trained or {}).items():
        if name not in TRAINED:
            raise ValueError(f"{name} is none of {TRAINED}")
        tensors[name] = value.detach().cpu()
    write_tensors(path, tensors, metadata)


def read_compensation(path: Path) -> tuple[Compensation, dict[str, str]]:
    """The compensation and the file's metadata. Raises BadInput when the file is missing, damaged or something else."""
    tensors, metadata = read_all_tensors(path)
    offset = tensors.pop(OFFSET, None)
    if offset is None or offset.dim() != 3 or not offset.is_floating_point():
        found = "no such tensor" if offset is None else f"{tuple(offset.shape)} {offset.dtype}"
        raise BadInput(
            f"{path} is not a compensation: it must hold `{OFFSET}`, numbers of shape [layers, heads, head dim], and "
            f"has {found}"
        )
    sites = {parse_site(name): value for name, value in tensors.items() if name.startswith(SITE_PREFIX)}
    for site, value_O in sites.items():
        if value_O.dim() != 1 or not value_O.is_floating_point():
            raise BadInput(f"{path} has {site.tensor_name} of shape {tuple(value_O.shape)} {value_O.dtype}: damaged")
    values = {OFFSET: offset} | {site.tensor_name: value for site, value in sites.items()}
    for name, value in values.items():
        if not torch.isfinite(value).all():
            raise BadInput(f"{path} holds NaN or infinity in {name}: train the compensation again")
    return Compensation(offset, sites), metadata


def adapter_digest(folder: Path) -> str:
    """Identity of an adapter: its weights, and how they are scaled. Raises BadInput where one of the two is missing."""
    return files_digest([folder / name for name in _OF_AN_ADAPTER])


def check_ratio(path: Path, metadata: dict[str, str], cell: Cell) -> None:
    """Raises BadInput for a compensation of another head ratio than the cell's: a file in another one's place."""
    recorded = metadata.get("head_ratio")
    if recorded is None or cell.head_ratio in (None, AUTO, recorded):
        return
    raise BadInput(f"{path} was trained for the head ratio {recorded}, not {cell.head_ratio}: run `dvc repro`")

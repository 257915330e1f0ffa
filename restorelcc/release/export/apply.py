"""Put a compensation into a checkpoint folder, take it out again, and say what it holds.

Letters: L layers, H heads, D head dim.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from restorelcc.base.errors import BadInput
from restorelcc.compensation.compensation import Compensation
from restorelcc.compensation.file import read_compensation
from restorelcc.models.checkpoint_check import check_checkpoint
from restorelcc.release.export.export import ExportOptions, export_checkpoint
from restorelcc.release.folders import check_apart, copy_other_files, published_folder
from restorelcc.release.original import can_be_taken_out, original_config, write_original
from restorelcc.release.provenance import COMPENSATION, OWN_FOLDER, read_record


def apply_compensation(checkpoint: Path, compensation: Path, out: Path, options: ExportOptions) -> dict[str, Any]:
    """Write `out`: the checkpoint with the compensation folded in, all its other files as they are.

    Raises BadInput as export_checkpoint does, and when the checkpoint carries a compensation already.
    """
    if (checkpoint / OWN_FOLDER / COMPENSATION).is_file():
        raise BadInput(
            f"{checkpoint} carries a compensation already: take it out first (`restorelcc compensation remove`)"
        )
    return export_checkpoint(checkpoint, compensation, out, options)


def remove_compensation(folder: Path, out: Path, *, overwrite: bool = False) -> None:
    """Write `out`: the checkpoint as it was before the compensation was put into it, bit for bit.

    Raises BadInput when the folder does not hold what that takes, StageFailed when its weights have been changed since.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder: give the folder of a restored checkpoint")
    check_apart(out, folder)
    original_config(folder)  # first, since without it nothing can be taken out
    check_checkpoint(folder)
    made = read_record(folder)["made"]
    with published_folder(out, overwrite=overwrite) as scratch:
        write_original(folder, scratch)
        copy_other_files(folder, scratch, without=(OWN_FOLDER, *made))


def compensation_of(path: Path) -> tuple[Compensation, dict[str, str]]:
    """The compensation in a file, or the one that a restored checkpoint folder carries."""
    kept = path / OWN_FOLDER / COMPENSATION
    if path.is_dir() and not kept.is_file():
        raise BadInput(f"{path} carries no compensation ({OWN_FOLDER}/{COMPENSATION} is not there)")
    return read_compensation(kept if path.is_dir() else path)


def described(path: Path) -> dict[str, Any]:
    """What a compensation holds, JSON-ready: heads with the norm of their offset, sites, metadata."""
    values, metadata = compensation_of(path)
    norm_LH = values.offset_LHD.float().norm(dim=-1)
    layers, heads, head_dim = values.offset_LHD.shape
    return {
        "layers": layers,
        "heads_per_layer": heads,
        "head_dim": head_dim,
        "heads": [
            {"layer": layer, "head": head, "norm": float(norm_LH[layer, head])}
            for layer, head in torch.nonzero(norm_LH).tolist()
        ],
        "sites": [
            {"layer": site.layer, "linear": site.linear, "norm": float(value.float().norm())}
            for site, value in sorted(values.sites.items())
        ],
        "metadata": metadata,
        "can_be_removed": path.is_dir() and can_be_taken_out(path),
    }

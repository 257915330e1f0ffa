"""Put a compensation into a checkpoint folder, and take it out again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from restorelcc.base.errors import BadInput
from restorelcc.models.checkpoint_check import check_checkpoint
from restorelcc.release.export.export import ExportOptions, export_checkpoint
from restorelcc.release.folders import check_apart, copy_other_files, published_folder
from restorelcc.release.original import original_config, write_original
from restorelcc.release.provenance import COMPENSATION, OWN_FOLDER, RECORD, read_record


def apply_compensation(checkpoint: Path, compensation: Path, out: Path, options: ExportOptions) -> dict[str, Any]:
    """Write `out`: the checkpoint with the compensation folded in, all its other files as they are.

    Raises BadInput as export_checkpoint does, and for a checkpoint that carries a compensation already, or that is an
    export, whose record and whose way back would be replaced.
    """
    if (checkpoint / OWN_FOLDER / COMPENSATION).is_file():
        raise BadInput(
            f"{checkpoint} carries a compensation already: take it out first (`restorelcc compensation remove`)"
        )
    if (checkpoint / RECORD).is_file():
        raise BadInput(
            f"{checkpoint} is an export ({RECORD}), which this would write over: use `restorelcc export --pruned "
            f"{checkpoint} --compensation {compensation}`"
        )
    return export_checkpoint(checkpoint, compensation, out, options)


def remove_compensation(folder: Path, out: Path, *, overwrite: bool = False) -> list[str]:
    """Write `out`: the checkpoint as it was before the compensation was put into it, bit for bit. Returns the names of
    its files.

    Raises BadInput when the folder does not hold what that takes, StageFailed when its weights have been changed since.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder: give the folder of a restored checkpoint")
    check_apart(out, folder)
    original_config(folder)  # first, since without it nothing can be taken out
    check_checkpoint(folder)
    made = read_record(folder)["made"]
    with published_folder(out, overwrite=overwrite) as scratch:
        texts = write_original(folder, scratch)
        copy_other_files(folder, scratch, without=(OWN_FOLDER, *made, *texts))
        return sorted(str(path.relative_to(scratch)) for path in scratch.rglob("*") if path.is_file())

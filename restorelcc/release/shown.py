"""What a compensation holds, in numbers: read with NumPy, since torch takes seconds to import.

Letters: L layers, H heads, D head dim, O output features of a linear.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from restorelcc.base.documents import SEAL, check_seal
from restorelcc.base.errors import BadInput
from restorelcc.base.stock_files import COMPENSATION, ORIGINAL, OWN_FOLDER
from restorelcc.models.safetensors_header import METADATA, read_header, sealed_digest

_OFFSET, _SITE = "offset", "site."
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def described(path: Path) -> dict[str, Any]:
    """What a compensation file, or that of a restored checkpoint folder, holds, JSON-ready: heads with the norm of
    their offset, sites, metadata.

    Raises BadInput for a folder without one, and for a file that is missing, damaged or something else.
    """
    kept = path / OWN_FOLDER / COMPENSATION
    if path.is_dir() and not kept.is_file():
        raise BadInput(f"{path} carries no compensation ({OWN_FOLDER}/{COMPENSATION} is not there)")
    file = kept if path.is_dir() else path
    numbers, metadata = _read(file)
    offset_LHD = numbers.pop(_OFFSET, np.zeros(0))
    if offset_LHD.ndim != 3:
        raise BadInput(f"{file} is not a compensation: it must hold `{_OFFSET}`, of shape [layers, heads, head dim]")
    norm_LH = np.linalg.norm(offset_LHD, axis=-1)
    layers, heads, head_dim = offset_LHD.shape
    return {
        "layers": layers,
        "heads_per_layer": heads,
        "head_dim": head_dim,
        "heads": [
            {"layer": layer, "head": head, "norm": float(norm_LH[layer, head])}
            for layer, head in np.argwhere(norm_LH).tolist()
        ],
        "sites": [
            {"layer": layer, "linear": linear, "norm": float(np.linalg.norm(value_O))}
            for (layer, linear), value_O in sorted((_site(file, name), value) for name, value in numbers.items())
        ],
        "metadata": metadata,
        "can_be_removed": path.is_dir() and (path / OWN_FOLDER / ORIGINAL).is_file(),
    }


def _site(file: Path, name: str) -> tuple[int, str]:
    layer, _, linear = name.removeprefix(_SITE).partition(".")
    if not layer.isdecimal() or not linear:
        raise BadInput(f"{file} holds {name!r}, which is not site.<layer>.<linear>, as site.0.mlp.down_proj is")
    return int(layer), linear


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The offset and the sites in float32, and the metadata."""
    if not path.is_file():
        raise BadInput(f"{path} is missing: give a compensation.safetensors, or the folder of a restored checkpoint")
    header, begin = read_header(path)
    metadata = header.get(METADATA, {})
    check_seal(path, metadata.get(SEAL), sealed_digest(path, header, begin))
    found = {}
    for name, entry in header.items():
        if name != _OFFSET and not name.startswith(_SITE):
            continue
        if entry["dtype"] not in _FLOATS:
            raise BadInput(f"{path} has {name} of the dtype {entry['dtype']}, which is none of a compensation: damaged")
        start, end = entry["data_offsets"]
        kind = np.dtype(_FLOATS[entry["dtype"]])
        value = np.fromfile(path, kind, (end - start) // kind.itemsize, offset=begin + start)
        if entry["dtype"] == "BF16":  # the upper half of a float32
            value = (value.astype(np.uint32) << 16).view(np.float32)
        if not np.isfinite(value).all():
            raise BadInput(f"{path} holds NaN or infinity in {name}: train the compensation again")
        found[name] = value.astype(np.float32).reshape(entry["shape"])
    return found, {key: value for key, value in metadata.items() if key != SEAL}

"""What a checkpoint on disk holds: zeros, patterns, removed heads and channels, dtype and size.

Reads safetensors only, with NumPy.

Letters: O output features, I input features.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from restorelcc.base.errors import BadInput
from restorelcc.base.weights import weight_files
from restorelcc.models.checkpoint_check import plain_config
from restorelcc.models.config_facts import family_of_config, layout_of_config, text_config
from restorelcc.models.family import Family
from restorelcc.models.references import local_folder
from restorelcc.models.tensor_bytes import TensorBytes, densest_group, tensor_bytes
from restorelcc.release.patterns import common_patterns, held_patterns, recorded_groups


@dataclass(frozen=True)
class InspectedTensor:
    """One targeted weight; `patterns` are the N:M that every group of every row holds, none where N would be M."""

    name: str
    layer: int
    shape: tuple[int, ...]
    dtype: str
    zeros: int
    total: int
    patterns: tuple[str, ...]


@dataclass(frozen=True)
class InspectedLayer:
    """One block: its targeted weights together, and what is missing of it as a whole."""

    layer: int
    zeros: int
    total: int
    patterns: tuple[str, ...]
    heads: int
    heads_removed: int
    channels: int
    channels_removed: int

    @property
    def sparsity(self) -> float:
        return self.zeros / self.total


def inspect_checkpoint(folder: Path) -> dict[str, Any]:
    """Everything as one JSON-ready dict. Raises BadInput for a folder that holds no checkpoint of a known family."""
    source = local_folder(folder, by_class=False)
    config = plain_config(source)
    family = family_of_config(config)
    stored = {name: tensor for name, tensor in tensor_bytes(source).items() if not family.is_mask(name)}
    tensors, layers = [], []
    layout, groups = layout_of_config(config), recorded_groups(folder)
    for layer in map(layout.block, range(layout.layers)):
        own, structure = _inspect_layer(layer, family, config, stored, groups)
        tensors += own
        layers.append(_layer(layer, own, structure))
    zeros, total = sum(layer.zeros for layer in layers), sum(layer.total for layer in layers)
    dtypes: Counter[str] = Counter()
    for tensor in stored.values():
        dtypes[tensor.dtype] += tensor.end - tensor.start
    return {
        "folder": str(folder),
        "source": str(source),
        "model_type": config.model_type,
        "dtype": max(dtypes, key=lambda name: dtypes[name]),
        "bytes": sum(path.stat().st_size for path in weight_files(source)),
        "parameters": sum(tensor.numbers for tensor in stored.values()),
        "targeted": total,
        "zeros": zeros,
        "sparsity": zeros / total,
        "patterns": common_patterns([tensor.patterns for tensor in tensors]),
        "heads_removed": sum(layer.heads_removed for layer in layers),
        "channels_removed": sum(layer.channels_removed for layer in layers),
        "biases": _biased(family, stored),
        "layers": [asdict(layer) | {"sparsity": layer.sparsity} for layer in layers],
        "tensors": [asdict(tensor) | {"sparsity": tensor.zeros / tensor.total} for tensor in tensors],
    }


def _biased(family: Family, stored: dict[str, TensorBytes]) -> dict[str, int]:
    """In how many layers each linear has a bias that is not zero throughout; linears without any are left out."""
    counts = {
        path: sum(bool(tensor.nonzero().any()) for tensor in biases_of(path, family, stored)) for path in family.linears
    }
    return {path: count for path, count in counts.items() if count}


def biases_of(path: str, family: Family, stored: dict[str, TensorBytes]) -> list[TensorBytes]:
    """The bias of a linear in every block that has one; what else the model is made of, such as a vision tower, may
    have linears of the same name."""
    places = (f"{family.stored}.", f"{family.stored.partition('.')[2]}.")  # the bare model's leave the prefix out
    ours = re.compile(rf"({'|'.join(map(re.escape, places))})\d+\.{re.escape(path)}\.bias")
    return [tensor for name, tensor in stored.items() if ours.fullmatch(name)]


def _inspect_layer(
    layer: int, family: Family, config: Any, stored: dict[str, TensorBytes], groups: tuple[int, ...]
) -> tuple[list[InspectedTensor], tuple[int, int, int, int]]:
    """The block's targeted weights, and (heads, removed heads, channels, removed channels)."""
    tensors: list[InspectedTensor] = []
    heads = heads_removed = channels = channels_removed = 0
    for path in family.linears:
        name = f"{family.stored}.{layer}.{path}.weight"
        if family.partial and path != family.out_proj and name not in stored:
            continue
        found = _find(name, stored, family)
        nonzero_OI = found.nonzero()
        tensors.append(_inspected(name, layer, found, nonzero_OI, groups))
        read_I = np.logical_or.reduce(nonzero_OI, axis=0)  # what of the inputs is read at all
        if path == family.out_proj:
            heads = text_config(config).num_attention_heads
            heads_removed = int((~read_I.reshape(heads, -1).any(axis=1)).sum())
        if path == family.ffn_out:
            channels, channels_removed = nonzero_OI.shape[1], int((~read_I).sum())
    return tensors, (heads, heads_removed, channels, channels_removed)


def _find(name: str, stored: dict[str, TensorBytes], family: Family) -> TensorBytes:
    # Checkpoints saved from the bare model leave its prefix out.
    found = stored.get(name) or stored.get(name.partition(".")[2])
    if found is None:
        raise BadInput(f"the checkpoint has no tensor {name}, which its config.json implies: it is incomplete")
    if len(found.shape) != 2:
        raise BadInput(f"{name} has shape {found.shape}, not that of a Linear layer: such a model is not supported")
    return found.as_linear(family.transposed)


def _inspected(
    name: str, layer: int, stored: TensorBytes, nonzero_OI: NDArray[np.bool_], groups: tuple[int, ...]
) -> InspectedTensor:
    patterns = held_patterns(nonzero_OI, densest_group, groups)
    total = nonzero_OI.size
    zeros = total - int(np.count_nonzero(nonzero_OI))
    return InspectedTensor(name, layer, stored.shape, stored.dtype, zeros, total, tuple(patterns))


def _layer(layer: int, tensors: list[InspectedTensor], structure: tuple[int, int, int, int]) -> InspectedLayer:
    zeros, total = sum(tensor.zeros for tensor in tensors), sum(tensor.total for tensor in tensors)
    return InspectedLayer(
        layer, zeros, total, tuple(common_patterns([tensor.patterns for tensor in tensors])), *structure
    )

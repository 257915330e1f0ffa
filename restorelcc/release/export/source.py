"""The pruned checkpoint that is written again with its compensation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel

from restorelcc.base.stock_files import check_stock
from restorelcc.models.architectures import Family, family_of_config, head_layout
from restorelcc.models.checkpoints import copy_generation, local_folder, write_tokenizer
from restorelcc.models.heads import HeadLayout
from restorelcc.models.tensor_files import StoredTensor, stored_tensors
from restorelcc.sparsity.kept import write_renamed
from restorelcc.sparsity.streaming import empty_model, linears_by_name


@dataclass(frozen=True)
class Source:
    """A checkpoint whose blocks' linears go by the names its class gives them.

    given: the folder the user named; folder: where the files are. `converted` when the files are a conversion of an
    older layout, made in a scratch folder.
    """

    given: Path
    folder: Path
    network: PreTrainedModel  # without weights
    stored: dict[str, StoredTensor]
    converted: bool

    @property
    def config(self) -> PretrainedConfig:
        return self.network.config

    @property
    def family(self) -> Family:
        return family_of_config(self.config)

    def weight_of(self, bias: str) -> StoredTensor:
        """The weight [O, I] of the linear that has the bias of this name."""
        return self.stored[f"{bias.removesuffix('bias')}weight"].as_linear(self.family.transposed)

    @property
    def layout(self) -> HeadLayout:
        return head_layout(self.network)


def open_source(given: Path, scratch: Path) -> Source:
    """Read headers and config of a checkpoint folder (or one with model_ref.json).

    Raises BadInput for a checkpoint that is incomplete, damaged, a pickle, in need of its own code, or of no known
    family.
    """
    folder = local_folder(given)
    check_stock(folder)
    network, stored = empty_model(folder, torch.float32), stored_tensors(folder)
    if linears_by_name(network, stored):
        return Source(given, folder, network, stored, converted=False)
    converted = scratch / "converted"
    write_renamed(folder, converted)
    write_tokenizer(given, converted)
    copy_generation(given, converted)
    return Source(given, converted, empty_model(converted, torch.float32), stored_tensors(converted), converted=True)


def main_dtype(stored: dict[str, StoredTensor]) -> torch.dtype:
    """The floating-point dtype that most bytes of a checkpoint have: older ones hold masks, which are no weights."""
    bytes_of: Counter[torch.dtype] = Counter()
    for tensor in stored.values():
        if tensor.dtype.is_floating_point:
            bytes_of[tensor.dtype] += tensor.end - tensor.start
    return max(bytes_of, key=lambda dtype: bytes_of[dtype])

"""A model whose blocks are in memory one at a time: read from the checkpoint's files, and written back if changed.

Letters: O output features, I input features.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from restorelcc.base.errors import BadInput
from restorelcc.base.weights import weights_of
from restorelcc.models.architectures import family_of, family_of_config, prunable_linears
from restorelcc.models.checkpoint_check import loaded_config, refused
from restorelcc.models.tensor_files import StoredTensor
from restorelcc.models.transposed import as_stored
from restorelcc.sparsity.patterns import retained, rounded


def read_config(source: Path) -> PretrainedConfig:
    """The checkpoint's config. Raises BadInput when it is missing, of a family not in the table, or quantized."""
    config = loaded_config(source)
    family_of_config(config)
    return config


def empty_model(source: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a checkpoint without its weights (all on the meta device), in evaluation mode."""
    config = read_config(source)
    # Nothing is drawn for weights that are not there; the buffers are made all the same.
    with refused("model", source), init_empty_weights(include_buffers=False), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    return model.eval().requires_grad_(False)


def can_stream(model: PreTrainedModel, stored: dict[str, StoredTensor]) -> bool:
    """Whether the checkpoint's tensors go by the names the model gives them; older layouts are loaded whole instead.

    Raises BadInput when a tensor has another shape than the config says.
    """
    output = model.get_output_embeddings()
    for name, parameter in model.state_dict(keep_vars=True).items():
        if name in stored:
            if stored[name].shape != tuple(parameter.shape):
                raise BadInput(
                    f"{stored[name].file} holds {name} with shape {stored[name].shape}, its config.json says "
                    f"{tuple(parameter.shape)}: the checkpoint is damaged"
                )
        elif not (model.config.tie_word_embeddings and output is not None and parameter is output.weight):
            return False
    return True


def linears_by_name(network: PreTrainedModel, stored: dict[str, StoredTensor]) -> bool:
    """Whether the linears of all blocks are stored under the names that the class gives them.

    Raises BadInput when one of them has another shape than the config says.
    """
    for _, name, linear in prunable_linears(network):
        for leaf, parameter in linear.named_parameters():
            tensor, shape = stored.get(f"{name}.{leaf}"), tuple(as_stored(linear, leaf, parameter).shape)
            if tensor is None:
                return False
            if tensor.shape != shape:
                raise BadInput(
                    f"{tensor.file} holds {name}.{leaf} with shape {tensor.shape}, its config.json says "
                    f"{shape}: the checkpoint is damaged"
                )
    return True


def copy_checkpoint(source: Path, destination: Path) -> None:
    """Copy weights, index, config and generation config as they are; pruned weights are then written over."""
    destination.mkdir(parents=True, exist_ok=True)
    companions = ("config.json", "generation_config.json")
    for name in (*weights_of(source).names, *(name for name in companions if (source / name).is_file())):
        shutil.copyfile(source / name, destination / name)


class StreamedWeights:
    """Weights of a model made by `empty_model`: what is outside the blocks now, each block while it is worked on."""

    def __init__(
        self,
        model: PreTrainedModel,
        stored: dict[str, StoredTensor],
        device: torch.device,
        written: dict[str, StoredTensor] | None = None,
    ) -> None:
        """written: the tensors of a copy of the checkpoint that the targeted linears of each block are written to."""
        self._stored, self._written, self._device = stored, written, device
        self._dtype = next(model.parameters()).dtype
        self._blocks = family_of(model).blocks
        self._targets: dict[int, dict[str, nn.Linear]] = {}
        for layer, name, linear in prunable_linears(model):
            self._targets.setdefault(layer, {})[f"{name}.weight"] = linear
        self._load(model, {name for name in stored if not name.startswith(f"{self._blocks}.")})
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(device)

    @contextmanager
    def resident(self, layer: int, block: nn.Module) -> Iterator[None]:
        """The block's weights are in memory inside the `with`. When it ends well its targeted linears are written."""
        names = [name for name, _ in block.named_parameters()]
        self._load(block, set(names), prefix=f"{self._blocks}.{layer}.")
        yield
        if self._written is not None:
            for name, linear in self._targets.get(layer, {}).items():
                self._overwrite(self._written[name], as_stored(linear, "weight", linear.weight))
                bias = name.removesuffix("weight") + "bias"
                if linear.bias is not None and bias in self._written:
                    self._overwrite(self._written[bias], linear.bias)
        for name in names:
            _put(block, name, block.get_parameter(name).to("meta"))
        _return_freed_memory()

    def as_stored(self, name: str, value: Tensor, leaf: str = "weight") -> Tensor:
        """The weight (or bias) rounded to the dtype that it has in the checkpoint."""
        return rounded(value, self._stored[f"{name}.{leaf}"].dtype)

    def for_reading(self) -> StreamedWeights:
        """The same weights, of which no block is written when its `with` ends."""
        reading = copy.copy(self)
        reading._written = None
        return reading

    def _overwrite(self, stored: StoredTensor, value: Tensor) -> None:
        narrow = self._dtype not in (stored.dtype, torch.float32)
        stored.overwrite(retained(value, stored.read(), with_zeros=True) if narrow else value)

    def _load(self, module: nn.Module, names: set[str], prefix: str = "") -> None:
        for name, _ in list(module.named_parameters()):
            if name in names:
                path, _, leaf = name.rpartition(".")
                value = as_stored(module.get_submodule(path), leaf, self._stored[prefix + name].read())
                _put(module, name, value.to(self._device, self._dtype))


def _return_freed_memory() -> None:
    """What adds up over many blocks: tensors in reference cycles, which wait for a collection, and holes in a heap."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _put(module: nn.Module, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module.get_submodule(path)._parameters[leaf] = nn.Parameter(value, requires_grad=False)

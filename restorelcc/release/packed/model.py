"""A transformers model whose sparse linears stay packed in memory and compute from that form.

Letters: B tokens, O output features, I input features, W bytes of mask in a row, N survivors.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from restorelcc.base.documents import read_json
from restorelcc.base.errors import BadInput
from restorelcc.models.architectures import family_of_config
from restorelcc.models.checkpoint_check import loaded_config, refused, wrong_keys
from restorelcc.models.safetensors_header import tensors_of
from restorelcc.models.tensor_files import DTYPES
from restorelcc.release.packed.folder import Shard, open_packed, packed_matrix
from restorelcc.release.packed.kernel import Kernel, kernel
from restorelcc.release.packed.matrix import Packed

_KINDS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}  # as in kernel.c
_SPARE = 64  # bytes that the kernel may read behind the values
# From this many tokens on, a layer is expanded and multiplied by torch: measured by benchmarks/packed.py.
EXPANDED_FROM = dict.fromkeys(_KINDS, 40)
_scratch = threading.local()


class PackedLinear(nn.Module):
    """y = x W^T + b of a W without its zeros; a drop-in for nn.Linear, for inference."""

    bias: Tensor | None  # [O]
    mask: Tensor  # [O, W] uint8
    offsets: Tensor  # [O + 1] int32
    values: Tensor  # [N] and some spare, int16 or int32: the bits of numbers of `stored`

    def __init__(self, linear: nn.Linear | Conv1D) -> None:
        """A place for the weight of `linear`, with its bias."""
        super().__init__()
        inputs, outputs = linear.weight.shape if isinstance(linear, Conv1D) else reversed(linear.weight.shape)
        self.in_features, self.out_features = inputs, outputs
        self.register_parameter("bias", linear.bias)
        self.stored = torch.float32
        # Until it holds one: classes that draw weights at random look for it, though none is drawn (_with_places).
        self.weight: Tensor | None = torch.empty(0, self.in_features)

    def hold(self, packed: Packed, stored: torch.dtype) -> None:
        """Take up a weight, which is checked already (matrix.check); stored: the dtype of its numbers."""
        if (len(packed.mask), packed.inputs) != (self.out_features, self.in_features):
            raise ValueError(f"a weight of {len(packed.mask)} x {packed.inputs} has no place in {self}")
        self.stored = stored
        del self.weight
        bits = torch.int32 if stored == torch.float32 else torch.int16
        values = torch.zeros(len(packed.values) + _SPARE // bits.itemsize, dtype=bits, device="cpu")
        values.numpy()[: len(packed.values)] = packed.values.view(values.numpy().dtype)
        self.register_buffer("values", values, persistent=False)
        self.register_buffer("mask", torch.from_numpy(packed.mask.copy()), persistent=False)
        self.register_buffer("offsets", torch.from_numpy(packed.offsets.copy()), persistent=False)

    def _save_to_state_dict(self, *arguments: Any, **options: Any) -> None:
        """Refuse what would be a checkpoint without its weights. Before a weight is held there is none to lose."""
        if "values" in self._buffers:
            raise BadInput("a packed model is not saved from memory: copy its folder, or run `restorelcc unpack` on it")
        super()._save_to_state_dict(*arguments, **options)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:  # the kernel reads and writes memory by this number
            raise ValueError(f"an input of {x.shape[-1]} features has no place in {self}")
        library, held = kernel(), self._parameters["bias"]
        trained = torch.is_grad_enabled() and (x.requires_grad or (held is not None and held.requires_grad))
        other = x.dtype not in _KINDS or torch.is_autocast_enabled("cpu")
        if library is None or trained or other or not (x.is_cpu and self._buffers["values"].is_cpu):  # type: ignore[union-attr]
            return F.linear(x, self.dense_weight(x.dtype), self.bias)
        tokens = x.numel() // self.in_features
        if tokens >= EXPANDED_FROM[self.stored]:
            return self._expanded(x, library)
        x = x.contiguous()
        y = torch.empty((*x.shape[:-1], self.out_features), dtype=x.dtype, device="cpu")  # whatever the default is
        bias = None if held is None else held.detach().float()
        failed = library.linear(
            *self._packed(),
            *(_KINDS[x.dtype], x.data_ptr(), None if bias is None else bias.data_ptr(), y.data_ptr()),
            *(self.out_features, self.in_features, tokens, torch.get_num_threads()),
        )
        if failed:
            raise MemoryError(f"no memory for the input of {self}")
        return y

    def dense_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """W [O, I] in memory of its own, computed by torch; None: in the dtype stored."""
        places = torch.arange(8, dtype=torch.uint8, device=self.mask.device)
        bits_OI = (self.mask.unsqueeze(-1) >> places & 1).bool().flatten(1)[:, : self.in_features]
        weight_OI = torch.zeros(bits_OI.shape, dtype=self.values.dtype, device=self.mask.device)
        spare = _SPARE // self.values.dtype.itemsize
        weight_OI[bits_OI] = self.values[: len(self.values) - spare]
        return weight_OI.view(self.stored).to(dtype or self.stored)

    def _expanded(self, x: Tensor, library: Kernel) -> Tensor:
        """For many tokens: the weight is expanded into a buffer that all layers of a thread share."""
        dtype = _product_dtype(x.dtype)
        weight_OI = _buffer(dtype, self.out_features * self.in_features).view(self.out_features, self.in_features)
        if dtype in (self.stored, torch.float32):
            library.expand(
                *(*self._packed(), _KINDS[dtype], weight_OI.data_ptr()),
                *(self.out_features, self.in_features, torch.get_num_threads()),
            )
        else:
            weight_OI.copy_(self.dense_weight())
        bias = None if self.bias is None else self.bias.to(dtype)
        return F.linear(x.to(dtype), weight_OI, bias).to(x.dtype)

    def _packed(self) -> tuple[int, int, int, int]:
        held: Any = self._buffers  # a token passes through here hundreds of times; attributes of modules are slow
        return _KINDS[self.stored], held["mask"].data_ptr(), held["values"].data_ptr(), held["offsets"].data_ptr()


def _product_dtype(dtype: torch.dtype) -> torch.dtype:
    """What torch multiplies matrices of `dtype` in: many processors have no fast product of 16-bit numbers."""
    fast = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}.get(dtype)
    return dtype if fast is None or getattr(torch.ops.mkldnn, fast)() else torch.float32


def _buffer(dtype: torch.dtype, numbers: int) -> Tensor:
    held: Tensor | None = getattr(_scratch, str(dtype), None)
    if held is None or held.numel() < numbers:
        held = torch.empty(numbers, dtype=dtype, device="cpu")
        setattr(_scratch, str(dtype), held)
    return held[:numbers]


def load_packed(folder: str | Path) -> PreTrainedModel:
    """The model of a packed checkpoint on the CPU, in evaluation mode, all weights frozen: its sparse linears are
    PackedLinear, everything else is transformers' own.

    Raises BadInput for a folder that is no packed checkpoint, or is damaged; and as `kernel`.
    """
    folder = Path(folder)
    shards = open_packed(folder)
    kernel()  # compiled, or said that there is none, now and not in the middle of a text
    config = loaded_config(folder)
    linears = _packed_linears(config, shards)
    with refused("model", folder), init_empty_weights():
        kind: Any = type(AutoModelForCausalLM.from_config(config, trust_remote_code=False))
    dense = {name: tensor.read() for shard in shards for name, tensor in shard.stored.items() if name in shard.header}
    # No weight of `loading` is missing then, so that none is drawn at random only to be thrown away.
    with refused("model", folder):
        model, report = _with_places(kind, list(linears.values())).from_pretrained(
            None,
            config=config,
            state_dict=dense,
            dtype=_dtype(config, shards),
            trust_remote_code=False,
            output_loading_info=True,
        )
        model.__class__ = kind
    if wrong := wrong_keys(config, report):
        raise BadInput(f"the checkpoint in {folder} has {wrong[0]}: {wrong[1][:3]}")
    for shard in shards:
        for name in tensors_of(shard.header).keys() & linears.keys():
            packed = packed_matrix(shard, name)
            assert packed is not None
            with refused("model", folder):
                model.get_submodule(linears[name]).hold(packed, DTYPES[shard.header[name]["dtype"]])
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_dict(read_json(folder / "generation_config.json"))
    return model.eval().requires_grad_(False)


def _packed_linears(config: Any, shards: list[Shard]) -> dict[str, str]:
    """Name of a packed weight in the checkpoint to the path of its linear in the model.

    Raises BadInput for a packed tensor that is no weight of a block's linears.
    """
    family, found = family_of_config(config), {}
    for shard in shards:
        for name in tensors_of(shard.header):
            if name in shard.stored:
                continue
            layer, _, path = name.removeprefix(f"{family.stored}.").removesuffix(".weight").partition(".")
            if name != f"{family.stored}.{layer}.{path}.weight" or path not in family.linears:
                raise BadInput(f"{shard.packed} holds {name} packed, which is no linear of a block: pack it again")
            found[name] = f"{family.blocks}.{layer}.{path}"
    return found


def _with_places(kind: Any, paths: list[str]) -> Any:
    """The class with places for packed weights at these paths."""

    def init(self: Any, *arguments: Any, **options: Any) -> None:
        kind.__init__(self, *arguments, **options)
        for path in paths:
            self.set_submodule(path, PackedLinear(self.get_submodule(path)))

    return type(kind.__name__, (kind,), {"__init__": init, "__module__": kind.__module__})


def _dtype(config: Any, shards: list[Shard]) -> torch.dtype:
    """What from_pretrained would load the stock checkpoint in: the dtype of its config, or of its first tensor."""
    named = getattr(config, "dtype", None)
    if isinstance(named, torch.dtype):
        return named
    kinds = (DTYPES[entry["dtype"]] for shard in shards for entry in tensors_of(shard.header).values())
    return next((kind for kind in kinds if kind.is_floating_point), torch.float32)

"""Guess the row of a model family from the modules of a small model, the order in which they run, and its config.

Letters: B batch, T tokens, O output features, H heads, D head dim, X = H*D.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from restorelcc.base.errors import BadInput
from restorelcc.models.architectures import WITH_HEADS, linear_of, text_config
from restorelcc.models.family import Family, QkvRows, Windows
from restorelcc.models.hooks import hooked, observed
from restorelcc.models.transposed import TurnedLinear, with_linears

_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}  # in config.layer_types
_EXPERTS = re.compile(r"(Experts|Router|Gate)$")  # names of classes
_NO_HEADS = re.compile(r"Mamba|Mixer$|DeltaNet|Conv|Lightning")
_WIDTHS = re.compile(r"intermediate|ffn|inner")


def guessed(model: PreTrainedModel) -> tuple[Family, int]:
    """The row, by the order in which the linears of a block run, and that block's number. Raises BadInput where there
    is no such order."""
    text = text_config(model.config)
    blocks = _blocks(model, text.num_hidden_layers)
    experts, hybrid = _experts(model.get_submodule(blocks)), is_hybrid(model.config)
    number, block = _typical_block(model, blocks, partial=bool(experts) or hybrid)
    called, in_tuple = _calls(model, block, some=bool(experts) or hybrid)
    attention = [path for path in called if _in_attention(block, path)]
    ffn = _ffn(block, [path for path in called if path not in attention], shared=bool(experts))
    if len(attention) < 2 or (not 2 <= len(ffn) <= 3 and not (hybrid or experts)):
        raise BadInput(f"a block runs the linears {', '.join(called)}: no attention with a projection, then an FFN")
    *qkv, out_proj = attention
    if named := [path for path in qkv if path.endswith(("q_proj", "k_proj", "v_proj"))]:
        qkv = named  # a gate on the outputs is none of them
    qkv = sorted(qkv, key=_query_first) if len(qkv) == 3 else qkv
    heads, inner = text.num_attention_heads, linear_of(block, out_proj).in_features
    if inner % heads:
        raise BadInput(f"{out_proj} has {inner} inputs, which are not {heads} heads of equal width")
    head_dim_key = "v_head_dim" if getattr(text, "v_head_dim", None) == inner // heads else "head_dim"
    kv_heads_key = next((key for key in ("num_key_value_heads", "num_kv_heads") if hasattr(text, key)), None)
    fields: dict[str, Any] = {"blocks": blocks, "qkv": tuple(qkv), "out_proj": out_proj}
    fields |= _ffn_fields(text, block, ffn, experts)
    fields |= {"windows": "never" if hybrid else _windows(text), "output_in_tuple": in_tuple}
    dense = _dense_ffn(model.get_submodule(blocks), experts) if experts else ()
    fields |= {"experts": experts, "dense_ffn": dense, "hybrid": hybrid}
    fields |= {"kv_heads_key": kv_heads_key or "num_key_value_heads", "head_dim_key": head_dim_key}
    fields["transposed"] = any(isinstance(module, TurnedLinear) for module in block.modules())
    here = f"{blocks}.{number}"
    fields["free_head_dim"] = head_dim_key != "head_dim" or _reads_head_dim(model.config, f"{here}.{out_proj}", heads)
    linears = [path for path in called if path in {*qkv, out_proj, *ffn}]
    native, flags = _biases(model.config, blocks, [*linears, *dense])
    row = Family(**fields, native_biases=native, bias_flags=flags)
    rows = _qkv_rows(model, block, row)
    whole = rows in ("separate", "heads") and not (row.fused_ffn or row.experts or row.hybrid)
    refused = None if whole else "TODO: say why, or remove the line"
    return Family(**fields, native_biases=native, bias_flags=flags, qkv_rows=rows, whole_parts_refused=refused), number


def _blocks(model: PreTrainedModel, layers: int) -> str:
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == layers and "vision" not in name
    }
    found = [name for name, module in lists.items() if any(isinstance(part, nn.Linear) for part in module.modules())]
    outer = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    if len(outer) != 1:
        raise BadInput(f"no single list of {layers} blocks with Linear layers is in the model: {outer or 'none'}")
    return outer[0]


def _typical_block(model: PreTrainedModel, blocks: str, *, partial: bool) -> tuple[int, nn.Module]:
    """The first block; of hybrids and mixtures of experts the last one with heads, since the first are often others."""
    listed: Any = model.get_submodule(blocks)
    with_heads = list(range(len(listed)))
    if is_hybrid(model.config):
        kinds = text_config(model.config).layer_types
        with_heads = [number for number in with_heads if kinds[number] in WITH_HEADS]
    if not with_heads:
        raise BadInput("no layer has attention heads (config.layer_types), so that there is nothing to restore")
    number = with_heads[-1 if partial else 0]
    return number, listed[number]


def _experts(blocks: nn.Module) -> tuple[str, ...]:
    """The parts of blocks that hold experts or choose among them, by their path in a block."""
    found = {
        name.partition(".")[2] for name, module in blocks.named_modules() if _EXPERTS.search(type(module).__name__)
    }
    return tuple(sorted(path for path in found if not any(path.startswith(f"{other}.") for other in found)))


def _in_attention(block: nn.Module, path: str) -> bool:
    parent = path.rpartition(".")[0]
    kind = type(block.get_submodule(parent)).__name__
    return _NO_HEADS.search(kind) is None and ("att" in parent.lower() or "Attention" in kind)


def _ffn(block: nn.Module, paths: list[str], *, shared: bool) -> list[str]:
    """The linears of the FFN; of a mixture of experts, of the one that all tokens share."""
    if shared:
        return [path for path in paths if "shared" in path and linear_of(block, path).out_features > 1]
    return [path for path in paths if not _NO_HEADS.search(type(block.get_submodule(path.rpartition(".")[0])).__name__)]


def _dense_ffn(blocks: nn.Module, experts: tuple[str, ...]) -> tuple[str, ...]:
    """The linears of the FFN of the blocks that have no experts."""
    for block in blocks.children():
        names = {name for name, _ in block.named_modules()}
        if not names & set(experts):
            linears = [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]
            paths = [path for path in linears if "attn" not in path and not _in_attention(block, path)]
            if found := _ffn(block, paths, shared=False):
                return tuple(found)
    return ()


def _ffn_fields(text: Any, block: nn.Module, ffn: list[str], experts: tuple[str, ...]) -> dict[str, Any]:
    if not ffn:
        return {}
    *ffn_in, ffn_out = ffn
    channels = linear_of(block, ffn_out).in_features
    fused = len(ffn_in) == 1 and linear_of(block, ffn_in[0]).out_features == 2 * channels
    width = {} if experts else {"ffn_width": _key_of(text, channels)}
    ordered = tuple(sorted(ffn_in, key=lambda path: "gate" not in path))
    return {"ffn_in": ordered, "ffn_out": ffn_out, "fused_ffn": fused, **width}


def _calls(model: PreTrainedModel, block: nn.Module, *, some: bool) -> tuple[list[str], bool]:
    """Paths of a block's linears in the order in which they run, and whether the block gives a tuple.

    some: whether those that run once are enough, as where experts or state spaces are among them.
    """
    called: list[str] = []
    tuples: list[bool] = []

    def noting(path: str) -> Callable[..., None]:
        return lambda *_: called.append(path)

    def note_kind(_module: nn.Module, _inputs: tuple, output: Any) -> None:
        tuples.append(isinstance(output, tuple))

    linears = {path: module for path, module in block.named_modules() if isinstance(module, nn.Linear)}
    with (
        torch.no_grad(),
        hooked(linears.items(), noting, expected=len(linears)),
        hooked([(None, block)], lambda _key: note_kind, expected=1, after=True),
    ):
        model(input_ids=tokens_of(model), use_cache=False)
    if some:
        return [path for path in called if called.count(path) == 1], tuples[0]
    if sorted(called) != sorted(linears):
        raise BadInput("some Linear layers of a block do not run, or run more than once: no row can describe that")
    return called, tuples[0]


def _query_first(path: str) -> int:
    name = path.rpartition(".")[2].lower()
    return next((number for number, letter in enumerate("qkv") if name.startswith(letter)), 3)


def _windows(text: Any) -> Windows:
    if not hasattr(text, "sliding_window"):
        return "never"
    return "listed" if getattr(text, "layer_types", None) else "every"


def _key_of(text: Any, channels: int) -> str:
    values = {key: getattr(text, key) for key in text.to_dict() if _WIDTHS.search(key)}
    exact = [key for key, value in values.items() if value == channels]
    return next(iter([*exact, *(key for key, value in values.items() if value is None)]), "")


def _reads_head_dim(config: PretrainedConfig, out_proj: str, heads: int) -> bool:
    """Whether the class makes wider heads where head_dim says so, and still gets along with its own shapes."""
    other, inner = copy.deepcopy(config), _inputs(config, out_proj)
    try:
        text_config(other).head_dim = inner // heads + 2
        wider = _inputs(other, out_proj)
    except Exception:  # whatever the class refuses its config with
        return False
    return wider == inner + 2 * heads


def _inputs(config: PretrainedConfig, linear: str) -> int:
    return int(empty(config).get_submodule(linear).in_features)  # type: ignore[arg-type]


def _biases(
    config: PretrainedConfig, blocks: str, linears: list[str]
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """The linears that always have a bias, and those that each key of the config turns on."""

    def biased(key: str | None = None, value: bool = False) -> set[str]:
        """Paths in a block of the linears with a bias, and full names of those outside of what is known."""
        other = copy.deepcopy(config)
        if key is not None:
            setattr(text_config(other), key, value)
        in_block = re.compile(rf"{re.escape(blocks)}\.\d+\.({'|'.join(map(re.escape, linears))})")
        modules = empty(other).named_modules()
        names = [name for name, module in modules if isinstance(module, nn.Linear) and module.bias is not None]
        return {found[1] if (found := in_block.fullmatch(name)) else name for name in names}

    keys = [key for key, value in text_config(config).to_dict().items() if isinstance(value, bool) and "bias" in key]
    always = biased()
    flags = {key: biased(key, True) - biased(key, False) for key in keys}
    flags = {key: paths for key, paths in flags.items() if paths <= set(linears)}  # others would need more biases
    turned = set().union(*flags.values())
    told = {key: tuple(path for path in linears if path in paths) for key, paths in flags.items() if paths}
    return tuple(path for path in linears if path in always - turned), told


def _qkv_rows(model: PreTrainedModel, block: nn.Module, row: Family) -> QkvRows:
    """How rows lie in a fused linear: with the rows of one head's values at zero, that head puts out nothing."""
    if len(row.qkv) == 3:
        return "separate"
    if len(row.qkv) > 1:
        return "latent"
    text = text_config(model.config)
    linear, projection = linear_of(block, row.qkv[0]), linear_of(block, row.out_proj)
    heads, width = text.num_attention_heads, projection.in_features // text.num_attention_heads
    groups = (linear.out_features // width - heads) // 2
    each = heads // max(groups, 1)
    starts: dict[QkvRows, int] = {"heads": 2 * width, "parts": (heads + groups) * width, "groups": (each + 1) * width}
    for layout, start in starts.items():
        if layout == "heads" and groups != heads:
            continue
        before = linear.weight.clone()
        linear.weight[start : start + width] = 0
        bias, linear.bias = linear.bias, None  # type: ignore[assignment]
        heads_BTX = _input_of(projection, model)
        linear.bias = bias
        linear.weight.copy_(before)
        if not heads_BTX[..., : each * width].any():
            return layout
    raise BadInput(f"the rows of {row.qkv[0]} are in no known order: not by head, by part, or by key/value head")


def _input_of(linear: nn.Linear, model: PreTrainedModel) -> Tensor:
    """What a linear of the model is given for `tokens_of`."""
    seen: list[Tensor] = []
    with observed([(None, linear)], lambda _key, x: seen.append(x), expected=1):
        model(input_ids=tokens_of(model), use_cache=False)
    return seen[0]


def is_hybrid(config: PretrainedConfig) -> bool:
    """Whether some layers are no attention: state spaces, convolutions, linear attention, or several at once."""
    return bool(set(getattr(text_config(config), "layer_types", None) or ()) - _ATTENTION)


def empty(config: PretrainedConfig) -> PreTrainedModel:
    with init_empty_weights(), no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        with_linears(model)
        return model


def tokens_of(model: PreTrainedModel) -> Tensor:
    words = text_config(model.config).vocab_size
    return torch.randint(min(3, words - 1), words, (2, 12), generator=torch.Generator().manual_seed(0))

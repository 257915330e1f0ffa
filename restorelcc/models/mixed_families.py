"""Rows of families of which only attention, and the FFN that all tokens share, is known: mixtures of experts, hybrids.

What is outside of a row, experts and state spaces for example, stays as it is.
"""

from __future__ import annotations

from typing import Any

from restorelcc.models.family import Family
from restorelcc.models.rows import GATED_FFN, LATENT, SELF_OUT, SELF_QKV, llama_like

_SOME_LAYERS = "their layers differ, and only attention is known here"
_EXPERTS_STAY = "their experts stay as they are"
_FORWARD_FFN = ("feed_forward.gate_proj", "feed_forward.up_proj", "feed_forward.down_proj")
_LFM_FFN = ("feed_forward.w1", "feed_forward.w3", "feed_forward.w2")
_BLOCK_SPARSE = ("block_sparse_moe.experts", "block_sparse_moe.router")
_SHARED = ("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj", "mlp.shared_experts.down_proj")
_SHARED_ONE = ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert.down_proj")
_SHARED_FUSED = ("shared_mlp.input_linear", "shared_mlp.output_linear")


def _experts(
    *flags: str, shared: tuple[str, ...] = (), experts: tuple[str, ...] = ("mlp.experts", "mlp.gate"), **more: Any
) -> Family:
    """A mixture of experts: its attention, and the FFN that all tokens share, where there is one."""
    return llama_like(*flags, ffn=shared, experts=experts, **{"whole_parts_refused": _EXPERTS_STAY, **more})


def _latent_experts(**flags: tuple[str, ...]) -> Family:
    factors = ("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa", SELF_OUT)
    return _experts(
        qkv=LATENT,
        shared=_SHARED,
        dense_ffn=GATED_FFN,
        qkv_rows="latent",
        bias_flags={"attention_bias": factors} | flags,
        head_dim_key="v_head_dim",
    )


def _hybrid(*flags: str, **more: Any) -> Family:
    """A model of which some layers are attention, others linear attention, convolutions or state spaces."""
    fields: dict[str, Any] = {"hybrid": True, "packs": False, "whole_parts_refused": _SOME_LAYERS} | more
    return llama_like(*flags, **fields)


MIXED_FAMILIES: dict[str, Family] = {
    # Mixtures of experts: their attention, and what all tokens share. Experts and routers stay as they are.
    "mixtral": _experts(windows="every"),
    "qwen2_moe": _experts(shared=_SHARED_ONE, dense_ffn=GATED_FFN, bias_flags={"qkv_bias": SELF_QKV}, windows="listed"),
    "qwen3_moe": _experts("attention_bias", dense_ffn=GATED_FFN, windows="every"),
    "olmoe": _experts("attention_bias"),
    "flex_olmo": _experts("attention_bias"),
    "granitemoe": _experts("attention_bias", experts=_BLOCK_SPARSE),
    "granitemoeshared": _experts("attention_bias", experts=_BLOCK_SPARSE, shared=_SHARED_FUSED, fused_ffn=True),
    "gpt_oss": _experts("attention_bias", experts=("mlp.experts", "mlp.router"), windows="listed"),
    "deepseek_v2": _latent_experts(mlp_bias=(*_SHARED, *GATED_FFN)),
    "deepseek_v3": _latent_experts(),
    "glm4_moe": _experts(shared=_SHARED, dense_ffn=GATED_FFN, bias_flags={"attention_bias": SELF_QKV}),
    "dots1": _experts("attention_bias", shared=_SHARED, dense_ffn=GATED_FFN, windows="listed"),
    "ernie4_5_moe": _experts(shared=_SHARED, dense_ffn=GATED_FFN),
    "hunyuan_v1_moe": _experts(
        "attention_bias", shared=("mlp.shared_mlp.gate_proj", "mlp.shared_mlp.up_proj", "mlp.shared_mlp.down_proj")
    ),
    "exaone_moe": _experts(shared=_SHARED, dense_ffn=GATED_FFN, windows="listed"),
    "afmoe": _experts(
        "attention_bias", shared=_SHARED, dense_ffn=GATED_FFN, experts=("mlp.experts", "mlp.router"), windows="listed"
    ),
    "minimax_m2": _experts(),
    "phimoe": _experts("attention_bias", experts=("mlp.experts", "mlp.router"), windows="every"),
    "llama4_text": _experts(
        "attention_bias",
        shared=tuple(f"feed_forward.shared_expert.{name}" for name in ("gate_proj", "up_proj", "down_proj")),
        dense_ffn=_FORWARD_FFN,
        experts=("feed_forward.experts", "feed_forward.router"),
        packs=False,  # its chunks of attention are counted along the line
    ),
    # Hybrids: the layers with attention heads.
    "qwen3_next": _hybrid("attention_bias", ffn=_SHARED_ONE, dense_ffn=GATED_FFN, experts=("mlp.experts", "mlp.gate")),
    "qwen3_5_text": _hybrid("attention_bias"),
    "qwen3_5_moe_text": _hybrid("attention_bias", ffn=_SHARED_ONE, experts=("mlp.experts", "mlp.gate")),
    "olmo_hybrid": _hybrid("attention_bias"),
    "jamba": _hybrid(ffn=(), dense_ffn=_FORWARD_FFN, experts=("feed_forward.experts", "feed_forward.router")),
    "lfm2": _hybrid(out_proj="self_attn.out_proj", ffn=_LFM_FFN),
    "lfm2_moe": _hybrid(
        out_proj="self_attn.out_proj", ffn=(), dense_ffn=_LFM_FFN, experts=("feed_forward.experts", "feed_forward.gate")
    ),
    "bamba": _hybrid("attention_bias", "mlp_bias", ffn=_FORWARD_FFN, output_in_tuple=True),
    "falcon_h1": _hybrid("attention_bias", "mlp_bias", ffn=_FORWARD_FFN, output_in_tuple=True),
    "granitemoehybrid": _hybrid("attention_bias", ffn=_SHARED_FUSED, fused_ffn=True, experts=_BLOCK_SPARSE),
    "minimax": _hybrid(ffn=(), experts=("mlp.experts", "mlp.gate")),
    "nemotron_h": _hybrid(
        stored_blocks="backbone.layers",
        qkv=("mixer.q_proj", "mixer.k_proj", "mixer.v_proj"),
        out_proj="mixer.o_proj",
        ffn=(),
        experts=("mixer.experts", "mixer.gate"),
    ),
}

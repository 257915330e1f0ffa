"""The one table of model families: where a family keeps its blocks, its out-projection and its prunable linears.

To add a family: add a row whose key is the checkpoint's `model_type`, and a pico config in tests/pico.py.
"""

from __future__ import annotations

from typing import Any

from restorelcc.models.family import Family

_SELF_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_SELF_OUT = "self_attn.o_proj"
_GATED_FFN = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


_LATENT = (
    "self_attn.q_a_proj",
    "self_attn.q_b_proj",
    "self_attn.kv_a_proj_with_mqa",
    "self_attn.kv_b_proj",
)
_PLAIN_FFN = ("mlp.up_proj", "mlp.down_proj")
_FUSED_GATE = ("mlp.gate_up_proj", "mlp.down_proj")
_FUSED = "the rows of its fused linears are not heads or channels one after the other"
_WIDE_NORM = "it normalizes the queries of all heads together, so that no head can go without a change in the others"
_FIXED_FFN = "its config has no key for the number of channels"
_SOME_LAYERS = "their layers differ, and only attention is known here"
_EXPERTS_STAY = "their experts stay as they are"
_FORWARD_FFN = ("feed_forward.gate_proj", "feed_forward.up_proj", "feed_forward.down_proj")
_LFM_FFN = ("feed_forward.w1", "feed_forward.w3", "feed_forward.w2")
_BLOCK_SPARSE = ("block_sparse_moe.experts", "block_sparse_moe.router")
_SHARED = ("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj", "mlp.shared_experts.down_proj")
_SHARED_ONE = ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert.down_proj")
_SHARED_FUSED = ("shared_mlp.input_linear", "shared_mlp.output_linear")


def _llama_like(
    *flags: str, ffn: tuple[str, ...] = _GATED_FFN, blocks: str = "model.layers", fused_ffn: bool = False, **more: Any
) -> Family:
    """flags: which of attention_bias (q, k, v, o), mlp_bias (the FFN) and use_bias (all) the class reads from its
    config; more: further fields of the row."""
    qkv, out_proj = more.pop("qkv", _SELF_QKV), more.pop("out_proj", _SELF_OUT)
    attention = (*qkv, out_proj)
    all_ffn = (*ffn, *more.get("dense_ffn", ()))
    linears = {"attention_bias": attention, "mlp_bias": all_ffn, "use_bias": (*attention, *all_ffn)}
    fields = {"bias_flags": {flag: linears[flag] for flag in flags}} | more
    return Family(
        blocks=blocks,
        qkv=qkv,
        out_proj=out_proj,
        ffn_in=ffn[:-1],
        ffn_out=ffn[-1] if ffn else "",
        fused_ffn=fused_ffn,
        **fields,
    )


def _experts(
    *flags: str, shared: tuple[str, ...] = (), experts: tuple[str, ...] = ("mlp.experts", "mlp.gate"), **more: Any
) -> Family:
    """A mixture of experts: its attention, and the FFN that all tokens share, where there is one."""
    return _llama_like(*flags, ffn=shared, experts=experts, **{"whole_parts_refused": _EXPERTS_STAY} | more)


def _latent_experts(**flags: tuple[str, ...]) -> Family:
    factors = ("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa", _SELF_OUT)
    return _experts(
        qkv=_LATENT,
        shared=_SHARED,
        dense_ffn=_GATED_FFN,
        qkv_rows="latent",
        bias_flags={"attention_bias": factors} | flags,
        head_dim_key="v_head_dim",
    )


def _hybrid(*flags: str, **more: Any) -> Family:
    """A model of which some layers are attention, others linear attention, convolutions or state spaces."""
    return _llama_like(*flags, **{"hybrid": True, "packs": False, "whole_parts_refused": _SOME_LAYERS} | more)


FAMILIES: dict[str, Family] = {
    "llama": _llama_like("attention_bias", "mlp_bias"),
    "mistral": _llama_like(windows="every"),
    "qwen2": _llama_like(native_biases=_SELF_QKV, windows="listed"),
    "qwen3": _llama_like("attention_bias", windows="listed"),
    "gemma": _llama_like("attention_bias"),
    "gemma2": _llama_like("attention_bias", windows="listed"),
    "gemma3_text": _llama_like("attention_bias", windows="listed"),
    "gpt_neox": Family(
        blocks="gpt_neox.layers",
        qkv=("attention.query_key_value",),
        out_proj="attention.dense",
        ffn_in=("mlp.dense_h_to_4h",),
        ffn_out="mlp.dense_4h_to_h",
        qkv_rows="heads",
        native_biases=("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        bias_flags={"attention_bias": ("attention.query_key_value", "attention.dense")},
        free_head_dim=False,
    ),
    "opt": Family(
        blocks="model.decoder.layers",
        qkv=_SELF_QKV,
        out_proj="self_attn.out_proj",
        ffn_in=("fc1",),
        ffn_out="fc2",
        native_biases=(*_SELF_QKV, "self_attn.out_proj", "fc1", "fc2"),
        bias_flags={"enable_bias": (*_SELF_QKV, "self_attn.out_proj", "fc1", "fc2")},
        ffn_width="ffn_dim",
        free_head_dim=False,
    ),
    "phi": Family(
        blocks="model.layers",
        qkv=_SELF_QKV,
        out_proj="self_attn.dense",
        ffn_in=("mlp.fc1",),
        ffn_out="mlp.fc2",
        native_biases=(*_SELF_QKV, "self_attn.dense", "mlp.fc1", "mlp.fc2"),
    ),
    "olmo": _llama_like("attention_bias"),
    "olmo2": _llama_like("attention_bias", whole_parts_refused=_WIDE_NORM),
    "olmo3": _llama_like("attention_bias", windows="listed", whole_parts_refused=_WIDE_NORM),
    "smollm3": _llama_like("attention_bias", "mlp_bias", windows="listed"),
    "granite": _llama_like("attention_bias", "mlp_bias"),
    "cohere": _llama_like("attention_bias"),
    "cohere2": _llama_like("attention_bias", windows="listed"),
    "stablelm": _llama_like(bias_flags={"use_qkv_bias": _SELF_QKV}, free_head_dim=False),
    "starcoder2": _llama_like(
        "use_bias",
        ffn=("mlp.c_fc", "mlp.c_proj"),
        native_biases=(*_SELF_QKV, _SELF_OUT, "mlp.c_fc", "mlp.c_proj"),
        windows="every",
    ),
    "nemotron": _llama_like("attention_bias", "mlp_bias", ffn=_PLAIN_FFN),
    "ministral": _llama_like(windows="listed"),
    "ministral3": _llama_like(windows="every"),
    "apertus": _llama_like("attention_bias", ffn=_PLAIN_FFN),
    "arcee": _llama_like("attention_bias", "mlp_bias", ffn=_PLAIN_FFN),
    "seed_oss": _llama_like(
        bias_flags={"attention_bias": _SELF_QKV, "attention_out_bias": (_SELF_OUT,), "mlp_bias": _GATED_FFN}
    ),
    "ernie4_5": _llama_like("use_bias"),
    "hunyuan_v1_dense": _llama_like("attention_bias"),
    "helium": _llama_like(bias_flags={"attention_bias": _SELF_QKV, "mlp_bias": _GATED_FFN}, free_head_dim=False),
    "exaone4": _llama_like(windows="listed"),
    "jais2": _llama_like("attention_bias", "mlp_bias", ffn=_PLAIN_FFN),
    "vaultgemma": _llama_like("attention_bias", windows="listed"),
    "nanochat": _llama_like("attention_bias", ffn=("mlp.fc1", "mlp.fc2")),
    "cwm": _llama_like("mlp_bias", windows="listed"),
    "glm": _llama_like(
        ffn=_FUSED_GATE, fused_ffn=True, bias_flags={"attention_bias": _SELF_QKV}, whole_parts_refused=_FUSED
    ),
    "glm4": _llama_like(
        ffn=_FUSED_GATE, fused_ffn=True, bias_flags={"attention_bias": _SELF_QKV}, whole_parts_refused=_FUSED
    ),
    "phi3": Family(
        blocks="model.layers",
        qkv=("self_attn.qkv_proj",),
        out_proj=_SELF_OUT,
        ffn_in=_FUSED_GATE[:1],
        ffn_out=_FUSED_GATE[1],
        qkv_rows="parts",
        fused_ffn=True,
        windows="every",
        whole_parts_refused=_FUSED,
    ),
    "minicpm3": Family(
        blocks="model.layers",
        qkv=_LATENT,
        out_proj=_SELF_OUT,
        ffn_in=_GATED_FFN[:2],
        ffn_out=_GATED_FFN[2],
        qkv_rows="latent",
        bias_flags={
            "attention_bias": ("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa", _SELF_OUT),
            "mlp_bias": _GATED_FFN,
        },
        head_dim_key="v_head_dim",
        whole_parts_refused="its heads share the low-rank factors of queries, keys and values",
    ),
    "gptj": Family(
        blocks="transformer.h",
        qkv=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
        out_proj="attn.out_proj",
        ffn_in=("mlp.fc_in",),
        ffn_out="mlp.fc_out",
        native_biases=("mlp.fc_in", "mlp.fc_out"),
        ffn_width="n_inner",
        free_head_dim=False,
        output_in_tuple=True,
    ),
    "gpt_neo": Family(
        blocks="transformer.h",
        qkv=("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
        out_proj="attn.attention.out_proj",
        ffn_in=("mlp.c_fc",),
        ffn_out="mlp.c_proj",
        native_biases=("attn.attention.out_proj", "mlp.c_fc", "mlp.c_proj"),
        free_head_dim=False,
        packs=False,  # its windows are buffers of the blocks, which know nothing of other positions
        output_in_tuple=True,
    ),
    "persimmon": Family(
        blocks="model.layers",
        qkv=("self_attn.query_key_value",),
        out_proj="self_attn.dense",
        ffn_in=("mlp.dense_h_to_4h",),
        ffn_out="mlp.dense_4h_to_h",
        qkv_rows="heads",
        native_biases=("self_attn.query_key_value", "self_attn.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        free_head_dim=False,
    ),
    "bloom": Family(
        blocks="transformer.h",
        qkv=("self_attention.query_key_value",),
        out_proj="self_attention.dense",
        ffn_in=("mlp.dense_h_to_4h",),
        ffn_out="mlp.dense_4h_to_h",
        qkv_rows="heads",
        native_biases=(
            "self_attention.query_key_value",
            "self_attention.dense",
            "mlp.dense_h_to_4h",
            "mlp.dense_4h_to_h",
        ),
        ffn_width="",
        free_head_dim=False,
        whole_parts_refused=_FIXED_FFN,
        packs=False,  # ALiBi takes its distances from the mask, which says only what is padding
        output_in_tuple=True,
    ),
    "mpt": Family(
        blocks="transformer.blocks",
        qkv=("attn.Wqkv",),
        out_proj="attn.out_proj",
        ffn_in=("ffn.up_proj",),
        ffn_out="ffn.down_proj",
        qkv_rows="parts",
        ffn_width="",
        free_head_dim=False,
        whole_parts_refused=_FUSED,
        packs=False,  # ALiBi counts distances along the line
        output_in_tuple=True,
    ),
    "falcon": Family(
        blocks="transformer.h",
        qkv=("self_attention.query_key_value",),
        out_proj="self_attention.dense",
        ffn_in=("mlp.dense_h_to_4h",),
        ffn_out="mlp.dense_4h_to_h",
        qkv_rows="groups",
        bias_flags={
            "bias": (
                "self_attention.query_key_value",
                "self_attention.dense",
                "mlp.dense_h_to_4h",
                "mlp.dense_4h_to_h",
            )
        },
        ffn_width="ffn_hidden_size",
        free_head_dim=False,
        kv_heads_key="num_kv_heads",
        whole_parts_refused=_FUSED,
        packs=False,  # with ALiBi it takes distances from the mask
        output_in_tuple=True,
    ),
    "xglm": Family(
        blocks="model.layers",
        qkv=_SELF_QKV,
        out_proj="self_attn.out_proj",
        ffn_in=("fc1",),
        ffn_out="fc2",
        native_biases=(*_SELF_QKV, "self_attn.out_proj", "fc1", "fc2"),
        ffn_width="ffn_dim",
        free_head_dim=False,
    ),
    # The text part of a model of pictures and text; what is outside of its blocks is carried along as it is.
    "gemma3": _llama_like(
        "attention_bias",
        windows="listed",
        blocks="model.language_model.layers",
        stored_blocks="language_model.model.layers",
        whole_parts_refused="their text part shares its width with the part that sees",
    ),
    "gpt2": Family(
        blocks="transformer.h",
        qkv=("attn.c_attn",),
        out_proj="attn.c_proj",
        ffn_in=("mlp.c_fc",),
        ffn_out="mlp.c_proj",
        qkv_rows="parts",
        native_biases=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
        ffn_width="n_inner",
        free_head_dim=False,
        transposed=True,
        whole_parts_refused=_FUSED,
    ),
    "gpt_bigcode": Family(
        blocks="transformer.h",
        qkv=("attn.c_attn",),
        out_proj="attn.c_proj",
        ffn_in=("mlp.c_fc",),
        ffn_out="mlp.c_proj",
        qkv_rows="parts",
        native_biases=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
        ffn_width="n_inner",
        free_head_dim=False,
        whole_parts_refused=_FUSED,
    ),
    # Mixtures of experts: their attention, and what all tokens share. Experts and routers stay as they are.
    "mixtral": _experts(windows="every"),
    "qwen2_moe": _experts(
        shared=_SHARED_ONE, dense_ffn=_GATED_FFN, bias_flags={"qkv_bias": _SELF_QKV}, windows="listed"
    ),
    "qwen3_moe": _experts("attention_bias", dense_ffn=_GATED_FFN, windows="every"),
    "olmoe": _experts("attention_bias"),
    "flex_olmo": _experts("attention_bias"),
    "granitemoe": _experts("attention_bias", experts=_BLOCK_SPARSE),
    "granitemoeshared": _experts("attention_bias", experts=_BLOCK_SPARSE, shared=_SHARED_FUSED, fused_ffn=True),
    "gpt_oss": _experts("attention_bias", experts=("mlp.experts", "mlp.router"), windows="listed"),
    "deepseek_v2": _latent_experts(mlp_bias=(*_SHARED, *_GATED_FFN)),
    "deepseek_v3": _latent_experts(),
    "glm4_moe": _experts(shared=_SHARED, dense_ffn=_GATED_FFN, bias_flags={"attention_bias": _SELF_QKV}),
    "dots1": _experts("attention_bias", shared=_SHARED, dense_ffn=_GATED_FFN, windows="listed"),
    "ernie4_5_moe": _experts(shared=_SHARED, dense_ffn=_GATED_FFN),
    "hunyuan_v1_moe": _experts(
        "attention_bias", shared=("mlp.shared_mlp.gate_proj", "mlp.shared_mlp.up_proj", "mlp.shared_mlp.down_proj")
    ),
    "exaone_moe": _experts(shared=_SHARED, dense_ffn=_GATED_FFN, windows="listed"),
    "afmoe": _experts(
        "attention_bias", shared=_SHARED, dense_ffn=_GATED_FFN, experts=("mlp.experts", "mlp.router"), windows="listed"
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
    "qwen3_next": _hybrid("attention_bias", ffn=_SHARED_ONE, dense_ffn=_GATED_FFN, experts=("mlp.experts", "mlp.gate")),
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
        qkv=("mixer.q_proj", "mixer.k_proj", "mixer.v_proj"),
        out_proj="mixer.o_proj",
        ffn=(),
        experts=("mixer.experts", "mixer.gate"),
    ),
}

"""What many rows of the table of families have in common: names of linears, and a row that differs from Llama's."""

from __future__ import annotations

from typing import Any

from restorelcc.models.family import Family

SELF_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
SELF_OUT = "self_attn.o_proj"
GATED_FFN = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
LATENT = (
    "self_attn.q_a_proj",
    "self_attn.q_b_proj",
    "self_attn.kv_a_proj_with_mqa",
    "self_attn.kv_b_proj",
)


def llama_like(
    *flags: str, ffn: tuple[str, ...] = GATED_FFN, blocks: str = "model.layers", fused_ffn: bool = False, **more: Any
) -> Family:
    """flags: which of attention_bias (q, k, v, o), mlp_bias (the FFN) and use_bias (all) the class reads from its
    config; more: further fields of the row."""
    qkv, out_proj = more.pop("qkv", SELF_QKV), more.pop("out_proj", SELF_OUT)
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

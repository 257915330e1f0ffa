"""The one table of model families: where a family keeps its blocks, its out-projection and its prunable linears.

To add a family: add a row whose key is the checkpoint's `model_type`, and a pico config in tests/pico.py. Mixtures of
experts and hybrids are in mixed_families.py.
"""

from __future__ import annotations

from restorelcc.models.family import Family
from restorelcc.models.mixed_families import MIXED_FAMILIES
from restorelcc.models.rows import GATED_FFN, LATENT, SELF_OUT, SELF_QKV, llama_like

_PLAIN_FFN = ("mlp.up_proj", "mlp.down_proj")
_FUSED_GATE = ("mlp.gate_up_proj", "mlp.down_proj")
_FUSED = "the rows of its fused linears are not heads or channels one after the other"
_WIDE_NORM = "it normalizes the queries of all heads together, so that no head can go without a change in the others"
_FIXED_FFN = "its config has no key for the number of channels"

FAMILIES: dict[str, Family] = {
    "llama": llama_like("attention_bias", "mlp_bias"),
    "mistral": llama_like(windows="every"),
    "qwen2": llama_like(native_biases=SELF_QKV, windows="listed"),
    "qwen3": llama_like("attention_bias", windows="listed"),
    "gemma": llama_like("attention_bias"),
    "gemma2": llama_like("attention_bias", windows="listed"),
    "gemma3_text": llama_like("attention_bias", windows="listed"),
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
        qkv=SELF_QKV,
        out_proj="self_attn.out_proj",
        ffn_in=("fc1",),
        ffn_out="fc2",
        native_biases=(*SELF_QKV, "self_attn.out_proj", "fc1", "fc2"),
        bias_flags={"enable_bias": (*SELF_QKV, "self_attn.out_proj", "fc1", "fc2")},
        ffn_width="ffn_dim",
        free_head_dim=False,
    ),
    "phi": Family(
        blocks="model.layers",
        qkv=SELF_QKV,
        out_proj="self_attn.dense",
        ffn_in=("mlp.fc1",),
        ffn_out="mlp.fc2",
        native_biases=(*SELF_QKV, "self_attn.dense", "mlp.fc1", "mlp.fc2"),
    ),
    "olmo": llama_like("attention_bias"),
    "olmo2": llama_like("attention_bias", whole_parts_refused=_WIDE_NORM),
    "olmo3": llama_like("attention_bias", windows="listed", whole_parts_refused=_WIDE_NORM),
    "smollm3": llama_like("attention_bias", "mlp_bias", windows="listed"),
    "granite": llama_like("attention_bias", "mlp_bias"),
    "cohere": llama_like("attention_bias"),
    "cohere2": llama_like("attention_bias", windows="listed"),
    "stablelm": llama_like(bias_flags={"use_qkv_bias": SELF_QKV}, free_head_dim=False),
    "starcoder2": llama_like(
        "use_bias",
        ffn=("mlp.c_fc", "mlp.c_proj"),
        native_biases=(*SELF_QKV, SELF_OUT, "mlp.c_fc", "mlp.c_proj"),
        windows="every",
    ),
    "nemotron": llama_like("attention_bias", "mlp_bias", ffn=_PLAIN_FFN),
    "ministral": llama_like(windows="listed"),
    "ministral3": llama_like(windows="every"),
    "apertus": llama_like("attention_bias", ffn=_PLAIN_FFN),
    "arcee": llama_like("attention_bias", "mlp_bias", ffn=_PLAIN_FFN),
    "seed_oss": llama_like(
        bias_flags={"attention_bias": SELF_QKV, "attention_out_bias": (SELF_OUT,), "mlp_bias": GATED_FFN}
    ),
    "ernie4_5": llama_like("use_bias"),
    "hunyuan_v1_dense": llama_like("attention_bias"),
    "helium": llama_like(bias_flags={"attention_bias": SELF_QKV, "mlp_bias": GATED_FFN}, free_head_dim=False),
    "exaone4": llama_like(windows="listed"),
    "jais2": llama_like("attention_bias", "mlp_bias", ffn=_PLAIN_FFN),
    "vaultgemma": llama_like("attention_bias", windows="listed"),
    "nanochat": llama_like("attention_bias", ffn=("mlp.fc1", "mlp.fc2")),
    "cwm": llama_like("mlp_bias", windows="listed"),
    "glm": llama_like(
        ffn=_FUSED_GATE, fused_ffn=True, bias_flags={"attention_bias": SELF_QKV}, whole_parts_refused=_FUSED
    ),
    "glm4": llama_like(
        ffn=_FUSED_GATE, fused_ffn=True, bias_flags={"attention_bias": SELF_QKV}, whole_parts_refused=_FUSED
    ),
    "phi3": Family(
        blocks="model.layers",
        qkv=("self_attn.qkv_proj",),
        out_proj=SELF_OUT,
        ffn_in=_FUSED_GATE[:1],
        ffn_out=_FUSED_GATE[1],
        qkv_rows="parts",
        fused_ffn=True,
        windows="every",
        whole_parts_refused=_FUSED,
    ),
    "minicpm3": Family(
        blocks="model.layers",
        qkv=LATENT,
        out_proj=SELF_OUT,
        ffn_in=GATED_FFN[:2],
        ffn_out=GATED_FFN[2],
        qkv_rows="latent",
        bias_flags={
            "attention_bias": ("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa", SELF_OUT),
            "mlp_bias": GATED_FFN,
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
        stored_masks=True,
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
        stored_masks=True,
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
        qkv=SELF_QKV,
        out_proj="self_attn.out_proj",
        ffn_in=("fc1",),
        ffn_out="fc2",
        native_biases=(*SELF_QKV, "self_attn.out_proj", "fc1", "fc2"),
        ffn_width="ffn_dim",
        free_head_dim=False,
    ),
    # The text part of a model of pictures and text; what is outside of its blocks is carried along as it is.
    "gemma3": llama_like(
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
        stored_masks=True,
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
}
FAMILIES |= MIXED_FAMILIES

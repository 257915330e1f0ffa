"""What classes of configs call their fields, and which fields they lack: known without importing them, which takes
seconds. tests/models/test_plain_config.py compares it with the classes."""

from __future__ import annotations

# What a class calls a field in config.json, where it has a name of its own for it.
_NANO = {
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "max_position_embeddings": "n_positions",
}
_BLOCK_TYPES = {"layer_types": "layers_block_type"}
OWN_NAMES: dict[str, dict[str, str]] = {
    **dict.fromkeys(("gptj", "gpt2", "gpt_bigcode"), _NANO),
    "gpt_neo": {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"},
    "bloom": {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer"},
    "mpt": {"num_attention_heads": "n_heads", "num_hidden_layers": "n_layers", "hidden_size": "d_model"},
    "xglm": {"num_attention_heads": "attention_heads", "num_hidden_layers": "num_layers", "hidden_size": "d_model"},
    **dict.fromkeys(("bamba", "falcon_h1", "nemotron_h"), _BLOCK_TYPES),
}
# What layer_types of today's classes hold. Other names are former ones, which a class replaces as it reads them.
LAYER_TYPES = (
    *("full_attention", "sliding_attention", "chunked_attention", "linear_attention"),
    *("hybrid", "conv", "moe"),
)
# What a config calls the number of experts of a layer, by family.
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
# Fields that may be asked for, and the families whose class has no such field, or none unless config.json has it.
_WITHOUT_HEAD_DIM = (
    *("qwen2", "phi", "olmo", "olmo2", "olmo3", "smollm3", "granite", "cohere", "starcoder2", "apertus", "exaone4"),
    *("nanochat", "phi3", "qwen2_moe", "qwen3_moe", "olmoe", "flex_olmo", "granitemoe", "granitemoeshared"),
    *("glm4_moe", "dots1", "ernie4_5_moe", "exaone_moe", "phimoe", "olmo_hybrid", "jamba", "lfm2", "lfm2_moe"),
    *("bamba", "falcon_h1", "granitemoehybrid"),
)
_WITHOUT_KV_HEADS = ("gpt_neox", "opt", "gptj", "gpt_neo", "persimmon", "bloom", "mpt", "xglm", "gpt2")
_LACKING = {"head_dim": _WITHOUT_HEAD_DIM, "num_key_value_heads": _WITHOUT_KV_HEADS}


def own_name(kind: str, name: str) -> str:
    """What config.json calls a field, in a family (model_type)."""
    return OWN_NAMES.get(kind, {}).get(name, name)


def lacks(kind: str, name: str) -> bool:
    """Whether the class of a family in the table has nothing under this name, unless config.json has it.

    Of experts it is asked for families without any.
    """
    if name == "word_embed_proj_dim":
        return kind != "opt"
    return name in EXPERT_COUNTS or kind in _LACKING.get(name, ())

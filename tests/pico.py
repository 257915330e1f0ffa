"""Pico models: real classes of every family in the table, built from configs in milliseconds.

Shapes are chosen so that the classic slips cannot pass: L != H, grouped KV heads and H*D != M wherever a family allows.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from restorelcc.models.architectures import out_projections, prunable_linears

LAYERS, HEADS, HEAD_DIM, WIDTH, VOCABULARY = 3, 4, 6, 16, 64

_COMMON = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GROUPED = {
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": HEAD_DIM,
}
# These classes have D = hidden size / heads built in.
_SQUARE = {"hidden_size": 24, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
CONFIGS: dict[str, dict] = {
    "llama": _GROUPED,
    "mistral": _GROUPED | {"sliding_window": None},
    "qwen2": _SQUARE | {"intermediate_size": 32, "num_key_value_heads": 2},
    "qwen3": _GROUPED,
    "gemma": _GROUPED,
    "gemma2": _GROUPED | {"query_pre_attn_scalar": HEAD_DIM, "sliding_window": 8},
    "gemma3_text": _GROUPED | {"query_pre_attn_scalar": HEAD_DIM, "sliding_window": 8},
    "gpt_neox": _SQUARE | {"intermediate_size": 32},
    "opt": _SQUARE | {"ffn_dim": 32, "word_embed_proj_dim": 24, "max_position_embeddings": 64},
    "phi": _SQUARE | {"hidden_size": 32, "intermediate_size": 40, "num_key_value_heads": 2},
}
# The first ten go through every test of a family, in every room; the others through tests/models/test_families.py.
FAMILIES = tuple(CONFIGS)
_NANO = {"n_embd": 24, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64}
_LISTED = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_MOE = _GROUPED | {
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 5),
    **dict.fromkeys(("num_experts_per_tok", "moe_k"), 2),
    "moe_intermediate_size": 8,
    "decoder_sparse_step": 1,
}
_LATENT_MOE = _MOE | {
    "num_key_value_heads": HEADS,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": HEAD_DIM,
    "head_dim": 4,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
_GATED = {
    "layer_types": ["full_attention", "linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "partial_rotary_factor": 1.0,
}
_STATE = {
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 4,
    "mamba_d_ssm": 32,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
    "chunk_size": 8,
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "n_groups": 1,
    "ssm_state_size": 4,
    "shared_intermediate_size": 12,
    "moe_shared_expert_intermediate_size": 12,
}
CONFIGS |= {
    "olmo": _GROUPED,
    "olmo2": _GROUPED,
    "olmo3": _GROUPED | _LISTED,
    "smollm3": _GROUPED | {"no_rope_layers": [1, 0, 1]},
    "granite": _GROUPED | {"residual_multiplier": 0.5, "attention_multiplier": 0.3, "logits_scaling": 2.0},
    "cohere": _GROUPED | {"use_qk_norm": True},
    "cohere2": _GROUPED | _LISTED,
    "stablelm": _SQUARE | {"intermediate_size": 32, "num_key_value_heads": 2, "partial_rotary_factor": 1.0},
    "starcoder2": _GROUPED | {"sliding_window": 8},
    "nemotron": _GROUPED | {"partial_rotary_factor": 1.0},
    "ministral": _GROUPED | _LISTED,
    "ministral3": _GROUPED,
    "apertus": _GROUPED,
    "arcee": _GROUPED,
    "seed_oss": _GROUPED,
    "ernie4_5": _GROUPED,
    "hunyuan_v1_dense": _GROUPED,
    "helium": _GROUPED | {"hidden_size": 24, "num_key_value_heads": 2},
    "exaone4": _GROUPED | _LISTED,
    "jais2": _GROUPED,
    "vaultgemma": _GROUPED | _LISTED | {"query_pre_attn_scalar": HEAD_DIM},
    "nanochat": _GROUPED,
    "cwm": _GROUPED | _LISTED,
    "glm": _GROUPED | {"partial_rotary_factor": 1.0},
    "glm4": _GROUPED | {"partial_rotary_factor": 1.0},
    "phi3": _GROUPED | {"sliding_window": 8, "max_position_embeddings": 64, "original_max_position_embeddings": 64},
    "minicpm3": _GROUPED
    | {
        "num_key_value_heads": HEADS,
        "q_lora_rank": 12,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 4,
        "v_head_dim": HEAD_DIM,
        "head_dim": 8,
    },
    "gptj": _NANO | {"rotary_dim": 4},
    "gpt_neo": {
        "hidden_size": 24,
        "num_layers": LAYERS,
        "num_heads": HEADS,
        "attention_types": [[["global", "local", "global"], 1]],
        "window_size": 8,
        "max_position_embeddings": 64,
    },
    "persimmon": _SQUARE | {"intermediate_size": 32, "partial_rotary_factor": 1.0},
    "bloom": {"hidden_size": 24, "n_layer": LAYERS, "n_head": HEADS},
    "mpt": {"d_model": 24, "n_layers": LAYERS, "n_heads": HEADS, "max_seq_len": 64},
    "falcon": _SQUARE | {"num_kv_heads": 2, "new_decoder_architecture": True, "ffn_hidden_size": 40},
    "xglm": {"d_model": 24, "num_layers": LAYERS, "attention_heads": HEADS, "ffn_dim": 32, "decoder_start_token_id": 2},
    "gpt2": _NANO | {"n_inner": 32},
    "gpt_bigcode": _NANO | {"n_inner": 32},
    "mixtral": _MOE,
    "qwen2_moe": _MOE | {"shared_expert_intermediate_size": 12, "mlp_only_layers": [0]},
    "qwen3_moe": _MOE | {"mlp_only_layers": [0]},
    "olmoe": _MOE | _SQUARE | {"head_dim": HEAD_DIM},
    "flex_olmo": _MOE,
    "granitemoe": _MOE | {"attention_multiplier": 0.4, "residual_multiplier": 0.5},
    "granitemoeshared": _MOE | {"attention_multiplier": 0.4, "shared_intermediate_size": 12},
    "gpt_oss": _MOE | _LISTED,
    "deepseek_v2": _LATENT_MOE,
    "deepseek_v3": _LATENT_MOE,
    "glm4_moe": _MOE | {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "partial_rotary_factor": 1.0},
    "dots1": _MOE | _LISTED | {"first_k_dense_replace": 1, "n_shared_experts": 1, "n_group": 1, "topk_group": 1},
    "ernie4_5_moe": _MOE | {"moe_layer_start_index": 1, "moe_num_shared_experts": 1},
    "hunyuan_v1_moe": _MOE | {"moe_topk": 2},
    "exaone_moe": _MOE | _LISTED | {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "afmoe": _MOE | _LISTED | {"num_dense_layers": 1, "num_shared_experts": 1},
    "minimax_m2": _MOE | {"rotary_dim": HEAD_DIM},
    "phimoe": _MOE | {"sliding_window": 8},
    "llama4_text": _MOE | {"intermediate_size_mlp": 24, "attention_chunk_size": 8, "interleave_moe_layer_step": 2},
    "qwen3_next": _MOE | _GATED | {"mlp_only_layers": [1], "shared_expert_intermediate_size": 12},
    "qwen3_5_text": _GROUPED | _GATED,
    "qwen3_5_moe_text": _MOE | _GATED | {"shared_expert_intermediate_size": 12},
    "olmo_hybrid": _GROUPED | _GATED,
    "jamba": _MOE
    | _STATE
    | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lfm2": _GROUPED | {"layer_types": ["full_attention", "conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": _MOE | {"layer_types": ["conv", "full_attention", "full_attention"], "num_dense_layers": 1},
    "bamba": _GROUPED | _STATE | {"attn_layer_indices": [1, 2]},
    "falcon_h1": _GROUPED | _STATE,
    "granitemoehybrid": _MOE | _STATE | {"layer_types": ["full_attention", "linear_attention", "full_attention"]},
    "minimax": _MOE | {"layer_types": ["full_attention", "linear_attention", "full_attention"], "block_size": 8},
    "nemotron_h": _MOE
    | _STATE
    | {"layers_block_type": ["full_attention", "moe", "linear_attention", "full_attention"]},
    "gemma3": {
        "text_config": _GROUPED | _LISTED | _COMMON | {"query_pre_attn_scalar": HEAD_DIM},
        "vision_config": {
            "hidden_size": 8,
            "intermediate_size": 12,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
        },
        "mm_tokens_per_image": 4,
        "image_token_index": VOCABULARY - 2,
        "boi_token_index": VOCABULARY - 3,
        "eoi_token_index": VOCABULARY - 4,
    },
}
ALL_FAMILIES = tuple(CONFIGS)


def pico(family: str = "llama", seed: int = 0, **changes: object) -> PreTrainedModel:
    """A random float32 model of the family whose attention and out-projections are not negligible."""
    torch.manual_seed(seed)
    settings = CONFIGS[family] | _COMMON | {"tie_word_embeddings": False}
    if "text_config" in settings:
        settings["text_config"] = settings["text_config"] | {"tie_word_embeddings": False} | changes
    else:
        settings |= changes
    config = AutoConfig.for_model(family, **settings)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for _, _, linear in prunable_linears(model):
        linear.weight.normal_(std=0.3)
    for projection in out_projections(model):
        if projection.bias is not None:
            projection.bias.normal_(std=0.1)
    return model


# The names of the masks that older classes stored as tensors, in a block of each family that had them.
MASKS = {
    "gpt_neo": ("attn.attention.bias", "attn.attention.masked_bias"),
    "gptj": ("attn.bias", "attn.masked_bias"),
    "gpt2": ("attn.bias", "attn.masked_bias"),
}


def store_masks(folder: Path, family: str) -> list[str]:
    """Add masks to a checkpoint, as older versions of its class wrote them; returns their names. Together they are
    larger than the weights."""
    path, added = folder / "model.safetensors", {}
    for layer in range(LAYERS):
        kept, large = (f"transformer.h.{layer}.{name}" for name in MASKS[family])
        added |= {kept: torch.ones(1, 1, 160, 160, dtype=torch.uint8).tril(), large: torch.tensor(-1e9)}
    save_file(load_file(path) | added, path, metadata={"format": "pt"})
    return list(added)


def tokens(batch: int = 4, length: int = 10, seed: int = 0) -> torch.Tensor:
    """Random token ids [B, T], no padding among them."""
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def word_tokenizer(size: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Words `w3` .. `w63` to their numbers; no token is added at either end."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, size - 1)}
    backend = Tokenizer(WordLevel(vocabulary | {"<unk>": size - 1}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def write_smollm2_config(folder: Path) -> None:
    """config.json with the shape of SmolLM2-135M, whose embeddings are tied: 134,515,008 parameters."""
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    shape |= {"num_key_value_heads": 3, "vocab_size": 49_152, "tie_word_embeddings": True}
    LlamaConfig(**shape, dtype="float32").save_pretrained(folder)

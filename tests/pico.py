"""Pico models: real classes of every family in the table, built from configs in milliseconds.

Shapes are chosen so that the classic slips cannot pass: L != H, grouped KV heads and H*D != M wherever a family allows.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

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
FAMILIES = tuple(CONFIGS)


def pico(family: str = "llama", seed: int = 0, **changes: object) -> PreTrainedModel:
    """A random float32 model of the family whose attention and out-projections are not negligible."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **CONFIGS[family] | _COMMON | {"tie_word_embeddings": False} | changes)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for _, _, linear in prunable_linears(model):
        linear.weight.normal_(std=0.3)
    for projection in out_projections(model):
        if projection.bias is not None:
            projection.bias.normal_(std=0.1)
    return model


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

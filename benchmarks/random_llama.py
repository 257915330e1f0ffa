"""Random Llama models of a given size and random calibration batches, for measurements that need no trained weights."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 1000


def random_llama(*, width: int, ffn: int, layers: int, heads: int = 8, positions: int = 2048) -> LlamaForCausalLM:
    """A float32 Llama with random weights, the same ones every time; half as many key/value heads as heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        vocab_size=VOCABULARY,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def random_batches(sequences: int, length: int, per_batch: int = 8) -> list[Tensor]:
    """Token ids [B, T]."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, VOCABULARY, (sequences, length), generator=generator)
    return list(tokens.split(per_batch))

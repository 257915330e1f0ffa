"""Model folders without weights, for the stage `corpus`: a tokenizer that reads any text, and a config."""

from __future__ import annotations

from pathlib import Path

from transformers import LlamaConfig

from tests.models.test_response_mask import CHATML, byte_level


def text_model(folder: Path, *, context: int = 2048, chat: bool = False) -> str:
    """Save tokenizer (a chat one: with a template) and config in a folder; returns it as models.<name>.source."""
    tokenizer = byte_level(bos=True)
    if chat:
        tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    LlamaConfig(max_position_embeddings=context).save_pretrained(folder)
    return str(folder)

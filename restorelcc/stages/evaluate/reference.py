"""The dense model's predictions and continuations, as an artifact that the other models are compared with.

Dense and pruned models are never in memory together. Letters: T all held-out positions, K kept tokens, P prompts,
Q prompt tokens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from restorelcc.base.documents import parse_json
from restorelcc.base.errors import BadInput
from restorelcc.models.tensors import read_tensors, write_tensors
from restorelcc.stages.evaluate.generation import TOP_TOKENS, Prompts

_NAMES = ("heldout_T", "lengths", "top_tokens_TK", "top_log_p_TK", "beginnings_PQ")


@dataclass(frozen=True)
class Reference:
    """The prompts, and what the dense model made of them."""

    prompts: Prompts
    top_tokens_TK: Tensor
    top_log_p_TK: Tensor
    greedy: list[list[int]]


def dense_reference(prompts: Prompts, log_p: list[Tensor], greedy: list[list[int]]) -> Reference:
    """Keep the K likeliest tokens at every position of the held-out texts."""
    log_p_TV = torch.cat(log_p)
    top = log_p_TV.topk(min(TOP_TOKENS, log_p_TV.shape[1]), dim=-1)
    return Reference(prompts, top.indices.int(), top.values, greedy)


def write_reference(path: Path, reference: Reference, dense: str) -> None:
    """dense: digest of the dense model."""
    heldout = reference.prompts.heldout
    tensors = {
        "heldout_T": torch.tensor([token for ids in heldout for token in ids], dtype=torch.int32),
        "lengths": torch.tensor([len(ids) for ids in heldout], dtype=torch.int32),
        "top_tokens_TK": reference.top_tokens_TK,
        "top_log_p_TK": reference.top_log_p_TK,
        "beginnings_PQ": reference.prompts.beginnings_PQ.int(),
    }
    write_tensors(path, tensors, {"dense": dense, "greedy": json.dumps(reference.greedy)})


def read_reference(path: Path, vocabulary: int) -> Reference:
    """Raises BadInput when the file is missing, damaged or of a model with more tokens."""
    tensors, metadata = read_tensors(path, _NAMES)
    if int(tensors["top_tokens_TK"].max()) >= vocabulary:
        raise BadInput(
            f"{path} was written for a model with more tokens than the {vocabulary} of this one: run evaluate_dense "
            "again"
        )
    heldout = [part.tolist() for part in tensors["heldout_T"].split(tensors["lengths"].tolist())]
    prompts = Prompts(tensors["beginnings_PQ"].long(), heldout)
    return Reference(
        prompts,
        tensors["top_tokens_TK"],
        tensors["top_log_p_TK"],
        parse_json(metadata.get("greedy", ""), str(path), list),
    )

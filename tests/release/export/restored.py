"""Pruned pico checkpoints with a compensation, written to disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from restorelcc.base.digest import model_digest
from restorelcc.base.prunings import parse_pruning
from restorelcc.compensation.compensation import Compensation, Site
from restorelcc.compensation.file import write_compensation
from restorelcc.models.architectures import blocks_of, family_of, head_layout, linears_of, prunable_linears
from restorelcc.models.checkpoints import save_checkpoint
from restorelcc.sparsity.patterns import removal_mask
from tests import pico

SPARSITY = parse_pruning("magnitude-2of4").sparsity


@dataclass(frozen=True)
class Pair:
    """A pruned checkpoint and the compensation made for it."""

    pruned: Path
    compensation: Path


def pruned_model(family: str, dtype: torch.dtype = torch.float32, **changes: object) -> PreTrainedModel:
    """A pico model that keeps 2 of every 4 weights; its biases, where it has them, are not zero."""
    model = pico.pico(family, **changes)
    for _, _, linear in prunable_linears(model):
        linear.weight.masked_fill_(removal_mask(linear.weight.abs(), SPARSITY), 0)
        if linear.bias is not None:
            linear.bias.normal_(std=0.2)
    return model.to(dtype)


def heads_of(model: PreTrainedModel, scale: float = 1.0) -> torch.Tensor:
    """An offset [L, H, D] of two heads, in two of the layers where there are two."""
    layout = head_layout(model)
    offset = torch.zeros(layout.layers, layout.heads, layout.head_dim)
    generator = torch.Generator().manual_seed(1)
    for layer, head in ((0, 3), (layout.layers - 1, 1)):
        offset[layer, head] = scale * torch.randn(layout.head_dim, generator=generator)
    return offset


def sites_of(model: PreTrainedModel, paths: tuple[str, ...]) -> dict[Site, torch.Tensor]:
    """Values for each of the linears that the last two layers have."""
    generator, blocks = torch.Generator().manual_seed(2), blocks_of(model)
    last = [(layer, dict(linears_of(blocks[layer], family_of(model)))) for layer in range(len(blocks))[-2:]]
    widths = {Site(layer, p): linears[p].out_features for p in paths for layer, linears in last if p in linears}
    return {site: 0.2 * torch.randn(outputs, generator=generator) for site, outputs in widths.items()}


def write_pair(folder: Path, model: PreTrainedModel, compensation: Compensation) -> Pair:
    pair = Pair(folder / "pruned", folder / "compensation.safetensors")
    save_checkpoint(pair.pruned, model, pico.word_tokenizer())
    write_compensation(pair.compensation, compensation, {"model": "pico", "pruned": model_digest(pair.pruned)})
    return pair


def pair_of(folder: Path, family: str = "llama", dtype: torch.dtype = torch.float32, **changes: object) -> Pair:
    """A pruned checkpoint of the family and a compensation of two of its heads."""
    model = pruned_model(family, dtype, **changes)
    return write_pair(folder, model, Compensation(heads_of(model)))

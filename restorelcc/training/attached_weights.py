"""Trainable changes of the weights of a frozen model: they take part in its own forward, the weights stay as they are.

Letters: O output features, I input features, R rank, L layers, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from restorelcc.models.heads import HeadLayout
from restorelcc.models.hooks import hooked
from restorelcc.sparsity.patterns import rounded, without_chance_zeros


class WeightChange(Protocol):
    """What is added to each named linear's weight, [O, I] float32."""

    def changes(self) -> dict[str, Tensor]: ...


class MaskedChange(nn.Module):
    """W' = W + mask * delta: a change of every weight that pruning left; a zero stays a zero."""

    def __init__(self, linears: dict[str, nn.Linear]) -> None:
        super().__init__()
        self.names = list(linears)
        weights = [linear.weight for linear in linears.values()]
        zeros = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
        self.deltas = nn.ParameterList(map(nn.Parameter, zeros))
        self.masks = [(weight != 0) for weight in weights]

    def changes(self) -> dict[str, Tensor]:
        parts = zip(self.names, self.deltas, self.masks, strict=True)
        return {name: delta_OI * mask_OI for name, delta_OI, mask_OI in parts}


class MaskedLora(nn.Module):
    """W' = W + mask * (B A): a low-rank change that merges without filling a zero. A ~ N(0, 1 / I), B = 0."""

    def __init__(self, linears: dict[str, nn.Linear], rank: int, seed: int) -> None:
        super().__init__()
        self.names = list(linears)
        weights = [linear.weight for linear in linears.values()]
        generator = torch.Generator().manual_seed(seed)
        self.down = nn.ParameterList(
            nn.Parameter((torch.randn(rank, w.shape[1], generator=generator) / w.shape[1] ** 0.5).to(w.device))
            for w in weights
        )
        self.up = nn.ParameterList(nn.Parameter(torch.zeros(w.shape[0], rank, device=w.device)) for w in weights)
        self.masks = [(weight != 0) for weight in weights]

    def changes(self) -> dict[str, Tensor]:
        parts = zip(self.names, self.up, self.down, self.masks, strict=True)
        return {name: (up_OR @ down_RI) * mask_OI for name, up_OR, down_RI, mask_OI in parts}


class HeadScales(nn.Module):
    """z' = z * (1 + a): a scale of every number that a head gives, as a change W_O a of the out-projection's columns.

    LoFiT, arXiv 2406.01563, step 1. scale_LX starts from N(0, std).
    """

    def __init__(self, projections: dict[str, nn.Linear], std: float, seed: int) -> None:
        super().__init__()
        self.projections = list(projections.items())
        generator = torch.Generator().manual_seed(seed)
        self.scale_LX = nn.Parameter(std * torch.randn(len(projections), self._width(), generator=generator))

    def _width(self) -> int:
        return self.projections[0][1].in_features

    def changes(self) -> dict[str, Tensor]:
        scales = zip(self.projections, self.scale_LX, strict=True)
        found = {}
        for (name, linear), scale_X in scales:
            weight_OI = linear._parameters["weight"]
            assert weight_OI is not None
            found[name] = weight_OI.float() * scale_X.to(weight_OI.device)
        return found

    def score_LH(self, layout: HeadLayout) -> Tensor:
        """The norm of every head's scales, [L, H]."""
        return layout.split(self.scale_LX.detach()).norm(dim=-1)


@contextmanager
def attached_weights(model: nn.Module, linears: dict[str, nn.Linear], change: WeightChange) -> Iterator[None]:
    """Inside, every forward of `model` (a whole model or one block) computes with W + change.

    The weights themselves stay parameters, unchanged; on leaving, all is as it was.
    """

    def install(_model: nn.Module, _arguments: Any, _keywords: Any) -> None:
        for name, change_OI in change.changes().items():
            weight = linears[name]._parameters["weight"]
            assert weight is not None
            linears[name].__dict__["weight"] = (weight.float() + change_OI.to(weight.device)).to(weight.dtype)

    try:
        with hooked([(None, model)], lambda _key: install, expected=1, keywords=True):
            yield
    finally:
        for linear in linears.values():
            linear.__dict__.pop("weight", None)


@torch.no_grad()
def apply_change(linears: dict[str, nn.Linear], change: WeightChange) -> None:
    """Write W + change into the weights: zeros stay zeros where the change is zero, and no other weight becomes one."""
    for name, change_OI in change.changes().items():
        weight = linears[name].weight
        changed_OI = weight.float() + change_OI.to(weight.device)
        weight.copy_(rounded(without_chance_zeros(changed_OI, weight), weight.dtype))

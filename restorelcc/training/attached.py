"""Trainable biases on the linears of a frozen model: they take part in the model's own forward, nothing else changes.

Which linears: the sites, by the short names of `sites` in params.yaml.
Letters: P chosen heads, L layers, H heads, D head dim, M model width, X = H*D, O output features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from restorelcc.base.errors import BadInput
from restorelcc.compensation.compensation import SITE_PREFIX, Compensation, parse_site
from restorelcc.compensation.fold import with_addition
from restorelcc.models.architectures import Family, blocks_of, family_of, linears_of, out_projections
from restorelcc.models.heads import HeadLayout
from restorelcc.models.hooks import hooked
from restorelcc.models.placement import whole
from restorelcc.training.config import SITES, SiteName


def site_paths(family: Family, sites: Iterable[SiteName]) -> list[str]:
    """Paths, inside a block, of the linears that the sites name, each once, in forward order.

    Where a family fuses q, k and v, or has no gate, several names mean one linear.
    """
    by_name: dict[SiteName, tuple[str, ...]]
    by_name = {"o": (family.out_proj,), "gate": (), "up": (), "down": ()}
    for *ffn_in, down in (each for each in ((*family.ffn_in, family.ffn_out), family.dense_ffn) if any(each)):
        by_name |= {"gate": (*by_name["gate"], ffn_in[0]), "up": (*by_name["up"], ffn_in[-1])}
        by_name["down"] = (*by_name["down"], down)
    by_name |= dict(zip(("q", "k", "v"), family.qkv_of(), strict=True))
    wanted = {path for site in sites for path in by_name[site]}
    return [path for path in family.linears if path in wanted]


def site_linears(model: PreTrainedModel, sites: Iterable[SiteName]) -> dict[str, nn.Linear]:
    """The linears of the sites in all L blocks, `<layer>.<path>` to Linear, layer by layer.

    Raises BadInput where there are none, as of the FFN sites of a model whose FFN is all experts.
    """
    family = family_of(model)
    paths = site_paths(family, sites)
    found = {
        f"{layer}.{path}": linear
        for layer, block in enumerate(blocks_of(model))
        for path, linear in linears_of(block, family)
        if path in paths
    }
    if not found:
        raise BadInput(
            f"a {model.config.model_type!r} model has no linears of the sites {', '.join(sites)}: choose others of "
            f"{', '.join(site for site in SITES if site_paths(family, [site]))}"
        )
    return found


class HeadCompensation(nn.Module):
    """c_p = sum_{i<=D} beta_pi v_pi + b_p for each chosen head p. RestoreLCC eq. 8.

    directions_PDD [P, D, D] (rows v_i) stay fixed; beta and bias [P, D] train, in float32 whatever the model's dtype.
    Frozen parts (`trained` without their name) stay at zero: "beta" alone or "bias" alone is an ablation.
    """

    directions_PDD: Tensor

    def __init__(
        self,
        directions_PDD: Tensor,
        heads: list[tuple[int, int]],
        *,
        initial_std: float,
        seed: int,
        trained: tuple[str, ...] = ("beta", "bias"),
    ) -> None:
        super().__init__()
        self.heads = heads
        shape = directions_PDD.shape[:2]
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("directions_PDD", directions_PDD.float())
        self.beta = nn.Parameter(initial_std * torch.randn(shape, generator=generator))
        self.bias = nn.Parameter(initial_std * torch.randn(shape, generator=generator))
        for name, part in self.named_parameters():
            if name not in trained:
                part.data.zero_()
                part.requires_grad_(False)

    def offset_PD(self) -> Tensor:
        """c of the chosen heads, [P, D]."""
        return torch.einsum("pi,pid->pd", self.beta, self.directions_PDD) + self.bias

    def offset_LHD(self, layout: HeadLayout) -> Tensor:
        """c of all heads, [L, H, D]; zero for those not chosen."""
        offset = torch.zeros(layout.total, layout.head_dim, device=self.bias.device)
        flat = torch.tensor([layout.flat(*head) for head in self.heads], dtype=torch.long, device=self.bias.device)
        return offset.index_copy(0, flat, self.offset_PD()).unflatten(0, (layout.layers, layout.heads))

    def biases(self, projections: list[nn.Linear]) -> dict[str, Tensor]:
        """W_O c of every layer with a chosen head, [M] float32: only those heads' columns are read."""
        offset_PD = self.offset_PD()
        found = {}
        for layer in sorted({layer for layer, _ in self.heads}):
            weight_MX = whole(projections[layer].weight)
            rows = [number for number, head in enumerate(self.heads) if head[0] == layer]
            columns = torch.tensor([self.heads[row][1] for row in rows], device=weight_MX.device)
            weight_MPD = weight_MX.unflatten(1, (-1, offset_PD.shape[1])).index_select(1, columns)
            found[str(layer)] = weight_MPD.flatten(1).float() @ offset_PD[rows].flatten().to(weight_MX.device)
        return found


class SiteBiases(nn.Module):
    """A free bias b [O] on each of the linears, `<layer>.<path>`, in float32, from zero or from `start`."""

    def __init__(self, linears: dict[str, nn.Linear], start: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self.sites = list(linears)
        initial = start or {}
        self.values = nn.ParameterList(
            nn.Parameter(initial[name].float().clone() if name in initial else torch.zeros(linear.out_features))
            for name, linear in linears.items()
        )

    def by_site(self) -> dict[str, Tensor]:
        """`<layer>.<path>` to bias."""
        return dict(zip(self.sites, self.values, strict=True))


class TrainableCompensation(nn.Module):
    """What training adds to a frozen model: offsets of chosen heads, biases of sites, or both."""

    def __init__(self, heads: HeadCompensation | None, sites: SiteBiases | None = None) -> None:
        super().__init__()
        self.heads, self.sites = heads, sites

    def biases(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """What is added to the output of each linear, `<layer>.<path>` to [O] float32."""
        found: dict[str, Tensor] = {}
        if self.heads is not None:
            path = family_of(model).out_proj
            of_layers = self.heads.biases(out_projections(model))
            found = {f"{layer}.{path}": bias_M for layer, bias_M in of_layers.items()}
        for name, bias_O in (self.sites.by_site() if self.sites is not None else {}).items():
            found[name] = found[name] + bias_O if name in found else bias_O
        return found

    def frozen(self, layout: HeadLayout) -> Compensation:
        """What was trained, as constants."""
        with torch.no_grad():
            offset = torch.zeros(layout.layers, layout.heads, layout.head_dim)
            if self.heads is not None:
                offset = self.heads.offset_LHD(layout).cpu()
            named = self.sites.by_site() if self.sites is not None else {}
            return Compensation(offset, {parse_site(f"{SITE_PREFIX}{name}"): v.detach() for name, v in named.items()})

    def trained(self, layout: HeadLayout) -> dict[str, Tensor]:
        """How the head offsets were made: heads [P, 2], beta and bias [P, D]."""
        if self.heads is None:
            none_PD = torch.zeros(0, layout.head_dim)
            return {"heads": torch.zeros(0, 2, dtype=torch.int32), "beta": none_PD, "bias": none_PD.clone()}
        heads = torch.tensor(self.heads.heads, dtype=torch.int32)
        return {"heads": heads, "beta": self.heads.beta, "bias": self.heads.bias}


@contextmanager
def attached(model: PreTrainedModel, compensation: TrainableCompensation) -> Iterator[None]:
    """out' = W x + (bias + W_O c): the folded form of z' = z + c, so that a step costs no more than a bias would.

    Every forward of the model computes the biases once, in float32, and the linears add them in the model's dtype, as
    a folded checkpoint does. Below the lowest site nothing requires a gradient. On leaving, the model is as it was.
    """
    linears = site_linears(model, SITES)
    with torch.no_grad():
        used = {name: linears[name] for name in compensation.biases(model)}
        own = {name: None if linear.bias is None else whole(linear.bias) for name, linear in used.items()}

    def install(_model: nn.Module, _arguments: Any, _keywords: Any) -> None:
        for name, bias_O in compensation.biases(model).items():
            weight = used[name].weight
            # In front of the parameter, which stays where it is.
            used[name].__dict__["bias"] = with_addition(own[name], bias_O.to(weight.device), weight.dtype)

    try:
        with hooked([(None, model)], lambda _key: install, expected=1, keywords=True):
            yield
    finally:
        for linear in used.values():
            linear.__dict__.pop("bias", None)

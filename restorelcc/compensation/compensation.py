"""A compensation: constants added inside a frozen model, at every position.

Letters: L layers, H heads, D head dim, O output features of a linear.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from restorelcc.base.errors import BadInput
from restorelcc.models.architectures import Family
from restorelcc.models.heads import HeadLayout

SITE_PREFIX = "site."


class Site(NamedTuple):
    """A linear of a block: its layer, and its path in the block as models/architectures.py has it."""

    layer: int
    linear: str

    @property
    def tensor_name(self) -> str:
        """Its name in compensation.safetensors."""
        return f"{SITE_PREFIX}{self.layer}.{self.linear}"


def parse_site(tensor_name: str) -> Site:
    """The site of `site.<layer>.<linear>`. Raises BadInput for another name."""
    layer, _, linear = tensor_name.removeprefix(SITE_PREFIX).partition(".")
    if not tensor_name.startswith(SITE_PREFIX) or not layer.isdecimal() or not linear:
        raise BadInput(f"{tensor_name!r} is not site.<layer>.<linear>, for example site.0.mlp.down_proj")
    return Site(int(layer), linear)


@dataclass(frozen=True)
class Compensation:
    """z' = z + c for every head (RestoreLCC eq. 8), and out' = out + s for the linears that are further sites.

    offset_LHD [L, H, D]: c, zero for heads not chosen; sites: s [O] of some linears, by layer and path.
    """

    offset_LHD: Tensor
    sites: Mapping[Site, Tensor] = field(default_factory=dict)

    @classmethod
    def nothing(cls, layout: HeadLayout) -> Compensation:
        """One that adds nothing anywhere."""
        return cls(torch.zeros(layout.layers, layout.heads, layout.head_dim))

    @property
    def compensates_heads(self) -> bool:
        return bool(self.offset_LHD.any())

    def head_layers(self) -> list[int]:
        """Layers with a compensated head."""
        return torch.nonzero(self.offset_LHD.flatten(1).any(dim=1)).flatten().tolist()

    def head_offset(self, site: Site, family: Family, layout: HeadLayout) -> Tensor | None:
        """c of a layer's heads, joined to [X], where the site is its out-projection; None where no head is chosen."""
        if site.linear != family.out_proj or not self.offset_LHD[site.layer].any():
            return None
        return layout.join(self.offset_LHD[site.layer])

    def reaches(self, site: Site, family: Family) -> bool:
        """Whether something is added to the site's bias."""
        heads = site.linear == family.out_proj and bool(self.offset_LHD[site.layer].any())
        return heads or site in self.sites

    def linears(self, family: Family) -> list[str]:
        """Paths of the linears whose bias changes, in forward order."""
        touched = {site.linear for site in self.sites}
        if self.compensates_heads:
            touched.add(family.out_proj)
        return [path for path in family.linears if path in touched]


def check_width(site: Site, value_O: Tensor, outputs: int) -> None:
    """Raises BadInput unless a site's values are one per output of its linear."""
    if tuple(value_O.shape) != (outputs,):
        raise BadInput(
            f"{site.tensor_name} of the compensation has shape {tuple(value_O.shape)}, the linear has {outputs} outputs"
        )


def checked(compensation: Compensation | Tensor, family: Family, layout: HeadLayout) -> Compensation:
    """The compensation (or head offset [L, H, D]) with its sites by the family's paths, refused unless it fits.

    Raises BadInput for another shape, a layer or linear that the model does not have, or values that are not finite.
    """
    if isinstance(compensation, Tensor):
        compensation = Compensation(compensation)
    offset_LHD = compensation.offset_LHD
    if tuple(offset_LHD.shape) != (layout.layers, layout.heads, layout.head_dim):
        raise BadInput(f"a compensation of shape {tuple(offset_LHD.shape)} does not fit a model of {layout}")
    sites: dict[Site, Tensor] = {}
    for (layer, linear), value_O in compensation.sites.items():
        if not 0 <= layer < layout.layers:
            raise BadInput(f"the compensation has a site in layer {layer}, the model has {layout.layers} layers")
        site = Site(layer, family.linear_path(linear))
        if site in sites:
            raise BadInput(f"the compensation names the site {site.tensor_name} twice")
        sites[site] = value_O
    for name, value in {"offset": offset_LHD, **{site.tensor_name: value for site, value in sites.items()}}.items():
        if not torch.isfinite(value).all():
            raise BadInput(f"the compensation holds NaN or infinity in {name}: train it again")
    return Compensation(offset_LHD, sites)

"""Sites: the linears of a block that can get a compensation, by the short names of `sites` in params.yaml.

Letters: L layers.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

from restorelcc.base.site_names import SiteName
from restorelcc.models.architectures import Family, blocks_of, family_of, linear_of


def site_paths(family: Family, sites: Iterable[SiteName]) -> list[str]:
    """Paths, inside a block, of the linears that the sites name, each once, in forward order.

    Where a family fuses q, k and v, or has no gate, several names mean one linear.
    """
    q, k, v = family.qkv if len(family.qkv) == 3 else family.qkv * 3
    gate, up = family.ffn_in if len(family.ffn_in) == 2 else family.ffn_in * 2
    by_name = {"q": q, "k": k, "v": v, "o": family.out_proj, "gate": gate, "up": up, "down": family.ffn_out}
    wanted = {by_name[site] for site in sites}
    return [path for path in family.linears if path in wanted]


def site_linears(model: PreTrainedModel, sites: Iterable[SiteName]) -> dict[str, nn.Linear]:
    """The linears of the sites in all L blocks, `<layer>.<path>` to Linear, layer by layer."""
    paths = site_paths(family_of(model), sites)
    return {f"{layer}.{path}": linear_of(block, path) for layer, block in enumerate(blocks_of(model)) for path in paths}

"""What has to be known of a model family: one row of the table in families.py."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from restorelcc.base.errors import BadInput

# How a stock checkpoint of the family can carry a bias on a linear:
# "native": it has one unless its config says otherwise; "flag": a key of the config turns it on; "none": it cannot.
BiasRoute = Literal["native", "flag", "none"]
# Which layers see only config.sliding_window tokens back, where that is set; "listed": those config.layer_types names.
Windows = Literal["never", "every", "listed"]
# How query, key and value lie in their linears: one linear each; in one linear, head by head; in one linear, all of q,
# then all of k, then all of v; in one linear, each key/value head behind the query heads that read it; or latent, where
# low-rank factors take the place of the three.
QkvRows = Literal["separate", "heads", "parts", "groups", "latent"]
_MASK = re.compile(r"(?:^|\.)attn(?:\.attention)?\.(?:masked_)?bias$")


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row. Paths are dotted; `blocks` starts at the model, the rest at a block."""

    blocks: str
    qkv: tuple[str, ...]  # query, key and value projection, in this order; one name where they are fused
    out_proj: str
    ffn_in: tuple[str, ...] = ()  # linears whose rows are the FFN's channels
    ffn_out: str = ""  # the linear whose columns are the FFN's channels; "" where there are only experts
    qkv_rows: QkvRows = "separate"
    fused_ffn: bool = False  # the one linear of ffn_in holds the rows of a gate, then those that it gates
    native_biases: tuple[str, ...] = ()  # linears with a bias unless the config says otherwise
    # Key of the config -> the linears that have a bias when it is true, and have none when it is false.
    bias_flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    windows: Windows = "never"
    # The config's key for the number of channels; where it is missing or null, the class takes 4 * hidden size.
    ffn_width: str = "intermediate_size"
    # Whether the class reads head_dim from the config. Where it is hidden size / heads, heads cannot be sliced off.
    free_head_dim: bool = True
    head_dim_key: str = "head_dim"  # the config's key for the numbers of a head at the out-projection
    kv_heads_key: str = "num_key_value_heads"
    # Why heads and channels cannot be removed as wholes (slimgpt, slicing); None where they can.
    whole_parts_refused: str | None = None
    # Whether the class takes a mask of any shape along with positions, so that several sequences share a line.
    packs: bool = True
    stored_blocks: str | None = None  # what checkpoints call `blocks`, where they do not call it so
    output_in_tuple: bool = False  # whether a block gives its hidden state as the first of several
    transposed: bool = False  # whether the class stores the weights of its linears turned, [inputs, outputs]
    stored_masks: bool = False  # whether older checkpoints hold the masks of its attention as tensors
    # Parts of a block with its experts and their router. They stay as they are, however many experts there are. The
    # FFN of such a row is what all tokens share, and some blocks may lack it; dense_ffn is that of blocks without
    # experts, in forward order.
    experts: tuple[str, ...] = ()
    dense_ffn: tuple[str, ...] = ()
    hybrid: bool = False  # whether only the blocks that config.layer_types calls attention have heads

    @property
    def linears(self) -> tuple[str, ...]:
        """What pruning targets, in forward order."""
        return (*self.qkv, self.out_proj, *self.ffn)

    @property
    def ffn(self) -> tuple[str, ...]:
        """Its linears of the FFN, in forward order; none where all that a block has are experts."""
        own = (*self.ffn_in, self.ffn_out) if self.ffn_out else ()
        return (*own, *self.dense_ffn)

    @property
    def partial(self) -> bool:
        """Whether a block may lack some of the linears: in mixtures of experts, and in hybrids."""
        return bool(self.experts) or self.hybrid

    @property
    def scores_refused(self) -> str | None:
        """Why its weights cannot be pruned here; None where they can."""
        if self.experts:
            return "their experts are fused into one tensor per layer instead of Linear layers"
        return "some of their layers are no attention, and are left as they are" if self.hybrid else None

    @property
    def stored(self) -> str:
        """What stands before a block's number in the names of a checkpoint's tensors."""
        return self.stored_blocks or self.blocks

    def is_mask(self, name: str) -> bool:
        """Whether a tensor of a checkpoint is a mask that an older class stored: none has a parameter of this name."""
        return self.stored_masks and _MASK.search(name) is not None

    def qkv_of(self) -> tuple[tuple[str, ...], ...]:
        """The linears that make the queries, the keys and the values; some make several of them."""
        if self.qkv_rows == "latent":  # two that make queries, two that make keys and values
            return self.qkv[:2], self.qkv[2:], self.qkv[2:]
        return tuple((path,) for path in (self.qkv if len(self.qkv) == 3 else self.qkv * 3))

    @property
    def bias(self) -> BiasRoute:
        """How the out-projection can carry a bias."""
        return self.bias_route(self.out_proj)

    def bias_route(self, path: str) -> BiasRoute:
        """How a stock checkpoint can carry a bias on the linear at `path`."""
        if path in self.native_biases:
            return "native"
        return "none" if self.bias_flag(path) is None else "flag"

    def bias_flag(self, path: str) -> str | None:
        """The key of the config that turns a bias on `path` on; None where there is no such key."""
        return next((flag for flag, paths in self.bias_flags.items() if path in paths), None)

    def linear_path(self, name: str) -> str:
        """The path of a linear given by its path or by the last part of it. Raises BadInput, listing the known ones."""
        matches = [path for path in self.linears if name in (path, path.rpartition(".")[2])]
        if len(matches) != 1:
            raise BadInput(f"{name!r} is not a linear layer of this model family: it has {', '.join(self.linears)}")
        return matches[0]

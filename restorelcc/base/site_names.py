"""Short names of the linears of a block that can get a compensation, as `sites` in params.yaml has them."""

from __future__ import annotations

from typing import Literal

SiteName = Literal["q", "k", "v", "o", "gate", "up", "down"]
SITES: tuple[SiteName, ...] = ("q", "k", "v", "o", "gate", "up", "down")

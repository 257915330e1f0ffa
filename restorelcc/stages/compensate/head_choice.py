"""The heads that get a compensation, from heads.parquet."""

from __future__ import annotations

from pathlib import Path

from restorelcc.base.errors import BadInput
from restorelcc.base.head_table import HEADS
from restorelcc.base.tables import read_table
from restorelcc.models.heads import HeadLayout, chosen_count


def best_heads(table: Path, heads: HeadLayout, ratio: float) -> list[tuple[int, int]]:
    """The (layer, head) of the P best-ranked heads, best first. Raises BadInput when P is 0."""
    count = chosen_count(ratio, heads)
    rows = sorted(read_table(table, HEADS), key=lambda row: row["rank"])
    if len(rows) != heads.total:
        raise BadInput(f"{table} ranks {len(rows)} heads, the model has {heads.total}: run `dvc repro`")
    return [(row["layer"], row["head"]) for row in rows[:count]]

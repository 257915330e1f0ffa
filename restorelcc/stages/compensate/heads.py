"""Which heads get a compensation: the best-ranked of heads.parquet, and the share that the validation pairs choose.

Letters: N validation pairs, P chosen heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from restorelcc.base.errors import BadInput
from restorelcc.base.tables import HEADS, read_table
from restorelcc.models.architectures import head_layout
from restorelcc.models.heads import HeadLayout, chosen_count, rounded_count
from restorelcc.training.attached import attached
from restorelcc.training.compensation import Best, Pairs
from restorelcc.training.losses import pair_losses


def best_heads(table: Path, heads: HeadLayout, ratio: float, key: str = "grid.head_ratio") -> list[tuple[int, int]]:
    """The (layer, head) of the P best-ranked heads, best first. Raises BadInput when P is 0."""
    count = chosen_count(ratio, heads, key)
    rows = sorted(read_table(table, HEADS), key=lambda row: row["rank"])
    if len(rows) != heads.total:
        raise BadInput(f"{table} ranks {len(rows)} heads, but the model has {heads.total}: run `dvc repro`")
    return [(row["layer"], row["head"]) for row in rows[:count]]


def smallest_good_ratio(
    model: PreTrainedModel, pairs: Pairs, ratios: Sequence[float], trained: Callable[[float], Best]
) -> tuple[float, Best, list[dict]]:
    """The smallest ratio whose validation loss is within one standard error of the best one's, and its training.

    The error is that of the difference between the two on the same pairs. Ratios that round to no head are left out.
    Also returns what every ratio gave.
    """
    found: dict[float, tuple[Best, Tensor]] = {}
    layout = head_layout(model)
    for ratio in ratios:
        if ratio != max(ratios) and not rounded_count(ratio, layout):
            continue
        best = trained(ratio)
        with attached(model, best.compensation):
            found[ratio] = best, pair_losses(model, pairs.valid, pairs.pad)
    # A ratio that gave nothing is within the error of many a gain: it is taken where all of them gave nothing.
    gaining = {ratio: losses_N for ratio, (best, losses_N) in found.items() if not best.choice.unchanged}
    chosen = one_standard_error_rule(gaining or {ratio: losses_N for ratio, (_, losses_N) in found.items()})
    compared = [{"head_ratio": ratio, "valid_loss": best.choice.valid_loss} for ratio, (best, _) in found.items()]
    return chosen, found[chosen][0], compared


def one_standard_error_rule(losses: dict[float, Tensor]) -> float:
    """The smallest key whose mean loss exceeds the least by at most one standard error of the paired difference."""
    least = min(losses, key=lambda ratio: (losses[ratio].mean().item(), ratio))
    for ratio in sorted(losses):
        difference_N = losses[ratio] - losses[least]
        error = difference_N.std().item() / len(difference_N) ** 0.5 if len(difference_N) > 1 else 0.0
        if difference_N.mean().item() <= error:
            return ratio
    return least

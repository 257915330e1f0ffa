"""How much of the lost accuracy came back, with an interval over the same test items.

Letters: S bootstrap samples, N items of one task.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from restorelcc.core.errors import BadInput

Correct = dict[str, np.ndarray]  # task -> 0/1 per item, in item order


def correct_by_task(rows: list[dict[str, Any]]) -> Correct:
    """Per task the 0/1 results of its items, ordered by item_id."""
    by_task: dict[str, list[tuple[int, bool]]] = {}
    for row in rows:
        by_task.setdefault(row["task"], []).append((row["item_id"], row["correct"]))
    return {task: np.array([correct for _, correct in sorted(items)], dtype=float) for task, items in by_task.items()}


def recovered_share(dense: Correct, pruned: Correct, restored: Correct, *, samples: int, seed: int) -> dict[str, Any]:
    """(restored - pruned) / (dense - pruned) of mean task accuracy, with a paired bootstrap 95 % interval.

    Items are drawn with replacement within each task, the same for all three models, and a task's weight in the mean
    does not depend on its size. A draw in which pruning lost nothing bounds the share on neither side; where such draws
    reach into a tail, that end of the interval is None. When pruning lost nothing on the items themselves, mean and
    interval are None and `reason` says so. Raises BadInput when the models were not measured on the same items.
    """
    sizes = [{task: len(items) for task, items in model.items()} for model in (dense, pruned, restored)]
    if not sizes[0] == sizes[1] == sizes[2]:
        raise BadInput("dense, pruned and restored models were measured on different items: run `dvc repro`")
    generator = np.random.default_rng(seed)
    means_S = np.zeros((3, samples))
    for task in sorted(dense):
        stacked_3N = np.stack([dense[task], pruned[task], restored[task]])
        # How often each item is drawn: a matrix product then gives all bootstrap means of a task at once.
        counts_SN = generator.multinomial(
            stacked_3N.shape[1], np.full(stacked_3N.shape[1], 1 / stacked_3N.shape[1]), samples
        )
        means_S += stacked_3N @ counts_SN.T / stacked_3N.shape[1] / len(dense)
    point = [float(np.mean([model[task].mean() for task in dense])) for model in (dense, pruned, restored)]
    lost, gained = point[0] - point[1], point[2] - point[1]
    method = {"method": "paired bootstrap", "samples": samples, "lost": lost, "gained": gained}
    if lost <= 0:
        return {"mean": None, "ci95": None, "reason": "pruning lost nothing"} | method
    lost_S, gained_S = means_S[0] - means_S[1], means_S[2] - means_S[1]
    lossless = float(np.mean(lost_S <= 0))
    share_S = np.divide(gained_S, lost_S, out=np.zeros(samples), where=lost_S > 0)[lost_S > 0]
    # Lossless draws could lie on either side: each tail keeps only what they leave of its 2.5 %.
    tail = 0.025 - lossless
    interval = [None, None] if tail <= 0 else [float(bound) for bound in np.quantile(share_S, [tail, 1 - tail])]
    return {"mean": gained / lost, "ci95": interval} | method

"""Comparisons of models that answered the same items: paired bootstrap, McNemar's test, recovered share.

Letters: S bootstrap draws, K distinct outcomes of an item over the models compared, R restored models (seeds), N items.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from restorelcc.base.errors import BadInput

Scores = dict[str, np.ndarray]  # task -> score per item (0 or 1, or between), in item order
Sums = tuple[np.ndarray, np.ndarray]  # score and weight per item, in item order

MEAN, TOGETHER = "mean", "together"  # how a metric is made of its items; TOGETHER: of all at once, as F1 or BLEU
# What a metric is of sum of scores / sum of weights; scores are log-likelihoods where it is not the mean.
RATIOS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    MEAN: lambda ratio: ratio,
    "perplexity": lambda ratio: np.exp(-ratio),
    "weighted_perplexity": lambda ratio: np.exp(-ratio),
    "bits_per_byte": lambda ratio: -ratio / math.log(2),
}
_NOTHING = 1e-9  # of mean accuracy: sums of the same shares in another order differ by less, other answers by more
_CHUNK = 2**22  # numbers of the largest array of a bootstrap over items that all differ


def scores_by_task(rows: list[dict[str, Any]], tasks: Collection[str]) -> Scores:
    """Of each of these tasks the scores of its items, ordered by item_id."""
    by_task: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row["task"] in tasks:
            by_task.setdefault(row["task"], []).append((row["item_id"], row["score"]))
    return {task: np.array([score for _, score in sorted(items)], dtype=float) for task, items in by_task.items()}


def check_same_items(name: str, rows: list[dict[str, Any]], other_name: str, others: list[dict[str, Any]]) -> None:
    """Raises BadInput, naming task and count, unless both models answered the same items, by digest."""
    ours, theirs = _digests(rows), _digests(others)
    for task in sorted(ours.keys() ^ theirs.keys()):
        has, lacks = (name, other_name) if task in ours else (other_name, name)
        raise BadInput(
            f"{has} was measured on task {task!r}, {lacks} was not: run `dvc repro` to bring them up to date"
        )
    for task, digests in ours.items():
        if digests != theirs[task]:
            differing = len(set(digests.items()) ^ set(theirs[task].items()))
            raise BadInput(
                f"{name} and {other_name} answered different items of task {task!r} ({len(digests)} and "
                f"{len(theirs[task])} items, {differing} of them in one only): the data of the task changed between "
                "the two runs, run `dvc repro --force` on both evaluations"
            )


def _digests(rows: list[dict[str, Any]]) -> dict[str, dict[int, str]]:
    by_task: dict[str, dict[int, str]] = {}
    for row in rows:
        by_task.setdefault(row["task"], {})[row["item_id"]] = row["digest"]
    return by_task


def _bootstrap_means(models: list[Scores], samples: int, generator: np.random.Generator) -> np.ndarray:
    """Bootstrap means of the models' mean task accuracy, [models, S]; within a draw all models see the same items.

    Items are drawn with replacement within each task, and a task's weight does not depend on its size. Items with
    the same outcome for every model are exchangeable: how often each of the K outcomes is drawn is multinomial.
    """
    sizes = [{task: len(items) for task, items in model.items()} for model in models]
    if any(size != sizes[0] for size in sizes):
        raise BadInput("the models were measured on different items: run `dvc repro`")
    means = np.zeros((len(models), samples))
    for task in sorted(models[0]):
        outcomes, counts_K = np.unique(np.stack([model[task] for model in models]), axis=1, return_counts=True)
        drawn_SK = generator.multinomial(counts_K.sum(), counts_K / counts_K.sum(), samples)
        means += outcomes @ drawn_SK.T / counts_K.sum() / len(models[0])
    return means


def mean_accuracy(model: Scores) -> float:
    """Mean over tasks of the mean over items."""
    return float(np.mean([items.mean() for items in model.values()]))


def recovered_share(
    dense: Scores, pruned: Scores, restored: Scores | list[Scores], *, samples: int, seed: int
) -> dict[str, Any]:
    """(restored - pruned) / (dense - pruned) of mean task accuracy, with a paired bootstrap 95 % interval.

    Several restored models (of several training seeds) are averaged, and the interval covers items and seeds. A draw in
    which pruning lost nothing bounds the share on neither side; where such draws reach into a tail, that end of the
    interval is None. When pruning lost nothing on the items themselves, mean and interval are None and `reason` says
    so; of a task with a single item there is a share, without an interval. Raises BadInput when the models were not
    measured on the same items.
    """
    runs = restored if isinstance(restored, list) else [restored]
    generator = np.random.default_rng(seed)
    means = _bootstrap_means([dense, pruned, *runs], samples, generator)
    restored_S = _over_runs(means[2:], generator)
    point = [mean_accuracy(model) for model in (dense, pruned)] + [float(np.mean([mean_accuracy(run) for run in runs]))]
    lost, gained = point[0] - point[1], point[2] - point[1]
    method = {"method": "paired bootstrap", "samples": samples, "seeds": len(runs), "lost": lost, "gained": gained}
    if lost <= _NOTHING:
        return {"mean": None, "ci95": None, "reason": "pruning lost nothing"} | method
    lost_S, gained_S = means[0] - means[1], restored_S - means[1]
    lossy_S = lost_S > _NOTHING
    lossless = float(np.mean(~lossy_S))
    share_S = gained_S[lossy_S] / lost_S[lossy_S]
    # Lossless draws could lie on either side: each tail keeps only what they leave of its 2.5 %.
    tail = 0.025 - lossless
    interval = [None, None] if tail <= 0 else [float(bound) for bound in np.quantile(share_S, [tail, 1 - tail])]
    return {"mean": gained / lost, "ci95": interval if _varies(dense) else None} | method


def _varies(model: Scores) -> bool:
    """Whether draws of the items say how far chance reaches: every draw of a single item is that item."""
    return min(map(len, model.values())) > 1


def _over_runs(means_RS: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Mean over R runs in every draw, and how far it may be from that of all seeds: t (R - 1 degrees of freedom) times
    the runs' standard deviation / sqrt(R). Drawing two or three runs with replacement would find far too little."""
    runs, samples = means_RS.shape
    if runs == 1:
        return means_RS[0]
    apart_S = means_RS.std(axis=0, ddof=1) / math.sqrt(runs)
    return means_RS.mean(axis=0) + generator.standard_t(runs - 1, samples) * apart_S


def mcnemar(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """McNemar's test, mid-p: of the items that only one model answered, is either share beyond one half?

    first, second: 0 or 1 per item. Returns won (second only), lost (first only) and the two-sided p. Fagerland,
    Lydersen and Laake 2013: the exact test finds too little, the asymptotic one too much, mid-p keeps its level.
    """
    won, lost = int(((second == 1) & (first == 0)).sum()), int(((first == 1) & (second == 0)).sum())
    return {"won": won, "lost": lost, "p": mid_p(won, lost)}


def mid_p(won: int, lost: int) -> float:
    """Two-sided mid-p of won against lost discordant items; 1 without any."""
    from scipy.stats import binom  # takes a second, which a plan need not wait

    fewer, both = min(won, lost), won + lost
    if both == 0 or won == lost:
        return 1.0
    return float(min(1.0, 2 * binom.cdf(fewer, both, 0.5) - binom.pmf(fewer, both, 0.5)))


def compare(first: Scores, second: Scores, *, samples: int, seed: int) -> dict[str, Any]:
    """second - first on the same items: per task, and pooled with every task its own stratum.

    {"tasks": {name: {first, second, difference, ci95, won, lost, p, n}}, "pooled": {... of mean task accuracy}}: ci95
    by paired bootstrap (None where a task has a single item), p by McNemar's test (None for scores between 0 and 1),
    pooled over the items of all tasks.
    """
    return compare_runs([first], [second], samples=samples, seed=seed)


def compare_runs(first: list[Scores], second: list[Scores], *, samples: int, seed: int) -> dict[str, Any]:
    """`compare` of two models of several training seeds each: seeds are averaged, and the interval covers them too.

    Items of several seeds are not independent of one another, so there McNemar's test is left out.
    """
    generator = np.random.default_rng(seed)
    tasks = {}
    for task in sorted(first[0]):
        one, two = ([{task: run[task]} for run in runs] for runs in (first, second))
        tasks[task] = _difference(one, two, samples, generator)
    return {"tasks": tasks, "pooled": _difference(first, second, samples, generator)}


def _difference(
    first: list[Scores], second: list[Scores], samples: int, generator: np.random.Generator
) -> dict[str, Any]:
    means = _bootstrap_means([*first, *second], samples, generator)
    one_S, two_S = _over_runs(means[: len(first)], generator), _over_runs(means[len(first) :], generator)
    low, high = np.quantile(two_S - one_S, [0.025, 0.975])
    point = [float(np.mean([mean_accuracy(run) for run in runs])) for runs in (first, second)]
    found = {
        "first": point[0],
        "second": point[1],
        "difference": point[1] - point[0],
        "ci95": [float(low), float(high)] if _varies(first[0]) else None,
    }
    return found | {"n": sum(map(len, first[0].values()))} | _test(first, second)


def sums_of(rows: list[dict[str, Any]], task: str) -> Sums | None:
    """Score and weight of the items of one task, ordered by item_id; None where items have no score of their own."""
    own = sorted((row["item_id"], row["score"], row["weight"]) for row in rows if row["task"] == task)
    if any(score is None or weight is None for _, score, weight in own):
        return None
    return np.array([score for _, score, _ in own], dtype=float), np.array([weight for *_, weight in own], dtype=float)


def compare_ratios(first: list[Sums], second: list[Sums], way: str, *, samples: int, seed: int) -> dict[str, Any]:
    """second - first of a metric that is no accuracy, RATIOS[way], with its paired bootstrap interval, as `compare`.

    Several models of a side are seeds. There is no McNemar's test of such scores. Numbers that are beyond what one can
    hold are None, as in the metrics: the perplexity per word of a language without blanks can be. So is the interval of
    a single item.
    """
    generator = np.random.default_rng(seed)
    models, items, of_ratio = [*first, *second], len(first[0][0]), RATIOS[way]
    if any(len(score_N) != items for score_N, _ in models):
        raise BadInput("the models were measured on different items: run `dvc repro`")
    drawn = []
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for start in range(0, samples, step := max(1, _CHUNK // items)):
            counts_SN = generator.multinomial(items, np.full(items, 1 / items), min(step, samples - start))
            drawn.append([of_ratio((counts_SN @ score_N) / (counts_SN @ weight_N)) for score_N, weight_N in models])
        values_RS = np.concatenate(drawn, axis=1)
        one_S, two_S = (_over_runs(part, generator) for part in (values_RS[: len(first)], values_RS[len(first) :]))
        apart_S = two_S - one_S
        one, two = (
            _finite(np.mean([of_ratio(score_N.sum() / weight_N.sum()) for score_N, weight_N in side]))
            for side in (first, second)
        )
    apart = None if one is None or two is None else _finite(two - one)
    ci95 = None
    if items > 1 and apart is not None and np.isfinite(apart_S).all():
        ci95 = [float(bound) for bound in np.quantile(apart_S, [0.025, 0.975])]
    found = {"first": one, "second": two, "difference": apart, "ci95": ci95, "n": items}
    return found | {"won": None, "lost": None, "p": None}


def _finite(value: float | np.floating[Any]) -> float | None:
    return float(value) if math.isfinite(value) else None


def compare_texts(
    first: list[list[dict[str, Any]]], second: list[list[dict[str, Any]]], *, samples: int, seed: int
) -> dict[str, Any]:
    """second - first of the loss on held-out texts, in nats per token (below zero is better), with its interval by
    paired bootstrap over texts: {first, second, difference, ci95, n}. Rows: TEXT_SCORES; several of a side are seeds.

    ci95 is None of a single text, whose tokens are not independent; all are None of a loss that is no finite number.
    Raises BadInput unless all sides have the same texts with as many tokens.
    """
    sides = [*first, *second]
    texts = [[(row["text_id"], row["digest"], row["tokens"]) for row in rows] for rows in sides]
    if any(each != texts[0] for each in texts):
        raise BadInput("the models were measured on different held-out texts: run `dvc repro`")
    count = len(texts[0])
    losses = [np.array([-row["log_likelihood"] for row in rows], dtype=float) for rows in sides]
    if not all(np.isfinite(loss_N).all() for loss_N in losses):
        return {"first": None, "second": None, "difference": None, "ci95": None, "n": count}
    tokens_N = np.array([row["tokens"] for row in sides[0]], dtype=float)
    pairs = [(loss_N, tokens_N) for loss_N in losses]
    found = compare_ratios(pairs[: len(first)], pairs[len(first) :], MEAN, samples=samples, seed=seed)
    return {name: found[name] for name in ("first", "second", "difference", "ci95", "n")}


def _test(first: list[Scores], second: list[Scores]) -> dict[str, Any]:
    nothing = {"won": None, "lost": None, "p": None}
    if len(first) > 1 or len(second) > 1:
        return nothing
    one, two = (np.concatenate([runs[0][task] for task in sorted(runs[0])]) for runs in (first, second))
    return mcnemar(one, two) if np.isin(np.concatenate([one, two]), (0.0, 1.0)).all() else nothing

"""How the items of a task become a number: its metrics, which of them counts, and their standard errors.

lm-eval aggregates; standard errors are made here from the items, because it can bootstrap them with many draws or not
at all. Letters: N items.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import math
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from restorelcc.base.digest import json_digest
from restorelcc.base.errors import BadInput, first_line
from restorelcc.base.progress import notice
from restorelcc.stages.evaluate.statistics import MEAN, TOGETHER

_DRAWS = 100  # of the bootstrap, where no formula gives the standard error; lm-eval's own count for BLEU
# Keys of a task file that say where it or its data are stored, or that are separate parts of the fingerprint.
_NOT_HOW = ("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "num_fewshot", "task_alias", "tag")

_PLACES = ("stdlib", "platstdlib", "purelib", "platlib")  # of Python and of packages, as sysconfig names them


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Of one task: the metric and filter that stand for it, and what they mean."""

    metric: str
    filter: str
    way: str  # how it is made of the items: MEAN, another of statistics.RATIOS, or TOGETHER
    higher_is_better: bool
    shots: int
    config: str  # digest of the task file and the code it calls
    aggregations: dict[str, Callable[[Sequence[Any]], Any]]

    def per_item(self, value: Any) -> tuple[float, float] | None:
        """(score, weight) of one item; None for a metric that only all items together have."""
        if self.way == TOGETHER:
            return None
        try:
            if isinstance(value, tuple | list) and self.way == MEAN:
                return float(self.aggregations[self.metric]([value])), 1.0  # Brier's score is a mean over items
            score, weight = value if isinstance(value, tuple | list) else (value, 1.0)
            return float(score), float(weight)
        except (TypeError, ValueError, KeyError):
            return None


def scoring(task: Any, name: str, wanted: str | None, shots: int, produced: Sequence[str] | None) -> Scoring:
    """How a task of lm-eval is scored: by the metric wanted, or else by its own first.

    produced: the metrics that its items turned out to have; None where that is not known before the run.
    Raises BadInput for a metric that it does not have, naming those it has.
    """
    aggregations: dict[str, Callable[[Sequence[Any]], Any]] = dict(task.aggregation())
    listed = [metric for metric in aggregations if produced is None or metric in produced]
    known = [metric for metric in dict.fromkeys([*listed, *(produced or ())]) if metric != "bypass"]
    if not known:
        raise BadInput(f"evaluation task {name!r} has no metric that can be read: choose another task")
    if wanted is not None and wanted not in known:
        raise BadInput(
            f"models.<name>.tasks asks for the metric {wanted!r} of task {name!r}, which has {', '.join(known)}: "
            "choose one of them"
        )
    metric = wanted or known[0]
    digest = config_digest(task)
    own = task.aggregation()
    for known_metric, aggregate in aggregations.items():
        own[known_metric] = _guarded(name, known_metric, aggregate)
    return Scoring(
        metric=metric,
        filter=task._filters[0].name,
        way=_way(aggregations.get(metric)),
        higher_is_better=bool(task.higher_is_better().get(metric, True)),
        shots=shots,
        config=digest,
        aggregations=aggregations,
    )


def _way(aggregate: Callable[[Sequence[Any]], Any] | None) -> str:
    from lm_eval.api import metrics

    known = {
        metrics.mean: MEAN,
        metrics.brier_score: MEAN,
        metrics.perplexity: "perplexity",
        metrics.weighted_perplexity: "weighted_perplexity",
        metrics.bits_per_byte: "bits_per_byte",
    }
    return MEAN if aggregate is None else known.get(aggregate, TOGETHER)  # without one lm-eval takes the mean


def _guarded(task: str, metric: str, aggregate: Callable[[Sequence[Any]], Any]) -> Callable[[Sequence[Any]], Any]:
    """An aggregation that gives NaN, and says why, instead of ending a run of hours with a traceback."""

    def guarded(items: Sequence[Any]) -> Any:
        try:
            return aggregate(items)
        except (ArithmeticError, TypeError, ValueError) as error:
            notice("evaluate", f"metric {metric} of task {task} has no value: {first_line(error)}")
            return math.nan

    return guarded


def number(value: Any) -> float | None:
    """A value as JSON holds it: None where it is none, or beyond what a number can hold."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def standard_error(aggregate: Callable[[Sequence[Any]], Any] | None, items: Sequence[Any], seed: int) -> float | None:
    """Of an aggregate over N items: by its formula where it has one, else by bootstrap. None where it has none."""
    from lm_eval.api import metrics

    if len(items) < 2:
        return None
    formulas = {metrics.mean: metrics.mean_stderr, metrics.acc_all: metrics.acc_all_stderr}
    try:
        if aggregate is None or aggregate in formulas:
            return number(formulas[aggregate or metrics.mean](items))
        if aggregate is metrics.brier_score:
            return number(metrics.mean_stderr([float(aggregate([item])) for item in items]))
        drawn_SN = np.random.default_rng(seed).integers(0, len(items), (_DRAWS, len(items)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of draws with one class only
            return number(np.std([float(aggregate([items[at] for at in draw_N])) for draw_N in drawn_SN], ddof=1))
    except (ArithmeticError, TypeError, ValueError):
        return None


def config_digest(task: Any) -> str:
    """SHA-256 of how a task file asks and scores, of the modules its functions lie in and of those of the user's own
    that they import; not of where its data lie."""
    content = {key: value for key, value in vars(task.config).items() if key not in _NOT_HOW}
    metadata = content.get("metadata")
    if isinstance(metadata, dict):
        content["metadata"] = {key: value for key, value in metadata.items() if key != "config_source"}
    content["class"] = type(task)
    return json_digest(_plain(content))[:16]


def _plain(value: Any) -> Any:
    """A value of a task file as JSON: functions by name and by the content of their module and its imports."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if callable(value):
        named = inspect.isroutine(value) or inspect.isclass(value)
        source = inspect.getsourcefile(inspect.unwrap(value)) if named and not inspect.isbuiltin(value) else None
        digest = _code_digest(Path(source)) if source and Path(source).is_file() else None
        return [getattr(value, "__name__", type(value).__name__), digest]
    return _plain(vars(value)) if hasattr(value, "__dict__") else type(value).__name__


def _code_digest(source: Path) -> str:
    """SHA-256 of a module and of what it imports, at first or second hand, that is not part of an installed package."""
    found, ahead = {source.resolve()}, [source.resolve()]
    while ahead:
        new = {path for path in _imported(ahead.pop()) if not _installed(path)} - found
        found |= new
        ahead += new
    contents = [source.read_bytes(), *sorted(path.read_bytes() for path in found - {source.resolve()})]
    return hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()


def _installed(path: Path) -> bool:
    """Whether a file came with Python or with a package: their versions are no part of a task.

    Packages of another environment that this one sees (--user, the system's, a .pth) are packages, too.
    """
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    return any(path.is_relative_to(Path(sysconfig.get_path(name)).resolve()) for name in _PLACES)


def _imported(source: Path) -> Iterator[Path]:
    """The files that a module imports anywhere in it: as Python finds them, or beside it."""
    if source.suffix != ".py" or _installed(source):
        return
    try:
        tree = ast.parse(source.read_bytes())
    except (SyntaxError, ValueError):
        return  # who imports it is told so by Python
    for node in ast.walk(tree):
        names: list[str] = []
        beside = source.parent
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            beside = source.parents[min(max(node.level, 1), len(source.parents)) - 1]
            stem = f"{node.module}." if node.module else ""
            names = [stem + alias.name for alias in node.names] + ([node.module] if node.module else [])
        relative = isinstance(node, ast.ImportFrom) and node.level > 0
        for name in names:
            parts = name.split(".")
            for length in range(1, len(parts) + 1):
                module = None if relative else _module_file(".".join(parts[:length]))
                place = beside.joinpath(*parts[:length])
                for path in (module, place.with_suffix(".py"), place / "__init__.py"):
                    if path is not None and path.is_file():
                        yield path.resolve()


def _module_file(name: str) -> Path | None:
    loaded = sys.modules.get(name)
    if loaded is None and "." in name:
        return None  # to find it would run its package
    try:
        spec = importlib.util.find_spec(name) if loaded is None else loaded.__spec__
        origin = getattr(loaded, "__file__", None) or (spec.origin if spec is not None else None)
    except (ImportError, ValueError, AttributeError):
        return None
    return Path(origin) if isinstance(origin, str) and origin.endswith(".py") else None

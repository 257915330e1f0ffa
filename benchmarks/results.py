"""Measured tables in docs/results/*.md: each benchmark writes its own section, with date, versions and machine."""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from scipy.stats import bootstrap
from scipy.stats import t as student

DRAWS = 10_000  # of a bootstrap
FOLDER = Path(__file__).parents[1] / "docs" / "results"


def measured_on(threads: int, *packages: str) -> str:
    """One line that says when, with what and on what a table was measured; `packages` beyond torch, transformers."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", *packages))
    return (
        f"Measured on {datetime.now(UTC):%Y-%m-%d} with {versions} and Python {platform.python_version()}, on {cores} "
        f"CPU cores, using {threads} thread{'s' if threads != 1 else ''}."
    )


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def missing_text(cells: Iterable[tuple[str, int]]) -> str:
    """One line that names what is not measured yet, as the tables call it: (title, seed) of each cell."""
    seeds: dict[str, list[str]] = {}
    for title, seed in cells:
        seeds.setdefault(title, []).append(str(seed))
    named = (f"{title} (seed{'s' * (len(of) > 1)} {', '.join(of)})" for title, of in seeds.items())
    return f"Not measured yet: {'; '.join(named)}."


def measured_with(*packages: str) -> dict[str, Any]:
    """The day and the versions that a cell of a study is measured with; local labels of versions do not count."""
    numbers = {package: version(package).partition("+")[0] for package in packages}
    return {"dates": [f"{datetime.now(UTC):%Y-%m-%d}"], "versions": numbers}


def verdict(value: float, goal: float, *, at_least: bool = True) -> str:
    """`met` or `missed`, with the goal."""
    met = value >= goal if at_least else value <= goal
    return f"{'met' if met else 'missed'} ({'>=' if at_least else '<='} {goal:g})"


def interval(values: Sequence[float]) -> str:
    """Mean and Student's 95 % interval over seeds, in percent."""
    if len(values) < 2:
        return f"{100 * values[0]:.1f}"
    return f"{100 * mean(values):.1f} ± {100 * half_width(values):.1f}"


def half_width(values: Sequence[float]) -> float:
    """Of Student's 95 % interval of the mean of two values or more."""
    return float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def share_won_back(row: dict, wanda: dict, dense: dict) -> tuple[float, float, float]:
    """(L - L_wanda) / (L_dense - L_wanda) of the log-likelihoods, with the ends of its 95 % interval over texts."""

    def share(ours: np.ndarray, base: np.ndarray, whole: np.ndarray, axis: int = -1) -> np.ndarray:
        return (ours - base).sum(axis) / (whole - base).sum(axis)

    return _with_interval(share, *(np.array(each["log_likelihood"]) for each in (row, wanda, dense)))


def gain_per_token(row: dict, other: dict) -> tuple[float, float, float]:
    """Nats per token that `row` is ahead of `other`, with the ends of its 95 % interval over texts."""

    def gain(ours: np.ndarray, theirs: np.ndarray, tokens: np.ndarray, axis: int = -1) -> np.ndarray:
        return (ours - theirs).sum(axis) / tokens.sum(axis)

    data = (row["log_likelihood"], other["log_likelihood"], row["tokens"])
    return _with_interval(gain, *(np.array(each, dtype=float) for each in data))


def _with_interval(statistic: Any, *data: np.ndarray) -> tuple[float, float, float]:
    drawn = bootstrap(data, statistic, paired=True, vectorized=True, n_resamples=DRAWS, batch=500,
                      method="percentile", random_state=np.random.default_rng(42))  # fmt: skip
    low, high = drawn.confidence_interval
    return float(statistic(*data)), float(low), float(high)


def write_section(path: Path, name: str, title: str, body: str) -> None:
    """Put a section into a results page in the place of its last version, or at the end."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    section = f"{begin}\n## {title}\n\n{body.strip()}\n{end}\n"
    text = path.read_text(encoding="utf-8") if path.is_file() else f"# {path.stem.capitalize()}: measured\n\n"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end) + "\n", re.DOTALL)
    text = pattern.sub(lambda _: section, text) if pattern.search(text) else f"{text.rstrip()}\n\n{section}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


class Results:
    """A section's lines, on the screen as they are found and in docs/results/<page>.md at the end."""

    def __init__(self, page: str, title: str, command: str) -> None:
        self._page, self._title, self._command = page, title, command
        self._lines: list[str] = []

    def say(self, line: str = "") -> None:
        """Print a line now and keep it for the page."""
        print(line, flush=True)
        self._lines.append(line)

    def write(self, threads: int, *packages: str) -> None:
        """Write the section into its page."""
        written = f"Written by `{self._command}`. {measured_on(threads, *packages)}"
        name = self._title.lower().replace(" ", "-")
        write_section(FOLDER / f"{self._page}.md", name, self._title, "\n".join([written, "", *self._lines]))

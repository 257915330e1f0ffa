"""Measured tables in docs/results/*.md: each benchmark writes its own section, with date, versions and machine."""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev

# Student's t at 97.5 % by degrees of freedom, for intervals over a few seeds.
_T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
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
    return _T[min(len(values) - 1, 9)] * stdev(values) / math.sqrt(len(values))


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

"""A measurement's lines, on the screen and as docs/results/<name>.md with date, versions and machine."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "docs" / "results"


class Results:
    """Collects lines; `write` puts them into the Markdown page that the command names."""

    def __init__(self, title: str, command: str) -> None:
        self._head = [f"# {title}", "", f"Written by `{command}`.", ""]
        self._lines: list[str] = []

    def say(self, line: str = "") -> None:
        """Print a line now and keep it for the page."""
        print(line, flush=True)
        self._lines.append(line)

    def table(self, header: list[str], rows: list[list[str]]) -> None:
        """A Markdown table."""
        for cells in (header, ["---"] * len(header), *rows):
            self.say("| " + " | ".join(cells) + " |")
        self.say()

    def write(self, name: str) -> None:
        """Overwrite docs/results/<name>.md."""
        versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "pyarrow"))
        machine = f"{os.cpu_count()} CPU cores, {platform.machine()}, Python {platform.python_version()}, {versions}"
        FOLDER.mkdir(parents=True, exist_ok=True)
        date = datetime.now(UTC).strftime("%Y-%m-%d")
        text = "\n".join([*self._head, f"{date}; {machine}.", "", *self._lines]).rstrip() + "\n"
        (FOLDER / f"{name}.md").write_text(text, encoding="utf-8")


def verdict(value: float, goal: float, *, at_least: bool = True) -> str:
    """`met` or `missed`, with the goal."""
    met = value >= goal if at_least else value <= goal
    return f"{'met' if met else 'missed'} ({'>=' if at_least else '<='} {goal:g})"

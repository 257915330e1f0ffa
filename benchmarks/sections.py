"""Measured tables in docs/results/*.md: each benchmark writes its own section, with date, versions and machine."""

from __future__ import annotations

import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers


def measured_on(threads: int) -> str:
    """One line that says when, with what and on what a table was measured."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"Measured on {datetime.now(UTC):%Y-%m-%d} with torch {torch.__version__}, transformers "
        f"{transformers.__version__} and Python {platform.python_version()}, on {cores} CPU cores, using {threads} "
        f"thread{'s' if threads != 1 else ''}."
    )


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def write_section(path: Path, name: str, title: str, body: str) -> None:
    """Put a section into a results page in the place of its last version, or at the end."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    section = f"{begin}\n## {title}\n\n{body.strip()}\n{end}\n"
    text = path.read_text(encoding="utf-8") if path.is_file() else f"# {path.stem.capitalize()}: measured\n\n"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end) + "\n", re.DOTALL)
    text = pattern.sub(lambda _: section, text) if pattern.search(text) else f"{text.rstrip()}\n\n{section}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")

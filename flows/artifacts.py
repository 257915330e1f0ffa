"""The artifacts of a flow run in Prefect's UI: progress, result table, state of every stage, link to the report."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from restorelcc.base.layout import Layout


@dataclass(frozen=True)
class StageResult:
    """One row of the stage table."""

    stage: str
    outcome: str
    seconds: float
    message: str = ""


class Progress:
    """A bar over the flow's stages."""

    def __init__(self, total: int) -> None:
        self._total = max(total, 1)
        self._done = 0
        created = create_progress_artifact(0.0, key="progress", description=f"0 of {total} stages")
        assert isinstance(created, UUID)
        self._id = created

    def advance(self) -> None:
        """One stage more is done."""
        self._done += 1
        update_progress_artifact(
            self._id, 100 * self._done / self._total, description=f"{self._done} of {self._total} stages"
        )


def publish_stages(results: list[StageResult]) -> None:
    """The stage table: what ran, was restored or is unchanged, and how long it took."""
    rows = [
        {
            "stage": result.stage,
            "outcome": result.outcome,
            "seconds": round(result.seconds, 1),
            "message": result.message,
        }
        for result in results
    ]
    create_table_artifact(rows, key="stages", description=summary(results))


def publish_report(root: Path) -> None:
    """The result table and a link to the report's files."""
    folder = Layout(root).report
    table = folder / "report.md"
    if table.is_file():
        create_markdown_artifact(table.read_text(encoding="utf-8"), key="results", description="Result table")
    page = folder / "report.html"
    link = page if page.is_file() else table
    if link.is_file():
        create_link_artifact(link.resolve().as_uri(), link_text=str(link), key="report", description="The report")


def summary(results: list[StageResult]) -> str:
    """ "12 Ran, 3 Unchanged"."""
    counts = Counter(result.outcome for result in results)
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items())

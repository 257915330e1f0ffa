"""The whole grid as a page, Markdown, JSON, figures and a table on the terminal.

Here: the `report` section of params.yaml.
"""

from __future__ import annotations

from pydantic import Field

from restorelcc.base.section import Name, Section


class ReportConfig(Section):
    """What the report shows."""

    title: Name = "RestoreLCC results"
    decimals: int = Field(default=1, ge=0, le=6)  # of accuracies and shares, in percent

"""Text from elsewhere, made harmless for what shows it: one function for HTML, Markdown, YAML and the terminal each.

Names of tasks, models, tensors and licences come from files. Whoever writes one of these formats passes every such text
through the function of the format.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from restorelcc.base.errors import one_line

# Marks that mean something in Markdown: brackets where a link or an image begins or ends, underscores at the edge of a
# word, the others wherever they stand.
_MARKS = re.compile(r"[\\`*<>|&~$]|!(?=\[)|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])")
_LINE_START = re.compile(r"^(\s*)(?:(\d+)(?=[.)]\s)|(?=#{1,6}\s|[+-]\s|--|=|:\s))")
_ADDRESS = re.compile(r"(https?|ftp)(:)(//)|(www)(\.)|(@)", re.IGNORECASE)
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def for_html(text: object) -> str:
    """Text for the content or a quoted attribute of an HTML element."""
    return html.escape(one_line(text), quote=True)


def for_markdown(text: object) -> str:
    """Text for a paragraph or a title in Markdown: no markup, HTML, image, link, list, or end of a line."""
    return _LINE_START.sub(lambda found: f"{found[1]}{found[2] or ''}\\", cell_for_markdown(text))


def cell_for_markdown(text: object) -> str:
    """`for_markdown` for text within a line, as a cell of a table: a dash at its beginning makes no list there."""
    plain = _MARKS.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), one_line(text))
    return _ADDRESS.sub(lambda found: re.sub(r"[:.@]", lambda mark: f"&#{ord(mark[0])};", found[0]), plain)


def code_for_markdown(text: object) -> str:
    """Text as inline code in Markdown, whatever it holds."""
    return f"`{one_line(text).replace('`', chr(0x2019)).replace('|', chr(0x2223))}`"


def markdown_table(rows: Iterable[Mapping[str, object]]) -> list[str]:
    """Lines of a Markdown table of rows that have the same columns, every cell escaped; no lines without rows."""
    listed = list(rows)
    if not listed:
        return []
    cells: list[list[object]] = [list(listed[0]), *(list(row.values()) for row in listed)]
    lines = ["| " + " | ".join(map(cell_for_markdown, row)) + " |" for row in cells]
    return [lines[0], "|" + "---|" * len(listed[0]), *lines[1:], ""]


def for_yaml(fields: Mapping[str, Any]) -> str:
    """A YAML front matter, between its two lines of dashes: every text is one scalar and nothing ends it early."""
    return f"---\n{yaml.safe_dump(_one_lined(fields), sort_keys=False, width=10**6)}---"


def _one_lined(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {one_line(key): _one_lined(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_one_lined(each) for each in value]
    return one_line(value) if isinstance(value, str) else value


def for_terminal(text: object) -> Text:
    """Text as rich shows it: no markup of its own (`[/red]`), no control codes; lines stay lines."""
    return Text("\n".join(map(one_line, str(text).split("\n"))))


def say(console: Console, text: object) -> None:
    """Print text on a terminal as it is, one paragraph to a line."""
    console.print(for_terminal(text), highlight=False, soft_wrap=True)


class PlainTable(Table):
    """A table for the terminal, in the project's one style: a line below the titles, no frame, nothing is cut.

    Its title, columns and cells are text alone: nothing in them is markup. `show` prints it, with the title as a line
    of its own, which may be wider than the table.
    """

    def __init__(self, title: str | None = None) -> None:
        super().__init__(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        self.heading = title

    def add_column(self, header: Any = "", *rest: Any, **options: Any) -> None:
        super().add_column(for_terminal(header), *rest, **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*map(for_terminal, cells), **options)

    def show(self, console: Console, drop: Iterable[str] = (), elsewhere: str = "") -> list[str]:
        """Print it. Where a terminal is too narrow, the columns of `drop` go, in their order, until the rest fits.
        elsewhere: where all of them are, which a line below says with their titles.

        A file or a pipe gets all columns, as wide as they are. Returns the titles that were left out.
        """
        left_out = []
        for title in drop if console.is_terminal else ():
            if self.fits(console):
                break
            for position, column in enumerate(self.columns):
                if str(column.header) == title:
                    del self.columns[position]
                    left_out.append(title)
            for position, column in enumerate(self.columns):  # by which rich finds the edges of the table
                column._index = position
        if self.heading is not None:
            say(console, self.heading)
        before = console.width
        if not console.is_terminal:
            console.width = self._width(console)
        console.print(self)
        console.width = before
        if left_out and elsewhere:
            say(console, f"Not shown at this width: {', '.join(left_out)}; {elsewhere} has them.")
        return left_out

    def fits(self, console: Console) -> bool:
        """Whether no line of it wraps on this terminal; in a file nothing does."""
        return not console.is_terminal or self._width(console) <= console.width

    def _width(self, console: Console) -> int:
        """Of the widest line, when nothing wraps."""
        return Measurement.get(console, console.options.update(max_width=10_000), self).maximum


def show_in_parts(console: Console, rows: list[dict[str, str]]) -> None:
    """Print a table of rows that may have many columns: below one another as many as fit, the first in each."""
    first, *titles = rows[0]
    while titles:
        count = len(titles)
        while (
            count > 1
            and console.is_terminal
            and _table_of(rows, [first, *titles[:count]])._width(console) > console.width
        ):
            count -= 1
        _table_of(rows, [first, *titles[:count]]).show(console)
        console.print()
        titles = titles[count:]


def table_of_rows(rows: list[dict[str, str]], title: str | None = None) -> PlainTable:
    """A table of rows that have the same columns, title to text: the first to the left, numbers to the right."""
    return _table_of(rows, list(rows[0]), title)


def _table_of(rows: list[dict[str, str]], titles: list[str], title: str | None = None) -> PlainTable:
    table = PlainTable(title=title)
    for position, name in enumerate(titles):
        table.add_column(name, justify="right" if position else "left", no_wrap=not position)
    for row in rows:
        table.add_row(*(row[name] for name in titles))
    return table

"""Text from elsewhere in HTML, Markdown, YAML and on the terminal."""

from __future__ import annotations

import html
import io
import re

import pytest
import yaml
from rich.console import Console

from restorelcc.base.errors import one_line
from restorelcc.base.escaping import (
    PlainTable,
    code_for_markdown,
    for_html,
    for_markdown,
    for_yaml,
    markdown_table,
    say,
    show_in_parts,
    table_of_rows,
)

NASTY = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "![x](http://tracker.example/p.png)",
    "[x](javascript:alert(1))",
    "http://tracker.example",
    "a|b|c",
    "a\n---\nlicense: evil",
    "# title",
    "1. list",
    "- list",
    "`code`",
    "**bold** _it_ ~~no~~ $x$",
    "&lt;",
    "\\|",
    "\x1b[31mred\x1b[0m",
    "a\rb",
    "a\u2028b\u202ec",
    "[/red]",
    "[bold red]x[/]",
    "'''\"\"\"{{7*7}}",
)


@pytest.mark.parametrize("text", NASTY)
def test_nothing_of_a_text_is_markup(text: str) -> None:
    escaped = for_html(text)
    assert not set("<>\"'") & set(escaped) and html.unescape(escaped) == one_line(text)

    written = for_markdown(text)
    assert "\n" not in written and "<" not in written and ">" not in written
    assert not re.search(r"(?<!\\)[|`*~$]|(?<!\\)\]\(|(?<!\\)!\[|https?://|^#|^- |^\d+\. ", written)

    found = yaml.safe_load(for_yaml({"license": text, "tags": [text]}).removeprefix("---\n").removesuffix("---"))
    assert found == {"license": one_line(text), "tags": [one_line(text)]}
    assert for_yaml({"license": text}).count("\n---") == 1

    table = markdown_table([{"task": text, text: "1"}])
    assert len(table) == 4 and all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in table[:3])

    screen = io.StringIO()
    console = Console(file=screen, width=500, force_terminal=True)
    shown = PlainTable(title=text)
    shown.add_column(text)
    shown.add_row(text)
    shown.show(console)
    say(console, text)
    plain = screen.getvalue()
    assert one_line(text.split("\n")[0]).strip() in plain and "\x1b[31m" not in plain and "\r" not in plain


def test_ordinary_names_stay_as_they_are() -> None:
    for text in ("arc_easy", "wanda-0.5", "heads 0.25", "[12.0, 34.5]", "95 % interval", "a (b), c: d", "-1.5", "-"):
        assert for_markdown(text) == text
    assert code_for_markdown("data/metrics/a/b.json") == "`data/metrics/a/b.json`"
    assert "`" not in code_for_markdown("a`b")[1:-1]


ROWS = [
    {"": "dense", "mean %": "99.2", "95 % interval": "-", "params +": "0"},
    {"": "heads 0.25", "mean %": "94.1", "95 % interval": "[83.6, 88.9]", "params +": "256"},
]


def shown(width: int, *, terminal: bool, drop: tuple[str, ...] = ()) -> tuple[list[str], list[str]]:
    screen = io.StringIO()
    console = Console(file=screen, width=width, force_terminal=terminal, no_color=True)
    left_out = table_of_rows(ROWS, "a title").show(console, drop)
    return re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()).splitlines(), left_out


def test_a_narrow_terminal_loses_columns_by_priority_and_never_a_digit() -> None:
    lines, left_out = shown(36, terminal=True, drop=("params +", "95 % interval"))
    assert left_out == ["params +"]
    assert max(map(len, lines)) <= 36
    assert lines[-1].split() == ["heads", "0.25", "94.1", "[83.6,", "88.9]"]
    lines, left_out = shown(20, terminal=True, drop=("params +", "95 % interval"))
    assert left_out == ["params +", "95 % interval"]
    assert lines[-1].split() == ["heads", "0.25", "94.1"]
    assert shown(80, terminal=True, drop=("params +",))[1] == []


def test_a_file_gets_every_column_on_one_line() -> None:
    lines, left_out = shown(20, terminal=False, drop=("params +", "95 % interval"))
    assert not left_out
    assert lines[-1].split() == ["heads", "0.25", "94.1", "[83.6,", "88.9]", "256"]


def test_a_title_that_is_wider_than_its_table_stays_one_line() -> None:
    for terminal in (True, False):
        screen = io.StringIO()
        console = Console(file=screen, width=60, force_terminal=terminal, no_color=True)
        title = "a model (with its source): 134.5 M parameters, 30 layers"
        table_of_rows(ROWS, title).show(console)
        lines = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()).splitlines()
        assert (lines[0], len(lines)) == (title, 5)


def test_many_columns_are_shown_below_one_another() -> None:
    screen = io.StringIO()
    show_in_parts(Console(file=screen, width=26, force_terminal=True, no_color=True), ROWS)
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in screen.getvalue().splitlines()]
    assert max(map(len, lines)) <= 26
    assert [line for line in lines if line.startswith("heads 0.25")] == [
        line for line in lines if "94.1" in line or "88.9" in line or "256" in line
    ]
    assert all(any(title in line for line in lines) for title in ROWS[0])


def test_a_column_that_is_dropped_leaves_room_for_the_others() -> None:
    table = PlainTable()
    for title in ("stage", "runs", "disk", "time"):
        table.add_column(title, justify="right")
    for row in (("evaluate", "10", "1,000 KiB", "39 s"), ("all", "100", "11.4 MiB", "2.3 min")):
        table.add_row(*row)
    console = Console(file=io.StringIO(), width=30, force_terminal=True)
    assert table.show(console, ("runs", "disk"), "--json") == ["runs"]
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1,000 KiB     39 s" in written
    assert written.splitlines()[4:] == ["Not shown at this width: runs; --json has them."]
    wide = Console(file=io.StringIO(), width=30)
    assert table.show(wide, ("disk",), "--json") == [] and "Not shown" not in wide.file.getvalue()  # type: ignore[attr-defined]

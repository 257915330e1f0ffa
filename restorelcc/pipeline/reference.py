"""params.yaml described for editors and readers: a JSON schema and a page, both from the classes of the sections.

What a key means is the comment beside its field.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import tokenize
from typing import Any

from pydantic import BaseModel

from restorelcc.base.escaping import cell_for_markdown, code_for_markdown
from restorelcc.pipeline.params import Params

_INTRODUCTION = """\
# params.yaml, key by key

`params.yaml` has one section per stage, the catalogue `models`, and the `grid`. Every key is optional in a section: the
default is in this table. `models.<name>.settings` overrides any of them for one model. A wrong key, or a value outside
of its range, is refused before anything runs. `docs/params.schema.json` is the same as a JSON schema, which editors
complete and check by: the first line of the shipped `params.yaml` names it.

This page is written by `python -m benchmarks.params_page`, from the code; a test compares the two.
"""


def field_notes(section: type[BaseModel]) -> dict[str, str]:
    """The comment beside every field of a class, its parents' fields included: what the key means."""
    notes: dict[str, str] = {}
    for parent in reversed(section.__mro__):
        if issubclass(parent, BaseModel) and parent.__module__.startswith("restorelcc."):
            notes |= _own_notes(inspect.getsource(parent))
    return {name: notes[name] for name in section.model_fields if name in notes}


def _own_notes(source: str) -> dict[str, str]:
    """Of one class, field to comment, by the lines of its source."""
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    above = {line for line in comments if not source.splitlines()[line - 1].partition("#")[0].strip()}
    fields = [node for node in ast.parse(source).body[0].body if isinstance(node, ast.AnnAssign)]  # type: ignore[attr-defined]
    notes = {}
    for field in fields:
        first = field.lineno
        while first - 1 in above:  # lines of comment above a field, where none stands beside it
            first -= 1
        beside = [line for line in range(field.lineno, (field.end_lineno or field.lineno) + 1) if line in comments]
        lines = beside or range(first, field.lineno)
        if isinstance(field.target, ast.Name) and (found := [comments[line] for line in lines]):
            notes[field.target.id] = " ".join(found)
    return notes


def schema() -> dict[str, Any]:
    """The JSON schema of params.yaml, every key with its description."""
    content = Params.model_json_schema()
    classes = {each.__name__: each for each in _sections(Params)}
    for name, definition in [("Params", content), *content.get("$defs", {}).items()]:
        notes = field_notes(classes[name]) if name in classes else {}
        for key, described in definition.get("properties", {}).items():
            described.pop("title", None)
            if key in notes:
                described["description"] = notes[key]
    return (
        {"$schema": "https://json-schema.org/draft/2020-12/schema"} | content | {"title": "params.yaml of restorelcc"}
    )


def schema_text() -> str:
    """`schema` as the text of a file."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def page() -> str:
    """docs/params.md."""
    parts = [_INTRODUCTION]
    for name, field in Params.model_fields.items():
        section = field.annotation
        if name == "models":
            from restorelcc.base.model_entry import ModelEntry

            parts.append(_part("models.<name>", ModelEntry))
        elif isinstance(section, type) and issubclass(section, BaseModel):
            parts.append(_part(name, section))
    return "\n".join(parts)


def _part(title: str, section: type[BaseModel]) -> str:
    summary = (inspect.getdoc(section) or "").split("\n\n")[0].replace("\n", " ")
    rows = ["| key | default | meaning |", "|---|---|---|", *_rows("", section)]
    return "\n".join([f"## {title}", "", summary, "", *rows, ""])


def _rows(prefix: str, section: type[BaseModel]) -> list[str]:
    notes, rows = field_notes(section), []
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            rows += _rows(f"{prefix}{name}.", inner)
            continue
        default = (
            "required"
            if field.is_required()
            else code_for_markdown(_yaml(field.get_default(call_default_factory=True)))
        )
        rows.append(f"| `{prefix}{name}` | {default} | {cell_for_markdown(notes.get(name, ''))} |")
    return rows


def _yaml(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False) if not isinstance(value, float) else f"{value:g}"


def _sections(section: type[BaseModel]) -> list[type[BaseModel]]:
    """A class and all classes that its fields name."""
    found: list[type[BaseModel]] = []
    todo = [section]
    while todo:
        each = todo.pop()
        if each in found:
            continue
        found.append(each)
        for field in each.model_fields.values():
            todo += _named(field.annotation)
    return found


def _named(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    inner = getattr(annotation, "__args__", ())
    return [each for part in inner for each in _named(part)]

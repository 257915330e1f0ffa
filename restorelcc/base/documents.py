"""JSON and YAML, opened here and nowhere else: what is not exactly one document of the format is a sentence.

JSON is written so that equal content gives equal bytes; documents of metrics have a schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from restorelcc.base.cell import AUTO, Cell
from restorelcc.base.errors import BadInput, first_line

# What PyYAML raises for scalars that are not what their tag says (`!!int ""`, 2026-99-99) and for very deep nesting.
_YAML_FAULTS = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, OverflowError, RecursionError)
_JSON_FAULTS = (ValueError, RecursionError)  # JSONDecodeError and UnicodeDecodeError are ValueErrors


class UniqueKeys:
    """A mixin for PyYAML's loaders: a key that stands twice in one mapping is an error that names both lines.

    PyYAML itself takes the last one. Keys count as equal as in the dictionary that comes of them; what `<<` merges in
    may be given again.
    """

    def get_single_node(self) -> yaml.Node | None:
        root = super().get_single_node()  # type: ignore[misc]
        for mapping in _mappings(root):
            self._check_keys(mapping)
        return root

    def _check_keys(self, mapping: yaml.MappingNode) -> None:
        seen: dict[Any, yaml.Node] = {}
        for key, _ in mapping.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            value = self.construct_object(key)  # type: ignore[attr-defined]
            if value in seen:
                first, second = (node.start_mark.line + 1 for node in (seen[value], key))
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice, in line {first} and in line {second}: remove one"
                )
            seen[value] = key


def _mappings(root: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    """Every mapping of a tree of nodes, once, whatever its aliases."""
    todo, seen = [root], set()
    while todo:
        node = todo.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield node
            todo += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            todo += node.value


class StrictLoader(UniqueKeys, yaml.SafeLoader):
    """PyYAML's safe loader that refuses a key given twice."""


def read_text(path: Path) -> str:
    """A file as UTF-8 text. Raises BadInput when it is missing, cannot be read or is not UTF-8."""
    if not path.is_file():
        raise BadInput(f"{path} is {'a folder, not a file' if path.is_dir() else 'missing'}: give the file itself")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}): check its permissions and the disk") from error


def parse_yaml(text: str | bytes, what: str, loader: Any = StrictLoader) -> Any:
    """The one document in the text. Raises BadInput, which begins with `what`.

    loader: a subclass of `UniqueKeys` and one of PyYAML's safe loaders.
    """
    try:
        return yaml.load(text, Loader=loader)
    except _YAML_FAULTS as error:
        why = " ".join(str(error).split()) if isinstance(error, yaml.YAMLError) else _why(error)
        raise BadInput(f"{what} is not valid YAML: {why}") from error


def read_yaml(path: Path, loader: Any = StrictLoader) -> Any:
    """The document in a file. Raises BadInput for a file that is missing, is not UTF-8 or not YAML; as `parse_yaml`."""
    return parse_yaml(read_text(path), str(path), loader)


def _why(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else first_line(error)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Indented, keys in the order given, never NaN (which is not JSON)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json_text(content), encoding="utf-8")


def json_text(content: dict[str, Any]) -> str:
    """What `write_json` writes."""
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """Raises BadInput when the file is missing or not JSON."""
    if not path.is_file():
        raise BadInput(f"{path} is missing: run the stage that writes it (dvc repro)")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise BadInput(f"{path} is not valid JSON ({error}): delete it and run dvc repro") from error


# 1 had no items' digests, one perplexity and no generation check; 2 did not say how it was measured.
SCHEMA = 3
_NEEDED = ("model", "pruning", "head_ratio", "measured", "tasks", "mean", "perplexity", "params_total", "sparsity")


def read_metrics(path: Path) -> dict[str, Any]:
    """A metrics document. Raises BadInput for one of another schema, or for a file that is none."""
    content = read_json(path)
    found = content.get("schema", 1) if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(found, int) or "tasks" not in content:
        raise BadInput(f"{path} holds no metrics: give a file that an evaluate stage wrote (data/metrics/...)")
    if found != SCHEMA:
        age = "an older" if found < SCHEMA else "a newer"
        raise BadInput(
            f"{path} was written by {age} version (metrics schema {found}, this one reads {SCHEMA}): "
            + ("it cannot be compared, run dvc repro to evaluate again" if found < SCHEMA else "update restorelcc")
        )
    if missing := [name for name in _NEEDED if name not in content]:
        raise BadInput(f"{path} has no {', '.join(missing)}: the file is damaged, delete it and run dvc repro")
    return content


def cell_of(metrics: dict[str, Any]) -> Cell:
    """The cell that a metrics document is of."""
    ratio = metrics["head_ratio"]
    label = None if ratio is None else AUTO if metrics.get("head_ratio_auto") else f"{ratio:g}"
    return Cell(metrics["model"], metrics["pruning"], label, metrics.get("recovery"))

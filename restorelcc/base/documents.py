"""JSON and YAML, opened here and nowhere else: what is not exactly one document of the format is a sentence.

JSON is written so that equal content gives equal bytes; documents of metrics have a schema.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from restorelcc.base.cell import AUTO, Cell
from restorelcc.base.errors import BadInput, first_line

# What PyYAML raises for scalars that are not what their tag says (`!!int ""`, 2026-99-99) and for very deep nesting.
_YAML_FAULTS = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, OverflowError, RecursionError)
FLOAT_TAG = "__float__"  # the one key of the object that stands for NaN or infinity in a config of transformers
SEAL = "sha256"  # the key under which a file carries the digest of its content
AGAIN = "delete it and run dvc repro, or fetch it again"
_KINDS = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false"}
_DIGITS = r"[0-9][0-9_]*"
_NUMBER = re.compile(
    rf"[-+]?(?:{_DIGITS}\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|0[ox][0-9a-fA-F_]+"
)  # of YAML 1.2
_JSON_FAULTS = (ValueError, RecursionError)  # JSONDecodeError and UnicodeDecodeError are ValueErrors


class Form(BaseModel):
    """Base class of what a document must hold, for `checked_form`. Types are exact; further keys may be there."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


class UniqueKeys:
    """A mixin for PyYAML's loaders: a key that appears twice in one mapping is an error that names both lines.

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
                    None, None, f"the key {key.value!r} appears twice, in line {first} and in line {second}: remove one"
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
        # Line ends become \n, as whenever a text file is read.
        return _bytes(path).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error


def parse_yaml(text: str | bytes, what: str, loader: Any = StrictLoader) -> Any:
    """The one document in the text. Raises BadInput, which begins with `what`.

    loader: a subclass of `UniqueKeys` and one of PyYAML's safe loaders.
    """
    try:
        reader = loader(text)
        try:
            return reader.get_single_data()
        finally:
            reader.dispose()
    except _YAML_FAULTS as error:
        why = " ".join(str(error).split()) if isinstance(error, yaml.YAMLError) else _why(error)
        raise BadInput(f"{what} is not valid YAML: {why}") from error


def read_yaml(path: Path, loader: Any = StrictLoader) -> Any:
    """The document in a file. Raises BadInput for a file that is missing, is not UTF-8 or not YAML; as `parse_yaml`."""
    return parse_yaml(read_text(path), str(path), loader)


def yaml_text(content: Any) -> str:
    """YAML that means the same to readers of version 1.1 (PyYAML) and 1.2 (DVC, params.yaml): text such as `12e4567`,
    which only one of them takes for a number, stands in quotes."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


class _Dumper(yaml.SafeDumper):
    """Quotes what is a number in version 1.2."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "'" if _NUMBER.fullmatch(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _why(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else first_line(error)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Indented, keys in the order given, never NaN (which is not JSON)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json_text(content), encoding="utf-8")


def json_text(content: dict[str, Any]) -> str:
    """What `write_json` writes."""
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def parse_json(text: str | bytes, what: str, kind: type = dict, *, tagged: bool = False) -> Any:
    """The one document in the text, whose top level is of this kind. Raises BadInput, which begins with `what`, for
    text that is not UTF-8 or not JSON, for a key given twice, and for NaN and infinity; tagged: these become
    {"__float__": "Infinity"}, as transformers writes them into a config, and reads them.
    """
    constant = (lambda name: {FLOAT_TAG: name}) if tagged else _not_json
    try:
        plain = text.decode("utf-8") if isinstance(text, bytes) else text
        found = json.loads(plain, object_pairs_hook=unique_keys, parse_constant=constant, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise BadInput(f"{what} is not UTF-8 text (byte {error.start}): write it again, as UTF-8") from error
    except _JSON_FAULTS as error:
        raise BadInput(
            f"{what} is not valid JSON ({_why(error)}): correct it, or delete it and run the command that wrote it"
        ) from error
    if not isinstance(found, kind):
        raise BadInput(f"{what} holds {_kind(found)}, where {_KINDS[kind]} is expected: give the right file")
    return found


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `object_pairs_hook`: the object. Raises ValueError for a key given twice, of which json keeps the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} appears twice")
    return found


def _not_json(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is beyond what a number can be")
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else _KINDS.get(type(value), f"the value {str(value)[:20]!r}")


def read_json(path: Path, *, tagged: bool = False) -> dict[str, Any]:
    """The object in a file. Raises BadInput when the file is missing, and as `parse_json`."""
    check_there(path)
    return parse_json(_bytes(path), str(path), tagged=tagged)


F = TypeVar("F", bound=Form)
_FORM_WORDS = {
    "missing": "is missing",
    "string_type": "is no text",
    "int_type": "is no whole number",
    "bool_type": "is neither true nor false",
    "list_type": "is no list",
    "string_pattern_mismatch": "is not written as it has to be",
    "literal_error": "is not what this version writes",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "is no object"),
}


def checked_form(content: Any, form: type[F], what: str, do: str) -> F:
    """The document as the form has it. Raises BadInput, `what` (key is so and so): `do`, for a key that is missing or
    of another type.
    """
    try:
        return form.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(f"{part!s:.40}" for part in first["loc"]) or "it"
        why = _FORM_WORDS.get(first["type"], first["msg"].removeprefix("Value error, "))
        raise BadInput(f"{what} ({key} {why[0].lower()}{why[1:]}): {do}") from error


def write_document(path: Path, content: dict[str, Any]) -> None:
    """`write_json` of one of our own documents, which carries its digest in the last key."""
    plain = {key: value for key, value in content.items() if key != SEAL}
    write_json(path, plain | {SEAL: _digest(plain)})


def read_document(path: Path) -> dict[str, Any]:
    """What `write_document` was given. Raises BadInput as `read_json`, and for a file that was changed since."""
    content = read_json(path)
    check_seal(path, content.pop(SEAL, None), _digest(content))
    return content


def check_seal(path: Path, recorded: Any, found: str) -> None:
    """Raises BadInput unless the digest that a file carries is that of its content."""
    if recorded is None:
        raise BadInput(
            f"{path} does not carry a digest of its content: it is damaged, or not what a stage of this version wrote; "
            "delete it and run dvc repro"
        )
    if recorded != found:
        raise BadInput(f"{path} was changed since it was written, or the disk has damaged it: {AGAIN}")


def _digest(content: dict[str, Any]) -> str:
    """SHA-256 of the content, whatever the order of its keys and the spaces between them."""
    plain = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()


def check_there(path: Path) -> None:
    """Raises BadInput unless there is such a file."""
    if not path.is_file():
        raise BadInput(f"{path} is missing: run the stage that writes it (dvc repro)")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}): check its permissions and the disk") from error


# 1 had no items' digests, one perplexity and no generation check; 2 did not say how it was measured; 3 held tests,
# which are details now.
SCHEMA = 4
_NEEDED = ("model", "pruning", "head_ratio", "measured", "tasks", "mean", "perplexity", "params_total", "sparsity")


def rounded(content: Any) -> Any:
    """A document whose fractions have nine figures: more than is known of any, and 0.9415, not 0.9414999999999999."""
    if isinstance(content, dict):
        return {key: rounded(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [rounded(value) for value in content]
    return float(f"{content:.9g}") if isinstance(content, float) else content


def read_metrics(path: Path) -> dict[str, Any]:
    """A metrics document. Raises BadInput for one of another schema, or for a file that is none."""
    content = read_json(path)
    found = content.get("schema", 1)
    if not isinstance(found, int) or "tasks" not in content:
        raise BadInput(f"{path} holds no metrics: give a file that an evaluate stage wrote (data/metrics/...)")
    if found != SCHEMA:
        age = "an older" if found < SCHEMA else "a newer"
        raise BadInput(
            f"{path} was written by {age} version (metrics schema {found}, this one reads {SCHEMA}): "
            + ("it cannot be compared, run dvc repro to evaluate again" if found < SCHEMA else "update restorelcc")
        )
    if missing := [name for name in _NEEDED if name not in content]:
        raise BadInput(f"{path} has no {', '.join(missing)}: the file is damaged, delete it and run dvc repro")
    check_seal(path, content.pop(SEAL, None), _digest(content))
    return content


def cell_of(metrics: dict[str, Any], path: Path) -> Cell:
    """The cell that a metrics document is of. Its head ratio is written as in the file's name where that is the same
    number, of whose figures the document has nine: DVC knows 1 and 1.0 as two names."""
    ratio = metrics["head_ratio"]
    label = None if ratio is None else AUTO if metrics.get("head_ratio_auto") else str(ratio)
    if label not in (None, AUTO) and rounded(_as_number(named := path.stem.removeprefix("heads-"))) == rounded(ratio):
        label = named
    return Cell(metrics["model"], metrics["pruning"], label, metrics.get("recovery"))


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None

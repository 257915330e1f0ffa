"""Old names, which are still read, with one warning for each: keys of params.yaml, options and verbs.

Keys are renamed in the file before DVC reads it: DVC itself fills in dvc.yaml from params.yaml and knows no aliases.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from restorelcc.base.errors import BadInput
from restorelcc.base.messages import chosen, say
from restorelcc.base.publish import replace_text

# The path of a key (* is any), its old name and the new one.
RENAMED: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("grid",), "baseline", "recovery"),
    ((), "baseline", "recover"),
    (("models", "*", "settings"), "baseline", "recover"),
)
_OPTIONS = {"--baseline": "--recovery"}  # of the command line
_said: set[str] = set()


def with_new_names(raw: dict[str, Any]) -> dict[str, Any]:
    """The content of a params.yaml under today's names, changed in place; a warning for every old one, once.

    Raises BadInput where both names of a key are there.
    """
    for path, old, new in RENAMED:
        for where, mapping in list(_at(raw, path)):
            if old not in mapping:
                continue
            before, now = ".".join((*where, old)), ".".join((*where, new))
            if new in mapping:
                raise BadInput(f"params.yaml has both {now} and {before}, its old name: remove {before}")
            mapping[new] = mapping.pop(old)
            say_renamed(before, now)
    return raw


def new_name(override: str) -> str:
    """`section.key=value` under today's name of the key."""
    key, sign, value = override.partition("=")
    parts = key.split(".")
    for path, old, new in RENAMED:
        place = len(path)
        fits = len(parts) > place and all(want in ("*", part) for want, part in zip(path, parts[:place], strict=True))
        if fits and parts[place] == old:
            parts[place] = new
            say_renamed(key, ".".join(parts))
            break
    return ".".join(parts) + sign + value


def new_option(argument: str) -> str:
    """An argument of a command line, `--option` or `--option=value`, under today's name of the option."""
    name, sign, value = argument.partition("=")
    if name not in _OPTIONS:
        return argument
    say_renamed(name, _OPTIONS[name])
    return _OPTIONS[name] + sign + value


def rename_in_file(path: Path) -> list[str]:
    """Give old keys of a params.yaml their new names, and leave every other byte as it is. Returns what was renamed."""
    try:
        text = path.read_bytes().decode("utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return []  # whoever reads the values says what is wrong
    found: list[tuple[int, int, str, str]] = []  # first and last character, new name, sentence
    for names, old, new in RENAMED:
        for where, mapping in _nodes(root, names):
            names_there = {key.value for key, _ in mapping.value}
            for key, _ in mapping.value:
                if key.value == old and new not in names_there:  # with both, `with_new_names` says so
                    sentence = f"{'.'.join((*where, old))} was renamed to {'.'.join((*where, new))}"
                    found.append((key.start_mark.index, key.end_mark.index, new, sentence))
    for start, end, new, _ in sorted(found, reverse=True):
        text = text[:start] + new + text[end:]
    if found:
        replace_text(path, text)
    return [sentence for *_, sentence in sorted(found)]


def _at(value: Any, path: tuple[str, ...], where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict]]:
    """(keys that lead there, mapping) of every mapping at a path."""
    if not isinstance(value, dict):
        return
    if not path:
        yield where, value
        return
    for key in list(value) if path[0] == "*" else [path[0]] if path[0] in value else []:
        yield from _at(value[key], path[1:], (*where, str(key)))


def _nodes(
    node: yaml.Node | None, path: tuple[str, ...], where: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], yaml.MappingNode]]:
    """The same for YAML's nodes, which know their place in the text."""
    if not isinstance(node, yaml.MappingNode):
        return
    if not path:
        yield where, node
        return
    for key, value in node.value:
        if path[0] in ("*", key.value):
            yield from _nodes(value, path[1:], (*where, str(key.value)))


def say_renamed(old: str, new: str) -> None:
    """The warning, on stderr; of the same old name once in a process."""
    if old not in _said:
        _said.add(old)
        sentence = f"{old} is now called {new}; the old name is read for now"
        say(sentence if chosen("json") else f"restorelcc: warning: {sentence}", "warning")

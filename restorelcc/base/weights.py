"""Which weights a folder has: those that `AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)` reads.

The rule is transformers' own (`modeling_utils._get_resolved_checkpoint_files`), repeated here because digests and hub
listings must not wait for torch; tests/base/test_weights.py asks both the same. Where other readers would take another
model from the same folder, it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restorelcc.base.documents import read_json
from restorelcc.base.errors import BadInput
from restorelcc.base.stock_files import PICKLES

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
ADAPTER = "adapter_config.json"
PACKED = "packed.json"  # of a checkpoint without its zeros (release/packed)
_NAMED_IN = "transformers_weights"  # a key of config.json, which goes before the usual names
_SUFFIX, _INDEX_SUFFIX = ".safetensors", ".safetensors.index.json"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


@dataclass(frozen=True)
class Weights:
    """Names of the files that hold a model's weights, sorted, and of the index that names them, where one does."""

    files: tuple[str, ...]
    index: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return self.files if self.index is None else (*self.files, self.index)


def weights_of(folder: Path) -> Weights:
    """The weights of a checkpoint folder. Raises BadInput as `chosen_weights`."""
    names = {path.name for path in folder.iterdir() if path.is_file()} if folder.is_dir() else set()
    return chosen_weights(str(folder), names, lambda name: read_json(folder / name, tagged=True))


def weight_files(folder: Path) -> list[Path]:
    """The files of `weights_of`."""
    return [folder / name for name in weights_of(folder).files]


def chosen_weights(where: str, names: Collection[str], read: Callable[[str], Any]) -> Weights:
    """The weights among the files of a folder or repository; `read` gives the content of a JSON document.

    Raises BadInput for none, for two models in one place, for files that are missing, and for names that lead outside.
    """
    if ADAPTER in names:
        raise BadInput(
            f"{where} holds {ADAPTER}, which the library would apply to the weights: merge it into "
            f"them, or give the model without {ADAPTER}"
        )
    named = _named_in_config(where, names, read)
    if named is None:
        named = WHOLE if WHOLE in names else INDEX
        if named not in names:
            raise BadInput(_why_none(where, names))
        _check_alone(where, names, read)
    if named.endswith(_INDEX_SUFFIX):
        return Weights(_indexed(where, names, named, read), named)
    return Weights((named,))


def _named_in_config(where: str, names: Collection[str], read: Callable[[str], Any]) -> str | None:
    config = read("config.json") if "config.json" in names else {}
    named = config.get(_NAMED_IN) if isinstance(config, dict) else None
    if named is None:
        return None
    source = f"{_NAMED_IN} in config.json"
    if not (isinstance(named, str) and named.endswith((_SUFFIX, _INDEX_SUFFIX))):
        raise BadInput(
            f"{where}: {source} is {named!r}, neither a {_SUFFIX} file nor an index of them: correct or remove it"
        )
    _check_plain(where, named, source)
    if named not in names:
        raise BadInput(f"{where}: {named} is missing, though {source} names it: download or write the checkpoint again")
    return named


def _indexed(where: str, names: Collection[str], index: str, read: Callable[[str], Any]) -> tuple[str, ...]:
    files = _index_names(where, index, read)
    missing = [name for name in files if name not in names]
    if missing:
        others = sorted(name for name in names if name.endswith(_SUFFIX) and name not in files)
        beside = f" (other weights are there: {_listed(others)})" if others else ""
        raise BadInput(
            f"{where}: {missing[0]} is missing, though {index} names it{beside}: download or write the checkpoint again"
        )
    return files


def _index_names(where: str, index: str, read: Callable[[str], Any]) -> tuple[str, ...]:
    content = read(index)
    placed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(placed, dict) or not placed:
        raise BadInput(f"{where}: {index} has no weight_map that names files: download or write the checkpoint again")
    for name in placed.values():
        if not (isinstance(name, str) and name.endswith(_SUFFIX)):
            raise BadInput(
                f"{where}: {index} names {name!r}, which is not a {_SUFFIX} file, the only weights read here"
            )
        _check_plain(where, name, index)
    return tuple(sorted(set(placed.values())))


def _check_plain(where: str, name: str, source: str) -> None:
    if "/" in name or "\\" in name:
        raise BadInput(f"{where}: {source} names {name!r}: weights are only read from the model's own folder")


def _check_alone(where: str, names: Collection[str], read: Callable[[str], Any]) -> None:
    """Raises BadInput for a whole model next to shards of one, as a download over an older one leaves them."""
    if WHOLE not in names:
        return
    shards = [name for name in sorted(names) if _SHARD.fullmatch(name)]
    if INDEX in names and (indexed := _index_names(where, INDEX, read)) != (WHOLE,):
        raise BadInput(
            f"{where} holds two models, {WHOLE} and the one of {INDEX} ({_listed(indexed)}): give a copy without "
            f"{WHOLE}, or without {INDEX} and its files"
        )
    if shards:
        raise BadInput(
            f"{where} holds two models, {WHOLE} and shards of another without an index ({_listed(shards)}): give a "
            "copy with one of them"
        )


def _why_none(where: str, names: Collection[str]) -> str:
    if PACKED in names:
        return f"{where} is a packed checkpoint: run `restorelcc unpack {where} --out DIR` and give DIR"
    found = sorted(name for name in names if name.endswith(_SUFFIX))
    if found:
        return (
            f"{where} holds {_listed(found)}, but neither {WHOLE} nor {INDEX}, which the library reads: download or "
            f"write the checkpoint again, or name the file as {_NAMED_IN} in config.json"
        )
    pickles = sorted(name for name in names if Path(name).suffix.lower() in PICKLES)
    if pickles:
        return (
            f"{where} holds its weights as {pickles[0]}, a pickle, which is never loaded here: convert it to "
            "safetensors"
        )
    return f"{where} holds no {_SUFFIX} file, the only weights read here"


def _listed(names: Collection[str]) -> str:
    first = list(names)[:2]
    return ", ".join(first) + (f" and {len(names) - 2} more" if len(names) > 2 else "")

"""Texts from a dataset of the hub, streamed: rows are read until there are enough, nothing else is downloaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from restorelcc.core.errors import BadInput

_PREFIX = "hub:"


@dataclass(frozen=True)
class HubText:
    """A dataset of the hub with texts, or with instructions and outputs."""

    dataset: str
    config: str | None = None
    split: str = "train"

    def __str__(self) -> str:
        return ":".join((self.dataset, self.config or "default", self.split))


PRESETS = {
    "c4": HubText("allenai/c4", "en"),
    "wikitext": HubText("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "alpaca": HubText("tatsu-lab/alpaca"),
}


def hub_text(source: str) -> HubText | None:
    """What `c4`, `wikitext`, `alpaca` or `hub:<id>[:<config>[:<split>]]` means; None for a path."""
    if source in PRESETS:
        return PRESETS[source]
    if not source.startswith(_PREFIX):
        return None
    dataset, *rest = source.removeprefix(_PREFIX).split(":")
    if not dataset or len(rest) > 2 or not all(rest):
        raise BadInput(
            f"models.<name>.data.calibration is {source!r}: write hub:<id>, hub:<id>:<config> or "
            "hub:<id>:<config>:<split>"
        )
    config = rest[0] if rest and rest[0] != "default" else None
    return HubText(dataset, config, rest[1] if len(rest) > 1 else "train")


def stream_texts(origin: HubText, count: int, characters: int, template: str) -> tuple[list[str], str | None]:
    """The first `count` texts of at least `characters` characters, and the dataset's commit.

    Raises BadInput when the dataset cannot be reached or its rows hold no text.
    """
    try:
        revision = _commit(origin.dataset)
        rows = _rows(origin, revision)
        return list(islice(joined((_text(row, origin, template) for row in rows), characters), count)), revision
    except (OSError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise BadInput(
            f"models.<name>.data.calibration: the dataset {origin} cannot be read from the hub "
            f"({type(error).__name__}: {first}): check the id, the network and your access, or give a local file"
        ) from error


def hub_rows(key: str, source: str, count: int) -> list[dict[str, Any]]:
    """The first `count` rows of a hub dataset of instruction pairs. Raises BadInput naming `key` when there is none."""
    origin = hub_text(source)
    assert origin is not None
    try:
        rows = list(islice(_rows(origin, _commit(origin.dataset)), count))
    except (OSError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise BadInput(
            f"{key}: the dataset {origin} cannot be read from the hub ({type(error).__name__}: {first}): check the id, "
            "the network and your access, or give a local file"
        ) from error
    if not rows:
        raise BadInput(f"{key}: the dataset {origin} holds no row: give another one, or a local file")
    return rows


def joined(texts: Iterable[str], characters: int) -> Iterator[str]:
    """Texts in order, short ones joined by a blank line until they reach `characters`; a short rest is left out unless
    it is all there is."""
    waiting: list[str] = []
    given = False
    for text in filter(None, (text.strip() for text in texts)):
        waiting.append(text)
        if sum(map(len, waiting)) >= characters:
            yield "\n\n".join(waiting)
            waiting, given = [], True
    if waiting and not given:
        yield "\n\n".join(waiting)


def _commit(dataset: str) -> str | None:
    if Path(dataset).is_dir():
        return None
    from huggingface_hub import HfApi  # only hub ids need the hub client

    return HfApi().dataset_info(dataset).sha


def _rows(origin: HubText, revision: str | None) -> Iterable[dict[str, Any]]:
    from datasets import load_dataset  # slow to import, and only needed here

    return load_dataset(origin.dataset, origin.config, split=origin.split, streaming=True, revision=revision)


def _text(row: dict[str, Any], origin: HubText, template: str) -> str:
    if row.get("text"):
        return str(row["text"])
    if "instruction" in row and "output" in row:
        question = template.format(instruction=row["instruction"], input=row.get("input") or "").strip()
        return f"{question}\n{row['output']}"
    if "text" in row:
        return ""
    raise BadInput(
        f"models.<name>.data.calibration: rows of the dataset {origin} have neither `text` nor `instruction` and "
        f"`output`, but {', '.join(map(repr, row))}"
    )

"""Rows of datasets on the hub, streamed: they are read until there are enough, nothing else is downloaded."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from restorelcc.base.errors import BadInput, StageFailed, first_line
from restorelcc.base.model_entry import HUB_PREFIX
from restorelcc.models.hub import ATTEMPTS, Repository, cached_snapshot, is_offline, resolved_commit
from restorelcc.stages.corpus.account import Account, Rows

_PAGE_TITLE = re.compile(r" = [^=].* = \n")


@dataclass(frozen=True)
class HubData:
    """A dataset of the hub: its id, and which configuration and split of it."""

    dataset: str
    config: str | None = None
    split: str = "train"

    def __str__(self) -> str:
        return ":".join((self.dataset, self.config or "default", self.split))


PRESETS = {
    "c4": HubData("allenai/c4", "en"),
    "wikitext": HubData("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "alpaca": HubData("tatsu-lab/alpaca"),
}
# The same names where perplexity is measured: the splits that nothing was trained on.
HELDOUT = PRESETS | {
    "c4": replace(PRESETS["c4"], split="validation"),
    "wikitext": replace(PRESETS["wikitext"], split="test"),
}


def hub_data(key: str, source: str, root: Path, presets: dict[str, HubData] = PRESETS) -> HubData | None:
    """The dataset that a source means, None for a path. Raises BadInput as `named_dataset`, and where a folder of its
    name is in `root`, where stages run: `datasets` would read that one, whose changes nothing watches."""
    found = named_dataset(key, source, presets)
    if found is not None and (root / found.dataset).is_dir():
        do = f"give the folder without {HUB_PREFIX!r}, or rename it" if source.startswith(HUB_PREFIX) else "rename it"
        raise BadInput(
            f"{key} is {source!r}, a dataset of the hub, but there is a folder {found.dataset!r} here, which would be "
            f"read instead: {do}"
        )
    return found


def named_dataset(key: str, source: str, presets: dict[str, HubData] = PRESETS) -> HubData | None:
    """What `c4`, `wikitext`, `alpaca` or `hub:<id>[:<config>[:<split>]]` means; None for a path. Raises BadInput for
    another form."""
    if source in presets:
        return presets[source]
    if not source.startswith(HUB_PREFIX):
        return None
    dataset, *rest = source.removeprefix(HUB_PREFIX).split(":")
    if not dataset or len(rest) > 2 or not all(rest):
        raise BadInput(f"{key} is {source!r}: write hub:<id>, hub:<id>:<config> or hub:<id>:<config>:<split>")
    config = rest[0] if rest and rest[0] != "default" else None
    return HubData(dataset, config, rest[1] if len(rest) > 1 else "train")


def open_rows(key: str, origin: HubData) -> Rows:
    """The rows of a dataset, streamed. Reading them, and this, raises BadInput for a dataset that the hub does not
    give, and StageFailed when the connection to it breaks and does not come back."""
    commit = resolved_commit(Repository(key, origin.dataset, "dataset"), None)
    rows = _resumed(key, origin, lambda skip: _stream(origin, commit, skip))
    recorded = {"source": f"{HUB_PREFIX}{origin}", "revision": commit}
    return Rows(f"the dataset {origin} ({key})", enumerate(rows, 1), origin=recorded)


def _stream(origin: HubData, commit: str, skip: int) -> Iterable[dict[str, Any]]:
    from datasets import load_dataset  # slow to import, and only needed here

    where = cached_snapshot(Repository("", origin.dataset, "dataset"), commit) if is_offline() else None
    name, revision = (str(where), None) if where else (origin.dataset, commit)
    rows = load_dataset(name, origin.config, split=origin.split, streaming=True, revision=revision)
    return rows.skip(skip) if skip else rows


def _resumed(key: str, origin: HubData, stream: Callable[[int], Iterable[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Rows; after a broken connection the stream goes on at the row it broke at."""
    import httpx2

    given = attempts = 0
    while True:
        try:
            for row in stream(given):
                yield row
                given, attempts = given + 1, 0
            return
        except (OSError, ValueError, httpx2.HTTPError) as error:
            attempts += 1
            broken = isinstance(error, httpx2.TransportError | ConnectionError | TimeoutError)
            if broken and not is_offline() and attempts < ATTEMPTS:
                time.sleep(attempts)
                continue
            raise _explained(key, origin, error, broken) from error


def _explained(key: str, origin: HubData, error: Exception, broken: bool) -> BadInput | StageFailed:
    first = first_line(error)
    if is_offline():
        return BadInput(
            f"{key}: HF_HUB_OFFLINE is set and the files of the dataset {origin} are not in the hub's cache: run the "
            "stage `corpus` once with the network (later stages need none), or fetch them with `hf download`"
        )
    if broken:
        return StageFailed(f"{key}: the connection broke while the dataset {origin} was read ({first}): run again")
    return BadInput(
        f"{key}: the dataset {origin} cannot be read from the hub ({type(error).__name__}: {first}): check the id, its "
        "configurations and splits, and your access, or give a local file"
    )


def joined(texts: Iterable[tuple[int, str]], characters: int, account: Account) -> Iterator[str]:
    """Texts (with the numbers of their rows) in order, short ones joined by a blank line until they reach `characters`;
    a short rest is left out unless it is all there is."""
    waiting: list[tuple[int, str]] = []
    for number, text in texts:
        waiting.append((number, text))
        if sum(len(text) for _, text in waiting) >= characters:
            account.used += len(waiting)
            yield "\n\n".join(text for _, text in waiting)
            waiting = []
    if waiting and not account.used:
        account.used += len(waiting)
        yield "\n\n".join(text for _, text in waiting)
    else:
        for number, _ in waiting:
            account.skip("too short a rest", number)


def pages(lines: Iterable[str]) -> Iterator[str]:
    """WikiText's lines, one page after another. All pages joined by blank lines are all lines joined by blank lines,
    which is the text that WikiText-2 perplexity is published on."""
    page: list[str] = []
    for line in lines:
        if page and _PAGE_TITLE.fullmatch(line):
            yield "\n\n".join(page)
            page = []
        page.append(line)
    if page:
        yield "\n\n".join(page)

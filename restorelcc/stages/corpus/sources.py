"""What a user's data hold for each role, with an account of every row: read here, and nowhere else."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from restorelcc.base.data_files import path_of
from restorelcc.base.errors import BadInput
from restorelcc.base.model_entry import DataFiles
from restorelcc.base.package_data import is_of_the_package
from restorelcc.stages.corpus import CorpusConfig
from restorelcc.stages.corpus.account import NOT_DRAWN, Account, Rows
from restorelcc.stages.corpus.formats import Example, examples, prompts, raw_texts, texts
from restorelcc.stages.corpus.hub_rows import HELDOUT, PRESETS, HubData, hub_data, joined, open_rows, pages
from restorelcc.stages.corpus.local import first_rows, read_file
from restorelcc.stages.corpus.package_rows import package_rows

T = TypeVar("T")
# Examples that a model can take in (see fit.py); the others are skipped in the account.
Fit = Callable[[list[Example], Account], list[Example]]


@dataclass(frozen=True)
class Found(Generic[T]):
    """What a role is made of, where it comes from, and what became of every row."""

    items: list[T]
    rows: Rows
    account: Account

    @property
    def origin(self) -> dict[str, Any]:
        """As it stands in sources.json."""
        return self.rows.origin | {"rows": self.account.record()}

    def sentence(self) -> str:
        """What became of the rows, in words."""
        return f"{self.rows.name}: {self.account.sentence(self.rows)}"


def calibration_texts(data: DataFiles, config: CorpusConfig, root: Path) -> Found[str]:
    """Texts to prune by: a random choice from a local file, or the first ones of a hub dataset, short ones joined."""
    rows, dataset = _opened("calibration", data.read("calibration"), root)
    account = Account()
    found = texts(rows, data, account)
    if dataset is None:
        chosen = [text for _, text in _drawn(found, config.calibration, _random("calibration", config), account)]
    else:
        chosen = list(islice(joined(found, config.hub_characters, account), config.calibration))
    return _usable(Found(chosen, rows, account), "text")


def heldout_texts(data: DataFiles, config: CorpusConfig, root: Path) -> Found[str]:
    """Texts for perplexity, in order: those of a local file, or of a hub dataset; of WikiText its pages, as they
    stand."""
    rows, dataset = _opened("heldout", data.heldout, root, HELDOUT)
    account = Account()
    if dataset is not None and dataset.dataset.lower().endswith("wikitext"):
        lines = _counted(raw_texts(rows, data, account), account)
        return _usable(Found(list(islice(pages(lines), config.heldout)), rows, account), "text")
    numbered = texts(rows, data, account)
    chosen = list(_counted(islice(numbered, config.heldout), account))
    if dataset is None:
        _leave(numbered, account)
    return _usable(Found(chosen, rows, account), "text")


def pairs(data: DataFiles, config: CorpusConfig, root: Path, fit: Fit) -> Found[Example]:
    """Examples to train, probe and validate with, in a random order: a choice from a local file, or the first ones of
    a hub dataset. `fit` says which of them a model can take in; of data that the model writes itself, which have no
    responses, it gives these too."""
    return _taken("instructions", data, config, root, config.train + config.valid, fit)


def own_texts(
    data: DataFiles, config: CorpusConfig, root: Path, write: Callable[[list[Example], Account], list[str]]
) -> Found[str]:
    """Texts to prune by that the model writes itself: `write` makes them of questions, chosen as in `pairs`."""
    return _usable(_taken("calibration", data, config, root, config.calibration, write), "question")


def _taken(
    role: str,
    data: DataFiles,
    config: CorpusConfig,
    root: Path,
    count: int,
    make: Callable[[list[Example], Account], list[T]],
) -> Found[T]:
    """`count` of what is made of a role's examples, or of its questions where the model writes the data itself."""
    own = data.writes(role)
    rows, dataset = _opened(role, data.read(role), root, of="instructions" if own else role)
    account, rng = Account(), _random(role, config)
    usable = (prompts if own else examples)(rows, data, account)
    if dataset is None:
        everything = list(usable)
        usable = iter(rng.sample(everything, len(everything)))
    kept: list[T] = []
    while batch := list(islice(usable, count - len(kept))):
        kept += make(batch, account)
    if dataset is None:
        _leave(((example.row, example) for example in usable), account)
    else:
        kept = rng.sample(kept, len(kept))
    account.used = len(kept)
    return Found(kept, rows, account)


def check_first_rows(data: DataFiles, key: str, root: Path, count: int = 10) -> None:
    """Raises BadInput for local data whose first rows cannot be read as what they are named for. key: models.<name>."""
    for role in ("calibration", "instructions", "heldout"):
        source = data.read(role)
        if not is_of_the_package(source) and hub_data(f"{key}.data.{role}", source, root) is None:
            name = f"{key}.data.{role}"
            read: Callable[[Rows, DataFiles, Account], Iterator[Any]]
            read = prompts if data.writes(role) else examples if role == "instructions" else texts
            path, usable = path_of(name, source, root), 0
            for rows in first_rows(path, name, count):
                usable += sum(1 for _ in read(rows, data, Account()))
            if not usable and next(iter(read(read_file(path, source, name), data, Account())), None) is None:
                raise BadInput(f"{source} holds no row that can be used: correct it, or give another file ({name})")


def _opened(
    role: str, source: str, root: Path, presets: dict[str, HubData] = PRESETS, of: str = ""
) -> tuple[Rows, HubData | None]:
    """The rows of a file or of a dataset of the hub or the package, and which dataset it is. of: as which role the
    package gives them, if it is another."""
    key = f"models.<name>.data.{role}"
    if is_of_the_package(source):
        return package_rows(key, of or role), HubData(source)
    dataset = hub_data(key, source, root, presets)
    if dataset is None:
        return read_file(path_of(key, source, root), source, key), None
    return open_rows(key, dataset), dataset


def _random(role: str, config: CorpusConfig) -> random.Random:
    """A generator of each role's own, so that what is drawn for one does not depend on the rows of another."""
    return random.Random(f"{config.seed} {role}")


def _drawn(numbered: Iterable[tuple[int, T]], count: int, rng: random.Random, account: Account) -> list[tuple[int, T]]:
    """`count` of them in random order; the others are counted as not drawn."""
    found = list(numbered)
    order = rng.sample(found, len(found))
    _leave(order[count:], account)
    account.used = min(count, len(found))
    return order[:count]


def _leave(numbered: Iterable[tuple[int, Any]], account: Account) -> None:
    for number, _ in numbered:
        account.skip(NOT_DRAWN, number)


def _counted(numbered: Iterable[tuple[int, str]], account: Account) -> Iterator[str]:
    """The texts, each counted as used when it is taken."""
    for _, text in numbered:
        account.used += 1
        yield text


def _usable(found: Found[str], what: str) -> Found[str]:
    """Raises BadInput where nothing was found."""
    if not found.items:
        account, name = found.account, found.rows.name
        if not account.read:
            raise BadInput(f"{name} holds no row, and at least one row is needed: name another file or dataset")
        told = account.sentence(found.rows)
        raise BadInput(f"{name} holds no {what} that can be used ({told}): correct it, or name another")
    return found

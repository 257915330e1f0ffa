"""How a model was measured, part by part: results are compared only where all of it is the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from restorelcc.base.cell import Cell, evaluated_again
from restorelcc.base.digest import json_digest
from restorelcc.base.documents import parse_json
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.tables import MEASURED, read_metadata


@dataclass(frozen=True, kw_only=True)
class TaskPrint:
    """How one task was measured. items, prompts, config: digests of the documents with their answers, of what the
    model was given to read, and of the task file with the code that it calls."""

    metric: str
    filter: str
    averaged: bool  # whether it counts into the mean accuracy
    shots: int
    fewshot_seed: int
    version: str
    config: str
    items: str
    prompts: str


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """How one model was measured. dtype: in which it computed. context: tokens that its longest sequence could have.
    tokenizer, heldout: digests of its vocabulary with how it cuts the held-out texts, and of these texts."""

    lm_eval: str
    dtype: str
    limit: int | None
    heldout: str
    perplexity_tokens: int
    context: int
    tokenizer: str
    tasks: dict[str, TaskPrint]

    @property
    def digest(self) -> str:
        return json_digest(asdict(self))[:16]

    def as_text(self) -> str:
        """JSON, as the metadata of a table hold it."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_text(cls, text: str | None, where: object, again: str) -> Fingerprint:
        """Raises BadInput, naming `where` and the command that measures `again`, when it is absent or not whole."""
        try:
            content = parse_json(text or "", str(where))
            tasks = {name: TaskPrint(**task) for name, task in content.pop("tasks").items()}
            return cls(tasks=tasks, **content)
        except (BadInput, TypeError, KeyError, AttributeError) as error:
            raise BadInput(
                f"{where} does not say how it was measured, because an older version wrote it: run `{again}`"
            ) from error


# What the parts are called in a sentence; what says most about a difference comes first.
_WHOLE = {
    "lm_eval": "the version of lm-eval",
    "dtype": "the dtype that the model computed in",
    "limit": "evaluate.limit",
    "heldout": "the held-out texts",
    "perplexity_tokens": "evaluate.perplexity_tokens",
    "context": "the model's context",
    "tokenizer": "the tokenizer",
}
_OF_TASK = {
    "metric": "the metric",
    "filter": "the filter",
    "shots": "the number of shots",
    "fewshot_seed": "the seed of the shots",
    "version": "the version",
    "items": "the items",
    "prompts": "the prompts",
    "averaged": "the place in the mean",
    "config": "the task file, or the code it calls,",
}
_DIGESTS = ("heldout", "tokenizer", "items", "prompts", "config")


def difference(first: Fingerprint, second: Fingerprint) -> str | None:
    """The first part that differs, in words: "the metric of task 'x' (acc against acc_norm)". None where none does."""
    return next(_differences(first, second), None)


def _differences(first: Fingerprint, second: Fingerprint) -> Iterator[str]:
    for part, title in _WHOLE.items():
        yield from _pair(part, title, getattr(first, part), getattr(second, part))
    for name in sorted(first.tasks.keys() ^ second.tasks.keys()):
        yield f"task {name!r}, on which only the {'first' if name in first.tasks else 'second'} was measured"
    for name in sorted(first.tasks.keys() & second.tasks.keys()):
        for part, title in _OF_TASK.items():
            values = (getattr(fingerprint.tasks[name], part) for fingerprint in (first, second))
            yield from _pair(part, f"{title} of task {name!r}", *values)


def _pair(part: str, title: str, first: object, second: object) -> Iterator[str]:
    if first != second:
        yield title if part in _DIGESTS else f"{title} ({first} against {second})"


def check_comparable(name: str, first: Fingerprint, other: str, second: Fingerprint, again: str) -> None:
    """Raises BadInput, naming the part that differs, unless both were measured in the same way.

    again: the command that measures them again.
    """
    if found := difference(first, second):
        raise BadInput(
            f"{name} and {other} cannot be compared, they were measured differently in {found}: run `{again}`"
        )


def read_fingerprint(samples: Path, cell: Cell, digest: str | None = None) -> Fingerprint:
    """How the samples of a cell were measured. digest: of the metrics beside them, which must be of the same run.

    Raises BadInput, with the command that measures again, for samples that do not say it, or are of another run.
    """
    if not samples.is_file():
        raise BadInput(
            f"{samples} is missing: a comparison needs the results per item (dvc checkout or dvc pull brings it back)"
        )
    again = evaluated_again(cell)
    found = Fingerprint.from_text(read_metadata(samples).get(MEASURED), samples, again)
    if digest is not None and found.digest != digest:
        raise BadInput(f"{samples} belongs to another run than the metrics in its folder: run `{again}`")
    return found


def check_measured_alike(base: Cell, others: list[Cell], measured: dict[Cell, str], layout: Layout) -> None:
    """Raises BadInput, naming the part that differs and the evaluations that are not as that of `base`, unless all were
    measured in one way; of a dense model unlike all others, that agree, its own alone. measured: digests of the
    fingerprints, as the metrics documents have them."""
    differing = [cell for cell in others if measured[cell] != measured[base]]
    if differing:
        rest = {measured[cell] for cell in differing}
        alone = base.kind == "dense" and len(rest) == 1 and len(differing) > 1 and {*others} <= {base, *differing}
        again, cells = evaluated_again(*([base] if alone else differing)), (base, differing[0])
        found = [read_fingerprint(layout.samples(cell), cell, measured[cell]) for cell in cells]
        check_comparable(f"{base} ({base.kind})", found[0], f"{differing[0]} ({differing[0].kind})", found[1], again)


assert {*_WHOLE, "tasks"} == {part.name for part in fields(Fingerprint)}, "a part without a name is not compared"
assert set(_OF_TASK) == {part.name for part in fields(TaskPrint)}, "a part without a name is not compared"

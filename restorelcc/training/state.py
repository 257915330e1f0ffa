"""The state of a training run on disk: safetensors and JSON in one file, replaced as a whole, deleted after the run.

It is in .work/<stage>-<cell>-<mark>/ (`base.unfinished`): a run with other settings, inputs, packages or threads never
reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from restorelcc.base.cell import Cell
from restorelcc.base.digest import file_digest, together
from restorelcc.base.documents import parse_json
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.progress import is_first_process, process_count, weights_are_shared_out
from restorelcc.base.publish import put
from restorelcc.base.unfinished import kept_work, mark_of, work_name
from restorelcc.models.runtime import computed_with
from restorelcc.models.tensors import read_all_tensors, write_tensors

_PACKAGE = Path(__file__).parents[1]


class TrainingState:
    """One run's file. A `Store` of training/loop.py."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def load(self) -> tuple[dict[str, Tensor], dict] | None:
        """The saved tensors and progress; None when nothing was saved. Raises BadInput for a damaged file."""
        if not self.path.is_file():
            return None
        try:
            tensors, metadata = read_all_tensors(self.path)
            return tensors, parse_json(metadata["progress"], str(self.path))
        except (BadInput, KeyError) as error:
            raise BadInput(f"{self.path} is a damaged training state: delete it to train from the start") from error

    def save(self, tensors: dict[str, Tensor], progress: dict) -> None:
        """Replace the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_name(self.path.name + ".new")
        write_tensors(scratch, tensors, {"progress": json.dumps(progress)})
        put(scratch, self.path)


class TrainingStates:
    """The states of a stage's runs, one per learning rate or part."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def part(self, name: str) -> TrainingStates:
        """The states of a part of the stage that has runs of its own."""
        return TrainingStates(self.folder / name)

    def of(self, run: str) -> TrainingState:
        """The state of one run."""
        return TrainingState(self.folder / f"{run}.safetensors")


@contextmanager
def training_states(
    layout: Layout, stage: str, cell: Cell, fingerprint: dict[str, str], uses: tuple[str, ...] = ()
) -> Iterator[TrainingStates]:
    """The states of a stage's runs for a cell, kept as `kept_work` keeps them. Of several processes the first one
    holds and deletes them.

    fingerprint: the settings and inputs that decide what the training gives, as text. What it is computed with counts
    too: processes, packages, code, and threads where one process trains (several have to agree on the folder, and may
    be on machines of different size); uses: folders of the package beside those that train in any stage.
    """
    computed = computed_with("accelerate", "peft") | {"code": _code(f"stages/{stage}", *uses)}
    if process_count() > 1:
        del computed["threads"]
        computed |= {"processes": process_count(), "shared out": weights_are_shared_out()}
    name, mark = work_name(stage, cell), mark_of(fingerprint | computed)
    if is_first_process():
        with kept_work(layout, name, mark) as folder:
            yield TrainingStates(folder)
    else:
        yield TrainingStates(layout.work / f"{name}-{mark}")


def _code(*folders: str) -> str:
    """Digest of the code that trains; DVC watches the same folders."""
    ours = (_PACKAGE / name for name in ("base", "models", "compensation", "training", *folders))
    return together([file_digest(path) for folder in ours for path in sorted(folder.rglob("*.py"))])

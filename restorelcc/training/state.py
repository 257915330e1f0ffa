"""The state of a training run on disk: safetensors and JSON in one file, replaced as a whole, deleted after the run.

It is in .work/<stage>-<cell>-<fingerprint of settings and inputs>/: another setting or input never reads it.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

from torch import Tensor

from restorelcc.base.cell import Cell
from restorelcc.base.digest import json_digest
from restorelcc.base.documents import parse_json
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.publish import put
from restorelcc.models.tensors import read_all_tensors, write_tensors


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

    def __init__(self, layout: Layout, stage: str, cell: Cell, fingerprint: dict[str, str]) -> None:
        """fingerprint: everything that decides what the training gives, as text."""
        digest = json_digest(fingerprint)[:16]
        self.folder = layout.work / f"{stage}-{str(cell).replace(' ', '-')}-{digest}"

    def part(self, name: str) -> TrainingStates:
        """The states of a part of the stage that has runs of its own."""
        states = copy.copy(self)
        states.folder = self.folder / name
        return states

    def of(self, run: str) -> TrainingState:
        """The state of one run."""
        return TrainingState(self.folder / f"{run}.safetensors")

    def clear(self) -> None:
        """Forget all: the result is in place."""
        shutil.rmtree(self.folder, ignore_errors=True)

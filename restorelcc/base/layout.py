"""Where every artifact is stored. dvc.yaml has the same paths; tests/test_dag.py asserts that they agree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from restorelcc.base.cell import Cell

TASK_FOLDERS = 2  # of one model, that are watched whole; of more, file by file
_WORK = ".work"


def work_around(path: Path) -> Path | None:
    """The scratch folder of the project that a path lies in; None outside of one that has been worked in."""
    return next((parent / _WORK for parent in path.absolute().parents if (parent / _WORK).is_dir()), None)


def project_of(params: Path) -> Path:
    """The folder that a parameter file lies in, or a link to one, which may lead to another project's."""
    return params.absolute().parent.resolve()


@dataclass(frozen=True)
class Layout:
    """Paths under the folder that holds params.yaml."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def work(self) -> Path:
        """What outlives a command but is no artifact: locks, states of training, caches; ignored by git and DVC."""
        return self.root / _WORK

    def inputs(self, cell: Cell) -> Path:
        """Links to the files of a user that stages of a model read, and what its entry says to each stage."""
        return self.data / "inputs" / cell.model

    def corpus(self, cell: Cell) -> Path:
        return self.data / "corpus" / cell.model

    def dense(self, cell: Cell) -> Path:
        return self.data / cell.model / "dense"

    def _pruning(self, cell: Cell) -> Path:
        assert cell.pruning, f"{cell} has no pruning"
        return self.data / cell.model / cell.pruning

    def pruned(self, cell: Cell) -> Path:
        return self._pruning(cell) / "pruned"

    def dense_activations(self, cell: Cell) -> Path:
        return self.data / cell.model / "activations"

    def pruned_activations(self, cell: Cell) -> Path:
        return self._pruning(cell) / "activations"

    def components(self, cell: Cell) -> Path:
        return self._pruning(cell) / "components.safetensors"

    def heads(self, cell: Cell) -> Path:
        return self._pruning(cell) / "heads.parquet"

    def compensation(self, cell: Cell) -> Path:
        return self._pruning(cell) / f"heads-{cell.head_ratio}" / "compensation.safetensors"

    def training(self, cell: Cell) -> Path:
        return self._pruning(cell) / f"heads-{cell.head_ratio}" / "training.json"

    def recovered(self, cell: Cell) -> Path:
        """Of another recovery method. (The axis was once called `baseline`; others read this path, so it stays.)"""
        return self._pruning(cell) / f"baseline-{cell.recovery}"

    def metrics(self, cell: Cell) -> Path:
        """Metrics JSON of the dense, pruned, restored or otherwise recovered model, by what the cell names."""
        folder = self.data / "metrics" / cell.model
        if cell.pruning is None:
            return folder / "dense.json"
        if cell.recovery is not None:
            return folder / cell.pruning / f"{cell.recovery}.json"
        return folder / cell.pruning / ("pruned.json" if cell.head_ratio is None else f"heads-{cell.head_ratio}.json")

    def samples(self, cell: Cell) -> Path:
        """Per-item results (Parquet), next to the metrics."""
        return self.metrics(cell).with_suffix(".parquet")

    def text_scores(self, cell: Cell) -> Path:
        """Log-likelihood of every held-out text (Parquet), next to the metrics."""
        return self.metrics(cell).with_suffix(".texts.parquet")

    def details(self, cell: Cell) -> Path:
        """Timings, texts and tables (JSON), next to the metrics, for the report."""
        return self.metrics(cell).with_suffix(".details.json")

    def speed(self, cell: Cell) -> Path:
        """Bytes and tokens per second of a restored model and others (JSON), next to its metrics, for the report."""
        return self.metrics(cell).with_suffix(".speed.json")

    def sources(self, cell: Cell) -> Path:
        """How every row of a model's data was used or skipped (JSON), next to its metrics, for the report."""
        return self.metrics(Cell(cell.model)).with_name("sources.json")

    def reference(self, cell: Cell) -> Path:
        """The dense model's predictions, which the other models of its name are compared with."""
        return self.metrics(Cell(cell.model)).with_suffix(".reference.safetensors")

    @property
    def logs(self) -> Path:
        return self.data / "logs"

    def log(self, stage: str, cell: Cell) -> Path:
        """How long a stage last took for a cell on this machine; no artifact, and nothing but the report reads it."""
        return self.logs / f"{stage}@{'-'.join(str(cell).split())}.json"

    @property
    def report(self) -> Path:
        return self.data / "report"

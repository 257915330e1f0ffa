"""The DAG as DVC has it: dvc.yaml multiplied out over params.yaml. There is no other."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.gates import CPU, GPU
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import ModelEntry
from restorelcc.pipeline.left_to_run import clean, stages_of
from restorelcc.pipeline.params import Params
from restorelcc.pipeline.stale import remove_stale_metrics
from restorelcc.pipeline.workspace import mend

_MODEL = re.compile(r" --model (\S+)")


@dataclass(frozen=True)
class Stage:
    """One stage of one cell, for example prune@tiny-wanda-0.5."""

    name: str
    needs: tuple[str, ...]  # stages whose outputs it reads
    resource: str  # gpu where it may use one, if its machine has any; else cpu
    model: str | None  # key of `models`; None for a stage of the whole grid
    changed: bool  # what DVC can tell before anything has run
    every_gpu: bool = False  # its model is spread over GPUs, or on one of a number that counts among all
    threads: int = 1  # of its model; 0: torch's own choice

    @property
    def kind(self) -> str:
        return self.name.partition("@")[0]


@dataclass(frozen=True)
class Dag:
    """All stages, each after the stages it needs, and messages about what was repaired before they could be read."""

    stages: tuple[Stage, ...]
    notes: tuple[str, ...] = ()

    def clean(self) -> set[str]:
        """Stages that neither changed nor need one that did: they would not run."""
        changed = {stage.name for stage in self.stages if stage.changed}
        return clean({stage.name: stage.needs for stage in self.stages}, changed)


def read_dag(root: Path, params: Params) -> Dag:
    """Read stages and edges from DVC, which also tells what changed. Waits while another command holds DVC's lock."""
    from dvc.dvcfile import PROJECT_FILE
    from dvc.exceptions import DvcException
    from dvc.repo import Repo, lock_repo

    healed = mend(root)
    try:
        with Repo(str(root), _wait_for_lock=True) as repo, lock_repo(repo):
            stale = remove_stale_metrics(Layout(root), params.grid.model_dump())
            graph = stages_of(repo.index.graph, root / PROJECT_FILE)
            changed = _changed(repo)
            stages = _ordered(graph, params, changed)
    except DvcException as error:
        raise BadInput(f"DVC cannot read the pipeline in {root}: {error}") from error
    left = [f"{len(stale)} metrics files of cells that left the grid are put aside"] if stale else []
    return Dag(stages, (*healed, *left))


def _changed(repo: Any) -> set[str] | None:
    """Names of changed stages; None where DVC cannot tell, because a stage is running."""
    from dvc.exceptions import DvcException

    try:
        return set(repo.status())
    except DvcException:
        return None


def _ordered(graph: Any, params: Params, changed: set[str] | None) -> tuple[Stage, ...]:
    """Edges of DVC's graph point from a stage to what it needs. Its `addressing` depends on the working folder."""
    import networkx

    stages = []
    for node in reversed(list(networkx.lexicographical_topological_sort(graph, key=lambda node: node.name))):
        match = _MODEL.search(node.cmd) if isinstance(node.cmd, str) else None  # a user's own may be a list
        model = match[1] if match and match[1] in params.models else None
        on_gpu, every = _of_gpus(params.models[model]) if model else (True, False)
        meta = node.meta or {}
        own = model is not None and params.models[model].writes_data
        on_gpu = on_gpu and GPU in (meta.get("resource"), meta.get("own_words") if own else None)
        stages.append(
            Stage(
                name=node.name,
                needs=tuple(sorted(needed.name for needed in graph.successors(node))),
                resource=GPU if on_gpu else CPU,
                model=model,
                changed=changed is None or node.addressing in changed,
                every_gpu=on_gpu and every,
                threads=params.models[model].threads if model else 1,
            )
        )
    return tuple(stages)


def _of_gpus(entry: ModelEntry) -> tuple[bool, bool]:
    """Whether a model goes to a GPU where there is one, and whether to all of them."""
    spread = entry.device_map is not None
    return spread or entry.device != CPU, spread or entry.device.startswith("cuda:")

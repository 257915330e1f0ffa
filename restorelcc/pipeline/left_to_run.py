"""Which stages DVC would run, asked of DVC in this process: nothing is run, and no file of the project is written."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from restorelcc.base.cell import Cell
from restorelcc.base.errors import BadInput, first_line
from restorelcc.base.layout import Layout, project_of
from restorelcc.pipeline.one_run import dvc_reads
from restorelcc.pipeline.overrides import put_over
from restorelcc.pipeline.params import Params, load_params
from restorelcc.pipeline.workspace import other_runs
from restorelcc.stages.inputs.stage import unlike

PIPELINE = "dvc.yaml"


class CannotTell(Exception):
    """Why DVC cannot say which stages are finished, as a sentence."""


def stages_of(graph: Any, file: Path) -> Any:
    """DVC's graph with the stages of one dvc.yaml alone. What lies between two of them, such as a file of `dvc add` or
    a stage of another folder, is taken out, and what was behind it is needed directly."""
    graph = graph.copy()
    for node in list(graph):
        if node.is_data_source or Path(node.path).resolve() != file.resolve():
            graph.add_edges_from(product(graph.predecessors(node), graph.successors(node)))
            graph.remove_node(node)
    return graph


def clean(needs: Mapping[str, Iterable[str]], changed: Container[str]) -> set[str]:
    """Stages that neither changed nor need one that did: they would not run. `needs`: of every stage the stages whose
    outputs it reads, each after those."""
    found: set[str] = set()
    for name, needed in needs.items():
        if name not in changed and found.issuperset(needed):
            found.add(name)
    return found


def finished_of(file: Path, settings: tuple[str, ...], aliases: Iterable[str], prunings: Iterable[str]) -> set[str]:
    """`finished` for the parameter file of a project, with these models and prunings in place of the grid's.

    Raises CannotTell.
    """
    if file.name != "params.yaml":
        raise CannotTell(f"DVC reads params.yaml, and not {file.name}")
    lists = {"model": list(aliases), "pruning": list(prunings)}
    settings = (*settings, *(f"grid.{axis}={json.dumps(values)}" for axis, values in lists.items()))
    try:
        params = load_params(file, settings)
    except BadInput as error:  # the models together are no grid
        raise CannotTell(str(error)) from error
    return finished(params, Layout(project_of(file)), settings)


def finished(params: Params, layout: Layout, settings: tuple[str, ...] = ()) -> set[str]:
    """The stages of a grid that DVC would not run, by its names for them. `settings`: `section.key=value` over
    params.yaml, as `params` has them already.

    A stage after one that runs counts as one that runs, though DVC skips it where its inputs turn out to be the same.
    So does one whose outputs DVC's cache alone has. Raises CannotTell.
    """
    root = layout.root
    if not (root / PIPELINE).is_file() or not (root / ".dvc").is_dir():
        raise CannotTell(f"{root} is no project of DVC")
    cells = [Cell(alias) for alias in params.grid.model]
    if not any(path.exists() for cell in cells for path in (layout.corpus(cell), layout.dense(cell))):
        return set()  # all others depend on these
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo, lock_repo

    moved = {path for alias in params.grid.model for path in _laid_out_anew(params, alias, layout)}
    try:
        with (
            dvc_reads(root / "params.yaml", lambda content: put_over(content, settings)),
            Repo(str(root)) as repo,
            lock_repo(repo),  # locked, it reads dvc.yaml once
        ):
            graph = _without_inputs(stages_of(repo.index.graph, root / PIPELINE))
            status = repo.status()
    except FileNotFoundError as error:  # behind a link in a folder of links
        gone = f"{error.filename} leads to a file that is not there any more"
        raise CannotTell(f"{gone}; `restorelcc check` says which key names it") from error
    except DvcException as error:
        runs = ", ".join(map(str, other_runs(root)))
        busy = isinstance(error, LockError) or runs
        raise CannotTell(f"{runs or 'another command'} is at work in {root}" if busy else first_line(error)) from error
    changed = {node.name for node in graph if node.addressing in status or _reads(node, moved)}
    return clean(_needs(graph), changed)


def _laid_out_anew(params: Params, alias: str, layout: Layout) -> set[Path]:
    """What the stage `inputs` would change below data/inputs/<model>. It has a change of any setting for one of its
    own, so that DVC's word on it says nothing about the stages after it."""
    try:
        return unlike(Cell(alias), params.named(alias), layout)
    except BadInput:
        return set()  # a file of the user's is gone, which DVC sees by the link to it


def _without_inputs(graph: Any) -> Any:
    graph.remove_nodes_from([node for node in graph if node.name.partition("@")[0] == "inputs"])
    return graph


def _reads(node: Any, moved: set[Path]) -> bool:
    read = [Path(dep.fs_path) for dep in node.deps]
    return any(path == each or path in each.parents or each in path.parents for path in read for each in moved)


def _needs(graph: Any) -> dict[str, list[str]]:
    """Edges of DVC's graph point from a stage to one that it needs."""
    import networkx

    ordered = reversed(list(networkx.topological_sort(graph)))
    return {node.name: [needed.name for needed in graph.successors(node)] for node in ordered}

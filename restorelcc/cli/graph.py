"""`restorelcc graph`: the stages and what each waits for, as a table, in Mermaid or as a picture."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from restorelcc.base.errors import BadInput
from restorelcc.base.layout import project_of
from restorelcc.base.messages import say

if TYPE_CHECKING:
    import networkx

_CELL = re.compile(r"\$\{item\.\w+\}")


def add(app: typer.Typer) -> None:
    """Register the verb."""
    app.command("graph", help="The stages, how many runs of each the grid has, and what each waits for.")(graph)


def graph(
    params: Annotated[Path, typer.Option("--params", help="params.yaml of the project")] = Path("params.yaml"),
    mermaid: Annotated[bool, typer.Option("--mermaid", help="print it in Mermaid, for a page in Markdown")] = False,
    svg: Annotated[Path | None, typer.Option("--svg", help="draw it into this file")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout")] = False,
) -> None:
    """Read dvc.yaml and params.yaml, and show the stages."""
    if as_json + mermaid + (svg is not None) > 1:
        raise BadInput("--json, --mermaid and --svg are three ways to show the same: give one of them")
    pipeline = project_of(params) / "dvc.yaml"
    if not pipeline.is_file():
        raise BadInput(f"{params}: there is no dvc.yaml beside it, make a project with `restorelcc init`")
    from restorelcc.base.documents import read_yaml
    from restorelcc.pipeline.params import load_params

    content = read_yaml(pipeline)
    found = content.get("stages") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not found:
        raise BadInput(f"{pipeline} has no stages: restore it from git, or make a project with `restorelcc init`")
    stages, runs = stage_graph(found), run_counts(load_params(params), found)
    stages.remove_nodes_from([name for name in list(stages) if not runs[name]])
    if as_json:
        told = [{"stage": name, "runs": runs[name], "after": sorted(stages.predecessors(name))} for name in stages]
        typer.echo(json.dumps({"stages": told, "runs": sum(runs.values())}, indent=2))
    elif mermaid:
        typer.echo("\n".join(mermaid_lines(stages, runs)))
    elif svg is not None:
        draw(stages, runs, svg)
        say(f"{svg} is written")
    else:
        _print(stages, runs)


def stage_graph(stages: dict[str, Any]) -> networkx.DiGraph:
    """Stages as nodes; an edge from each to those that read its outputs, without edges that others imply."""
    import networkx

    written = {
        name: [_path(out) for key in ("outs", "metrics") for out in stage.get(key, [])]
        for name, stage in stages.items()
    }
    edges = networkx.DiGraph()
    edges.add_nodes_from(stages)
    for name, stage in stages.items():
        for dep in map(_path, stage.get("deps", [])):
            for other, outs in written.items():
                if other != name and any(_touch(dep, out) for out in outs):
                    edges.add_edge(other, name)
    return networkx.transitive_reduction(edges)


def _path(entry: Any) -> str:
    return _CELL.sub("*", entry if isinstance(entry, str) else next(iter(entry)))


def _touch(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


def run_counts(params: Any, stages: dict[str, Any]) -> dict[str, int]:
    """How often each stage of dvc.yaml runs for the grid, one of the user's own too."""
    from restorelcc.pipeline.stale import axis_values

    grid = params.grid.model_dump()
    return {
        name: math.prod(len(axis_values(values, grid)) for values in stage.get("matrix", {}).values())
        if isinstance(stage, dict)
        else 1
        for name, stage in stages.items()
    }


def mermaid_lines(stages: networkx.DiGraph, runs: dict[str, int]) -> list[str]:
    """A flowchart from left to right."""
    nodes = [f'    {name}["{name}{_times(runs[name])}"]' for name in stages]
    return ["flowchart LR", *nodes, *(f"    {before} --> {after}" for before, after in stages.edges)]


def _times(count: int) -> str:
    return "" if count == 1 else f" x {count}"


def _print(stages: networkx.DiGraph, runs: dict[str, int]) -> None:
    import networkx
    from rich.console import Console

    from restorelcc.base.escaping import PlainTable, say

    table = PlainTable()
    for title in ("stage", "runs", "waits for"):
        table.add_column(title, justify="right" if title == "runs" else "left")
    for name in networkx.lexicographical_topological_sort(stages):
        table.add_row(name, str(runs[name]), ", ".join(stages.predecessors(name)) or "-")
    console = Console()
    table.show(console)
    console.print()
    say(console, f"{sum(runs.values())} runs in all; `dvc dag` draws every one of them.")


def draw(stages: networkx.DiGraph, runs: dict[str, int], file: Path) -> None:
    """A picture of the stages, in columns from left to right. Raises BadInput where the file cannot be written."""
    import networkx
    from matplotlib.figure import Figure

    for column, names in enumerate(networkx.topological_generations(stages)):
        for name in names:
            stages.nodes[name]["column"] = column
    places = networkx.multipartite_layout(stages, subset_key="column")
    figure = Figure(figsize=(16, 5))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    for before, after in stages.edges:
        far = stages.nodes[after]["column"] - stages.nodes[before]["column"] > 1  # around what stands between
        arrow = {
            "connectionstyle": f"arc3,rad={0.2 if far else 0}",
            "arrowstyle": "->",
            "color": "0.5",
            "shrinkA": 30,
            "shrinkB": 30,
        }
        axes.annotate("", xy=places[after], xytext=places[before], arrowprops=arrow)
    for name, (x, y) in places.items():
        box = {"boxstyle": "round", "facecolor": "white", "edgecolor": "0.3"}
        axes.text(x, y, f"{name}{_times(runs[name])}", ha="center", va="center", fontsize=9, bbox=box)
    across, upward = zip(*places.values(), strict=True)
    for limits, values in ((axes.set_xlim, across), (axes.set_ylim, upward)):
        margin = 0.1 * (max(values) - min(values) or 1)
        limits(min(values) - margin, max(values) + margin)
    try:
        figure.savefig(file, format="svg")
    except OSError as error:
        raise BadInput(f"{file} cannot be written: {error.strerror}") from error

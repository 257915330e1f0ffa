"""`restorelcc plan`: memory, disk and time of every stage of a model, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from restorelcc.base.cell import Cell
from restorelcc.base.layout import Layout
from restorelcc.base.prunings import STRUCTURED_PRUNERS, parse_pruning
from restorelcc.pipeline.params import Params, load_params

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from restorelcc.pipeline.plan_costs import Cost, Shapes, Workload


def add(app: typer.Typer) -> None:
    """Register the verb."""
    app.command("plan", help="Memory, disk and time of every stage of a model, from its config alone.")(plan)


def plan(
    model: Annotated[str, typer.Option("--model", "-m", help="key of `models` in params.yaml")],
    pruning: Annotated[str | None, typer.Option("--pruning", "-p", help="instead of those of the grid")] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu or cuda, instead of the model's own")] = None,
    params: Annotated[Path, typer.Option("--params", help="the parameter file")] = Path("params.yaml"),
    set_: Annotated[list[str] | None, typer.Option("--set", help="section.key=value, overrides the file")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, bytes and seconds")] = False,
) -> None:
    """Estimate what the stages of one model need, and print it."""
    checked = load_params(params, tuple(set_ or ()))
    prunings = (pruning,) if pruning else checked.grid.pruning
    cells = [checked.cell(model, name, None) for name in prunings]
    found = planned(checked, cells, Layout(params.resolve().parent), device)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    from restorelcc.cli.plan_table import print_plan

    print_plan(found)


def planned(params: Params, cells: list[Cell], layout: Layout, device_name: str | None = None) -> dict[str, Any]:
    """{model, shapes, device, how a restored model is kept, stages: [{stage, pruning, runs, memory, disk, seconds}]} in
    bytes and seconds."""
    from restorelcc.models.architectures import check_scores, check_whole_parts
    from restorelcc.models.runtime import pick_device, pick_dtype
    from restorelcc.pipeline.plan_costs import EFFICIENCY, LIBRARIES, MIB, matmul_rate, needs_model, shapes_of
    from restorelcc.release.routes import carried_by

    alias = cells[0].model
    entry = params.models[alias]
    device = pick_device(device_name or entry.device) if device_name != "cuda" else _cuda()
    dtype = pick_dtype(entry.dtype, device)
    network, stored = config_model(params, alias, layout, dtype)
    for cell in cells:
        asked = parse_pruning(str(cell.pruning))
        if asked.external is None:
            check_scores(network.config, asked.name)
        if asked.pruner in STRUCTURED_PRUNERS:
            check_whole_parts(network.config, str(cell.pruning))
    shapes, work = shapes_of(network), workload(params, alias, layout)
    rate = EFFICIENCY * matmul_rate(device, dtype)
    off_gpu = () if needs_model(params.section(alias, "probe")) else ("probe",)
    stages = []
    for stage, pruning, runs, cost in _costs(params, cells, network, shapes, work, dtype, stored, device.type):
        libraries = LIBRARIES[stage.split("_")[0]]
        seconds = runs * (cost.seconds / rate + 5)  # a stage is a process, which takes seconds to start
        # With a GPU the model is on it, and the host only holds the libraries, including those of the GPU.
        on_gpu = device.type == "cuda" and stage not in ("corpus", "dense", "extract", *off_gpu)
        memory = {"memory": libraries + (2048 * MIB if on_gpu else cost.memory), "gpu_memory": cost.memory * on_gpu}
        stages.append({"stage": stage, "pruning": pruning, "runs": runs, **memory, "disk": runs * cost.disk})
        stages[-1]["seconds"] = round(seconds)
    return {
        "model": alias,
        "source": entry.source,
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "parameters": shapes.parameters,
        "layers": shapes.layers,
        "heads": shapes.heads,
        "restored": carried_by(network.config),
        "flops_per_second": rate,
        "stages": stages,
    }


def _cuda() -> torch.device:
    import torch

    return torch.device("cuda")


def config_model(params: Params, alias: str, layout: Layout, dtype: torch.dtype) -> tuple[PreTrainedModel, int]:
    """The model without weights, and the bytes of one stored weight."""
    from restorelcc.base.documents import read_json
    from restorelcc.models.hub import Repository, fetch_config, resolved_commit
    from restorelcc.models.references import local_source
    from restorelcc.sparsity.streaming import empty_model

    entry = params.models[alias]
    if entry.is_microworld:
        return _embedded(params, dtype), 4
    folder = local_source(entry.source, layout.root)
    if folder is None:
        repository = Repository(f"models.{alias}", entry.source)
        folder = fetch_config(repository, resolved_commit(repository, entry.revision))
    network = empty_model(folder, dtype)
    written = getattr(network.config, "dtype", None)
    config = read_json(folder / "config.json")
    name = config.get("dtype") or config.get("torch_dtype") or str(written or "float32")
    return network, 4 if "float32" in str(name) else 2


def _embedded(params: Params, dtype: torch.dtype) -> PreTrainedModel:
    import torch

    from restorelcc.stages.corpus.microworld import vocabulary
    from restorelcc.stages.dense.pretrain import build_model

    with torch.device("meta"):
        network = build_model(params.dense.architecture, len(vocabulary(params.corpus.microworld)))
        torch.nn.Module.to(network, dtype)
        return network


def workload(params: Params, alias: str, layout: Layout) -> Workload:
    """Counts of params.yaml; lengths of the texts as in the corpus, where it is written already."""
    from restorelcc.pipeline.plan_costs import OTHER_TASK_REQUESTS, TASK_REQUESTS, Workload

    entry, section = params.models[alias], lambda name: params.section(alias, name)
    corpus, world, train = section("corpus"), section("corpus").microworld, section("compensate")
    evaluate = section("evaluate")
    tokens, longest, heldout = _text_tokens(layout.corpus(Cell(alias)))
    if entry.is_microworld:
        tokens, longest, heldout = 24, 48, 5 * world.test_items * 24
    names = [task if isinstance(task, str) else task.name for task in entry.tasks]
    requests = sum(TASK_REQUESTS.get(name, OTHER_TASK_REQUESTS) for name in names)
    if entry.is_microworld:
        requests = 5 * world.test_items * 3
    return Workload(
        samples=world.contrast_pairs if entry.is_microworld else min(corpus.contrast, corpus.train),
        train=world.train_pairs if entry.is_microworld else corpus.train,
        valid=world.valid_pairs if entry.is_microworld else corpus.valid,
        tokens=tokens,
        heldout_tokens=heldout,
        requests=requests if evaluate.limit is None else min(requests, 4 * 7 * evaluate.limit),
        token_budget=section("capture").token_budget,
        train_batch=train.batch_size,
        runs=len(train.learning_rates),
        epochs=train.epochs,
        evaluate_batch=evaluate.batch_size if isinstance(evaluate.batch_size, int) else None,
        sequence_length=evaluate.perplexity_tokens,
        longest=min(longest, train.max_tokens),
    )


def _text_tokens(corpus: Path) -> tuple[int, int, int]:
    """Tokens of a pair on average, of the longest pair, and of all held-out texts: by the characters of a corpus that
    is written, else a guess."""
    from restorelcc.base.tables import EXAMPLES, read_table, read_texts
    from restorelcc.pipeline.plan_costs import CHARACTERS, HELDOUT_TOKENS, MEAN_TOKENS
    from restorelcc.training.pairs import TRAIN

    if not (corpus / TRAIN).is_file():
        return MEAN_TOKENS, 2 * MEAN_TOKENS, HELDOUT_TOKENS
    pairs = [len(row["question"]) + len(row["response"]) for row in read_table(corpus / TRAIN, EXAMPLES)]
    heldout = sum(map(len, read_texts(corpus / "heldout.parquet")))
    counted = (sum(pairs) // len(pairs), max(pairs), heldout)
    mean, longest, all_heldout = (max(2, characters // CHARACTERS) for characters in counted)
    return mean, longest, all_heldout


def _costs(
    params: Params,
    cells: list[Cell],
    network: PreTrainedModel,
    shapes: Shapes,
    work: Workload,
    dtype: torch.dtype,
    stored: int,
    device: str,
) -> list[tuple[str, str | None, int, Cost]]:
    """(stage, pruning, runs, cost of one run) in the order of the chain."""
    from restorelcc.pipeline import plan_costs as costs

    entry, ratios = params.models[cells[0].model], len(params.grid.head_ratio)
    size = dtype.itemsize
    evaluate = costs.evaluate_cost(shapes, work, size, device)
    found: list[tuple[str, str | None, int, Cost]] = [
        ("corpus", None, 1, costs.Cost(memory=0, disk=work.heldout_tokens * 6, seconds=0.0)),
        ("dense", None, 1, costs.dense_cost(shapes, stored, pretrained_here=entry.is_microworld)),
        ("capture_dense", None, 1, costs.capture_cost(shapes, work, size, responses=True)),
        ("evaluate_dense", None, 1, evaluate),
    ]
    for cell in cells:
        pruning = parse_pruning(str(cell.pruning))
        config = params.section(cell.model, "prune")
        if entry.is_microworld:  # its documents are a dozen words
            config = config.model_copy(update={"sequence_length": work.tokens})
        probe = params.section(cell.model, "probe")
        per_pruning = [
            ("prune", 1, costs.prune_cost(network, shapes, pruning, config, dtype, stored)),
            ("capture_pruned", 1, costs.capture_cost(shapes, work, size, responses=False)),
            ("extract", 1, costs.extract_cost(shapes, work)),
            ("probe", 1, costs.probe_cost(shapes, work, probe, size)),
            ("evaluate_pruned", 1, evaluate),
            ("compensate", ratios, costs.compensate_cost(shapes, work, size)),
            ("evaluate_restored", ratios, evaluate),
        ]
        found += [(stage, cell.pruning, runs, cost) for stage, runs, cost in per_pruning]
    return found

"""Memory, disk and time of every stage of a model, before anything is loaded; and how much of it is left to run."""

from __future__ import annotations

import os
from collections.abc import Container
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from restorelcc.base.cell import AUTO, Cell, ratio_label
from restorelcc.base.documents import read_json
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import BUDGETS, check_device
from restorelcc.base.packages import gguf_file, is_gguf
from restorelcc.base.prunings import STRUCTURED_PRUNERS, parse_pruning
from restorelcc.models.architectures import check_scores, check_whole_parts
from restorelcc.models.gguf import beside_weights
from restorelcc.models.hub import Repository, fetch_config, resolved_commit
from restorelcc.models.references import local_source
from restorelcc.models.runtime import on_threads, pick_device, pick_dtype
from restorelcc.pipeline import plan_costs as costs
from restorelcc.pipeline import plan_rate
from restorelcc.pipeline.params import Grid, Params, load_params
from restorelcc.pipeline.plan_costs import LIBRARIES, MIB, START, Cost, Shapes, Workload, needs_model, shapes_of
from restorelcc.pipeline.plan_recoveries import evaluated_cost, recovery_cost
from restorelcc.pipeline.plan_work import accuracy_known, pairs_trained_on, workload
from restorelcc.pipeline.stages import STAGES
from restorelcc.release.routes import carried_by
from restorelcc.sparsity.streaming import empty_model
from restorelcc.stages.corpus.microworld import vocabulary
from restorelcc.stages.dense.pretrain import build_model


@dataclass(frozen=True)
class Known:
    """What is the same for all plans of a model: itself without weights, the bytes of one stored weight, its device and
    dtype, the threads it runs on, and the floating point operations per second of a product of large matrices; how many
    times as many they are in bfloat16, on a CPU where the model runs in float32; and where the model is on a GPU, how
    many the CPU has, on which some stages run all the same."""

    network: PreTrainedModel
    stored: int
    device: torch.device
    dtype: torch.dtype
    threads: int
    flops_per_second: float
    bfloat16_speedup: float | None = None
    flops_per_second_of_cpu: float | None = None


def known_of(params: Params, alias: str, layout: Layout, device_name: str | None = None) -> Known:
    """Read from the model's config, and measured."""
    entry = params.models[alias]
    if device_name is not None:
        try:
            check_device(device_name)
        except ValueError as error:
            raise BadInput(f"--device {device_name[:80]!r}: {error}") from error
    device = pick_device(device_name or entry.device) if device_name != "cuda" else torch.device("cuda")
    dtype = pick_dtype(entry.dtype, device)
    network, stored = config_model(params, alias, layout, dtype)
    with on_threads(min(entry.threads, os.cpu_count() or 1)) as threads:  # more of them are no faster
        rate = plan_rate.matmul_rate(device, dtype)
        exact = device.type == "cpu" and dtype == torch.float32
        speedup = plan_rate.bfloat16_speedup(rate) if exact else None
        of_cpu = None if device.type == "cpu" else plan_rate.matmul_rate(torch.device("cpu"), torch.float32)
    return Known(network, stored, device, dtype, threads, rate, speedup, of_cpu)


def whole_plan(
    file: Path, settings: tuple[str, ...], cells: list[Cell], layout: Layout, device_name: str | None = None
) -> dict[str, Any]:
    """`planned` for a parameter file and settings over it; and for a model that is not the embedded one `budgets`,
    {name: {seconds, memory, gpu_memory}} of all stages with each."""
    params, alias = load_params(file, settings), cells[0].model
    known = known_of(params, alias, layout, device_name)
    found = planned(params, cells, layout, known)
    if params.models[alias].is_microworld:
        return found
    found["budgets"] = {}
    for budget in BUDGETS:
        other = load_params(file, (*settings, f"models.{alias}.budget={budget}"))
        stages = planned(other, cells, layout, known)["stages"]
        most = {name: max(row[name] for row in stages) for name in ("memory", "gpu_memory")}
        found["budgets"][budget] = {"seconds": sum(row["seconds"] for row in stages), **most}
    return found


def planned(params: Params, cells: list[Cell], layout: Layout, known: Known) -> dict[str, Any]:
    """{model, shapes, device, how a restored model is kept, stages: [{stage, pruning, recovery, runs, memory, disk,
    seconds}]} in bytes and seconds."""
    alias = cells[0].model
    entry, network, device = params.models[alias], known.network, known.device
    for cell in cells:
        parsed = parse_pruning(str(cell.pruning))
        if parsed.external is None:
            check_scores(network.config, parsed.name)
        if parsed.pruner in STRUCTURED_PRUNERS:
            check_whole_parts(network.config, str(cell.pruning))
    shapes, work = shapes_of(network), workload(params, alias, layout, device)
    of_model = plan_rate.reached(device.type, known.threads) * known.flops_per_second
    of_cpu = plan_rate.reached("cpu", known.threads) * (known.flops_per_second_of_cpu or known.flops_per_second)
    without_model = {"probe": not needs_model(params.section(alias, "probe")), "corpus": not work.written}
    off_gpu = ("dense", "extract", *(name for name, without in without_model.items() if without))
    stages: list[dict[str, Any]] = []
    for stage, pruning, recovery, runs, cost in _costs(params, cells, known, shapes, work):
        libraries = LIBRARIES[stage.split("_")[0]]
        # With a GPU the model is on it, and the host only holds the libraries, including those of the GPU.
        on_gpu = device.type == "cuda" and stage not in off_gpu
        rate = of_cpu if device.type == "cuda" and not on_gpu else of_model
        seconds = runs * (cost.seconds / rate + START[stage.split("_")[0]])
        of_host = libraries + cost.host + (2048 * MIB if on_gpu else cost.memory)
        memory = {"memory": of_host, "gpu_memory": cost.memory * on_gpu}
        names = {"stage": stage, "pruning": pruning, "recovery": recovery, "runs": runs}
        stages.append(names | memory | {"disk": runs * cost.disk})
        stages[-1]["seconds"] = round(seconds, 1)
    return {
        "model": alias,
        "source": entry.source,
        "device": device.type,
        "dtype": str(known.dtype).removeprefix("torch."),
        "parameters": shapes.parameters,
        "layers": shapes.layers,
        "heads": shapes.heads,
        "restored": carried_by(network.config),
        "flops_per_second": of_model,
        "bfloat16_speedup": known.bfloat16_speedup,
        "accuracy": accuracy_known(params, alias),
        "stages": stages,
    }


def config_model(params: Params, alias: str, layout: Layout, dtype: torch.dtype) -> tuple[PreTrainedModel, int]:
    """The model without weights, and the bytes of one stored weight."""
    entry = params.models[alias]
    if entry.is_microworld:
        return _embedded(params, alias, dtype), 4
    file = gguf_file(f"models.{alias}.source", entry.source, layout.root)
    folder = local_source(entry.source, layout.root) if file is None else beside_weights(file, layout.work)
    if folder is None:
        repository = Repository(f"models.{alias}", entry.source)
        folder = fetch_config(repository, resolved_commit(repository, entry.revision))
    network = empty_model(folder, dtype)
    written = getattr(network.config, "dtype", None)
    config = read_json(folder / "config.json", tagged=True)
    name = config.get("dtype") or config.get("torch_dtype") or str(written or "float32")
    return network, 4 if "float32" in str(name) else 2


def _embedded(params: Params, alias: str, dtype: torch.dtype) -> PreTrainedModel:
    dense, corpus = (params.section(alias, name) for name in ("dense", "corpus"))
    with torch.device("meta"):
        network = build_model(dense.architecture, len(vocabulary(corpus.microworld)))
        torch.nn.Module.to(network, dtype)
        return network


def _costs(
    params: Params,
    cells: list[Cell],
    known: Known,
    shapes: Shapes,
    work: Workload,
) -> list[tuple[str, str | None, str | None, int, Cost]]:
    """(stage, pruning, recovery, runs, cost of one run) in the order of the chain, without stages that do not run."""
    network, dtype, stored = known.network, known.dtype, known.stored
    entry, ratios = params.models[cells[0].model], len(params.grid.head_ratio)
    size = dtype.itemsize
    converted = is_gguf(entry.source)
    pretrain = params.section(cells[0].model, "dense").pretrain if entry.is_microworld else None
    dense = costs.dense_cost(shapes, stored, pretrain, converted=converted)
    evaluate = costs.evaluate_cost(shapes, work, size, known.device.type)
    with_rivals = costs.evaluate_cost(shapes, work, size, known.device.type, work.rivals)
    of_restored = costs.evaluate_cost(shapes, work, size, known.device.type, timed=2)
    recover = params.section(cells[0].model, "recover")
    settings = {"runs": len(recover.learning_rates), "epochs": recover.epochs, "train_batch": recover.batch_size}
    settings["train"] = pairs_trained_on(params, cells[0].model, recover)
    recovering = replace(work, longest=min(work.longest, recover.max_tokens), **settings)
    # `auto` trains every one of its ratios.
    auto = len(params.section(cells[0].model, "compensate").auto_ratios)
    trained = sum(auto if ratio == AUTO else 1 for ratio in params.grid.head_ratio) / max(ratios, 1)
    compensated = costs.compensate_cost(shapes, work, size, known.device)
    compensated = replace(compensated, seconds=trained * compensated.seconds)
    sizes: dict[str, Any] = {"size": size, "stored": stored, "device": known.device}
    sizes["calibration"] = params.section(cells[0].model, "corpus").calibration
    found: list[tuple[str, str | None, str | None, int, Cost]] = [
        ("corpus", None, None, 1, costs.corpus_cost(shapes, work, size, known.device)),
        ("dense", None, None, 1, dense),
        ("capture_dense", None, None, 1, costs.capture_cost(shapes, work, size, responses=True)),
        ("evaluate_dense", None, None, 1, with_rivals),
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
            ("probe", 1, costs.probe_cost(shapes, work, probe, size, known.device)),
            ("evaluate_pruned", 1, evaluate),
            ("compensate", ratios, compensated),
            ("evaluate_restored", ratios, of_restored),
        ]
        if timed := len(params.grid.speed):
            per_pruning.append(("speed", timed, costs.speed_cost(shapes, params.section(cell.model, "speed"), stored)))
        found += [(stage, cell.pruning, None, runs, cost) for stage, runs, cost in per_pruning if runs]
        for name in params.grid.recovery:
            recovered = recovery_cost(name, network, shapes, recovering, recover, **sizes)
            measured = evaluated_cost(name, shapes, work, size, known.device.type)
            found += [
                ("recover", cell.pruning, name, 1, recovered),
                ("evaluate_recovered", cell.pruning, name, 1, measured),
            ]
    return found


def with_left(plan: dict[str, Any], grid: Grid, finished: Container[str] | None) -> dict[str, Any]:
    """The plan with `to_run` in every row, the runs of it that are not among the finished, and what these need:
    `left`, {runs, memory, gpu_memory, disk, seconds}. Both are None where nobody knows which are finished."""
    if finished is None:
        return plan | {"stages": [row | {"to_run": None} for row in plan["stages"]], "left": None}
    rows = [
        row | {"to_run": sum(name not in finished for name in _names(plan["model"], row, grid))}
        for row in plan["stages"]
    ]
    waiting = [row for row in rows if row["to_run"]]
    left: dict[str, Any] = {"runs": sum(row["to_run"] for row in waiting)}
    left |= {name: max((row[name] for row in waiting), default=0) for name in ("memory", "gpu_memory")}
    left |= {name: sum(row[name] * row["to_run"] / row["runs"] for row in waiting) for name in ("disk", "seconds")}
    left["disk"] = round(left["disk"])
    return plan | {"stages": rows, "left": left}


def _names(alias: str, row: dict[str, Any], grid: Grid) -> list[str]:
    """DVC's names of the stages that a row stands for."""
    known = {"model": [alias], "pruning": [row["pruning"]], "recovery": [row["recovery"]]}
    axes = [
        known.get(axis) or [ratio_label(value) for value in getattr(grid, values)]
        for axis, values in STAGES[row["stage"]].matrix.items()
    ]
    return [f"{row['stage']}@{'-'.join(cell)}" for cell in product(*axes)]

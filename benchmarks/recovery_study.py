"""`make study`, `make ablation`: every recovery method on several models, seeds and prunings, and the pages of results.

    python -m benchmarks.recovery_study run [--work .study] [--real DIR] [--only TEXT] [--minutes N]
    python -m benchmarks.recovery_study pages

One JSON per cell in docs/results/cells: what is there is not run again, so a study can be broken off and continued.
Cells stand in the order of their weight. Models are trained and prepared in <work>/<subject> as the pipeline does it.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from transformers import PreTrainedModel

from benchmarks.results import measured_with
from benchmarks.smollm2_page import write_smollm2
from benchmarks.study_cells import Method, StudyCell, Subject, ablation_cells, all_cells, all_subjects, smollm2_cells
from benchmarks.study_pages import recovered, write_pages
from restorelcc.base.cell import Cell
from restorelcc.base.documents import read_document, read_json, write_json
from restorelcc.base.layout import Layout
from restorelcc.base.tables import read_texts
from restorelcc.compensation.adapter import REMASKED, with_adapter
from restorelcc.compensation.file import ADAPTER, DOCUMENT, MODEL, read_compensation
from restorelcc.compensation.fold import fold
from restorelcc.models.architectures import prunable_linears
from restorelcc.models.checkpoints import load_model, load_tokenizer
from restorelcc.models.text import encode_documents
from restorelcc.pipeline.params import load_params
from restorelcc.pipeline.stages import STAGES
from restorelcc.stages.evaluate.perplexity import losses
from restorelcc.training.config import FitConfig
from restorelcc.training.losses import mean_loss
from restorelcc.training.pairs import read_pairs

ROOT = Path(__file__).parents[1]
TEXT_TOKENS = 512  # of a held-out text that is scored on its own


@dataclass(frozen=True)
class Cost:
    """Of one stage: seconds as they pass, seconds of all cores, and the peak of this process's memory in bytes."""

    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int | None


def run_stage(root: Path, stage: str, cell: Cell, overrides: tuple[str, ...] = ()) -> Cost:
    """Run one stage in this process."""
    params = load_params(root / "params.yaml", overrides)
    entry = STAGES[stage]
    gc.collect()
    forget_peak_memory()
    started, of_cpu = time.perf_counter(), time.process_time()
    entry.imported()(cell, params.section(cell.model, entry.folder), params.models[cell.model], Layout(root))
    return Cost(time.perf_counter() - started, time.process_time() - of_cpu, peak_memory())


def forget_peak_memory() -> None:
    """Let the peak of this process's memory count from here on, where the system can (Linux)."""
    if (switch := Path("/proc/self/clear_refs")).is_file():
        switch.write_text("5")


def peak_memory() -> int | None:
    """The peak of this process's memory, in bytes; None where the system does not tell."""
    if not (status := Path("/proc/self/status")).is_file():
        return None
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
    return int(found[1]) * 1024 if found else None


def prepare_subject(root: Path, subject: Subject, pruning: str, asks_tasks: bool = True) -> None:
    """Everything up to the pruned model's metrics, as far as it is not there yet; without the metrics where the cell
    is not asked for tasks."""
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "params.yaml").is_file():
        shipped = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        (root / "params.yaml").write_text(yaml.safe_dump(subject.params(shipped, root), sort_keys=False))
    layout, dense, pruned = Layout(root), Cell(subject.model), Cell(subject.model, pruning)
    if (shipped := _aside(layout.heads(pruned))).is_file():  # left by a cell with another ranking, broken off or not
        shipped.replace(layout.heads(pruned))
    steps = [
        ("corpus", dense, layout.corpus(dense)),
        ("dense", dense, layout.dense(dense)),
        ("capture_dense", dense, layout.dense_activations(dense)),
        ("evaluate_dense", dense, layout.metrics(dense)),
        ("prune", pruned, layout.pruned(pruned)),
        ("capture_pruned", pruned, layout.pruned_activations(pruned)),
        ("extract", pruned, layout.components(pruned)),
        ("probe", pruned, layout.heads(pruned)),
        ("evaluate_pruned", pruned, layout.metrics(pruned)),
    ]
    for stage, cell, made in steps:
        if not made.exists() and (asks_tasks or not stage.startswith("evaluate_")):
            run_stage(root, stage, cell)


def _aside(heads: Path) -> Path:
    """Where the shipped ranking lies while a cell has another in its place."""
    return heads.with_suffix(".shipped")


def chosen_rates(training: object) -> list[float]:
    """The learning rates that were chosen, in one run of training or in several that follow each other."""
    if isinstance(training, list):
        return sorted({rate for each in training for rate in chosen_rates(each)})
    if not isinstance(training, dict):
        return []
    if "learning_rate" in training:
        return [] if training["learning_rate"] is None else [training["learning_rate"]]
    return chosen_rates(list(training.values()))


def run_cell(work: Path, study: StudyCell, rates: list[float]) -> dict:
    """Recover, evaluate, and count zeros; what the tables need to know. `rates`: those of an earlier cell, if any."""
    root, subject, method = work / study.subject.name, study.subject, study.method
    prepare_subject(root, subject, study.pruning, study.asks_tasks)
    # A run that was broken off starts anew: its seconds are those of the whole training.
    shutil.rmtree(Layout(root).work, ignore_errors=True)
    pruned = Cell(subject.model, study.pruning)
    cell = method.cell(pruned)
    if method.ranking is not None:  # the next cell puts the shipped ranking back
        heads = Layout(root).heads(pruned)
        heads.replace(_aside(heads))
        run_stage(root, "probe", pruned, (f"probe.score={method.ranking}",))
    overrides = (*subject.overrides, *method.overrides, f"{method.stage}.seed={study.seed}")
    if rates:
        overrides = (*overrides, f"{method.stage}.learning_rates={rates}")
    cost = run_stage(root, method.stage, cell, overrides)
    if study.asks_tasks:
        run_stage(root, f"evaluate_{'restored' if method.stage == 'compensate' else 'recovered'}", cell)
    return measured_cell(Layout(root), study, cost)


def measured_cell(layout: Layout, study: StudyCell, cost: Cost) -> dict:
    """What the pages need to know of a cell that has been run: read from its artifacts, and measured on its models."""
    method, pruned = study.method, Cell(study.subject.model, study.pruning)
    cells = (Cell(study.subject.model), pruned, method.cell(pruned))
    found = study.as_json() | {"seconds": round(cost.seconds, 1), "zeros_kept": zeros_kept(layout, cells[2], method)}
    found |= {"cpu_seconds": round(cost.cpu_seconds, 1), "peak_memory_bytes": cost.peak_memory_bytes}
    found["learning_rates"] = chosen_rates(training(layout, cells[2], method))
    found["measured"] = measured_with("torch", "transformers", "peft", "lm-eval")
    if study.asks_tasks:
        add_metrics(found, layout, cells, method)
    if study.subject.budget is not None:
        add_texts(found, layout, cells, method)
        if study.asks_tasks:
            add_details(found, layout, cells)
    return found


def add_metrics(found: dict, layout: Layout, cells: tuple[Cell, Cell, Cell], method: Method) -> None:
    """What the stages `evaluate` measured of dense, pruned and restored, and of the adapter's variants."""
    metrics = [read_document(layout.metrics(each)) for each in cells]
    found |= {name: metrics[2].get(name) for name in ("params_added", "params_trained", "sparsity")}
    variants = metrics[2].get("variants") or {}
    found["variants"] = {
        name: _measures(each, method.task) | {"sparsity": each["sparsity"]} for name, each in variants.items()
    }
    for number, name in enumerate(("dense", "pruned", "restored")):
        found[name] = _measures(metrics[number], method.task)


def add_texts(found: dict, layout: Layout, cells: tuple[Cell, Cell, Cell], method: Method) -> None:
    """Of dense, pruned and restored every held-out text and the loss of the validation pairs."""
    dense, pruned, cell = cells
    networks: dict[str, Callable[[], PreTrainedModel]] = {
        "dense": lambda: _load(layout.dense(dense)),
        "pruned": lambda: _load(layout.pruned(pruned)),
        "restored": lambda: recovered_model(layout, cell, method, None),
    }
    for of, (name, network) in zip(cells, networks.items(), strict=True):
        kept = layout.root / f"measured-{name}-{of.pruning}.json"  # of dense and pruned: the same for every method
        measured = read_json(kept) if name != "restored" and kept.is_file() else None
        if measured is None:
            model = network()
            measured = of_texts(layout, dense, model) | {"response_loss": of_pairs(layout, dense, model)}
            if name != "restored":
                write_json(kept, measured)
        found[name] = found.get(name, {}) | measured
    if REMASKED in found.get("variants", {}):
        found["variants"][REMASKED] |= of_texts(layout, dense, recovered_model(layout, cell, method, REMASKED))


def add_details(found: dict, layout: Layout, cells: tuple[Cell, Cell, Cell]) -> None:
    """Every task, the tests against dense and pruned, and what the dense model measures rounded to few bits."""
    for of, name in zip(cells, ("dense", "pruned", "restored"), strict=True):
        found[name]["tasks"] = {
            task: each["value"] for task, each in read_document(layout.metrics(of))["tasks"].items()
        }
    details = read_document(layout.details(cells[2]))
    found |= {"versus": details["pooled"], "versus_by_task": details["versus"]}
    found["recovered_accuracy"] = read_document(layout.metrics(cells[2]))["recovered"]
    found["rivals"] = read_document(layout.details(cells[0]))["rivals"]


def of_texts(layout: Layout, dense: Cell, model: PreTrainedModel) -> dict[str, list]:
    """Log-likelihood (nats) and number of scored tokens of every held-out text."""
    texts = read_texts(layout.corpus(dense) / "heldout.parquet")
    documents = encode_documents(load_tokenizer(layout.dense(dense)), texts, TEXT_TOKENS)
    scored = [len(ids) - 1 for ids in documents]
    return {"log_likelihood": [-each for each in losses(model, documents, scored, "texts")], "tokens": scored}


def of_pairs(layout: Layout, dense: Cell, model: PreTrainedModel) -> float:
    """Mean loss of the validation pairs' responses, per token."""
    pairs = read_pairs(layout.corpus(dense), layout.dense(dense), FitConfig(max_tokens=TEXT_TOKENS))
    return mean_loss(model, pairs.valid, pairs.pad)


def _load(folder: Path) -> PreTrainedModel:
    return load_model(folder, torch.float32, torch.device("cpu"))


def training(layout: Layout, cell: Cell, method: Method) -> dict:
    """What the stage has noted of its training."""
    if method.stage == "compensate":
        return read_document(layout.training(cell))
    return read_document(layout.recovered(cell) / DOCUMENT)["training"]


def _measures(metrics: dict, task: str | None = None) -> dict:
    """Accuracy (of one task, where only that one is asked for), perplexity, and bits per byte of the held-out texts."""
    accuracy = metrics["mean"] if task is None else metrics["tasks"][task]["value"]
    return {
        "accuracy": accuracy,
        "perplexity": metrics["perplexity"]["value"],
        "bits_per_byte": metrics["bits_per_byte"],
    }


def recovered_model(layout: Layout, cell: Cell, method: Method, variant: str | None) -> PreTrainedModel:
    """What the method ships: the pruned model with biases folded in, other weights, or an adapter."""
    if method.stage == "compensate":
        model = _load(layout.pruned(cell))
        fold(model, read_compensation(layout.compensation(cell))[0])
        return model
    folder = layout.recovered(cell)
    kind = read_document(folder / DOCUMENT)["kind"]
    model = _load(folder / MODEL if kind == "checkpoint" else layout.pruned(cell))
    if kind == "adapter":
        model = with_adapter(model, folder / ADAPTER, variant)[0]
    if (folder / "compensation.safetensors").is_file():
        fold(model, read_compensation(folder / "compensation.safetensors")[0])
    return model


def zeros_kept(layout: Layout, cell: Cell, method: Method) -> bool | None:
    """Whether every zero of the pruned linears is a zero in the recovered model; None for adapters beside it."""
    if method.stage == "recover" and read_document(layout.recovered(cell) / DOCUMENT)["kind"] == "adapter":
        return None
    pruned, recovered = _load(layout.pruned(cell)), recovered_model(layout, cell, method, None)
    pairs = zip(prunable_linears(pruned), prunable_linears(recovered), strict=True)
    return all(bool((after.weight[before.weight == 0] == 0).all()) for (_, _, before), (_, _, after) in pairs)


def rates_of(cells: Path, study: StudyCell) -> list[float]:
    """The rates that the cell takes over from one that is there; none, and it chooses its own."""
    path = cells / f"{study.rates_from}.json"
    return read_json(path).get("learning_rates", []) if path.is_file() else []


def run_study(options: argparse.Namespace) -> None:
    """Run the cells that are missing, most telling first, until all are there or the minutes are used up."""
    os.environ.setdefault("RESTORELCC_PROGRESS", "0")
    cells, started = options.results / "cells", time.perf_counter()
    cells.mkdir(parents=True, exist_ok=True)
    for study in wanted_cells(options):
        path = cells / f"{study.name}.json"
        if path.is_file() or (options.only and options.only not in study.name):
            continue
        if study.subject.real is not None and not (study.subject.real / "models").is_dir():
            continue  # the pages say that the cell is not measured
        if options.minutes and time.perf_counter() - started > 60 * options.minutes:
            break
        found = run_cell(options.work.resolve(), study, rates_of(cells, study))
        write_json(path, found)
        print(study.name, f"recovered {100 * recovered(found):.1f} %", f"{found['seconds']} s", flush=True)


def wanted_cells(options: argparse.Namespace) -> Iterator[StudyCell]:
    """The cells of the tables that are asked for."""
    if options.table == "smollm2":
        return smollm2_cells(options.budget)
    return (ablation_cells if options.table == "ablation" else all_cells)(all_subjects(options.real))


def main() -> None:
    """Run the study, or write its pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["run", "pages"])
    parser.add_argument("--work", type=Path, default=Path(".study"))
    parser.add_argument(
        "--real", type=Path, default=Path(os.environ.get("RESTORELCC_REAL") or ROOT.parent / "shared/real")
    )
    parser.add_argument("--table", choices=["recovery", "ablation", "smollm2"], help="only the cells of one page")
    parser.add_argument("--budget", default="quick", help="of smollm2: quick, day or full")
    parser.add_argument("--only", help="only cells whose name holds this text")
    parser.add_argument("--minutes", type=float, default=0.0, help="start no further cell after this time; 0: no limit")
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results")
    options = parser.parse_args()
    if options.action == "run":
        run_study(options)
    if options.table == "smollm2":
        command = f"python -m benchmarks.recovery_study run --table smollm2 --budget {options.budget}"
        write_smollm2(options.results, smollm2_cells(options.budget), options.budget, command)
    else:
        write_pages(options.results, all_cells(all_subjects(options.real)))


if __name__ == "__main__":
    main()

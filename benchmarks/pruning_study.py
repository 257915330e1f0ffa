"""How well the pruners do on a real model, SmolLM2-135M, before anything is trained; resumable.

    python -m benchmarks.pruning_study [--work .study] [--only TEXT] [--minutes N] [--pages]

Model and texts are those of docs/real-model.md (`make real`). A row is one pruning with its calibration tokens and
damping, and with block reconstruction behind it where its name says so. One JSON per row in docs/results/cells: what is
there is not run again. Log-likelihoods are per held-out text, so that rows are compared in pairs: the interval is a
bootstrap over the texts. Rows stand in the order of their weight; the page names those that were not run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.recovery_study import ROOT, of_texts, run_stage
from benchmarks.results import gain_per_token, measured_on, share_won_back, table, write_section
from restorelcc.base.cell import Cell
from restorelcc.base.documents import read_document, read_json, write_json
from restorelcc.base.layout import Layout
from restorelcc.base.tables import read_texts
from restorelcc.models.checkpoints import load_model, load_tokenizer
from restorelcc.stages.prune import PruneConfig
from restorelcc.stages.prune.calibration import calibration_batches

MODEL = "smollm2-135m-pip"
PREFIX = "pruning-smollm2-"
TEXTS = 400


@dataclass(frozen=True)
class Row:
    """One pruning: its name, sequences and their length, damping, and the way to recover that follows."""

    pruning: str
    sequences: int = 128
    length: int = 512
    damping: float = 0.01
    recovery: str | None = None

    @property
    def tokens(self) -> int:
        return self.sequences * self.length

    @property
    def name(self) -> str:
        recovery = f"-{self.recovery}" if self.recovery else ""
        return f"{self.pruning}-{self.tokens}-{self.damping:g}{recovery}"


DENSE = Row("dense", 0, 0)
_THREE = ("wanda", "sparsegpt", "refined")


def rows() -> list[Row]:
    """Few tokens and 64k first; then what reconstruction adds, the curve over tokens, and damping."""
    found = [DENSE]
    found += [Row(f"{pruner}-{pattern}", 16) for pattern in ("0.5", "2of4") for pruner in _THREE]
    found += [Row(f"{pruner}-{pattern}") for pattern in ("0.5", "2of4") for pruner in _THREE]
    found += [Row("refined-0.5", recovery="reconstruct")]
    for sequences, length in ((128, 1024), (64, 512), (32, 512)):
        found += [Row(f"{pruner}-0.5", sequences, length) for pruner in ("refined", "sparsegpt")]
    found += [Row("refined-0.5", 16, damping=damping) for damping in (0.1, 1.0)]
    return [*found, Row("refined-2of4", recovery="reconstruct")]


def prepare(root: Path) -> None:
    """The corpus and the dense model, as the stages make them."""
    root.mkdir(parents=True, exist_ok=True)
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["grid"]["model"] = [MODEL]
    amounts = {"calibration": 128, "train": 400, "valid": 60, "contrast": 150, "heldout": TEXTS, "max_tokens": 512}
    params["models"] = {MODEL: params["models"][MODEL] | {"threads": 1, "settings": {"corpus": amounts}}}
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    layout, dense = Layout(root), Cell(MODEL)
    for stage, made in (("corpus", layout.corpus(dense)), ("dense", layout.dense(dense))):
        if not made.exists():
            run_stage(root, stage, dense)


def prepare_components(root: Path, layout: Layout, cell: Cell) -> None:
    """What every recovery is checked against: the lost components of this pruned model."""
    if not layout.dense_activations(cell).exists():
        run_stage(root, "capture_dense", Cell(MODEL))
    for stage, made in (("capture_pruned", layout.pruned_activations(cell)), ("extract", layout.components(cell))):
        shutil.rmtree(made, ignore_errors=True)
        made.unlink(missing_ok=True)
        run_stage(root, stage, cell)


def measured(layout: Layout, folder: Path) -> dict[str, list]:
    return of_texts(layout, Cell(MODEL), load_model(folder, torch.float32, torch.device("cpu")))


@torch.no_grad()
def forward_seconds(layout: Layout) -> float:
    """CPU seconds of one plain forward of the calibration tokens that most rows have, without the output layer."""
    torch.set_num_threads(1)
    cell, row, cpu = Cell(MODEL), Row("dense"), torch.device("cpu")
    texts, tokenizer = read_texts(layout.corpus(cell) / "calibration.parquet"), load_tokenizer(layout.dense(cell))
    config = PruneConfig(samples=row.sequences, sequence_length=row.length)
    batches, model = (
        calibration_batches(tokenizer, texts, config, cpu),
        load_model(layout.dense(cell), torch.float32, cpu),
    )
    model.base_model(input_ids=batches[0], use_cache=False)
    began = time.process_time()
    for tokens_BT in batches:
        model.base_model(input_ids=tokens_BT, use_cache=False)
    return time.process_time() - began


def run_row(root: Path, row: Row) -> dict[str, Any]:
    """Prune (and reconstruct), then measure."""
    layout = Layout(root)
    found: dict[str, Any] = {"row": row.name, "pruning": row.pruning, "calibration_tokens": row.tokens}
    found |= {"damping": row.damping, "recovery": row.recovery}
    if row == DENSE:
        return found | measured(layout, layout.dense(Cell(MODEL))) | {"forward_cpu_seconds": forward_seconds(layout)}
    cell = Cell(MODEL, row.pruning)
    shutil.rmtree(layout.pruned(cell), ignore_errors=True)
    settings = (f"samples={row.sequences}", f"sequence_length={row.length}", f"damping={row.damping}")
    began = time.process_time()
    of_model = f"models.{MODEL}.settings.prune"  # the budget has values of its own, which go over the section's
    run_stage(root, "prune", cell, tuple(f"{of_model}.{setting}" for setting in settings))
    found["cpu_seconds"] = round(time.process_time() - began, 1)
    report = read_document(layout.pruned(cell) / "sparsity.json")
    found |= {"sparsity": report["achieved"], "calibrated_on": report["calibration"]["tokens"]}
    if found["calibrated_on"] < 0.9 * row.tokens:
        raise SystemExit(f"{row.name} saw {found['calibrated_on']} calibration tokens, not {row.tokens}")
    errors = [tensor["error"] for tensor in report["tensors"].values() if tensor["error"] is not None]
    found["layer_error"], folder = float(np.mean(errors)), layout.pruned(cell)
    if row.recovery:
        prepare_components(root, layout, cell)
        cell = Cell(MODEL, row.pruning, recovery=row.recovery)
        shutil.rmtree(layout.recovered(cell), ignore_errors=True)
        began = time.process_time()
        run_stage(root, "recover", cell, ("recover.learning_rates=[0.0003]",))
        found["recovery_cpu_seconds"] = round(time.process_time() - began, 1)
        folder = layout.recovered(cell) / "model"
    return found | measured(layout, folder)


def _plain(found: dict[Row, dict], pruning: str, row: Row) -> dict | None:
    """A plain pruning to compare a row with: on as many calibration tokens, or else on the most that were run."""
    own = [each for each in found if (each.pruning, each.recovery) == (pruning, None)]
    own.sort(key=lambda each: (each.tokens == row.tokens, each.tokens))
    return found[own[-1]] if own else None


def _forwards(row: dict, dense: dict) -> str:
    """The pruner's seconds as a multiple of a plain forward of as many tokens."""
    forward = dense.get("forward_cpu_seconds")
    if forward is None:
        return ""
    return f" ({row['cpu_seconds'] / (forward * row['calibrated_on'] / Row('dense').tokens):.1f})"


def perplexity(found: dict) -> float:
    return float(np.exp(-sum(found["log_likelihood"]) / sum(found["tokens"])))


def page(cells: Path) -> None:
    """The section of docs/results/pruning.md, of the rows that are there; the others are named."""
    paths = {row: cells / f"{PREFIX}{row.name}.json" for row in rows()}
    found = {row: read_json(path) for row, path in paths.items() if path.is_file()}
    dense = found[DENSE]
    lines = []
    for row, own in found.items():
        if row == DENSE:
            lines.append(["dense", "", "", f"{perplexity(own):.2f}", "", "", "", ""])
            continue
        pattern = row.pruning.partition("-")[2]
        wanda, rival = (_plain(found, f"{pruner}-{pattern}", row) for pruner in ("wanda", "sparsegpt"))
        share, ahead = "", ""
        if wanda is not None and row.pruning.partition("-")[0] != "wanda":
            share = "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * each for each in share_won_back(own, wanda, dense)))
        if rival is not None and rival is not own and row.pruning.startswith("refined"):
            ahead = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*gain_per_token(own, rival))
        seconds = own["cpu_seconds"] + own.get("recovery_cpu_seconds", 0)
        name = row.pruning + (f", then {row.recovery}" if row.recovery else "")
        lines.append([name, f"{own['calibrated_on']:,}", f"{row.damping:g}", f"{perplexity(own):.2f}", share, ahead,
                      f"{own['layer_error']:.4f}",
                      f"{seconds:.0f}" + _forwards(own, dense)])  # fmt: skip
    columns = ["pruning", "calibration tokens", "damping", "perplexity", "of Wanda's loss won back, %",
               "nats a token ahead of SparseGPT", "mean layer error", "CPU s (pruning, x forward)"]  # fmt: skip
    texts, tokens = len(dense["tokens"]), sum(dense["tokens"])
    missing = ", ".join(row.name for row in rows() if row not in found)
    body = [
        f"SmolLM2-135M-Instruct, nothing trained but where reconstruction is named. {texts} passages of LAMBADA, "
        f"{tokens:,} scored tokens; calibration texts are passages of SQuAD, CoQA and DROP. Both comparisons are with "
        "the Wanda and the SparseGPT of the same pattern on as many tokens (or else on the most that were run), paired "
        "by text, with 95 % bootstrap intervals. `python -m benchmarks.pruning_study` continues the study.",
        measured_on(1),
        table(columns, lines),
        f"Not run: {missing}." if missing else "",
    ]
    write_section(cells.parent / "pruning.md", "pruning-smollm2", "A real model", "\n\n".join(filter(None, body)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(".study"))
    parser.add_argument("--only", help="only rows whose name holds this text")
    parser.add_argument("--minutes", type=float, default=0.0, help="start no further row after this time; 0: no limit")
    parser.add_argument("--pages", action="store_true", help="run nothing, write the page")
    options = parser.parse_args()
    os.environ.setdefault("RESTORELCC_PROGRESS", "0")
    cells, root, started = ROOT / "docs/results/cells", options.work.resolve() / "pruning", time.perf_counter()
    for row in [] if options.pages else rows():
        path = cells / f"{PREFIX}{row.name}.json"
        if path.is_file() or (options.only and options.only not in row.name):
            continue
        if options.minutes and time.perf_counter() - started > 60 * options.minutes:
            break
        prepare(root)
        found = run_row(root, row)
        write_json(path, found)
        print(row.name, f"{perplexity(found):.2f}", f"{found.get('cpu_seconds', 0)} CPU-s", flush=True)
    page(cells)


if __name__ == "__main__":
    main()

"""The probe of all heads at once against one torch.nn.Linear with Adam x 200 per head; gradient against causal.

    python -m benchmarks.probe [--layers 32] [--heads 32] [--samples 1000] [--head-dim 128] [--loop-heads 8]
                               [--model data/tiny] [--pruning wanda-0.5] [--threads 0]

Per layer, ours probes all its heads and the loop the first `--loop-heads` of them, in turns in one process: the loop
over all 1,024 heads would take minutes. The same ranking is checked over every head that both have probed.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from statistics import median

import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.results import Results, verdict
from restorelcc.core.components import main_component
from restorelcc.core.text import encode_contrasts
from restorelcc.io.activations import NEGATIVE, POSITIVE, QUESTION, read_layer, read_layout
from restorelcc.io.checkpoints import load_model, load_tokenizer
from restorelcc.io.corpus_tables import CONTRAST
from restorelcc.io.tables import read_table
from restorelcc.io.tensors import read_tensors
from restorelcc.probe.attribution import causal_scores, gradient_scores, margin_batches
from restorelcc.probe.contrastive import Solver, heldout_mask, probe_heads
from restorelcc.probe.margins import evenly_spread

Triple = tuple[Tensor, Tensor, Tensor]


def planted(samples: int, heads: int, head_dim: int, layer: int) -> Triple:
    """Random activations in which each head tells the answers apart by another strength, from none to clear."""
    generator = torch.Generator().manual_seed(layer)
    q, p, n = (torch.randn(samples, heads, head_dim, generator=generator) for _ in range(3))
    strength_H = 3 * torch.rand(heads, generator=generator)
    direction_HD = torch.nn.functional.normalize(torch.randn(heads, head_dim, generator=generator), dim=-1)
    shift_HD = 0.5 * strength_H[:, None] * direction_HD
    return q, p + shift_HD, n - shift_HD


def one_linear_layer(q: Tensor, p: Tensor, n: Tensor, heldout_N: Tensor) -> tuple[float, float]:
    """The straightforward way, for one head: (held-out accuracy, log-loss)."""
    x = torch.cat([torch.cat([q, side], dim=1)[~heldout_N] for side in (p, n)])
    y = torch.cat([torch.ones(len(x) // 2), torch.zeros(len(x) // 2)])
    linear = torch.nn.Linear(x.shape[1], 1)
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    optimizer = torch.optim.Adam(linear.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(linear(x)[:, 0], y).backward()
        optimizer.step()
    with torch.no_grad():
        z_p, z_n = (linear(torch.cat([q, side], dim=1)[heldout_N])[:, 0] for side in (p, n))
    loss = torch.nn.functional.softplus(torch.cat([-z_p, z_n])).mean()
    return float(torch.cat([z_p > 0, z_n <= 0]).double().mean()), float(loss)


def real(folder: Path, pruning: str) -> list[Triple]:
    """(recovered question, positive, negative) of every layer of a captured model."""
    tensors, _ = read_tensors(folder / pruning / "components.safetensors", ("directions", "loadings"))
    component_LHD = main_component(tensors["directions"], tensors["loadings"], 1)
    heads, _ = read_layout(folder / "activations")
    return [
        (
            read_layer(folder / pruning / "activations", layer, QUESTION, heads) + component_LHD[layer],
            read_layer(folder / "activations", layer, POSITIVE, heads),
            read_layer(folder / "activations", layer, NEGATIVE, heads),
        )
        for layer in range(heads.layers)
    ]


def race(out: Results, name: str, layers: list[Triple], loop_heads: int, solver: Solver, goal: float | None) -> None:
    """Time both ways layer by layer and compare what they say."""
    ratios, ours_ms, loop_ms = [], [], []
    ours: list[tuple[float, float]] = []
    loop: list[tuple[float, float]] = []
    threads = torch.get_num_threads()
    for q, p, n in layers:
        heldout_N = heldout_mask(len(q), 0.3, 42)
        torch.set_num_threads(threads)
        start = time.perf_counter()
        scores = probe_heads(q, p, n, heldout_N, solver=solver)
        middle = time.perf_counter()
        torch.set_num_threads(1)  # where so small a layer is fastest
        count = min(loop_heads, q.shape[1])
        loop += [one_linear_layer(q[:, h], p[:, h], n[:, h], heldout_N) for h in range(count)]
        ours_ms.append(1000 * (middle - start) / q.shape[1])
        loop_ms.append(1000 * (time.perf_counter() - middle) / count)
        ratios.append(loop_ms[-1] / ours_ms[-1])
        torch.set_num_threads(threads)
        ours += list(zip(scores.accuracy_H[:count].tolist(), scores.log_loss_H[:count].tolist(), strict=True))
    accuracy, loss = (spearmanr([a[k] for a in ours], [b[k] for b in loop])[0] for k in range(2))
    speed = median(ratios)
    cells = [f"{median(loop_ms):.1f}", f"{median(ours_ms):.2f}", f"{speed:.1f} x"]
    out.say(
        f"| {name} | {' | '.join(cells)} | {accuracy:.4f} | {loss:.4f} | "
        f"{'' if goal is None else verdict(speed, goal) + ', '}ranking {verdict(accuracy, 0.99)} |"
    )


def attribution(out: Results, folder: Path, pruning: str, samples: int) -> None:
    """gradient against causal on a captured model."""
    rows = read_table(folder.parent / "corpus" / folder.name / "contrast.parquet", CONTRAST)
    model = load_model(folder / pruning / "pruned", torch.float32, torch.device("cpu"))
    tokenizer = load_tokenizer(folder / pruning / "pruned")
    chosen = [rows[number] for number in evenly_spread(len(rows), samples)]
    tensors, _ = read_tensors(folder / pruning / "components.safetensors", ("directions", "loadings"))
    lost_LHD = main_component(tensors["directions"], tensors["loadings"], tensors["loadings"].shape[-1])
    batches = margin_batches(model, encode_contrasts(tokenizer, chosen, 1024), token_budget=4096, pad=0)
    start = time.perf_counter()
    gradient_LH = gradient_scores(model, batches, lost_LHD[:, None])
    middle = time.perf_counter()
    causal_LH = causal_scores(model, batches, lost_LHD[:, None])
    end = time.perf_counter()
    value = spearmanr(gradient_LH.flatten(), causal_LH.flatten())[0]
    out.say(
        f"`gradient` against `causal`, {gradient_LH.numel()} heads of {folder}, {pruning}, {len(chosen)} tuples: "
        f"Spearman {value:.3f}, {verdict(value, 0.9)}; {middle - start:.1f} s against {end - middle:.1f} s."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("layers", 32), ("heads", 32), ("samples", 1000), ("head-dim", 128), ("loop-heads", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", type=Path, default=Path("data/tiny"))
    parser.add_argument("--pruning", default="wanda-0.5")
    parser.add_argument("--causal-samples", type=int, default=64)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    os.environ["RESTORELCC_PROGRESS"] = "0"
    out = Results("Probe", "make bench-probe")
    size = (options.samples, options.heads, options.head_dim)
    out.say(
        f"`paper`; ours on {torch.get_num_threads()} threads, the loop on one, where it is fastest. Planted: "
        f"{options.layers * options.heads} heads, D = {size[2]}, N = {size[0]}; the loop runs "
        f"{options.loop_heads} heads of each layer. Real: {options.model}, {options.pruning}."
    )
    out.say()
    out.table(["", "loop, ms a head", "ours, ms a head", "faster", "Spearman accuracy", "log-loss", "goals"], [])
    out._lines.pop()
    warm = planted(200, 4, 32, 0)
    probe_heads(*warm, heldout_mask(200, 0.3, 0), solver="newton")
    race(out, "planted", [planted(*size, layer) for layer in range(options.layers)], options.loop_heads, "auto", 30)
    if (options.model / options.pruning / "components.safetensors").is_file():
        layers = real(options.model, options.pruning)
        race(out, "real, solver auto", layers, 10_000, "auto", None)
        race(out, "real, solver newton", layers, 10_000, "newton", None)
        out.say()
        attribution(out, options.model, options.pruning, options.causal_samples)
    else:
        out.say()
        out.say(f"{options.model}/{options.pruning} is not there: run `make repro` for the rows on real activations.")
    out.write("probe")


if __name__ == "__main__":
    main()

"""The probe of all heads at once against one torch.nn.Linear with Adam x 200 per head; gradient against causal.

    python -m benchmarks.probe [--layers 32] [--heads 32] [--samples 1000] [--head-dim 128] [--loop-heads 8]
                               [--model data/tiny ...] [--pruning wanda-0.5] [--threads 0]

Layer by layer, in turns in one process, ours probes all heads of the group of layers that the stage would put it
into, and the loop the first `--loop-heads` of that layer: the loop over all 1,024 heads would take minutes. The
same ranking is checked over every head that both have probed.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.results import Results, verdict
from restorelcc.activations.store import NEGATIVE, POSITIVE, QUESTION, read_layer, read_layout
from restorelcc.base.tables import CONTRAST, read_table
from restorelcc.models.checkpoints import load_model, load_tokenizer
from restorelcc.models.heads import main_component
from restorelcc.models.tensors import read_tensors
from restorelcc.models.text import encode_contrasts
from restorelcc.stages.probe.attribution import causal_scores, gradient_scores, margin_batches
from restorelcc.stages.probe.contrastive import Solver, heldout_mask, probe_heads
from restorelcc.stages.probe.margins import evenly_spread
from restorelcc.stages.probe.stage import layer_groups

Triple = tuple[Tensor, Tensor, Tensor]


def planted(samples: int, heads: int, head_dim: int, layer: int, size: float = 1.0) -> Triple:
    """Random activations in which each head tells the answers apart by another strength, from none to clear."""
    generator = torch.Generator().manual_seed(layer)
    q, p, n = (torch.randn(samples, heads, head_dim, generator=generator) for _ in range(3))
    strength_H = 3 * torch.rand(heads, generator=generator)
    direction_HD = torch.nn.functional.normalize(torch.randn(heads, head_dim, generator=generator), dim=-1)
    shift_HD = 0.5 * strength_H[:, None] * direction_HD
    return size * q, size * (p + shift_HD), size * (n - shift_HD)


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


def alphabetical(layers: list[Triple], rows: list[dict]) -> list[Triple]:
    """The same activations with another contrast: which of the two answers comes first in the alphabet. Unlike the
    truth of an answer, a linear layer can see that, in some heads better than in others."""
    swap_N11 = torch.tensor([row["negative"] < row["positive"] for row in rows])[:, None, None]
    return [(q, torch.where(swap_N11, n, p), torch.where(swap_N11, p, n)) for q, p, n in layers]


@dataclass
class Judged:
    """Held-out accuracy and log-loss of one head after another, and how long a head took in each layer."""

    accuracy: list[float] = field(default_factory=list)
    log_loss: list[float] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)

    def ranks_like(self, other: Judged) -> tuple[float, float]:
        """Spearman's correlation of accuracy and of log-loss over the heads that both have."""
        pairs = ((self.accuracy, other.accuracy), (self.log_loss, other.log_loss))
        return tuple(float(spearmanr(one[: len(two)], two)[0]) for one, two in pairs)  # type: ignore[return-value]


def looped(layer: Triple, heads: int, heldout_N: Tensor, into: Judged) -> None:
    """The straightforward way, on one thread, where so small a layer is fastest."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.perf_counter()
    for head in range(heads):
        accuracy, loss = one_linear_layer(*(part[:, head] for part in layer), heldout_N)
        into.accuracy.append(accuracy)
        into.log_loss.append(loss)
    into.ms.append(1000 * (time.perf_counter() - start) / heads)
    torch.set_num_threads(threads)


def at_once(group: Triple, noted: slice, heldout_N: Tensor, solver: Solver, into: Judged) -> None:
    """Ours on all heads of a group of layers, of which some are noted."""
    start = time.perf_counter()
    scores = probe_heads(*group, heldout_N, solver=solver)
    into.ms.append(1000 * (time.perf_counter() - start) / group[0].shape[1])
    into.accuracy += scores.accuracy_H[noted].tolist()
    into.log_loss += scores.log_loss_H[noted].tolist()


def race(out: Results, name: str, layers: list[Triple], loop_heads: int, *, only_newton: bool = False) -> None:
    """Both ways layer by layer in turns; one row of the table for each solver of ours."""
    loop, again = Judged(), Judged()
    ours: dict[Solver, Judged] = {"newton": Judged()} if only_newton else {"newton": Judged(), "adam": Judged()}
    samples, heads, head_dim = layers[0][0].shape
    heldout_N, loop_heads = heldout_mask(samples, 0.3, 42), min(loop_heads, heads)
    for numbers in layer_groups(len(layers), heads * head_dim):
        group: Triple = tuple(torch.cat(parts, dim=1) for parts in zip(*(layers[n] for n in numbers), strict=True))  # type: ignore[assignment]
        for place, number in enumerate(numbers):
            noted = slice(place * heads, place * heads + loop_heads)
            for solver, judged in ours.items():
                at_once(group, noted, heldout_N, solver, judged)
            looped(layers[number], loop_heads, heldout_N, loop)
            if not only_newton:
                backwards: Triple = tuple(part.flip(0) for part in layers[number])  # type: ignore[assignment]
                looped(backwards, loop_heads, heldout_N.flip(0), again)
    spread = f"{min(loop.accuracy):.2f} .. {max(loop.accuracy):.2f}"
    for solver, judged in ours.items():
        speed = median([a / b for a, b in zip(loop.ms, judged.ms, strict=True)])
        accuracy, loss = judged.ranks_like(loop)
        verdicts = [f"speed {verdict(speed, 30)}", f"ranking {verdict(accuracy, 0.99)}"]
        cells = [name, solver, spread, f"{median(loop.ms):.1f}", f"{median(judged.ms):.2f}", f"{speed:.1f} x"]
        out.say(f"| {' | '.join(cells)} | {accuracy:.4f} | {loss:.4f} | {', '.join(verdicts)} |")
    if not only_newton:
        accuracy, loss = again.ranks_like(loop)
        cells = [name, "the recipe itself, pairs in another order", spread, f"{median(loop.ms):.1f}", "", ""]
        out.say(f"| {' | '.join(cells)} | {accuracy:.4f} | {loss:.4f} | |")


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
        f"`gradient` against `causal`, {gradient_LH.numel()} heads of {folder.name}, {pruning}, {len(chosen)} tuples: "
        f"Spearman {value:.3f}, {verdict(value, 0.9)}; {middle - start:.1f} s against {end - middle:.1f} s."
    )


_COLUMNS = ["", "solver", "accuracy", "loop, ms a head", "ours", "faster", "Spearman, accuracy", "log-loss", "goals"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("layers", 32), ("heads", 32), ("samples", 1000), ("head-dim", 128), ("loop-heads", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--real-heads", type=int, default=16, help="heads of a layer of the embedded model")
    parser.add_argument(
        "--model", type=Path, nargs="+", default=[Path("data/tiny")], help="folders of models with captured activations"
    )
    parser.add_argument("--pruning", default="wanda-0.5")
    parser.add_argument("--causal-samples", type=int, default=64)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    os.environ["RESTORELCC_PROGRESS"] = "0"
    threads = torch.get_num_threads()
    size = (options.samples, options.heads, options.head_dim)
    out = Results("probe", "All heads at once", "make bench-probe")
    out.say(
        f"`paper`; ours on {threads} threads, the loop (a linear layer and Adam x 200 per head) on one, where it is "
        f"fastest. Planted: {options.layers * options.heads} heads, D = {size[2]}, N = {size[0]}; the loop runs "
        f"{options.loop_heads} heads of each layer. Then the activations of real models, {options.pruning}, with the "
        "paper's contrast, which no linear layer can see on the embedded model (docs/probing.md), and with one that it "
        "can: which answer comes first in the alphabet. `auto` takes adam for heads of up to 16 numbers, as those of "
        "these models are, and newton for larger ones, as the planted ones are. How far the recipe agrees with itself "
        "when rounding falls otherwise is as far as any solver can agree with it."
    )
    out.say()
    for cells in (_COLUMNS, ["---"] * len(_COLUMNS)):
        out.say(f"| {' | '.join(cells)} |")
    probe_heads(*planted(200, 4, 32, 0), heldout_mask(200, 0.3, 0), solver="newton")  # warm up
    for name, scale in (("planted", 1.0), ("planted, a tenth of the size", 0.1)):
        layers = [planted(*size, layer, scale) for layer in range(options.layers)]
        race(out, name, layers, options.loop_heads, only_newton=True)
    captured = [each for each in options.model if (each / options.pruning / "components.safetensors").is_file()]
    for folder in captured:
        layers = real(folder, options.pruning)
        rows = read_table(folder.parent / "corpus" / folder.name / "contrast.parquet", CONTRAST)
        race(out, f"{folder.name}, the paper's contrast", layers, options.real_heads)
        race(out, f"{folder.name}, alphabetical", alphabetical(layers, rows), options.real_heads)
    for folder in options.model:
        if folder not in captured:
            print(
                f"{folder}/{options.pruning} is not there: run the pipeline for its rows (`make repro` for data/tiny)."
            )
    out.write(threads)
    if captured:
        out = Results("probe", "Gradient and causal", "make bench-probe")
        for folder in captured:
            attribution(out, folder, options.pruning, options.causal_samples)
            out.say()
        out.write(threads)


if __name__ == "__main__":
    main()

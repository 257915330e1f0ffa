"""The method on one GPU: a random model of LLaMA-7B's shape from capture to fold, and pruned; seconds, FLOPs, memory.

    python -m benchmarks.gpu_restore [--size 7b] [--device cuda] [--samples 1000] [--train 2000]

Needs torch, transformers and safetensors only. Capture (dense and pruned), extract, probe, compensate (3 epochs) and
fold on question/response pairs with lengths like Alpaca's; Wanda and SparseGPT 2:4 on 128 sequences of 2,048 tokens.
Beside capture and compensate stands the straightforward way, on a slice. `--size tiny --device cpu` tries the script.
"""

from __future__ import annotations

import argparse
import datetime
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks import stand_ins

STOOD_IN = stand_ins.provide()

import torch  # noqa: E402
import transformers  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from benchmarks import straightforward  # noqa: E402
from restorelcc.base.prunings import parse_pruning  # noqa: E402
from restorelcc.compensation.fold import fold  # noqa: E402
from restorelcc.models.architectures import head_layout, prunable_linears  # noqa: E402
from restorelcc.models.heads import HeadLayout, main_component  # noqa: E402
from restorelcc.models.text import EncodedContrast, EncodedPair  # noqa: E402
from restorelcc.stages.capture.capture import capture_heads, question_samples, response_samples  # noqa: E402
from restorelcc.stages.extract.decompose import decompose  # noqa: E402
from restorelcc.stages.probe.contrastive import (  # noqa: E402
    heldout_mask,
    probe_heads,
    rank_heads,
)
from restorelcc.stages.prune import PruneConfig  # noqa: E402
from restorelcc.stages.prune.prune import prune_model  # noqa: E402
from restorelcc.training.attached import HeadCompensation, TrainableCompensation, attached  # noqa: E402
from restorelcc.training.losses import response_batch, response_loss  # noqa: E402

SIZES = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "tiny": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4},
}
HEAD_RATIO, EPOCHS, BATCH, RATE = 0.25, 3, 8, 1e-3


@dataclass(frozen=True)
class Row:
    """One line of the table; flops are those of the model's matrices, for `tokens` tokens."""

    name: str
    seconds: float
    tokens: int = 0
    flops: float = 0.0
    peak: int = 0


class Bench:
    """One device, its measured matmul peak, and the rows so far."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.rows = device, list[Row]()
        self.peak = self.matmul_peak()

    def settled(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def matmul_peak(self) -> float:
        """FLOP/s of a large square matrix product in the model's dtype, the best of several."""
        size = 8192 if self.device.type == "cuda" else 512
        one = torch.randn(size, size, device=self.device, dtype=dtype_of(self.device))
        best = 0.0
        for _ in range(10):
            self.settled()
            start = time.perf_counter()
            for _ in range(5):
                one @ one
            self.settled()
            best = max(best, 5 * 2 * size**3 / (time.perf_counter() - start))
        return best

    def timed(self, name: str, work: Callable[[], object], tokens: int = 0, flops: float = 0.0) -> object:
        """Run and note one stage."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.settled()
        start = time.perf_counter()
        result = work()
        self.settled()
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0
        self.rows.append(Row(name, time.perf_counter() - start, tokens, flops, peak))
        print(self.line(self.rows[-1]), flush=True)
        return result

    def line(self, row: Row) -> str:
        rate = f"{row.tokens / row.seconds:,.0f}" if row.tokens else "-"
        share = f"{100 * row.flops / row.seconds / self.peak:.1f}" if row.flops else "-"
        peak = f"{row.peak / 2**30:.1f}" if row.peak else "-"
        return f"| {row.name} | {row.seconds:,.2f} | {row.tokens or '-':} | {rate} | {share} | {peak} |"


def dtype_of(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def random_model(size: str, device: torch.device, seed: int = 0) -> LlamaForCausalLM:
    """Random weights, made on the device they stay on."""
    torch.manual_seed(seed)
    config = LlamaConfig(**SIZES[size], vocab_size=32_000, max_position_embeddings=2048, attn_implementation="sdpa")
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype_of(device))
    try:
        with device:
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    return model.eval().requires_grad_(False)


def alpaca_lengths(rng: random.Random) -> tuple[int, int]:
    """Tokens of a question and a response: medians of about 25 and 60, with Alpaca's long tail."""
    return min(400, max(6, int(rng.lognormvariate(3.3, 0.6)))), min(600, max(2, int(rng.lognormvariate(4.0, 1.0))))


def contrasts(count: int, seed: int = 0) -> list[EncodedContrast]:
    """Random token ids: a question with two responses."""
    rng = random.Random(seed)

    def ids(length: int) -> list[int]:
        return [rng.randrange(3, 32_000) for _ in range(length)]

    found = []
    for _ in range(count):
        (asked, first), (_, second) = alpaca_lengths(rng), alpaca_lengths(rng)
        question = ids(asked)
        pairs = [EncodedPair(question + ids(length), asked, False) for length in (first, second)]
        found.append(EncodedContrast(*pairs))
    return found


def forward_flops(model: LlamaForCausalLM, lengths: list[int], *, head: bool) -> float:
    """2 per weight and token, and causal attention's scores and values."""
    weights = sum(linear.weight.numel() for _, _, linear in prunable_linears(model))
    weights += model.lm_head.weight.numel() if head else 0
    layout = head_layout(model)
    return sum(2.0 * weights * n + 2.0 * layout.layers * layout.width * n * n for n in lengths)


def train_batches(pairs: list[EncodedPair]) -> Iterator[list[EncodedPair]]:
    generator = torch.Generator().manual_seed(42)
    for _ in range(EPOCHS):
        order = torch.randperm(len(pairs), generator=generator).tolist()
        for start in range(0, len(order), BATCH):
            yield [pairs[number] for number in order[start : start + BATCH]]


def train(model: LlamaForCausalLM, compensation: TrainableCompensation, batches: list[list[EncodedPair]]) -> None:
    """The steps of restorelcc.training.loop: AdamW, linear decay, loss on response tokens."""
    optimizer = torch.optim.AdamW(compensation.parameters(), lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(batches))
    with attached(model, compensation):
        for batch in batches:
            loss = response_loss(model, *response_batch(batch, 0, model.device))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(compensation.parameters(), 1.0)
            optimizer.step()
            schedule.step()


def extract(dense_LNRX: Tensor, pruned_LNRX: Tensor, layout: HeadLayout, device: torch.device) -> tuple[Tensor, Tensor]:
    """Directions and loadings of every head."""
    lost = (dense_LNRX[:, :, 0] - pruned_LNRX[:, :, 0]).unflatten(-1, (layout.heads, layout.head_dim))
    found = [decompose(lost_NHD.to(device)) for lost_NHD in lost]
    return torch.stack([c.directions_HDD.cpu() for c in found]), torch.stack([c.loadings_HD.cpu() for c in found])


def probe(dense: Tensor, pruned: Tensor, parts: tuple[Tensor, Tensor], layout: HeadLayout) -> list[tuple[int, int]]:
    """The best heads, as (layer, head)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    component_LHD = main_component(*parts, 1)
    heldout = heldout_mask(dense.shape[1], 0.3, 42)
    scores = []
    for layer in range(layout.layers):
        question, positive, negative = (
            each.unflatten(-1, (layout.heads, layout.head_dim)).to(device)
            for each in (pruned[layer, :, 0], dense[layer, :, 1], dense[layer, :, 2])
        )
        recovered = question + component_LHD[layer].to(device)
        found = probe_heads(recovered, positive, negative, heldout.to(device), steps=200, learning_rate=0.01)
        scores.append((found.accuracy_H.cpu(), found.log_loss_H.cpu()))
    rank_LH = rank_heads(*(torch.stack(column) for column in zip(*scores, strict=True)))
    count = max(1, round(HEAD_RATIO * layout.total))
    return [tuple(place) for place in (rank_LH < count).nonzero().tolist()]


def measure(options: argparse.Namespace) -> Bench:
    """All rows, in order."""
    device = torch.device(options.device)
    bench = Bench(device)
    print(f"matmul peak {bench.peak / 1e12:.1f} TFLOP/s\n")
    print("| | s | tokens | tokens/s | % of peak | GiB |\n|---|---|---|---|---|---|")
    dense_model = random_model(options.size, device)
    layout = head_layout(dense_model)
    tuples = contrasts(options.samples)
    asked = response_samples(tuples)
    lengths = [len(sample.joint[0].ids) for sample in asked]
    budget = {"token_budget": options.token_budget, "pad": 0}
    capture_heads(dense_model, asked[:4], **budget)  # the first pass pays for setting up
    flops = forward_flops(dense_model, lengths, head=False)
    dense = bench.timed("capture dense", lambda: capture_heads(dense_model, asked, **budget), sum(lengths), flops)
    slice_ = tuples[: options.slice]
    own = [len(each) for t in slice_ for each in (t.question, t.positive.ids, t.negative.ids)]
    flops = forward_flops(dense_model, own, head=False)
    bench.timed(
        f"straightforward, {len(slice_)} samples", lambda: straightforward.capture(dense_model, slice_), sum(own), flops
    )
    generator = torch.Generator().manual_seed(1)
    calibration = torch.randint(3, 32_000, (options.sequences, options.length), generator=generator).to(device)
    batches = list(calibration.split(max(1, options.token_budget // options.length)))
    for name in ("sparsegpt-2of4", "wanda-0.5"):
        model = random_model(options.size, device) if name != "wanda-0.5" else dense_model
        config = PruneConfig(samples=options.sequences, sequence_length=options.length)
        tokens, flops = calibration.numel(), 2 * forward_flops(model, [options.length] * options.sequences, head=False)
        bench.timed(
            f"prune {name}",
            lambda m=model, n=name, c=config: prune_model(m, parse_pruning(n), batches, c),
            tokens,
            flops,
        )
        del model
    pruned_model = dense_model
    questions = question_samples(tuples)
    lengths = [len(sample.first) for sample in questions]
    flops = forward_flops(pruned_model, lengths, head=False)
    pruned = bench.timed(
        "capture pruned", lambda: capture_heads(pruned_model, questions, **budget), sum(lengths), flops
    )
    parts = bench.timed("extract", lambda: extract(dense, pruned, layout, device))
    heads = bench.timed("probe", lambda: probe(dense, pruned, parts, layout))
    directions = torch.stack([parts[0][place] for place in heads])
    compensate(bench, pruned_model, options, directions, heads)
    return bench


def compensate(
    bench: Bench, model: LlamaForCausalLM, options: argparse.Namespace, directions: Tensor, heads: list[tuple[int, int]]
) -> None:
    """Train, the slice the straightforward way, and fold."""
    pairs = [each.positive for each in contrasts(options.train, seed=1)]
    trained = TrainableCompensation(HeadCompensation(directions, heads, initial_std=1e-3, seed=42)).to(model.device)
    batches = list(train_batches(pairs))
    tokens = [len(pair.ids) for batch in batches for pair in batch]
    # Forward, and a backward to the activations alone: no weight has a gradient.
    flops = 2 * forward_flops(model, tokens, head=True)
    bench.timed(f"compensate, {EPOCHS} epochs", lambda: train(model, trained, batches), sum(tokens), flops)
    part = batches[: max(1, options.slice // BATCH)]
    tokens = [len(pair.ids) for batch in part for pair in batch]
    flops = 2 * forward_flops(model, tokens, head=True)
    name = f"straightforward, {len(part)} steps"
    bench.timed(name, lambda: straightforward.train(model, directions, heads, part, RATE), sum(tokens), flops)
    bench.timed("fold", lambda: fold(model, trained.frozen(head_layout(model))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), default="7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--samples", type=int, default=1000, help="contrast tuples that are captured")
    parser.add_argument("--train", type=int, default=2000, help="pairs that compensation trains on")
    parser.add_argument("--sequences", type=int, default=128, help="calibration sequences")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a calibration sequence")
    parser.add_argument("--token-budget", type=int, default=16_384, help="tokens of one batch of capture and pruning")
    parser.add_argument("--slice", type=int, default=32, help="samples of the straightforward way")
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    print(f"{datetime.date.today()}: {name}, torch {torch.__version__}, transformers {transformers.__version__}")
    bench = measure(options)
    chain = ("capture", "extract", "probe", "compensate", "fold")
    total = sum(row.seconds for row in bench.rows if row.name.startswith(chain))
    print(f"\ncapture to fold: {total:,.1f} s")


if __name__ == "__main__":
    main()

"""Capture three ways, side by side in one process, in turns: (a) straightforward, (b) ours, (c) the floor.

    python -m benchmarks.capture [--size embedded|large|both] [--model data/tiny] [--pruning wanda-0.5]
                                 [--samples 128] [--rounds 5] [--threads 0]

(a) batch 1; three dense passes (question, question + r+, question + r-) and one pruned; z of every position and every
    hidden state copied to the CPU and kept.
(b) what the stages do from token ids to the Parquet files, part files included.
(c) plain forward passes, without logits, over only the tokens that must be seen: question + r+ + r- of every tuple for
    the dense model and the question for the pruned one, as plain sequences, at the best batch.
Extra memory is the peak of the process's resident set while one way runs, less what it was before (Linux only). That of
ours is the larger of its two stages', which are processes of their own, and is taken before (a) has run: the heap that
(a) leaves behind is so large that whatever runs next spreads over it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.clock import wall_seconds
from benchmarks.results import Results, verdict
from restorelcc.base.tables import CONTRAST, read_table
from restorelcc.models.architectures import head_layout, out_projections
from restorelcc.models.checkpoints import load_model, load_tokenizer
from restorelcc.models.packing import alone, model_inputs, padded
from restorelcc.models.runtime import return_large_buffers, tokens_of_a_pass
from restorelcc.models.text import batches_by_length, encode_contrasts
from restorelcc.stages.capture.capture import HeadReader, Sample, plan, read_batches
from restorelcc.stages.capture.parts import write_part
from restorelcc.stages.capture.stage import LARGE_BUFFER, write_activations

STAGES = ("dense", "pruned")
_BUDGETS = (512, 2048, 4096, 8192)  # tokens of a batch, of which the floor may take the best


@dataclass(frozen=True)
class Case:
    """A dense and a pruned model with token ids: of the question, and of both responses behind it."""

    name: str
    dense: PreTrainedModel
    pruned: PreTrainedModel
    questions: list[list[int]]
    positives: list[list[int]]
    negatives: list[list[int]]
    goal: float  # how much faster than (a)

    def every(self, step: int) -> Case:
        """The same with fewer tuples."""
        lists = (self.questions, self.positives, self.negatives)
        return Case(self.name, self.dense, self.pruned, *(each[::step] for each in lists), goal=self.goal)

    def samples(self) -> tuple[list[Sample], list[Sample]]:
        triples = zip(self.questions, self.positives, self.negatives, strict=True)
        return [Sample(p, len(q) - 1, n) for q, p, n in triples], [Sample(q) for q in self.questions]


@torch.no_grad()
def straightforward(case: Case) -> list[torch.Tensor]:
    """(a); what it keeps."""
    kept: list[torch.Tensor] = []

    def run(model: PreTrainedModel, sequences: list[list[int]]) -> None:
        hooks = [
            p.register_forward_pre_hook(lambda _m, x: kept.append(x[0].float().cpu().clone()))
            for p in out_projections(model)
        ]
        for ids in sequences:
            output = model(input_ids=torch.tensor([ids], device=model.device), output_hidden_states=True)
            kept.extend(hidden.float().cpu().clone() for hidden in output.hidden_states)
        for hook in hooks:
            hook.remove()

    for sequences in (case.questions, case.positives, case.negatives):
        run(case.dense, sequences)
    run(case.pruned, case.questions)
    return kept


def ours(case: Case, budget: int, folder: Path) -> None:
    """(b)."""
    for name in STAGES:
        stage(case, name, budget, folder)


def stage(case: Case, name: str, budget: int, folder: Path) -> None:
    """One of the two stages of (b): from token ids to `folder/name`."""
    model, samples, roles = {
        "dense": (case.dense, case.samples()[0], ("question", "positive", "negative")),
        "pruned": (case.pruned, case.samples()[1], ("question",)),
    }[name]
    batches, parts = plan(samples, budget), []
    (folder / f"parts-{name}").mkdir()
    for batch, z_LBRX in read_batches(HeadReader(model, pad=0), samples, batches):
        parts.append(write_part(folder / f"parts-{name}", batch.number, z_LBRX.flatten(2).numpy()))
    heads = head_layout(model)
    write_activations(folder / name, parts, batches, list(range(len(samples))), roles, heads, {"model": name})


@torch.no_grad()
def floor(case: Case, budget: int) -> None:
    """(c)."""
    everything = [p + n[len(q) :] for q, p, n in zip(case.questions, case.positives, case.negatives, strict=True)]
    for model, sequences in ((case.dense, everything), (case.pruned, case.questions)):
        for batch in batches_by_length([len(ids) for ids in sequences], budget):
            model.base_model(**model_inputs(model, padded([[alone(sequences[i])] for i in batch], 0)))


def embedded(folder: Path, pruning: str) -> Case:
    """The embedded model on its own contrast tuples."""
    tokenizer = load_tokenizer(folder / "dense")
    rows = read_table(folder.parent / "corpus" / folder.name / "contrast.parquet", CONTRAST)
    tuples = encode_contrasts(tokenizer, rows, 1024)
    models = [
        load_model(path, torch.float32, torch.device("cpu")) for path in (folder / "dense", folder / pruning / "pruned")
    ]
    ids = ([t.question for t in tuples], [t.positive.ids for t in tuples], [t.negative.ids for t in tuples])
    return Case(f"embedded model, {len(rows)} tuples", *models, *ids, goal=5)


def large(samples: int) -> Case:
    """A random Llama, 12 layers of 12 heads; questions about as long as responses, of mixed lengths."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        vocab_size=32_000,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    rng = random.Random(0)

    def some(low: int, high: int) -> list[int]:
        return [rng.randrange(3, 32_000) for _ in range(rng.randint(low, high))]

    questions = [some(8, 16) for _ in range(samples)]
    positives, negatives = ([q + some(8, 16) for q in questions] for _ in range(2))
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    # One set of weights serves as both models: what they hold changes no time.
    return Case(
        f"random Llama, {millions:.0f} M, {samples} tuples", model, model, questions, positives, negatives, goal=1.5
    )


def measure(case: Case, rounds: int, slow_rounds: int, budget: int, out: Results) -> None:
    """One row of the table. A few tuples warm up: libraries load, but a stage has its whole work still before it."""
    extra: dict[str, list[int]] = {"a": [], "b": []}
    with tempfile.TemporaryDirectory() as folder:
        ours(case.every(32), budget, Path(folder))
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            extra["b"] += [_peak(partial(stage, case, name, budget, Path(folder))) for name in STAGES]
    some = case.every(16)
    straightforward(some.every(4))
    best = min(_BUDGETS, key=lambda each: wall_seconds(lambda: floor(some, each)))
    seconds: dict[str, list[float]] = {"a": [], "b": [], "c": []}
    for number in range(rounds):
        if number < slow_rounds:
            extra["a"].append(_peak(lambda: seconds["a"].append(wall_seconds(lambda: straightforward(case)))))
        with tempfile.TemporaryDirectory() as folder:
            seconds["b"].append(wall_seconds(lambda path=Path(folder): ours(case, budget, path)))
        seconds["c"].append(wall_seconds(lambda: floor(case, best)))
    faster = median([a / b for a, b in zip(seconds["a"], seconds["b"], strict=False)])
    above = median([b / c for b, c in zip(seconds["b"], seconds["c"], strict=True)])
    memory = max(extra["b"]) / max(extra["a"])
    q, r = sum(map(len, case.questions)), sum(map(len, case.positives)) + sum(map(len, case.negatives))
    cells = [
        case.name,
        f"{2 * q + r:,}",
        f"{sum(batch.tokens for samples in case.samples() for batch in plan(samples, budget)):,}",
        *(f"{median(seconds[way]):.2f}" for way in "abc"),
        f"{faster:.2f} x, {verdict(faster, case.goal)}",
        f"{above:.2f}, {verdict(above, 1.15, at_least=False)}",
        f"{max(extra['a']) / 2**20:.0f} / {max(extra['b']) / 2**20:.0f} MiB, {verdict(memory, 0.1, at_least=False)}",
    ]
    out.say(f"| {' | '.join(cells)} |")


def _peak(action: Callable[[], object]) -> int:
    """Bytes by which the resident set of this process was larger at its peak than before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # so that nothing freed before is taken again unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    before = _resident("VmRSS")
    action()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(field)))


_COLUMNS = ["", "tokens of (a)", "of (b)", "(a), s", "(b), s", "(c), s", "(a) / (b)", "(b) / (c)", "memory, (a) / (b)"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("embedded", "large", "both"), default="both")
    parser.add_argument("--model", type=Path, default=Path("data/tiny"))
    parser.add_argument("--pruning", default="wanda-0.5")
    parser.add_argument("--samples", type=int, default=128, help="tuples of the large model")
    budget = tokens_of_a_pass(torch.device("cpu"), "auto")
    parser.add_argument("--budget", type=int, default=budget, help="capture.token_budget")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slow-rounds", type=int, default=2, help="rounds in which (a) takes part")
    parser.add_argument("--threads", type=int, default=0, help="0: one for the embedded model, as params.yaml has it")
    options = parser.parse_args()
    os.environ["RESTORELCC_PROGRESS"] = "0"
    all_threads = torch.get_num_threads()
    return_large_buffers(LARGE_BUFFER)  # as the stages do
    for size in ("embedded", "large"):
        if options.size not in (size, "both"):
            continue
        if size == "embedded" and not (options.model / options.pruning / "pruned").is_dir():
            print(f"{options.model}/{options.pruning} is not there: run `make repro` for the embedded model's row")
            continue
        threads = options.threads or (1 if size == "embedded" else all_threads)
        torch.set_num_threads(threads)
        case = embedded(options.model, options.pruning) if size == "embedded" else large(options.samples)
        out = Results(
            "capture", "The embedded model" if size == "embedded" else "100 M parameters", "make bench-capture"
        )
        out.say(
            f"(a) straightforward, (b) ours, (c) the floor; medians of {options.rounds} rounds in turns in a process, "
            f"{options.slow_rounds} of them with (a); ratios within a round. `benchmarks/capture.py` has them."
        )
        out.say()
        for cells in (_COLUMNS, ["---"] * len(_COLUMNS)):
            out.say(f"| {' | '.join(cells)} |")
        measure(case, options.rounds, options.slow_rounds, options.budget, out)
        out.write(threads, "pyarrow")


if __name__ == "__main__":
    main()

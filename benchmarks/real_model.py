"""SmolLM2-135M against what one would otherwise run, in CPU seconds of one thread, side by side and in turns.

    python -m benchmarks.real_model [--only capture evaluation step] [--project DIR] [--rounds 3]

capture     the activations of contrast tuples: a plain loop (stock forwards with hooks, one text at a time), ours, and
            plain forwards over the tokens that must be seen
evaluation  log-likelihoods of lm-eval's requests: stock `HFLM` one by one and in batches, and ours
step        a step of training: its floor, ours, and transformers' Trainer with a LoRA of peft
Model, pairs and tasks come from the packages that `make real` installs. --project: a folder whose data/ has them, from
a run with the budget `quick`; without it they are made anew (a minute).
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import DataCollatorForSeq2Seq, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from benchmarks.capture import Case, floor, ours, straightforward
from benchmarks.clock import backward_to_embeddings, cpu_seconds
from benchmarks.results import Results, table, verdict
from restorelcc.base.cell import Cell
from restorelcc.base.layout import Layout
from restorelcc.base.package_data import SOURCE
from restorelcc.base.tables import CONTRAST, read_table
from restorelcc.models.architectures import head_layout
from restorelcc.models.checkpoints import load_model, load_tokenizer
from restorelcc.models.runtime import prepare, tokens_of_a_pass
from restorelcc.models.text import EncodedPair, encode_contrasts
from restorelcc.pipeline.plan_costs import shapes_of
from restorelcc.pipeline.plan_rate import EFFICIENCY
from restorelcc.pipeline.plan_work import TASKS as TASKS_COUNTED
from restorelcc.stages.capture import CaptureConfig
from restorelcc.stages.evaluate.batches import budgeted_lm, token_budget
from restorelcc.stages.evaluate.confined import sandboxed
from restorelcc.stages.evaluate.harness import longest
from restorelcc.stages.evaluate.local_data import datasets_under
from restorelcc.stages.evaluate.shared_prefix import sharing
from restorelcc.stages.evaluate.tasks import Asked, load_tasks
from restorelcc.training.attached import HeadCompensation, TrainableCompensation, attached
from restorelcc.training.compensation import Pairs, pairs_task
from restorelcc.training.config import FitConfig
from restorelcc.training.losses import IGNORED, response_batch, response_loss, response_tokens
from restorelcc.training.lower_blocks import kept_below, lowest_trained
from restorelcc.training.pairs import read_pairs

MODEL = "smollm2-135m-pip"
ROOT = Path(__file__).parents[1]
TASKS = ("arc_easy", "hellaswag", "winogrande")
GOALS = {"capture": 5.0, "evaluation": 1.5, "step": 1.1}
BATCH, UPPER = 8, 10  # pairs of a step; the lowest block of the second way to choose heads
BUDGETS = (384, 1536, 4096)  # tokens of a batch of ours, beside the automatic one
FLOOR_BUDGET = 2048  # tokens of a batch of the floor of capture
STOCK_BATCH = 16  # requests of lm-eval's; one by one its matrices are so small that a core computes them more slowly
Seconds = dict[str, list[float]]


def main() -> None:
    """Measure, and write the sections."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = {"capture": capture, "evaluation": evaluation, "step": step}
    parser.add_argument("--only", nargs="+", default=list(parts), choices=list(parts))
    parser.add_argument("--project", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ["RESTORELCC_PROGRESS"] = "0"
    prepare(seed=0, threads=1)
    with tempfile.TemporaryDirectory() as folder:
        if options.project is None:
            make(Path(folder))
        layout = Layout(options.project or Path(folder))
        dense = layout.dense(Cell(MODEL))
        network = load_model(dense, torch.float32, torch.device("cpu")).eval().requires_grad_(False)
        for name in options.only:
            parts[name](network, layout, options.rounds)


def make(folder: Path) -> None:
    """A project with the model as a stock checkpoint and its corpus."""
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    for stage in ("corpus", "dense"):
        command = [sys.executable, "-m", "restorelcc", stage, "--model", MODEL]
        subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)


def in_turns(ways: dict[str, Callable[[], object]], rounds: int) -> Seconds:
    """Every way once a round."""
    found: Seconds = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(cpu_seconds(way))
    return found


def ratio(seconds: Seconds, above: str, below: str) -> float:
    """The median of a round's ratios."""
    return median(a / b for a, b in zip(seconds[above], seconds[below], strict=True))


def plan_says(flops: float, seconds: list[float]) -> str:
    """What `restorelcc plan` reckons for as much work, with this thread's rate of a product of matrices."""
    one = torch.ones(1024, 1024)
    one @ one
    rate = 2 * 1024**3 / median(cpu_seconds(lambda: one @ one) for _ in range(9))
    planned = flops / rate / EFFICIENCY["cpu"]
    return f"`plan` counts {planned:.2f} seconds for it, {planned / median(seconds):.2f} of ours."


def write(title: str, lines: list[str], *packages: str) -> None:
    out = Results("real-model-speed", title, "make bench-real")
    for line in lines:
        out.say(line)
    out.write(1, *packages)


# capture


def capture(network: PreTrainedModel, layout: Layout, rounds: int, samples: int = 8) -> None:
    """One set of weights stands for the dense and the pruned model: what they hold changes no time."""
    tokenizer = load_tokenizer(layout.dense(Cell(MODEL)))
    rows = read_table(layout.corpus(Cell(MODEL)) / "contrast.parquet", CONTRAST)
    tuples = encode_contrasts(tokenizer, random.Random(0).sample(rows, samples), CaptureConfig().max_tokens)
    ids = [[t.question for t in tuples], [t.positive.ids for t in tuples], [t.negative.ids for t in tuples]]
    case = Case("SmolLM2-135M", network, network, ids[0], ids[1], ids[2], goal=GOALS["capture"])
    ways: dict[str, Callable[[], object]] = {"plain loop": partial(straightforward, case)}
    auto = tokens_of_a_pass(torch.device("cpu"), CaptureConfig().token_budget)
    ways["ours"] = partial(_captured, case, auto)
    ways |= {f"ours, batches of {budget:,} tokens": partial(_captured, case, budget) for budget in BUDGETS}
    ways["forwards alone"] = partial(floor, case, FLOOR_BUDGET)
    seconds = in_turns(ways, rounds)
    faster = {name: ratio(seconds, "plain loop", name) for name in ways}
    cells = [[name, f"{median(seconds[name]):.2f}", f"{faster[name]:.2f}"] for name in ways]
    questions, positives, negatives = (sum(map(len, each)) for each in ids)
    read, seen = 2 * questions + positives + negatives, positives + negatives
    said = plan_says(shapes_of(network).forward_flops(seen, seen / samples), seconds["ours"])
    write(
        "Capture",
        [
            f"{samples} contrast tuples, float32, {rounds} rounds. The plain loop reads {read:,} tokens, "
            f"and projects all of them onto the vocabulary; ours {seen:,}, and none. "
            f"Ours is in batches of {auto} tokens, as `auto` has it on a CPU. "
            "`forwards alone` are the model's own over these, in batches, with nothing read or written.",
            "",
            table(["way", "CPU seconds", "times as fast as the plain loop"], cells),
            "",
            f"{faster['ours']:.2f} times: {verdict(faster['ours'], GOALS['capture'])}. {said}",
        ],
    )


def _captured(case: Case, budget: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ours(case, budget, Path(folder))


# evaluation


def evaluation(network: PreTrainedModel, layout: Layout, rounds: int, items: int = 24) -> None:
    """The same requests by lm-eval's own class and by ours, which shares what the choices of an item begin with."""
    from lm_eval.models.huggingface import HFLM

    tokenizer = load_tokenizer(layout.dense(Cell(MODEL)))
    given: dict[str, Any] = {"pretrained": network, "tokenizer": tokenizer, "max_length": longest(network)}
    requests = _requests(items)
    results: dict[str, list[tuple[float, bool]]] = {}

    def asked(name: str, lm: Any) -> None:
        results[name] = lm.loglikelihood(requests, disable_tqdm=True)

    budget = token_budget(network)
    models = {"stock": HFLM(batch_size=STOCK_BATCH, **given)}
    models["ours"] = budgeted_lm(sharing(HFLM, budget), budget, **given)
    seconds = in_turns({name: partial(asked, name, lm) for name, lm in models.items()}, rounds)
    pairs = list(zip(results["stock"], results["ours"], strict=True))
    far = max(abs(one - other) for (one, _), (other, _) in pairs)
    same = sum(one == other for (_, one), (_, other) in pairs)
    faster = ratio(seconds, "stock", "ours")
    tokens, predicted = (items * sum(TASKS_COUNTED[name][which] for name in TASKS) for which in (1, 2))
    flops = shapes_of(network).forward_flops(tokens, tokens / items / len(TASKS), predicted)
    write(
        "Evaluation",
        [
            f"{len(requests)} requests: {items} items each of {', '.join(TASKS)}; float32, {rounds} rounds. Stock is "
            f"lm-eval's `HFLM` in batches of {STOCK_BATCH}. Ours includes the check whether this model's requests may "
            "share what they begin with.",
            "",
            table(["way", "CPU seconds"], [[name, f"{median(seconds[name]):.2f}"] for name in models]),
            "",
            f"{faster:.2f} times as fast: {verdict(faster, GOALS['evaluation'])}. The largest difference between two "
            f"log-likelihoods is {far:.1e}; whether the most probable tokens are the request's is the same for {same} "
            f"of {len(pairs)}. {plan_says(flops, seconds['ours'])}",
        ],
        "lm_eval",
    )


def _requests(items: int) -> list[Any]:
    found = []
    with tempfile.TemporaryDirectory() as cache:
        copies = datasets_under(ROOT, SOURCE, TASKS, cache)
        loaded = load_tasks([Asked(name) for name in TASKS], copies, cache)
        with sandboxed():
            for task in loaded["tasks"].values():
                task.build_all_requests(limit=items)
                found += task.instances
    return found


# training


def step(network: PreTrainedModel, layout: Layout, rounds: int) -> None:
    """A step on the same pairs in every way, new ones each round."""
    dense = layout.dense(Cell(MODEL))
    pairs = read_pairs(layout.corpus(Cell(MODEL)), dense, FitConfig(max_tokens=512))
    rows = random.Random(2).sample(range(len(pairs.train)), BATCH * (rounds + 1))
    names = ("floor", "10 % of all heads", f"heads from block {UPPER}", "the same, again", "Trainer, LoRA r=8")
    seconds: Seconds = {name: [] for name in names}
    rival = _rival(dense)
    for number in range(rounds + 1):
        batch = rows[number * BATCH : (number + 1) * BATCH]
        ways: dict[str, Callable[[], float]] = {"floor": partial(_floor, network, [pairs.train[row] for row in batch])}
        ways[names[1]] = partial(_step, network, pairs, batch, 0)
        if number:  # the first round warms up
            ways[names[4]] = partial(rival, pairs, batch)
        found = {name: way() for name, way in ways.items()}
        with _upper(network, pairs, UPPER) as upper:
            found |= {names[2]: upper(batch), names[3]: upper(batch)}
        for name, spent in found.items() if number else ():
            seconds[name].append(spent)
    cells = []
    for name in names:
        multiple = ratio(seconds, name, "floor")
        goal = verdict(multiple, GOALS["step"], at_least=False) if name == names[1] else "-"
        cells.append([name, f"{median(seconds[name]):.2f}", f"{multiple:.2f}", goal])
    used = [pairs.train[row] for row in rows[BATCH:]]
    mean, labels = (sum(map(size, used)) / rounds for size in (lambda pair: len(pair.ids), response_tokens))
    flops = 2 * shapes_of(network).forward_flops(mean, mean / BATCH, labels)
    write(
        "A training step",
        [
            f"Batches of {BATCH} pairs, of {mean:,.0f} tokens on average, float32, {rounds} rounds with pairs of their "
            "own. The floor is the model's own forward and backward through activations, over as many tokens in rows "
            "of one length, with the loss at as many of them. The heads of a tenth are spread over all blocks. "
            f"Where only heads from block {UPPER} train, what enters it is kept: `again` is a second epoch. The "
            "Trainer has LoRA on q_proj and v_proj and the library's collator.",
            "",
            table(["step", "CPU seconds", "multiple of the floor", "goal"], cells),
            "",
            plan_says(flops, seconds[names[1]]),
        ],
        "peft",
    )


def _heads(network: PreTrainedModel, first: int) -> TrainableCompensation:
    """Every tenth head from a block on."""
    layout = head_layout(network)
    chosen = [layout.pair(flat) for flat in range(first * layout.heads, layout.total, 10)]
    directions_PDD = torch.eye(layout.head_dim).expand(len(chosen), -1, -1)
    return TrainableCompensation(HeadCompensation(directions_PDD, chosen, initial_std=1e-3, seed=0))


@contextmanager
def _upper(network: PreTrainedModel, pairs: Pairs, first: int) -> Iterator[Callable[[list[int]], float]]:
    """A step of heads from a block on."""
    trained = _heads(network, first)
    parts = list(trained.parameters())
    optimizer = torch.optim.AdamW(parts, lr=1e-3, weight_decay=0.0)
    sequences = [pair.ids for pair in (*pairs.train, *pairs.valid)]
    with attached(network, trained), kept_below(network, lowest_trained(network, trained), sequences, "bench"):
        task = pairs_task(network, pairs)

        def run(rows: list[int]) -> None:
            optimizer.zero_grad()
            tokens = sum(task.tokens[row] for row in rows)
            for part in task.parts(rows):
                (task.summed_loss(part) / tokens).backward()
            nn.utils.clip_grad_norm_(parts, 1.0)
            optimizer.step()

        yield lambda rows: cpu_seconds(lambda: run(rows))


def _step(network: PreTrainedModel, pairs: Pairs, rows: list[int], first: int) -> float:
    with _upper(network, pairs, first) as step_of:
        return step_of(rows)


def _floor(network: PreTrainedModel, batch: list[EncodedPair]) -> float:
    """Rows of one length with as many tokens and labels; a gradient down to the embeddings, of no parameter."""
    length, response = (sum(map(size, batch)) // len(batch) for size in (lambda pair: len(pair.ids), response_tokens))
    ids = [token for pair in batch for token in pair.ids]
    rows = [ids[start * length : (start + 1) * length] for start in range(len(batch))]
    tokens = response_batch([EncodedPair(row, length - response, False) for row in rows], 0, network.device)

    with backward_to_embeddings(network):
        return cpu_seconds(lambda: response_loss(network, *tokens).backward())


class _Clock(TrainerCallback):
    started = spent = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.spent = time.process_time() - self.started


def _rival(dense: Path) -> Callable[[Pairs, list[int]], float]:
    """One step of the Trainer: seconds from its beginning to the optimizer's end."""
    from peft import LoraConfig, get_peft_model

    network = load_model(dense, torch.float32, torch.device("cpu"))
    adapted = get_peft_model(network, LoraConfig(r=8, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    collator = DataCollatorForSeq2Seq(load_tokenizer(dense), label_pad_token_id=IGNORED)

    def run(pairs: Pairs, rows: list[int]) -> float:
        data = []
        for pair in (pairs.train[row] for row in rows):
            labels = [IGNORED] * pair.question_tokens + pair.ids[pair.question_tokens :]
            data.append({"input_ids": pair.ids, "attention_mask": [1] * len(pair.ids), "labels": labels})
        clock = _Clock()
        with tempfile.TemporaryDirectory() as folder:
            quiet: dict[str, Any] = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no"}
            quiet |= {"disable_tqdm": True, "use_cpu": True}
            how = TrainingArguments(folder, per_device_train_batch_size=BATCH, max_steps=1, **quiet)
            Trainer(adapted, how, collator, data, callbacks=[clock]).train()
        return clock.spent

    return run


if __name__ == "__main__":
    main()

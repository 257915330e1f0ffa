"""Seconds of one training step against the floor of the same batch, and against LoRA of rank 8, measured in turns.

    python -m benchmarks.compensate [--rounds 15] [--threads 1]

The floor is the forward and the backward through activations alone: what any method pays that trains something below
the lowest block, and nothing else. Every other step ends with an update of the parameters. Goals: <= 1.10 times the
floor, and less than LoRA.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from statistics import median

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from benchmarks.clock import backward_to_embeddings
from benchmarks.random_llama import VOCABULARY, random_llama
from benchmarks.results import Results, table, verdict
from restorelcc.models.architectures import head_layout
from restorelcc.models.text import EncodedPair
from restorelcc.training.attached import HeadCompensation, SiteBiases, TrainableCompensation, attached, site_linears
from restorelcc.training.config import SITES
from restorelcc.training.losses import response_batch, response_loss

FLOOR_GOAL = 1.10
RIVALS = {"heads 0.25": "LoRA r=8, o_proj", "all sites": "LoRA r=8, all"}
WIDTH, FFN, LAYERS, BATCH, LENGTH, RESPONSE, RATIO = 384, 1024, 5, 4, 128, 48, 0.25


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(3, VOCABULARY, (BATCH, LENGTH), generator=generator).tolist()
    return response_batch([EncodedPair(ids, LENGTH - RESPONSE, False) for ids in rows], 0, torch.device("cpu"))


def _heads(model: nn.Module) -> TrainableCompensation:
    """A quarter of the heads, the first ones among them, so that the gradient has to reach the lowest block."""
    layout = head_layout(model)
    chosen = [layout.pair(flat) for flat in range(0, layout.total, round(1 / RATIO))]
    directions_DD = torch.eye(layout.head_dim).expand(len(chosen), -1, -1)
    return TrainableCompensation(HeadCompensation(directions_DD, chosen, initial_std=1e-3, seed=0))


def _stepper(model: nn.Module, parts: list[nn.Parameter], batch: tuple) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(parts, lr=1e-3, weight_decay=0.0)

    def step() -> None:
        optimizer.zero_grad()
        (response_loss(model, *batch) / (BATCH * RESPONSE)).backward()
        nn.utils.clip_grad_norm_(parts, 1.0)
        optimizer.step()

    return step


def _floor(model: PreTrainedModel, batch: tuple) -> Callable[[], None]:
    """Forward, and the backward to the output of the embeddings: no parameter has a gradient."""

    def step() -> None:
        with backward_to_embeddings(model):
            (response_loss(model, *batch) / (BATCH * RESPONSE)).backward()

    return step


def main() -> None:
    """Measure each kind of step in turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["RESTORELCC_PROGRESS"] = "0"
    batch = _batch()

    def model() -> nn.Module:
        return random_llama(width=WIDTH, ffn=FFN, layers=LAYERS)

    steps: dict[str, Callable[[], None]] = {"floor": _floor(model(), batch)}
    contexts = []
    for name in ("heads 0.25", "all sites"):
        network = model()
        linears = site_linears(network, SITES)
        trained = _heads(network) if name != "all sites" else TrainableCompensation(None, SiteBiases(linears))
        contexts.append(attached(network, trained))
        contexts[-1].__enter__()
        steps[name] = _stepper(network, list(trained.parameters()), batch)
    for name, targets in {"LoRA r=8, o_proj": ["o_proj"], "LoRA r=8, all": "all-linear"}.items():
        network = get_peft_model(model(), LoraConfig(r=8, lora_alpha=8, target_modules=targets))
        steps[name] = _stepper(network, [part for part in network.parameters() if part.requires_grad], batch)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(options.rounds + 2):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if turn >= 2:  # the first ones warm up
                seconds[name].append(time.perf_counter() - started)
    report(seconds, options.threads)


def report(seconds: dict[str, list[float]], threads: int) -> None:
    """The table, with the verdicts for what is trained here: against the floor, and against LoRA at the same places."""
    rows = []
    for name, values in seconds.items():
        multiples = [value / floor for value, floor in zip(values, seconds["floor"], strict=True)]
        row = [name, f"{median(values):.3f}", f"{median(multiples):.3f} ({min(multiples):.2f} .. {max(multiples):.2f})"]
        if rival := RIVALS.get(name):
            of_lora = median([own / other for own, other in zip(values, seconds[rival], strict=True)])
            row += [verdict(median(multiples), FLOOR_GOAL, at_least=False)]
            row += [f"{of_lora:.2f} of {rival}: {verdict(of_lora, 1.0, at_least=False)}"]
        rows.append([*row, *["-"] * (5 - len(row))])
    out = Results("compensate", "A training step", "make bench-compensate")
    out.say(
        f"{BATCH} x {LENGTH} tokens, {RESPONSE} of each response; {LAYERS} blocks of width {WIDTH}. Medians of "
        f"{len(seconds['floor'])} rounds in turns in one process; multiples within a round (least .. most). The floor "
        "is the forward and the backward through activations alone."
    )
    out.say()
    out.say(table(["step", "seconds", "multiple of the floor", "goal", "against LoRA"], rows))
    out.write(threads, "peft")


if __name__ == "__main__":
    main()

"""Train with several learning rates and keep the best on the validation pairs: one of the runs, or no change."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from restorelcc.base.progress import notice
from restorelcc.training.config import FitConfig
from restorelcc.training.loop import Diverged, Fitted, Stores, Task, finite_or_none, fit, validated

# What the parameters are before training. "unchanged": the model computes with them what it computes without them, as
# with LoRA's B = 0. "random": it does so with zeros in their place. "guess": likewise, and they are a candidate too.
Start = Literal["unchanged", "random", "guess"]
Candidate = Literal["no change", "start", "training"]
REASONS: dict[Candidate, str] = {
    "no change": "no candidate beat the pruned model on the validation pairs",
    "start": "no training beat what it started from on the validation pairs",
    "training": "the lowest loss on the validation pairs",
}


@dataclass(frozen=True)
class Choice:
    """The candidate with the lowest validation loss, that loss, every run, and the losses of the other candidates.

    run: the best of the runs, whether or not it was chosen; unchanged_loss: None where no change was no candidate.
    """

    candidate: Candidate
    valid_loss: float
    run: Fitted
    runs: list[Fitted]
    unchanged_loss: float | None = None
    start_loss: float | None = None
    diverged: list[float] = field(default_factory=list)  # rates whose runs ended in numbers that are not finite

    @property
    def unchanged(self) -> bool:
        """Whether the model stays as it was."""
        return self.candidate == "no change"

    @property
    def learning_rate(self) -> float | None:
        """That of the chosen run; None where none was chosen."""
        return self.run.learning_rate if self.candidate == "training" else None

    def as_json(self) -> dict:
        """The chosen candidate and why, its validation loss, the loss of every candidate, and every run."""
        beside = {"no change": self.unchanged_loss, "start": self.start_loss}
        candidates = [
            {"candidate": name, "valid_loss": finite_or_none(loss)} for name, loss in beside.items() if loss is not None
        ]
        candidates += [
            {"candidate": "training", "learning_rate": run.learning_rate, "valid_loss": finite_or_none(run.valid_loss)}
            for run in self.runs
        ]
        chosen = {"candidate": self.candidate, "learning_rate": self.learning_rate, "reason": REASONS[self.candidate]}
        return {
            "learning_rate": self.learning_rate,
            "valid_loss": finite_or_none(self.valid_loss),
            "chosen": chosen,
            "candidates": candidates,
            "runs": [run.as_json() for run in self.runs],
        } | ({"diverged": self.diverged} if self.diverged else {})


def fit_best(
    trained: nn.Module,
    task: Task,
    config: FitConfig,
    *,
    title: str,
    start: Start = "unchanged",
    may_stay: bool = True,
    stores: Stores | None = None,
) -> Choice:
    """Train `trained` from where it is with every rate; it ends as the best candidate, which may be no change at all.

    may_stay: whether no change is a candidate; otherwise the best run is taken, even if it is worse than no change.
    A rate with which training diverges is no candidate, and that is told. Raises Diverged where it does with all.
    """
    named = {name: part for name, part in trained.named_parameters() if part.requires_grad}
    before = kept = _copies(named)
    best: Fitted | None = None
    runs: list[Fitted] = []
    diverged: list[float] = []
    for rate in config.learning_rates:
        _restore(named, before)
        store = stores.of(f"rate-{rate:g}") if stores is not None else None
        try:
            fitted = fit(trained, task, config, learning_rate=rate, title=f"{title} (lr {rate:g})", store=store)
        except Diverged as problem:
            if not runs and rate == config.learning_rates[-1]:
                raise
            notice(title, f"{problem.found}; this rate is no candidate")
            diverged.append(rate)
            continue
        if best is None or fitted.valid_loss < best.valid_loss:
            best, kept = fitted, _copies(named)  # only the best one's parameters are kept
        runs.append(fitted)
    assert best is not None
    choice = Choice("training", best.valid_loss, best, runs, diverged=diverged)
    if may_stay:
        choice = _against_no_change(trained, task, choice, start, title)
    if choice.unchanged and start != "unchanged":
        _zero(named)
    else:
        _restore(named, kept if choice.candidate == "training" else before)
    return choice


def _against_no_change(trained: nn.Module, task: Task, choice: Choice, start: Start, title: str) -> Choice:
    """The choice between the best run, the model as it is, and a start that is a candidate; no change wins a tie."""
    started = choice.runs[0].initial_loss
    if start == "unchanged":
        unchanged = started
    else:
        _zero({name: part for name, part in trained.named_parameters() if part.requires_grad})
        unchanged = validated(trained, task, title)
    losses: dict[Candidate, float] = {"no change": unchanged}
    if start == "guess":
        losses["start"] = started
    losses["training"] = choice.valid_loss
    least = min(losses, key=lambda candidate: losses[candidate] if math.isfinite(losses[candidate]) else math.inf)
    if least != "training":
        kept = "nothing is changed" if least == "no change" else "the start is kept"
        told = f"loss {losses[least]:.4f}, {choice.valid_loss:.4f} at best after training"
        notice(title, f"{REASONS[least]} ({told}): {kept}")
    return Choice(
        least, losses[least], choice.run, choice.runs, unchanged, losses.get("start"), diverged=choice.diverged
    )


def _copies(named: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: part.detach().clone() for name, part in named.items()}


@torch.no_grad()
def _restore(named: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, part in named.items():
        part.copy_(values[name])


@torch.no_grad()
def _zero(named: dict[str, nn.Parameter]) -> None:
    for part in named.values():
        part.zero_()

"""Train with several learning rates and keep the run with the least validation loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from restorelcc.core.fit import Fitted, Stores, Task, fit
from restorelcc.core.fit_config import FitConfig


def fit_best(
    trained: nn.Module, task: Task, config: FitConfig, *, title: str, stores: Stores | None = None
) -> tuple[Fitted, list[Fitted]]:
    """Train `trained` from where it is with every rate; it ends with what the best run found. Returns best and all."""
    named = {name: part for name, part in trained.named_parameters() if part.requires_grad}
    start = _copies(named)
    runs: list[tuple[Fitted, dict[str, Tensor]]] = []
    for rate in config.learning_rates:
        _restore(named, start)
        store = stores.of(f"rate-{rate:g}") if stores is not None else None
        fitted = fit(trained, task, config, learning_rate=rate, title=f"{title} (lr {rate:g})", store=store)
        if not runs or fitted.valid_loss < min(run.valid_loss for run, _ in runs):
            runs = [(run, {}) for run, _ in runs]  # only the best one's parameters are kept
            runs.append((fitted, _copies(named)))
        else:
            runs.append((fitted, {}))
    best, parameters = next(run for run in runs if run[1])
    _restore(named, parameters)
    return best, [run for run, _ in runs]


def training_json(best: Fitted, runs: list[Fitted]) -> dict:
    """The rate that won, its validation loss, and every run."""
    return {
        "learning_rate": best.learning_rate,
        "valid_loss": best.valid_loss,
        "runs": [run.as_json() for run in runs],
    }


def _copies(named: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: part.detach().clone() for name, part in named.items()}


def _restore(named: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, part in named.items():
            part.copy_(values[name])

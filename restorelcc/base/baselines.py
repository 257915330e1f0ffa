"""The recovery methods that `grid.baseline` can name: what each does in a line, what it ships, and what it needs."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from restorelcc.base.errors import BadInput

# What goes to whoever runs the model: biases for the pruned checkpoint, another sparse checkpoint, or an adapter to put
# beside it, which fills the zeros when it is merged.
Ships = Literal["biases", "checkpoint", "adapter"]


@dataclass(frozen=True)
class Baseline:
    """A recovery method other than compensating the heads that the probe ranks first."""

    does: str
    ships: Ships = "biases"
    labels: bool = True  # whether it learns from responses; the others need text alone


_COMPENSATED = "then a trained bias on every linear"
BASELINES: dict[str, Baseline] = {
    "random": Baseline("the paper's compensation on heads drawn at random"),
    "bias": Baseline("a free bias on every out-projection: the upper limit of what compensating heads can do"),
    "ffn": Baseline("a free bias on every FFN output instead of the heads"),
    "meanshift": Baseline(
        "FLAP-style: the removed weights times the mean of their inputs, as a bias; nothing is trained", labels=False
    ),
    "lofit": Baseline("LoFiT: heads chosen by the scales they learn, then an offset on each"),
    "lora": Baseline(
        "LoRA (peft) on every linear; reported unmerged, merged, and merged with the zeros put back", "adapter"
    ),
    "dora": Baseline("DoRA (peft), likewise", "adapter"),
    "eora": Baseline(
        "low-rank factors of the removed weights in the eigenspace of their inputs; nothing is trained",
        "adapter",
        labels=False,
    ),
    "masked": Baseline("all surviving weights trained, no zero filled", "checkpoint"),
    "masked-lora": Baseline("LoRA multiplied with the mask, so that merging fills no zero", "checkpoint"),
    "reconstruct": Baseline(
        "block by block, the surviving weights fitted to the dense block's output", "checkpoint", labels=False
    ),
    "masked-compensated": Baseline(f"`masked`, {_COMPENSATED}", "checkpoint"),
    "reconstruct-compensated": Baseline(f"`reconstruct`, {_COMPENSATED}", "checkpoint"),
}


def check_baseline(where: str, name: object) -> str:
    """The name, when it is known. Raises BadInput with the nearest one."""
    if name in BASELINES:
        return str(name)
    near = difflib.get_close_matches(str(name), list(BASELINES), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "use one of them, or leave the list empty"
    raise BadInput(f"{where} has {name!r}, which is no baseline: known are {', '.join(BASELINES)}; {hint}")

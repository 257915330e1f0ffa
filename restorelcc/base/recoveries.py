"""The recovery methods that `grid.recovery` can name: what each does in a line, produces, and needs."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from restorelcc.base.errors import BadInput

# What goes to whoever runs the model: biases for the pruned checkpoint, another sparse checkpoint, or an adapter for
# it, which fills the zeros when it is merged.
Ships = Literal["biases", "checkpoint", "adapter"]


@dataclass(frozen=True)
class Recovery:
    """A recovery method other than compensating the heads that the probe ranks first."""

    does: str
    ships: Ships = "biases"
    labels: bool = True  # whether it learns from responses; the others need text alone


_COMPENSATED = "then a trained bias on every linear"
RECOVERIES: dict[str, Recovery] = {
    "random": Recovery("the paper's compensation on heads drawn at random"),
    "bias": Recovery("a free bias on every out-projection: the upper limit of what compensating heads can do"),
    "ffn": Recovery("a free bias on every FFN output instead of the heads"),
    "meanshift": Recovery(
        "FLAP-style: the removed weights times the mean of their inputs, as a bias; nothing is trained", labels=False
    ),
    "lofit": Recovery("LoFiT: heads chosen by the scales they learn, then an offset on each"),
    "lora": Recovery(
        "LoRA (peft) on every linear; reported unmerged, merged, and merged with the zeros put back", "adapter"
    ),
    "dora": Recovery("DoRA (peft); reported in the same ways", "adapter"),
    "eora": Recovery(
        "low-rank factors of the removed weights in the eigenspace of their inputs; nothing is trained",
        "adapter",
        labels=False,
    ),
    "masked": Recovery("all surviving weights trained, no zero filled", "checkpoint"),
    "masked-lora": Recovery("LoRA multiplied with the mask, so that merging fills no zero", "checkpoint"),
    "reconstruct": Recovery(
        "block by block, the surviving weights fitted to the dense block's output", "checkpoint", labels=False
    ),
    "masked-compensated": Recovery(f"`masked`, {_COMPENSATED}", "checkpoint"),
    "reconstruct-compensated": Recovery(f"`reconstruct`, {_COMPENSATED}", "checkpoint"),
}


def check_recovery(where: str, name: object) -> str:
    """The name, when it is known. Raises BadInput with the nearest one."""
    if name in RECOVERIES:
        return str(name)
    near = difflib.get_close_matches(str(name), list(RECOVERIES), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "use one of them, or leave the list empty"
    raise BadInput(f"{where} has {name!r}, which is not a recovery method: known are {', '.join(RECOVERIES)}; {hint}")

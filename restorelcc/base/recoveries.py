"""The recovery methods that `grid.recovery` can name: what each does in a line, produces, and needs.

And the names that `restore --method` takes: these, and two that are settings of `compensate`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Literal

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
    trains: bool = True  # whether anything is learned step by step; the others compute it
    sites: tuple[str, ...] = ()  # linears whose biases the result needs; `heads`: offsets of heads


EVERY_SITE = ("q", "k", "v", "o", "gate", "up", "down")


_COMPENSATED = "then a trained bias on every linear"
RECOVERIES: dict[str, Recovery] = {
    "random": Recovery("the paper's compensation on heads drawn at random", sites=("heads",)),
    "bias": Recovery(
        "a free bias on every out-projection: the upper limit of what compensating heads can do", sites=("o",)
    ),
    "ffn": Recovery("a free bias on every FFN output instead of the heads", sites=("down",)),
    "meanshift": Recovery(
        "FLAP-style: the removed weights times the mean of their inputs, as a bias; nothing is trained",
        labels=False,
        trains=False,
        sites=("o", "down"),
    ),
    "lofit": Recovery("LoFiT: heads chosen by the scales they learn, then an offset on each", sites=("heads",)),
    "lora": Recovery(
        "LoRA (peft) on every linear; reported unmerged, merged, and merged with the zeros put back", "adapter"
    ),
    "dora": Recovery("DoRA (peft); reported in the same ways", "adapter"),
    "eora": Recovery(
        "low-rank factors of the removed weights in the eigenspace of their inputs; nothing is trained",
        "adapter",
        labels=False,
        trains=False,
    ),
    "masked": Recovery("all surviving weights trained, no zero filled", "checkpoint"),
    "masked-lora": Recovery("LoRA multiplied with the mask, so that merging fills no zero", "checkpoint"),
    "reconstruct": Recovery(
        "block by block, the surviving weights fitted to the dense block's output", "checkpoint", labels=False
    ),
    "masked-compensated": Recovery(f"`masked`, {_COMPENSATED}", "checkpoint", sites=EVERY_SITE),
    "reconstruct-compensated": Recovery(f"`reconstruct`, {_COMPENSATED}", "checkpoint", sites=EVERY_SITE),
    "reconstruct-distilled": Recovery(
        "`reconstruct`, then all surviving weights trained towards the dense model's predictions",
        "checkpoint",
        labels=False,
    ),
}
# What else `restore --method` takes: the paper's method, and the same with a bias on every other linear. Both are the
# stage `compensate`, so that in a grid they are a head ratio and `compensate.sites`.
HEADS, EVERY_BIAS = "heads", "every-bias"
COMPENSATIONS: dict[str, Recovery] = {
    HEADS: Recovery("the paper's: an offset on each of the best-ranked heads", sites=("heads",)),
    EVERY_BIAS: Recovery("the same, and a trained bias on every other linear", sites=("heads", *EVERY_SITE)),
}
UNCHANGED = "unchanged"  # what became of the weights where a method could change them and nothing beat the pruned ones
WHAT_TO_PICK = (
    f"{HEADS}: the paper's, a few kilobytes; {EVERY_BIAS}: a bias on every other linear too, better on small models, "
    "unsteady on SmolLM2; masked: every surviving weight is trained, recovers most; reconstruct: the same by text "
    "alone, without responses; others: "
    f"{', '.join(name for name in RECOVERIES if name not in ('masked', 'reconstruct'))} (docs/recovery-methods.md)"
)


def method(option: str, name: str) -> Recovery:
    """What `restore --method` takes. Raises BadInput with the nearest name; of pruners, `refined` is one of these."""
    known = COMPENSATIONS | RECOVERIES
    if name in known:
        return known[name]
    if name.startswith("refined"):
        raise BadInput(f"{option} {name[:80]!r} is a way to prune: give --pruning refined-0.5, for example")
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the default is {HEADS}"
    raise BadInput(f"{option} {name[:80]!r} is not a recovery method: known are {', '.join(known)}; {hint}")


def nothing_changed(record: dict[str, Any]) -> bool:
    """Whether an export is the pruned model as it was: no bias carries anything, and no weight is new."""
    method = record.get("method") or {"name": HEADS, "weights": "kept"}  # two files are the paper's method
    return not record["route"]["folded"] and method["weights"] in ("kept", UNCHANGED)


def what_no_bias_carries(record: dict[str, Any]) -> str:
    """Said of an export without biases of a compensation: by its method it has new weights, or nothing new."""
    if nothing_changed(record):
        return "nothing was changed, and the model is the pruned one"
    return "what was recovered is in the weights"


def check_recovery(where: str, name: object) -> str:
    """The name, when it is known. Raises BadInput with the nearest one."""
    if isinstance(name, str) and name in RECOVERIES:
        return name
    near = difflib.get_close_matches(str(name), list(RECOVERIES), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "use one of them, or leave the list empty"
    raise BadInput(
        f"{where} has {str(name)[:80]!r}, which is not a recovery method: known are {', '.join(RECOVERIES)}; {hint}"
    )


# How an adapter gets into the weights: what `--merge` takes, and what the metrics of an adapter call it.
MERGES = {"zeros-filled": "merged", "zeros-kept": "merged, zeros put back"}


def no_adapter(name: str) -> str:
    """Why an adapter is not exported as it is."""
    return (
        f"{name} leaves an adapter beside the weights, which no stock checkpoint holds: --merge zeros-filled or "
        "--merge zeros-kept writes it into the weights, and the method masked-lora is a LoRA that fills no zero"
    )

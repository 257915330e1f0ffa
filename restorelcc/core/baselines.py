"""Names of the recovery methods that `grid.baseline` can hold, and what each does in a line."""

from __future__ import annotations

import difflib

from restorelcc.core.errors import BadInput

BASELINES: dict[str, str] = {
    "random": "the paper's compensation on heads drawn at random",
    "bias": "a free bias on every out-projection: the upper limit of what compensating heads can do",
    "ffn": "a free bias on every FFN output instead of the heads",
    "meanshift": "FLAP-style: the removed weights times the mean of their inputs, as a bias; nothing is trained",
    "lofit": "LoFiT: heads chosen by the scales they learn, then an offset on each",
    "lora": "LoRA (peft) on every linear; reported unmerged, merged, and merged with the zeros put back",
    "dora": "DoRA (peft), likewise",
    "eora": "low-rank factors of the removed weights in the eigenspace of their inputs; nothing is trained",
    "masked": "all surviving weights trained, no zero filled",
    "masked-lora": "LoRA multiplied with the mask, so that merging fills no zero",
    "reconstruct": "block by block, the surviving weights fitted to the dense block's output",
    "masked-compensated": "`masked`, then a trained bias on every linear",
    "reconstruct-compensated": "`reconstruct`, then a trained bias on every linear",
}


def check_baseline(where: str, name: object) -> str:
    """The name, when it is known. Raises BadInput with the nearest one."""
    if name in BASELINES:
        return str(name)
    near = difflib.get_close_matches(str(name), list(BASELINES), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "use one of them, or leave the list empty"
    raise BadInput(f"{where} has {name!r}, which is no baseline: known are {', '.join(BASELINES)}; {hint}")

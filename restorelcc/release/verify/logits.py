"""The checkpoint as a fresh process loads it, against the pruned model with its compensation hooked in.

Letters: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from restorelcc.base.documents import read_json, write_json
from restorelcc.base.errors import StageFailed
from restorelcc.compensation.compensation import Compensation
from restorelcc.compensation.hooks import compensated
from restorelcc.models.checkpoint_check import refused, wrong_keys
from restorelcc.models.config_check import QUANTIZATION_KEYS
from restorelcc.models.config_facts import context_of_config
from restorelcc.models.tensors import read_tensors
from restorelcc.release.original import original_config, original_tensors
from restorelcc.release.verify.files import Violation
from restorelcc.release.verify.fresh import Waiting

FLOAT32_TOLERANCE = 1e-5  # of the largest logit, or of 1 where all are smaller
_SEQUENCES, _TOKENS = 4, 32


@dataclass(frozen=True)
class Loaded:
    """What plain from_pretrained made of a checkpoint: class, dtype, keys, and logits [B, T, V]."""

    report: dict[str, Any]
    own_BTV: Tensor
    float32_BTV: Tensor


def probe_tokens(config: PretrainedConfig, seed: int = 0) -> list[list[int]]:
    """Random token ids, [B, T]."""
    text = config.get_text_config()
    length = min(_TOKENS, context_of_config(config) or _TOKENS)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, text.vocab_size, (_SEQUENCES, length), generator=generator).tolist()


def load_fresh(requests: list[tuple[Path, list[list[int]]]], waiting: Waiting | None = None) -> list[Loaded]:
    """Load each folder by plain AutoModelForCausalLM.from_pretrained in one fresh process and run it on the tokens.

    The process is the one that waits, or else one that is started here. Raises Violation with its last words when it
    fails.
    """
    with tempfile.TemporaryDirectory(prefix="restorelcc-fresh-") as scratch:
        places = [(Path(scratch) / f"{n}.safetensors", Path(scratch) / f"{n}.json") for n in range(len(requests))]
        asked = [
            {"folder": str(folder.absolute()), "tokens": tokens, "logits": str(logits), "report": str(report)}
            for (folder, tokens), (logits, report) in zip(requests, places, strict=True)
        ]
        request = Path(scratch) / "request.json"
        request.write_text(json.dumps(asked), encoding="utf-8")
        status, said = waiting.run(request) if waiting else _started(request)
        if status != 0:
            last = (said.strip().splitlines() or ["no message"])[-1]
            raise Violation(f"{requests[0][0]} does not load in a fresh process: {last}")
        found = []
        for logits, report in places:
            tensors, _ = read_tensors(logits, ("own", "float32"), sealed=False)
            found.append(Loaded(read_json(report), tensors["own"], tensors["float32"]))
        return found


def _started(request: Path) -> tuple[int, str]:
    """Answer a request in a process of its own: its exit status and what it said on stderr."""
    # -P: the script's own folder is not searched for modules.
    command = [sys.executable, "-P", str(Path(__file__).with_name("fresh.py")), str(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=request.parent)
    return done.returncode, done.stderr


def check_keys(folder: Path, config: PretrainedConfig, loaded: Loaded) -> str:
    """No missing, unexpected or mismatched keys, as `wrong_keys` counts them."""
    if wrong := wrong_keys(config, loaded.report):
        raise Violation(f"loading {folder} reports {wrong[0]}: {', '.join(wrong[1][:3])}")
    return f"{loaded.report['class']} in {loaded.report['dtype']}, no missing or unexpected keys"


def check_logits(loaded: Loaded, hooked_BTV: Tensor) -> str:
    """Logits equal to the hooked model's, both computed in float32 from the numbers stored.

    Tolerance: float32 checkpoints 1e-5 of the largest logit; others the model's own rounding, which is the largest
    difference that computing in the checkpoint's dtype makes to its logits.
    """
    return _compared("the pruned model with the compensation hooked in", loaded, loaded.float32_BTV, hooked_BTV)


def check_packed_logits(loaded: Loaded, packed: PreTrainedModel, tokens: list[list[int]]) -> str:
    """Logits of the packed checkpoint equal to those of the stock one, both in the dtype of the checkpoint.

    Both of its products are compared: that of many tokens at once, and the kernel's of few, with which it decodes.
    Tolerance as `check_logits`, but twice the model's own rounding: both of them round.
    """
    of_few = [own_logits(packed, [row]) for row in tokens]
    packed_BTV, twice_BTV = torch.cat([own_logits(packed, tokens), *of_few]), loaded.own_BTV.repeat(2, 1, 1)
    return _compared("the packed model", loaded, twice_BTV, packed_BTV, roundings=2)


def _compared(what: str, loaded: Loaded, found_BTV: Tensor, expected_BTV: Tensor, roundings: int = 1) -> str:
    difference = float((found_BTV - expected_BTV).abs().max())
    dtype = loaded.report["dtype"]
    if dtype == "float32":
        tolerance = FLOAT32_TOLERANCE * max(1.0, float(expected_BTV.abs().max()))
        reason = "1e-5 of the largest logit, at least of 1"
    else:
        tolerance = roundings * float((loaded.own_BTV - loaded.float32_BTV).abs().max())
        reason = f"{'twice ' if roundings == 2 else ''}the model's own rounding in {dtype}"
    told = f"max |difference| {difference:.2e}, tolerance {tolerance:.2e} ({reason})"
    if not difference <= tolerance:
        raise Violation(f"logits differ from {what}: {told}")
    return told


@torch.no_grad()
def own_logits(model: PreTrainedModel, tokens: list[list[int]]) -> Tensor:
    """Logits [B, T, V] of a model in its own dtype, as float32."""
    return model(input_ids=torch.tensor(tokens), use_cache=False).logits.float()


@torch.no_grad()
def hooked_logits(model: PreTrainedModel, compensation: Compensation, tokens: list[list[int]]) -> Tensor:
    """Logits [B, T, V] of the pruned model in float32 with its compensation hooked in."""
    with compensated(model, compensation):
        return model(input_ids=torch.tensor(tokens), use_cache=False).logits.float()


def pruned_from_restored(folder: Path) -> PreTrainedModel:
    """The pruned model in float32, rebuilt from the restored checkpoint's weights and the biases it kept."""
    content = {name: value for name, value in original_config(folder).items() if name not in QUANTIZATION_KEYS}
    with refused("config", folder), tempfile.TemporaryDirectory() as scratch:
        write_json(Path(scratch) / "config.json", content)  # infinity is read from a file alone
        config = AutoConfig.from_pretrained(scratch, trust_remote_code=False)
    # Typed by hand: its annotation does not know the pair that is returned.
    with refused("model", folder), init_empty_weights():
        kind: Any = type(AutoModelForCausalLM.from_config(config, trust_remote_code=False))
    loaded = kind.from_pretrained(
        None, config=config, state_dict=dict(original_tensors(folder)), dtype=torch.float32, output_loading_info=True
    )
    model, report = loaded
    if report["missing_keys"]:
        raise StageFailed(
            f"the pruned model cannot be rebuilt from {folder}: it lacks {sorted(report['missing_keys'])[0]}"
        )
    return model.eval().requires_grad_(False)

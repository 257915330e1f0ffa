"""Load checkpoints as any user does and report the result, in a process that knows nothing of restorelcc's models.

    python -P fresh.py REQUEST.json

`wait` gives the same process by a fork of one that has imported transformers and nothing else that could change how a
model is loaded, so that nobody waits for the imports twice.

REQUEST.json: a list of {"folder", "tokens": [[...]], "logits": path to write, "report": path to write}. The logits file
holds `own`, computed in the dtype of the checkpoint, and `float32`, computed in float32 from the same numbers.
"""

import json
import os
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.generation import GenerationMixin  # noqa: F401 - what every class needs is imported before a fork
from transformers.utils.logging import disable_progress_bar

_KEYS = ("missing_keys", "unexpected_keys", "mismatched_keys")


@torch.no_grad()
def answer(request: dict[str, Any]) -> None:
    """Load one checkpoint, run it, write its logits and its report."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        request["folder"], trust_remote_code=False, output_loading_info=True
    )
    model: PreTrainedModel = loaded[0]
    info: dict[str, Any] = loaded[1]
    tokens = torch.tensor(request["tokens"])
    dtype = str(model.dtype).removeprefix("torch.")
    own = model(input_ids=tokens, use_cache=False).logits.float()
    exact = own if model.dtype == torch.float32 else model.float()(input_ids=tokens, use_cache=False).logits
    save_file({"own": own.contiguous(), "float32": exact.clone().contiguous()}, request["logits"])
    keys = {kind: sorted(map(str, info.get(kind) or ())) for kind in _KEYS}
    report = {"class": type(model).__name__, "dtype": dtype, **keys}
    Path(request["report"]).write_text(json.dumps(report), encoding="utf-8")


def run(request: Path) -> None:
    """Answer every checkpoint that is asked about."""
    disable_progress_bar()
    torch.manual_seed(0)
    for each in json.loads(request.read_text(encoding="utf-8")):
        answer(each)


@dataclass(frozen=True)
class Waiting:
    """A forked process that waits for one request; it ends when this process ends, or asks nothing."""

    pid: int
    asks: int

    def run(self, request: Path) -> tuple[int, str]:
        """Let it answer: its exit status and all that it said."""
        os.write(self.asks, f"{request}\n".encode())
        os.close(self.asks)
        try:
            status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except BaseException:  # interrupted: nobody waits for it any more
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise
        return status, request.with_suffix(".log").read_text(encoding="utf-8", errors="replace")


def wait() -> Waiting:
    """Fork a process that has what is imported now and waits for the path of a request."""
    reads, asks = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(reads)
        return Waiting(pid, asks)
    status = 1
    try:
        os.close(asks)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        with os.fdopen(reads, encoding="utf-8") as requests:
            request = Path(requests.readline().strip())
        if request.name:
            log = os.open(request.with_suffix(".log"), os.O_WRONLY | os.O_CREAT)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.chdir(request.parent)
            run(request)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    run(Path(sys.argv[1]))

"""Load checkpoints as any user does and report the result; run as a script, in a process that knows nothing of
restorelcc.

    python -P fresh.py REQUEST.json

REQUEST.json: a list of {"folder", "tokens": [[...]], "logits": path to write, "report": path to write}. The logits file
holds `own`, computed in the dtype of the checkpoint, and `float32`, computed in float32 from the same numbers.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

_KEYS = ("missing_keys", "unexpected_keys", "mismatched_keys")


@torch.no_grad()
def answer(request: dict[str, Any]) -> None:
    """Load one checkpoint, run it, write its logits and its report."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(request["folder"], output_loading_info=True)
    model, info = loaded
    tokens = torch.tensor(request["tokens"])
    dtype = str(model.dtype).removeprefix("torch.")
    own = model(input_ids=tokens, use_cache=False).logits.float()
    exact = own if model.dtype == torch.float32 else model.float()(input_ids=tokens, use_cache=False).logits
    save_file({"own": own.contiguous(), "float32": exact.clone().contiguous()}, request["logits"])
    keys = {kind: sorted(map(str, info.get(kind) or ())) for kind in _KEYS}
    report = {"class": type(model).__name__, "dtype": dtype, **keys}
    Path(request["report"]).write_text(json.dumps(report), encoding="utf-8")


def main() -> None:
    disable_progress_bar()
    torch.manual_seed(0)
    for request in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        answer(request)


if __name__ == "__main__":
    main()

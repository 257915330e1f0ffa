"""CPU seconds until a verb has answered, each in a fresh process: the median of five, beside importing transformers.

    python -m benchmarks.startup

User and system seconds of the process, so that other work on the machine does not count.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RUNS = 5
# What verbs that work on a model have to import: the classes of models, which bring torch.
BASE = "import transformers; transformers.PreTrainedModel; transformers.AutoModelForCausalLM"


def cpu_seconds(*command: str) -> float:
    """User and system seconds of a process and its children. Raises CalledProcessError where it fails."""
    before = os.times()
    subprocess.run(command, check=True, capture_output=True)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


def verbs(folder: Path) -> dict[str, tuple[str, ...]]:
    """Verbs, with a pico checkpoint to work on."""
    pruned, compensation, out = (str(folder / name) for name in ("pruned", "compensation.safetensors", "out"))
    return {
        "--help": ("--help",),
        "check": ("check",),
        "compensation show": ("compensation", "show", compensation),
        "table --help": ("table", "--help"),
        "inspect": ("inspect", pruned),
        "engines": ("engines", pruned),
        "export": ("export", "--pruned", pruned, "--compensation", compensation, "--out", out, "--overwrite"),
        "verify": ("verify", "--skip-logits", out),
        "pack": ("pack", out, "--out", str(folder / "packed"), "--overwrite"),
        "plan": ("plan", "--model", "tiny"),
    }


def main() -> None:
    """Print a line for each verb: CPU seconds, and the ratio to importing transformers."""
    from tests.release.export.restored import pair_of

    def median(*command: str) -> float:
        return statistics.median(cpu_seconds(sys.executable, *command) for _ in range(RUNS))

    base = median("-c", BASE)
    print(f"{'import transformers':<20} {base:5.2f} CPU-s")
    with tempfile.TemporaryDirectory() as scratch:
        pair_of(Path(scratch))
        for title, arguments in verbs(Path(scratch)).items():
            seconds = median("-m", "restorelcc", *arguments)
            print(f"{title:<20} {seconds:5.2f} CPU-s  {seconds / base:5.2f} of it", flush=True)


if __name__ == "__main__":
    main()

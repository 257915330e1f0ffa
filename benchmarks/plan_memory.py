"""Peak memory of every stage beside what `restorelcc plan` says, on the embedded model and on a random one.

    python -m benchmarks.plan_memory [--models tiny random]

Each stage is a process of its own; its peak is the largest resident set the kernel saw, Python and torch in it. The
process reads it itself: what the kernel tells a parent counts what the child shared with it before it was started.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
STAGES = (
    *("corpus", "dense", "capture_dense", "evaluate_dense", "prune", "capture_pruned", "extract", "probe"),
    *("compensate", "evaluate_restored"),
)
PRUNING, RATIO = "wanda-0.5", "0.25"
# Stages that evaluate_restored reads the samples of.
BEFORE = {"evaluate_restored": ("evaluate_pruned",)}


@dataclass(frozen=True)
class Peak:
    """One stage: bytes measured and planned."""

    model: str
    stage: str
    measured: int
    planned: int

    @property
    def ratio(self) -> float:
        return self.planned / self.measured


def embedded_project(folder: Path) -> str:
    """A project with the parameters as shipped; returns the model's name."""
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    return "tiny"


def random_project(folder: Path, width: int = 1024, ffn: int = 2816, layers: int = 10) -> str:
    """A project with a random Llama, of about 120 M parameters unless told otherwise, and random words as data."""
    from benchmarks.random_llama import VOCABULARY, random_llama
    from restorelcc.models.checkpoints import save_checkpoint
    from tests.pico import word_tokenizer

    model = random_llama(width=width, ffn=ffn, layers=layers, heads=16)
    save_checkpoint(folder / "model", model, word_tokenizer(VOCABULARY))
    rng = random.Random(0)

    def words(count: int) -> str:
        return " ".join(f"w{rng.randrange(3, VOCABULARY - 1)}" for _ in range(count))

    rows = [{"question": words(100), "response": words(60)} for _ in range(22)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "texts.txt").write_text("\n".join(words(512) for _ in range(3)))
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    data = {"calibration": "texts.txt", "instructions": "pairs.jsonl", "heldout": "texts.txt"}
    settings = {
        "corpus": {"calibration": 3, "train": 16, "valid": 4, "contrast": 12},
        "prune": {"samples": 3, "token_budget": 1024},
        "capture": {"token_budget": 2048},
        "compensate": {"epochs": 1, "batch_size": 8},
        "evaluate": {
            "sanity_gate": False,
            "generation": {"prompts": 2, "new_tokens": 8, "heldout_tokens": 256},
        },
    }
    params["models"] = {
        "random": {"source": "model", "data": data, "settings": settings, "sequence_length": 512, "threads": 1}
    }
    params["grid"] |= {"model": ["random"]}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return "random"


PROJECTS = {"tiny": embedded_project, "random": random_project}


def peaks(name: str, folder: Path, stages: tuple[str, ...] = STAGES) -> Iterator[Peak]:
    """Run the chain of one model, stage by stage, and compare."""
    folder.mkdir(parents=True, exist_ok=True)
    model = PROJECTS[name](folder)
    measured_peak(folder, "corpus", model)  # the plan goes by the texts that are there
    planned = planned_peaks(folder, model)
    for stage in stages:
        for before in BEFORE.get(stage, ()):
            measured_peak(folder, before, model)
        yield Peak(model, stage, measured_peak(folder, stage, model), planned[stage])


def planned_peaks(folder: Path, model: str) -> dict[str, int]:
    """Bytes that `restorelcc plan` gives each stage."""
    command = [sys.executable, "-m", "restorelcc", "plan", "--model", model, "--pruning", PRUNING, "--json"]
    done = subprocess.run(command, cwd=folder, env=_environment(), stdout=subprocess.PIPE, text=True, check=True)
    return {row["stage"]: row["memory"] for row in json.loads(done.stdout)["stages"]}


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "RESTORELCC_PROGRESS": "0", "OMP_NUM_THREADS": "1"}


_MEASURED = """
import sys
from restorelcc.__main__ import main
try:
    main()
finally:
    with open("/proc/self/status") as status, open("peak", "w") as file:
        file.write(next(line for line in status if line.startswith("VmHWM:")).split()[1])
"""


def measured_peak(folder: Path, stage: str, model: str) -> int:
    """Peak resident bytes of one stage's process."""
    command = [sys.executable, "-c", _MEASURED, stage, "--model", model]
    if stage not in ("corpus", "dense", "capture_dense", "evaluate_dense"):
        command += ["--pruning", PRUNING]
    if stage in ("compensate", "evaluate_restored"):
        command += ["--head-ratio", RATIO]
    done = subprocess.run(command, cwd=folder, env=_environment(), check=False)
    if done.returncode:
        raise SystemExit(f"{stage} of {model} ended with {done.returncode}")
    return int((folder / "peak").read_text()) * 1024  # Linux counts in KiB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(PROJECTS), choices=list(PROJECTS))
    options = parser.parse_args()
    print("| model | stage | measured MiB | planned MiB | planned / measured |\n|---|---|---|---|---|")
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            for peak in peaks(name, Path(folder) / "project"):
                measured, planned = (f"{size / 2**20:,.0f}" for size in (peak.measured, peak.planned))
                print(f"| {peak.model} | {peak.stage} | {measured} | {planned} | {peak.ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()

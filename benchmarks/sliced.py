"""A slimgpt model with its zeros against its sliced export, side by side: logits, file size, time of a forward.

    python -m benchmarks.sliced [--sparsity 0.3] [--rounds 15] [--threads 1] [--write FILE.md]

Both are saved and read back by transformers alone, the sliced one in a process of its own too, and forwards are timed
in turns. Exits with 1 when logits differ by more than 1e-5, or when the sliced model is not smaller and faster.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from benchmarks.random_llama import random_batches, random_llama
from benchmarks.results import measured_on, table, write_section
from restorelcc.base.prunings import parse_pruning
from restorelcc.release.slicing import sliced
from restorelcc.stages.prune.prune import prune_model

WIDTH, FFN, LAYERS, HEADS = 512, 1376, 4, 8

disable_progress_bar()  # of loading and writing weights


def _save(folder: Path, sparsity: str) -> None:
    masked = random_llama(width=WIDTH, ffn=FFN, layers=LAYERS, heads=HEADS)
    prune_model(masked, parse_pruning(f"slimgpt-{sparsity}"), random_batches(8, 256))
    masked.save_pretrained(folder / "masked")
    sliced(masked).save_pretrained(folder / "sliced")


@torch.no_grad()
def _logits(folder: Path) -> Tensor:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)(
        input_ids=random_batches(4, 256)[0]
    ).logits


@torch.no_grad()
def _seconds(folders: dict[str, Path], rounds: int) -> dict[str, list[float]]:
    """Time of every forward, the models in turns; the first round warms up and is left out."""
    models = {
        name: AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False) for name, folder in folders.items()
    }
    tokens_BT = random_batches(4, 256)[0]
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds + 1):
        for name, model in models.items():
            start = time.perf_counter()
            model(input_ids=tokens_BT)
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


def _row(name: str, folder: Path, seconds: list[float]) -> list[str]:
    config = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False).config
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    shape = f"{config.model_type}, {config.num_attention_heads} heads, {config.intermediate_size} channels"
    return [name, shape, f"{size / 2**20:.1f} MiB", f"{median(seconds) * 1000:.0f} ms"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sparsity", default="0.3")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path, help="a Markdown file whose section is written")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["RESTORELCC_PROGRESS"] = "0"
    fresh = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, fresh.Pool(1) as pool:
        folders = {name: Path(folder) / name for name in ("masked", "sliced")}
        _save(Path(folder), options.sparsity)
        difference = float((_logits(folders["masked"]) - pool.apply(_logits, (folders["sliced"],))).abs().max())
        seconds = _seconds(folders, options.rounds)
        rows = [_row(name, folders[name], seconds[name]) for name in folders]
        sizes = [(path / "model.safetensors").stat().st_size for path in folders.values()]
    ratio = median(one / other for one, other in zip(*seconds.values(), strict=True))
    found = f"slimgpt-{options.sparsity}: largest difference of a logit {difference:.1e} (goal 1e-5)"
    faster = f"median ratio of the times, masked / sliced, over {options.rounds} rounds in turns: {ratio:.2f}"
    print(found, *(": ".join((row[0], ", ".join(row[1:]))) for row in rows), faster, sep="\n")
    if options.write:
        lines = f"{found}; {faster}.\n\n{measured_on(options.threads)}"
        columns = ["model", "what it is", "file", "forward of 4 x 256 tokens"]
        write_section(options.write, "sliced", "Masked and sliced", f"{lines}\n\n{table(columns, rows)}")
    if difference > 1e-5 or sizes[1] >= sizes[0] or ratio <= 1:
        sys.exit("the sliced model does not equal the masked one, or is not smaller and faster")


if __name__ == "__main__":
    main()

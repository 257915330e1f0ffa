"""What a folded compensation costs at inference: latency restored / pruned, file size, parameters added.

`make bench-overhead`. The latency is that of one forward, the median over pairs of runs: each pair times both models in
one process, one after the other in an order that alternates, so that a machine that slows down slows both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from restorelcc.compensation.compensation import Compensation
from restorelcc.compensation.file import write_compensation
from restorelcc.models.checkpoints import save_checkpoint
from restorelcc.release.export.export import ExportOptions, export_checkpoint
from tests.pico import word_tokenizer

GOAL_RATIO, GOAL_ADDED = 1.02, 0.0005


def random_pair(folder: Path, width: int, layers: int) -> tuple[Path, Path]:
    """A random half-sparse Llama with heads of 64 and a compensation of a quarter of them, as checkpoint folders."""
    torch.manual_seed(0)
    heads = width // 64
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 4,
    )
    model = LlamaForCausalLM(config).requires_grad_(False)
    for block in model.model.layers:
        for parameter in block.parameters():
            if parameter.dim() == 2:
                parameter[:, ::2] = 0
    offset = torch.zeros(layers, heads, 64)
    offset[:, : heads // 4] = 0.01 * torch.randn(layers, heads // 4, 64)
    save_checkpoint(folder / "pruned", model, word_tokenizer())
    write_compensation(folder / "compensation.safetensors", Compensation(offset), {})
    export_checkpoint(folder / "pruned", folder / "compensation.safetensors", folder / "restored", ExportOptions())
    return folder / "pruned", folder / "restored"


@torch.no_grad()
def seconds(model: PreTrainedModel, tokens: torch.Tensor) -> float:
    """One forward."""
    started = time.perf_counter()
    model(input_ids=tokens, use_cache=False)
    return time.perf_counter() - started


def latency_ratio(pruned: PreTrainedModel, restored: PreTrainedModel, tokens: torch.Tensor, pairs: int) -> list[float]:
    """restored / pruned of each pair of runs, after one pair to warm up."""
    ratios = []
    for number in range(pairs + 1):
        order = (pruned, restored) if number % 2 else (restored, pruned)
        taken = {id(model): seconds(model, tokens) for model in order}
        ratios.append(taken[id(restored)] / taken[id(pruned)])
    return ratios[1:]


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=60)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folders = random_pair(Path(scratch), asked.width, asked.layers)
        pruned, restored = (
            AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False).eval() for folder in folders
        )
        tokens = torch.randint(0, 8192, (1, asked.tokens))
        ratios = latency_ratio(pruned, restored, tokens, asked.pairs)
        before, after = (model.num_parameters() for model in (pruned, restored))
        added = (after - before) / before
        low, _, high = statistics.quantiles(ratios, n=4)
        median = statistics.median(ratios)
        sizes = [_bytes(folder) for folder in folders]
    print(f"hidden size {asked.width}, {asked.layers} layers, {before:,} parameters, {asked.tokens} tokens a forward")
    print(f"latency restored / pruned: median {median:.4f} of {len(ratios)} pairs (quartiles {low:.4f} to {high:.4f})")
    print(f"weights on disk: {sizes[0]:,} -> {sizes[1]:,} bytes ({sizes[1] / sizes[0] - 1:+.4%})")
    print(f"parameters: {before:,} -> {after:,} (+{added:.4%})")
    reached = median <= GOAL_RATIO and (asked.width <= 1000 or added <= GOAL_ADDED)
    print(f"goals (ratio <= {GOAL_RATIO}, parameters <= {GOAL_ADDED:.2%}): {'reached' if reached else 'MISSED'}")
    raise SystemExit(0 if reached else 1)


if __name__ == "__main__":
    main()

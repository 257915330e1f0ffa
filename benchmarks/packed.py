"""What the zeros are worth: bytes, memory and tokens per second of a model dense, restored, packed, sliced and in int8.

    python -m benchmarks.packed [--model DIR] [--blocks 4] [--sparsity 0.5 0.6] [--threads 1 2] [--rounds 9] [--write]

`make bench-packed`. Without --model: a random Llama with blocks as wide as those of a 7B model. All versions are in
memory at once and take turns, a few tokens each, so that a busy machine slows all of them alike; speeds are ratios
within a turn. One thread is measured in CPU time, to which other programs on the machine add little. Weights are
removed by their magnitude: speed does not depend on which. `restored` has a bias on every linear of the attention, as
an export of a Llama does. `sliced` is a dense Llama of the shapes that cutting heads and channels leaves. `int8` is
round-to-nearest with one scale a row, by torch's own kernel. `rest` is the model whose blocks have linears that
compute nothing: the time that no packing can save.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.results import Results, table, verdict
from restorelcc.base.prunings import parse_pruning
from restorelcc.models.architectures import prunable_linears
from restorelcc.models.checkpoints import load_model, save_checkpoint
from restorelcc.release.packed import model as packed_model
from restorelcc.release.packed.folder import pack_folder
from restorelcc.release.packed.kernel import kernel
from restorelcc.release.packed.matrix import pack
from restorelcc.release.packed.model import PackedLinear, load_packed
from restorelcc.sparsity.patterns import removal_mask
from restorelcc.stages.speed.measure import Int8Linear, Version, with_linears
from tests.pico import word_tokenizer

GOALS = {0.5: (1.3, 0.57), 0.6: (1.8, 0.47)}  # sparsity: decoding against dense, bytes against dense
_PROMPT, _STEPS, _PREFILL = 4, 3, 40  # tokens
_PREFILLS = 2  # turns with a prefill, which takes torch many times as long as a token


class Nothing(nn.Module):
    """A linear that takes no time."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.outputs = linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(1).expand(*x.shape[:-1], self.outputs)


def _llama_7b(blocks: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=blocks, vocab_size=1000)
    return LlamaForCausalLM(config).to(torch.bfloat16).eval().requires_grad_(False)


def _restored(dense: PreTrainedModel, sparsity: float) -> PreTrainedModel:
    """The model with that share of its weights removed, to a thousandth, and a bias on the linears of the attention."""
    config = type(dense.config)(**dense.config.to_dict() | {"attention_bias": True})
    model = type(dense)(config).to(torch.bfloat16).eval().requires_grad_(False)
    model.load_state_dict(dense.state_dict(), strict=False)
    for _, _, linear in prunable_linears(model):
        size = linear.weight.abs()
        limit = size.flatten()[:: max(1, size.numel() // 10**6)].float().quantile(sparsity)
        linear.weight.masked_fill_(size <= limit, 0)
        if linear.bias is not None:
            linear.bias.normal_(std=0.01)
    return model


def _sliced(dense: PreTrainedModel, sparsity: float) -> PreTrainedModel:
    config = dense.config
    share, group = 1 - sparsity, config.num_attention_heads // config.num_key_value_heads
    wanted = config.num_key_value_heads * share
    whole = [kept for kept in range(1, config.num_key_value_heads + 1) if config.hidden_size % (kept * group) == 0]
    kept = min(whole, key=lambda kept: abs(kept - wanted))  # the class wants a width that the heads divide
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    changed = {"num_key_value_heads": kept, "num_attention_heads": kept * group, "head_dim": head_dim}
    changed |= {"intermediate_size": int(config.intermediate_size * share)}
    return type(dense)(type(config)(**config.to_dict() | changed)).to(torch.bfloat16).eval().requires_grad_(False)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _versions(dense: PreTrainedModel, sparsities: list[float], scratch: Path) -> Iterator[Version]:
    def saved(name: str, model: PreTrainedModel) -> Path:
        save_checkpoint(scratch / name, model, word_tokenizer())
        return scratch / name

    folder = saved("dense", dense)
    yield Version("dense", dense, _size(folder))
    for sparsity in sparsities:
        restored = _restored(dense, sparsity)
        folder = saved(f"restored-{sparsity}", restored)
        if sparsity == sparsities[0]:
            yield Version(f"restored {sparsity:.0%}", restored, _size(folder))
        del restored
        gc.collect()
        pack_folder(folder, scratch / f"packed-{sparsity}")
        yield Version(
            f"packed {sparsity:.0%}", load_packed(scratch / f"packed-{sparsity}"), _size(scratch / f"packed-{sparsity}")
        )
        small = _sliced(dense, sparsity)
        yield Version(f"sliced {sparsity:.0%}", small, _size(saved(f"sliced-{sparsity}", small)))
    for name, kind in (("int8", Int8Linear), ("rest", Nothing)):
        loaded = load_model(scratch / "dense", torch.bfloat16, torch.device("cpu"))
        yield Version(name, with_linears(loaded, kind), None)


@torch.no_grad()
def _turn(version: Version, clock: Callable[[], float], record: bool, prefill: bool) -> None:
    """A prompt, a few tokens one by one, and a longer prompt."""
    model = version.model
    cache = model(input_ids=torch.arange(3, 3 + _PROMPT)[None], use_cache=True).past_key_values
    token = torch.tensor([[5]])
    times = []
    for _ in range(_STEPS):
        started = clock()
        model(input_ids=token, past_key_values=cache, use_cache=True)
        times.append(clock() - started)
    if record:
        version.decode.append(median(times))
    if prefill:
        started = clock()
        model(input_ids=torch.arange(_PREFILL)[None] % 900 + 3, use_cache=False, logits_to_keep=1)
        version.prefill.append((clock() - started) / _PREFILL)


def _ratios(dense: list[float], other: list[float]) -> str:
    each = [one / two for one, two in zip(dense, other, strict=True)]
    low, _, high = quantiles(each, n=4)
    return f"{median(each):.2f} ({low:.2f} to {high:.2f})"


def _ratio(dense: list[float], other: list[float]) -> float:
    return median(one / two for one, two in zip(dense, other, strict=True))


def measure(versions: list[Version], threads: int, rounds: int, results: Results) -> None:
    """The versions in turns, and their table."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    for version in versions:
        version.decode, version.prefill = [], []
    for turn in range(rounds + 1):
        for version in versions if turn % 2 else reversed(versions):
            _turn(version, clock, record=turn > 0, prefill=0 < turn <= _PREFILLS)
    by_name = {version.name: version for version in versions}
    dense, rest = by_name["dense"], by_name["rest"]
    rows = []
    for version in versions:
        file = "-" if version.file is None else f"{version.file / 2**20:.0f} MiB"
        tokens = [f"{1 / median(version.decode):.1f}", _ratios(dense.decode, version.decode)]
        tokens += [f"{1 / median(version.prefill):.0f}", _ratios(dense.prefill, version.prefill)]
        rows.append([version.name, file, f"{version.memory / 2**20:.0f} MiB", *tokens])
    columns = ["version", "file", "in memory", "decode, tokens/s", "times dense", "prefill, tokens/s", "times dense"]
    results.say(
        f"\n{threads} thread{'s' if threads > 1 else ''}, {rounds} turns, medians (quartiles), "
        f"{'CPU' if threads == 1 else 'wall'} time:\n"
    )
    results.say(table(columns, rows))
    for sparsity, (goal, _) in GOALS.items():
        if (packed := by_name.get(f"packed {sparsity:.0%}")) is None:
            continue
        ratio = _ratio(dense.decode, packed.decode)
        alone = median(d - r for d, r in zip(dense.decode, rest.decode, strict=True)) / median(
            p - r for p, r in zip(packed.decode, rest.decode, strict=True)
        )
        results.say(
            f"\nDecoding at {sparsity:.0%}: {ratio:.2f} times dense, {verdict(ratio, goal)}. The rest of the model "
            f"takes {1000 * median(rest.decode):.1f} of {1000 * median(packed.decode):.1f} ms; the linears alone are "
            f"{alone:.2f} times as fast."
        )


def _bytes_of_linears(versions: list[Version], results: Results) -> None:
    dense = versions[0].model
    for version in versions:
        layers = [module for module in version.model.modules() if isinstance(module, PackedLinear)]
        if layers:
            stock = sum(linear.weight.nbytes for _, _, linear in prunable_linears(dense))
            share = sum(each.nbytes for layer in layers for each in layer.buffers()) / stock
            goal = GOALS[float(version.name.split()[1].rstrip("%")) / 100][1]
            whole = (version.file or 0) / (versions[0].file or 1)
            results.say(
                f"{version.name}: the weights of the sparse linears take {share:.4f} of their bytes in bfloat16, "
                f"{verdict(share, goal, at_least=False)}; the whole file, embeddings and all, {whole:.3f}."
            )


def crossover(results: Results) -> None:
    """The kernel against expanding the layer and torch's product, by the number of tokens; CPU seconds, one thread."""
    torch.manual_seed(0)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        weight_OI = torch.randn(4096, 4096).to(dtype)
        weight_OI.masked_fill_(removal_mask(weight_OI.abs().float(), parse_pruning("magnitude-0.5").sparsity), 0)
        layer = PackedLinear(nn.Linear(4096, 4096, bias=False, device="meta"))
        bits = weight_OI.view(torch.int32 if dtype == torch.float32 else torch.int16).numpy()
        packed = pack(bits.view(bits.dtype.str.replace("i", "u")))
        assert packed is not None
        layer.hold(packed, dtype)
        for tokens in (1, 4, 8, 16, 24, 32, 64):
            x_BI, times = torch.randn(tokens, 4096).to(dtype), {1: [], 10**9: []}
            for _ in range(5):
                for start in times:
                    packed_model.EXPANDED_FROM[dtype] = start
                    started = time.process_time()
                    layer(x_BI)
                    times[start].append(time.process_time() - started)
            expanded, direct = (median(each) * 1000 for each in times.values())
            rows.append([str(dtype).removeprefix("torch."), str(tokens), f"{direct:.1f} ms", f"{expanded:.1f} ms"])
    results.say("\nA layer of 4096 x 4096 at 50 %, one thread, CPU time:\n")
    results.say(table(["dtype", "tokens", "kernel", "expanded, then torch"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a checkpoint of a Llama; a random one of 7B-shaped blocks")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.6])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--crossover", action="store_true", help="the kernel against expanded layers, and nothing else")
    parser.add_argument("--name", default="a random Llama with 7B-shaped blocks", help="what the page calls it")
    parser.add_argument("--write", action="store_true", help="write the section of docs/results/packed.md")
    options = parser.parse_args()
    found = kernel()
    title = "Crossover" if options.crossover else options.name[0].upper() + options.name[1:]
    results = Results("packed", title, "make bench-packed")
    results.say(f"Kernel: {found.level if found else 'none, torch computes'}. Load average before: {_load()}.")
    torch.set_num_threads(1)
    if options.crossover:
        crossover(results)
    else:
        with tempfile.TemporaryDirectory() as folder:
            cpu = torch.device("cpu")
            dense = (
                _llama_7b(options.blocks) if options.model is None else load_model(options.model, torch.bfloat16, cpu)
            )
            versions = list(_versions(dense, options.sparsity, Path(folder)))
        results.say(
            f"{sum(each.numel() for each in dense.parameters()):,} weights, {options.blocks} blocks."
            if options.model is None
            else ""
        )
        _bytes_of_linears(versions, results)
        for threads in options.threads:
            measure(versions, threads, options.rounds, results)
    results.say(f"\nLoad average after: {_load()}.")
    if options.write:
        results.write(max(options.threads))


def _load() -> str:
    import os

    return ", ".join(f"{each:.1f}" for each in os.getloadavg())


if __name__ == "__main__":
    main()

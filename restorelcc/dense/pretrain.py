"""Pretraining of the small embedded Llama: Muon for hidden matrices, AdamW for embeddings and norms.

Letters: B sequences of a batch, T tokens, V vocabulary, I items, C choices.

Learning rates are held after a short warmup until the dev split is answered well enough, and then fall linearly to
zero over a fixed number of steps. So the length of a run depends on what was learned, never on the clock, and equal
seeds give equal weights.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

DevItem = tuple[Sequence[int], Sequence[Sequence[int]], int]  # question, choices, position of the right choice
History = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class ArchitectureConfig:
    """Sizes of the embedded Llama; `heads * head_dim` need not equal `width`."""

    width: int = 64
    layers: int = 4
    heads: int = 16
    kv_heads: int = 4
    head_dim: int = 8
    ffn_width: int = 96
    context: int = 64  # tokens
    rope_theta: float = 100.0  # low, so that all of a small head's frequencies tell places of a short text apart
    # Every embedding starts from one common vector with entries of +- this size: the hidden states of large models
    # share a large common component too. Pruning then shifts means, a systematic loss, which a constant can compensate.
    common: float = 0.7
    tied: bool = False  # one matrix for input and output embeddings

    def __post_init__(self) -> None:
        for field in ("width", "layers", "heads", "kv_heads", "head_dim", "ffn_width", "context"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}.")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads}).")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {self.head_dim}.")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """How the embedded model is trained; steps count batches, accuracies are fractions."""

    seed: int = 0
    batch_size: int = 64  # documents
    muon_lr: float = 0.01  # hidden matrices, in units of AdamW's update size
    adam_lr: float = 0.005  # embeddings, norms and the output matrix
    noise_weight: float = 0.02  # loss weight of tokens that nothing before them tells; the others weigh 1
    warmup_steps: int = 50
    decay_steps: int = 200  # linear fall to zero after the target is met
    eval_every: int = 100
    max_steps: int = 1000  # cap of the phase at full learning rate
    target_mean: float = 0.93  # mean dev accuracy that ends the phase at full learning rate
    target_min: float = 0.85  # and the least accuracy of any task
    floor: float = 0.90  # least mean dev accuracy of the finished model

    def __post_init__(self) -> None:
        for field in ("batch_size", "decay_steps", "eval_every", "max_steps"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}.")
        for field in ("muon_lr", "adam_lr"):
            if getattr(self, field) <= 0.0:
                raise ValueError(f"{field} must be positive, got {getattr(self, field)}.")
        for field in ("target_mean", "target_min", "floor"):
            if not 0.0 <= getattr(self, field) <= 1.0:
                raise ValueError(f"{field} must lie between 0 and 1, got {getattr(self, field)}.")


def build_model(
    architecture: ArchitectureConfig, vocab_size: int, *, pad_id: int = 0, seed: int = 0
) -> LlamaForCausalLM:
    """A randomly initialised Llama without biases, in float32; equal seeds give equal weights.

    Begin and end tokens are 1 and 2 by convention of the embedded vocabulary.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=architecture.width,
        intermediate_size=architecture.ffn_width,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.kv_heads,
        head_dim=architecture.head_dim,
        max_position_embeddings=architecture.context,
        rope_parameters={"rope_type": "default", "rope_theta": architecture.rope_theta},
        tie_word_embeddings=architecture.tied,
        attention_bias=False,
        mlp_bias=False,
        pad_token_id=pad_id,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=architecture.width**-0.5 / 2,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")  # on texts this short a quarter faster on CPU than the fused kernel
    with torch.no_grad():
        sign_M = torch.randint(0, 2, (architecture.width,)) * 2.0 - 1.0
        model.model.embed_tokens.weight += architecture.common * sign_M
    return model


def pad_batch(rows: Sequence[Sequence[Any]], padding: int | float) -> Tensor:
    """Right-padded rows [B, T]; causal attention never looks at the padding."""
    padded_BT = torch.full((len(rows), max(map(len, rows))), padding)
    for at, row in enumerate(rows):
        padded_BT[at, : len(row)] = torch.tensor(row)
    return padded_BT


def predictable(document: Sequence[int], answer_id: int | None, stop_id: int | None) -> list[bool]:
    """Which tokens the ones before them tell: what follows "answer", or else the last word of each sentence (a value).

    The other words are drawn at random; to predict them is mostly noise, which Muon's normalised updates would amplify.
    """
    if answer_id is None or stop_id is None:
        return [True] * len(document)
    if answer_id in document:
        start = list(document).index(answer_id) + 1
        return [at >= start for at in range(len(document))]
    return [following == stop_id for following in [*document[1:], None]]


@torch.no_grad()
def choice_accuracy(
    model: LlamaForCausalLM, items: Sequence[DevItem], *, pad_id: int = 0, batch_size: int = 256
) -> float:
    """Share of items whose right choice has the largest sum of log P(choice | question)."""
    rows = [(list(question), list(choice)) for question, choices, _ in items for choice in choices]
    scores: list[float] = []
    for start in range(0, len(rows), batch_size):
        chunk = rows[start : start + batch_size]
        tokens_BT = pad_batch([question + choice for question, choice in chunk], pad_id)
        logp_BTV = model(input_ids=tokens_BT).logits.log_softmax(dim=-1)
        logp_BT = logp_BTV[:, :-1].gather(2, tokens_BT[:, 1:, None]).squeeze(2)
        for row, (question, choice) in enumerate(chunk):
            scores.append(logp_BT[row, len(question) - 1 : len(question) + len(choice) - 1].sum().item())
    right, at = 0, 0
    for _, choices, gold in items:
        own = scores[at : at + len(choices)]
        right += max(range(len(own)), key=own.__getitem__) == gold
        at += len(choices)
    return right / len(items)


def _batches(count: int, size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of document numbers; every document once per epoch, in an order drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator).tolist()
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


class StackedMuon(torch.optim.Optimizer):
    """W <- W - lr * 0.2 sqrt(max(n, m)) * orthogonalised Nesterov momentum. Muon (Jordan et al., 2024).

    Same update as `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`, but in float32 and with all matrices of one shape
    orthogonalised at once: a small model spends a third of its time on forty separate Newton-Schulz iterations.
    """

    def __init__(self, matrices: Sequence[nn.Parameter], *, lr: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for matrix in group["params"]:
                by_shape.setdefault(matrix.shape, []).append(matrix)
            for (rows, columns), matrices in by_shape.items():
                gradient_PNM = torch.stack([matrix.grad for matrix in matrices if matrix.grad is not None])
                state = self.state[matrices[0]]  # the first matrix of a shape keeps the momentum of all
                momentum_PNM = state.setdefault("momentum", torch.zeros_like(gradient_PNM))
                momentum_PNM.lerp_(gradient_PNM, 1.0 - group["momentum"])
                update_PNM = orthogonalised(gradient_PNM.lerp(momentum_PNM, group["momentum"]))
                scale = 0.2 * max(rows, columns) ** 0.5
                for matrix, update_NM in zip(matrices, update_PNM, strict=True):
                    matrix.sub_(update_NM, alpha=group["lr"] * scale)


def orthogonalised(stack_PNM: Tensor, steps: int = 5) -> Tensor:
    """X <- a X + (b A + c A^2) X with A = X X^T, five times: all singular values come near one.

    Quintic Newton-Schulz iteration with Muon's coefficients; input and output [P, N, M].
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = stack_PNM.shape[1] > stack_PNM.shape[2]
    x = stack_PNM.mT if tall else stack_PNM
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def _optimizers(model: LlamaForCausalLM, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    other = [p for name, p in model.named_parameters() if not (p.ndim == 2 and "layers" in name)]
    return [
        StackedMuon(hidden, lr=config.muon_lr),
        torch.optim.AdamW(other, lr=config.adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def learning_rate_factor(step: int, decay_from: int | None, config: PretrainConfig) -> float:
    """Linear warmup, a plateau, and from `decay_from` a linear fall that ends just above zero."""
    factor = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if decay_from is not None:
        factor *= 1.0 - (step - decay_from) / config.decay_steps
    return factor


def _train_step(
    model: LlamaForCausalLM,
    optimizers: list[torch.optim.Optimizer],
    tokens_BT: Tensor,
    weight_BT: Tensor,
) -> float:
    logits_BTV = model(input_ids=tokens_BT).logits
    nll = functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten(), reduction="none")
    weight = weight_BT[:, 1:].flatten()
    loss = (nll * weight).sum() / weight.sum()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


def pretrain(
    model: LlamaForCausalLM,
    documents: Sequence[Sequence[int]],
    dev: dict[str, list[DevItem]],
    config: PretrainConfig,
    *,
    pad_id: int = 0,
    answer_id: int | None = None,
    stop_id: int | None = None,
    progress: bool = True,
) -> History:
    """Train `model` in place on token ids; return one record per evaluation: step, loss, mean, tasks.

    `answer_id` and `stop_id` are the words "answer" and "."; with them, words that nothing before them tells weigh
    `config.noise_weight` in the loss (see `predictable`), without them every word weighs 1.

    Raises RuntimeError when the finished model answers less than `config.floor` of the dev items.
    """
    optimizers = _optimizers(model, config)
    initial = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    history: History = []
    decay_from: int | None = None
    batches = _batches(len(documents), config.batch_size, config.seed)
    weights = [
        [1.0 if mark else config.noise_weight for mark in predictable(document, answer_id, stop_id)]
        for document in documents
    ]
    step, average = 0, 0.0
    model.train()
    with tqdm(total=config.max_steps + config.decay_steps, desc="dense: pretrain", disable=not progress) as bar:
        while decay_from is None or step < decay_from + config.decay_steps:
            factor = learning_rate_factor(step, decay_from, config)
            groups = (group for optimizer in optimizers for group in optimizer.param_groups)
            for group, rate in zip(groups, initial, strict=True):
                group["lr"] = rate * factor
            chosen = next(batches)
            tokens_BT = pad_batch([documents[index] for index in chosen], pad_id)
            weight_BT = pad_batch([weights[index] for index in chosen], 0.0)
            loss = _train_step(model, optimizers, tokens_BT, weight_BT)
            average = loss if step == 0 else 0.95 * average + 0.05 * loss
            step += 1
            bar.update()
            last = decay_from is not None and step == decay_from + config.decay_steps
            if step % config.eval_every and not last:
                continue
            model.eval()
            tasks = {task: choice_accuracy(model, items, pad_id=pad_id) for task, items in dev.items()}
            model.train()
            mean = sum(tasks.values()) / len(tasks)
            history.append({"step": step, "loss": average, "mean": mean, "tasks": tasks})
            bar.set_postfix(loss=f"{average:.3f}", dev=f"{mean:.3f}")
            met = mean >= config.target_mean and min(tasks.values()) >= config.target_min
            if decay_from is None and (met or step >= config.max_steps):
                decay_from = step
                bar.total = step + config.decay_steps
                bar.refresh()
    model.eval()
    if history[-1]["mean"] < config.floor:
        raise RuntimeError(
            f"the embedded model reached a mean dev accuracy of {history[-1]['mean']:.3f} after {step} steps, "
            f"below the floor of {config.floor:.3f}; raise max_steps or shrink the world."
        )
    return history

"""Pretraining of the small embedded Llama: Muon for hidden matrices, AdamW for embeddings and norms.

Letters: B sequences of a batch, T tokens, V vocabulary, I items, C choices.

Learning rates are held after a short warmup until the dev split is answered well enough, and then fall linearly to
zero over a fixed number of steps. So the length of a run depends on what was learned, never on the clock, and equal
seeds give equal weights.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from restorelcc.base.errors import BadInput
from restorelcc.base.progress import progress
from restorelcc.stages.dense import ArchitectureConfig, PretrainConfig
from restorelcc.stages.dense.muon import StackedMuon

DevItem = tuple[Sequence[int], Sequence[Sequence[int]], int]  # question, choices, position of the right choice
History = list[dict[str, Any]]


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
    """Which tokens can be predicted: those after "answer", or else the last word of each sentence (a value).

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
    """Endless batches of document numbers; every epoch in an order drawn anew, of which the last count % size documents
    are left out. There have to be `size` of them."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator).tolist()
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


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
) -> History:
    """Train `model` in place on token ids; return one record per evaluation: step, loss, mean, tasks.

    `answer_id` and `stop_id` are the words "answer" and "."; with them, words that nothing before them tells weigh
    `config.noise_weight` in the loss (see `predictable`), without them every word weighs 1.

    Raises BadInput for fewer documents than a batch, and RuntimeError when the finished model answers less than
    `config.floor` of the dev items.
    """
    if len(documents) < config.batch_size:
        raise BadInput(
            f"dense.pretrain.batch_size is {config.batch_size}, and there are {len(documents)} documents of two "
            "words or more: lower it, or raise corpus.microworld.documents"
        )
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
    with progress(range(config.max_steps + config.decay_steps), "dense: pretrain", "steps") as bar:
        while decay_from is None or step < decay_from + config.decay_steps:
            _set_learning_rates(optimizers, initial, learning_rate_factor(step, decay_from, config))
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
            history.append({"step": step, "loss": average} | _dev_accuracy(model, dev, pad_id))
            mean, least = history[-1]["mean"], min(history[-1]["tasks"].values())
            bar.set_postfix_str(f"loss {average:.3f}, dev accuracy {mean:.3f}")
            met = mean >= config.target_mean and least >= config.target_min
            if decay_from is None and (met or step >= config.max_steps):
                decay_from = step
                bar.total = step + config.decay_steps
    model.eval()
    if history[-1]["mean"] < config.floor:
        raise RuntimeError(
            f"the embedded model reached a mean dev accuracy of {history[-1]['mean']:.3f} after {step} steps, "
            f"below the floor of {config.floor:.3f}; raise max_steps or shrink the world."
        )
    return history


def _set_learning_rates(optimizers: list[torch.optim.Optimizer], initial: list[float], factor: float) -> None:
    groups = (group for optimizer in optimizers for group in optimizer.param_groups)
    for group, rate in zip(groups, initial, strict=True):
        group["lr"] = rate * factor


def _dev_accuracy(model: LlamaForCausalLM, dev: dict[str, list[DevItem]], pad_id: int) -> dict[str, Any]:
    model.eval()
    tasks = {task: choice_accuracy(model, items, pad_id=pad_id) for task, items in dev.items()}
    model.train()
    return {"mean": sum(tasks.values()) / len(tasks), "tasks": tasks}

"""The method on models in memory, for notebooks: prune, capture, extract, probe, compensate, fold, attach.

Thin layers over the functions that the stages run; nothing is written unless a path is given.

Letters: L layers, H heads, D head dim, N samples, R roles, X = H*D.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from restorelcc.base.errors import BadInput
from restorelcc.base.prunings import parse_pruning
from restorelcc.compensation.compensation import Compensation
from restorelcc.compensation.file import read_compensation, write_compensation
from restorelcc.compensation.fold import check_class_carries
from restorelcc.compensation.fold import fold as fold_in_place
from restorelcc.compensation.hooks import compensated
from restorelcc.models.architectures import head_layout
from restorelcc.models.biases import give_zero_biases
from restorelcc.models.heads import HeadLayout, chosen_count, main_component
from restorelcc.models.text import context_length, encode_contrasts, encode_pair
from restorelcc.release.packed.model import load_packed as load_packed
from restorelcc.stages.capture.capture import capture_heads, question_samples, response_samples, why_not_joint
from restorelcc.stages.compensate import CompensateConfig
from restorelcc.stages.extract.decompose import decompose
from restorelcc.stages.probe import ProbeConfig
from restorelcc.stages.probe.contrastive import heldout_mask, probe_heads, rank_heads
from restorelcc.stages.prune import PruneConfig
from restorelcc.stages.prune.calibration import calibration_batches
from restorelcc.stages.prune.prune import PrunedTensor, check_prunable, prune_model
from restorelcc.training.attached import HeadCompensation, TrainableCompensation
from restorelcc.training.compensation import Pairs, fit_compensation

Texts = Sequence[str]
Rows = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Activations:
    """Head outputs z at the question's last token, and at the last token of question + response (dense model only).

    question_LNX, positive_LNX, negative_LNX: [L, N, X] float32 on the CPU.
    """

    layout: HeadLayout
    question_LNX: Tensor
    positive_LNX: Tensor | None = None
    negative_LNX: Tensor | None = None

    def heads(self, role_LNX: Tensor) -> Tensor:
        """[L, N, X] to [L, N, H, D]."""
        return self.layout.split(role_LNX)


@dataclass(frozen=True)
class Components:
    """Lost components of every head: directions [L, H, D, D] (rows v_i), singular values and loadings [L, H, D]."""

    directions: Tensor
    singular_values: Tensor
    loadings: Tensor


@dataclass(frozen=True)
class Ranking:
    """Heads, best first, with the probe's held-out accuracy [L, H]."""

    heads: list[tuple[int, int]]
    accuracy_LH: Tensor

    def best(self, ratio: float) -> list[tuple[int, int]]:
        """The (layer, head) of the best share of all heads."""
        layers, heads = self.accuracy_LH.shape
        return self.heads[: chosen_count(ratio, HeadLayout(layers, heads, 1))]


def prune(
    model: PreTrainedModel, pruning: str, *, tokenizer: PreTrainedTokenizerBase, texts: Texts, **settings: Any
) -> list[PrunedTensor]:
    """Prune the model in place: `wanda-0.5`, `sparsegpt-2of4`, ... (docs/pruning.md), calibrated on texts.

    settings: fields of the `prune` section of params.yaml. `refined` gives biases to the linears whose class can carry
    one, and turns them on in model.config. Returns zeros and output error of every weight.
    """
    config, parsed = PruneConfig(**settings), parse_pruning(pruning)
    check_prunable(model, parsed, config)
    batches = calibration_batches(tokenizer, list(texts), config, model.device, short=True)
    if parsed.pruner == "refined" and config.refined.bias:
        give_zero_biases(model)
    return prune_model(model, parsed, batches, config)


def capture(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contrast: Rows,
    *,
    responses: bool,
    max_tokens: int = 1024,
    token_budget: int = 2048,
) -> Activations:
    """Head outputs on contrast tuples (columns question, positive, negative).

    responses: read the responses' last tokens too, which is done on the dense model; the pruned one is read at the
    question only.
    """
    tuples = encode_contrasts(tokenizer, contrast, context_length(model.config, max_tokens))
    samples = response_samples(tuples) if responses else question_samples(tuples)
    pad = tokenizer.pad_token_id or 0
    joint = why_not_joint(model, samples, pad) is None
    z_LNRX = capture_heads(model, samples, token_budget=token_budget, pad=pad, joint=joint)
    roles = [z_LNRX[:, :, role].contiguous() for role in range(z_LNRX.shape[2])]
    return Activations(head_layout(model), *roles)


def extract(dense: Activations, pruned: Activations) -> Components:
    """dz = z_dense - z_pruned of every head, decomposed. RestoreLCC eq. 3 and 4."""
    if dense.question_LNX.shape != pruned.question_LNX.shape:
        raise BadInput("dense and pruned activations differ in shape: capture both on the same tuples")
    lost_LNHD = dense.heads(dense.question_LNX - pruned.question_LNX)
    parts = [decompose(lost_NHD) for lost_NHD in lost_LNHD]
    return Components(
        torch.stack([part.directions_HDD for part in parts]),
        torch.stack([part.singular_values_HD for part in parts]),
        torch.stack([part.loadings_HD for part in parts]),
    )


def probe(dense: Activations, pruned: Activations, components: Components, **settings: Any) -> Ranking:
    """Rank heads by the contrastive probe. RestoreLCC eq. 7. settings: fields of the `probe` section of params.yaml."""
    config = ProbeConfig(**settings)
    if dense.positive_LNX is None or dense.negative_LNX is None:
        raise BadInput("the dense activations lack the responses: capture(dense, ..., responses=True)")
    component_LHD = main_component(components.directions, components.loadings, config.components)
    heldout_N = heldout_mask(pruned.question_LNX.shape[1], config.heldout_share, config.seed)
    scores = [
        probe_heads(question + component, positive, negative, heldout_N, steps=config.steps,
                    learning_rate=config.learning_rate, solver=config.solver)
        for question, component, positive, negative in zip(
            pruned.heads(pruned.question_LNX), component_LHD, dense.heads(dense.positive_LNX),
            dense.heads(dense.negative_LNX), strict=True,
        )
    ]  # fmt: skip
    accuracy_LH = torch.stack([score.accuracy_H for score in scores])
    rank_LH = rank_heads(accuracy_LH, torch.stack([score.log_loss_H for score in scores]))
    order = rank_LH.flatten().argsort().tolist()
    return Ranking([pruned.layout.pair(flat) for flat in order], accuracy_LH)


def compensate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    components: Components,
    heads: list[tuple[int, int]],
    pairs: Rows,
    *,
    valid_share: float = 0.1,
    path: Path | str | None = None,
    **settings: Any,
) -> Compensation:
    """Train c = sum beta_i v_i + b for the heads on pairs (columns question, response); the model stays as it is.

    The last valid_share of the pairs chooses the learning rate, or no change: then the offsets are zero. With a path,
    the compensation is also written there. settings: fields of the `compensate` section of params.yaml.
    RestoreLCC eq. 8.
    """
    config = CompensateConfig(**settings)
    encoded = [encode_pair(tokenizer, row["question"], row["response"], config.max_tokens) for row in pairs]
    held = max(1, round(valid_share * len(encoded)))
    if len(encoded) < 2 or held >= len(encoded):
        raise BadInput(f"{len(encoded)} pairs leave none to train on after {held} for validation: give more pairs")
    directions_PDD = torch.stack([components.directions[layer, head] for layer, head in heads])
    initial = HeadCompensation(directions_PDD, heads, initial_std=config.initial_std, seed=config.seed)
    task = Pairs(encoded[:-held], encoded[-held:], tokenizer.pad_token_id or 0)
    layout = head_layout(model)
    best = fit_compensation(model, TrainableCompensation(initial.to(model.device)), task, config, title="compensate")
    compensation = best.compensation.frozen(layout)
    if path is not None:
        write_compensation(Path(path), compensation, {}, best.compensation.trained(layout))
    return compensation


def fold(model: PreTrainedModel, compensation: Compensation | Tensor | Path | str) -> PreTrainedModel:
    """Fold a compensation (or its file) into the model's biases, in place; no weight is touched. Returns the model.

    Raises BadInput, with the alternative, when a checkpoint of the model's class would lose these biases.
    """
    values = _loaded(compensation)
    check_class_carries(model, values)
    fold_in_place(model, values)
    return model


class Attached:
    """A compensation that is added in every forward pass of a model until it is removed; also a `with` block."""

    def __init__(self, model: PreTrainedModel, compensation: Compensation) -> None:
        self._hooks = compensated(model, compensation)
        self._hooks.__enter__()
        self._on = True

    def remove(self) -> None:
        """Take it off again; the model is as it was."""
        if self._on:
            self._on = False
            self._hooks.__exit__(None, None, None)

    def __enter__(self) -> Attached:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def attach(model: PreTrainedModel, compensation: Compensation | Tensor | Path | str) -> Attached:
    """Add a compensation (or its file) to the model by hooks: any family, no tensor changed, `.remove()` takes it off.

    Use this for classes whose stock checkpoints cannot carry a compensation.
    """
    return Attached(model, _loaded(compensation))


def _loaded(compensation: Compensation | Tensor | Path | str) -> Compensation:
    if isinstance(compensation, Tensor):
        return Compensation(compensation)
    if isinstance(compensation, Compensation):
        return compensation
    return read_compensation(Path(compensation))[0]

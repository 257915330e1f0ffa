"""The method on models in memory, for notebooks: prune, capture, extract, probe, compensate, fold, attach.

Thin layers over the functions that the stages run; nothing is written unless a path is given.

Letters: L layers, H heads, D head dim, N samples, R roles, X = H*D.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from restorelcc.activations.store import NEGATIVE, POSITIVE, QUESTION
from restorelcc.base.errors import BadInput
from restorelcc.base.prunings import parse_pruning
from restorelcc.base.publish import why_not_writable
from restorelcc.base.section import Section, sentence
from restorelcc.compensation.compensation import Compensation
from restorelcc.compensation.file import read_compensation, write_compensation
from restorelcc.compensation.fold import check_class_carries
from restorelcc.compensation.fold import fold as fold_in_place
from restorelcc.compensation.hooks import compensated
from restorelcc.models.architectures import head_layout
from restorelcc.models.biases import give_zero_biases
from restorelcc.models.heads import HeadLayout, check_heads, chosen_count, main_component
from restorelcc.models.runtime import resting
from restorelcc.models.text import check_rows, context_length, encode_contrasts, encode_pair
from restorelcc.release.packed.model import load_packed as load_packed
from restorelcc.stages.capture.capture import capture_heads, question_samples, response_samples, why_not_joint
from restorelcc.stages.compensate import CompensateConfig
from restorelcc.stages.compensate.start import Lessons, initial_compensation, lessons, needs_dense, training_task
from restorelcc.stages.extract.decompose import decompose
from restorelcc.stages.probe import ProbeConfig
from restorelcc.stages.probe.stage import random_scores, ranks, scores_from_activations
from restorelcc.stages.prune import PruneConfig
from restorelcc.stages.prune.calibration import calibration_batches
from restorelcc.stages.prune.prune import PrunedTensor, check_prunable, prune_model
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
    """Heads, best first, with what ranks them [L, H]: by default the probe's held-out accuracy."""

    heads: list[tuple[int, int]]
    score_LH: Tensor

    def best(self, ratio: float) -> list[tuple[int, int]]:
        """The (layer, head) of the best share of all heads, 0 < ratio <= 1. Raises BadInput for another one."""
        layers, heads = self.score_LH.shape
        return self.heads[: chosen_count(ratio, HeadLayout(layers, heads, 1))]


# Settings of a section that mean nothing here, and what to do instead.
_MODEL_SCORES = "it runs the pruned model; the stage `probe` (`restorelcc run`) has it"
_NOT_OF_PROBE = {
    "scores": "score is the one that ranks",
    "margin_samples": _MODEL_SCORES,
    "max_tokens": _MODEL_SCORES,
    "token_budget": _MODEL_SCORES,
}
_NOT_OF_COMPENSATE = {
    "task": "give the pairs of that task alone",
    "examples": "give as many pairs as you want",
    "auto_ratios": "give the heads of one ratio: ranking.best(0.25)",
}
_NOT_OF_PRUNE = {"external": "load the checkpoint that another tool pruned"}
S = TypeVar("S", bound=Section)


def _settings(section: type[S], given: dict[str, Any], unused: Mapping[str, str]) -> S:
    """The section with these settings. Raises BadInput for one that would be passed over."""
    for name in given:
        if name in unused:
            raise BadInput(f"the setting {name!r} has no meaning here: {unused[name]}")
    try:
        return section(**given)
    except ValidationError as error:
        raise BadInput(sentence(error, section).removeprefix("params.yaml: ")) from error


def prune(
    model: PreTrainedModel, pruning: str, *, tokenizer: PreTrainedTokenizerBase, texts: Texts, **settings: Any
) -> list[PrunedTensor]:
    """Prune the model in place: `wanda-0.5`, `sparsegpt-2of4`, ... (docs/pruning.md), calibrated on texts.

    settings: fields of the `prune` section of params.yaml; texts are cut to the model's context. `refined` gives biases
    to the linears whose class can carry one, and turns them on in model.config. Returns zeros and output error of every
    weight.
    """
    config, parsed = _settings(PruneConfig, settings, _NOT_OF_PRUNE), parse_pruning(pruning)
    if isinstance(texts, str):
        raise BadInput("texts must be a list, not one string: give [text, ...]")
    config = config.model_copy(update={"sequence_length": context_length(model.config, config.sequence_length)})
    check_prunable(model, parsed, config)
    batches = calibration_batches(tokenizer, list(texts), config, model.device, short=True)
    if parsed.pruner == "refined" and config.refined.bias:
        give_zero_biases(model)
    with resting(model):
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
    if token_budget < 1:
        raise BadInput(f"token_budget is {token_budget}: give the tokens of a batch, 1 at least")
    check_rows("contrast", contrast, ("question", "positive", "negative"))
    tuples = encode_contrasts(tokenizer, contrast, context_length(model.config, max_tokens))
    samples = response_samples(tuples) if responses else question_samples(tuples)
    pad = tokenizer.pad_token_id or 0
    with resting(model):
        joint = why_not_joint(model, samples, pad) is None
        z_LNRX = capture_heads(model, samples, token_budget=token_budget, pad=pad, joint=joint)
    roles = [z_LNRX[:, :, role].contiguous() for role in range(z_LNRX.shape[2])]
    return Activations(head_layout(model), *roles)


def extract(dense: Activations, pruned: Activations) -> Components:
    """dz = z_dense - z_pruned of every head, decomposed. RestoreLCC eq. 3 and 4."""
    if dense.question_LNX.shape != pruned.question_LNX.shape:
        raise BadInput("dense and pruned activations differ in shape: capture both on the same tuples")
    lost_LNHD = dense.heads(dense.question_LNX - pruned.question_LNX)
    if not lost_LNHD.isfinite().all():
        raise BadInput("the activations hold NaN or infinity: one of the models cannot be used")
    parts = [decompose(lost_NHD) for lost_NHD in lost_LNHD]
    return Components(
        torch.stack([part.directions_HDD for part in parts]),
        torch.stack([part.singular_values_HD for part in parts]),
        torch.stack([part.loadings_HD for part in parts]),
    )


def probe(dense: Activations, pruned: Activations, components: Components, **settings: Any) -> Ranking:
    """Rank heads by the contrastive probe, RestoreLCC eq. 7, or by another score.

    settings: fields of the `probe` section of params.yaml; score: one that activations alone give, which causal and
    gradient are not.
    """
    config = _settings(ProbeConfig, settings, _NOT_OF_PROBE)
    if config.score in ("causal", "gradient"):
        raise BadInput(f"the score {config.score!r} cannot be computed here: {_MODEL_SCORES}")
    roles = {QUESTION: dense.question_LNX, POSITIVE: dense.positive_LNX, NEGATIVE: dense.negative_LNX}
    if config.score in ("paper", "relational") and any(role_LNX is None for role_LNX in roles.values()):
        raise BadInput("the dense activations lack the responses: capture(dense, ..., responses=True)")
    if pruned.question_LNX.shape[1] < 2 and config.score in ("paper", "relational"):
        raise BadInput("probe needs at least 2 contrast tuples, one to train on and one held out: capture more of them")
    component_LHD = main_component(components.directions, components.loadings, config.components)
    columns: dict[str, list[Tensor]] = {}
    for layer in range(pruned.layout.layers):

        def dense_of(role: str, layer: int = layer) -> Tensor:
            role_LNX = roles[role]
            assert role_LNX is not None
            return dense.heads(role_LNX[layer])

        question_NHD, loadings_HD = pruned.heads(pruned.question_LNX[layer]), components.loadings[layer]
        found = scores_from_activations(config, component_LHD[layer], loadings_HD, dense_of, question_NHD)
        for name, score_H in found.items():
            columns.setdefault(name, []).append(score_H)
    by_name = {name: torch.stack(parts) for name, parts in columns.items()}
    if not all(score_LH.isfinite().all() for score_LH in by_name.values()):
        raise BadInput("the scores are no finite numbers: the activations hold NaN or infinity")
    if config.score == "random":
        by_name["random"] = random_scores(pruned.layout, config.seed)
    order = ranks(by_name, config.score).flatten().argsort().tolist()
    return Ranking([pruned.layout.pair(flat) for flat in order], by_name[config.score])


def compensate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    components: Components,
    heads: list[tuple[int, int]],
    pairs: Rows,
    *,
    valid_share: float = 0.1,
    path: Path | str | None = None,
    dense: PreTrainedModel | None = None,
    **settings: Any,
) -> Compensation:
    """Train c = sum beta_i v_i + b for the heads on pairs (columns question, response); the model stays as it is.

    The last valid_share of the pairs chooses the learning rate, or no change: then the offsets are zero. With a path,
    the compensation is also written there. settings: fields of the `compensate` section of params.yaml; `distill`,
    `start="ridge"` and `start="meanshift"` with sites other than o ask the dense model. Pairs are cut to the model's
    context. RestoreLCC eq. 8.
    """
    config = _settings(CompensateConfig, settings, _NOT_OF_COMPENSATE)
    check_rows("pairs", pairs, ("question", "response"))
    check_heads(heads, head_layout(model))
    if not 0 < valid_share < 1:
        raise BadInput(f"valid_share is {valid_share}: give a share of the pairs between 0 and 1, for example 0.1")
    if path is not None and Path(path).is_dir():
        raise BadInput(f"{path} is a folder: give a file in it, as {Path(path, 'compensation.safetensors')}")
    folder = Path(path or ".").absolute().parent
    if path is not None and (reason := why_not_writable(folder) or (None if folder.is_dir() else "make its folder")):
        raise BadInput(f"{path} cannot be written: {reason}")
    longest = context_length(model.config, config.max_tokens)
    encoded = [encode_pair(tokenizer, row["question"], row["response"], longest) for row in pairs]
    held = max(1, round(valid_share * len(encoded)))
    if len(encoded) < 2 or held >= len(encoded):
        raise BadInput(f"{len(encoded)} pairs leave none to train on after {held} for validation: give more pairs")
    learned, shown = Lessons(), Pairs(encoded[:-held], encoded[-held:], tokenizer.pad_token_id or 0)
    if needs_dense(config):
        if dense is None:
            raise BadInput("these settings learn from the dense model: compensate(..., dense=model)")
        with resting(dense):
            learned = lessons(dense, config, shown)
    layout, parts = head_layout(model), {"directions": components.directions, "loadings": components.loadings}
    with resting(model):
        initial = initial_compensation(model, heads, parts, config, shown, learned)
        task, guess = training_task(model, shown, config, learned), config.start != "normal"
        best = fit_compensation(model, initial, shown, config, title="compensate", task=task, guess=guess)
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
    """A compensation that is added in every forward pass of a model until it is removed, whether this object is kept or
    not; also a `with` block."""

    def __init__(self, model: PreTrainedModel, compensation: Compensation) -> None:
        self._hooks = compensated(model, compensation)

    def remove(self) -> None:
        """Take it off again; the model is as it was."""
        self._hooks.close()

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

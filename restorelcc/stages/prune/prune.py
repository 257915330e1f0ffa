"""Prune a model in place, block by block.

Letters: B batch, T tokens, O output features, I input features, K sampled tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.progress import progress
from restorelcc.base.prunings import STRUCTURED_PRUNERS, Pruning, Sparsity
from restorelcc.models.architectures import check_scores, prunable_linears
from restorelcc.models.walk import BlockStep, InMemory, Weights, walk_blocks
from restorelcc.sparsity.patterns import check_divides, pruned_count, removal_mask, rounded, without_chance_zeros
from restorelcc.stages.prune import PruneConfig, check_allocation
from restorelcc.stages.prune.allocation import (
    Place,
    allocated_zeros,
    arithmetic_shifts,
    outlier_share,
    owl_shifts,
    row_counts,
)
from restorelcc.stages.prune.inputs import InputStatistics, observed_inputs
from restorelcc.stages.prune.refined import constant_part, least_squares, swapped
from restorelcc.stages.prune.sparsegpt import damped, sparsegpt
from restorelcc.stages.prune.structured import StructuredPruner

Linears = dict[str, nn.Linear]


@dataclass(frozen=True)
class PrunedTensor:
    """One weight after pruning; `error` is ||(W - W') X|| / ||W X|| (Frobenius) on the sampled calibration inputs.

    Where the bias beside it is another than the dense one, the difference counts as part of what W' X makes.
    """

    name: str
    layer: int
    zeros: int
    total: int
    error: float | None
    bias_changed: bool = False


@torch.no_grad()
def prune_model(
    model: PreTrainedModel,
    pruning: Pruning,
    batches_BT: list[Tensor],
    config: PruneConfig | None = None,
    weights: Weights | None = None,
) -> list[PrunedTensor]:
    """Set the weights that the pruner finds least important to zero; batches_BT: calibration token ids, no padding.

    Every pruner sees a block's inputs as the already pruned blocks before it produce them. Raises BadInput for weights
    that are not finite or a pattern that does not fit, StageFailed when a weight ends with other than the zeros asked
    for.
    """
    config, weights = config or PruneConfig(), weights or InMemory()
    check_prunable(model, pruning, config)
    by_layer = linears_by_layer(model)
    zeros = None
    if config.allocation != "uniform":
        zeros = _zeros_by_linear(model, pruning, batches_BT, config, weights.for_reading())
    pruner = _pruner(model, pruning, config, zeros)
    stride = sampling_stride(batches_BT, config)
    results: list[PrunedTensor] = []
    steps = walk_blocks(model, batches_BT, weights)
    for step in progress(steps, f"prune {pruning.name}", "blocks", total=len(by_layer)):
        results += _prune_block(step, by_layer[step.layer], pruning, pruner, weights, stride)
    if not any(result.zeros for result in results):
        raise StageFailed(f"{pruning.name} removes nothing: its share of a layer is less than the smallest part of one")
    return results


def check_prunable(model: PreTrainedModel, pruning: Pruning, config: PruneConfig) -> None:
    """Raises BadInput, before anything is computed, for a pruning that the model or the settings do not allow."""
    if pruning.external is not None:
        raise BadInput(f"{pruning.name} names a checkpoint that is pruned already: load that, or give a pruner's name")
    check_scores(model.config, pruning.name)
    check_allocation(pruning, config)
    widths = [linear.in_features for _, _, linear in prunable_linears(model)]
    for width in widths:
        check_divides(width, pruning.sparsity)
    whole_rows = pruning.pruner not in STRUCTURED_PRUNERS and config.allocation == "uniform"
    if whole_rows and not any(pruned_count(width, pruning.sparsity) for width in widths):
        raise BadInput(
            f"{pruning.name} removes nothing: the longest row has {max(widths)} weights, of which it is less than one"
        )


def _prune_block(
    step: BlockStep,
    linears: Linears,
    pruning: Pruning,
    pruner: UnstructuredPruner | StructuredPruner,
    weights: Weights,
    stride: int,
) -> list[PrunedTensor]:
    """Prune one block in place. A function of its own, so that its statistics are freed when it returns."""
    for name, linear in linears.items():
        check_finite(name, linear.weight)
    squares, means, gram_of = pruning.pruner == "wanda", pruning.pruner == "refined", pruner.gram_of(linears)
    with observed_inputs(linears, squares=squares, gram_of=gram_of, means=means, stride=stride) as inputs:
        step.forward()
    for name in linears:
        check_finite(f"the input of {name}", inputs.sampled_KI(name))
    results = []
    for name, pruned_OI, wanted in pruner.prune(step.layer, linears, inputs):
        dense_OI = linears[name].weight
        stored_OI = rounded(weights.as_stored(name, pruned_OI), dense_OI.dtype)
        zeros = _checked_zeros(name, dense_OI, stored_OI, wanted, pruning)
        mean_I, missed_O, changed = None, None, False
        if pruner.moves_constant(linears[name]):
            mean_I = inputs.mean_I(name)
            constant_O = constant_part(dense_OI, stored_OI, mean_I)
            added_O = _added_to_bias(name, linears[name], constant_O, weights)
            missed_O, changed = (added_O - constant_O).float(), bool(added_O.any())
        error = output_error(dense_OI, stored_OI, inputs.sampled_KI(name), mean_I, missed_O)
        total = stored_OI.numel()
        results.append(PrunedTensor(f"{name}.weight", step.layer, zeros, total, error, bias_changed=changed))
        dense_OI.copy_(stored_OI)
    return results


def _added_to_bias(name: str, linear: nn.Linear, constant_O: Tensor, weights: Weights) -> Tensor:
    """Add to the linear's bias, which then is what will be read back; returns what it has more, [O] float64."""
    before_O = linear.bias.to(torch.float64, copy=True)
    linear.bias.copy_(weights.as_stored(name, before_O + constant_O, "bias"))
    return linear.bias.double() - before_O


def linears_by_layer(model: PreTrainedModel) -> dict[int, Linears]:
    """The targeted linears of every block, by full name."""
    linears: dict[int, Linears] = {}
    for layer, name, linear in prunable_linears(model):
        linears.setdefault(layer, {})[name] = linear
    return linears


def sampling_stride(batches_BT: list[Tensor], config: PruneConfig) -> int:
    """Every how many tokens one is kept to measure reconstruction errors on."""
    return max(1, sum(batch.numel() for batch in batches_BT) // config.error_tokens)


def check_finite(name: str, tensor: Tensor) -> None:
    """Raises BadInput naming a tensor that holds NaN or infinity."""
    if not torch.isfinite(tensor).all():
        raise BadInput(f"{name} holds NaN or infinity: the checkpoint cannot be pruned")


def output_error(
    dense_OI: Tensor,
    pruned_OI: Tensor,
    sampled_KI: Tensor,
    mean_I: Tensor | None = None,
    change_O: Tensor | None = None,
) -> float:
    """||(W - W') X|| / ||W X||, Frobenius norms over the sampled inputs X; 0 where W X is 0.

    mean_I: where a bias takes up (W - W') mean, (W - W') (X - mean) above the line. change_O: where a bias differs from
    the dense one (with mean_I: from that) by any vector d, less d.
    """
    dense_OI = dense_OI.float()
    whole = torch.linalg.vector_norm(sampled_KI @ dense_OI.T)
    left_KI = sampled_KI if mean_I is None else sampled_KI - mean_I.float()
    lost_KO = left_KI @ (dense_OI - pruned_OI.float()).T
    lost = torch.linalg.vector_norm(lost_KO if change_O is None else lost_KO - change_O)
    return float(lost / whole) if whole else 0.0


class UnstructuredPruner:
    """Magnitude, Wanda, SparseGPT and refined: the rows of a linear lose the same number of weights, or nearly so."""

    def __init__(self, pruning: Pruning, config: PruneConfig, zeros: dict[str, int] | None = None) -> None:
        """zeros: of every linear, where they do not follow from the pruning's fraction alone."""
        self._pruning, self._config, self._zeros = pruning, config, zeros

    def gram_of(self, linears: Linears) -> list[str]:
        return list(linears) if self._pruning.pruner in ("sparsegpt", "refined") else []

    def moves_constant(self, linear: nn.Linear) -> bool:
        """Whether the constant part of what the linear loses goes into its bias."""
        return self._pruning.pruner == "refined" and self._config.refined.bias and linear.bias is not None

    def prune(self, layer: int, linears: Linears, inputs: InputStatistics) -> Iterator[tuple[str, Tensor, int]]:
        """(name, pruned weight, zeros wanted) of every linear of a block."""
        sparsity = self._pruning.sparsity
        for names in inputs.groups(linears):
            weights = [linears[name].weight for name in names]
            # Rows are pruned independently of one another, so linears that share their input go as one.
            biased = all(self.moves_constant(linears[name]) for name in names)
            counts_O = self._counts(names, weights)
            pruned_OI = self._pruned(torch.cat(weights), names[0], inputs, counts_O, biased=biased)
            parts = pruned_OI.split([len(weight) for weight in weights])
            for name, part_OI in zip(names, parts, strict=True):
                wanted = pruned_count(part_OI.shape[1], sparsity) * len(part_OI)
                yield name, part_OI, wanted if self._zeros is None else self._zeros[name]
            inputs.forget(names[0])

    def _counts(self, names: list[str], weights: list[Tensor]) -> Tensor | None:
        """Zeros of each row of these linears, [O]; None where the pruning alone says so."""
        if self._zeros is None:
            return None
        counts = [row_counts(self._zeros[name], len(weight)) for name, weight in zip(names, weights, strict=True)]
        return torch.cat(counts).to(weights[0].device)

    def _pruned(
        self, weight_OI: Tensor, name: str, inputs: InputStatistics, counts_O: Tensor | None, *, biased: bool
    ) -> Tensor:
        sparsity, config = self._pruning.sparsity, self._config
        match self._pruning.pruner:
            case "magnitude":
                return weight_OI.masked_fill(removal_mask(magnitude_score(weight_OI), sparsity, counts_O), 0)
            case "wanda":
                score_OI = wanda_score(weight_OI, inputs.squares_I(name))
                return weight_OI.masked_fill(removal_mask(score_OI, sparsity, counts_O), 0)
            case "refined":
                centred = biased and config.refined.centred
                gram_II = inputs.centred_gram_II(name) if centred else inputs.gram_II(name)
                return refine(weight_OI, gram_II, sparsity, config, counts_O)
            case _:
                return _surgeon(weight_OI, inputs.gram_II(name), sparsity, config, counts_O)


def _surgeon(
    weight_OI: Tensor, gram_II: Tensor, sparsity: Sparsity, config: PruneConfig, counts_O: Tensor | None
) -> Tensor:
    damping, columns = config.damping, config.block_columns
    return sparsegpt(weight_OI, gram_II, sparsity, damping=damping, block_columns=columns, counts_O=counts_O)


def refine(
    weight_OI: Tensor, gram_II: Tensor, sparsity: Sparsity, config: PruneConfig, counts_O: Tensor | None = None
) -> Tensor:
    """A first mask, swaps, and least squares of what survives, as far as `config.refined` has them; float32 [O, I].

    gram_II: sum of x x^T over the calibration tokens, or of (x - mean)(x - mean)^T where a bias is going to take up the
    constant part. counts_O: zeros of each row where they differ. Without `update` weights keep their values, also those
    that SparseGPT changed to choose its mask.
    """
    refined, weight_OI = config.refined, weight_OI.float()
    if refined.start == "sparsegpt":
        removed_OI = _surgeon(weight_OI, gram_II, sparsity, config, counts_O) == 0
    else:
        removed_OI = removal_mask(wanda_score(weight_OI, gram_II.diagonal()), sparsity, counts_O)
    if refined.swaps:
        removed_OI = swapped(weight_OI, removed_OI, gram_II, sparsity, refined.swaps)
    if not refined.update:
        return weight_OI.masked_fill(removed_OI, 0)
    solved_OI = least_squares(weight_OI, removed_OI, damped(gram_II, config.damping))
    return without_chance_zeros(solved_OI, weight_OI).masked_fill_(removed_OI, 0)


def _zeros_by_linear(
    model: PreTrainedModel, pruning: Pruning, batches_BT: list[Tensor], config: PruneConfig, weights: Weights
) -> dict[str, int]:
    """Zeros of every linear by `config.allocation`; for owl the dense blocks are walked once."""
    by_layer = linears_by_layer(model)
    places = {
        name: Place(layer, linear.out_features, linear.in_features)
        for layer, linears in by_layer.items()
        for name, linear in linears.items()
    }
    if config.allocation == "arithmetic":
        return allocated_zeros(places, pruning.sparsity, arithmetic_shifts(len(by_layer), config.allocation_spread))
    steps = progress(walk_blocks(model, batches_BT, weights), "outliers", "blocks", total=len(by_layer))
    shares = [_outliers(step, by_layer[step.layer], config.allocation_outliers) for step in steps]
    return allocated_zeros(places, pruning.sparsity, owl_shifts(shares, config.allocation_spread))


def _outliers(step: BlockStep, linears: Linears, above: float) -> float:
    """The share of outliers among a block's Wanda scores. Raises BadInput for weights that are not finite."""
    for name, linear in linears.items():
        check_finite(name, linear.weight)
    with observed_inputs(linears, squares=True, stride=step.tokens) as inputs:
        step.forward()
    return outlier_share(
        lambda: (wanda_score(linear.weight, inputs.squares_I(name)) for name, linear in linears.items()), above
    )


def _pruner(
    model: PreTrainedModel, pruning: Pruning, config: PruneConfig, zeros: dict[str, int] | None
) -> UnstructuredPruner | StructuredPruner:
    if pruning.pruner in STRUCTURED_PRUNERS:
        return StructuredPruner(model, pruning, config)
    return UnstructuredPruner(pruning, config, zeros)


def _checked_zeros(name: str, dense_OI: Tensor, pruned_OI: Tensor, wanted: int, pruning: Pruning) -> int:
    """How many zeros the weight has. Raises StageFailed when they are not those that were asked for."""
    found, spare = int((pruned_OI == 0).sum()), int((dense_OI == 0).sum())
    # Weights that were zero before may be kept zero in addition to those removed.
    if not wanted <= found <= wanted + spare:
        raise StageFailed(f"{name} has {found} zeros after {pruning.name}, {wanted} were asked for")
    return found


def magnitude_score(weight_OI: Tensor) -> Tensor:
    """S_oi = |W_oi|. Han et al. 2015. Returns float32 [O, I]."""
    return weight_OI.float().abs()


def wanda_score(weight_OI: Tensor, squares_I: Tensor) -> Tensor:
    """S_oi = |W_oi| * ||x_i||_2. Sun et al. 2024 (Wanda), eq. 1.

    squares_I [I]: sum of x_i^2 over all calibration tokens. Returns float32 [O, I].
    """
    return weight_OI.float().abs() * squares_I.to(weight_OI.device).float().sqrt()

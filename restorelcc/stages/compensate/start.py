"""Where training starts, and what is learned from the dense model.

Letters: P chosen heads, L layers, H heads, D head dim, M model width, O output features, I input features.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from restorelcc.models.architectures import family_of, out_projections, text_config
from restorelcc.models.placement import whole
from restorelcc.models.text import batches_of_equal_length
from restorelcc.stages.compensate import CompensateConfig
from restorelcc.training.attached import HeadCompensation, SiteBiases, TrainableCompensation, site_linears
from restorelcc.training.closed_form import mean_inputs, mean_output, removed_bias, ridge_offsets
from restorelcc.training.compensation import Pairs, pairs_task
from restorelcc.training.config import SiteName
from restorelcc.training.distillation import Targets, dense_targets, distilled_task
from restorelcc.training.loop import Task

_TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class Lessons:
    """What is taken from the dense model before it leaves memory.

    mean_I, output_O: mean input of each linear, `<layer>.<path>`, and what the dense weight makes of it; targets: its
    probabilities at the response tokens of the training pairs.
    """

    mean_I: dict[str, Tensor] = field(default_factory=dict)
    output_O: dict[str, Tensor] = field(default_factory=dict)
    targets: list[Targets] = field(default_factory=list)


def needs_dense(config: CompensateConfig) -> bool:
    """Whether the dense model is asked for anything: mean shifts of heads alone are in the components."""
    of_sites = config.start == "meanshift" and set(config.sites) != {"o"}
    return config.distill is not None or config.start == "ridge" or of_sites


def lessons(dense: PreTrainedModel, config: CompensateConfig, pairs: Pairs) -> Lessons:
    """All that the settings need of the dense model."""
    mean_I: dict[str, Tensor] = {}
    output_O: dict[str, Tensor] = {}
    if config.start != "normal":
        linears = site_linears(dense, config.sites)
        mean_I = mean_inputs(dense, linears, token_batches(dense, pairs), "mean inputs")
        output_O = {
            name: mean_output(whole(linears[name].weight), _bias(linears[name]), mean).cpu()
            for name, mean in mean_I.items()
        }
    targets = []
    if config.distill is not None:
        targets = dense_targets(dense, pairs.train, pairs.pad, config.distill.top_k)
    return Lessons(mean_I, output_O, targets)


def _bias(linear: nn.Linear) -> Tensor | None:
    return None if linear.bias is None else whole(linear.bias)


def token_batches(model: PreTrainedModel, pairs: Pairs) -> list[Tensor]:
    """Token ids [B, T] of all training pairs, unpadded."""
    groups = batches_of_equal_length([len(pair.ids) for pair in pairs.train], _TOKENS_AT_ONCE)
    return [torch.tensor([pairs.train[row].ids for row in group], device=model.device) for group in groups]


def initial_compensation(
    model: PreTrainedModel,
    chosen: list[tuple[int, int]],
    components: dict[str, Tensor],
    config: CompensateConfig,
    pairs: Pairs,
    learned: Lessons,
) -> TrainableCompensation:
    """The untrained compensation of the chosen heads and the further sites, as `start` says."""
    of_heads = None
    if "o" in config.sites:
        directions_PDD = torch.stack([components["directions"][head] for head in chosen])
        of_heads = HeadCompensation(
            directions_PDD, chosen, initial_std=config.initial_std, seed=config.seed, trained=config.parts
        )
        if config.start == "meanshift":
            _set(of_heads, torch.stack([components["loadings"][head] for head in chosen]), config)
        elif config.start == "ridge":
            offset_PD = _ridge_start(model, chosen, config, pairs, learned)
            # V is orthogonal: beta = V c gives the very offset c.
            _set(of_heads, torch.einsum("pid,pd->pi", directions_PDD.double(), offset_PD), config)
    further: tuple[SiteName, ...] = tuple(site for site in config.sites if site != "o")
    of_sites = None
    if further:
        linears = site_linears(model, further)
        start = {}
        if config.start != "normal":
            start = {
                name: removed_bias(
                    learned.output_O[name], whole(linear.weight).cpu(), _bias(linear), learned.mean_I[name].cpu()
                )
                for name, linear in linears.items()
            }
        of_sites = SiteBiases(linears, start)
    return TrainableCompensation(of_heads, of_sites).to(model.device)


def _set(heads: HeadCompensation, beta_PD: Tensor, config: CompensateConfig) -> None:
    """Start from the offset V^T beta: in beta, or in the bias where that is the only part that trains."""
    with torch.no_grad():
        offset_PD = torch.einsum("pi,pid->pd", beta_PD.float(), heads.directions_PDD)
        heads.beta.copy_(beta_PD.float() if "beta" in config.parts else torch.zeros_like(offset_PD))
        heads.bias.copy_(torch.zeros_like(offset_PD) if "beta" in config.parts else offset_PD)


def _ridge_start(
    model: PreTrainedModel, chosen: list[tuple[int, int]], config: CompensateConfig, pairs: Pairs, learned: Lessons
) -> Tensor:
    """Per layer, the ridge offsets of its chosen heads, [P, D]."""
    path = family_of(model).out_proj
    means_I = mean_inputs(model, site_linears(model, ("o",)), token_batches(model, pairs), "mean inputs")
    offset_PD: Tensor | None = None
    for layer in sorted({layer for layer, _ in chosen}):
        rows = [row for row, head in enumerate(chosen) if head[0] == layer]
        projection = out_projections(model)[layer]
        weight_MX, name = whole(projection.weight).cpu(), f"{layer}.{path}"
        lost_M = learned.output_O[name].cpu() - mean_output(weight_MX, _bias(projection), means_I[name].cpu())
        head_dim = weight_MX.shape[1] // text_config(model.config).num_attention_heads
        weight_MPD = weight_MX.unflatten(1, (-1, head_dim))[:, [chosen[row][1] for row in rows]]
        if offset_PD is None:
            offset_PD = torch.zeros(len(chosen), head_dim, dtype=torch.float64)
        offset_PD[rows] = ridge_offsets(weight_MPD, lost_M, config.ridge)
    assert offset_PD is not None
    return offset_PD


def training_task(model: PreTrainedModel, pairs: Pairs, config: CompensateConfig, learned: Lessons) -> Task:
    """The responses, or with `distill` the responses and the dense model's probabilities."""
    if config.distill is None:
        return pairs_task(model, pairs)
    return distilled_task(model, pairs, learned.targets, config.distill.weight)

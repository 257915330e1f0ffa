"""Methods that add low-rank adapters to the pruned weights: LoRA and DoRA (peft), and EoRA in closed form.

Merged into the weights they fill every zero; evaluation reports them unmerged, merged, and merged with the mask put
back. Letters: N tokens, O output features, I input features, R rank.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from restorelcc.base.documents import read_json, write_json
from restorelcc.base.errors import BadInput
from restorelcc.base.progress import notice
from restorelcc.compensation.adapter import quiet_peft
from restorelcc.models.architectures import blocks_of, family_of, head_layout, linears_of
from restorelcc.models.placement import whole
from restorelcc.models.runtime import give_back_memory
from restorelcc.stages.recover.result import Inputs, Recovered
from restorelcc.training.attached import site_linears, site_paths
from restorelcc.training.best import fit_best
from restorelcc.training.checkpointing import checkpointed_blocks
from restorelcc.training.closed_form import input_moments
from restorelcc.training.compensation import pairs_task
from restorelcc.training.config import SiteName


def with_adapters(model: PreTrainedModel, sites: tuple[SiteName, ...], rank: int, *, dora: bool = False) -> PeftModel:
    """The model with untrained adapters of this rank on the linears of the sites; alpha = rank, no dropout.

    DoRA divides by the norm of every row, so that linears with rows of zeros get none. Raises BadInput where no linear
    is left.
    """
    linears = list(site_linears(model, sites).values())
    wanted = [linear for linear in linears if not (dora and _has_zero_rows(linear))]
    if not wanted:
        raise BadInput("every linear has rows of zeros, by whose norm DoRA would divide: take lora in place of dora")
    if len(wanted) < len(linears):
        left_out = len(linears) - len(wanted)
        notice("recover dora", f"{left_out} of {len(linears)} linears have rows of zeros and get no adapter")
    names = _target_names(model, wanted, site_paths(family_of(model), sites))
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=names, use_dora=dora)
    config.base_model_name_or_path = None
    with quiet_peft():
        adapted: Any = get_peft_model(model, config)
    return adapted


def _has_zero_rows(linear: nn.Linear) -> bool:
    return bool((whole(linear.weight) == 0).all(dim=1).any())


def _target_names(model: PreTrainedModel, wanted: list[nn.Linear], paths: list[str]) -> list[str]:
    """What peft finds these linears by, and no other module: the last parts of their names, paths inside a block, or
    where other modules go by these too (a vision tower, experts, linears that are left out) whole names."""
    names = {module: name for name, module in model.named_modules()}
    targets = {names[linear] for linear in wanted}
    last = list(dict.fromkeys(path.rpartition(".")[2] for path in paths))
    for found in (last, paths):
        if {name for name in names.values() if any(f".{name}".endswith(f".{end}") for end in found)} == targets:
            return found
    return sorted(targets)


def lora(inputs: Inputs) -> Recovered:
    """LoRA, arXiv 2106.09685."""
    return _trained(inputs, dora=False)


def dora(inputs: Inputs) -> Recovered:
    """DoRA, arXiv 2402.09353."""
    return _trained(inputs, dora=True)


def _trained(inputs: Inputs, *, dora: bool) -> Recovered:
    config, model = inputs.config, inputs.pruned()
    heads, pairs = head_layout(model), inputs.pairs()
    adapted = with_adapters(model, config.lora_sites, config.rank, dora=dora)
    task = pairs_task(adapted, pairs)  # type: ignore[arg-type]
    with checkpointed_blocks(model, config.gradient_checkpointing):
        title = f"recover {inputs.cell.recovery}"
        choice = fit_best(adapted, task, config, title=title, stores=inputs.states)
    training = choice.as_json() | pairs.as_json()
    trained = sum(part.numel() for part in adapted.parameters() if part.requires_grad)
    return Recovered(heads, adapter=adapted, params_trained=trained, training=training, unchanged=choice.unchanged)


class Eigenspace(NamedTuple):
    """X X^T = Q L Q^T of a linear's inputs, float64: L ascending, and Q with a direction in each column."""

    values_I: Tensor
    vectors_II: Tensor


def eigenspace(gram_II: Tensor) -> Eigenspace:
    """That of the mean of x x^T."""
    return Eigenspace(*torch.linalg.eigh(gram_II.double()))


def eigenspace_factors(lost_OI: Tensor, space: Eigenspace, rank: int) -> tuple[Tensor, Tensor]:
    """argmin over rank R of |(lost - B A) X|: B [O, R], A [R, I]. EoRA, arXiv 2410.21271, section 3.

    With X X^T = Q L Q^T the error is |(lost - B A) Q L^1/2|, so that the best is a truncated SVD of lost Q L^1/2, taken
    back by L^-1/2 Q^T. Directions that no input has are left out. float64.
    """
    values_I, vectors_II = space
    root_I = values_I.clamp_min(0).sqrt()
    inverse_I = torch.where(root_I > 1e-6 * root_I.max(), 1 / root_I.clamp_min(1e-300), torch.zeros_like(root_I))
    left_OR, singular_R, right_RI = torch.linalg.svd(lost_OI.double() @ vectors_II * root_I, full_matrices=False)
    up_OR = left_OR[:, :rank] * singular_R[:rank]
    return up_OR, (right_RI[:rank] * inverse_I) @ vectors_II.T


def still_lost(lost_OI: Tensor, added_O: Tensor, mean_I: Tensor, space: Eigenspace) -> Tensor:
    """The linear map that a pruned linear lacks, beside the bias that its pruning gave it. float64.

    It lacks E x - d of an input x, with E = W_dense - W_pruned and d = b_pruned - b_dense (`refined` prunes with
    d = E mean(x)). The least squares fit of that is E - d mean(x)^T G^+, with G = E[x x^T]: what the bias gives already
    is not given twice. `eigenspace_factors` of it is the best of rank R, since the rest is orthogonal to all inputs.
    """
    values_I, vectors_II = space
    kept_I = values_I > 1e-12 * values_I.max()
    inverse_I = torch.where(kept_I, 1 / values_I.clamp_min(1e-300), torch.zeros_like(values_I))
    constant_I = vectors_II @ (inverse_I * (vectors_II.T @ mean_I.double()))
    return lost_OI.double() - torch.outer(added_O.double(), constant_I)


def eora(inputs: Inputs) -> Recovered:
    """Low-rank factors of what pruning removed, in the eigenspace of the calibration inputs; nothing is trained."""
    config, dense = inputs.config, inputs.dense()
    linears = site_linears(dense, config.lora_sites)
    moments = input_moments(dense, linears, inputs.calibration(), "input grams")
    before = {name: (linear.weight.detach().cpu(), _bias(linear)) for name, linear in linears.items()}
    del dense, linears
    give_back_memory()
    model = inputs.pruned()
    heads, pruned = head_layout(model), site_linears(model, config.lora_sites)
    factors, last = {}, None
    for name, linear in pruned.items():
        weight_OI, bias_O = before[name]
        mean_I, gram_II = moments.pop(name)
        if last is not gram_II:  # that of q is that of k and v
            last, space = gram_II, eigenspace(gram_II.cpu())
        lost_OI = weight_OI.double() - linear.weight.cpu().double()
        lost_OI = still_lost(lost_OI, _bias(linear) - bias_O, mean_I.cpu(), space)
        factors[name] = eigenspace_factors(lost_OI, space, config.rank)
    adapted = with_adapters(model, config.lora_sites, config.rank)
    for name, module in site_modules(adapted, config.lora_sites).items():
        up_OR, down_RI = factors[name]
        rank = up_OR.shape[1]  # less than asked for in a linear that is smaller than the rank
        with torch.no_grad():
            module.lora_A["default"].weight.zero_()[:rank].copy_(down_RI)
            module.lora_B["default"].weight.zero_()[:, :rank].copy_(up_OR)
    return Recovered(heads, adapter=adapted)


def _bias(linear: nn.Linear) -> Tensor:
    """The bias [O] in float64, zeros where there is none."""
    if linear.bias is None:
        return torch.zeros(linear.out_features, dtype=torch.float64)
    return linear.bias.detach().cpu().double()


def site_modules(adapted: PeftModel, sites: tuple[SiteName, ...]) -> dict[str, Any]:
    """The adapted linears of the sites, `<layer>.<path>` to peft's module."""
    base: Any = adapted.get_base_model()
    family = family_of(base)
    paths = site_paths(family, sites)
    return {
        f"{layer}.{path}": block.get_submodule(path)
        for layer, block in enumerate(blocks_of(base))
        for path, _ in linears_of(block, family)
        if path in paths
    }


def write_adapter(folder: Path, adapted: PeftModel) -> None:
    """adapter_config.json and adapter_model.safetensors: the same bytes wherever the model lay and in every process."""
    adapted.save_pretrained(str(folder), safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)  # a template without content
    # peft fills in the path of the model, and writes sets in an order that differs from process to process.
    config: dict[str, Any] = read_json(folder / "adapter_config.json") | {"base_model_name_or_path": None}
    for key in ("target_modules", "modules_to_save", "exclude_modules"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    write_json(folder / "adapter_config.json", config)

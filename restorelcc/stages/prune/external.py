"""A checkpoint that another tool pruned: does it fit the dense model, and how large is its output error?

Letters: B batch, T tokens, O output features, I input features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from restorelcc.base.errors import BadInput
from restorelcc.base.progress import progress
from restorelcc.models.architectures import all_blocks, family_of, prunable_linears
from restorelcc.models.biases import biased_config
from restorelcc.models.tensor_files import StoredTensor
from restorelcc.models.walk import Weights, walk_blocks
from restorelcc.stages.prune import PruneConfig
from restorelcc.stages.prune.inputs import observed_inputs
from restorelcc.stages.prune.prune import PrunedTensor, check_finite, linears_by_layer, output_error, sampling_stride

_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size")


def check_sizes(what: str, config: PreTrainedConfig, dense: PreTrainedConfig) -> None:
    """Raises BadInput where two configs say already that `check_fits` would: no weight is looked at."""
    if config.model_type not in (dense.model_type, biased_config(dense).model_type):
        raise _other_family(what, config, dense)
    for name in _SIZES:
        own, wanted = (getattr(each.get_text_config(), name, None) for each in (config, dense))
        if own != wanted:
            raise BadInput(f"{what} does not fit the dense model: its {name} is {own}, not {wanted}")


def _other_family(what: str, config: PreTrainedConfig, dense: PreTrainedConfig) -> BadInput:
    return BadInput(
        f"{what} is of the family {config.model_type!r}, the dense model of {dense.model_type!r}: give a pruned copy "
        "of it"
    )


def check_fits(what: str, model: PreTrainedModel, dense: PreTrainedModel) -> None:
    """Raises BadInput unless the external model has the family and the shapes of the dense one.

    A Llama model fits a dense one of a class that computes the same without a place for all biases.
    """
    if model.config.model_type not in (dense.config.model_type, biased_config(dense.config).model_type):
        raise _other_family(what, model.config, dense.config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    experts = tuple(f".{path}." for path in family_of(dense).experts)
    for name, tensor in dense.state_dict().items():
        if any(path in name for path in experts):
            continue  # of which a pruned model may have fewer
        if shapes.get(name) != tuple(tensor.shape):
            raise BadInput(
                f"{what} does not fit the dense model: {name} has shape {shapes.get(name)}, not "
                f"{tuple(tensor.shape)}; models whose heads or channels were cut out cannot be restored against it"
            )


@torch.no_grad()
def measure_external(
    model: PreTrainedModel,
    weights: Weights,
    dense: dict[str, StoredTensor],
    batches_BT: list[Tensor],
    config: PruneConfig,
) -> list[PrunedTensor]:
    """Zeros and output error of every targeted weight, on the inputs that the external model itself produces.

    `model` is walked with the external weights; dense weights are read one at a time. Raises BadInput for weights that
    are not finite.
    """
    by_layer, transposed = linears_by_layer(model), family_of(model).transposed
    stride = sampling_stride(batches_BT, config)
    results = []
    steps = walk_blocks(model, batches_BT, weights)
    for step in progress(steps, "measure external", "blocks", total=len(all_blocks(model))):
        linears = by_layer.get(step.layer, {})
        for name, linear in linears.items():
            check_finite(name, linear.weight)
        with observed_inputs(linears, stride=stride) as inputs:
            step.forward()
        for name, linear in linears.items():
            dense_OI = dense[f"{name}.weight"].as_linear(transposed).read().to(linear.weight)
            change_O = _bias_change(linear, dense.get(f"{name}.bias"))
            error = output_error(dense_OI, linear.weight, inputs.sampled_KI(name), change_O=change_O)
            zeros, total = int((linear.weight == 0).sum()), linear.weight.numel()
            changed = change_O is not None
            results.append(PrunedTensor(f"{name}.weight", step.layer, zeros, total, error, bias_changed=changed))
    return results


def _bias_change(linear: nn.Linear, dense: StoredTensor | None) -> Tensor | None:
    """What the linear's bias has above the dense one, float32 [O]; None where that is nothing in the linear's dtype."""
    if linear.bias is None:
        return None
    change_O = linear.bias.float()
    if dense is not None:
        change_O = change_O - dense.read().to(linear.bias).float()
    return change_O if change_O.any() else None


def counted(model: PreTrainedModel, dense: dict[str, StoredTensor]) -> list[PrunedTensor]:
    """Zeros of every targeted weight of a model in memory, without errors.

    A bias is compared with the dense one where the dense tensors go by the names that the class gives them.
    """
    results = []
    for layer, name, linear in prunable_linears(model):
        check_finite(name, linear.weight)
        zeros = int((linear.weight == 0).sum())
        change_O = _bias_change(linear, dense.get(f"{name}.bias")) if f"{name}.weight" in dense else None
        found = PrunedTensor(f"{name}.weight", layer, zeros, linear.weight.numel(), None, change_O is not None)
        results.append(found)
    return results

"""A model's place in the table of families (families.py): its blocks, linears and heads.

What a config tells by itself is in config_facts.py, and can be imported from here, too.

Letters: L layers (blocks that have heads), H query heads, D head dim, X = H*D, M model width.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel

from restorelcc.base.errors import BadInput
from restorelcc.models.config_facts import WITH_HEADS as WITH_HEADS
from restorelcc.models.config_facts import check_scores as check_scores
from restorelcc.models.config_facts import check_whole_parts as check_whole_parts
from restorelcc.models.config_facts import family_of_config as family_of_config
from restorelcc.models.config_facts import ffn_width_of_config as ffn_width_of_config
from restorelcc.models.config_facts import kv_heads_of_config as kv_heads_of_config
from restorelcc.models.config_facts import layout_of_config as layout_of_config
from restorelcc.models.config_facts import text_config as text_config
from restorelcc.models.families import FAMILIES as FAMILIES
from restorelcc.models.family import BiasRoute as BiasRoute
from restorelcc.models.family import Family as Family
from restorelcc.models.heads import HeadLayout
from restorelcc.models.transposed import with_linears


def family_of(model: PreTrainedModel) -> Family:
    """The table's row for a model. Raises BadInput for an unknown family, listing the known ones."""
    return family_of_config(model.config)


def all_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The model's decoder blocks, in order, those without heads among them."""
    family = family_of(model)
    blocks = model.get_submodule(family.blocks)
    assert isinstance(blocks, nn.ModuleList)
    if family.transposed:
        with_linears(blocks)
    return blocks


def numbered_blocks(model: PreTrainedModel) -> list[tuple[int, nn.Module]]:
    """The L blocks that have heads, each with its number among all blocks."""
    numbered = list(enumerate(all_blocks(model)))
    if not family_of(model).hybrid:
        return numbered
    kinds = text_config(model.config).layer_types
    return [(number, block) for number, block in numbered if kinds[number] in WITH_HEADS]


def blocks_of(model: PreTrainedModel) -> list[nn.Module]:
    """The model's L decoder blocks that have heads, in order."""
    return [block for _, block in numbered_blocks(model)]


def linear_of(block: nn.Module, path: str) -> nn.Linear:
    """The Linear at a path of the table. Raises BadInput when the model has something else there, or nothing."""
    try:
        module = block.get_submodule(path)
    except AttributeError as error:
        raise BadInput(f"a block of this model has no {path}: name linears that all of its layers have") from error
    module = getattr(module, "base_layer", module)  # with an adapter the Linear is inside
    if not isinstance(module, nn.Linear):
        raise BadInput(f"{path} is a {type(module).__name__}, not a Linear layer: such a model is not supported")
    return module


def linears_of(block: nn.Module, family: Family) -> Iterator[tuple[str, nn.Linear]]:
    """(path, Linear) of a block's linears in forward order. Of families with experts or hybrids, those it has."""
    for path in family.linears:
        if not family.partial or _has(block, path):
            yield path, linear_of(block, path)


def _has(block: nn.Module, path: str) -> bool:
    try:
        block.get_submodule(path)
    except AttributeError:
        return False
    return True


def out_projections(model: PreTrainedModel) -> list[nn.Linear]:
    """The L out-projections (weight [M, X]), in layer order."""
    path = family_of(model).out_proj
    return [linear_of(block, path) for block in blocks_of(model)]


def prunable_linears(model: PreTrainedModel) -> Iterator[tuple[int, str, nn.Linear]]:
    """(block, name in a checkpoint, Linear) of every linear layer that pruning targets, in forward order."""
    family = family_of(model)
    for number, block in numbered_blocks(model):
        for path, linear in linears_of(block, family):
            yield number, f"{family.stored}.{number}.{path}", linear


def head_layout(model: PreTrainedModel) -> HeadLayout:
    """L, H, D of a model; D = o_proj.in_features / num_attention_heads, the same in every layer or BadInput."""
    heads = text_config(model.config).num_attention_heads
    widths = sorted({projection.in_features for projection in out_projections(model)})
    if len(widths) != 1 or widths[0] % heads:
        raise BadInput(f"out-projections with {widths} inputs do not split evenly into {heads} heads in every layer")
    numbers = tuple(number for number, _ in numbered_blocks(model)) if family_of(model).hybrid else None
    return HeadLayout(len(out_projections(model)), heads, widths[0] // heads, numbers)


def kv_heads(model: PreTrainedModel) -> int:
    """Key/value heads of a layer; query heads share one in groups of H / KV neighbours."""
    return kv_heads_of_config(model.config)


def parameter_count(model: PreTrainedModel) -> int:
    """All of them, a matrix that is both input and output embedding once: without weights it may be there twice."""
    counted = sum(parameter.numel() for parameter in model.parameters())
    read, written = model.get_input_embeddings(), model.get_output_embeddings()
    if text_config(model.config).tie_word_embeddings and written is not None and written.weight is not read.weight:
        counted -= written.weight.numel()
    return counted

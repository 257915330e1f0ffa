"""The memory that pruning a model needs, computed from its shapes alone.

Letters: N tokens of a batch, K sampled tokens, M model width, O output features, I input features.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from transformers import PreTrainedModel

from restorelcc.base.prunings import Pruning
from restorelcc.models.architectures import all_blocks, blocks_of, family_of, linears_of, parameter_count, text_config
from restorelcc.stages.prune import PruneConfig

_FLOAT32 = 4  # bytes
_LIBRARIES = 64 * 2**20  # bytes that the libraries' kernels take when they first run; about half of it was measured


@dataclass(frozen=True, kw_only=True)
class MemoryBudget:
    """Bytes that are needed at once, in addition to Python, torch and the model's code."""

    outside_blocks: int  # embeddings, last norm, output head
    block: int  # one block's weights
    hidden_states: int  # calibration activations at one block
    forward: int  # what one batch makes inside a block
    samples: int  # inputs that reconstruction errors are measured on
    gram: int  # Gram matrices of one block
    surgeon: int  # factors and copies while one weight is pruned
    libraries: int = _LIBRARIES

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def memory_budget(model: PreTrainedModel, pruning: Pruning, config: PruneConfig, dtype: torch.dtype) -> MemoryBudget:
    """Bytes for pruning a model block by block in `dtype`; the model may be without weights (on the meta device).

    An upper estimate: all calibration sequences are taken to be `sequence_length` long, and linears to share their
    inputs no further than query, key and value, or those that feed the FFN.
    """
    family, size = family_of(model), dtype.itemsize
    in_blocks = [sum(parameter.numel() for parameter in block.parameters()) for block in all_blocks(model)]
    linears = dict(linears_of(blocks_of(model)[0], family))
    tokens = config.samples * config.sequence_length
    sharing = [
        [linears[path] for path in paths if path in linears]
        for paths in (family.qkv, (family.out_proj,), family.ffn_in, family.ffn[-1:])
    ]
    # (O, I) of linears that share their input, as one; none where a mixture of experts has none.
    shapes = [(sum(linear.out_features for linear in each), each[0].in_features if each else 0) for each in sharing]
    batch_N = min(tokens, max(config.token_budget, config.sequence_length))
    sampled_K = min(tokens, 2 * config.error_tokens)
    needs = {"sparsegpt": shapes, "refined": shapes, "slimgpt": [shapes[1], shapes[3]]}
    hessians = needs.get(pruning.pruner, [])
    # Beside the Gram matrix: the damped Hessian, its factor, the inverse and one copy; the weight in four versions.
    # `refined` has the centred Gram matrix too, and a part of it in float64; its least squares the weight seven times.
    squares, versions = (4, 4)
    if pruning.pruner == "refined":
        squares, versions = (3 if config.refined.start == "wanda" else 5, 7)
    steps = [squares * i**2 + versions * o * i for o, i in hessians] or [4 * o * i for o, i in shapes]
    return MemoryBudget(
        outside_blocks=(parameter_count(model) - sum(in_blocks)) * size,
        block=max(in_blocks) * size,
        hidden_states=tokens * text_config(model.config).hidden_size * size,
        forward=batch_N * (2 * sum(i for _, i in shapes) + shapes[0][0] + shapes[2][0]) * _FLOAT32,
        samples=sampled_K * sum(inputs for _, inputs in shapes) * size,
        gram=sum(inputs**2 for _, inputs in hessians) * _FLOAT32,
        surgeon=max(steps) * _FLOAT32,
    )

"""A compensation applied by hooks, without changing the model's tensors: the reference for tests of folding.

Letters: B batch, T tokens, L layers, H heads, D head dim, X = H*D, O output features of a linear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor
from transformers import PreTrainedModel

from restorelcc.base.errors import BadInput
from restorelcc.compensation.compensation import Compensation, Site, check_width, checked
from restorelcc.models.architectures import blocks_of, family_of, head_layout, linear_of, out_projections
from restorelcc.models.hooks import added_to_inputs, adding_to_input, hooked


@contextmanager
def offset_heads(model: PreTrainedModel, offset_LHD: Tensor) -> Iterator[None]:
    """z' = z + c at every position of every head (RestoreLCC eq. 5 and 8): the reference for tests of the fold.

    offset_LHD [L, H, D], any float dtype, added in the model's own. Raises BadInput when the shape is another model's.
    """
    layout = head_layout(model)
    if tuple(offset_LHD.shape) != (layout.layers, layout.heads, layout.head_dim):
        raise BadInput(f"a compensation of shape {tuple(offset_LHD.shape)} does not fit a model of {layout}")
    offset_LX = layout.join(offset_LHD)

    projections = enumerate(out_projections(model))
    with added_to_inputs(projections, lambda layer: offset_LX[layer], expected=layout.layers):
        yield


def compensated(model: PreTrainedModel, compensation: Compensation | Tensor) -> ExitStack:
    """z' = z + c for the heads and out' = out + s for the further sites: the reference that folding is tested against.

    From now on, until what is returned is closed, as a `with` block does; when nobody keeps that, the hooks stay. No
    tensor of the model changes. Raises BadInput when the compensation does not fit the model.
    """
    layout = head_layout(model)
    found = checked(compensation, family_of(model), layout)
    blocks, offset_LX = blocks_of(model), layout.join(found.offset_LHD)
    linears = {site: linear_of(blocks[site.layer], site.linear) for site in found.sites}
    for site, linear in linears.items():
        check_width(site, found.sites[site], linear.out_features)

    def adding(site: Site) -> Callable[..., Tensor]:
        return lambda _module, _inputs, output: output + found.sites[site].to(output)

    def offset_X(layer: int) -> Tensor:
        return offset_LX[layer]

    with ExitStack() as held:
        held.enter_context(hooked(enumerate(out_projections(model)), adding_to_input(offset_X), expected=layout.layers))
        held.enter_context(hooked(linears.items(), adding, expected=len(found.sites), after=True))
        return held.pop_all()

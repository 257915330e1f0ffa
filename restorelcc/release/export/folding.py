"""The tensors of the restored checkpoint, each made from the pruned one's when its turn comes.

Letters: O output features of a linear, X = H*D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from restorelcc.compensation.compensation import Site
from restorelcc.compensation.fold import addition, with_addition
from restorelcc.models.architectures import text_config
from restorelcc.models.shards import PlannedTensor
from restorelcc.models.tensor_files import StoredTensor
from restorelcc.release.export.source import Source
from restorelcc.release.routes import Route


def planned_tensors(source: Source, route: Route) -> list[PlannedTensor]:
    """Everything that is written, in the order in which it lies in the source: its tensors as they are, but for the
    biases that take something up, and the biases that the written class has and the source has not."""
    folds = dict(_folds(source, route))
    planned = []
    for name, stored in sorted(source.stored.items(), key=lambda item: (item[1].file.name, item[1].start)):
        planned.append(PlannedTensor(name, stored.dtype, stored.shape, folds.pop(name, stored.read)))
    for name, content in folds.items():
        weight = source.weight_of(name)
        planned.append(PlannedTensor(name, weight.dtype, weight.shape[:1], content))
    return planned


def folded_names(source: Source, route: Route) -> list[str]:
    """Names of the biases that change."""
    return [name for name, site in _biases(source, route) if site and route.compensation.reaches(site, route.family)]


def added_names(source: Source, route: Route) -> list[str]:
    """Names of the biases that the source does not have."""
    return [name for name, _ in _biases(source, route) if name not in source.stored]


def added_parameters(source: Source, route: Route) -> int:
    """How many more numbers the checkpoint holds than the pruned one."""
    return sum(source.weight_of(name).shape[0] for name in added_names(source, route))


def carrying_parameters(source: Source, route: Route) -> int:
    """How many of them carry something; the others are zero, and there because the written class has them too. The
    report's `params +`."""
    added = set(added_names(source, route))
    return sum(source.weight_of(name).shape[0] for name in folded_names(source, route) if name in added)


def _biases(source: Source, route: Route) -> Iterator[tuple[str, Site | None]]:
    """(name, site) of every bias of the written class; None for one of a block without heads."""
    layout = source.layout
    for block in range(text_config(source.config).num_hidden_layers):
        layer = layout.layer(block)
        for path in route.biased:
            linear = f"{source.family.stored}.{block}.{path}"
            if f"{linear}.weight" in source.stored:  # which some blocks of mixtures of experts and hybrids lack
                yield f"{linear}.bias", None if layer is None else Site(layer, path)


def _folds(source: Source, route: Route) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """(name, content) of the biases that are not simply those of the source."""
    for name, site in _biases(source, route):
        weight, bias = source.weight_of(name), source.stored.get(name)
        if site and route.compensation.reaches(site, route.family):
            yield name, partial(_folded, source, route, site, weight, bias)
        elif bias is None:
            yield name, partial(torch.zeros, weight.shape[:1], dtype=weight.dtype)


def _folded(source: Source, route: Route, site: Site, weight: StoredTensor, bias: StoredTensor | None) -> Tensor:
    offset_X = route.compensation.head_offset(site, route.family, source.layout)
    taken_O = addition(weight.read(), offset_X, site, route.compensation.sites.get(site))
    return with_addition(None if bias is None else bias.read(), taken_O, (bias or weight).dtype)

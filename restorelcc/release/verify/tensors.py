"""Checks of every tensor, one at a time: zeros, N:M, bits, and the biases that were folded.

Letters: O output features, I input features, X = H*D.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from restorelcc.base.progress import progress
from restorelcc.compensation.compensation import Site
from restorelcc.compensation.fold import addition, with_addition
from restorelcc.models.architectures import Family, text_config
from restorelcc.models.heads import HeadLayout
from restorelcc.models.tensor_files import StoredTensor
from restorelcc.release.patterns import groups_of, held_patterns
from restorelcc.release.provenance import tensor_entry
from restorelcc.release.routes import Route
from restorelcc.release.verify.files import Violation
from restorelcc.sparsity.patterns import densest_group

Stored = dict[str, StoredTensor]


def check_recorded(stored: Stored, record: dict[str, Any]) -> str:
    """Every tensor is what the record says: zeros and N:M first, then shape, dtype and bits."""
    entries = record["tensors"]
    _check_names(set(stored), set(entries))
    for name, tensor in progress(sorted(stored.items()), "verify record", "tensors"):
        value, entry = tensor.read(), entries[name]
        if "zeros" in entry:
            _check_zeros(name, value, entry)
        found = tensor_entry(value, targeted=False)
        for key in ("dtype", "shape", "sha256"):
            if found[key] != entry[key]:
                what = "content" if key == "sha256" else key
                raise Violation(f"{name} has another {what} than restorelcc.json records")
    zeros = sum(entry.get("zeros", 0) for entry in entries.values())
    return f"{len(stored)} tensors, {zeros:,} zeros, {', '.join(record['sparsity']['patterns']) or 'no N:M'}"


def _check_zeros(name: str, value: Tensor, entry: dict[str, Any]) -> None:
    zeros = int((value == 0).sum())
    if zeros != entry["zeros"]:
        raise Violation(f"{name} has {zeros:,} zeros, {entry['zeros']:,} when it was written: a zero was changed")
    weight_OI = value.T if entry.get("transposed") is True else value
    held = held_patterns(weight_OI, densest_group, groups_of(entry["patterns"]))
    for pattern in entry["patterns"]:
        if not any(_at_least(other, pattern) for other in held):
            raise Violation(f"{name} no longer has the pattern {pattern}")


def _at_least(held: str, wanted: str) -> bool:
    (keep, group), (most, size) = (tuple(map(int, text.split(":"))) for text in (held, wanted))
    return group == size and keep <= most


def _check_names(found: set[str], expected: set[str]) -> None:
    if missing := sorted(expected - found):
        raise Violation(f"the checkpoint lacks {missing[0]} ({len(missing)} tensors missing)")
    if strange := sorted(found - expected):
        raise Violation(f"the checkpoint holds {strange[0]}, which does not belong to it ({len(strange)} such tensors)")


@dataclass(frozen=True)
class Reference:
    """The pruned checkpoint, and how its compensation is carried."""

    stored: Stored
    family: Family
    layout: HeadLayout
    route: Route

    def site_of(self, bias: str) -> Site | None:
        """The site whose bias goes by this name."""
        found = re.fullmatch(rf"{re.escape(self.family.stored)}\.(\d+)\.(.+)\.bias", bias)
        if found is None or found[2] not in self.route.biased:
            return None
        layer = self.layout.layer(int(found[1]))
        return None if layer is None else Site(layer, found[2])

    def folded(self, bias: str) -> Tensor | None:
        """What the bias must be when its linear takes something up; None when it takes up nothing."""
        site, compensation = self.site_of(bias), self.route.compensation
        if site is None or not compensation.reaches(site, self.route.family):
            return None
        offset_X = compensation.head_offset(site, self.route.family, self.layout)
        weight, own = self.stored[f"{bias.removesuffix('bias')}weight"], self.stored.get(bias)
        weight = weight.as_linear(self.family.transposed)
        taken_O = addition(weight.read(), offset_X, site, compensation.sites.get(site))
        return with_addition(None if own is None else own.read(), taken_O, torch.float32)


def check_against(stored: Stored, reference: Reference) -> str:
    """Every tensor is the pruned checkpoint's, bit for bit, but for the biases, which are those of the compensation."""
    blocks = range(text_config(reference.route.config).num_hidden_layers)
    linears = [f"{reference.family.stored}.{block}.{path}" for block in blocks for path in reference.route.biased]
    biases = {f"{linear}.bias" for linear in linears if f"{linear}.weight" in reference.stored}
    expected = set(reference.stored) | biases
    _check_names(set(stored), expected)
    folded = 0
    for name, tensor in progress(sorted(stored.items()), "verify against", "tensors"):
        own = reference.stored.get(name)
        wanted_O = reference.folded(name)
        if wanted_O is not None:
            _check_folded(name, tensor.read(), wanted_O)
            folded += 1
        elif own is not None:
            _check_same(name, tensor.read(), own.read())
        elif bool(tensor.read().any()):
            raise Violation(
                f"{name} must be zero: nothing is folded into it, and the pruned checkpoint has no such bias"
            )
    return f"{len(reference.stored)} tensors of the pruned checkpoint unchanged, {folded} biases folded"


def check_zeros_kept(stored: Stored, pruned: Stored) -> str:
    """Every zero of these weights of the pruned checkpoint is a zero here, where a method has made new weights of all
    others."""
    _check_names(set(stored) & set(pruned), set(pruned))
    zeros = 0
    for name, tensor in progress(sorted(pruned.items()), "verify against", "tensors"):
        value, own = stored[name].read(), tensor.read()
        if value.shape != own.shape:
            raise Violation(f"{name} is {tuple(value.shape)}, in the pruned checkpoint {tuple(own.shape)}")
        filled = (own == 0) & (value != 0)
        if bool(filled.any()):
            at = tuple(torch.nonzero(filled)[0].tolist())
            raise Violation(f"{name} fills a zero of the pruned checkpoint, first at {list(at)}")
        zeros += int((own == 0).sum())
    return f"{zeros:,} zeros of the pruned checkpoint are zeros here, and the other weights are new"


def _check_same(name: str, value: Tensor, own: Tensor) -> None:
    if value.shape != own.shape or value.dtype != own.dtype:
        raise Violation(f"{name} is {tuple(value.shape)} {value.dtype}, in the pruned checkpoint {tuple(own.shape)}")
    changed = (value == 0) != (own == 0)
    if bool(changed.any()):
        at = tuple(torch.nonzero(changed)[0].tolist())
        raise Violation(f"{name} has another zero pattern than the pruned checkpoint, first at {list(at)}")
    if not torch.equal(value.flatten().view(torch.uint8), own.flatten().view(torch.uint8)):
        raise Violation(f"{name} differs from the pruned checkpoint, though its zeros are the same")


def _check_folded(name: str, value_O: Tensor, wanted_O: Tensor) -> None:
    # Sums of products are rounded differently on different processors; beyond that, only the cast to the dtype stored.
    # Of the smallest numbers of float16 that is a share no longer.
    stored = torch.finfo(value_O.dtype)
    bound = 1e-5 * float(wanted_O.abs().max()) + stored.eps * wanted_O.abs() + stored.smallest_normal * stored.eps
    # `<=`, which no NaN is.
    if value_O.shape != wanted_O.shape or not bool(((value_O.float() - wanted_O).abs() <= bound).all()):
        raise Violation(f"{name} is not what the compensation folds into it")

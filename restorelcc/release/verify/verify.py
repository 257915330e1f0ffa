"""Prove that a restored checkpoint is what it says: a stock folder, every zero kept, the same logits."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from restorelcc.base.errors import BadInput, one_line
from restorelcc.base.publish import scratch_folder
from restorelcc.base.recoveries import MERGES, UNCHANGED
from restorelcc.compensation.compensation import Compensation
from restorelcc.compensation.file import read_compensation
from restorelcc.models.architectures import head_layout
from restorelcc.models.checkpoint_check import check_checkpoint
from restorelcc.models.checkpoints import load_model, local_folder
from restorelcc.models.heads import HeadLayout
from restorelcc.models.tensor_files import StoredTensor
from restorelcc.release.export.source import open_source
from restorelcc.release.export.writing import targeted_weights
from restorelcc.release.original import can_be_taken_out
from restorelcc.release.packed.folder import is_packed, unpack_into
from restorelcc.release.packed.model import load_packed
from restorelcc.release.provenance import COMPENSATION, OWN_FOLDER, RECORD, path_digest, read_record
from restorelcc.release.routes import plan_route
from restorelcc.release.verify.files import (
    Violation,
    check_own_digests,
    check_packed_weights,
    check_parent,
    check_shards,
    check_stock_only,
    check_tokenizer,
)
from restorelcc.release.verify.fresh import Waiting
from restorelcc.release.verify.logits import (
    check_keys,
    check_logits,
    check_packed_logits,
    hooked_logits,
    load_fresh,
    probe_tokens,
    pruned_from_restored,
)
from restorelcc.release.verify.tensors import Reference, check_against, check_recorded, check_zeros_kept
from restorelcc.sparsity.streaming import read_config

_UNPACKED = ".unpacked-"  # in the name of a folder beside a packed checkpoint that is being verified

Finding = tuple[str, str]  # what was checked, and what was found


@dataclass(frozen=True)
class Subject:
    """What is verified, and what it is compared with; `against` and `compensation` as the user gave them."""

    folder: Path
    record: dict[str, Any] | None
    against: Path | None
    compensation: Path | None
    packed: Path | None = None  # the packed checkpoint that `folder` was unpacked from

    @property
    def cut(self) -> bool:
        return self.record is not None and self.record["route"]["cut"]

    @cached_property
    def given_as(self) -> str:
        """Which parent of the record `against` is, the pruned model: of a method that trained weights, `pruned` is what
        it made of that model, and `recovery.pruned` the model itself."""
        parents = {} if self.record is None else self.record["parents"]
        first = parents.get("recovery.pruned")
        if self.against is None or first is None:
            return "pruned"
        own = parents.get("pruned", {}).get("digest")
        return "pruned" if own in (first["digest"], path_digest(self.against)) else "recovery.pruned"

    @property
    def new_weights(self) -> str | None:
        """What a method has made of the weights of `against`; None where they are the same."""
        weights = ((self.record or {}).get("method") or {}).get("weights", "kept")
        return None if self.given_as == "pruned" or weights in ("kept", UNCHANGED) else weights

    def values(self, layout: HeadLayout) -> Compensation:
        """The compensation; one of nothing where the record has none, since a method has changed weights instead."""
        if self.compensation is None and self.record is not None and "compensation" not in self.record["parents"]:
            return Compensation.nothing(layout)
        return read_compensation(self.compensation or self.folder / OWN_FOLDER / COMPENSATION)[0]


def subject(folder: Path, against: Path | None, compensation: Path | None) -> Subject:
    """Raises BadInput when there is nothing to verify, or nothing to compare it with."""
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder: give the folder of a restored checkpoint")
    if against is not None:
        local_folder(against)
    has_record = (folder / RECORD).is_file()
    if not has_record and (against is None or compensation is None):
        raise BadInput(
            f"{folder} has no {RECORD}: only folders written by `restorelcc export` can be verified alone; give "
            "--against PRUNED and --compensation FILE"
        )
    return Subject(folder, read_record(folder) if has_record else None, against, compensation)


def verify(subject: Subject, *, logits: bool = True, waiting: Waiting | None = None) -> Iterator[Finding]:
    """Every check in turn, with what it found. Raises Violation at the first thing that is not as it should be.

    waiting: the process that loads the checkpoint as any user does; None: one is started for it.
    """
    folder, record = subject.folder, subject.record
    if is_packed(folder):
        yield from _verify_unpacked(subject, logits=logits, waiting=waiting)
        return
    if subject.packed is None:  # else of the packed folder, before it was unpacked
        yield "stock files", check_stock_only(folder)
    yield "tokenizer", check_tokenizer(folder)
    stored = check_shards(folder)
    yield "shards", f"{len(stored)} tensors in whole files"
    if record is not None:
        if record.get("method"):
            yield "method", one_line("{name}: {does}".format(**record["method"]))
        yield "tensors", check_recorded(stored, record)
        yield "digests", check_own_digests(folder, record)
        given = {subject.given_as: subject.against, "compensation": subject.compensation}
        for name, recorded in record["parents"].items():
            yield "parents", check_parent(name, folder, recorded, given.get(name))
    if subject.against is not None and not subject.cut:
        with tempfile.TemporaryDirectory() as scratch:  # of a checkpoint under former names, today's
            yield "against", _check_against(stored, subject, Path(scratch))
    check_checkpoint(folder)  # before another process loads it
    config = _config_of(folder)
    tokens = probe_tokens(config)
    (loaded,) = load_fresh([(folder, tokens)], waiting)
    yield "fresh process", check_keys(folder, config, loaded)
    if not logits:
        yield "logits", "not compared (--skip-logits)"
        return
    if subject.packed is not None:
        yield "packed logits", check_packed_logits(loaded, load_packed(subject.packed), tokens)
    model = _pruned(subject)
    if model is None:
        yield "logits", f"not compared: heads were cut out {_why_none(subject)}"
        return
    yield "logits", check_logits(loaded, hooked_logits(model, subject.values(head_layout(model)), tokens))


def _verify_unpacked(subject: Subject, *, logits: bool, waiting: Waiting | None) -> Iterator[Finding]:
    """That a packed checkpoint gives the bytes that were packed, and every check of that stock checkpoint."""
    yield "stock files", check_stock_only(subject.folder)  # since unpacking leaves behind what is none
    check_packed_weights(subject.folder)
    folder = subject.folder.resolve()
    # Beside it, so that paths to its parents lead there too.
    with scratch_folder(folder.parent, f".{folder.name}{_UNPACKED}", f".*{_UNPACKED}*") as scratch:
        digests = unpack_into(folder, scratch)
        yield "packed", f"{', '.join(digests)}: unpacked with the digests that were packed"
        yield from verify(replace(subject, folder=scratch, packed=folder), logits=logits, waiting=waiting)


def _config_of(folder: Path) -> PretrainedConfig:
    try:
        return read_config(folder)
    except BadInput as error:
        raise Violation(str(error)) from error


def _check_against(stored: dict[str, StoredTensor], subject: Subject, scratch: Path) -> str:
    """Every tensor, or where a method has trained the weights, the zeros that they keep."""
    assert subject.against is not None
    if subject.new_weights == MERGES["zeros-filled"]:
        return "not compared: the adapter was merged into the weights and fills its zeros"
    source = open_source(subject.against, scratch)
    if subject.new_weights is not None:
        return check_zeros_kept(stored, {name: source.stored[name] for name in targeted_weights(source)})
    route = plan_route(source.config, subject.values(source.layout), source.layout)
    return check_against(stored, Reference(source.stored, source.family, source.layout, route))


def _why_none(subject: Subject) -> str:
    """Why there is no pruned model to compare the logits with."""
    if subject.new_weights is not None or "pruned" not in (subject.record or {})["parents"]:
        return "of new weights, which the pruned checkpoint does not have"
    return "and the pruned checkpoint is gone, give --against"


def _pruned(subject: Subject) -> PreTrainedModel | None:
    """The pruned model in float32: the one given, the one made of the folder's own files, or the recorded parent."""
    cpu = torch.device("cpu")
    if subject.against is not None and subject.new_weights is None:
        return load_model(subject.against, torch.float32, cpu)
    if can_be_taken_out(subject.folder):
        return pruned_from_restored(subject.folder)
    assert subject.record is not None
    recorded = subject.record["parents"].get("pruned", {}).get("path")
    parent = subject.folder.resolve() / recorded if recorded else None
    return load_model(parent, torch.float32, cpu) if parent is not None and parent.is_dir() else None

"""`restorelcc.json`: what a restored checkpoint was made from, and a description of every tensor.

Letters: O output features, I input features.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from torch import Tensor

from restorelcc.base.digest import content_of, expect_digest, file_digest, model_digest, referred_content
from restorelcc.base.documents import Form, checked_form, read_json
from restorelcc.base.stock_files import COMPENSATION as COMPENSATION
from restorelcc.base.stock_files import OWN_FOLDER as OWN_FOLDER
from restorelcc.base.stock_files import RECORD as RECORD
from restorelcc.models.shards import raw_bytes
from restorelcc.release.patterns import held_patterns
from restorelcc.sparsity.patterns import densest_group

FORMAT = 1
_DIGEST = re.compile("[0-9a-f]{64}")
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=0)]
_PACKAGES = ("restorelcc", "torch", "transformers", "safetensors")


class _Tensor(Form):
    dtype: str
    shape: list[_Count]
    sha256: _Digest
    zeros: _Count | None = None  # both for weights that pruning targets, neither for others
    patterns: list[Annotated[str, Field(pattern="^[0-9]{1,4}:[0-9]{1,4}$")]] | None = None

    @model_validator(mode="after")
    def _zeros_and_patterns_go_together(self) -> _Tensor:
        if (self.zeros is None) != (self.patterns is None):
            raise ValueError("has one of zeros and patterns without the other")
        return self


class _Parent(Form):
    digest: _Digest
    path: str | None
    content: _Digest | None = None


class _Route(Form):
    cut: bool


class _Sparsity(Form):
    patterns: list[str]


class _Method(Form):
    name: str
    does: str
    weights: Literal["kept", "unchanged", "trained", "merged", "merged, zeros put back"]


class Record(Form):
    """What is read of `restorelcc.json`."""

    format: Literal[1]
    made: list[str]  # names of files that `export` wrote, and that are not the source's
    route: _Route
    sparsity: _Sparsity
    parents: dict[str, _Parent]
    tensors: dict[str, _Tensor]
    files: dict[str, _Digest]
    method: _Method | None = None  # how it was recovered, where a cell of a grid was exported


def read_record(folder: Path) -> dict[str, Any]:
    """The folder's `restorelcc.json`, all of whose keys that are read are there and of their types.

    Raises BadInput for anything else.
    """
    path = folder / RECORD
    content = read_json(path)
    checked_form(content, Record, f"{path} is not a record of `restorelcc export`", "export the checkpoint again")
    return content


@dataclass(frozen=True)
class Parent:
    """Something the checkpoint was made from: where it was, and the digest that it had."""

    path: Path | None  # None: location unknown
    digest: str
    content: str | None = None  # of a reference, the digest of what it refers to (`content_of`)

    def described(self, out: Path) -> dict[str, str | None]:
        """As it stands in the record; the path counts from the exported folder."""
        path = None if self.path is None else os.path.relpath(self.path.resolve(), out.resolve())
        return {"path": path, "digest": self.digest} | ({"content": self.content} if self.content else {})


def tensor_entry(
    value: Tensor, *, targeted: bool, transposed: bool = False, groups: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Digest, shape and dtype; for the weights that pruning targets also zeros and the N:M that they hold.

    transposed: whether targeted weights are stored [inputs, outputs], as GPT-2's are; N:M runs along the inputs.
    groups: M to look for, beside those of `held_patterns`.
    """
    entry: dict[str, Any] = {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
    entry["sha256"] = hashlib.sha256(raw_bytes(value)).hexdigest()
    if targeted:
        entry["zeros"] = int((value == 0).sum())
        entry["patterns"] = held_patterns(value.T if transposed else value, densest_group, groups)
        if transposed:
            entry["transposed"] = True
    return entry


def parents_of(
    pruned: Path,
    compensation: Path | None,
    metadata: dict[str, str],
    ancestors: dict[str, Path],
    recorded: dict[str, str] | None = None,
) -> dict[str, Parent]:
    """The one or two parents, and those before them whose digests they carry, or that were `recorded` elsewhere;
    ancestors: where these lie, as far as known.

    Raises BadInput when an ancestor that is there has another digest than was recorded.
    """
    referred = referred_content(pruned)
    parents = {"pruned": Parent(pruned, model_digest(pruned), referred)}
    if compensation is not None:
        parents["compensation"] = Parent(compensation, file_digest(compensation))
    recorded = dict(recorded or {})
    recorded |= {f"compensation.{key}": value for key, value in metadata.items() if _DIGEST.fullmatch(value)}
    sparsity = pruned / "sparsity.json"
    if sparsity.is_file():
        recorded |= {f"pruned.{key}": value for key, value in read_json(sparsity).get("parents", {}).items()}
    if "compensation.pruned" in recorded:
        trained_for, content = recorded.pop("compensation.pruned"), recorded.pop("compensation.pruned_content", None)
        if content is None or content != (referred or content_of(pruned)):
            what = "the compensation was trained for another pruned model"
            expect_digest(what, trained_for, parents["pruned"].digest)
    contents = {"recovery.pruned": recorded.pop("recovery.pruned_content", None)}
    for name, digest in recorded.items():
        path = ancestors.get(name)
        if path is not None and path.exists():
            expect_digest(f"{path} is not what was recorded as {name}", digest, path_digest(path))
        parents[name] = Parent(path, digest, contents.get(name))
    return parents


def path_digest(path: Path) -> str:
    """Digest of a file, or of a model folder."""
    return model_digest(path) if path.is_dir() else file_digest(path)


def versions() -> dict[str, str]:
    return {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}

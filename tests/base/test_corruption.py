"""A flipped bit, a cut file, a file in another's place: each is a sentence, or changes nothing of what is read."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from restorelcc.activations.store import layer_file, read_layer, read_layout
from restorelcc.base.documents import SCHEMA, read_document, read_json, read_metrics, write_document
from restorelcc.base.errors import BadInput
from restorelcc.base.manifest import MANIFEST, write_manifest
from restorelcc.base.tables import EXAMPLES, HEADS, read_metadata, read_table, write_table
from restorelcc.compensation.compensation import Compensation, Site
from restorelcc.compensation.file import read_compensation, write_compensation
from restorelcc.models.checkpoints import local_folder
from restorelcc.models.heads import HeadLayout
from restorelcc.models.tensors import read_all_tensors
from restorelcc.stages.recover.adapters import with_adapters, write_adapter
from tests import pico
from tests.activations import write_layer
from tests.recovery_project import CELL, recovery_project

FLIPS, CUTS = 200, 20
SHAPE = HeadLayout(layers=2, heads=3, head_dim=4)
DIGESTS = {"model": "m", "text": "t", "checkpoint": "c"}
METRICS = {"schema": SCHEMA, "model": "m", "pruning": None, "head_ratio": None, "measured": "x" * 16} | {
    "tasks": {"t": {"metric": "acc", "value": 0.625, "stderr": 0.01, "n": 8}},
    "mean": 0.625,
    "perplexity": {"corpus": "heldout", "tokens": 100, "value": 12.25},
    "params_total": 1000,
    "sparsity": 0.5,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One artifact of each kind, of a pico model."""
    root = tmp_path_factory.mktemp("artifacts")
    layout = recovery_project(root)
    write_manifest(layout.pruned(CELL))
    roles = {role: torch.randn(9, SHAPE.width) for role in ("question", "positive")}
    (root / "activations").mkdir()
    for layer in range(SHAPE.layers):
        write_layer(root / "activations", layer, list(range(9)), roles, SHAPE, DIGESTS)
    compensation = Compensation(torch.randn(3, 4, 6), {Site(1, "mlp.down_proj"): torch.randn(16)})
    write_compensation(root / "compensation.safetensors", compensation, {"model": "pico", "pruned": "0" * 64})
    write_document(root / "metrics.json", METRICS)
    write_document(root / "training.json", {"heads": [[0, 1]], "runs": [{"train_losses": [0.5, 0.25]}]})
    (root / "recovered").mkdir()
    write_adapter(root / "recovered" / "adapter", with_adapters(pico.pico(), ("q", "v"), 2))
    shutil.copy(layout.heads(CELL), root / "heads.parquet")
    shutil.copy(layout.corpus(CELL) / "train.parquet", root / "train.parquet")
    shutil.copy(layout.components(CELL), root / "components.safetensors")
    shutil.copytree(layout.pruned(CELL), root / "pruned")
    return root


def _values(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: (value.dtype, tuple(value.shape), value.numpy().tobytes()) for name, value in tensors.items()}


def _layer(path: Path) -> Any:
    folder = path.parent
    values = _values({role: read_layer(folder, 1, role, SHAPE) for role in ("question", "positive")})
    return read_layout(folder), values


def _compensation(path: Path) -> Any:
    found, metadata = read_compensation(path)
    sites = {site.tensor_name: value for site, value in found.sites.items()}
    return metadata, _values({"offset": found.offset_LHD} | sites)


def _tensors(path: Path) -> Any:
    tensors, metadata = read_all_tensors(path)
    return metadata, _values(tensors)


def _folder(path: Path) -> Any:
    folder = local_folder(path.parent)
    return {each.name: each.read_bytes() for each in folder.iterdir() if each.name != MANIFEST}


# Kind: (the file that is damaged, below the fixture's folder; how it is read).
KINDS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "table": ("heads.parquet", lambda path: (read_table(path, HEADS), read_metadata(path))),
    "table of texts": ("train.parquet", lambda path: (read_table(path, EXAMPLES), read_metadata(path))),
    "activations": ("activations/layer-001.parquet", _layer),
    "components": ("components.safetensors", _tensors),
    "compensation": ("compensation.safetensors", _compensation),
    "metrics": ("metrics.json", read_metrics),
    "document": ("training.json", read_document),
    "weights": ("pruned/model.safetensors", _folder),
    "config": ("pruned/config.json", _folder),
    "tokenizer": ("pruned/tokenizer.json", _folder),
    "manifest": (f"pruned/{MANIFEST}", _folder),
}


def _is_seen(read: Callable[[Path], Any], path: Path, right: Any) -> bool:
    """Whether damage is refused. Fails where it is taken in silence."""
    try:
        found = read(path)
    except BadInput as error:
        assert "\n" not in str(error)
        return True
    assert found == right, f"other values of {path.name} were taken in silence"
    return False


def _others(name: str) -> Callable[..., list[str]]:
    return lambda _, names: [each for each in names if each != name]


@pytest.mark.parametrize("kind", KINDS)
def test_no_damage_is_taken_in_silence(kind: str, home: Path, tmp_path: Path) -> None:
    name, read = KINDS[kind]
    shutil.copytree((home / name).parent, tmp_path / "x", ignore=None if "/" in name else _others(name))
    path = tmp_path / "x" / Path(name).name
    content, right, rng = path.read_bytes(), read(path), random.Random(kind)
    seen = 0
    for _ in range(FLIPS):
        damaged, bit = bytearray(content), rng.randrange(8 * len(content))
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        seen += _is_seen(read, path, right)
    assert seen > FLIPS // 2, "spaces and what nobody reads may change, but little else"
    for _ in range(CUTS):
        path.write_bytes(content[: rng.randrange(len(content))])
        assert _is_seen(read, path, right) or content[len(path.read_bytes()) :].isspace()
    path.write_bytes(content)
    assert read(path) == right


def test_a_layer_in_anothers_place_is_refused(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "activations", tmp_path / "x")
    shutil.copy(layer_file(tmp_path / "x", 0), layer_file(tmp_path / "x", 1))
    with pytest.raises(BadInput, match="no activations file of layer 1"):
        read_layer(tmp_path / "x", 1, "question", SHAPE)


def test_a_file_in_anothers_place_is_refused(home: Path, tmp_path: Path) -> None:
    for name in ("train", "valid"):
        shutil.copy(home / "train.parquet", tmp_path / f"{name}.parquet")
    shutil.copy(home / "heads.parquet", tmp_path / "heads.parquet")
    write_manifest(tmp_path)
    assert read_table(tmp_path / "train.parquet", EXAMPLES)
    shutil.copy(home / "heads.parquet", tmp_path / "valid.parquet")
    with pytest.raises(BadInput, match=r"valid\.parquet was changed"):
        read_table(tmp_path / "valid.parquet", EXAMPLES)
    write_table(tmp_path / "y" / "train.parquet", [], EXAMPLES, named=True)
    assert read_table(tmp_path / "y" / "train.parquet", EXAMPLES) == []
    (tmp_path / "y" / "train.parquet").rename(tmp_path / "y" / "valid.parquet")
    with pytest.raises(BadInput, match="is the table train, in the place of another"):
        read_table(tmp_path / "y" / "valid.parquet", EXAMPLES)
    with pytest.raises(BadInput, match=r"not the table expected here .the column task is missing"):
        read_table(home / "heads.parquet", EXAMPLES)


def test_an_adapter_has_the_same_bytes_wherever_the_model_lay(home: Path, tmp_path: Path) -> None:
    model = pico.pico()
    model.name_or_path = model.config._name_or_path = str(tmp_path)
    write_adapter(tmp_path / "adapter", with_adapters(model, ("v", "q"), 2))
    found = read_json(tmp_path / "adapter" / "adapter_config.json")
    assert found["target_modules"] == sorted(found["target_modules"])
    assert found["base_model_name_or_path"] is None
    for path in (tmp_path / "adapter").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
    assert (tmp_path / "adapter/adapter_config.json").read_bytes() == (
        home / "recovered/adapter/adapter_config.json"
    ).read_bytes()
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors")

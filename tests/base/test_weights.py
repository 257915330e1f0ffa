"""Which weights a folder means: what the library reads, and a refusal where two models lie in one folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import _get_resolved_checkpoint_files

from restorelcc.base.digest import folder_digests, model_digest
from restorelcc.base.documents import read_json
from restorelcc.base.errors import BadInput
from restorelcc.base.weights import INDEX, WHOLE, weight_files
from restorelcc.models.checkpoints import load_model, save_checkpoint
from restorelcc.models.tensor_files import stored_tensors
from restorelcc.release.folders import copy_other_files
from restorelcc.release.inspect.inspection import inspect_checkpoint
from restorelcc.sparsity.streaming import copy_checkpoint
from restorelcc.stages.evaluate.cost import file_bytes
from tests import pico

CPU = torch.device("cpu")
FIRST = "model.embed_tokens.weight"


def sharded(folder: Path) -> Path:
    """A pico Llama in shards with an index."""
    pico.pico().save_pretrained(folder, max_shard_size="8KB")
    pico.word_tokenizer().save_pretrained(folder)
    assert not (folder / WHOLE).exists()
    return folder


def whole(folder: Path, seed: int = 0) -> Path:
    """A pico Llama in one file."""
    save_checkpoint(folder, pico.pico(seed=seed), pico.word_tokenizer())
    return folder


def with_whole(folder: Path) -> Path:
    """Shards with an index, and the whole of another model beside them, as a re-sharded download leaves it."""
    shutil.copy(whole(folder.parent / f"{folder.name}-stale", seed=1) / WHOLE, sharded(folder) / WHOLE)
    return folder


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(read_json(path) | changes))


def named_in_config(folder: Path) -> Path:
    """config.json names the file; another lies under the usual name."""
    save_file(load_file(whole(folder) / WHOLE), folder / "best.safetensors", {"format": "pt"})
    stored_tensors(folder)[FIRST].overwrite(torch.zeros(pico.VOCABULARY, pico.WIDTH))
    edit(folder / "config.json", transformers_weights="best.safetensors")
    return folder


def index_named_in_config(folder: Path) -> Path:
    sharded(folder)
    (folder / INDEX).rename(folder / "ours.safetensors.index.json")
    edit(folder / "config.json", transformers_weights="ours.safetensors.index.json")
    return folder


def with_consolidated(folder: Path) -> Path:
    """The makers' own file beside the library's, as Mistral ships it."""
    shutil.copy(whole(folder) / WHOLE, folder / "consolidated.safetensors")
    return folder


def index_of_the_whole(folder: Path) -> Path:
    names = load_file(whole(folder) / WHOLE)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, WHOLE)}))
    return folder


READ = (whole, sharded, named_in_config, index_named_in_config, with_consolidated, index_of_the_whole)


@pytest.mark.parametrize("make", READ, ids=lambda make: make.__name__)
def test_the_files_are_those_that_the_library_reads(make: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    found, _ = _get_resolved_checkpoint_files(
        pretrained_model_name_or_path=str(folder),
        variant=None,
        gguf_file=None,
        use_safetensors=True,
        user_agent=None,
        is_remote_code=False,
        transformers_explicit_filename=read_json(folder / "config.json").get("transformers_weights"),
    )
    assert found is not None
    assert [str(path) for path in weight_files(folder)] == sorted(found)
    expected = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True).state_dict()
    stored = stored_tensors(folder)
    assert set(stored) == set(expected)
    assert all(torch.equal(tensor.read(), expected[name]) for name, tensor in stored.items())
    copy_checkpoint(folder, tmp_path / "copy")
    copied = load_model(tmp_path / "copy", torch.float32, CPU).state_dict()
    assert all(torch.equal(copied[name], value) for name, value in expected.items())
    assert file_bytes(folder) == sum(path.stat().st_size for path in weight_files(folder))
    copy_other_files(folder, tmp_path / "others")
    assert not list((tmp_path / "others").glob("*.safetensors*")), "weights that nobody reads are not carried along"


def leftover_shards(folder: Path) -> None:
    shutil.copy(whole(folder) / WHOLE, folder / "model-00001-of-00002.safetensors")


def index_without_its_files(folder: Path) -> None:
    with_whole(folder)
    for path in folder.glob("model-*.safetensors"):
        path.unlink()


def shard_gone(folder: Path) -> None:
    sorted(sharded(folder).glob("model-*.safetensors"))[0].unlink()


def shards_of_another_index(folder: Path) -> None:
    for path in sorted(sharded(folder).glob("model-*.safetensors")):
        path.rename(folder / path.name.replace("-of-0000", "-of-0001"))


def without_an_index(folder: Path) -> None:
    (sharded(folder) / INDEX).unlink()


def in_an_index(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        placed = read_json(sharded(folder) / INDEX)["weight_map"] | {FIRST: name}
        edit(folder / INDEX, weight_map=placed)
        (folder.parent / "outside.safetensors").touch()

    return make


def in_config(name: object) -> Callable[[Path], None]:
    return lambda folder: edit(whole(folder) / "config.json", transformers_weights=name)


def beside(name: str) -> Callable[[Path], None]:
    return lambda folder: (whole(folder) / name).write_text("{}")


def pickle_only(folder: Path) -> None:
    (whole(folder) / WHOLE).rename(folder / "pytorch_model.bin")


def empty_index(folder: Path) -> None:
    sharded(folder)
    (folder / INDEX).write_text("[]")


REFUSED = {
    "both": (with_whole, r"two models, model\.safetensors and the one of \S*\.index\.json \(model-00001"),
    "index without its files": (index_without_its_files, r"two models, model\.safetensors and the one of .*index"),
    "leftover shards": (leftover_shards, r"two models, model\.safetensors and shards .*model-00001-of-00002"),
    "a shard is gone": (shard_gone, r"model-00001-of-\d+\.safetensors is missing, though .*index\.json names it"),
    "shards of another": (shards_of_another_index, r"is missing.*other weights are there: model-00001-of-0001"),
    "no index": (without_an_index, r"model-00001-of-\S+, model-00002\S* and \d+ more, but neither"),
    "index up": (in_an_index("../outside.safetensors"), r"names '\.\./outside\.safetensors': .*own folder"),
    "index absolute": (in_an_index("/tmp/outside.safetensors"), "from the model's own folder"),
    "index pickle": (in_an_index("pytorch_model.bin"), r"'pytorch_model\.bin', which is not a \.safetensors file"),
    "empty index": (empty_index, "has no weight_map|where an object is expected"),
    "config up": (in_config("../outside.safetensors"), "transformers_weights in config.json names"),
    "config pickle": (in_config("adapter_model.bin"), r"is 'adapter_model\.bin', neither a \.safetensors file"),
    "config gone": (in_config("best.safetensors"), r"best\.safetensors is missing, though transformers_weights"),
    "config number": (in_config(3), r"is 3, neither a \.safetensors file"),
    "adapter": (beside("adapter_config.json"), r"holds adapter_config\.json.*merge it"),
    "pickle": (pickle_only, r"holds its weights as pytorch_model\.bin, a pickle, which is never loaded"),
}
READERS: dict[str, Callable[[Path], object]] = {
    "load_model": lambda folder: load_model(folder, torch.float32, CPU),
    "inspect": inspect_checkpoint,
    "model_digest": model_digest,
    "folder_digests": lambda folder: folder_digests(folder, None),
    "copy_checkpoint": lambda folder: copy_checkpoint(folder, folder.parent / "copy"),
    "stored_tensors": stored_tensors,
}


@pytest.mark.parametrize("case", REFUSED)
def test_every_reader_refuses_in_the_same_words(case: str, tmp_path: Path) -> None:
    make, message = REFUSED[case]
    make(tmp_path / "model")
    said = set()
    for name, read in READERS.items():
        with pytest.raises(BadInput, match=message) as caught:
            read(tmp_path / "model")
        assert "\n" not in str(caught.value), name
        said.add(str(caught.value))
    assert len(said) == 1

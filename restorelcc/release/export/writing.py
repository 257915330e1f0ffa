"""The files of a restored checkpoint: weights, config, generation config, tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from restorelcc.base.documents import read_json, write_json
from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.base.progress import notice, progress
from restorelcc.base.stock_files import (
    CODE,
    GENERATION,
    PICKLES,
    PROCESSOR_FILES,
    TOKENIZER_CONFIG,
    has_tokenizer,
    tokenizer_files,
)
from restorelcc.models.architectures import prunable_linears
from restorelcc.models.biases import config_document, former_rope_keys
from restorelcc.models.checkpoints import copy_generation, load_model, load_tokenizer, local_folder, tokenizer_folder
from restorelcc.models.shards import write_shards
from restorelcc.models.tensor_files import stored_tensors
from restorelcc.release.export.folding import planned_tensors
from restorelcc.release.export.source import Source, main_dtype
from restorelcc.release.provenance import tensor_entry
from restorelcc.release.routes import Route
from restorelcc.release.slicing import sliced
from restorelcc.sparsity.kept import widest
from restorelcc.sparsity.streaming import empty_model

Entries = dict[str, dict[str, Any]]
_LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


def write_weights(folder: Path, source: Source, route: Route, max_shard_bytes: int, groups: tuple[int, ...]) -> Entries:
    """Write config.json and the safetensors files; returns what every tensor is. groups: as `tensor_entry` has it.

    Raises StageFailed when the class of the config does not have exactly the biases that were written.
    """
    write_json(folder / "config.json", _config_document(source, route))
    targeted = targeted_weights(source)
    planned = planned_tensors(source, route)
    written = write_shards(folder, planned, max_shard_bytes)
    turned = source.family.transposed
    entries = {
        tensor.name: tensor_entry(value, targeted=tensor.name in targeted, transposed=turned, groups=groups)
        for tensor, value in progress(written, "export", "tensors", total=len(planned))
    }
    _check_class_has(folder)
    return {name: entries[name] for name in sorted(entries)}


def targeted_weights(source: Source) -> set[str]:
    """Names of the weights that pruning targets."""
    return {f"{name}.weight" for _, name, _ in prunable_linears(source.network)}


def _check_class_has(folder: Path) -> None:
    """Raises StageFailed unless the written config's class has exactly the biases on its blocks that were written."""
    network, stored = empty_model(folder, torch.float32), stored_tensors(folder)
    for _, name, linear in prunable_linears(network):
        if (linear.bias is not None) != (f"{name}.bias" in stored):
            raise StageFailed(
                f"{type(network).__name__} and the written checkpoint disagree about {name}.bias: this is an error of "
                "the program, nothing was written"
            )


def _config_document(source: Source, route: Route) -> dict[str, Any]:
    """config.json: the source's own, with what the route changes."""
    document = config_document(read_json(source.folder / "config.json", tagged=True), source.config, route.config)
    document.setdefault("architectures", [type(source.network).__name__])
    return document


def check_has_tokenizer(source: Source) -> None:
    """Raises BadInput for a source without a tokenizer, before its weights are written."""
    if not any(map(has_tokenizer, _places(source))):
        raise BadInput(f"{source.given} has no tokenizer: put the dense model's tokenizer files into its folder")


def _places(source: Source) -> tuple[Path, Path, Path]:
    """Where a source's companions lie. The last may be the dense model's; a converted one has only the tokenizer."""
    return source.folder, local_folder(source.given, weights=False), tokenizer_folder(source.given)


def write_companions(folder: Path, source: Source) -> list[str]:
    """Tokenizer, generation config and licence files; returns the names of files that were made here, not copied."""
    given = local_folder(source.given, weights=False)
    made, places = list[str](), _places(source)
    names = {name for place in places for name in tokenizer_files(place)}
    for name in sorted({*names, *map(Path, (*PROCESSOR_FILES, GENERATION))}):
        if found := next((place / name for place in places if (place / name).is_file()), None):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(found, folder / name)
    copy_generation(source.given, folder)  # which may be lent to it
    for pattern in _LICENCES:
        for path in sorted(given.glob(pattern)):
            for each in [path] if path.is_file() else sorted(path.rglob("*")):  # LICENSES/ is a folder of them
                if each.is_file() and each.suffix.lower() not in (*PICKLES, *CODE):
                    (folder / each.relative_to(given)).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(each, folder / each.relative_to(given))
    made += _keep_tokens(folder, source)
    if not (folder / "generation_config.json").is_file():
        GenerationConfig.from_model_config(source.config).save_pretrained(folder)
        made.append("generation_config.json")
    return made


def _keep_tokens(folder: Path, source: Source) -> list[str]:
    """Text must become the same tokens as before: some tokenizer classes are chosen by the model's class, which a
    relabelled checkpoint changes. Its tokenizer.json is then loaded as it stands; if that does not help, it is said.
    Returns the names of files that were not there."""
    before = load_tokenizer(source.folder if has_tokenizer(source.folder) else source.given)
    if _same_tokens(before, load_tokenizer(folder)):
        return []
    path = folder / TOKENIZER_CONFIG
    own = path.read_bytes() if path.is_file() else None
    write_json(path, (read_json(path) if own else {}) | {"tokenizer_class": "PreTrainedTokenizerFast"})
    if _same_tokens(before, load_tokenizer(folder)):
        return [] if own else [path.name]
    path.write_bytes(own) if own else path.unlink()
    notice("export", f"loaded from the written folder the tokenizer splits text differently than from {source.given}")
    return []


def _same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    known = one.decode(list(range(min(64, len(one)))))
    texts = [known, "The capital of France is Paris, isn't it?", "1,234.5\n\tdef f(x): return x", "naïve café 漢字"]
    return all(one(text)["input_ids"] == other(text)["input_ids"] for text in texts)


def cut_out(whole: Path, folder: Path, max_shard_bytes: int) -> Entries:
    """Write the checkpoint in `whole` without its removed heads and channels; returns what every tensor is.

    Raises BadInput when nothing can be cut out, or when the class cannot express the result.
    """
    stored = stored_tensors(whole)
    smaller = sliced(load_model(whole, widest(stored), torch.device("cpu")))
    for name, part in smaller.named_parameters():  # norms may be wider than the rest
        part.data = part.data.to(stored[name].dtype if name in stored else main_dtype(stored))
    smaller.config.dtype = main_dtype(stored)
    smaller.save_pretrained(folder, max_shard_size=max_shard_bytes)
    config = read_json(folder / "config.json", tagged=True)
    write_json(folder / "config.json", config | former_rope_keys(config))
    targeted = {f"{name}.weight" for _, name, _ in prunable_linears(smaller)}
    return {
        name: tensor_entry(stored.read(), targeted=name in targeted)
        for name, stored in sorted(stored_tensors(folder).items())
    }

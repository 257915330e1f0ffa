"""Stock Hugging Face checkpoints: safetensors only, no remote code, saved and loaded in one way.

A model folder holds either a checkpoint or `model_ref.json`, which points to one (a folder, or a hub id at a commit).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from restorelcc.base.digest import REFERENCE
from restorelcc.base.documents import read_json
from restorelcc.base.errors import BadInput
from restorelcc.base.manifest import check_folder, write_manifest
from restorelcc.base.model_entry import ModelEntry
from restorelcc.base.packages import gguf_file
from restorelcc.base.progress import process_count
from restorelcc.base.publish import Scratch
from restorelcc.base.stock_files import GENERATION, PROCESSOR_FILES, has_tokenizer, tokenizer_files
from restorelcc.models.checkpoint_check import loaded_config, refused, wrong_keys
from restorelcc.models.gguf import write_converted
from restorelcc.models.references import local_folder as local_folder
from restorelcc.models.references import pinned_source
from restorelcc.models.references import write_reference as write_reference
from restorelcc.models.runtime import pick_device, pick_dtype
from restorelcc.models.text import check_special_tokens, context_length
from restorelcc.models.tokenizers import without_length_warning

disable_progress_bar()  # of loading and writing weights; the stages show bars of their own


@dataclass(frozen=True)
class Spread:
    """How a model is spread over devices: accelerate's device_map, the most that each may take, and where on disk the
    rest goes (`offload`, a folder for scratch files; None: it is refused)."""

    device_map: str
    max_memory: dict[int | str, str]
    offload: Path | None = None


def spread_of(entry: ModelEntry, offload: Path | None = None) -> Spread | None:
    """The spread that an entry of `models` asks for; None for a model that is whole on one device."""
    if entry.device_map is None:
        return None
    limits = {int(name) if name.isdecimal() else name: size for name, size in entry.max_memory.items()}
    return Spread(entry.device_map, limits, offload)


def load_entry(folder: Path, entry: ModelEntry, *, offload: Path | None = None) -> PreTrainedModel:
    """`load_model` in the dtype and on the devices of an entry of `models`; of several processes each has one device.

    offload: where weights that fit on no device are stored; without it all have to fit.
    """
    device = pick_device(entry.device)
    spread = spread_of(entry, offload) if process_count() == 1 else None
    return load_model(folder, pick_dtype(entry.dtype, device), device, spread=spread)


def load_model(
    folder: Path, dtype: torch.dtype, device: torch.device, *, spread: Spread | None = None
) -> PreTrainedModel:
    """The model in evaluation mode, all weights frozen, on `device` or spread over several. Where its checkpoint has no
    generation config, it has the one that lies beside the reference to it.

    Raises BadInput for a missing or incomplete checkpoint, and for a spread that does not hold the model.
    """
    source = local_folder(folder)
    placement, scratch = _placement(spread)
    with refused("model", source):
        # Typed by hand: with output_loading_info the method returns a pair, which its annotation does not say.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=loaded_config(source),
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **placement,
        )
    model, report = loaded
    if wrong := wrong_keys(model.config, report):
        raise BadInput(f"the checkpoint in {source} has {wrong[0]}: {wrong[1][:3]}")
    model = model.eval().requires_grad_(False)
    if (generation := _generation_file(folder, source)) is not None and generation.parent != source:
        model.generation_config = GenerationConfig.from_dict(read_json(generation))  # its own is there already
    if spread is None:
        return model.to(device)
    _check_spread(model, spread)
    model._offload_scratch = scratch  # goes with the model
    return model


def _placement(spread: Spread | None) -> tuple[dict[str, Any], Scratch | None]:
    if spread is None:
        return {}, None
    placement: dict[str, Any] = {"device_map": spread.device_map}
    if spread.max_memory:
        placement["max_memory"] = spread.max_memory
    scratch = None
    if spread.offload is not None:
        scratch = Scratch(spread.offload, "offload")
        placement["offload_folder"] = scratch.name
    return placement, scratch


def _check_spread(model: PreTrainedModel, spread: Spread) -> None:
    """Raises BadInput when weights are in main memory or on disk where they may not be, or the embeddings are (inputs
    have to go to where they are)."""
    absent = [name for name, parameter in model.named_parameters() if parameter.device.type == "meta"]
    if absent and spread.offload is None:
        raise BadInput(
            f"the model does not fit on the devices within models.<name>.max_memory ({absent[0]} is left "
            "over), but this stage needs all its weights on them: raise max_memory, use more devices, or start several "
            "processes that share the weights (docs/models.md)"
        )
    if model.get_input_embeddings().weight.device.type == "meta":
        raise BadInput(
            "models.<name>.max_memory leaves no room for the embeddings, the first thing to be placed: raise the first "
            "device's share above their size"
        )


def write_source(folder: Path, key: str, source: str, revision: str | None, root: Path) -> None:
    """Write a model folder for what `source` names: a reference, or of a GGUF file the checkpoint it converts to.

    What is missing in the hub's cache is downloaded. Raises BadInput and StageFailed as `pinned_source`, naming `key`.
    """
    file = gguf_file(f"{key}.source", source, root)
    if file is not None:
        write_converted(file, folder)
        write_manifest(folder)
        return
    write_reference(folder, pinned_source(key, source, revision, root))
    local_folder(folder, key)  # what is missing in the hub's cache comes now, before hours of work wait for it


def tokenizer_folder(folder: Path) -> Path:
    """Where a model's tokenizer is: beside the reference to a checkpoint that has none, or with the model's files."""
    if (folder / REFERENCE).is_file() and has_tokenizer(folder):
        check_folder(folder)
        return folder
    return local_folder(folder, weights=False)


def lend_tokenizer(lender: Path, folder: Path) -> list[str]:
    """Copy a model's tokenizer and chat template beside the reference to a checkpoint without a tokenizer. Returns the
    names of the files; none where the checkpoint has a tokenizer."""
    own, source = local_folder(folder, weights=False), tokenizer_folder(lender)
    if has_tokenizer(own) or not has_tokenizer(source):
        return []
    names = tokenizer_files(source)
    _copy(names, source, folder)
    return list(map(str, names))


def lend_generation(lender: Path, folder: Path) -> bool:
    """Copy a model's generation config beside the reference to a checkpoint without one, so that both end texts alike.
    Returns whether there was one to copy, and need to."""
    if not (local_folder(folder, weights=False) / GENERATION).is_file():
        copy_generation(lender, folder)
    return (folder / GENERATION).is_file()


# What decides how a model writes greedily, with the values that change nothing (transformers' own).
_WRITING: dict[str, Any] = {
    **{"eos_token_id": [], "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0},
    **{"num_beams": 1, "encoder_repetition_penalty": 1.0, "penalty_alpha": None, "guidance_scale": None},
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias"), None),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "max_new_tokens", "stop_strings"), None),
}


def writing_settings(folder: Path) -> dict[str, Any]:
    """How a model writes, by its generation config, its own or the one lent to it, or else by its config.json."""
    source = local_folder(folder, weights=False)
    if (file := _generation_file(folder, source)) is not None:
        config = GenerationConfig.from_dict(read_json(file))
    else:
        config = GenerationConfig.from_model_config(loaded_config(source))
    found = {name: getattr(config, name, None) for name in _WRITING}
    settings = {name: _WRITING[name] if value is None else value for name, value in found.items()}
    ends = settings["eos_token_id"]
    return settings | {"eos_token_id": sorted(ends) if isinstance(ends, list | tuple) else [ends]}


def write_tokenizer(source: Path, folder: Path) -> None:
    """Copy a model's own tokenizer and chat templates into a checkpoint that was made from it; where it has none of the
    files that are known, they are what its class writes."""
    files = tokenizer_folder(source)
    if has_tokenizer(files):
        _copy(tokenizer_files(files), files, folder)
    else:
        load_tokenizer(source, padded=False).save_pretrained(folder)


def copy_generation(source: Path, folder: Path) -> None:
    """Copy a model's generation config, its own or the one lent to it, into a checkpoint that was made from it."""
    found = _generation_file(source, local_folder(source, weights=False))
    if found is not None:
        shutil.copyfile(found, folder / GENERATION)


def _generation_file(folder: Path, source: Path) -> Path | None:
    """The generation config of a model folder whose files are in `source`: theirs, or else the one that the dense model
    has lent (`lend_generation`); None for neither."""
    if (source / GENERATION).is_file():
        return source / GENERATION
    if not (folder / GENERATION).is_file():
        return None
    check_folder(folder)
    return folder / GENERATION


def _copy(names: list[Path], source: Path, folder: Path) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, folder / name)


def copy_processors(source: Path, folder: Path) -> None:
    """Copy what makes pictures and sound the input of a model that sees or hears."""
    for name in PROCESSOR_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def load_tokenizer(folder: Path, *, padded: bool = True) -> PreTrainedTokenizerBase:
    """The model's tokenizer; padded: padding uses its end token where it has no padding token, so do not write it."""
    files, lent = local_folder(folder, weights=False), tokenizer_folder(folder)
    config = loaded_config(files) if (files / "config.json").is_file() else None
    own: dict[str, Any] = {} if lent == files else {"config": config}  # a class may be chosen by the model's
    with refused("tokenizer", files):
        tokenizer = without_length_warning(AutoTokenizer.from_pretrained(lent, trust_remote_code=False, **own))
    if padded and tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if config is not None:
        check_special_tokens(tokenizer, config.get_text_config(), str(files))
    return tokenizer


def context_of(folder: Path, max_tokens: int) -> int:
    """How long a sequence the model may read: max_tokens, or its own context where that is shorter."""
    return context_length(loaded_config(local_folder(folder, weights=False)), max_tokens)


def save_checkpoint(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """A stock checkpoint: sharded safetensors, config, generation config, tokenizer."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

"""Can this checkpoint be used, and is it harmless? Told from its config and the headers of its weights alone, before a
weight is read: fields of config.json, sizes against headers, links, code, kernels, pointers of git-lfs.

Everything that opens a checkpoint goes through `local_folder` (references.py), which calls `check_checkpoint`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restorelcc.base.documents import read_json
from restorelcc.base.errors import BadInput, StageFailed, first_line, is_disk_full, one_line
from restorelcc.base.names import check_links, inside
from restorelcc.base.stock_files import CONFIGS, TOKENIZER_FILES, check_stock
from restorelcc.base.weights import weights_of
from restorelcc.models.config_check import AGAIN, check_config, is_whole
from restorelcc.models.config_facts import (
    family_of_config,
    ffn_width_of_config,
    kv_heads_of_config,
    layout_of_config,
    text_config,
)
from restorelcc.models.families import FAMILIES
from restorelcc.models.family import Family
from restorelcc.models.plain_config import PlainConfig
from restorelcc.models.tensor_bytes import FLOATING, TensorBytes, tensor_bytes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_LFS = b"version https://git-lfs"
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|embed_in|wte|word_embeddings)\.weight")
_BEYOND = 0.001  # share of a vocabulary that may lie beyond the embedding: marks of images, which no text yields


@contextmanager
def refused(what: str, source: Path) -> Iterator[None]:
    """Whatever a library makes of a checkpoint that it cannot use ends in BadInput: "no <what> can be loaded from ...".
    Our own errors, a full disk and a lack of memory pass through."""
    try:
        yield
    except (BadInput, StageFailed, MemoryError):
        raise
    except Exception as error:
        if is_disk_full(error) or type(error).__name__ == "OutOfMemoryError":  # torch's
            raise
        reason = f"{type(error).__name__}: " if isinstance(error, LookupError | AttributeError | TypeError) else ""
        said = one_line(" ".join(str(error).split())[:300] or first_line(error))
        raise BadInput(f"no {what} can be loaded from {source}: {reason}{said}; {AGAIN}") from error


def loaded_config(source: Path) -> PretrainedConfig:
    """A checkpoint's config as its class has it, without the mark of a compression that left plain weights.

    Raises BadInput as `check_beside`, and for what the class does not take.
    """
    check_beside(source)
    if source.is_dir() and not (source / "config.json").is_file():
        raise BadInput(f"{source} has no config.json: give the folder of a checkpoint")
    from transformers import AutoConfig

    with refused("config", source):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config  # check_beside has refused all but plain ones
    return config


def plain_config(source: Path) -> Any:
    """The same without its class where config.json says enough (`PlainConfig`), so that nothing heavy is imported.

    Raises BadInput as `check_beside`. What the class would refuse in fields that nobody asks for passes.
    """
    check_beside(source)
    values = read_json(source / "config.json", tagged=True) if (source / "config.json").is_file() else {}
    if values.get("model_type") not in FAMILIES:
        return loaded_config(source)
    return PlainConfig(values["model_type"], values, lambda: loaded_config(source))


def wrong_keys(config: Any, report: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    """The first kind of fault in transformers' report on loading a model ("missing keys"), with the names, sorted; None
    where there is none. Masks that an older class stored (Family.is_mask) are passed over: no class reads them now.

    config: the model's; report: what output_loading_info gives.
    """
    family = family_of_config(config)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(map(str, report.get(kind) or ()))
        if kind == "unexpected_keys":
            names = [name for name in names if not family.is_mask(name)]
        if names:
            return kind.replace("_", " "), names
    return None


def check_checkpoint(folder: Path, *, by_class: bool = True) -> None:
    """Raises BadInput, in one sentence, for a checkpoint folder that cannot be used or that asks for code.

    by_class: whether the class of its config has to take it, which needs transformers and torch.
    """
    check_beside(folder)
    stamps = sorted(
        (path.name, stat.st_size, stat.st_mtime_ns)
        for path in folder.iterdir()
        if path.is_file() and (stat := path.stat())
    )
    _check_once(folder, tuple(stamps), by_class)


def check_beside(folder: Path) -> None:
    """`check_checkpoint` without the weights and the tokenizer's content: links, config, code, kernels."""
    check_links(folder)
    for name in ("config.json", *TOKENIZER_FILES):
        check_whole(folder / name)
    for name in CONFIGS:
        if (folder / name).is_file():
            read_json(folder / name, tagged=name == "config.json")
    check_stock(folder)
    if (folder / "config.json").is_file():
        check_config(folder / "config.json", read_json(folder / "config.json", tagged=True))


def check_whole(path: Path) -> None:
    """Raises BadInput for a file that stands in for the one meant: empty, a pointer of git-lfs, a page of the web."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(_LFS):
        raise BadInput(f"{path} is a pointer of git-lfs, not the file itself: run `git lfs pull` in its folder")
    if not start:
        raise BadInput(f"{path} is empty: the download was cut off, {AGAIN}")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise BadInput(f"{path} is a page of the web, not the file itself: {AGAIN}, with a login where it needs one")


@lru_cache(maxsize=16)
def _check_once(folder: Path, _stamps: tuple[tuple[str, int, int], ...], by_class: bool) -> None:
    """What is in the files; their sizes and times say whether it was looked at before."""
    config = loaded_config(folder) if by_class else plain_config(folder)
    family = family_of_config(config)
    with refused("model", folder):
        for name in weights_of(folder).names:
            check_whole(inside(folder, name, str(folder)))
        stored = tensor_bytes(folder)
    _check_shapes(folder, config, family, stored)
    _check_token_ids(folder, int(text_config(config).vocab_size))


def _check_shapes(folder: Path, config: Any, family: Family, stored: Mapping[str, TensorBytes]) -> None:
    """That the tensors of the blocks and the embedding have the sizes that config.json says, in as many layers.

    Checkpoints of older layouts, whose tensors go by other names, are for the class that loads them to judge.
    """
    shapes, found = _expected(config, family), set()
    text = text_config(config)
    block = re.compile(rf"(?:^|\.){re.escape(family.blocks.rpartition('.')[2])}\.(\d{{1,6}})\.(.+)\.weight")
    for name, tensor in stored.items():
        if text is not config and "language_model" not in name:
            continue  # of the part that sees
        wanted = None
        if match := block.search(name):
            found.add(int(match[1]))
            wanted = shapes.get(match[2])
            wanted = wanted[::-1] if wanted and family.transposed else wanted
        elif _EMBEDDING.search(name):
            wanted = (text.vocab_size, getattr(text, "word_embed_proj_dim", None) or text.hidden_size)
        if wanted is not None and tensor.shape != wanted:
            raise BadInput(
                f"{tensor.file} holds {one_line(name)} with shape {tensor.shape}, its config.json says {wanted}: the "
                f"checkpoint is damaged, {AGAIN}"
            )
        if wanted is not None and tensor.code not in FLOATING:
            held = f"{tensor.file} holds {one_line(name)} as torch.{tensor.dtype}"
            raise BadInput(f"{held}: give the original, not quantized")
    if found and found - _further_layers(text, found) != set(range(text.num_hidden_layers)):
        raise BadInput(
            f"{folder} holds {len(found)} layers, the last is number {max(found)}, counted from 0; its config.json "
            f"says {text.num_hidden_layers} (num_hidden_layers): {AGAIN}"
        )


def _further_layers(text: Any, found: set[int]) -> set[int]:
    """Those that predict further tokens (GLM-4.5, DeepSeek-V3): they stand behind the others, and no class has them."""
    if max(found) < text.num_hidden_layers:
        return set()
    further = getattr(text, "num_nextn_predict_layers", None) or 0
    return set(range(text.num_hidden_layers, text.num_hidden_layers + further))


def _expected(config: Any, family: Family) -> dict[str, tuple[int, int]]:
    """Shape of the weight of the linears of a block that a config tells in the same way for all of a family."""
    width, heads, channels = text_config(config).hidden_size, layout_of_config(config), ffn_width_of_config(config)
    keys = kv_heads_of_config(config) * heads.head_dim
    if family.partial:  # what else they have depends on the layer
        return {family.out_proj: (width, heads.width)}
    shapes = {family.out_proj: (width, heads.width), family.ffn_out: (width, channels)}
    shapes |= dict.fromkeys(family.ffn_in, (channels * (2 if family.fused_ffn else 1), width))
    if family.qkv_rows == "separate":
        return shapes | dict(zip(family.qkv, ((heads.width, width), *[(keys, width)] * 2), strict=True))
    if family.qkv_rows in ("heads", "parts"):
        return shapes | {family.qkv[0]: (heads.width + 2 * keys, width)}
    return shapes


def _check_token_ids(folder: Path, rows: int) -> None:
    """Raises BadInput for a tokenizer whose tokens have no row in the embedding, so that using one ends in an error."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    content = read_json(path)
    added, model = content.get("added_tokens"), content.get("model")
    ids: dict[str, int] = {}
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        ids |= {token: number for token, number in vocabulary.items() if is_whole(number)}
    elif isinstance(vocabulary, list):
        ids |= {str(entry[0]): number for number, entry in enumerate(vocabulary) if isinstance(entry, list) and entry}
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, dict) and is_whole(entry.get("id")):
            ids[str(entry.get("content"))] = entry["id"]
    beyond = {token: number for token, number in ids.items() if number >= rows}
    used = [token for token in beyond if token in _used_tokens(folder)]
    if used or len(beyond) > _BEYOND * rows:
        token = used[0] if used else next(iter(beyond))
        raise BadInput(
            f"{path} gives {one_line(token)!r:.60} the number {beyond[token]}, and the embedding has {rows} rows "
            "(vocab_size), counted from 0: give the tokenizer that belongs to the model, or a model whose embedding "
            "was enlarged with it"
        )


def _used_tokens(folder: Path) -> set[str]:
    """The tokens that begin, end and fill sequences."""
    found = set()
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        content = read_json(folder / name) if (folder / name).is_file() else {}
        for key in ("pad_token", "bos_token", "eos_token", "unk_token"):
            value = content.get(key)
            found.add(str(value.get("content")) if isinstance(value, dict) else str(value))
    return found

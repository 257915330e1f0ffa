"""What a checkpoint folder may contain: weights as safetensors, JSON, a tokenizer; no pickle, no code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from restorelcc.base.documents import read_json
from restorelcc.base.errors import BadInput

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".msgpack", ".dill")
CODE = (".py", ".pyc", ".so", ".pyd", ".dll")
# The first file of each line makes a tokenizer; the others belong to it.
TOKENIZER_CORES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt")
TOKENIZER_FILES = (
    *TOKENIZER_CORES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
# All names that tokenizer classes and the library itself read, those of older formats too; .dvcignore has them as well.
_TOKENIZER_PATTERNS = (
    *("tokenizer*.json", "vocab*.json", "merges*.json", "chat_template*.json", "special_tokens_map*.json"),
    *("added_tokens*.json", "tekken*.json", "merges.txt", "vocab.txt", "tokenizer.model*", "*.model", "*.tiktoken"),
    "*.jinja",
)
TEMPLATES = "additional_chat_templates"  # subfolder with chat templates beside the first
# Of a model that sees or hears: how its input is made from pictures and sound.
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
OWN_FOLDER = "restorelcc"  # subfolder with the compensation, and the data needed to take it out again
RECORD = "restorelcc.json"  # of an export
COMPENSATION, ORIGINAL = "compensation.safetensors", "original.json"  # in it
GENERATION, TOKENIZER_CONFIG = "generation_config.json", "tokenizer_config.json"
CONFIGS = ("config.json", TOKENIZER_CONFIG, GENERATION)
_CODE_KEYS = ("auto_map", "custom_pipelines")  # keys of a config that name classes to be run from files


def foreign_files(folder: Path) -> list[str]:
    """Files in the folder (at any depth) that must not be there: pickles, programs; relative paths, sorted."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(folder)) for path in files if path.suffix.lower() in (*PICKLES, *CODE))


def remote_code(folder: Path) -> str | None:
    """The first config that names code of its own to be run on loading (auto_map), at any depth; None for none."""
    for name in CONFIGS:
        if (folder / name).is_file() and _names_code(read_json(folder / name, tagged=name == "config.json")):
            return name
    return None


def _names_code(content: Any) -> bool:
    if isinstance(content, list):
        return any(map(_names_code, content))
    if not isinstance(content, dict):
        return False
    return any(content.get(key) for key in _CODE_KEYS) or any(map(_names_code, content.values()))


def is_of_the_tokenizer(name: Path) -> bool:
    """Whether a file of a checkpoint, by its path in it, is one that text becomes tokens by: the tokenizer, what
    belongs to it, a chat template."""
    if name.parts[:-1] == (TEMPLATES,):
        return True
    return len(name.parts) == 1 and any(name.match(pattern) for pattern in _TOKENIZER_PATTERNS)


def tokenizer_files(folder: Path) -> list[Path]:
    """Paths, in the folder, of all that text becomes tokens by, the tokenizer first; no pickle, no program."""
    there = (*folder.glob("*"), *(folder / TEMPLATES).glob("*"))
    names = [path.relative_to(folder) for path in there if path.is_file()]
    names.sort(key=lambda name: (str(name) not in TOKENIZER_CORES, name))
    return [name for name in names if is_of_the_tokenizer(name) and name.suffix.lower() not in (*PICKLES, *CODE)]


def has_tokenizer(folder: Path) -> bool:
    """Whether a file is there that makes a tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZER_CORES)


def check_stock(folder: Path) -> None:
    """Raises BadInput when a checkpoint to be read needs code of its own."""
    found = remote_code(folder)
    if found is not None:
        raise BadInput(
            f"{folder / found} asks for custom code (auto_map), which is never run here: give a checkpoint of a "
            "class that transformers has, or remove auto_map if it is one already"
        )

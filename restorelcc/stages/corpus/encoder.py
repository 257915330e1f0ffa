"""A sentence encoder, if there is one: sentence-transformers with a model that is already here."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import snapshot_download

from restorelcc.base.documents import parse_json, read_text
from restorelcc.base.errors import BadInput, first_line
from restorelcc.base.names import check_links, inside
from restorelcc.base.stock_files import check_stock
from restorelcc.base.weights import weights_of

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"  # the paper's
AUTO = "auto"
_FILES = ["*.json", "*.txt", "*.safetensors", "*.model"]  # never weights in a pickle

Encode = Callable[[list[str]], np.ndarray]


def find_encoder(setting: str | None, root: Path) -> tuple[Encode | None, str]:
    """(encode, its name) for corpus.encoder, or (None, why TF-IDF is used).

    None asks for TF-IDF; `auto` takes the paper's encoder when sentence-transformers is installed and the model is in
    the hub's cache, and TF-IDF otherwise; a folder or hub id must be there. Raises BadInput when it is not.
    """
    if setting is None:
        return None, "corpus.encoder is null"
    if find_spec("sentence_transformers") is None:
        if setting == AUTO:
            return None, "sentence-transformers is not installed"
        raise BadInput(
            f"corpus.encoder is {setting!r}, but sentence-transformers is not installed: install the extra "
            "`encoder`, or set corpus.encoder to null for TF-IDF"
        )
    try:
        folder, name = _folder(setting, root)
        check_encoder(folder)
    except BadInput:
        if setting == AUTO:
            return None, f"{DEFAULT_ENCODER} is not in the hub's cache"
        raise
    from sentence_transformers import SentenceTransformer  # takes seconds: only where it is used

    try:
        model = SentenceTransformer(
            str(folder),
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"corpus.encoder: {folder} cannot be loaded ({first_line(error)})") from error

    def encode(texts: list[str]) -> np.ndarray:
        return model.encode(texts, batch_size=64, normalize_embeddings=True, show_progress_bar=False)

    return encode, name


def check_encoder(folder: Path) -> None:
    """Raises BadInput for an encoder that asks for code of its own, which the library runs from a folder unasked, or
    that holds links that lead elsewhere."""
    check_links(folder)
    for part in [folder, *(path for path in folder.iterdir() if path.is_dir())]:
        check_stock(part)
    if not (folder / "modules.json").is_file():
        return
    path = folder / "modules.json"
    modules: Any = parse_json(read_text(path), str(path), list)
    for module in modules if isinstance(modules, list) else [modules]:
        kind = module.get("type") if isinstance(module, dict) else module
        if not isinstance(kind, str) or not kind.startswith("sentence_transformers."):
            raise BadInput(
                f"corpus.encoder: {folder / 'modules.json'} names {kind!r:.80}, code of its own, which is never run "
                "here: give an encoder of the library's own modules"
            )
        inside(folder, module.get("path") or "0", f"corpus.encoder: {folder / 'modules.json'}", nested=True)


def _folder(setting: str, root: Path) -> tuple[Path, str]:
    local = root / Path(setting).expanduser()
    if setting != AUTO and local.is_dir():
        if not list(local.rglob("*.safetensors")):
            raise BadInput(f"corpus.encoder: {local} holds no .safetensors file, the only weights read here")
        for module in {path.parent for path in local.rglob("*.safetensors")}:
            weights_of(module)  # each is loaded like a model: two of them in one folder are refused
        return local, setting
    source = DEFAULT_ENCODER if setting == AUTO else setting
    try:
        found = Path(snapshot_download(source, allow_patterns=_FILES, local_files_only=setting == AUTO))
    except (OSError, ValueError) as error:
        raise BadInput(
            f"corpus.encoder is {setting!r}, neither a folder nor a model the hub gives ({type(error).__name__}): "
            "correct it, or set it to null for TF-IDF"
        ) from error
    if not list(found.rglob("*.safetensors")):
        raise BadInput(f"corpus.encoder: {source} has no .safetensors file, the only weights read here")
    return found, f"{source}@{found.name}"

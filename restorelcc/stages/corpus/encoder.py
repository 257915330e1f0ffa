"""A sentence encoder, if there is one: sentence-transformers with a model that is already here."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from huggingface_hub import snapshot_download

from restorelcc.base.errors import BadInput, first_line
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
    except BadInput:
        if setting == AUTO:
            return None, f"{DEFAULT_ENCODER} is not in the hub's cache"
        raise
    from sentence_transformers import SentenceTransformer  # takes seconds: only where it is used

    try:
        model = SentenceTransformer(
            str(folder), device="cpu", local_files_only=True, model_kwargs={"use_safetensors": True}
        )
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"corpus.encoder: {folder} cannot be loaded ({first_line(error)})") from error

    def encode(texts: list[str]) -> np.ndarray:
        return model.encode(texts, batch_size=64, normalize_embeddings=True, show_progress_bar=False)

    return encode, name


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

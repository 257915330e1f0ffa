"""The tokenizer of a model that params.yaml names, and how long its context is, without the model's weights."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.packages import gguf_file
from restorelcc.base.stock_files import is_of_the_tokenizer
from restorelcc.models.architectures import family_of_config, text_config
from restorelcc.models.checkpoint_check import check_beside, loaded_config, refused
from restorelcc.models.gguf import beside_weights
from restorelcc.models.hub import Repository, fetch_beside, resolved_commit
from restorelcc.models.references import local_source


def source_tokenizer(key: str, source: str, revision: str | None, root: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, of a GGUF file or of a hub id.

    Raises BadInput when there is none, StageFailed as the hub does.
    """
    folder = _folder(key, source, revision, root)
    check_beside(folder)
    absent = f"{source} has no tokenizer: put the model's own files (such as tokenizer.json) beside its weights"
    if not any(is_of_the_tokenizer(Path(path.name)) for path in folder.iterdir()):
        raise BadInput(absent)
    with refused("tokenizer", folder):
        tokenizer = without_length_warning(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # some classes come empty where their files are missing
        raise BadInput(absent)
    return tokenizer


def without_length_warning(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The same tokenizer without warnings about texts beyond the model's context: the caller cuts them."""
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def source_config(key: str, source: str, revision: str | None, root: Path) -> PretrainedConfig:
    """The config of the text model, found like its tokenizer. Raises BadInput for a family that is not supported."""
    config = loaded_config(_folder(key, source, revision, root))
    family_of_config(config)
    return text_config(config)


def _folder(key: str, source: str, revision: str | None, root: Path) -> Path:
    file = gguf_file(f"{key}.source", source, root)
    if file is not None:
        return beside_weights(file, Layout(root).work)
    folder = local_source(source, root)
    if folder is not None:
        return folder
    repository = Repository(key, source)
    return fetch_beside(repository, resolved_commit(repository, revision))

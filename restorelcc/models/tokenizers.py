"""The tokenizer of a model that params.yaml names, and how long its context is, without the model's weights."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from restorelcc.base.errors import BadInput, first_line
from restorelcc.models.hub import Repository, fetch_beside, resolved_commit
from restorelcc.models.references import local_source


def source_tokenizer(key: str, source: str, revision: str | None, root: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder or of a hub id. Raises BadInput when there is none, StageFailed as the hub does."""
    try:
        return without_length_warning(AutoTokenizer.from_pretrained(_folder(key, source, revision, root)))
    except (OSError, ValueError) as error:
        raise BadInput(f"{key}: no tokenizer can be loaded from {source}: {first_line(error)}") from error


def without_length_warning(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The same tokenizer without warnings about texts beyond the model's context: the caller cuts them."""
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def source_config(key: str, source: str, revision: str | None, root: Path) -> PretrainedConfig:
    """The config of the text model, found like its tokenizer."""
    try:
        return AutoConfig.from_pretrained(_folder(key, source, revision, root)).get_text_config()
    except (OSError, ValueError) as error:
        raise BadInput(f"{key}: no config can be loaded from {source}: {first_line(error)}") from error


def _folder(key: str, source: str, revision: str | None, root: Path) -> Path:
    folder = local_source(source, root)
    if folder is not None:
        return folder
    repository = Repository(key, source)
    return fetch_beside(repository, resolved_commit(repository, revision))

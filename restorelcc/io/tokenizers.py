"""The tokenizer of a model that params.yaml names, and how long its context is, without the model's weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from restorelcc.core.errors import BadInput
from restorelcc.io.hub import Repository, fetch_beside, resolved_commit
from restorelcc.io.references import local_source


@dataclass(frozen=True)
class SourceText:
    """What turns a model's text into tokens, and the config that says how many it takes."""

    tokenizer: PreTrainedTokenizerBase
    config: PretrainedConfig


def source_text(key: str, source: str, revision: str | None, root: Path) -> SourceText:
    """Tokenizer and text config in a folder or of a hub id. Raises BadInput when there is none, StageFailed as the
    hub does."""
    folder = local_source(source, root)
    if folder is None:
        repository = Repository(key, source)
        folder = fetch_beside(repository, resolved_commit(repository, revision))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise BadInput(f"{key}: no tokenizer can be loaded from {source}: {str(error).splitlines()[0]}") from error
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise BadInput(f"{key}: no config can be loaded from {source}: {str(error).splitlines()[0]}") from error
    return SourceText(tokenizer, config.get_text_config())

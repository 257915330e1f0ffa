"""The tokenizer of a model that params.yaml names, without the model's weights."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from restorelcc.core.errors import BadInput
from restorelcc.io.hub import Repository, fetch_beside, resolved_commit
from restorelcc.io.references import local_source


def source_tokenizer(key: str, source: str, revision: str | None, root: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder or of a hub id. Raises BadInput when there is none, StageFailed as the hub does."""
    folder = local_source(source, root)
    if folder is None:
        repository = Repository(key, source)
        folder = fetch_beside(repository, resolved_commit(repository, revision))
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise BadInput(f"{key}: no tokenizer can be loaded from {source}: {str(error).splitlines()[0]}") from error

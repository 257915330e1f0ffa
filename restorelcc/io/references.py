"""What a source in params.yaml - a folder or a hub id - refers to, pinned."""

from __future__ import annotations

from pathlib import Path

from restorelcc.core.errors import BadInput
from restorelcc.io.digest import files_digest
from restorelcc.io.tensor_files import weight_files


def pinned_source(key: str, source: str, revision: str | None, root: Path) -> tuple[str, str]:
    """(folder, digest of its weights and config) or (hub id, commit). Raises BadInput naming the params key."""
    local = root / Path(source).expanduser()
    if local.is_dir():
        return str(local), files_digest([*weight_files(local), local / "config.json"])
    from huggingface_hub import HfApi  # only hub ids need the hub client
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return source, str(HfApi().model_info(source, revision=revision).sha)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        raise BadInput(
            f"{key}: source {source!r} is neither a folder nor a model the hub gives ({type(error).__name__}): check "
            "the path, the id, the network and your access"
        ) from error

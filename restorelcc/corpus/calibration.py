"""Calibration texts as an artifact: where they came from and their digest stand in the table itself."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from restorelcc.core.errors import BadInput
from restorelcc.core.model_entry import DataFiles
from restorelcc.corpus.config import CorpusConfig
from restorelcc.corpus.hub import hub_data, stream_texts
from restorelcc.corpus.local import texts
from restorelcc.io.tables import write_texts

KEY = "models.<name>.data.calibration"


def calibration_texts(
    data: DataFiles, config: CorpusConfig, root: Path, rng: random.Random
) -> tuple[list[str], dict[str, str]]:
    """(texts, origin) of a user's model: a random choice from a local file, or the first ones of a hub dataset."""
    origin = hub_data(KEY, data.calibration)
    if origin is None:
        path = root / data.calibration
        return texts(path, config.calibration, rng, data.columns.get("text", "text")), {"source": data.calibration}
    found, revision = stream_texts(KEY, origin, config.calibration, config.hub_characters, data.template)
    if not found:
        raise BadInput(f"{KEY}: the dataset {origin} holds no text: name another")
    return found, {"source": f"hub:{origin}"} | ({"revision": revision} if revision else {})


def write_calibration(path: Path, found: list[str], origin: dict[str, str]) -> None:
    """One row per text; metadata: source, revision where it has one, and the SHA-256 of the texts."""
    digest = hashlib.sha256("\0".join(found).encode()).hexdigest()
    write_texts(path, found, origin | {"digest": digest})

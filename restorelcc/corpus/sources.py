"""Where the data of a user's model come from: local files or datasets of the hub, each with what is recorded of it."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

from restorelcc.core.errors import BadInput
from restorelcc.core.model_entry import DataFiles
from restorelcc.corpus.adapters import Example, examples
from restorelcc.corpus.config import CorpusConfig
from restorelcc.corpus.hub import HELDOUT, hub_data, hub_texts, open_rows, pages
from restorelcc.corpus.local import read_rows, texts

Origin = dict[str, str]  # source, and of a hub dataset its revision


def pairs(data: DataFiles, count: int, rng: random.Random, root: Path) -> tuple[list[Example], Origin]:
    """`count` examples in an order drawn from rng: a choice from a local file, or the first ones of a hub dataset."""
    key = "models.<name>.data.instructions"
    origin = hub_data(key, data.instructions)
    if origin is None:
        path = root / data.instructions
        found = list(examples(read_rows(path), data, f"data file {path}"))
        return rng.sample(found, min(count, len(found))), {"source": data.instructions}
    opened = open_rows(key, origin)
    found = list(islice(examples(opened.rows, data, f"{key}: the dataset {origin}"), count))
    return rng.sample(found, len(found)), _recorded(str(origin), opened.commit)


def heldout_texts(data: DataFiles, config: CorpusConfig, root: Path, rng: random.Random) -> tuple[list[str], Origin]:
    """Texts for perplexity: those of a local file, or of a hub dataset; of WikiText its pages, as they stand."""
    key = "models.<name>.data.heldout"
    origin = hub_data(key, data.heldout, HELDOUT)
    if origin is None:
        found = texts(root / data.heldout, None, rng, data.columns.get("text", "text"))
        return found[: config.heldout], {"source": data.heldout}
    opened = open_rows(key, origin)
    if origin.dataset.lower().endswith("wikitext"):
        lines = pages(str(row["text"]) for row in opened.rows)
    else:
        lines = filter(None, (text.strip() for text in hub_texts(opened, key, data.template)))
    found = list(islice(lines, config.heldout))
    if not found:
        raise BadInput(f"{key}: the dataset {origin} holds no text: name another")
    return found, _recorded(str(origin), opened.commit)


def _recorded(origin: str, commit: str | None) -> Origin:
    return {"source": f"hub:{origin}"} | ({"revision": commit} if commit else {})

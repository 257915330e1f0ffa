"""Licences of the datasets that a corpus is made of: recorded with it, and said once in a project."""

from __future__ import annotations

import contextlib
from pathlib import Path

from restorelcc.base.documents import read_json, write_json
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.messages import chosen, say
from restorelcc.base.publish import scratch_folder
from restorelcc.models.hub import Repository, licence_of
from restorelcc.stages.corpus.hub_rows import named_dataset

# What the datasets by name are under where their card cannot be asked.
_KNOWN = {"tatsu-lab/alpaca": "cc-by-nc-4.0", "allenai/c4": "odc-by", "Salesforce/wikitext": "cc-by-sa-3.0, gfdl"}
_NOTES = {"nc": "no commercial use", "nd": "no derivatives"}


def with_licences(origins: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """The same records, those of hub datasets with the licence that the dataset's card declares."""
    found = {}
    for role, origin in origins.items():
        dataset = named_dataset(role, origin["source"])
        if dataset is not None and "revision" in origin:
            declared = licence_of(Repository(f"data.{role}", dataset.dataset, "dataset"), origin["revision"])
            found[role] = origin | {"licence": declared or _KNOWN.get(dataset.dataset, "not declared")}
        else:
            found[role] = origin
    return found


def announce(origins: dict[str, dict[str, str]], layout: Layout) -> None:
    """Say the licence of every dataset that was not said before in this project; with `-q` it is still to be said."""
    if chosen("quiet"):
        return
    said_file = layout.work / "licences.json"
    said = _said(said_file)
    for origin in origins.values():
        licence = origin.get("licence")
        if licence is None or said.get(origin["source"]) == licence:
            continue
        notes = [note for mark, note in _NOTES.items() if mark in licence.lower().split("-")]
        mark = f" ({', '.join(notes)})" if notes else ""
        say(f"data licence: {origin['source'].removeprefix('hub:')} is under {licence}{mark}", stage="corpus")
        said[origin["source"]] = licence
        with contextlib.suppress(OSError), scratch_folder(layout.work) as scratch:  # else it is said once more
            write_json(scratch / said_file.name, said)
            (scratch / said_file.name).replace(said_file)


def _said(file: Path) -> dict[str, str]:
    """What was said; of a file that was cut off, nothing."""
    try:
        return read_json(file) if file.is_file() else {}
    except BadInput:
        return {}

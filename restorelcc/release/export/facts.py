"""Facts for the model card about the base model and the measurements, if they can be found."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from restorelcc.base.cell import Cell
from restorelcc.base.digest import REFERENCE, file_digest, model_digest, referred_folder
from restorelcc.base.documents import parse_yaml, read_document, read_metrics, read_text
from restorelcc.base.errors import BadInput
from restorelcc.base.fingerprint import check_measured_alike
from restorelcc.base.layout import Layout
from restorelcc.base.progress import notice
from restorelcc.compensation.file import ADAPTER, COMPENSATION, DOCUMENT, MODEL, adapter_digest
from restorelcc.release.export.card import CardFacts

_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")  # which a path of two parts may be too


def file_facts(
    pruned: Path, dense: Path | None = None, *, base_model: str | None = None, licence: str | None = None
) -> CardFacts:
    """Base model and licence: as given, or else as the dense or the pruned model's folder knows them.

    The base model is the dense one, which its own card does not name: that has what the dense one was made from. Where
    the dense one is a folder, it is the pruned one's hub id, or what its card names, unless that is a path or a folder
    here.
    """
    known = ((dense, True), (pruned, False))
    found = [_of_folder(folder, dense=is_dense) for folder, is_dense in known if folder is not None and folder.is_dir()]
    return CardFacts(
        base_model=base_model or next((base for base, _ in found if base), None),
        licence=licence or next((text for _, text in found if text), None),
    )


def cell_facts(
    cell: Cell,
    layout: Layout,
    *,
    base_model: str | None = None,
    licence: str | None = None,
    variant: str | None = None,
) -> CardFacts:
    """As file_facts, with the metrics of the dense, pruned and restored model where they have been measured.

    Metrics that are not of the files that are there now are left out, and a line says so. variant: of an adapter, how
    it is merged, where that was measured too.

    Raises BadInput, naming what differs, where they were measured in different ways.
    """
    base = file_facts(layout.pruned(cell), layout.dense(cell), base_model=base_model, licence=licence)
    found = _measured(cell, layout)
    if variant is not None and "restored" in found:
        found["restored"] = found["restored"].get("variants", {}).get(variant)
    if found.get("restored") is not None and len(found) < 3:  # a share of what is not known
        found["restored"] = {name: value for name, value in found["restored"].items() if name != "recovered"}
    return CardFacts(
        base_model=base.base_model,
        licence=base.licence,
        dense=found.get("dense"),
        pruned=found.get("pruned"),
        restored=found.get("restored"),
    )


def _measured(cell: Cell, layout: Layout) -> dict[str, dict[str, Any]]:
    """The metrics of the dense, pruned and restored model, of those that were measured on the files that are there now;
    none where the restored model's were not, for without it there is nothing to compare."""
    cells = {"dense": Cell(cell.model), "pruned": Cell(cell.model, cell.pruning), "restored": cell}
    there = {name: each for name, each in cells.items() if layout.metrics(each).is_file()}
    if "restored" not in there:
        return {}
    own = [name for name, each in there.items() if _measured_on(each, layout) == _artifacts(name, cell, layout)]
    if left_out := [name for name in there if name not in own]:
        stages = " ".join(there[name].evaluation for name in left_out)
        notice(
            "export",
            f"the model card leaves out the numbers of the {' and '.join(left_out)} model, which are not known to be "
            f"of the exported files: evaluate again (`dvc repro {stages}`, or `restore --heldout`), then export again",
        )
    if "restored" not in own:
        return {}
    found = {name: read_metrics(layout.metrics(there[name])) for name in own}
    measured = {cells[name]: str(metrics["measured"]) for name, metrics in found.items()}
    first, *others = measured
    check_measured_alike(first, others, measured, layout)
    return found


def _measured_on(cell: Cell, layout: Layout) -> dict[str, str] | None:
    """Digests of what a cell's metrics were measured on, as the details beside them have them."""
    path = layout.details(cell)
    digests: dict[str, str] | None = read_document(path).get("digests") if path.is_file() else None
    return digests


def _artifacts(name: str, cell: Cell, layout: Layout) -> dict[str, str | None]:
    """Digests of what is there now of a cell's dense, pruned or restored model, by the names that details have."""
    pruned = layout.pruned(cell)
    if name == "dense":
        return {"model": _dense_digest(cell, layout)}
    if name == "pruned":
        return {"model": model_digest(pruned)}
    if cell.recovery is None:
        return {"model": model_digest(pruned), "compensation": file_digest(layout.compensation(cell))}
    folder = layout.recovered(cell)
    kind = read_document(folder / DOCUMENT)["kind"]
    found: dict[str, str | None] = {"model": model_digest(folder / MODEL if kind == "checkpoint" else pruned)}
    if (folder / COMPENSATION).is_file():
        found["compensation"] = file_digest(folder / COMPENSATION)
    return found | ({"adapter": adapter_digest(folder / ADAPTER)} if kind == "adapter" else {})


def _dense_digest(cell: Cell, layout: Layout) -> str | None:
    """Of the dense model, or, where it is not there any more, what the pruned model recorded of it."""
    if layout.dense(cell).is_dir():
        return model_digest(layout.dense(cell))
    parents: dict[str, str] = read_document(layout.pruned(cell) / "sparsity.json").get("parents", {})
    return parents.get("dense")


def cell_ancestors(cell: Cell, layout: Layout) -> dict[str, Path]:
    """Where to find the artifacts that a cell's compensation and pruned model name as their parents."""
    tables = {name: layout.corpus(cell) / name for name in ("train.parquet", "valid.parquet")}
    known = {
        "compensation.components": layout.components(cell),
        "compensation.ranking": layout.heads(cell),
        "compensation.dense": layout.dense(cell),
        "compensation.contrast.parquet": layout.corpus(cell) / "contrast.parquet",
        "pruned.dense": layout.dense(cell),
        "pruned.calibration": layout.corpus(cell) / "calibration.parquet",
    } | {f"compensation.{name}": path for name, path in tables.items()}
    if cell.recovery is not None:
        own = {"pruned": layout.pruned(cell), "dense": layout.dense(cell), "components": layout.components(cell)}
        known |= {f"recovery.{name}": path for name, path in (tables | own).items()}
        known["recovery.calibration.parquet"] = layout.corpus(cell) / "calibration.parquet"
        known["compensation.calibration.parquet"] = known["recovery.calibration.parquet"]
    return known


def _of_folder(folder: Path, *, dense: bool) -> tuple[str | None, str | None]:
    """(base model, licence) from the folder's model card, or from the hub's when the folder refers to a hub id.

    dense: whether the base model is what lies there, which has no name on the hub where it is a folder.
    """
    if (folder / REFERENCE).is_file():
        local = referred_folder(folder)
        if local is not None:
            return _of_folder(local, dense=dense) if local.is_dir() else (None, None)
        source = read_document(folder / REFERENCE)["source"]
        return source, _hub_licence(source)
    card = _front_matter(folder / "README.md")
    base = card.get("base_model")
    named = not dense and isinstance(base, str) and _HUB_ID.fullmatch(base) and not _is_here(base, folder)
    return base if named else None, _in_words(card.get("license"))


def _is_here(name: str, folder: Path) -> bool:
    """Whether what the card of a model's folder names is a folder in it, beside it, or under the current one."""
    return any((place / name).is_dir() for place in (folder, folder.absolute().parent, Path.cwd()))


def _front_matter(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        parts = read_text(path).split("---\n", 2)
        if len(parts) < 3 or parts[0].strip():
            return {}
        found = parse_yaml(parts[1], str(path))
    except BadInput:
        return {}  # a card that cannot be read says nothing
    return found if isinstance(found, dict) else {}


def _hub_licence(model: str) -> str | None:
    """The licence that the hub's card names; None when the hub cannot be asked, since a card can do without."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        card = HfApi().model_info(model).card_data
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, httpx2.HTTPError, OSError):
        return None
    return _in_words(card.get("license")) if card is not None else None


def _in_words(licence: Any) -> str | None:
    """A licence of a card, which may be a list of several."""
    several = licence if isinstance(licence, list) else [licence]
    return ", ".join(str(each) for each in several if each) or None

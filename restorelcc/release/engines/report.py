"""Whether engines will load a checkpoint, read its biases, and gain from its zeros."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from restorelcc.base.errors import BadInput, StageFailed
from restorelcc.models.checkpoint_check import plain_config
from restorelcc.models.config_facts import family_of_config
from restorelcc.models.family import Family
from restorelcc.models.references import local_folder
from restorelcc.models.tensor_bytes import TensorBytes, tensor_bytes
from restorelcc.release.engines.table import ENGINES, TRANSFORMERS, Engine, Verdict
from restorelcc.release.inspect.inspection import biases_of

_WORST: tuple[Verdict, ...] = ("refused", "dropped", "unknown", "read")


@dataclass(frozen=True)
class EngineReport:
    """One engine: `loads` and `bias` in words, where that is known from, and what zeros do."""

    engine: str
    installed: str | None
    loads: str
    bias: str
    zeros: str
    source: str
    tried: str | None


def engine_report(folder: Path, *, load: bool = False) -> dict[str, Any]:
    """One entry per engine, JSON-ready. Raises BadInput for a folder that holds no checkpoint of a known family.

    load: also load the checkpoint with the transformers installed here, which takes the memory of the whole model;
    without it the table and the headers of the files are read, and the biases.

    No speed is claimed: this only says what the engine's code does with zeros.
    """
    source = local_folder(folder, by_class=load)
    config = plain_config(source)
    kind, family = config.model_type, family_of_config(config)
    biased = biased_parts(family, tensor_bytes(source))
    reports = [_report(engine, kind, biased, source, load) for engine in ENGINES]
    return {
        "folder": str(folder),
        "model_type": kind,
        "biases": sorted(part for part, found in biased.items() if found),
        "engines": [asdict(report) for report in reports],
    }


def biased_parts(family: Family, stored: dict[str, TensorBytes]) -> dict[str, bool]:
    """Which of q/k/v, out-projection and FFN have a bias that is not zero throughout."""
    paths = {"qkv": family.qkv, "out": (family.out_proj,), "ffn": family.ffn}
    return {
        part: any(bool(tensor.nonzero().any()) for path in linears for tensor in biases_of(path, family, stored))
        for part, linears in paths.items()
    }


def _report(engine: Engine, kind: str, biased: dict[str, bool], folder: Path, load: bool) -> EngineReport:
    row = engine.rows.get(kind)
    parts = [part for part, found in biased.items() if found]
    verdicts: dict[str, Verdict] = {part: getattr(row, part) if row else "unknown" for part in parts}
    found = set(verdicts.values())
    worst: Verdict = next((verdict for verdict in _WORST if verdict in found), "read")
    installed = _installed(engine.package)
    tried = None
    if installed and engine is TRANSFORMERS:
        tried = _try_transformers(folder) if load else "not tried: --try loads the checkpoint with it"
    elif installed:
        tried = "installed, but not tried here: run it on the folder before relying on this"
    loads = "unknown: its source for this family was not read" if row is None else "yes"
    if worst == "refused":
        loads = "no: it has no place for these biases, or does not know the family"
    words = _bias_words(verdicts, worst)
    return EngineReport(engine.name, installed, loads, words, _zeros(engine), _source(engine, kind), tried)


def _bias_words(verdicts: dict[str, Verdict], worst: Verdict) -> str:
    if not verdicts:
        return "there is none to read"
    names = {"qkv": "q/k/v", "out": "out-projection", "ffn": "FFN"}
    if worst == "read":
        return "read"
    told = [f"{names[part]}: {verdict}" for part, verdict in verdicts.items()]
    warning = "; it would compute without the compensation, silently" if worst == "dropped" else ""
    return ", ".join(told) + warning


def _zeros(engine: Engine) -> str:
    return f"no gain: {engine.zeros}; N:M: {engine.patterns}"


def _source(engine: Engine, kind: str) -> str:
    row = engine.rows.get(kind)
    return row.source if row else "-"


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _try_transformers(folder: Path) -> str:
    """Load the checkpoint with the transformers installed here; missing or unexpected keys are told."""
    import torch

    from restorelcc.models.checkpoints import load_model

    try:
        model = load_model(folder, torch.float32, torch.device("cpu"))
    except (BadInput, StageFailed) as error:
        return str(error)
    return f"loads as {type(model).__name__} with every tensor read"

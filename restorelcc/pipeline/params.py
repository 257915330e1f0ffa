"""params.yaml as one typed object: every key checked, every message one sentence that names the key and the fix."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from restorelcc.base.cell import AUTO, Cell, check_alias, check_name, ratio_label
from restorelcc.base.errors import BadInput
from restorelcc.base.model_entry import (
    BUDGETS,
    PRESETS,
    TASK_FORMS,
    ModelEntry,
    over,
    value_at,
)
from restorelcc.base.prunings import EXTERNAL, parse_pruning
from restorelcc.base.recoveries import check_recovery
from restorelcc.base.section import Section, sentence, unknown
from restorelcc.pipeline.one_run import settings_of_this_run
from restorelcc.pipeline.overrides import put_over
from restorelcc.pipeline.params_file import read_params
from restorelcc.pipeline.renamed import with_new_names
from restorelcc.stages.capture import CaptureConfig
from restorelcc.stages.compensate import CompensateConfig
from restorelcc.stages.corpus import CorpusConfig
from restorelcc.stages.dense import DenseConfig
from restorelcc.stages.evaluate import EvaluateConfig
from restorelcc.stages.extract import ExtractConfig
from restorelcc.stages.inputs import Named
from restorelcc.stages.probe import ProbeConfig
from restorelcc.stages.prune import PruneConfig, check_allocation
from restorelcc.stages.recover import RecoverConfig
from restorelcc.stages.report import ReportConfig
from restorelcc.stages.speed import SpeedConfig

_NUMBER = re.compile(r"[0-9]{0,4}\.?[0-9]{1,20}([eE][-+]?[0-9]{1,3})?")


def _ratio(value: Any) -> Any:
    """Refuses in one sentence of its own what is none of the forms; pydantic would name the first of them alone."""
    if value != AUTO and not isinstance(value, int | float):
        raise ValueError(f"a number belongs here, the share of heads, for example 0.25; or {AUTO}")
    return value


HeadRatio = Annotated[int | float | Literal["auto"], BeforeValidator(_ratio)]


class Grid(Section):
    """The axes that dvc.yaml multiplies out."""

    model: tuple[str, ...] = Field(min_length=1)
    pruning: tuple[str, ...] = Field(min_length=1)
    head_ratio: tuple[HeadRatio, ...]
    recovery: tuple[str, ...] = ()
    speed: tuple[HeadRatio, ...] = ()  # of head_ratio, those whose restored model is timed


class Params(Section):
    """One section per stage folder, the models catalogue and the grid."""

    grid: Grid
    models: dict[str, ModelEntry] = Field(min_length=1)
    corpus: CorpusConfig
    dense: DenseConfig
    prune: PruneConfig
    capture: CaptureConfig
    extract: ExtractConfig
    probe: ProbeConfig
    compensate: CompensateConfig
    recover: RecoverConfig
    evaluate: EvaluateConfig
    speed: SpeedConfig = SpeedConfig()
    report: ReportConfig

    def cell(self, model: str | None, pruning: str | None, head_ratio: str | None, recovery: str | None = None) -> Cell:
        """A validated cell of names given on the command line. Raises BadInput for a model not in the catalogue."""
        if model not in self.models:
            raise BadInput(unknown("--model", model, self.models, "add it to `models` in params.yaml"))
        _check_lengths(self, str(model))
        if pruning is not None:
            _check_external(self, str(model), pruning)
            check_allocation(parse_pruning(pruning), self.section(str(model), "prune"))
        if recovery is not None:
            return Cell(model, pruning, recovery=check_recovery("--recovery", recovery))
        return Cell(model, pruning, None if head_ratio is None else self._ratio_label(head_ratio))

    def section(self, alias: str, name: str) -> Any:
        """A section of params.yaml as it holds for one model: with what the model's entry puts over it.

        Raises BadInput for a key or value of the entry that the section does not take.
        """
        section, changes = getattr(self, name), self.models[alias].section_changes(name)
        if not changes:
            return section
        try:
            return type(section).model_validate(over(section.model_dump(), changes))
        except ValidationError as error:
            raise BadInput(sentence(error, type(section), ("models", alias, "settings", name), TASK_FORMS)) from error

    def named(self, alias: str) -> Named:
        """What the file says of a model that names files: what the stage `inputs` lays out."""
        own = self.section(alias, "prune").external.get(alias, {})
        return Named(
            entry=self.models[alias],
            encoder=self.section(alias, "corpus").encoder,
            datasets=self.section(alias, "evaluate").datasets,
            prunings=self.grid.pruning,
            external={f"{EXTERNAL}-{name}": checkpoint.source for name, checkpoint in own.items()},
        )

    def _ratio_label(self, text: str) -> str:
        if text == AUTO:
            return AUTO
        if not _NUMBER.fullmatch(text):
            raise BadInput(f"--head-ratio {text[:80]!r} is not a number: give the share of heads, for example 0.10")
        value = float(text)
        # The grid's own spelling (1 or 1.0) is what DVC puts into paths.
        same = [ratio for ratio in self.grid.head_ratio if ratio != AUTO and float(ratio) == value]
        return ratio_label(same[0] if same else value)


def load_params(path: Path, overrides: tuple[str, ...] = ()) -> Params:
    """Read, override (`section.key=value`) and check the whole file. Raises BadInput with one sentence."""
    return checked(read_params(path), (*settings_of_this_run(), *overrides))


def checked(raw: dict[str, Any], overrides: tuple[str, ...] = ()) -> Params:
    """The content of a file, overridden in place, as an object. Raises BadInput with one sentence."""
    with_new_names(raw)
    put_over(raw, overrides)
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        raise BadInput(sentence(error, Params, tags=TASK_FORMS)) from error
    _check_grid(params)
    return params


def _name_of_source(entry: ModelEntry, key: tuple[str, ...]) -> str | None:
    """`budget quick`, `preset package`: what gave an entry this setting; None where it has a value of its own."""
    for kind, named, known in (("budget", entry.budget, BUDGETS), ("preset", entry.preset, PRESETS)):
        value = value_at(known.get(named or "", {}).get("settings"), key)
        if value is not None:
            return f"{kind} {named}" if value == value_at(entry.settings, key) else None
    return None


def hidden_changes(params: Params) -> list[str]:
    """A sentence for every key of a section that is not at its default and does not count for a model of the grid,
    since the model's entry has another value for it."""
    sentences = []
    for alias in params.grid.model:
        for name in sorted(set(type(params).model_fields) - {"grid", "models", "report"}):
            section = getattr(params, name)
            changes = params.models[alias].section_changes(name)
            own, default = params.section(alias, name).model_dump(mode="json"), type(section)().model_dump(mode="json")
            for key, given in _leaves(section.model_dump(mode="json"), changes):
                if given not in (value_at(default, key), value_at(own, key)):
                    said = f"{'.'.join((name, *key))} is {given} and does not count for {alias}, whose"
                    source = _name_of_source(params.models[alias], (name, *key))
                    where = f"entry in `models` has {value_at(own, key)}: change it there"
                    if source is not None:
                        path = ".".join(("models", alias, "settings", name, *key))
                        where = f"{source} has {value_at(own, key)}: give {path} instead"
                    sentences.append(f"{said} {where}")
    return sentences


def _leaves(values: Any, changes: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(key, value) of everything in `values` that `changes` has a value for."""
    for name, change in changes.items():
        value = values.get(name) if isinstance(values, dict) else None
        if isinstance(change, dict) and isinstance(value, dict):
            yield from _leaves(value, change, (*above, name))
        else:
            yield (*above, name), value


def _check_external(params: Params, model: str, pruning: str) -> None:
    """A pruning's name, and that an external one is in the catalogue. Raises BadInput."""
    name = parse_pruning(pruning).external
    if name is not None and name not in params.prune.external.get(model, {}):
        raise BadInput(
            f"grid.pruning has {pruning!r}, but params.yaml has no prune.external.{model}.{name}: add it, with the "
            "folder or hub id of the pruned checkpoint as its source"
        )


def _check_settings(params: Params, alias: str) -> None:
    """Every section that a model's settings change, with the changes. Raises BadInput."""
    known = set(type(params).model_fields) - {"grid", "models", "report"}
    for name in params.models[alias].settings:
        if name not in known:
            raise BadInput(unknown(f"params.yaml: models.{alias}.settings", name, sorted(known), "remove it"))
    for name in sorted(known):
        params.section(alias, name)


def _check_lengths(params: Params, alias: str) -> None:
    """That no later stage allows rows fewer tokens than `corpus` fits them to. Raises BadInput naming both keys."""
    if params.models[alias].is_microworld:  # its rows are a dozen words
        _check_documents(params, alias)
        return
    fitted = params.section(alias, "corpus").max_tokens
    for name in ("capture", "probe", "compensate", "recover"):
        allowed = params.section(alias, name).max_tokens
        if allowed < fitted:
            raise BadInput(
                f"params.yaml: {name}.max_tokens is {allowed} for {alias}, below corpus.max_tokens {fitted}, to which "
                f"rows are fitted: raise {name}.max_tokens, or lower corpus.max_tokens"
            )


def _check_documents(params: Params, alias: str) -> None:
    """That the embedded model is pretrained on at least one batch. Raises BadInput naming both keys."""
    batch = params.section(alias, "dense").pretrain.batch_size
    documents = params.section(alias, "corpus").microworld.documents
    if batch > documents:
        what = f"dense.pretrain.batch_size is {batch} for {alias}, above corpus.microworld.documents {documents}"
        raise BadInput(f"params.yaml: {what}: lower the first, or raise the second")


def _check_grid(params: Params) -> None:
    """What pydantic cannot see: aliases, pruning names, ratios, and that joined names stay unique."""
    grid = params.grid
    for alias, entry in params.models.items():
        check_alias(alias)
        if not entry.is_microworld and entry.data is None:
            raise BadInput(
                f"params.yaml: models.{alias}.data is missing: a model that is not the embedded one needs the paths of "
                "its calibration, instructions and heldout files, or `preset: paper`"
            )
        _check_settings(params, alias)
    for alias, checkpoints in params.prune.external.items():
        if alias not in params.models:
            raise BadInput(unknown("params.yaml: prune.external", alias, params.models, "add it to `models`"))
        for name in checkpoints:
            check_name(f"params.yaml: prune.external.{alias} has the key", name)
    for alias in grid.model:
        if alias not in params.models:
            raise BadInput(unknown("params.yaml: grid.model", alias, params.models, "add it to `models`"))
        _check_lengths(params, alias)
    for pruning in grid.pruning:
        for alias in grid.model:
            _check_external(params, alias, pruning)
            check_allocation(parse_pruning(pruning), params.section(alias, "prune"))
    if not grid.head_ratio and not grid.recovery:
        raise BadInput(
            "params.yaml: grid.head_ratio is empty, and so is grid.recovery: give a share of the heads to compensate, "
            "or another way to recover"
        )
    for ratio in grid.head_ratio:
        ratio_label(ratio)
    for ratio in grid.speed:
        if ratio_label(ratio) not in map(ratio_label, grid.head_ratio):
            raise BadInput(f"params.yaml: grid.speed has {ratio!r}, which grid.head_ratio has not: add it there")
    for name in grid.recovery:
        check_recovery("params.yaml: grid.recovery", name)
    for axis in ("model", "pruning", "head_ratio", "recovery", "speed"):
        values = getattr(grid, axis)
        if twice := [value for position, value in enumerate(values) if value in values[:position]]:
            raise BadInput(f"params.yaml: grid.{axis} has {twice[0]!r} twice: remove one")
    pruned = [f"{model}-{pruning}" for model in grid.model for pruning in grid.pruning]
    restored = [f"{name}-{ratio_label(ratio)}" for name in pruned for ratio in grid.head_ratio]
    recovered = [f"{name}-{recovery}" for name in pruned for recovery in grid.recovery]
    for names in (pruned, restored, recovered):
        if twice := [name for position, name in enumerate(names) if name in names[:position]]:
            raise BadInput(
                f"params.yaml: two cells of the grid join to the same stage name, {twice[0]!r}: rename a model or an "
                "external pruning so that <model>-<pruning>-<head ratio or recovery> is unique"
            )

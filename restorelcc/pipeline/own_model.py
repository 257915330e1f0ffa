"""A user's own model and data as an entry of a new project's params.yaml, looked at before anything is written."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from restorelcc.base.cell import check_alias
from restorelcc.base.documents import parse_yaml, yaml_text
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import PAPER, SEQUENCE_LENGTH
from restorelcc.base.packages import is_package
from restorelcc.models.config_facts import context_of_config
from restorelcc.pipeline.named_sources import problems
from restorelcc.pipeline.oneshot import data_source, model_source
from restorelcc.pipeline.params import Params, checked
from restorelcc.pipeline.params_file import read_value
from restorelcc.pipeline.scaffold import template

_GRID = "  model: [tiny] "
_BEFORE = "  # Your own model: "  # the line of the template that the entry comes before


def own_entry(source: str, data: dict[str, str | None]) -> dict[str, Any]:
    """The entry of a model: its source, and its data by role, which are those of the paper where none are given.

    Raises BadInput for a path to nowhere, in the words of `restorelcc restore`.
    """
    found = {
        role: data_source(f"--{role}", given or PAPER["data"][role], PAPER["data"][role])
        for role, given in data.items()
    }
    return {"source": model_source("--model", source), "data": found, "tasks": []}


def own_params(alias: str, entry: dict[str, Any]) -> str:
    """params.yaml of a new project whose grid is this model; the rest is that of every new project."""
    _check_name(alias)
    text = yaml_text({alias: entry})
    text = text.replace("tasks: []\n", "tasks: [] # names of lm-eval, or folders of task files, e.g. [arc_easy]\n")
    before, after = template("params").split(_BEFORE)
    return f"{before}{textwrap.indent(text, '  ')}{_BEFORE}{after}".replace(_GRID, f"  model: [{alias}] ")


def _check_name(alias: str) -> None:
    """Raises BadInput for a name that can be no key of the new params.yaml."""
    check_alias(alias)
    if alias in parse_yaml(template("params"), "the template")["models"]:
        raise BadInput(f"--name {alias!r}: every new project has a model of that name, choose another")
    try:
        as_text = read_value("--name", alias) == alias
    except BadInput:  # the versions of YAML read it differently
        as_text = False
    if not as_text:
        raise BadInput(f"--name {alias!r}: params.yaml would not read it as text, give for example model-{alias}")


def parsed(text: str) -> Params:
    """The text as an object. Raises BadInput with one sentence."""
    return checked(parse_yaml(text, "params.yaml"))


def looked_at(params: Params, alias: str, layout: Layout) -> dict[str, Any] | None:
    """{family, context, tokens}: what a model on this disk is, once nothing was found that would stop a run.

    None for a hub id, which is not asked here. Raises BadInput for a model or data that could not be used, as `restore`
    and `check` do.
    """
    entry = params.models[alias]
    if found := problems(params, alias, layout):
        raise BadInput(found[0] if len(found) == 1 else f"{found[0]} (and {len(found) - 1} more)")
    from restorelcc.stages.corpus.roles import Roles  # imports transformers, which a wrong path does not wait for
    from restorelcc.stages.corpus.sources import check_first_rows

    assert entry.data is not None
    check_first_rows(entry.data, f"models.{alias}", layout.root)
    if not (Path(entry.source).exists() or is_package(entry.source)):
        return None
    from restorelcc.models.tokenizers import source_config

    key = f"models.{alias}"
    config = source_config(key, entry.source, entry.revision, layout.root)
    fitting = Roles(params.section(alias, "corpus"), entry, layout.root, key).fitting
    return {"family": config.model_type, "context": context_of_config(config), "tokens": len(fitting.tokenizer)}


def fitted_to(entry: dict[str, Any], params: Params, context: int | None) -> dict[str, Any]:
    """The entry with a `sequence_length` where the model takes shorter sequences than the sections ask for."""
    asked = [getattr(getattr(params, section), key) for section, key in SEQUENCE_LENGTH.items()]
    if context is None or context >= max(asked):
        return entry
    return {"source": entry["source"], "sequence_length": context} | entry

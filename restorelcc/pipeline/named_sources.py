"""Can what the models of the grid name be used? Told from names, configs and the first rows, before a stage runs.

What only a hub knows is not asked here; the stages `corpus` and `dense` ask it before they compute anything.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from restorelcc.base.documents import read_json
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.package_data import TASKS, is_of_the_package, package_files
from restorelcc.base.packages import gguf_file
from restorelcc.base.prunings import STRUCTURED_PRUNERS, parse_pruning
from restorelcc.pipeline.params import Params
from restorelcc.stages.inputs.files import absolute, files_below, source_folder
from restorelcc.stages.inputs.stage import copies, lay_out

_TASK_NAMES = re.compile(rb"^[ \t-]*[\"']?(?:task|group|tag)[\"']?:[ \t]*([^\n#]+)|^[ \t]*-[ \t]+([^\n#:]+)", re.M)
_QUOTES = " \t\r\"',[]"
_OTHER_TASKS = ("paper-7", "embedded")  # which are no tasks of lm-eval
_CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")


def problems(params: Params, alias: str, layout: Layout) -> list[str]:
    """A sentence for everything that a model of the grid names and that is not there, or cannot be used."""
    found: list[str] = []
    _try(found, lay_out, alias, params.named(alias), layout.root)
    found += checkpoint_problems(params, alias, layout)
    _try(found, _check_copies, params.section(alias, "evaluate").datasets, layout.root)
    _try(found, _check_tasks, f"models.{alias}.tasks", params.models[alias].task_names, layout.root)
    return list(dict.fromkeys(found))


def checkpoint_problems(params: Params, alias: str, layout: Layout) -> list[str]:
    """The same of its checkpoints alone: the dense model, external ones, and the encoder."""
    found: list[str] = []
    for name, pruned in params.prune.external.get(alias, {}).items():
        if f"external-{name}" in params.grid.pruning:
            key = f"prune.external.{alias}.{name}.source"
            dense = params.models[alias].source
            _try(found, _check_external, key, pruned.source, dense, layout.root, params.grid.pruning)
    if not params.models[alias].is_microworld:
        _try(found, _check_own, params, alias, layout)
        _try(found, _check_encoder, params.section(alias, "corpus").encoder, layout.root)
    return found


def check_names(params: Params, alias: str, layout: Layout) -> None:
    """Raises BadInput for the first task, copy of data, or folder of a model that there cannot be, without a look at
    any weights: what a flow asks before it begins."""
    root, entry = layout.root, params.models[alias]
    _check_tasks(f"models.{alias}.tasks", entry.task_names, root)
    _check_copies(params.section(alias, "evaluate").datasets, root)
    for name, pruned in params.prune.external.get(alias, {}).items():
        if f"external-{name}" in params.grid.pruning:
            _check_source(f"prune.external.{alias}.{name}.source", pruned.source, root)
    if not entry.is_microworld:
        if gguf_file(f"models.{alias}.source", entry.source, root) is None:
            _check_source(f"models.{alias}.source", entry.source, root)
        encoder = params.section(alias, "corpus").encoder
        if encoder not in (None, "auto"):
            _check_source("corpus.encoder", str(encoder), root)


def _try(found: list[str], check: Callable[..., Any], *arguments: Any) -> None:
    try:
        check(*arguments)
    except BadInput as error:
        found.append(str(error))


def _check_own(params: Params, alias: str, layout: Layout) -> None:
    """Raises BadInput for a model whose source, weights or chat template cannot be used."""
    entry, key, prunings = params.models[alias], f"models.{alias}", params.grid.pruning
    file = gguf_file(f"{key}.source", entry.source, layout.root)
    if file is not None:
        from restorelcc.models.gguf import beside_weights  # imports torch, which others do without

        folder = beside_weights(file, layout.work)
        _check_parts(folder, prunings)
    else:
        folder = absolute(layout.root, entry.source)
        _check_source(f"{key}.source", entry.source, layout.root)
        _check_model(folder, prunings)
    if entry.data is not None and entry.data.chat_template:
        _check_chat_template(key, folder)


def _check_source(key: str, source: str, root: Path) -> None:
    """Raises BadInput for what is neither a folder nor may be a hub id: `org/name`, whose `org` is no folder here."""
    if source_folder(key, source, root) is None and "/" in source and absolute(root, source).parent.is_dir():
        raise BadInput(
            f"{key} is {source!r}: there is a folder {source.partition('/')[0]!r} here, but no {source!r} in it: "
            "correct the path, or rename the folder where a hub id is meant"
        )


def _check_external(key: str, source: str, dense: str, root: Path, prunings: tuple[str, ...]) -> None:
    """Raises BadInput for a source that is none, a folder that cannot be used, or one that is no copy of the dense
    model, as far as a folder of it is here."""
    _check_source(key, source, root)
    folder, of_dense = absolute(root, source), absolute(root, dense)
    _check_model(folder, prunings)
    if not (folder.is_dir() and of_dense.is_dir()):
        return
    from restorelcc.models.checkpoint_check import loaded_config
    from restorelcc.stages.prune.external import check_sizes

    check_sizes(f"{key} {source!r}", loaded_config(folder), loaded_config(of_dense))


def _check_model(folder: Path, prunings: tuple[str, ...]) -> None:
    """Raises BadInput for a local folder without a checkpoint that can be used, or that a pruning of the
    grid cannot prune; of others the stages `corpus` and `dense` tell."""
    if not folder.is_dir():
        return
    from restorelcc.models.checkpoint_check import check_checkpoint  # imports torch, which others do without

    check_checkpoint(folder)
    _check_parts(folder, prunings)


def _check_parts(folder: Path, prunings: tuple[str, ...]) -> None:
    """Raises BadInput for a model that cannot lose the whole parts that a pruning removes."""
    from restorelcc.models.architectures import check_scores, check_whole_parts
    from restorelcc.models.checkpoint_check import loaded_config

    for name in prunings:
        pruning = parse_pruning(name)
        if pruning.external is None:
            check_scores(loaded_config(folder), name)
        if pruning.pruner in STRUCTURED_PRUNERS:
            check_whole_parts(loaded_config(folder), name)


def _check_chat_template(key: str, folder: Path) -> None:
    if not folder.is_dir() or any((folder / name).exists() for name in _CHAT_TEMPLATES):
        return
    config = folder / "tokenizer_config.json"
    found = read_json(config) if config.is_file() else {}
    if not isinstance(found, dict) or not found.get("chat_template"):
        raise BadInput(
            f"{key}.data.chat_template is true, but the tokenizer in {folder} has no chat template: set it to false, "
            "or give a tokenizer with one"
        )


def _check_encoder(encoder: str | None, root: Path) -> None:
    if encoder in (None, "auto"):
        return
    _check_source("corpus.encoder", str(encoder), root)
    if find_spec("sentence_transformers") is None:
        raise BadInput(
            f"corpus.encoder is {encoder!r}, but sentence-transformers is not installed: install the extra `encoder`, "
            "or set corpus.encoder to null for TF-IDF"
        )
    folder = absolute(root, str(encoder))
    if folder.is_dir() and next(folder.rglob("*.safetensors"), None) is None:
        raise BadInput(f"corpus.encoder: {folder} holds no .safetensors file, the only weights read here")


def _check_copies(datasets: str | dict[str, str] | None, root: Path) -> None:
    if isinstance(datasets, str) and is_of_the_package(datasets):
        package_files("evaluate.datasets", TASKS)
    copies(datasets, root)


def _check_tasks(key: str, names: tuple[str, ...], root: Path) -> None:
    """Raises BadInput for a task that neither lm-eval nor a folder of the entry has, with the nearest names."""
    asked = [name for name in names if name not in _OTHER_TASKS and not absolute(root, name).exists()]
    missing = {name for name in asked if "/" not in name and not name.endswith((".yaml", ".yml"))}
    own = [path for name in names if (path := absolute(root, name)).is_dir()]
    for found in (_task_names(file) for files in (*map(files_below, own), _stock_files(missing)) for file in files):
        missing -= found
        if not missing:
            return
    if missing:
        from lm_eval.tasks import TaskManager  # which knows for certain, and takes seconds

        known = TaskManager(include_path=list(map(str, own)) or None).all_tasks
        for name in sorted(missing.difference(known)):
            near = difflib.get_close_matches(name, [*known, *_OTHER_TASKS], n=3, cutoff=0.6)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "`lm_eval ls tasks` lists them all"
            raise BadInput(f"{key} has {name!r}, which is no task that lm-eval knows, no preset and no folder: {hint}")


def _stock_files(wanted: set[str]) -> Iterator[Path]:
    """Task files of lm-eval, first those that are called as a task is: making its own index takes seconds."""
    spec = find_spec("lm_eval") if wanted else None
    top = Path(spec.origin).parent / "tasks" if spec and spec.origin else None
    others = []
    for folder, _, files in os.walk(top) if top else ():
        for name in files:
            if name.endswith(".yaml"):
                path = Path(folder, name)
                if path.stem in wanted:
                    yield path
                else:
                    others.append(path)
    yield from others


def _task_names(path: Path) -> set[str]:
    """Every name that a task file may define: of its task, its group or its tags."""
    if path.suffix not in (".yaml", ".yml"):
        return set()
    found = (one or other for one, other in _TASK_NAMES.findall(path.read_bytes()))
    return {name.strip(_QUOTES) for text in found for name in text.decode("utf-8", "replace").split(",")}

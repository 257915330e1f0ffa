"""Stage `corpus`: everything that later stages read as text, written once per model."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from restorelcc.base.cell import Cell
from restorelcc.base.documents import write_document
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.manifest import write_manifest
from restorelcc.base.model_entry import MICROWORLD, OWN_PREFIX, ModelEntry
from restorelcc.base.progress import notice
from restorelcc.base.publish import published
from restorelcc.base.tables import (
    CHAT_TEMPLATE,
    CONTRAST,
    EXAMPLES,
    ITEMS,
    OWN_WORDS,
    TOKENIZER,
    write_table,
    write_texts,
)
from restorelcc.stages.corpus import CorpusConfig
from restorelcc.stages.corpus.account import Account
from restorelcc.stages.corpus.contrast import negatives
from restorelcc.stages.corpus.encoder import find_encoder
from restorelcc.stages.corpus.formats import Example
from restorelcc.stages.corpus.licences import announce, with_licences
from restorelcc.stages.corpus.microworld import Item, generate
from restorelcc.stages.corpus.own_words import forget_parts
from restorelcc.stages.corpus.roles import Roles


def run(cell: Cell, config: CorpusConfig, model: ModelEntry, layout: Layout) -> None:
    """Write corpus/<model>/: calibration, contrast, train, valid, heldout, tasks/ (what is evaluated) and world/ (what
    the embedded model is pretrained on; for other models it names their source only); and where the model writes data
    itself words.parquet, with all that it wrote. What became of every row of the
    model's data is in sources.json, and for the report in metrics/<model>/sources.json too."""
    destination = layout.corpus(cell)
    with published(layout, destination, layout.sources(cell)) as (folder, sources):
        folder.mkdir()
        write_document(folder / "world" / "source.json", {"source": model.source})
        names, origins = [], dict[str, Any]()
        if model.is_microworld:
            names = _write_microworld(folder, config, destination.relative_to(layout.root))
        else:
            origins = with_licences(_write_local(folder, config, model, layout.root, f"models.{cell.model}"))
            announce(origins, layout)
            write_document(folder / "sources.json", origins)
        write_document(sources, origins)
        write_document(folder / "tasks" / "tasks.json", {"embedded": names})
        write_manifest(folder / "tasks")
    forget_parts(layout, f"models.{cell.model}")


def _write_microworld(folder: Path, config: CorpusConfig, published_as: Path) -> list[str]:
    """Returns the names of the evaluation tasks."""
    world = generate(config.microworld)
    write_document(folder / "world" / "vocabulary.json", {"words": world.vocabulary})
    write_texts(folder / "world" / "pretrain.parquet", world.pretrain)
    write_calibration(folder / "calibration.parquet", world.calibration, {"source": MICROWORLD})
    write_texts(folder / "heldout.parquet", world.heldout, named=True)
    write_table(folder / "train.parquet", [asdict(row) for row in world.train], EXAMPLES, named=True)
    write_table(folder / "valid.parquet", [asdict(row) for row in world.valid], EXAMPLES, named=True)
    contrast = [{"sample_id": number, **asdict(row)} for number, row in enumerate(world.contrast)]
    write_table(folder / "contrast.parquet", contrast, CONTRAST, named=True)
    for task in world.test:
        write_table(folder / "world" / "dev" / f"{task}.parquet", _item_rows(world.dev[task]), ITEMS)
        write_table(folder / "tasks" / f"{task}.parquet", _item_rows(world.test[task]), ITEMS)
        (folder / "tasks" / f"{task}.yaml").write_text(
            yaml.safe_dump(_task(task, published_as / "tasks" / f"{task}.parquet"), sort_keys=False)
        )
    return list(world.test)


def _item_rows(items: list[Item]) -> list[dict[str, Any]]:
    return [
        {"item_id": number, "question": item.question, "choices": list(item.choices), "gold": item.gold}
        for number, item in enumerate(items)
    ]


def _task(name: str, items: Path) -> dict[str, Any]:
    """A stock lm-eval task over a local Parquet file; also usable with `lm_eval --include_path`."""
    return {
        "task": name,
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str(items)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        # Columns by name: lm-eval compiles a template anew for every document, which took over half of its time.
        "doc_to_text": "question",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }


def _write_local(
    folder: Path, config: CorpusConfig, model: ModelEntry, root: Path, key: str
) -> dict[str, dict[str, Any]]:
    """Returns where the data came from, and what became of every row."""
    roles = Roles(config, model, root, key)
    try:
        calibration, heldout, found = roles.calibration(), roles.heldout(), roles.instructions()
    finally:
        roles.close()
    origins = {"calibration": calibration.origin, "instructions": found.origin, "heldout": heldout.origin}
    own = [role for role in ("calibration", "instructions") if model.data is not None and model.data.writes(role)]
    if own:
        roles.writer.write(folder)
        origins |= {role: origins[role] | {OWN_WORDS: roles.writer.record(role)} for role in own}
    for role, each in (("calibration", calibration), ("instructions", found), ("held-out", heldout)):
        notice("corpus", f"{role}: {each.sentence()}")
    told = (OWN_PREFIX if "calibration" in own else "") + calibration.origin["source"]
    write_calibration(folder / "calibration.parquet", calibration.items, calibration.origin | {"source": told})
    write_texts(folder / "heldout.parquet", heldout.items, named=True)
    valid, fitting = roles.valid(len(found.items)), roles.fitting
    train, similarity = contrasted(found.items[valid:], config, root)
    account = Account()
    tuples = fitting.contrasts(train[: config.contrast], account)
    origins["contrast"] = {"source": found.origin["source"], "rows": account.record()}
    if account.shortened or account.skipped:
        notice("corpus", f"contrast tuples: {account.sentence(found.rows)}")
    if len(tuples) < 2:
        raise BadInput(
            f"{key}.data.instructions gives {len(tuples)} contrast tuples, and at least 2 are needed: "
            f"{account.sentence(found.rows)}"
        )
    chat = any(example.messages for example in found.items) or (own and fitting.tokenizer.chat_template)
    if model.data is not None and (model.data.chat_template or chat):
        origins[CHAT_TEMPLATE] = {"source": model.source}
    # Which tokenizer counted the tokens that decide what is shortened.
    origins[TOKENIZER] = {"source": model.source, "max_tokens": fitting.max_tokens, "too_long": config.too_long}
    for name, part in (("valid", found.items[:valid]), ("train", train)):
        write_table(
            folder / f"{name}.parquet", [_row(fitting.written(example)) for example in part], EXAMPLES, named=True
        )
    written = [fitting.written(example) for example in tuples]
    contrast = [
        {"sample_id": number, "task": example.task, "question": example.question, "positive": example.response}
        | {"negative": example.wrong[0]}
        for number, example in enumerate(written)
    ]
    write_table(folder / "contrast.parquet", contrast, CONTRAST, {"similarity": similarity}, named=True)
    return origins


def _row(example: Example) -> dict[str, str]:
    return {"task": example.task, "question": example.question, "response": example.response}


def contrasted(train: list[Example], config: CorpusConfig, root: Path) -> tuple[list[Example], str]:
    """The same examples, the first `config.contrast` with the one wrong response that each is contrasted with; and
    what measured similarity."""
    encode, reason = find_encoder(config.encoder, root)
    if encode is None and config.encoder is not None:
        notice("corpus", f"contrast tuples by TF-IDF: {reason}")
    rows = [
        {"question": example.question, "response": example.response}
        | ({"choices": [example.response, *example.wrong]} if example.wrong else {})
        for example in train
    ]
    others = negatives(rows, config.contrast, encode)
    first = [replace(example, wrong=(other,)) for example, other in zip(train, others, strict=False)]
    similarity = f"tfidf ({reason})" if encode is None else f"sentence-transformers {reason}"
    return first + train[len(first) :], similarity


_RECORDED = ("source", "revision")


def write_calibration(path: Path, found: list[str], origin: dict[str, Any]) -> None:
    """One row per text; metadata: source, revision where it has one, and the SHA-256 of the texts."""
    digest = hashlib.sha256("\0".join(found).encode()).hexdigest()
    write_texts(
        path, found, {name: origin[name] for name in _RECORDED if name in origin} | {"digest": digest}, named=True
    )

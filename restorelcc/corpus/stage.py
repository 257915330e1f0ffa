"""Stage `corpus`: everything that later stages read as text, written once per model."""

from __future__ import annotations

import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from restorelcc.core.cell import Cell
from restorelcc.core.errors import BadInput
from restorelcc.core.model_entry import MICROWORLD, DataFiles, ModelEntry
from restorelcc.core.progress import notice
from restorelcc.corpus.calibration import calibration_texts, write_calibration
from restorelcc.corpus.config import CorpusConfig
from restorelcc.corpus.contrast import negatives
from restorelcc.corpus.encoder import find_encoder
from restorelcc.corpus.local import pairs, texts
from restorelcc.corpus.microworld import Item, generate
from restorelcc.io.corpus_tables import CONTRAST, EXAMPLES, ITEMS
from restorelcc.io.documents import write_json
from restorelcc.io.layout import Layout
from restorelcc.io.scratch import published
from restorelcc.io.tables import write_table, write_texts


def run(cell: Cell, config: CorpusConfig, model: ModelEntry, layout: Layout) -> None:
    """Write corpus/<model>/: calibration, contrast, train, valid, heldout, tasks/ (what is evaluated) and world/ (what
    the embedded model is pretrained on; for other models it names their source only)."""
    destination = layout.corpus(cell)
    with published(layout, destination) as (folder,):
        folder.mkdir()
        write_json(folder / "world" / "source.json", {"source": model.source})
        if model.is_microworld:
            names = _write_microworld(folder, config, destination.relative_to(layout.root))
        else:
            assert model.data is not None
            names = _write_local(folder, config, model.data, layout.root)
        write_json(folder / "tasks" / "tasks.json", {"embedded": names, "lm_eval": list(model.tasks)})


def _write_microworld(folder: Path, config: CorpusConfig, published_as: Path) -> list[str]:
    """Returns the names of the evaluation tasks."""
    world = generate(config.microworld)
    write_json(folder / "world" / "vocabulary.json", {"words": world.vocabulary})
    write_texts(folder / "world" / "pretrain.parquet", world.pretrain)
    write_calibration(folder / "calibration.parquet", world.calibration, {"source": MICROWORLD})
    write_texts(folder / "heldout.parquet", world.heldout)
    write_table(folder / "train.parquet", [asdict(row) for row in world.train], EXAMPLES)
    write_table(folder / "valid.parquet", [asdict(row) for row in world.valid], EXAMPLES)
    contrast = [{"sample_id": number, **asdict(row)} for number, row in enumerate(world.contrast)]
    write_table(folder / "contrast.parquet", contrast, CONTRAST)
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


def _write_local(folder: Path, config: CorpusConfig, data: DataFiles, root: Path) -> list[str]:
    data = data.model_copy(update={name: str(root / getattr(data, name)) for name in ("instructions", "heldout")})
    rng = random.Random(config.seed)
    write_calibration(folder / "calibration.parquet", *calibration_texts(data, config, root, rng))
    write_texts(folder / "heldout.parquet", texts(Path(data.heldout), None, rng))
    examples = pairs(data, config.train + config.valid, rng)
    valid = min(config.valid, len(examples) // 5)
    train = examples[valid:]
    if valid == 0 or len(train) < 2:
        raise BadInput(f"data file {data.instructions} has {len(examples)} usable pairs: at least 5 are needed")
    write_table(folder / "valid.parquet", examples[:valid], EXAMPLES)
    write_table(folder / "train.parquet", train, EXAMPLES)
    _write_contrast(folder / "contrast.parquet", train, config, root)
    return []


def _write_contrast(table: Path, train: list[dict[str, Any]], config: CorpusConfig, root: Path) -> None:
    """Tuples of the first examples; the table's metadata say what measured similarity."""
    encode, reason = find_encoder(config.encoder, root)
    if encode is None and config.encoder is not None:
        notice("corpus", f"contrast tuples by TF-IDF: {reason}")
    others = negatives(train, config.contrast, encode)
    rows = [
        {"sample_id": number, "task": example["task"], "question": example["question"]}
        | {"positive": example["response"], "negative": negative}
        for number, (example, negative) in enumerate(zip(train, others, strict=False))
    ]
    similarity = f"tfidf ({reason})" if encode is None else f"sentence-transformers {reason}"
    write_table(table, rows, CONTRAST, {"similarity": similarity})

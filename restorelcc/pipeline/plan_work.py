"""How much the stages of a model do: counts from params.yaml, and lengths from its corpus where that is written."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from restorelcc.base.cell import Cell
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import ModelEntry
from restorelcc.base.package_data import is_of_the_package
from restorelcc.base.tables import EXAMPLES, read_table, read_texts
from restorelcc.models.runtime import tokens_of_a_pass
from restorelcc.pipeline.params import Params
from restorelcc.pipeline.plan_costs import (
    CHARACTERS,
    FINISHED,
    MEAN_TOKENS,
    PACKAGE_PAIR_TOKENS,
    PACKAGE_TEXT_TOKENS,
    PACKAGE_TEXTS,
    TEXT_TOKENS,
    TEXTS,
    Workload,
)
from restorelcc.stages.evaluate.tasks import EMBEDDED, PRESETS
from restorelcc.training.config import FitConfig
from restorelcc.training.pairs import TRAIN

# Items of a task; tokens of one, with what its choices share counted once, and how many of them are predicted (by the
# tokenizer of SmolLM2). Of other tasks a guess.
TASKS = {
    "boolq": (3270, 153, 2),
    "rte": (277, 73, 2),
    "hellaswag": (10042, 84, 56),
    "winogrande": (1267, 24, 11),
    "arc_easy": (2376, 40, 18),
    "arc_challenge": (1172, 49, 24),
    "openbookqa": (500, 20, 13),
}
OTHER_TASK = (1000, 100, 20)
_WORLD_TASKS = 5  # of the embedded world


def workload(params: Params, alias: str, layout: Layout, device: torch.device) -> Workload:
    """Counts of params.yaml; lengths of the texts as in the corpus, where it is written already."""
    entry, section = params.models[alias], lambda name: params.section(alias, name)
    corpus, world, train = section("corpus"), section("corpus").microworld, section("compensate")
    evaluate = section("evaluate")
    tokens, longest, heldout = _text_tokens(layout.corpus(Cell(alias)), entry, corpus.heldout)
    if entry.is_microworld:
        tokens, longest, heldout = 24, 48, _WORLD_TASKS * world.test_items * 24
    items, item_tokens, predicted = task_items(entry, evaluate.limit)
    if entry.is_microworld:
        items = _WORLD_TASKS * world.test_items
        item_tokens, predicted = 30 * items, 6 * items
    # A question whose response was not finished is left out, and another one asked.
    counts = {"calibration": corpus.calibration, "instructions": round((corpus.train + corpus.valid) / FINISHED)}
    return Workload(
        samples=world.contrast_pairs if entry.is_microworld else min(corpus.contrast, corpus.train),
        train=pairs_trained_on(params, alias, train),
        valid=world.valid_pairs if entry.is_microworld else corpus.valid,
        tokens=tokens,
        heldout_tokens=heldout,
        items=items,
        item_tokens=item_tokens,
        predicted=predicted,
        compared=evaluate.generation.heldout_tokens,
        prompts=evaluate.generation.prompts,
        new_tokens=evaluate.generation.new_tokens,
        token_budget=tokens_of_a_pass(device, section("capture").token_budget),
        train_batch=train.batch_size,
        runs=len(train.learning_rates),
        epochs=train.epochs,
        sequence_length=evaluate.perplexity_tokens,
        longest=min(longest, train.max_tokens),
        written=0 if entry.data is None else sum(count for role, count in counts.items() if entry.data.writes(role)),
        written_tokens=min(corpus.own_words.new_tokens, max(1, corpus.max_tokens // 2)),
        rivals=len(evaluate.rivals),
    )


def pairs_trained_on(params: Params, alias: str, config: FitConfig) -> int:
    """How many of the model's training pairs a training by this section takes."""
    corpus = params.section(alias, "corpus")
    pairs = corpus.microworld.train_pairs if params.models[alias].is_microworld else corpus.train
    return min(pairs, config.examples or pairs)


def task_items(entry: ModelEntry, limit: int | None) -> tuple[int, int, int]:
    """Items of an entry's tasks, their tokens, and how many of these are predicted."""
    items = tokens = predicted = 0
    for name, count in task_counts(entry, limit).items():
        _, each, answered = TASKS.get(name, OTHER_TASK)
        items, tokens, predicted = items + count, tokens + count * each, predicted + count * answered
    return items, tokens, predicted


def task_counts(entry: ModelEntry, limit: int | None) -> dict[str, int]:
    """Items of each of an entry's tasks; limit: of those that have none of their own."""
    limits: dict[str, int | None] = {}
    for task in entry.tasks:
        name, own = (task, None) if isinstance(task, str) else (task.name, task.limit)
        limits |= {each: own or limits.get(each) for each in PRESETS.get(name, (name,))}
    whole = {name: TASKS.get(name, OTHER_TASK)[0] for name in limits}
    return {name: min(count, limits[name] or limit or count) for name, count in whole.items()}


def accuracy_known(params: Params, alias: str) -> dict[str, float] | None:
    """How well the items asked will tell the mean accuracy of K tasks of n_k items: its standard error is at most
    sqrt(sum_k 1/(4 n_k)) / K, as it is where every accuracy is one half. None with tasks whose items are not known."""
    entry, limit = params.models[alias], params.section(alias, "evaluate").limit
    named = task_counts(entry, limit)
    own = named.pop(EMBEDDED, None)
    counts = list(named.values())
    if entry.is_microworld:  # its own are always measured
        items = params.section(alias, "corpus").microworld.test_items
        counts += [min(items, own or limit or items)] * _WORLD_TASKS
    if not counts or not set(named) <= set(TASKS):
        return None
    error = math.sqrt(sum(1 / (4 * count) for count in counts)) / len(counts)
    return {"tasks": len(counts), "items": sum(counts), "standard_error": error}


def _text_tokens(corpus: Path, entry: ModelEntry, heldout: int | None) -> tuple[int, int, int]:
    """Tokens of a pair on average, of the longest pair, and of all held-out texts: by the characters of a corpus that
    is written, else a guess, or what is known of a package."""
    known = entry.data is not None and is_of_the_package(entry.data.heldout)
    mean, longest = (PACKAGE_PAIR_TOKENS, 6 * PACKAGE_PAIR_TOKENS) if known else (MEAN_TOKENS, 2 * MEAN_TOKENS)
    texts, tokens = (PACKAGE_TEXTS, PACKAGE_TEXT_TOKENS) if known else (TEXTS, TEXT_TOKENS)
    if (corpus / TRAIN).is_file():
        pairs = [len(row["question"]) + len(row["response"]) for row in read_table(corpus / TRAIN, EXAMPLES)]
        mean, longest = (max(2, characters // CHARACTERS) for characters in (sum(pairs) // len(pairs), max(pairs)))
        found = read_texts(corpus / "heldout.parquet")
        tokens = max(1, sum(map(len, found)) // CHARACTERS // len(found))
        texts = texts if known else len(found)
    return mean, longest, tokens * (texts if heldout is None else min(heldout, texts))

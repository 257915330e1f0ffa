"""The microworld: people with random facts, small stories about them, and five tasks in the shape of real benchmarks.

A model trained on `World.pretrain` has to remember facts in its weights (who lives where) and to read stories with its
attention (who gave what to whom). The people are split anew for each task: a test item's people were never seen in
that task's format, though their facts were seen in other formats. Each item names two people, and two relations where
relations matter, so that the same bag of words asks each of the possible questions equally often.

Texts are lower-case words joined by single spaces: `text.split()` is the tokenisation. No special token is put
around a document.
"""

import random
from dataclasses import dataclass

from restorelcc.stages.corpus import WorldConfig, templates
from restorelcc.stages.corpus.templates import MAKERS, Facts, Item, plain_question, retelling, statements

# Task and its share of the pretraining questions: a verdict carries one bit, so it takes more documents to learn.
TASK_WEIGHTS = {"world_boolq": 2, "world_arc": 1, "world_hellaswag": 1, "world_winogrande": 2, "world_rte": 2}
TASKS = tuple(TASK_WEIGHTS)


@dataclass(frozen=True)
class Example:
    """One question with its right response."""

    task: str
    question: str
    response: str


@dataclass(frozen=True)
class Contrast:
    """One question with its right response and the wrong response most similar to it."""

    task: str
    question: str
    positive: str
    negative: str


@dataclass(frozen=True)
class World:
    """Everything that the embedded default needs; see `generate`."""

    vocabulary: list[str]
    pretrain: list[str]
    heldout: list[str]
    calibration: list[str]
    train: list[Example]
    valid: list[Example]
    contrast: list[Contrast]
    dev: dict[str, list[Item]]
    test: dict[str, list[Item]]


def _draw_facts(config: WorldConfig, rng: random.Random) -> Facts:
    """Random facts: a person's two values of one domain differ, so the two relations can be told apart."""
    people = templates.NAMES[: config.people]
    relations = list(templates.DOMAINS)[: config.domains]
    value = {}
    for first, second in relations:
        for person in people:
            value[person, first], value[person, second] = rng.sample(
                templates.DOMAINS[first, second][: config.values], 2
            )
    skills = templates.SKILLS[: config.skills]
    for person in people:
        for skill in skills:
            value[person, skill] = rng.choice(("no", "yes"))
    test_count, dev_count = config.people // 5, config.people // 6
    split = {}
    for task in TASKS:
        order = rng.sample(people, len(people))
        split[task] = {
            "test": order[:test_count],
            "dev": order[test_count : test_count + dev_count],
            "train": order[test_count + dev_count :],
        }
    return Facts(people=people, relations=relations, skills=skills, value=value, split=split)


def _balanced(task: str, facts: Facts, rng: random.Random, side: str, count: int, taken: set[str]) -> list[Item]:
    """`count` items of one task with questions not in `taken`, every answer position equally often (to one item)."""
    items: list[Item] = []
    quota: dict[int, int] = {}
    for _ in range(100 * count + 1000):
        item = MAKERS[task](facts, rng, facts.split[task][side])
        width = len(item.choices)
        left = quota.setdefault(item.gold, (count + item.gold) // width)
        if left and item.question not in taken:
            taken.add(item.question)
            quota[item.gold] -= 1
            items.append(item)
        if len(items) == count:
            return items
    raise ValueError(
        f"{count} distinct {side} items of {task} cannot be drawn from this world; raise people or values."
    )


def _text(item: Item) -> str:
    return f"{item.question} {item.choices[item.gold]} ."


def _share(total: int, position: int) -> int:
    """The `position`-th of nearly equal integer shares of `total`, one per task."""
    return (total + position) // len(TASKS)


def vocabulary(config: WorldConfig) -> list[str]:
    words = list(templates.FUNCTION_WORDS)
    for relations, values in list(templates.DOMAINS.items())[: config.domains]:
        words += [*relations, *values[: config.values]]
    words += [*templates.SKILLS[: config.skills], *templates.OBJECTS]
    for group in (templates.TRANSFERS, *templates.REASONS.values()):
        words += group
    words += templates.NAMES[: config.people]
    return [*templates.SPECIAL_TOKENS, *dict.fromkeys(words)]


def generate(config: WorldConfig) -> World:
    """The whole microworld, a pure function of `config`.

    `pretrain` and `calibration` are documents; `train`, `valid` and `contrast` are made of people whose format was
    trained on; `dev` and `test` of people who never occur in that task's format. `heldout` is the text
    of the test items.

    Raises ValueError when the world is too small for the number of items asked for.
    """
    rng = random.Random(config.seed)
    facts = _draw_facts(config, rng)
    dev = {task: _balanced(task, facts, rng, "dev", config.dev_items, set()) for task in TASKS}
    test = {task: _balanced(task, facts, rng, "test", config.test_items, set()) for task in TASKS}
    pairs = _pairs(config, facts, rng)
    pretrain = [_document(config, facts, rng) for _ in range(config.documents)]
    return World(
        vocabulary=vocabulary(config),
        pretrain=pretrain,
        heldout=[_text(item) for task in TASKS for item in test[task]],
        calibration=pretrain[: config.calibration_documents],
        train=[Example(task, item.question, item.choices[item.gold]) for task, item in pairs["train"]],
        valid=[Example(task, item.question, item.choices[item.gold]) for task, item in pairs["valid"]],
        contrast=[
            Contrast(task, item.question, item.choices[item.gold], item.choices[item.similar])
            for task, item in pairs["contrast"]
        ],
        dev=dev,
        test=test,
    )


def _pairs(config: WorldConfig, facts: Facts, rng: random.Random) -> dict[str, list[tuple[str, Item]]]:
    """Train-side items for training, validation and contrast; no question stands in two of them."""
    totals = {"train": config.train_pairs, "valid": config.valid_pairs, "contrast": config.contrast_pairs}
    pairs: dict[str, list[tuple[str, Item]]] = {name: [] for name in totals}
    for position, task in enumerate(TASKS):
        taken: set[str] = set()
        for name, total in totals.items():
            pairs[name] += [
                (task, item) for item in _balanced(task, facts, rng, "train", _share(total, position), taken)
            ]
    for drawn in pairs.values():
        rng.shuffle(drawn)
    return pairs


def _document(config: WorldConfig, facts: Facts, rng: random.Random) -> str:
    """One pretraining document: facts, a retold story, or a question of one task with its answer."""
    kind_of_text = rng.random()
    if kind_of_text < config.fact_share:
        return statements(facts, rng)
    if kind_of_text < config.fact_share + config.lookup_share:
        return retelling(facts, rng)
    (task,) = rng.choices(TASKS, weights=list(TASK_WEIGHTS.values()))
    if task in ("world_boolq", "world_rte") and rng.random() < config.plain_share:
        return plain_question(facts, rng, task)
    return _text(MAKERS[task](facts, rng, facts.split[task]["train"]))

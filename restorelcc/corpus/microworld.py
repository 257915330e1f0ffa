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

from restorelcc.corpus import templates
from restorelcc.corpus.templates import MAKERS, Facts, Item, plain_question, retelling, statements

# Task and its share of the pretraining questions: a verdict carries one bit, so it takes more documents to learn.
TASK_WEIGHTS = {"world_boolq": 2, "world_arc": 1, "world_hellaswag": 1, "world_winogrande": 2, "world_rte": 2}
TASKS = tuple(TASK_WEIGHTS)


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Sizes of the microworld; counts of items are per task."""

    seed: int = 42
    people: int = 72
    domains: int = 3  # lists of values, each shared by two relations
    values: int = 12  # values per domain
    skills: int = 4  # yes-or-no facts per person
    documents: int = 40_000  # pretraining documents
    fact_share: float = 0.3  # share of the pretraining documents that state facts
    lookup_share: float = 0.08  # share of the pretraining documents that retell a story
    plain_share: float = 0.35  # share of the verdict documents (yes/no, true/false) that name one person only
    test_items: int = 400
    dev_items: int = 120
    train_pairs: int = 2_000  # over all tasks
    valid_pairs: int = 400  # over all tasks
    contrast_pairs: int = 1_000  # over all tasks
    calibration_documents: int = 512

    def __post_init__(self) -> None:
        if not 40 <= self.people <= len(templates.NAMES):
            raise ValueError(f"people must lie between 40 and {len(templates.NAMES)}, got {self.people}.")
        if not 4 <= self.values <= 16:
            raise ValueError(f"values must lie between 4 and 16, got {self.values}.")
        if min(self.fact_share, self.lookup_share) < 0.0 or self.fact_share + self.lookup_share >= 1.0:
            raise ValueError("fact_share and lookup_share must not be negative and must leave room for questions.")
        if not 2 <= self.domains <= len(templates.DOMAINS):
            raise ValueError(f"domains must lie between 2 and {len(templates.DOMAINS)}, got {self.domains}.")
        if not 2 <= self.skills <= len(templates.SKILLS):
            raise ValueError(f"skills must lie between 2 and {len(templates.SKILLS)}, got {self.skills}.")
        if not 0.0 <= self.plain_share < 1.0:
            raise ValueError(f"plain_share must be at least 0 and below 1, got {self.plain_share}.")
        for field in ("documents", "test_items", "dev_items", "train_pairs", "valid_pairs", "contrast_pairs"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}.")
        if not 1 <= self.calibration_documents <= self.documents:
            raise ValueError("calibration_documents must lie between 1 and documents.")


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


def _vocabulary(config: WorldConfig) -> list[str]:
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

    pairs: dict[str, list[tuple[str, Item]]] = {"train": [], "valid": [], "contrast": []}
    for position, task in enumerate(TASKS):
        taken: set[str] = set()
        for name, total in (
            ("train", config.train_pairs),
            ("valid", config.valid_pairs),
            ("contrast", config.contrast_pairs),
        ):
            drawn = _balanced(task, facts, rng, "train", _share(total, position), taken)
            pairs[name] += [(task, item) for item in drawn]
    for drawn_pairs in pairs.values():
        rng.shuffle(drawn_pairs)

    pretrain = []
    for _ in range(config.documents):
        kind_of_text = rng.random()
        if kind_of_text < config.fact_share:
            pretrain.append(statements(facts, rng))
        elif kind_of_text < config.fact_share + config.lookup_share:
            pretrain.append(retelling(facts, rng))
        else:
            (task,) = rng.choices(TASKS, weights=list(TASK_WEIGHTS.values()))
            if task in ("world_boolq", "world_rte") and rng.random() < config.plain_share:
                pretrain.append(plain_question(facts, rng, task))
                continue
            pretrain.append(_text(MAKERS[task](facts, rng, facts.split[task]["train"])))

    return World(
        vocabulary=_vocabulary(config),
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

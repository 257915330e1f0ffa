"""The microworld's words and sentences: word lists, statements of facts, and one question maker per task.

Every entry is one lower-case word, because the embedded model's vocabulary is word level: `text.split()` is the
tokenisation. The values are ordinary words, but the facts built from them are random.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")

# Two relations share each list of values, so the type of an answer never tells which relation was asked.
_DOMAINS = {
    "home origin": "oslo rome lima cairo delhi paris quito seoul tunis dakar hanoi miami perth turin bergen lagos",
    "lunch supper": (
        "rice soup bread beans pasta salad curry cheese eggs stew plums toast lentils dumplings porridge tofu"
    ),
    "job hobby": (
        "baking sewing fishing carving singing nursing mining painting hunting teaching dancing brewing farming "
        "printing sailing weaving"
    ),
    "coat door": "red blue green white black brown pink grey purple orange yellow silver golden violet beige cream",
}
DOMAINS = {(relations.split()[0], relations.split()[1]): values.split() for relations, values in _DOMAINS.items()}

# Each person can do about half of these.
SKILLS = "swims rides draws skates climbs juggles whistles codes".split()

OBJECTS = "rope lamp ladder kettle tent clock mirror basket blanket bucket compass ball".split()

# Each moves the object from the first person to the second.
TRANSFERS = "lent gave sold sent".split()
# Why it happened, and so who is meant: the one who has the object afterwards, or the one who had it.
REASONS = {
    "receiver": "needed wanted lacked missed".split(),
    "giver": "disliked replaced outgrew spared".split(),
}

FUNCTION_WORDS = (
    ". , ? question answer is not but because premise claim yes no true false then to who what does former latter"
).split()

_ONSETS = "b d f g k l m n p r s t v z".split()
_RHYMES = "ana ela ima oru uko eth".split()
_TAKEN = {word for words in DOMAINS.values() for word in words}
_NAMES = [name for ending in ("", "n") for rhyme in _RHYMES for name in (o + rhyme + ending for o in _ONSETS)]
NAMES = [name for name in _NAMES if name not in _TAKEN]

_VERDICTS = {"no": "false", "yes": "true"}


@dataclass(frozen=True)
class Item:
    """One multiple-choice question; `choices[gold]` is right, and `similar` is the most tempting wrong choice."""

    question: str
    choices: tuple[str, ...]
    gold: int
    similar: int


@dataclass(frozen=True)
class Facts:
    """`value[person, relation]` with skills ("yes" or "no") as relations too, and each task's people by split."""

    people: list[str]
    relations: list[tuple[str, str]]  # pairs that share one list of values
    skills: list[str]
    value: dict[tuple[str, str], str]
    split: dict[str, dict[str, list[str]]]


def _two_people(facts: Facts, rng: random.Random, crowd: list[str], pair: tuple[str, str]) -> tuple[str, str]:
    """Two people of `crowd` whose four values under the two relations are all different."""
    while True:
        asked, other = rng.sample(crowd, 2)
        if len({facts.value[person, relation] for person in (asked, other) for relation in pair}) == 4:
            return asked, other


def _query(facts: Facts, rng: random.Random, crowd: list[str]) -> tuple[str, list[str]]:
    """A noun phrase that singles out one of four facts, and the four values, the right one first.

    "the origin of mira , not the home of bano" and "not the home of bano but the origin of mira": the decoy differs
    in person and relation, so the words without their order fit four facts.
    """
    pair = rng.choice(facts.relations)
    asked, other = _two_people(facts, rng, crowd, pair)
    relation, decoy = rng.sample(pair, 2)
    phrase = _phrase(rng, f"{asked} {relation}", f"{other} {decoy}")
    values = [facts.value[p, r] for p, r in ((asked, relation), (asked, decoy), (other, relation), (other, decoy))]
    return phrase, values


def _phrase(rng: random.Random, asked: str, other: str) -> str:
    return f"{asked} not {other}" if rng.random() < 0.5 else f"not {other} but {asked}"


def _undecided(facts: Facts, rng: random.Random, crowd: list[str]) -> tuple[list[str], list[str], list[list[str]]]:
    """Two people and two skills, `answers[person][skill]`: two say yes and two no, so that only the binding decides."""
    while True:
        people, skills = rng.sample(crowd, 2), rng.sample(facts.skills, 2)
        answers = [[facts.value[person, skill] for skill in skills] for person in people]
        if sum(row.count("yes") for row in answers) == 2:
            return people, skills, answers


def _boolq(facts: Facts, rng: random.Random, crowd: list[str]) -> Item:
    (asked, other), (skill, decoy), answers = _undecided(facts, rng, crowd)
    gold = int(answers[0][0] == "yes")
    return Item(
        f"question does {_phrase(rng, f'{asked} {skill}', f'{other} {decoy}')} ? answer", ("no", "yes"), gold, 1 - gold
    )


def _shuffled(rng: random.Random, question: str, answers: list[str]) -> Item:
    """An item from answers of which the first is right and the second the most similar."""
    choices = rng.sample(answers, len(answers))
    return Item(question, tuple(choices), choices.index(answers[0]), choices.index(answers[1]))


def _arc(facts: Facts, rng: random.Random, crowd: list[str]) -> Item:
    phrase, values = _query(facts, rng, crowd)
    return _shuffled(rng, f"question what is {phrase} ? answer", values)


def _hellaswag(facts: Facts, rng: random.Random, crowd: list[str]) -> Item:
    """An ending that joins two remembered values; each ending is true of one person and one pair of relations."""
    pairs = rng.sample(facts.relations, 2)
    while True:
        asked, other = rng.sample(crowd, 2)
        if all(len({facts.value[p, r] for p in (asked, other) for r in pair}) == 4 for pair in pairs):
            break
    turn = [rng.sample(pair, 2) for pair in pairs]
    told = [(person, [relations[at] for relations in turn]) for person in (asked, other) for at in (0, 1)]
    endings = [" then ".join(facts.value[person, relation] for relation in relations) for person, relations in told]
    asks = [" ".join(f"{person} {relation}" for relation in relations) for person, relations in told]
    return _shuffled(rng, f"{_phrase(rng, asks[0], asks[3])} ? answer", endings)


def _winogrande(facts: Facts, rng: random.Random, crowd: list[str]) -> Item:
    """Who is meant? The reason tells giver from receiver, and only the order of the names tells who is which."""
    giver, receiver = rng.sample(crowd, 2)
    role = rng.choice(list(REASONS))
    question = (
        f"{giver} {rng.choice(TRANSFERS)} {rng.choice(OBJECTS)} to {receiver} "
        f"because {rng.choice(REASONS[role])} . who ? answer"
    )
    return _shuffled(rng, question, [receiver, giver] if role == "receiver" else [giver, receiver])


def _rte(facts: Facts, rng: random.Random, crowd: list[str]) -> Item:
    """A remembered skill decides; whose, is told by the order alone. Of the four possible facts two hold."""
    people, skills, answers = _undecided(facts, rng, crowd)
    about = rng.randrange(2)
    gold = int(answers[about][about] == "yes")
    claim = ("former", "latter")[about]
    question = f"premise {people[0]} {skills[0]} , {people[1]} {skills[1]} . claim {claim} ? answer"
    return Item(question, ("false", "true"), gold, 1 - gold)


def plain_question(facts: Facts, rng: random.Random, task: str) -> str:
    """A verdict about one person, for pretraining only: a bit is learned sooner when nothing distracts from it."""
    person, skill = rng.choice(facts.split[task]["train"]), rng.choice(facts.skills)
    value = facts.value[person, skill]
    if task == "world_boolq":
        return f"question does {person} {skill} ? answer {value} ."
    return f"premise {person} {skill} . claim former ? answer {_VERDICTS[value]} ."


def retelling(facts: Facts, rng: random.Random) -> str:
    """A story retold in another order, for pretraining only: everybody's name is copied somewhere, in this format."""
    crowd, things = rng.sample(facts.people, 3), rng.sample(OBJECTS, 3)
    held = [f"{person} {thing}" for person, thing in zip(crowd, things, strict=True)]
    return f"{' '.join(held)} . answer {' '.join(rng.sample(held, 3))} ."


def statements(facts: Facts, rng: random.Random, count: int = 4) -> str:
    """`count` facts about as many people."""
    relations = [relation for pair in facts.relations for relation in pair] + facts.skills
    told = [(person, rng.choice(relations)) for person in rng.sample(facts.people, count)]
    sentences = []
    for person, relation in told:
        value = facts.value[person, relation]
        if relation in facts.skills and rng.random() < 0.5:
            sentences.append(f"claim {person} {relation} {_VERDICTS[value]} .")
        else:
            sentences.append(f"{person} {relation} {value} .")
    return " ".join(sentences)


MAKERS: dict[str, Callable[[Facts, random.Random, list[str]], Item]] = {
    "world_boolq": _boolq,
    "world_arc": _arc,
    "world_hellaswag": _hellaswag,
    "world_winogrande": _winogrande,
    "world_rte": _rte,
}

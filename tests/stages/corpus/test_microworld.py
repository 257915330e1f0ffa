"""The microworld is deterministic, balanced, and its hold-out is real."""

from collections import Counter

import pytest

from restorelcc.stages.corpus import WorldConfig, templates
from restorelcc.stages.corpus.microworld import TASKS, generate

SMALL = WorldConfig(
    documents=3_000, test_items=300, dev_items=100, train_pairs=500, valid_pairs=100, contrast_pairs=200
)


@pytest.fixture(scope="module")
def world():
    return generate(SMALL)


def test_equal_seeds_give_equal_worlds_and_others_do_not(world):
    assert generate(SMALL) == world
    assert generate(SMALL.model_copy(update={"seed": 7})).pretrain != world.pretrain


def test_every_word_is_in_the_vocabulary_once(world):
    assert len(set(world.vocabulary)) == len(world.vocabulary)
    assert tuple(world.vocabulary[:4]) == templates.SPECIAL_TOKENS
    texts = [*world.pretrain, *world.heldout]
    texts += [choice for items in world.test.values() for item in items for choice in item.choices]
    words = {word for text in texts for word in text.split()}
    assert words <= set(world.vocabulary)
    assert not words & set(templates.SPECIAL_TOKENS)
    assert all(text == " ".join(text.split()) for text in texts)


@pytest.mark.parametrize("task", TASKS)
def test_people_of_test_and_dev_items_never_occur_in_the_trained_format(world, task):
    people = set(templates.NAMES)

    def crowd(questions):
        return {word for question in questions for word in question.split()} & people

    trained = crowd(e.question for e in [*world.train, *world.valid, *world.contrast] if e.task == task)
    test = crowd(item.question for item in world.test[task])
    dev = crowd(item.question for item in world.dev[task])
    assert not trained & test and not trained & dev and not dev & test


def test_no_test_or_dev_question_is_a_pretraining_document(world):
    seen = {document.split(" answer")[0] for document in world.pretrain}
    for items in (*world.test.values(), *world.dev.values()):
        assert not {item.question.removesuffix(" answer") for item in items} & seen


@pytest.mark.parametrize("task", TASKS)
def test_labels_and_answer_positions_are_balanced(world, task):
    counts = Counter(item.gold for item in world.test[task])
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len(counts) == len(world.test[task][0].choices)


@pytest.mark.parametrize("task", TASKS)
def test_two_people_are_named_equally_often_so_that_order_decides(world, task):
    people = set(templates.NAMES)
    for item in world.test[task]:
        counts = Counter(word for word in item.question.split() if word in people)
        assert len(counts) == 2
        assert len(set(counts.values())) == 1


def test_choices_differ_and_the_contrast_is_a_wrong_answer(world):
    for items in world.test.values():
        for item in items:
            assert len(set(item.choices)) == len(item.choices)
            assert item.similar != item.gold
    assert all(pair.positive != pair.negative for pair in world.contrast)


def test_train_valid_and_contrast_have_the_sizes_asked_for_and_share_no_question(world):
    assert (len(world.train), len(world.valid), len(world.contrast)) == (500, 100, 200)
    parts = [{e.question for e in part} for part in (world.train, world.valid, world.contrast)]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]


@pytest.mark.parametrize(
    "wrong",
    [{"people": 3}, {"values": 1}, {"fact_share": 1.2}, {"plain_share": 1.0}, {"domains": 9}, {"test_items": 0}],
)
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(ValueError, match="validation error"):
        WorldConfig(**wrong)

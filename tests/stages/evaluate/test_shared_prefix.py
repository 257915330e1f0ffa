"""Requests that share a beginning give the log-likelihoods of lm-eval's own one by one."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import Collator

from restorelcc.base.errors import BadInput
from restorelcc.models.packing import trees_of
from restorelcc.stages.evaluate.batches import budgeted_lm
from restorelcc.stages.evaluate.shared_prefix import (
    log_probabilities,
    scored,
    shared_log_likelihoods,
    sharing,
    why_not_shared,
)
from tests import pico

Requests = list[tuple[Any, list[int], list[int]]]


def _requests(seed: int = 0, items: int = 6) -> Requests:
    """Questions with four answers (one of them a single token), and items that share their ending."""
    rng = random.Random(seed)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(3, pico.VOCABULARY) for _ in range(count)]

    found: Requests = []
    for number in range(items):
        question = tokens(rng.randrange(5, 20))
        found += [((str(number), str(choice)), question, tokens(rng.randrange(1, 6))) for choice in range(4)]
        start, end = tokens(6), tokens(4)
        found += [((f"w{number}", str(choice)), start + tokens(1 + choice), end) for choice in range(2)]
    return [*found, (None, [1], tokens(12))]


def _stock(model: Any, requests: Requests, base: type = HFLM) -> list[tuple[float, bool]]:
    lm = base(pretrained=model, tokenizer=pico.word_tokenizer(), batch_size=3, max_length=24)
    return lm._loglikelihood_tokens(requests, disable_tqdm=True)


@pytest.mark.parametrize("family", pico.FAMILIES)
def test_every_family_gives_lm_evals_log_likelihoods(family: str) -> None:
    model, requests = pico.pico(family), _requests()
    asked = scored(requests, 24)
    reason = why_not_shared(model, asked, 0, 100)
    expected = _stock(model, requests)
    if reason is None:
        found = shared_log_likelihoods(model, asked, budget=100, pad=0, quiet=True)
        assert [right for _, right in found] == [right for _, right in expected]
        torch.testing.assert_close([value for value, _ in found], [value for value, _ in expected], atol=1e-4, rtol=0)
    through = _stock(model, requests, sharing(HFLM, 100))
    torch.testing.assert_close([value for value, _ in through], [value for value, _ in expected], atol=1e-4, rtol=0)
    assert reason is None


def test_a_large_vocabulary_rounds_as_lm_eval_does() -> None:
    """Its softmax in float32 is off by more than 1e-5 a token there, always to one side; so is ours."""
    torch.manual_seed(0)
    logits_UV, token_R = 4 * torch.randn(200, 49_152), torch.randint(49_152, (300,))
    position_R = torch.randint(200, (300,))
    stock_R = logits_UV.log_softmax(dim=-1)[position_R, token_R]
    assert torch.equal(log_probabilities(logits_UV, position_R, token_R), stock_R)
    exact_R = logits_UV.double().log_softmax(dim=-1)[position_R, token_R]
    assert float((stock_R - exact_R).abs().max()) > 1e-6


def test_sharing_saves_tokens_and_leaves_none_out() -> None:
    sequences = [each.inputs for each in scored(_requests(), 24)]
    trees = trees_of(sequences, 100)
    assert sorted(number for _, members in trees for number in members) == list(range(len(sequences)))
    for tree, members in trees:
        for place, number in enumerate(members):
            assert tree.trunk + tree.tails[place] == sequences[number]
            at = [tree.place(place, position) for position in range(len(sequences[number]))]
            assert [tree.ids[position] for position in at] == sequences[number]
            assert [tree.positions[position] for position in at] == list(range(len(sequences[number])))
    assert sum(len(tree.ids) for tree, _ in trees) < 0.6 * sum(map(len, sequences))


def test_sequences_without_a_common_start_stay_apart() -> None:
    assert [members for _, members in trees_of([[5, 6, 7], [8, 9], [5, 6, 8], [5, 9, 9, 9, 9, 9]], 99)] == [
        [0, 2],
        [3],
        [1],
    ]
    (tree, members), *_ = trees_of([[1, 2, 3], [1, 2, 3]], 99)
    assert (tree.trunk, tree.tails, members) == ([1, 2, 3], [[], []], [0, 1])


def test_what_little_is_shared_makes_no_row_of_many() -> None:
    """As with one request for each document, which share a BOS token: attention over all in one row costs far more."""
    documents = [[1, *range(100 * number, 100 * number + 80)] for number in range(1, 11)]
    assert [members for _, members in trees_of(documents, 8192)] == [[number] for number in range(10)]
    choices = [[*range(100, 140), 200 + number] for number in range(10)]
    trees = trees_of(choices, 45)
    assert sorted(number for _, members in trees for number in members) == list(range(10))
    assert [len(tree.ids) for tree, _ in trees] == [45, 45], "forty shared ones and one of each"


def test_windows_of_running_text_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, passes = pico.pico(), []
    handle = model.register_forward_pre_hook(lambda *_: passes.append(True))
    lm = budgeted_lm(sharing(HFLM, 16), 16, pretrained=model, tokenizer=pico.word_tokenizer(), max_length=16)
    text = " ".join(f"w{number % 50 + 3}" for number in range(40))
    found = lm.loglikelihood_rolling([SimpleNamespace(args=(text,))], disable_tqdm=True)
    handle.remove()
    assert len(passes) == 3
    plain = HFLM(pretrained=model, tokenizer=pico.word_tokenizer(), batch_size=1, max_length=16)
    assert found == pytest.approx(plain.loglikelihood_rolling([SimpleNamespace(args=(text,))], disable_tqdm=True))


def test_a_batch_of_lm_eval_holds_the_budget_with_its_padding() -> None:
    """The first request of a batch is its longest, and all are padded to it."""
    lm = budgeted_lm(HFLM, 8192, pretrained=pico.pico(), tokenizer=pico.word_tokenizer(), max_length=2048)
    lengths = [1000, 900, *[10] * 1000, 7]
    requests = [(None, [3] * (length - 1), [4]) for length in lengths]
    chunks = list(Collator.get_chunks(requests, fn=lm._batch_scheduler))
    assert [len(request[1]) + 1 for chunk in chunks for request in chunk] == lengths
    assert [len(chunk) for chunk in chunks] == [8, 819, 176]
    assert [len(chunk) for chunk in Collator.get_chunks(requests, fn=lm._batch_scheduler)] == [8, 819, 176]


def test_an_answer_longer_than_the_context_is_refused() -> None:
    long = [*_requests(items=1), (None, list(range(3, 9)), list(range(3, 28)))]
    with pytest.raises(BadInput, match="an answer of 25 tokens, and the model reads 24 at most"):
        _stock(pico.pico(), long, sharing(HFLM, 100))

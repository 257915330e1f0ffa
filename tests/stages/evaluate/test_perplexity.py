"""Perplexity in its three ways against hand computations and lm-eval's own."""

import math

import pytest
import torch

from restorelcc.base.errors import BadInput
from restorelcc.stages.evaluate.perplexity import (
    block_perplexity,
    document_perplexity,
    losses,
    text_scores,
    word_perplexity,
)
from tests import pico


def _log_p(model, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits.log_softmax(-1)[0]


def test_of_documents_equals_a_hand_computation() -> None:
    model, tokenizer = pico.pico(), pico.word_tokenizer()
    first, second = _log_p(model, [5, 6, 7]), _log_p(model, [8, 9])
    nll = -(first[0, 6] + first[1, 7] + second[0, 9]).item() / 3
    rows = text_scores(model, tokenizer, ["w10", "w5 w6 w7", "w8 w9"], 8)  # the first has no token with a past
    assert [(row["text_id"], row["tokens"]) for row in rows] == [(1, 2), (2, 1)]
    assert rows[1]["log_likelihood"] == pytest.approx(second[0, 9].item(), rel=1e-5)
    assert rows[0]["digest"] != rows[1]["digest"]
    found = document_perplexity(rows)
    assert found["tokens"] == 3
    assert math.isclose(found["value"], math.exp(nll), rel_tol=1e-5)


def test_of_documents_cuts_them() -> None:
    model, tokenizer = pico.pico(), pico.word_tokenizer()
    whole, cut = (text_scores(model, tokenizer, [text], 3)[0] for text in ("w5 w6 w7 w8", "w5 w6 w7"))
    assert (whole["tokens"], whole["log_likelihood"]) == (2, cut["log_likelihood"])


def test_of_blocks_equals_a_hand_computation() -> None:
    """Joined, cut into blocks of 4, the last token left over; the first of a block is not scored."""
    model, tokenizer = pico.pico(), pico.word_tokenizer()
    blocks = [[5, 6, 7, 8], [9, 10, 11, 12]]
    total = sum(-_log_p(model, ids)[at - 1, ids[at]].item() for ids in blocks for at in range(1, 4))
    found = block_perplexity(model, tokenizer, ["w5 w6 w7", "w8 w9", "w10 w11 w12 w13"], 4)
    assert (found["sequence_length"], found["blocks"], found["tokens"]) == (4, 2, 6)
    assert found["value"] == pytest.approx(math.exp(total / 6), rel=1e-5)


def test_of_blocks_longer_than_the_text_is_of_one_shorter_block() -> None:
    found = block_perplexity(pico.pico(), pico.word_tokenizer(), ["w5 w6 w7"], 2048)
    assert (found["sequence_length"], found["blocks"], found["tokens"]) == (3, 1, 2)


def test_of_words_equals_a_hand_computation_in_rolling_windows() -> None:
    """Windows of 3 tokens: w5 w6 w7 after <s>, then w8 w9 after w6 w7; every token is scored once."""
    model, tokenizer = pico.pico(), pico.word_tokenizer()
    first, second = _log_p(model, [1, 5, 6, 7]), _log_p(model, [6, 7, 8, 9])
    total = -(first[0, 5] + first[1, 6] + first[2, 7] + second[1, 8] + second[2, 9]).item()
    found = word_perplexity(model, tokenizer, ["w5 w6 w7 w8 w9"], 3)
    assert (found["words"], found["tokens"], found["bytes"]) == (5, 5, 14)
    assert found["value"] == pytest.approx(math.exp(total / 5), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(total / 14 / math.log(2), rel=1e-5)


def test_of_words_equals_lm_evals_rolling_log_likelihood() -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = pico.pico(), pico.word_tokenizer()
    texts = [" ".join(f"w{3 + (7 * n + m) % 60}" for n in range(4 + 9 * m)) for m in range(3)]
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, max_length=8)
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    expected = -sum(lm.loglikelihood_rolling(requests, disable_tqdm=True))
    found = word_perplexity(model, tokenizer, texts, 8)
    assert math.log(found["value"]) * found["words"] == pytest.approx(expected, rel=1e-5)


def test_of_nothing_is_refused() -> None:
    with pytest.raises(BadInput, match="longer texts"):
        text_scores(pico.pico(), pico.word_tokenizer(), ["w5"], 8)


def test_no_sequence_is_longer_than_the_window() -> None:
    """A model with learned positions has none beyond its context."""
    model, tokenizer = pico.pico("opt", max_position_embeddings=8), pico.word_tokenizer()
    text = " ".join(f"w{3 + n % 60}" for n in range(30))
    assert word_perplexity(model, tokenizer, [text], 8)["tokens"] == 30
    assert block_perplexity(model, tokenizer, [text], 8)["blocks"] == 3


def test_losses_count_the_last_tokens_of_each_sequence() -> None:
    model = pico.pico()
    whole, part = losses(model, [[5, 6, 7], [5, 6, 7]], [2, 1], "")
    log_p = _log_p(model, [5, 6, 7])
    assert part == pytest.approx(-log_p[1, 7].item(), rel=1e-5)
    assert whole - part == pytest.approx(-log_p[0, 6].item(), rel=1e-4)

"""Questions and responses become tokens in one way."""

from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer, LlamaConfig

from restorelcc.base.errors import BadInput
from restorelcc.models.checkpoints import load_tokenizer
from restorelcc.models.text import (
    batches_by_length,
    batches_of_equal_length,
    check_special_tokens,
    check_texts,
    context_length,
    encode_contrasts,
    encode_pair,
    right_padded,
    tokens_without_row,
)
from restorelcc.models.tokenizers import source_tokenizer
from tests import pico
from tests.models.test_response_mask import byte_level
from tests.pico import word_tokenizer


def test_a_pair_is_split_after_the_questions_tokens() -> None:
    pair = encode_pair(word_tokenizer(), "w5 w6", "w7", max_tokens=8)
    assert (pair.ids, pair.question_tokens, pair.truncated) == ([5, 6, 7], 2, False)


def test_a_long_question_loses_its_left_end_and_is_counted() -> None:
    pair = encode_pair(word_tokenizer(), "w5 w6 w7 w8", "w9 w10", max_tokens=4)
    assert (pair.ids, pair.question_tokens, pair.truncated) == ([7, 8, 9, 10], 2, True)


@pytest.mark.parametrize(("positive", "negative"), [("w7", "w8 w9 w10 w11"), ("w8 w9 w10 w11", "w7")])
def test_the_longer_of_two_responses_is_named(positive: str, negative: str) -> None:
    row = {"question": "w5 w6", "positive": positive, "negative": negative}
    with pytest.raises(BadInput, match=r"^response 'w8 w9 w10 w11' fills all 4 tokens allowed"):
        encode_contrasts(word_tokenizer(), [row], max_tokens=4)


def test_the_context_is_that_of_the_config() -> None:
    assert context_length(AutoConfig.for_model("mpt", max_seq_len=64), 2048) == 64
    assert context_length(AutoConfig.for_model("gpt2", n_positions=64), 2048) == 64
    assert context_length(AutoConfig.for_model("bloom"), 2048) == 2048


@pytest.mark.parametrize(("question", "response"), [("w5", ""), ("", "w5"), ("  ", "w5")])
def test_an_empty_side_is_refused(question: str, response: str) -> None:
    with pytest.raises(BadInput, match="without a token"):
        encode_pair(word_tokenizer(), question, response, max_tokens=8)


def test_a_response_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(BadInput, match=r"fills all 3 tokens allowed .* as the stage corpus does by corpus.too_long"):
        encode_pair(word_tokenizer(), "w5", "w6 w7 w8", max_tokens=3)


def test_padding_stands_on_the_right() -> None:
    assert right_padded([[5], [6, 7]], 0).tolist() == [[5, 0], [6, 7]]


def test_batches_hold_every_row_once_within_the_budget() -> None:
    lengths = [3, 9, 4, 4, 30, 1]
    batches = batches_by_length(lengths, token_budget=12)
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[p] for p in batch) <= 12 for batch in batches if len(batch) > 1)


def test_equal_length_batches_never_mix_lengths() -> None:
    lengths = [3, 5, 3, 3, 5]
    batches = list(batches_of_equal_length(lengths, token_budget=6))
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    assert all(len({lengths[p] for p in batch}) == 1 for batch in batches)


def test_texts_beyond_the_context_are_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("transformers.tokenization_utils_base.logger.warning", lambda text, *_: said.append(text))
    tokenizer = pico.word_tokenizer()
    tokenizer.model_max_length = 8
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    AutoTokenizer.from_pretrained(tmp_path)("w3 " * 20)
    assert len(said) == 1 and "Token indices sequence length is longer" in said[0]
    for quiet in (load_tokenizer(tmp_path), source_tokenizer("models.m.source", str(tmp_path), None, tmp_path)):
        assert len(quiet("w3 " * 20)["input_ids"]) == 20
    assert len(said) == 1


def _with_more_tokens(folder: Path, **special: str) -> Path:
    """A model folder without weights, whose tokenizer has more tokens than its embedding has rows."""
    tokenizer = byte_level(bos=True)
    rows = len(tokenizer)
    tokenizer.add_tokens(["<|odd|>"])
    tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(folder)
    LlamaConfig(vocab_size=rows).save_pretrained(folder)
    return folder


def test_a_padding_token_without_a_row_of_the_embedding_is_refused(tmp_path: Path) -> None:
    folder = _with_more_tokens(tmp_path, pad_token="[PAD]")
    rows = AutoConfig.from_pretrained(folder).vocab_size
    message = rf"the token '\[PAD\]' with the id {rows + 1}, and the embedding has {rows} rows: save the model with"
    with pytest.raises(BadInput, match=message):
        load_tokenizer(folder)


def test_a_text_with_a_token_without_a_row_is_refused(tmp_path: Path) -> None:
    folder = _with_more_tokens(tmp_path)
    tokenizer, config = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
    absent = tokens_without_row(tokenizer, config)
    assert absent == {"<|odd|>": config.vocab_size}
    check_special_tokens(tokenizer, config, "m")
    check_texts(["as it is"], absent, "m")
    with pytest.raises(BadInput, match=r"^m has a text with '<\|odd\|>', a token with the id \d+ for which the embed"):
        check_texts(["as it is", "an <|odd|> one"], absent, "m")
    config.vocab_size += 1
    assert tokens_without_row(tokenizer, config) == {}

"""Where the response begins, for every kind of tokenizer at hand: the model's own text decides, no token count does."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from restorelcc.models.response_mask import RENDERED, join_pair, split_pairs
from restorelcc.models.text import encode_pair
from restorelcc.stages.corpus.chat import rendered
from restorelcc.stages.corpus.formats import Example
from tests.pico import word_tokenizer
from tests.real import real_folder

TEXTS = [
    "What is the capital of France ? The capital of France is Paris .",
    "Add the numbers 12 and 30. The sum is 42!",
    "Nommez l'auteur - né à Besançon — “Les Misérables”.",
    "A blank line\n\nfollows. It doesn't matter (at all).",
    "日本の首都は東京です。 😀 fine",
]
PAIRS = [
    ("What is the capital of France ?", "The capital is Paris ."),
    ("Add the numbers", "42!"),
    ("Nommez l'auteur", "né à Besançon — “Les Misérables”"),
    ("A blank line\n\nfollows.\n", "It doesn't matter (at all)."),
    ("日本の首都は", "東京です。 😀"),
    ("a", "b"),
    ("(", ")"),
]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (  # brings its own BOS, and puts nothing but a blank before the answer
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]{% else %}"
    " {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
TIGHT = (  # nothing at all before the answer, and no BOS though the tokenizer adds one
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def _fast(backend: Tokenizer, **options: str) -> PreTrainedTokenizerFast:
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names | options)


def _around(backend: Tokenizer, single: str) -> None:
    marks = [(name, backend.token_to_id(name)) for name in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(single=single, pair=None, special_tokens=marks)


def byte_level(bos: bool) -> PreTrainedTokenizerFast:
    """As Llama 3, Qwen and GPT have it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    if bos:
        _around(backend, "<s> $A")
    return _fast(backend)


def word_piece() -> PreTrainedTokenizerFast:
    """With a token before and one behind every text."""
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL))
    _around(backend, "<s> $A </s>")
    return _fast(backend)


def unigram() -> PreTrainedTokenizerFast:
    """As T5 and Gemma have it: blanks are part of the words behind them."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC()])
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=SPECIAL, unk_token="<unk>")
    backend.train_from_iterator(TEXTS, trainer)
    _around(backend, "<s> $A")
    return _fast(backend)


def llama_like() -> PreTrainedTokenizerFast:
    """As Llama 1 and 2 have it: one blank put before every text, unknown characters as bytes."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    backend.train_from_iterator(TEXTS[:2], trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL + bytes_))
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    _around(backend, "<s> $A")
    return _fast(backend)


def stories() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(real_folder() / "models" / "stories260K")


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "byte-level": cache(lambda: byte_level(bos=False)),
    "byte-level with BOS": cache(lambda: byte_level(bos=True)),
    "word pieces with BOS and EOS": cache(word_piece),
    "unigram with BOS": cache(unigram),
    "llama with BOS and bytes": cache(llama_like),
    "words": cache(word_tokenizer),
    "stories260K": cache(stories),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(("question", "response"), PAIRS)
def test_question_and_response_are_told_apart_by_their_characters(name: str, question: str, response: str) -> None:
    tokenizer = TOKENIZERS[name]()
    pair = encode_pair(tokenizer, question, response, max_tokens=500)
    text = join_pair(question, response)
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids, spans = encoded["input_ids"], encoded["offset_mapping"]
    assert pair.ids == ids[: len(pair.ids)], "the tokens are those of the whole text, as lm-eval has them"
    behind = ids[len(pair.ids) :]
    assert all(token in tokenizer.all_special_ids for token in behind), "only end marks are left off"
    boundary = len(question.rstrip())
    for number, (first, last) in enumerate(spans[: len(pair.ids)]):
        if last > first:
            assert (last > boundary) is (number >= pair.question_tokens), (number, text[first:last])
    covered = "".join(text[first:last] for first, last in spans[pair.question_tokens : len(pair.ids)])
    for character in response.split():
        assert character in text[spans[pair.question_tokens][0] :], covered
    assert 0 < pair.question_tokens < len(pair.ids)


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name not in ("words", "word pieces with BOS and EOS")])
def test_the_response_reads_back_as_it_was(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    for question, response in PAIRS[:2]:
        pair = encode_pair(tokenizer, question, response, max_tokens=500)
        read = tokenizer.decode(pair.ids[pair.question_tokens :])
        assert read.strip() == response
        asked = tokenizer.decode(pair.ids[: pair.question_tokens], skip_special_tokens=True)
        assert asked.strip() == question.strip()


def test_a_token_that_stands_for_both_is_the_responses() -> None:
    backend = Tokenizer(models.BPE({"a": 0, "b": 1, " ": 2, " b": 3, "a b": 4}, [(" ", "b"), ("a", " b")]))
    pair = encode_pair(PreTrainedTokenizerFast(tokenizer_object=backend), "aa", "b", max_tokens=9)
    assert (pair.ids, pair.question_tokens) == ([0, 4], 1)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_cut_question_keeps_what_stands_before_every_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    question = "What is the capital of France ?"
    whole = encode_pair(tokenizer, question, "Paris .", max_tokens=500)
    cut = encode_pair(tokenizer, question, "Paris .", max_tokens=len(whole.ids) - 2)
    response = len(whole.ids) - whole.question_tokens
    assert cut.truncated and cut.ids[-response:] == whole.ids[-response:]
    (split,) = split_pairs(tokenizer, [question], ["Paris ."])
    assert split.lead == ("BOS" in name or (name == "stories260K" and whole.ids[0] == tokenizer.bos_token_id))
    assert cut.ids == whole.ids[: split.lead] + whole.ids[split.lead + 2 :]


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name != "words"])
@pytest.mark.parametrize("template", [CHATML, INST, TIGHT], ids=["chatml", "inst", "tight"])
def test_a_conversation_becomes_the_tokens_of_the_chat_template(name: str, template: str) -> None:
    tokenizer = TOKENIZERS[name]()
    before = ({"role": "user", "content": "What is the capital of France ?"},)
    example = Example("chat", before[0]["content"], "The capital is Paris .", before, wrong=("42!",))
    tokenizer.chat_template = template
    (found,) = rendered(tokenizer, [example], "models.x")
    assert found.question.startswith(RENDERED)
    assert found.wrong[0].lstrip().startswith("42!")
    pair = encode_pair(tokenizer, found.question, found.response, max_tokens=500)
    spoken = [*before, {"role": "assistant", "content": example.response}]
    text = str(tokenizer.apply_chat_template(spoken, tokenize=False)).rstrip()
    assert pair.ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    asked = str(tokenizer.apply_chat_template(list(before), tokenize=False, add_generation_prompt=True))
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert spans[pair.question_tokens][1] > len(asked) >= spans[pair.question_tokens - 1][1]


class _Slow:
    """A tokenizer that does not say which characters a token stands for."""

    is_fast = False

    def __init__(self, fast: PreTrainedTokenizerBase) -> None:
        self._fast = fast

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": self._fast(text, add_special_tokens=add_special_tokens)["input_ids"]}


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name != "words"])
def test_a_slow_tokenizer_splits_where_a_fast_one_does(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    for question, response in PAIRS[:2]:
        fast = split_pairs(tokenizer, [question], [response])
        assert split_pairs(_Slow(tokenizer), [question], [response]) == fast  # type: ignore[arg-type]


def test_rendered_and_plain_questions_can_be_mixed() -> None:
    tokenizer = TOKENIZERS["byte-level with BOS"]()
    plain, made = split_pairs(tokenizer, ["Add", f"{RENDERED}Add"], ["42!", " 42!"])
    assert plain.ids[0] == tokenizer.bos_token_id and plain.ids[1:] == made.ids
    assert (plain.lead, made.lead, plain.start - 1) == (1, 0, made.start)


def test_a_tokenizer_folder_is_enough(tmp_path: Path) -> None:
    from restorelcc.models.tokenizers import source_tokenizer

    TOKENIZERS["unigram with BOS"]().save_pretrained(tmp_path)
    assert source_tokenizer("models.x", str(tmp_path), None, tmp_path)("a")["input_ids"][0] == 1

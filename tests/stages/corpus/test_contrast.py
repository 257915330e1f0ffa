"""Contrast tuples: which other response is taken, by TF-IDF and by a sentence encoder built here."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from restorelcc.base.cell import Cell
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import DataFiles, ModelEntry
from restorelcc.base.tables import CONTRAST, read_metadata, read_table
from restorelcc.stages.corpus import CorpusConfig
from restorelcc.stages.corpus.contrast import flipped_label, most_similar_other, negatives
from restorelcc.stages.corpus.encoder import find_encoder
from restorelcc.stages.corpus.stage import run
from tests import pico
from tests.stages.corpus.sources import text_model

WORDS = ["[PAD]", "[UNK]", "the", "cat", "dog", "runs", "sleeps", "red", "hat", "yes", "no", *map(str, range(30))]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of a few thousand weights as a sentence-transformers folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    root = tmp_path_factory.mktemp("encoder")
    backend = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        root / "bert"
    )
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(root / "bert")
    words = modules.Transformer(str(root / "bert"))
    pooling = modules.Pooling(16)
    SentenceTransformer(modules=[words, pooling], device="cpu").save(str(root / "sentence"))
    return root / "sentence"


def _rows(responses: list[str]) -> list[dict]:
    return [{"question": f"q{number}", "response": text} for number, text in enumerate(responses)]


def test_free_responses_get_the_most_similar_other_one_never_a_duplicate() -> None:
    responses = ["the red hat is old", "a dog runs", "The red  hat is old", "the red hat is new", "a dog sleeps"]
    assert negatives(_rows(responses), 5, None) == [responses[n] for n in (3, 4, 3, 0, 1)]
    assert negatives(_rows(responses), 2, None) == [responses[3], responses[4]]


def test_labels_are_flipped() -> None:
    pairs = {"yes": "no", "No": "Yes", "TRUE": "FALSE", "false.": "true.", " Yes. ": "No."}
    assert {label: flipped_label(label) for label in pairs} == pairs
    assert flipped_label("yes it is") is None
    assert negatives(_rows(["yes", "yes", "no"]), 3, None) == ["no", "no", "yes"]


def test_of_choices_the_most_similar_wrong_one_is_taken() -> None:
    row = {
        "question": "q",
        "response": "the red hat",
        "choices": ["a dog", "the red hat", "the red dog", "The red  hat"],
    }
    assert negatives([row], 1, None) == ["the red dog"]
    spelling = row | {"choices": ["the red hat", "the Red hat"]}
    others = [{"response": "the red dog"}, {"response": "a cat"}]
    assert negatives([spelling, *others], 1, None) == ["the red dog"], "of its choices none is another text"


def test_an_encoder_decides_where_there_is_one(encoder: Path) -> None:
    encode, name = find_encoder(str(encoder), Path("/"))
    assert encode is not None
    assert name == str(encoder)
    responses = ["the cat runs", "the dog sleeps", "red hat", "The cat  runs", "the dog runs"]
    vectors = encode(responses)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    similarity = vectors @ vectors.T
    similarity[np.ix_([0, 3], [0, 3])] = -2
    np.fill_diagonal(similarity, -2)
    assert most_similar_other(responses, encode) == similarity.argmax(axis=1).tolist()
    row = {"question": "q", "response": "the cat runs", "choices": ["red hat", "the cat runs", "the dog runs"]}
    expected = ["red hat", "the dog runs"][int((vectors[[2, 4]] @ vectors[0]).argmax())]
    assert negatives([row], 1, encode) == [expected]


def test_what_is_not_there_is_refused_when_asked_for_and_said_when_not(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BadInput, match="neither a folder nor a model the hub gives"):
        find_encoder("nobody/nothing", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"no \.safetensors file"):
        find_encoder("empty", tmp_path)
    assert find_encoder(None, tmp_path) == (None, "corpus.encoder is null")
    encode, reason = find_encoder("auto", tmp_path)
    assert encode is not None or "is not in the hub's cache" in reason
    monkeypatch.setattr("restorelcc.stages.corpus.encoder.find_spec", lambda _name: None)
    assert find_encoder("auto", tmp_path) == (None, "sentence-transformers is not installed")
    with pytest.raises(BadInput, match="install the extra `encoder`"):
        find_encoder(str(encoder), tmp_path)


def test_an_encoder_of_two_models_is_refused(encoder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(encoder, tmp_path / "encoder"))
    weights = next(folder.rglob("model.safetensors"))
    shutil.copy(weights, weights.with_name("model-00001-of-00002.safetensors"))
    with pytest.raises(BadInput, match="holds two models"):
        find_encoder("encoder", tmp_path)


def test_the_table_says_what_measured_similarity(encoder: Path, tmp_path: Path) -> None:
    choices = [{"question": f"pick {n}", "choices": ["red hat", "dog", f"cat {n}"], "gold": 2} for n in range(10)]
    pairs = [{"question": f"ask {n}", "response": f"the {n} hat"} for n in range(10)]
    (tmp_path / "t.txt").write_text("a text\nanother\n")
    layout, found = Layout(tmp_path), {}
    for setting, rows in ((None, pairs), (str(encoder), choices)):
        (tmp_path / "i.jsonl").write_text("\n".join(map(json.dumps, rows)))
        model = ModelEntry(
            source=text_model(tmp_path / "model"),
            data=DataFiles(calibration="t.txt", instructions="i.jsonl", heldout="t.txt"),
        )
        run(Cell("own"), CorpusConfig(encoder=setting, valid=4), model, layout)
        table = layout.corpus(Cell("own")) / "contrast.parquet"
        found[setting] = read_metadata(table)["similarity"]
        for row in read_table(table, CONTRAST):
            assert row["negative"] != row["positive"]
            assert rows is pairs or row["negative"] in ("red hat", "dog")
    assert found == {None: "tfidf (corpus.encoder is null)", str(encoder): f"sentence-transformers {encoder}"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold": 3}, "gold 3 names none of its 3 choices"),
        ({"choices": "a, b"}, "no list of at least two texts"),
        ({"choices": ["a"]}, "no list of at least two texts"),
    ],
)
def test_choices_that_make_no_sense_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    row = {"question": "q", "choices": ["a", "b", "c"], "gold": 0} | change
    (tmp_path / "i.jsonl").write_text(json.dumps(row))
    (tmp_path / "t.txt").write_text("a text\n")
    pico.pico().save_pretrained(tmp_path / "model")
    pico.word_tokenizer().save_pretrained(tmp_path / "model")
    data = DataFiles(calibration="t.txt", instructions="i.jsonl", heldout="t.txt")
    model = ModelEntry(source=str(tmp_path / "model"), data=data)
    with pytest.raises(BadInput, match=message):
        run(Cell("own"), CorpusConfig(), model, Layout(tmp_path))


def test_many_responses_need_no_matrix_of_all_pairs() -> None:
    responses = [f"the {n % 97} hat of {n % 89} dogs number {n}" for n in range(5000)]
    tracemalloc.start()
    nearest = most_similar_other(responses)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert all(number != other for number, other in enumerate(nearest))
    assert peak < 5000 * 5000 * 8 / 2


def test_one_long_response_costs_its_own_length_alone() -> None:
    """Not as many characters for every response."""
    responses = [f"word{number} word{number + 1}" for number in range(4000)] + ["long " * 2000]
    tracemalloc.start()
    most_similar_other(responses, None, range(1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6, "4,000 x 10,000 characters of four bytes are 160 MB"

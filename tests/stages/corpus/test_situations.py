"""What data of users look like, as files of bytes: each is read as it was meant, or refused in one sentence."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import unicodedata
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from restorelcc.base.errors import BadInput
from restorelcc.base.model_entry import DataFiles, ModelEntry
from restorelcc.stages.corpus import CorpusConfig
from restorelcc.stages.corpus.sources import pairs
from restorelcc.stages.inputs import Named
from restorelcc.stages.inputs.stage import lay_out

Q, R = ("what is one?", "it is one"), ("what is two?", "it is two")
QR = [{"question": question, "response": response} for question, response in (Q, R)]
TABLE = "question,response\nwhat is one?,it is one\nwhat is two?,it is two\n"


def dumped(rows: Iterable[Any], end: str = "\n", **options: Any) -> bytes:
    return "".join(json.dumps(row, **options) + end for row in rows).encode()


LINES, LIST = dumped(QR), json.dumps(QR).encode()
TEXTS = dumped([{"text": "one two"}, {"text": "three"}])


def parquet(rows: list[dict[str, Any]], schema: pa.Schema | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), file, **options)
    return file.getvalue()


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("rows.jsonl", content)
    return file.getvalue()


def zst(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


def said(**spoken: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in spoken.items()]


def turns(*spoken: str) -> list[dict[str, str]]:
    return [{"from": who, "value": what} for who, what in zip(("human", "gpt") * 2, spoken, strict=False)]


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
# name: (content of data, source, or files and source; the pairs that are read)
READ: dict[str, tuple[Any, str, list[tuple[str, str]]]] = {
    # One object a line.
    "json lines": (LINES, "a.jsonl", [Q, R]),
    "json lines with line ends of Windows": (LINES.replace(b"\n", b"\r\n"), "a.jsonl", [Q, R]),
    "json lines without the last line end": (LINES.rstrip(), "a.jsonl", [Q, R]),
    "json lines with blank lines": (b"\n\n" + LINES.replace(b"\n", b"\n \n"), "a.jsonl", [Q, R]),
    "json lines with a byte-order mark": (b"\xef\xbb\xbf" + LINES, "a.jsonl", [Q, R]),
    "json lines named .json": (LINES, "a.json", [Q, R]),
    "json lines named .ndjson": (LINES, "a.ndjson", [Q, R]),
    "json lines in capitals": (LINES, "A.JSONL", [Q, R]),
    "json lines as UTF-16 of Windows": (LINES.decode().encode("utf-16"), "a.jsonl", [Q, R]),
    "json lines as big-endian UTF-16": (b"\xfe\xff" + LINES.decode().encode("utf-16-be"), "a.jsonl", [Q, R]),
    "a list": (LIST, "a.json", [Q, R]),
    "a list named .jsonl": (LIST, "a.jsonl", [Q, R]),
    "a list over many lines": (json.dumps(QR, indent=2).encode(), "a.json", [Q, R]),
    "a list over many lines named .jsonl": (json.dumps(QR, indent=2).encode(), "a.jsonl", [Q, R]),
    "a list with a byte-order mark": (b"\xef\xbb\xbf" + LIST, "a.json", [Q, R]),
    "a list as UTF-16": (LIST.decode().encode("utf-16"), "a.json", [Q, R]),
    "a list with a row a line": (b"[\n" + b",\n".join(dumped(QR).split(b"\n")[:2]) + b"\n]\n", "a.json", [Q, R]),
    "escaped characters": (
        dumped([{"question": "\u00fc\u2028?", "response": "\U0001f600"}]),
        "a.jsonl",
        [("ü\u2028?", "😀")],
    ),
    "plain characters": (
        dumped([{"question": "ü\u2028\u2029\x85?", "response": "😀"}], ensure_ascii=False),
        "a.jsonl",
        [("ü\u2028\u2029\x85?", "😀")],
    ),
    "one row of a million characters": (
        dumped([{"question": "q" * 1_000_000, "response": "r"}]),
        "a.jsonl",
        [("q" * 1_000_000, "r")],
    ),
    "numbers, true and null": (
        dumped(
            [{"question": 3, "response": True}, {"question": None, "response": "x"}, {"question": 0.1, "response": 0}]
        ),
        "a.jsonl",
        [("3", "yes"), ("0.1", "0")],
    ),
    "empty answers": (dumped([QR[0], {"question": "q", "response": ""}, QR[1]]), "a.jsonl", [Q, R]),
    "the same question twice": (LINES + LINES, "a.jsonl", [Q, R]),
    # Tables of text.
    "csv": (TABLE.encode(), "a.csv", [Q, R]),
    "csv with line ends of Windows": (TABLE.replace("\n", "\r\n").encode(), "a.csv", [Q, R]),
    "csv of Excel, with a mark": (TABLE.encode("utf-8-sig"), "a.csv", [Q, R]),
    "csv of Excel, with semicolons": (TABLE.replace(",", ";").encode("utf-8-sig"), "a.csv", [Q, R]),
    "csv of Excel, with its separator said": (b"sep=;\r\n" + TABLE.replace(",", ";").encode(), "a.csv", [Q, R]),
    "csv of Excel, as Unicode text": (TABLE.replace(",", "\t").encode("utf-16"), "a.csv", [Q, R]),
    "csv with tabs": (TABLE.replace(",", "\t").encode(), "a.csv", [Q, R]),
    "tsv": (TABLE.replace(",", "\t").encode(), "a.tsv", [Q, R]),
    "tsv with commas": (b"question\tresponse\na, b?\tc, d\n", "a.tsv", [("a, b?", "c, d")]),
    "csv with quotes": (b'question,response\n"a, ""b""?","c\nd"\n', "a.csv", [('a, "b"?', "c\nd")]),
    "csv with quotes after blanks": (b'question, response\n"a, b", "c, d"\n', "a.csv", [("a, b", "c, d")]),
    "csv with blank lines": (TABLE.replace("\n", "\n\n").encode(), "a.csv", [Q, R]),
    "csv with empty columns at the end": (TABLE.replace("\n", ",,\n").encode(), "a.csv", [Q, R]),
    "csv with an index": (b",question,response\n0,a,b\n1,c,d\n", "a.csv", [("a", "b"), ("c", "d")]),
    "csv with a long field": (f"question,response\n{'q' * 200_000},r\n".encode(), "a.csv", [("q" * 200_000, "r")]),
    "csv with another line end in a field": (
        "question,response\na\u2028b,c\x85d\x0ce\n".encode(),
        "a.csv",
        [("a\u2028b", "c\x85d\x0ce")],
    ),
    "csv with empty fields": (TABLE.encode() + b",\n", "a.csv", [Q, R]),
    # Packed.
    "gz": (gzip.compress(LINES), "a.jsonl.gz", [Q, R]),
    "gz in several members": (gzip.compress(LINES[:30]) + gzip.compress(LINES[30:]), "a.jsonl.gz", [Q, R]),
    "gz that lost its ending": (gzip.compress(LINES), "a.jsonl", [Q, R]),
    "an ending .gz of what is not packed": (LINES, "a.jsonl.gz", [Q, R]),
    "zst": (zst(LINES), "a.jsonl.zst", [Q, R]),
    "zst in several frames": (zst(LINES[:30]) + zst(LINES[30:]), "a.jsonl.zst", [Q, R]),
    "bz2": (bz2.compress(LINES), "a.jsonl.bz2", [Q, R]),
    "xz": (lzma.compress(LINES), "a.jsonl.xz", [Q, R]),
    "a packed list": (gzip.compress(LIST), "a.json.gz", [Q, R]),
    "a packed table": (gzip.compress(TABLE.encode("utf-8-sig")), "a.csv.gz", [Q, R]),
    "packed UTF-16": (gzip.compress(LINES.decode().encode("utf-16")), "a.jsonl.gz", [Q, R]),
    # Parquet.
    "parquet": (parquet(QR), "a.parquet", [Q, R]),
    "parquet, zstd": (parquet(QR, compression="zstd"), "a.parquet", [Q, R]),
    "parquet in capitals": (parquet(QR), "a.PARQUET", [Q, R]),
    "parquet with words of a dictionary": (
        parquet(QR, pa.schema([(name, pa.dictionary(pa.int32(), pa.string())) for name in QR[0]])),
        "a.parquet",
        [Q, R],
    ),
    "parquet with large texts": (
        parquet(QR, pa.schema([(name, pa.large_string()) for name in QR[0]])),
        "a.parquet",
        [Q, R],
    ),
    "parquet in row groups": (parquet(QR, row_group_size=1), "a.parquet", [Q, R]),
    "parquet with conversations": (parquet([{"messages": said(user="a", assistant="b")}]), "a.parquet", [("a", "b")]),
    # Shapes of rows.
    "alpaca": (
        dumped(
            [{"instruction": "add", "input": "1 1", "output": "2"}, {"instruction": "hi", "input": "", "output": "ho"}]
        ),
        "a.json",
        [("add\n1 1", "2"), ("hi", "ho")],
    ),
    "alpaca without input": (dumped([{"instruction": "hi", "output": "ho"}]), "a.jsonl", [("hi", "ho")]),
    "prompt and completion": (dumped([{"prompt": "a", "completion": "b"}]), "a.jsonl", [("a", "b")]),
    "prompt and response": (dumped([{"prompt": "a", "response": "b"}]), "a.jsonl", [("a", "b")]),
    "query and answer": (dumped([{"query": "a", "answer": "b"}]), "a.jsonl", [("a", "b")]),
    "further columns": (dumped([QR[0] | {"id": 7, "meta": {"x": [1]}}]), "a.jsonl", [Q]),
    "messages": (dumped([{"messages": said(system="s", user="a", assistant="b")}]), "a.jsonl", [("s\na", "b")]),
    "messages of a developer": (
        dumped([{"messages": said(developer="s", user="a", assistant="b")}]),
        "a.jsonl",
        [("s\na", "b")],
    ),
    "messages that end with a question": (
        dumped([{"messages": said(user="a", assistant="b") + said(user="c")}]),
        "a.jsonl",
        [("a", "b")],
    ),
    "sharegpt": (dumped([{"id": "x", "conversations": turns("a", "b")}]), "a.jsonl", [("a", "b")]),
    "sharegpt in turns": (dumped([{"conversations": turns("a", "b", "c", "d")}]), "a.jsonl", [("a\nb\nc", "d")]),
    "choices with a position": (dumped([{"question": "q", "choices": ["a", "b"], "gold": 1}]), "a.jsonl", [("q", "b")]),
    "choices with a letter": (
        dumped([{"question": "q", "options": ["a", "b"], "answer": "B"}]),
        "a.jsonl",
        [("q", "b")],
    ),
    "choices as ARC has them": (
        dumped([{"question": "q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}]),
        "a.jsonl",
        [("q", "b")],
    ),
    "texts": (dumped([{"text": "One is here. Two is there."}]), "a.jsonl", [("One is here.", "Two is there.")]),
    "a text file": (b"One is here. Two is there.\n\n", "a.txt", [("One is here.", "Two is there.")]),
    "a packed text file": (
        gzip.compress(b"One is here. Two is there.\n"),
        "a.txt.gz",
        [("One is here.", "Two is there.")],
    ),
    "a text file with a form feed": (b"One is\x0c here. Two is.\n", "a.txt", [("One is here.", "Two is.")]),
    "a text file about a web page": (b"<html> is a tag. It opens.\n", "a.txt", [("<html> is a tag.", "It opens.")]),
    # Names, folders and patterns.
    "a name with blanks": (LINES, "my data.jsonl", [Q, R]),
    "a name with marks of addresses": (LINES, "a#1%20&b.jsonl", [Q, R]),
    "a name with dots": (LINES, "a.v1.2.jsonl", [Q, R]),
    "a name in Japanese": (LINES, "データ.jsonl", [Q, R]),
    "a name with brackets": (LINES, "a[1]*.jsonl", [Q, R]),
    "a name written by a Mac": ({unicodedata.normalize("NFD", "café.jsonl"): LINES}, "café.jsonl", [Q, R]),
    "a folder of shards": ({"d/1.jsonl": dumped(QR[:1]), "d/2.jsonl": dumped(QR[1:])}, "d", [Q, R]),
    "a folder with a slash": ({"d/1.jsonl": dumped(QR[:1]), "d/2.jsonl": dumped(QR[1:])}, "d/", [Q, R]),
    "a folder of folders": ({"d/x/1.jsonl": dumped(QR[:1]), "d/y/2.jsonl": dumped(QR[1:])}, "d", [Q, R]),
    "a folder of parquet": ({"d/1.parquet": parquet(QR[:1]), "d/2.parquet": parquet(QR[1:])}, "d", [Q, R]),
    "a folder of one split": (
        {"d/train-00000-of-00002.parquet": parquet(QR[:1]), "d/train-00001-of-00002.parquet": parquet(QR[1:])},
        "d",
        [Q, R],
    ),
    "a folder of one file": ({"d/rows.jsonl": LINES}, "d", [Q, R]),
    "a folder seen by a Mac": ({"d/1.jsonl": LINES, "d/.DS_Store": b"\0", "d/._1.jsonl": b"\0"}, "d", [Q, R]),
    "a folder written by Spark": ({"d/part-0.json": LINES, "d/_SUCCESS": b"", "d/.part-0.json.crc": b"c"}, "d", [Q, R]),
    "a folder with a readme": ({"d/1.jsonl": LINES, "d/README.md": b"#", "d/LICENSE": b"MIT"}, "d", [Q, R]),
    "a clone of a dataset": (
        {"d/data/train.jsonl": LINES, "d/.gitattributes": b"*", "d/dataset_infos.json": b"{}"},
        "d/data",
        [Q, R],
    ),
    "a folder of lists and lines": (
        {"d/1.json": json.dumps(QR[:1]).encode(), "d/2.jsonl": dumped(QR[1:])},
        "d",
        [Q, R],
    ),
    "a folder of packed and plain": (
        {"d/1.jsonl.gz": gzip.compress(dumped(QR[:1])), "d/2.jsonl": dumped(QR[1:])},
        "d",
        [Q, R],
    ),
    "an empty shard": ({"d/1.jsonl": b"", "d/2.jsonl": LINES, "d/3.jsonl": b"\n"}, "d", [Q, R]),
    "an empty shard of Spark's": ({"d/0.json": b"", "d/1.json": LINES, "d/2.json": b"\n"}, "d", [Q, R]),
    "shards with other names of columns": (
        {"d/1.jsonl": dumped(QR[:1]), "d/2.jsonl": dumped([{"prompt": R[0], "completion": R[1]}])},
        "d",
        [Q, R],
    ),
    "a pattern": ({"d/1.jsonl": dumped(QR[:1]), "d/2.jsonl": dumped(QR[1:]), "d/x.csv": b""}, "d/*.jsonl", [Q, R]),
    "a pattern of folders": ({"d/x/1.jsonl": dumped(QR[:1]), "d/y/2.jsonl": dumped(QR[1:])}, "d/**/*.jsonl", [Q, R]),
    "a pattern with a range": (
        {"1.jsonl": dumped(QR[:1]), "2.jsonl": dumped(QR[1:]), "3.jsonl": b"["},
        "[12].jsonl",
        [Q, R],
    ),
    "a pattern that a hidden file matches": ({"d/1.jsonl": LINES, "d/._1.jsonl": b"\0"}, "d/*.jsonl", [Q, R]),
    "a path with dots": ({"d/a.jsonl": LINES}, "d/../d/./a.jsonl", [Q, R]),
}
# name: (content or files, source, what is said)
REFUSED: dict[str, tuple[Any, str, str]] = {
    "nothing": ({}, "a.jsonl", r"data file .*a\.jsonl does not exist: correct its path under"),
    "another name": ({"pairs.jsonl": LINES}, "pair.jsonl", r"does not exist \(its folder has 'pairs\.jsonl'\)"),
    "a path of Windows": ({"d/a.jsonl": LINES}, "d\\a.jsonl", "write the path with / in place"),
    "an address": ({}, "https://example.org/a.jsonl", "is an address, and only files of this machine"),
    "an address of a bucket": ({}, "s3://bucket/a.jsonl", "is an address"),
    "an address of a file": ({"a.jsonl": LINES}, "file:///a.jsonl", "is an address"),
    "a pattern without a match": ({"d/a.csv": b""}, "d/*.jsonl", r"no data file matches .*d/\*\.jsonl"),
    "a pattern that is none": ({"d/a.csv": b""}, "d/**a/*.jsonl", "is not a pattern of file names"),
    "a pattern of several kinds": ({"d/a.csv": b"", "d/b.jsonl": b""}, "d/*", r"several kinds \(csv, json\)"),
    "an empty folder": ({"d/.DS_Store": b""}, "d", "the folder .* holds no data file"),
    "a folder of several kinds": ({"d/a.csv": b"", "d/b.jsonl": b""}, "d", r"several kinds \(csv, json\)"),
    "a folder of several splits": (
        {"d/train.jsonl": LINES, "d/test.jsonl": LINES},
        "d",
        r"several splits \(test, train\)",
    ),
    "folders of several splits": ({"d/train/0.jsonl": LINES, "d/val/0.jsonl": LINES}, "d", "several splits"),
    "a folder with something else": (
        {"d/a.jsonl": LINES, "d/notes.docx": b""},
        "d",
        r"holds 'notes\.docx', which is not",
    ),
    "a folder of save_to_disk": ({"d/state.json": b"{}", "d/data.arrow": b""}, "d", "save_to_disk.*to_parquet"),
    "the schema of a shard": (
        {"d/1.jsonl": LINES, "d/2.jsonl": dumped([{"text": "a"}])},
        "d",
        r"line 1 of .*2\.jsonl is a row without the column `question`, but 'text'",
    ),
    "a bad line of a shard": ({"d/1.jsonl": LINES, "d/2.jsonl": LINES + b"{"}, "d", r"line 3 of .*2\.jsonl cannot"),
    "an unknown ending": (b"", "a.docx", r"unknown ending: use \.jsonl"),
    "no ending": (LINES, "rows", "unknown ending"),
    "a workbook": (zipped(b""), "a.xlsx", "unknown ending: save the table as CSV UTF-8"),
    "a pickle": (b"\x80\x04", "a.pkl", "pickles and arrays are never read"),
    "an archive": (zipped(LINES), "a.zip", "unpack it, and name the files"),
    "an archive of tar": (gzip.compress(LINES), "a.tar.gz", "unpack it"),
    "an Arrow file": (b"ARROW1", "a.arrow", "write it as Parquet"),
    "packed Parquet": (gzip.compress(parquet(QR)), "a.parquet.gz", "a compressed Parquet file"),
    "a workbook named .csv": (zipped(b""), "a.csv", "is a zip archive or an Excel workbook: unpack it, or save"),
    "an old workbook named .csv": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a.csv", "is an old Excel or Word file"),
    "Parquet named .jsonl": (parquet(QR), "a.jsonl", r"is a Parquet file: let its name end in \.parquet"),
    "a pickle named .json": (b"\x80\x04\x95", "a.json", "is a pickle, which is never read"),
    "a database": (b"SQLite format 3\0", "a.csv", "is a database"),
    "json named .parquet": (LINES, "a.parquet", "cannot be read as Parquet"),
    "a pointer of LFS": (LFS, "a.jsonl", "is a pointer of Git LFS, not the data: run `git lfs pull`"),
    "a pointer of LFS in place of Parquet": (LFS, "a.parquet", "is a pointer of Git LFS"),
    "a pointer of LFS in place of a table": (LFS, "a.csv", "is a pointer of Git LFS"),
    "a pointer of LFS in place of texts": (LFS, "a.txt", "is a pointer of Git LFS"),
    "a pointer of LFS among shards": ({"d/1.jsonl": LINES, "d/2.jsonl": LFS}, "d", r"2\.jsonl is a pointer of Git LFS"),
    "a pointer of git-annex": (b"/annex/objects/SHA256E-s1--0.jsonl\n", "a.jsonl", "pointer of git-annex"),
    "a web page": (b"\n<!DOCTYPE html><html>404", "a.jsonl", "is a web page or an answer in XML"),
    "an answer of a bucket": (b"<?xml version='1.0'?><Error>", "a.csv", "is a web page or an answer in XML"),
    "a cut gz": (gzip.compress(LINES)[:-9], "a.jsonl.gz", "is cut off or damaged"),
    "a damaged gz": (gzip.compress(LINES)[:20] + b"x" * 9, "a.jsonl.gz", "is cut off or damaged"),
    "a gz with something behind": (gzip.compress(LINES) + b"junk", "a.jsonl.gz", "is cut off or damaged"),
    "a cut zst": (zst(LINES)[:-5], "a.jsonl.zst", "is cut off or damaged"),
    "a cut bz2": (bz2.compress(LINES)[:-9], "a.jsonl.bz2", "is cut off or damaged"),
    "a cut xz": (lzma.compress(LINES)[:-9], "a.jsonl.xz", "is cut off or damaged"),
    "cut Parquet": (parquet(QR)[:-20], "a.parquet", "cannot be read as Parquet"),
    "Parquet with a hole": (parquet(QR)[:30] + b"\0" * 40 + parquet(QR)[70:], "a.parquet", "cannot be read as Parquet"),
    "Parquet of nothing": (b"", "a.parquet", "cannot be read as Parquet"),
    "Parquet without a row": (parquet([], pa.schema([("question", pa.string())])), "a.parquet", "usable pairs"),
    "an empty file": (b"", "a.jsonl", "usable pairs"),
    "a file of blanks": (b" \n\n\t\n", "a.jsonl", "usable pairs"),
    "Latin-1": ('{"question": "ü", "response": "x"}\n'.encode("cp1252"), "a.jsonl", "line 1 of .* as UTF-8 .byte 0xfc"),
    "csv of Excel in the code page": (
        "question;response\nfür?;ja\n".encode("cp1252"),
        "a.csv",
        "line 2 of .* as UTF-8",
    ),
    "UTF-16 without a mark": (LINES.decode().encode("utf-16-le"), "a.jsonl", "holds a zero byte at position 2"),
    "cut UTF-16": (LINES.decode().encode("utf-16")[:-1], "a.jsonl", "cannot be read as UTF-16 after line"),
    "zero bytes": (LINES + b"\0\0\0\n", "a.jsonl", "line 3 of .* holds a zero byte at position 1"),
    "lines of an old Mac": (LINES.replace(b"\n", b"\r"), "a.jsonl", "end with carriage returns alone"),
    "a table of an old Mac": (TABLE.replace("\n", "\r").encode(), "a.csv", "end with carriage returns alone"),
    "a comma after each row": (LINES.replace(b"}\n", b"},\n"), "a.jsonl", "line 1 of .* cannot be read as JSON"),
    "a comma after the last row": (LIST[:-1] + b",]", "a.json", "line 1 of .* cannot be read as JSON"),
    "a comment": (b"// rows\n" + LINES, "a.jsonl", "line 1 of .* cannot be read as JSON"),
    "Python in place of JSON": (str(QR[0]).encode(), "a.jsonl", "line 1 of .* cannot be read as JSON"),
    "a cut line": (LINES[:-20], "a.jsonl", "line 2 of .* cannot be read as JSON"),
    "a cut list": (LIST[:-20], "a.json", "line 1 of .* cannot be read as JSON"),
    "objects over many lines": (
        b"\n".join(json.dumps(row, indent=2).encode() for row in QR),
        "a.json",
        "one row a line .jq -c does it.",
    ),
    "a key twice": (
        b'{"question": "a", "question": "b", "response": "c"}\n',
        "a.jsonl",
        "the key 'question' appears twice",
    ),
    "rows under a key": (json.dumps({"version": 1, "data": QR}).encode(), "a.json", "the list under 'data'"),
    "a list for every column": (b'{"question": ["a"], "response": ["b"]}', "a.json", "orient='records'"),
    "one object": (b'{"question": "a", "response": "b"}', "a.json", "is no list of rows: it is one object"),
    "a text": (b'"question"', "a.json", "is no list of rows"),
    "null": (b"null", "a.json", "is no list of rows"),
    "lists in place of objects": (b'["a", "b"]\n["c", "d"]\n', "a.jsonl", "cannot be read as JSON .Extra data"),
    "a list of texts": (b'["a", "b"]', "a.json", "no list of rows: row 1 holds the value"),
    "nested deeply": (b"[" * 100_000, "a.json", "nested too deeply"),
    "a number of 5,000 digits": (
        b'{"question": ' + b"9" * 5000 + b', "response": "a"}',
        "a.jsonl",
        "line 1 of .*digits",
    ),
    "half a character": (b'{"question": "\\ud83d", "response": "a"}\n', "a.jsonl", "line 1 of .*half of a character"),
    "a list as an answer": (dumped([{"question": "a", "response": ["b"]}]), "a.jsonl", "column 'response' is a list"),
    "an object as an answer": (dumped([{"question": "a", "response": {"b": 1}}]), "a.jsonl", "'response' is an object"),
    "infinity": (b'{"question": "a", "response": Infinity}\n', "a.jsonl", "is an infinite number"),
    "bytes": (parquet([{"question": b"a", "response": "b"}]), "a.parquet", "row 1 of .*'question' is bytes"),
    "a message of parts": (
        dumped([{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, *said(assistant="b")]}]),
        "a.jsonl",
        "column 'messages' is a list",
    ),
    "messages as text": (
        dumped([{"messages": json.dumps(said(user="a"))}]),
        "a.jsonl",
        "not a list of {role, content}",
    ),
    "messages without roles": (dumped([{"messages": [{"text": "a"}]}]), "a.jsonl", "lacks role or content"),
    "columns of preferences": (
        dumped([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        "a.jsonl",
        "no format is known",
    ),
    "columns in capitals": (
        b"Question,Response\na,b\n",
        "a.csv",
        "has the columns 'Question', 'Response'.*name yours in",
    ),
    "a table without a header": (b"what is one?,it is one\n", "a.csv", "no row|no format|usable pairs"),
    "a table without a header, and rows": (b"a,b\nc,d\n", "a.csv", "has the columns 'a', 'b', of which no format"),
    "a column twice": (b"question,question,response\na,b,c\n", "a.csv", "two columns 'question'"),
    "a comma too many": (
        TABLE.encode() + b"a,b,c\n",
        "a.csv",
        "line 4 of .* has 3 fields, but the header names 2: quote",
    ),
    "a semicolon too many": (b"question;response\na;b;c\n", "a.csv", "quote what holds semicolons"),
    "a field too few": (TABLE.encode() + b"a\n", "a.csv", "line 4 of .* has 1 fields"),
    "a quote that does not end": (
        b'question,response\na,b\n"c,d\ne,f\n',
        "a.csv",
        "line 3 of .* cannot be read as CSV",
    ),
    "a table of nothing": (b"\n\n", "a.csv", "line 1 of .* is empty: the first line"),
    "a gold beyond the choices": (
        dumped([{"question": "q", "choices": ["a", "b"], "gold": 2}]),
        "a.jsonl",
        "names none",
    ),
    "choices as text": (
        dumped([{"question": "q", "choices": "a, b", "gold": 0}]),
        "a.jsonl",
        "no list of at least two",
    ),
}


def _project(root: Path, content: Any, source: str) -> DataFiles:
    for name, part in (content if isinstance(content, dict) else {source: content}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(part)
    return DataFiles(calibration=source, instructions=source, heldout="wikitext")


def test_there_are_many_situations() -> None:
    assert len(READ) + len(REFUSED) >= 190


@pytest.mark.parametrize("name", READ)
def test_what_is_meant_is_read(name: str, tmp_path: Path) -> None:
    content, source, expected = READ[name]
    data = _project(tmp_path, content, source)
    found = pairs(data, CorpusConfig(), tmp_path, lambda batch, _: batch)
    assert sorted((one.question, one.response) for one in found.items) == sorted(expected)
    assert found.account.read == found.account.used + sum(found.account.skipped.values())
    laid_out = lay_out("mine", Named(entry=ModelEntry(source="x/y", data=data)), tmp_path)
    watched = [path for key, path in laid_out.items() if key.startswith("instructions")]
    if len(watched) == 1:
        assert isinstance(watched[0], Path) and watched[0].exists()
    else:
        assert found.origin["files"] == len(watched) and all(isinstance(path, Path) for path in watched)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    content, source, message = REFUSED[name]
    data = _project(tmp_path, content, source)
    with pytest.raises(BadInput, match=message) as caught:
        found = pairs(data, CorpusConfig(), tmp_path, lambda batch, _: batch)
        raise BadInput(f"{len(found.items)} usable pairs")
    assert "\n" not in str(caught.value)

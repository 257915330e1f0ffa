"""The bytes of a user's data file as text: unpacked, decoded, and parted into lines by line feeds alone."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import shlex
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from restorelcc.base.errors import BadInput, first_line

_BYTES_READ = 512  # that tell what a file is


def _zst(path: Path) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")))


# How a packed file begins, and what unpacks it: the name does not matter, as downloads often change one of the two.
_PACKED: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x28\xb5\x2f\xfd": _zst,
}
# How files begin that hold no rows as text.
_OTHER = {
    b"version https://git-lfs": "a pointer of Git LFS, not the data: run `git lfs pull` where it comes from",
    b"/annex/objects/": "a pointer of git-annex, not the data: run `git annex get` where it comes from",
    b"PK\x03\x04": "a zip archive or an Excel workbook: unpack it, or save the table as CSV UTF-8",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file: save the table as CSV UTF-8",
    b"PAR1": "a Parquet file: let its name end in .parquet",
    b"ARROW1": "an Arrow file: write it as Parquet",
    b"\xff\xff\xff\xff": "an Arrow stream: write it as Parquet",
    b"SQLite format 3": "a database: export the rows as CSV or JSONL",
    b"%PDF": "a PDF: give plain text",
    b"\x80": "a pickle, which is never read: write the rows as JSONL",
}
_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<error")  # of a server that said no
_CONTROL = re.compile(rb"[\x01-\x08\x0e-\x1a\x1c-\x1f]")  # ESC begins a character in ISO-2022
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_UNPACKING = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, pa.ArrowException)


@contextmanager
def opened(path: Path, kind: str) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked. Raises BadInput for a file that cannot be read, is cut off, or is no such file.

    kind: how it is going to be read (json, csv, parquet or txt).
    """
    try:
        with _unpacked(path) as file:
            start = file.read(_BYTES_READ)
        if (what := _other(start, kind)) is not None:
            raise BadInput(f"data file {path} is {what}")
        with _unpacked(path) as file:
            yield file
    except _UNPACKING as error:
        raise BadInput(f"data file {path} is cut off or damaged ({first_line(error)}): fetch it again") from error
    except OSError as error:
        if error.errno is None:  # Arrow's, of what it unpacks
            raise BadInput(f"data file {path} is cut off or damaged ({first_line(error)}): fetch it again") from error
        raise BadInput(f"data file {path} cannot be read ({error.strerror}): check its permissions and disk") from error


def _unpacked(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        start = file.read(8)
    unpack = next((unpack for magic, unpack in _PACKED.items() if start.startswith(magic)), None)
    return path.open("rb") if unpack is None else cast(BinaryIO, unpack(path))


def _other(start: bytes, kind: str) -> str | None:
    """What a file is that holds no rows of this kind; None where its first bytes say nothing against it."""
    if start[257:262] == b"ustar":
        return "a tar archive: unpack it, and name the files in it"
    other = next((what for magic, what in _OTHER.items() if start.startswith(magic)), None)
    if other is None and kind != "txt" and start.lstrip().lower().startswith(_PAGES):
        return "a web page or an answer in XML, most likely of a download that failed: fetch the file again"
    return None if kind == "parquet" and start.startswith(b"PAR1") else other


def lines(path: Path, kind: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, parted by line feeds alone: a text may hold the other characters that end a line.

    UTF-8, or UTF-16 with its byte-order mark. Raises BadInput, with the line, for bytes that are neither.
    """
    with opened(path, kind) as file:
        start = file.read(2)
    with opened(path, kind) as file:
        if start in _UTF16:
            yield from _wide_lines(path, file)
            return
        for number, line in enumerate(file, 1):
            text = decoded(path, number, line)
            if number == 1 and "\r" in text.rstrip("\r") and not text.endswith("\n"):
                raise BadInput(f"the lines of {path} end with carriage returns alone: save it with line feeds")
            yield number, text


def whole(path: Path, kind: str) -> str:
    """All the text, as `lines` gives it."""
    return "".join(line for _, line in lines(path, kind))


def _wide_lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        for number, line in enumerate(io.TextIOWrapper(file, encoding="utf-16", newline="\n"), 1):
            if "\0" in line:
                raise BadInput(
                    f"line {number} of {path} holds a zero character at position {line.index(chr(0)) + 1}, which no "
                    f"text has: if it is UTF-32, convert it: {_iconv(path, 'UTF-32')}"
                )
            yield number, line
    except UnicodeError as error:
        raise BadInput(
            f"data file {path} cannot be read as UTF-16 after line {number} ({first_line(error)}): save it as UTF-8"
        ) from error


def decoded(path: Path, number: int, line: bytes) -> str:
    """A line as text, the first without a byte-order mark.

    An encoding is never guessed: one byte is another letter in each, and all of them read without an error. The message
    says what the letter would be, so that a reader can tell, and how to convert the file.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{line[error.start]:02x} at position {error.start + 1}"
        raise BadInput(
            f"line {number} of {path} cannot be read as UTF-8 ({found}{_likely(path, line, error.start)}"
        ) from error
    if "\0" in text:
        wide = {(False, True): "UTF-16LE", (True, False): "UTF-16BE"}.get((line[:1] == b"\0", line[1:2] == b"\0"))
        do = (
            f"if it is {wide}, convert it: {_iconv(path, wide)}"
            if wide
            else "save the file as UTF-8, or fetch it again"
        )
        raise BadInput(
            f"line {number} of {path} holds a zero byte at position {line.index(0) + 1}, which no text has: {do}"
        )
    return text.removeprefix("\ufeff") if number == 1 else text


def _likely(path: Path, line: bytes, at: int) -> str:
    """The end of the sentence: what the byte is in the encoding of Windows for Western Europe, where it may be that."""
    if _CONTROL.search(line):  # UTF-8 or not, no text has them
        return ", and control characters beside it, as no text has): name a file of text, or fetch this one again"
    runs = re.findall(rb"[\x80-\xff]+", line)
    western = line.decode("cp1252", "replace")
    if "\ufffd" not in western and sum(len(run) == 1 for run in runs) * 2 >= len(runs):
        return f", {western[at]!r} in Windows-1252): if that is right, convert the file: {_iconv(path, 'CP1252')}"
    return (
        "): convert the file to UTF-8 from the encoding that it was saved in, GB18030, SHIFT_JIS or EUC-KR for "
        f"example: {_iconv(path, 'GB18030')}"
    )


def _iconv(path: Path, encoding: str) -> str:
    """A command that converts a file."""
    if path.suffix in (".gz", ".bz2", ".xz", ".zst"):
        return f"unpack it, then `iconv -f {encoding} -t UTF-8`"
    return f"`iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > utf8-{shlex.quote(path.name)}`"

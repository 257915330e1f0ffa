"""The disk is full at some write of a real stage: one sentence, nothing half-written, the same bytes after a rerun."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import safetensors.torch
import yaml
from safetensors import SafetensorError

from restorelcc.__main__ import main
from restorelcc.stages.report import figures
from tests.dag import ROOT
from tests.whole_project import PICO, merged

# Of a stage's writes, counted from 0 to 1: those from which on there is no room. The last is the log of its seconds.
# A capture's are two layers after the state it goes on from.
STAGES: dict[str, tuple[float, ...]] = {"corpus": (0.5,), "dense": (0, 0.6, 1), "capture_dense": (0.8,)}
STAGES |= {"prune": (0.5,), "capture_pruned": (0.4,), "extract": (0.5,), "probe": (0.6,), "compensate": (0.6,)}
STAGES |= {"evaluate_dense": (0.9,), "report": (0.5,)}
TINY = {"grid": {"model": ["tiny"], "pruning": ["wanda-0.5"], "head_ratio": [0.25], "recovery": []}}
FULL = os.strerror(errno.ENOSPC)


class Disk:
    """Writes below a folder are counted, whoever makes them, and from the n-th on there is no room."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.count, self.full_from = folder, 0, 0
        true = builtins.open

        def opened(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
            handle = true(file, mode, *rest, **named)
            if isinstance(file, str | os.PathLike) and set(mode) & set("wxa+") and self._has_no_room(file):
                handle.close()  # an empty file stays, as it does when the first block finds no room
                raise OSError(errno.ENOSPC, FULL, str(file))
            return handle

        patch.setattr(builtins, "open", opened)
        patch.setattr(io, "open", opened)
        table, writer, tensors = pq.write_table, pq.ParquetWriter, safetensors.torch.serialize_file

        def expect_room(where: Any) -> None:
            if self._has_no_room(where):
                Path(where).write_bytes(b"PAR1")
                raise OSError(errno.ENOSPC, f"Error writing bytes to file. Detail: [errno 28] {FULL}")

        def write_table(content: Any, where: Any, **named: Any) -> None:
            expect_room(where)
            table(content, where, **named)

        def parquet_writer(where: Any, *rest: Any, **named: Any) -> pq.ParquetWriter:  # of the layers of a capture
            expect_room(where)
            return writer(where, *rest, **named)

        def serialize_file(content: Any, where: Any, **named: Any) -> None:
            if self._has_no_room(where):
                raise SafetensorError(f"Error while serializing: I/O error: {FULL} (os error 28)")
            tensors(content, where, **named)

        patch.setattr(pq, "write_table", write_table)
        patch.setattr(pq, "ParquetWriter", parquet_writer)
        patch.setattr(safetensors.torch, "serialize_file", serialize_file)

    def _has_no_room(self, where: Any) -> bool:
        if not Path(where).absolute().is_relative_to(self.folder):
            return False
        self.count += 1
        return 0 < self.full_from <= self.count


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The shipped pipeline at pico size, its stages run one after another in this process."""
    folder = tmp_path_factory.mktemp("project")
    content = merged(yaml.safe_load((ROOT / "params.yaml").read_text()), merged(PICO, TINY))
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESTORELCC_PROGRESS", "0")
        patch.setattr(figures, "static_files", lambda *_: {})  # drawn by matplotlib, which takes seconds
        yield folder


def run(stage: str, folder: Path) -> int:
    per_model = ("corpus", "dense", "capture_dense", "evaluate_dense")
    axes = {"report": 0, "compensate": 3}.get(stage, 1 if stage in per_model else 2)
    names = ["--model", "tiny", "--pruning", "wanda-0.5", "--head-ratio", "0.25"][: 2 * axes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["restorelcc", stage, *names, "--params", str(folder / "params.yaml")])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def state(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted((folder / "data").rglob("*")) if path.is_file() and path.parent.name != "logs")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def timeless(files: dict[str, bytes]) -> dict[str, object]:
    """The same, without what was measured with a clock."""
    clocks = ("seconds", "latency", "peak_memory_bytes", "sha256")

    def without(content: object) -> object:
        if not isinstance(content, dict):
            return content
        return {key: without(value) for key, value in content.items() if key not in clocks}

    return {
        name: without(json.loads(content)) if name.startswith("data/metrics/") and name.endswith(".json") else content
        for name, content in files.items()
    }


def test_a_real_stage_that_finds_no_room_leaves_nothing_and_its_rerun_is_the_same(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk, table = Disk(project, monkeypatch), []
    for stage, shares in STAGES.items():
        before = state(project)
        disk.count, disk.full_from = 0, 0
        assert run(stage, project) == 0, capsys.readouterr().err
        after, writes = state(project), disk.count
        assert after != before and writes > 2
        for share in shares:
            put_back(project, before)
            disk.count, disk.full_from = 0, max(1, round(share * writes))
            assert run(stage, project) == 1
            said = capsys.readouterr().err.splitlines()[-1]
            assert said.startswith("restorelcc: failed: the disk is full (") and FULL in said, said
            whole = state(project)
            assert whole == before or (share == 1 and whole == after), "what was written is whole, or not there"
            assert not list((project / ".work").glob("write-*")), "and no scratch stays"
            disk.full_from = 0
            assert run(stage, project) == 0
            assert timeless(state(project)) == timeless(after)
            table.append(f"disk full: {stage}, write {max(1, round(share * writes))} of {writes}")
    with capsys.disabled():
        print("\n" + "\n".join(f"{line:<44} identical after a rerun" for line in table))


def put_back(folder: Path, files: dict[str, bytes]) -> None:
    """Only these files under data/, and the logs."""
    for path in (folder / "data").iterdir():
        if path.name != "logs":
            shutil.rmtree(path)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

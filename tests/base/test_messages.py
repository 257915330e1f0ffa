"""What goes to stderr: how much of it, in which form, and which warnings of libraries."""

from __future__ import annotations

import json
import logging
import os
import warnings
from pathlib import Path

import pytest

from restorelcc.base import messages
from restorelcc.base.ending import tell
from restorelcc.base.errors import BadInput
from restorelcc.base.layout import Layout
from restorelcc.base.messages import choose, note, say
from restorelcc.base.progress import bars_are_shown, notice
from restorelcc.cli.doctor import Finding, doctor
from restorelcc.pipeline.running import held_lock
from restorelcc.stages.corpus.licences import announce


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (messages.LOG, "TQDM_DISABLE", "RESTORELCC_PROGRESS"):
        monkeypatch.setenv(name, "")  # so that what a test sets is undone
        monkeypatch.delenv(name)


def _say_everything() -> None:
    say("done")
    note("look at this")
    notice("prune", "49.98 % zeros")
    tell(BadInput("x is wrong"))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({}, ["done", "restorelcc: note: look at this", "prune: 49.98 % zeros", "restorelcc: error: x is wrong"]),
        ({"quiet": True}, ["restorelcc: error: x is wrong"]),
    ],
)
def test_quiet_leaves_the_errors(how: dict[str, bool], said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    choose(**how)
    _say_everything()
    assert capsys.readouterr() == ("", "".join(f"{text}\n" for text in said))


def test_json_lines_say_level_and_stage(capsys: pytest.CaptureFixture[str]) -> None:
    choose(as_json=True)
    _say_everything()
    told = [json.loads(text) for text in capsys.readouterr().err.splitlines()]
    assert [entry.pop("time") > 1e9 for entry in told] == [True] * 4
    assert told == [
        {"level": "info", "message": "done"},
        {"level": "warning", "message": "look at this"},
        {"level": "info", "message": "49.98 % zeros", "stage": "prune"},
        {"level": "error", "message": "error: x is wrong", "code": 2},
    ]


@pytest.mark.parametrize(
    ("how", "levels"),
    [({}, None), ({"as_json": True}, ["info"] * 3), ({"quiet": True}, [])],
    ids=["text", "json", "quiet"],
)
def test_licences_waiting_and_mending_are_said_as_all_else(
    how: dict[str, bool],
    levels: list[str] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    choose(**how)
    announce({"instructions": {"source": "hub:some/data", "licence": "mit"}}, Layout(tmp_path))
    monkeypatch.setattr("restorelcc.pipeline.running.lock_descriptor", lambda _, blocking=True: blocking)
    monkeypatch.setattr("restorelcc.pipeline.running.lock_owner", lambda _: "17")
    with held_lock(tmp_path / "locks" / "prune@tiny"):
        pass
    monkeypatch.setattr("restorelcc.cli.doctor._mended", lambda *_: [Finding(False, "mended: all")])
    doctor(fix=True, quiet=True, params=tmp_path / "params.yaml")
    said = capsys.readouterr().err.splitlines()
    if levels is not None:
        assert [json.loads(text)["level"] for text in said] == levels
    else:
        waiting = "restorelcc: prune@tiny is running as process 17: waiting"
        assert said == ["data licence: some/data is under mit", waiting, "restorelcc: mended: all"]
    assert (tmp_path / ".work" / "licences.json").exists() == (not how.get("quiet")), "what nobody read is said again"


@pytest.mark.parametrize("word", ["quiet", "json"])
def test_no_bar_between_the_lines(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert bars_are_shown()
    monkeypatch.setenv(messages.LOG, word)
    choose()  # in a stage that a command started
    assert not bars_are_shown()
    assert os.environ["TQDM_DISABLE"] == "1"


@pytest.mark.parametrize("verbose", [False, True])
def test_warnings_of_libraries_are_for_verbose(
    verbose: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.warnoptions", [])
    with warnings.catch_warnings(record=True) as as_python_shows_them:
        warnings.simplefilter("default")
        choose(verbose=verbose)
        warnings.warn("x will go", FutureWarning, stacklevel=1)
        warnings.warn("odd\nnumbers", UserWarning, stacklevel=1)
    assert len(as_python_shows_them) == (2 if verbose else 0)
    assert capsys.readouterr().err == ("" if verbose else "UserWarning: odd numbers\n")


@pytest.mark.parametrize("verbose", [False, True])
def test_texts_that_are_too_long_are_a_matter_of_verbose(verbose: bool, caplog: pytest.LogCaptureFixture) -> None:
    choose(verbose=verbose)
    logger = logging.getLogger("transformers.tokenization_utils_base")
    logger.addHandler(caplog.handler)
    logger.warning("Token indices sequence length is longer than the specified maximum (%d > 64)", 70)
    logger.warning("something else")
    logger.removeHandler(caplog.handler)
    told = {record.getMessage() for record in caplog.records}
    assert ("something else" in told, len(told)) == (True, 2 if verbose else 1)

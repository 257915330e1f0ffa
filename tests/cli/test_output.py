"""Options before the verb, and colours: results on stdout, notices on stderr."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from restorelcc.__main__ import main
from restorelcc.base.messages import LOG
from restorelcc.cli import doctor
from restorelcc.cli.app import app
from restorelcc.pipeline.stages import STAGES

_PARAMS = str(Path(__file__).resolve().parents[2] / "params.yaml")
_COLOUR = re.compile(r"\x1b\[[0-9;]*(3[0-7]|9[0-7]|38;|4[0-7])[0-9;]*m")


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    for name in (LOG, "TQDM_DISABLE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr("sys.argv", ["restorelcc", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_quiet_and_json_stand_before_the_verb(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check = ("check", "--params", _PARAMS)
    assert _run(monkeypatch, *check) == 0
    plain = capsys.readouterr()
    assert (plain.out, "is good" in plain.err) == ("", True)
    assert _run(monkeypatch, "-q", *check) == 0
    assert capsys.readouterr() == ("", "")
    assert _run(monkeypatch, "--log-json", *check) == 0
    told = [json.loads(text) for text in capsys.readouterr().err.splitlines()]
    assert any(entry["message"].endswith("models to evaluate") for entry in told)
    assert _run(monkeypatch, "--log-json", "inspect", "/nowhere") == 2
    error = json.loads(capsys.readouterr().err)
    assert (error["level"], error["code"]) == ("error", 2)


def test_verbose_and_quiet_exclude_each_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "-v", "-q", "check") == 2
    assert "--verbose and --quiet exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("graph", "--params", _PARAMS), ("--help",), ("plan", "-h")])
def test_no_color_is_honoured(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("typer.rich_utils.FORCE_TERMINAL", True)  # which it reads once, from FORCE_COLOR
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    assert _run(monkeypatch, *arguments) == 0
    assert not _COLOUR.search("".join(capsys.readouterr()))


def test_the_graph_in_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(monkeypatch, "graph", "--params", _PARAMS, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    stages = {entry["stage"]: entry for entry in told["stages"]}
    assert "prune" in stages["probe"]["after"] + stages["capture_pruned"]["after"]
    assert told["runs"] == sum(entry["runs"] for entry in told["stages"])
    assert _run(monkeypatch, "graph", "--params", _PARAMS, "--json", "--mermaid") == 2


# Verbs that print no result, and why. What they say is on stderr, which --log-json makes JSON.
WITHOUT_RESULT = {
    **dict.fromkeys((*STAGES, "inputs"), "they write artifacts, whose formats are documented"),
    "versions": "it writes versions/",
    "share": "it writes .dvc/config",
    "push": "it sends what the remote lacks",
    "pull": "it fetches, and brings stages back",
}


def _every_verb() -> dict[str, Any]:
    verbs: dict[str, Any] = {}
    for name, verb in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(verb, "commands", None)
        verbs |= {f"{name} {each}": command for each, command in inner.items()} if inner else {name: verb}
    return {name: verb for name, verb in verbs.items() if not verb.hidden}


@pytest.mark.parametrize("name", _every_verb())
def test_every_verb_with_a_result_prints_it_as_json(name: str) -> None:
    options = {option for each in _every_verb()[name].params for option in each.opts}
    assert ("--json" in options) != (name in WITHOUT_RESULT)


def test_the_verbs_without_a_result_are_verbs() -> None:
    assert WITHOUT_RESULT.keys() <= _every_verb().keys()


@pytest.mark.parametrize("fault", [False, True])
def test_the_diagnosis_in_json(
    fault: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("_packages", "_runs", "_crashed", "_dvc"):
        monkeypatch.setattr(doctor, part, lambda *_: iter(()))
    monkeypatch.setattr(doctor, "_prefect", lambda: iter([doctor.Finding(fault, "it is a test")]))
    assert _run(monkeypatch, "doctor", "--json", "--params", str(tmp_path / "params.yaml")) == int(fault)
    assert json.loads(capsys.readouterr().out)[-1] == {"fault": fault, "text": "it is a test"}

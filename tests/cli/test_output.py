"""Options before the verb, and colours: results on stdout, notices on stderr."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from restorelcc.__main__ import main
from restorelcc.base.messages import LOG
from restorelcc.cli import doctor

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


@pytest.mark.parametrize("fault", [False, True])
def test_the_diagnosis_in_json(
    fault: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("_packages", "_runs", "_crashed", "_dvc"):
        monkeypatch.setattr(doctor, part, lambda *_: iter(()))
    monkeypatch.setattr(doctor, "_prefect", lambda: iter([doctor.Finding(fault, "it is a test")]))
    assert _run(monkeypatch, "doctor", "--json", "--params", str(tmp_path / "params.yaml")) == int(fault)
    assert json.loads(capsys.readouterr().out)[-1] == {"fault": fault, "text": "it is a test"}

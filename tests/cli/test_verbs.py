"""The verbs as the command line runs them: exit codes, one sentence on bad input, what they print."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from restorelcc import __version__
from restorelcc.__main__ import main
from restorelcc.base.errors import BadInput
from restorelcc.cli.app import PANELS, app
from restorelcc.cli.doctor import _prefect
from restorelcc.cli.export import size_in_bytes
from restorelcc.pipeline.stages import STAGES
from tests.dag import ROOT
from tests.release.export.restored import Pair, pair_of


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair_of(tmp_path_factory.mktemp("pair"))


def _run(*arguments: object) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_export_show_engines_and_remove(pair: Pair, tmp_path: Path) -> None:
    files = ["--pruned", pair.pruned, "--compensation", pair.compensation]
    output = _run("export", *files, "--out", tmp_path / "out", "--max-shard-size", "20KB", "--licence", "mit")
    assert "2 biases carry the compensation" in output
    assert "license: mit" in (tmp_path / "out" / "README.md").read_text()
    assert "2 of 12 heads are compensated" in _run("compensation", "show", tmp_path / "out")
    assert json.loads(_run("compensation", "show", "--json", pair.compensation))["heads"][0]["head"] == 3
    assert "SGLang (not installed here)" in _run("engines", tmp_path / "out")
    assert len(json.loads(_run("engines", "--json", tmp_path / "out"))["engines"]) == 4
    _run("compensation", "remove", tmp_path / "out", "--out", tmp_path / "back")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "back" / name).read_bytes() == (pair.pruned / name).read_bytes()
    _run("compensation", "apply", tmp_path / "back", pair.compensation, "--out", tmp_path / "again")
    assert not (tmp_path / "again" / "README.md").exists()


def test_what_is_written_and_proved_is_told_in_json(pair: Pair, tmp_path: Path) -> None:
    files = ["--pruned", pair.pruned, "--compensation", pair.compensation]
    record = json.loads(_run("export", *files, "--out", tmp_path / "out", "--json"))
    assert record["route"]["folded"]
    proved = json.loads(_run("verify", tmp_path / "out", "--skip-logits", "--json"))
    assert (proved["verified"], proved["folder"]) == (True, str(tmp_path / "out"))
    assert all(entry["check"] and entry["found"] for entry in proved["checks"])
    packed = json.loads(_run("pack", tmp_path / "out", "--out", tmp_path / "packed", "--json"))
    assert packed["packed"] < packed["stock"]
    unpacked = json.loads(_run("unpack", tmp_path / "packed", "--out", tmp_path / "unpacked", "--json"))
    digest = hashlib.sha256((tmp_path / "out" / "model.safetensors").read_bytes()).hexdigest()
    assert unpacked == {"folder": str(tmp_path / "unpacked"), "files": {"model.safetensors": digest}}
    removed = json.loads(_run("compensation", "remove", tmp_path / "out", "--out", tmp_path / "back", "--json"))
    assert removed["folder"] == str(tmp_path / "back")
    assert {"model.safetensors", "config.json"} <= set(removed["files"]) == _files(tmp_path / "back")
    again = ("compensation", "apply", tmp_path / "back", pair.compensation, "--out", tmp_path / "again", "--json")
    assert json.loads(_run(*again))["route"]["folded"] == record["route"]["folded"]


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "tiny"],
        ["--model", "tiny", "--pruning", "wanda-0.5", "--head-ratio", "0.25", "--pruned", "x"],
        ["--pruned", "x"],
        [],
    ],
)
def test_export_needs_a_cell_or_two_files(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"either --model, --pruning and one of --head-ratio .* or --pruned and"):
        _run("export", "--out", tmp_path / "out", *arguments)


def test_sizes_are_read_as_people_write_them() -> None:
    sizes = {"5GB": 5 * 10**9, "1.5 KiB": 1536, "300": 300, "20kb": 20_000}
    assert {text: size_in_bytes("--size", text) for text in sizes} == sizes
    for text in ("big", "0GB", "-1", "5 parsecs"):
        with pytest.raises(BadInput, match=r"--size .* is not a size"):
            size_in_bytes("--size", text)


def test_one_flipped_zero_ends_verify_with_1_and_the_tensors_name(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    _run("export", "--pruned", pair.pruned, "--compensation", pair.compensation, "--out", out)
    import torch

    from restorelcc.models.tensor_files import stored_tensors

    stored = stored_tensors(out)["model.layers.2.self_attn.v_proj.weight"]
    value = stored.read()
    value[tuple(torch.nonzero(value == 0)[-1])] = 1e-3
    stored.overwrite(value)
    monkeypatch.setenv("RESTORELCC_PROGRESS", "0")
    monkeypatch.setattr("sys.argv", ["restorelcc", "verify", str(out)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("restorelcc: failed: model.layers.2.self_attn.v_proj.weight has")
    assert said.count("\n") == 1


def test_help_says_what_one_gets_of_each_verb_in_panels() -> None:
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "100", "TERMINAL_WIDTH": "100"}).output
    places = [text.index(f"─ {panel} ─") for panel in PANELS]
    assert places == sorted(places)
    for stage in STAGES.values():
        assert stage.gives[:40] in text and stage.gives.endswith(".")
    listed = [str(each.name) for each in app.registered_commands if not each.hidden] + ["compensation"]
    assert sorted(listed) == sorted(verb for verbs in PANELS.values() for verb in verbs)
    assert CliRunner().invoke(app, ["--version"]).output == f"restorelcc {__version__}\n"


@pytest.mark.parametrize("verb", ["table", "versions", "report", "graph", "run", "check"])
def test_a_parameter_file_that_is_not_there_is_refused(verb: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nope.yaml(: a project has| does not exist|: there is no dvc.yaml)"):
        _run(verb, "--params", tmp_path / "nope.yaml")


def test_a_link_to_a_parameter_file_stands_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC and the flow use the folder of the link: its target's may be another project, whose results are its own."""
    for name in ("other", "own"):
        (tmp_path / name).mkdir()
    shutil.copy(ROOT / "params.yaml", tmp_path / "other")
    (tmp_path / "own" / "params.yaml").symlink_to("../other/params.yaml")
    monkeypatch.chdir(tmp_path / "own")
    _run("inputs", "--model", "tiny")
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == [".work", "data", "params.yaml"]
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["params.yaml"]
    verbs = [path for path in (ROOT / "restorelcc/cli").glob("*.py") if "params.resolve()" in path.read_text()]
    assert not verbs, "project_of tells the folder"


def test_doctor_names_a_folder_that_is_not_there_and_a_server_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for more in ([], ["--fix", "--quiet"]):
        with pytest.raises(BadInput, match=r"my-projct/params\.yaml does not exist: run in the project's folder"):
            _run("doctor", "--params", tmp_path / "my-projct" / "params.yaml", *more)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:port/api")
    assert [finding.fault for finding in _prefect()] == [True]


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, restorelcc.cli.app; print({'torch', 'pyarrow', 'pydantic', 'tqdm', 'dvc'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

"""`restorelcc init --model`: a user's own model and data, looked at before a project is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from restorelcc.base.errors import BadInput
from restorelcc.cli.app import app
from restorelcc.models.checkpoints import save_checkpoint
from restorelcc.pipeline.params import load_params
from tests import pico
from tests.stages.prune.project import words


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with dense/, pairs.jsonl and texts.txt."""
    folder = tmp_path_factory.mktemp("given")
    save_checkpoint(folder / "dense", pico.pico("opt", max_position_embeddings=64), pico.word_tokenizer())
    rows = [{"prompt": words(5, n), "completion": words(3, 100 + n)} for n in range(30)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "texts.txt").write_text("\n".join(words(20, n) for n in range(9)))
    return folder


def _init(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["init", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def _data(given: Path) -> list[object]:
    texts = given / "texts.txt"
    return ["--calibration", texts, "--instructions", given / "pairs.jsonl", "--heldout", texts]


def test_the_project_has_the_model_and_its_data_and_runs_it(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(given)
    said = _init(tmp_path / "mine", "--model", "./dense", *_data(Path()))
    assert "whose grid is mine" in said and "opt, 0.0 M parameters, runs in float32 on the cpu" in said
    assert "sequences of 64 at most" in said and "which this machine has" in said
    commands = [line.split("#")[0].strip() for line in said.partition("Run in that folder:\n")[2].splitlines()]
    assert commands == ["restorelcc check --model mine", "restorelcc plan --model mine", "dvc repro"]
    params = load_params(tmp_path / "mine" / "params.yaml")
    entry = params.models["mine"]
    assert params.grid.model == ("mine",) and "tiny" in params.models
    assert (entry.source, entry.sequence_length) == (str(given / "dense"), 64)
    assert entry.data is not None and entry.data.calibration == str(given / "texts.txt")
    assert "# names of lm-eval" in (tmp_path / "mine" / "params.yaml").read_text()
    done = CliRunner().invoke(app, ["check", "--params", str(tmp_path / "mine" / "params.yaml"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["evaluated"][0] == "mine"


def test_a_model_of_the_hub_is_written_down_and_not_asked_for(tmp_path: Path) -> None:
    found = json.loads(_init(tmp_path / "mine", "--model", "org/name", "--name", "other", "--json"))
    assert found["model"]["data"] == {"calibration": "c4", "instructions": "alpaca", "heldout": "wikitext"}
    assert load_params(tmp_path / "mine" / "params.yaml").models["other"].source == "org/name"
    assert "the hub was not asked" in _init(tmp_path / "again", "--model", "org/name")


def test_what_could_not_run_is_refused_as_restore_does_and_nothing_is_written(given: Path, tmp_path: Path) -> None:
    cut, other = tmp_path / "cut", tmp_path / "other"
    shutil.copytree(given / "dense", cut)
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    shutil.copytree(given / "dense", other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    bare = tmp_path / "bare"
    shutil.copytree(given / "dense", bare, ignore=shutil.ignore_patterns("tokenizer*"))

    def refused(verb: str, *arguments: object) -> str:
        with pytest.raises(BadInput) as error:
            CliRunner().invoke(app, [verb, *map(str, arguments)], catch_exceptions=False)
        return str(error.value)

    without = tmp_path / "without"
    shutil.copytree(given / "dense", without, ignore=shutil.ignore_patterns("config.json"))
    for folder, said in (
        (cut, "it is cut short"),
        (other, "is a quantized checkpoint (quantization_config: 'gptq')"),
        (without, "without has no config.json: give the folder of a checkpoint"),
        (tmp_path / "nowhere", "is not a folder: give the folder of a checkpoint, or a hub id"),
    ):
        out = ["--pruning", "wanda-0.5", "--out", tmp_path / "out", "--instructions", given / "pairs.jsonl"]
        as_dense = refused("restore", "--dense", folder, *out)
        assert said in as_dense
        assert refused("init", tmp_path / "mine", "--model", folder, *_data(given)) == as_dense.replace(
            "--dense", "--model"
        )
    assert f"{bare} has no tokenizer: put" in refused("init", tmp_path / "mine", "--model", bare, *_data(given))
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    data = ["--model", given / "dense", *_data(given)[2:], "--calibration", empty]
    assert "models.mine.data.calibration" in refused("init", tmp_path / "mine", *data)
    data = ["--model", given / "dense", "--instructions", tmp_path / "nothing.jsonl"]
    assert refused("init", tmp_path / "mine", *data).startswith("--instructions '")
    assert "'Mine'" in refused("init", tmp_path / "mine", "--model", "org/name", "--name", "Mine")
    for name in ("1e5", "123", "on", "null", "0x1f"):
        said = refused("init", tmp_path / "mine", "--model", "org/name", "--name", name)
        assert said == f"--name {name!r}: params.yaml would not read it as text, give for example model-{name}"
    assert "every new project has" in refused("init", tmp_path / "mine", "--model", "org/name", "--name", "tiny")
    assert "add --model" in refused("init", tmp_path / "mine", "--heldout", empty)
    assert not (tmp_path / "mine").exists()

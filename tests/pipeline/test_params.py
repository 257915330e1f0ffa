"""Bad input ends in one clear sentence that names the key and the fix."""

import shutil
from pathlib import Path

import pytest
import yaml
from dvc.utils.serialize import load_yaml, modify_yaml
from typer.testing import CliRunner

from restorelcc.__main__ import main
from restorelcc.base.errors import BadInput
from restorelcc.cli.app import app
from restorelcc.pipeline.params import load_params
from restorelcc.pipeline.stages import grid_cells
from tests.dag import ROOT

SHIPPED = ROOT / "params.yaml"

BAD = [
    ("prune.sample=3", r"key 'prune\.sample' is unknown: did you mean 'prune\.samples'"),
    ("prnue.samples=3", r"key 'prnue' is unknown: did you mean 'prune'"),
    (
        "corpus.microworld.peoples=64",
        r"corpus\.microworld\.peoples' is unknown: did you mean 'corpus\.microworld\.people'",
    ),
    ("models.tiny.sources=x", r"models\.tiny\.sources' is unknown: did you mean 'models\.tiny\.source'"),
    (
        "dense.pretrain.max_stepz=1",
        r"dense\.pretrain\.max_stepz' is unknown: did you mean 'dense\.pretrain\.max_steps'",
    ),
    ("grid.head_ratio=[1.5]", r"grid\.head_ratio has 1\.5.*at most 1"),
    ("grid.head_ratio=[0]", r"grid\.head_ratio has 0.*above 0"),
    ("grid.head_ratio=[]", r"grid\.head_ratio is"),
    ("grid.head_ratio=[0.1, 0.10]", r"grid\.head_ratio has 0\.1 twice"),
    ("grid.pruning=[wanda-2of1]", r"grid\.pruning has 'wanda-2of1'.*N must be at least 1 and less than M"),
    ("grid.pruning=[slimgpt-2of4]", r"'slimgpt-2of4'.*slimgpt removes whole heads and channels, give a fraction"),
    ("grid.pruning=[sparsegpt-4of2]", r"'sparsegpt-4of2'.*N must be at least 1 and less than M"),
    ("grid.pruning=[external-mine]", r"'external-mine'.*no prune\.external\.tiny\.mine: add it"),
    ("grid.pruning=[external-Mine]", r"'external-Mine'.*lower-case"),
    (
        "prune.external={tiny: {mine: {source: x, revison: y}}}",
        r"'prune\.external\.tiny\.mine\.revison' is unknown: did you mean 'prune\.external\.tiny\.mine\.revision'",
    ),
    ("prune.damping=0", r"prune\.damping is 0"),
    ("grid.pruning=[wandda-0.5]", r"no pruner 'wandda'"),
    ("grid.pruning=[wanda-1.2]", r"between 0 and 1"),
    ("grid.pruning=wanda-0.5", r"grid\.pruning is 'wanda-0\.5'"),
    ("grid.model=[tinny]", r"grid\.model 'tinny' is unknown: did you mean 'tiny'"),
    ("grid.model=[zzz]", r"grid\.model 'zzz' is unknown.*add it to `models`"),
    ("grid.recovery=[randmo]", r"grid\.recovery has 'randmo', which is not a recovery method.*did you mean 'random'"),
    ("grid.recovery=[random, random]", r"grid\.recovery has 'random' twice"),
    ("grid.recovery=random", r"grid\.recovery is 'random'.*list in brackets"),
    ("models={metrics: {source: microworld}}", r"'metrics', which names a folder"),
    ("models={a.b: {source: microworld}}", r"'a\.b': use lower-case"),
    ("models={tiny: {}}", r"key 'models\.tiny\.source' is missing"),
    (
        "models.tiny.tasks=[{name: rte, metrc: acc}]",
        r"key 'models\.tiny\.tasks\.0\.metrc' is unknown: did you mean 'models\.tiny\.tasks\.0\.metric'",
    ),
    ("models.tiny.tasks=[{metric: acc}]", r"key 'models\.tiny\.tasks\.0\.name' is missing"),
    ("speed.prefill_turns=10", r"speed\.prefill_turns is 10, and there are 9 turns \(speed\.turns\): give that many"),
    ("models.tiny.tasks=[{name: rte, num_fewshot: -1}]", r"models\.tiny\.tasks\.0\.num_fewshot is -1: .*greater than"),
    ("models.tiny.tasks=[{name: rte, metric: [acc]}]", r"tasks\.0\.metric is \['acc'\]: text belongs here"),
    ("models.tiny.tasks=[3]", r"models\.tiny\.tasks\.0 is 3: text belongs here"),
    ("models.tiny.tasks=rte", r"models\.tiny\.tasks is 'rte': .*list in brackets"),
    ("models.tiny.tasks=[{name: paper-7, metric: acc_norm}]", r"paper-7 is measured by acc, as in the paper"),
    ("models.other.source=some/model", r"models\.other\.data is missing"),
    ("probe.heldout_share=1.0", r"probe\.heldout_share is 1\.0.*less than 1"),
    ("probe.score=best", r"probe\.score is 'best'"),
    ("compensate.learning_rates=[0]", r"compensate\.learning_rates\.0 is 0"),
    ("compensate.epochs=three", r"compensate\.epochs is 'three'"),
    ("dense.architecture.kv_heads=3", r"heads \(16\) must be a multiple of kv_heads \(3\)"),
    (
        "models.tiny.settings={corpus: {microworld: {documents: 40, calibration_documents: 40}}}",
        r"dense\.pretrain\.batch_size is 64 for tiny, above corpus\.microworld\.documents 40",
    ),
    ("corpus.microworld.people=3", r"corpus\.microworld"),
    ("grid.head_ratio=[true]", r"grid\.head_ratio is \[True\]: true and false are not numbers; write a number"),
    (
        "grid.head_ratio=[ten]",
        r"grid\.head_ratio\.0 is .ten.: a number belongs here, the share of heads, for example 0\.25; or auto",
    ),
    ("corpus.train=true", r"corpus\.train is True: true and false are not numbers"),
    ("evaluate.limit=true", r"evaluate\.limit is True: true and false are not numbers"),
    ("compensate.learning_rates=[false]", r"compensate\.learning_rates is \[False\]: true and false are not numbers"),
    ("models.tiny.settings={corpus: {train: true}}", r"models\.tiny\.settings\.corpus\.train is True: true and false"),
    ("models.tiny.tasks=[{name: rte, num_fewshot: true}]", r"tasks\.0\.num_fewshot is True: true and false"),
    ("nonsense", r"--set 'nonsense' is not section\.key=value"),
]


def test_the_shipped_file_is_good_and_complete() -> None:
    params = load_params(SHIPPED)
    assert next(str(cell) for cell in grid_cells(params.grid)) == "tiny"
    sections = set(yaml.safe_load(SHIPPED.read_text()))
    assert sections == set(type(params).model_fields)


@pytest.mark.parametrize("name", ["params.yaml", "restorelcc/pipeline/project/params.template"])
def test_a_value_set_by_dvc_changes_nothing_else(name: str, tmp_path: Path) -> None:
    """`dvc exp run -S` writes the whole file again, without quotes that it finds needless, and reads it back."""
    path = tmp_path / "params.yaml"
    shutil.copyfile(ROOT / name, path)
    before = load_yaml(path)
    with modify_yaml(path) as content:
        content["compensate"]["seed"] = 7
    before["compensate"]["seed"] = 7
    assert load_yaml(path) == before


@pytest.mark.parametrize(("override", "message"), BAD)
def test_bad_input_is_one_sentence_with_key_and_fix(override: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        load_params(SHIPPED, (override,))
    assert "\n" not in str(caught.value)


EXTERNAL = {name: {"source": "x"} for name in ("a", "a-masked", "external-a")}
ENTRY = {"source": "microworld"}


@pytest.mark.parametrize(
    ("models", "pruning", "recovery", "twice"),
    [
        (["tiny", "tiny-external"], ["external-external-a", "external-a"], [], "tiny-external-external-a"),
        (["tiny"], ["external-a", "external-a-masked"], ["lora", "masked-lora"], "tiny-external-a-masked-lora"),
    ],
)
def test_cells_whose_names_would_collide_are_refused(
    models: list[str], pruning: list[str], recovery: list[str], twice: str, tmp_path: Path
) -> None:
    content = yaml.safe_load(SHIPPED.read_text())
    content["models"] = dict.fromkeys(models, ENTRY)
    content["prune"]["external"] = dict.fromkeys(models, EXTERNAL)
    content["grid"] |= {"model": models, "pruning": pruning, "recovery": recovery}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(BadInput, match=f"join to the same stage name, '{twice}': rename"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("override", ["grid.head_ratio=[1.5]", "prune.sample=3", "grid.pruning=[wanda-2of1]"])
def test_the_command_line_exits_with_2_and_touches_nothing(
    override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "params.yaml").write_text(SHIPPED.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["restorelcc", "corpus", "--model", "tiny", "--set", override])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("restorelcc: error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["corpus", "--model", "tinny"], "--model 'tinny' is unknown: did you mean 'tiny'"),
        (["prune", "--model", "tiny", "--pruning", "wanda-2of1"], "'wanda-2of1'"),
        (["compensate", "-m", "tiny", "-p", "wanda-0.5", "-r", "1.5"], "has 1.5"),
        (["compensate", "-m", "tiny", "-p", "wanda-0.5", "-r", "ten"], "'ten' is not a number"),
        (["prune", "-m", "tiny", "-p", "wanda-0.5", "--params", "nowhere.yaml"], "nowhere.yaml does not exist"),
    ],
)
def test_bad_names_on_the_command_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["restorelcc", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_not_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("grid: [unclosed")
    with pytest.raises(BadInput, match="not valid YAML"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("- a list")
    with pytest.raises(BadInput, match="must hold the sections"):
        load_params(tmp_path / "params.yaml")


def test_help_lists_every_stage() -> None:
    listed = CliRunner().invoke(app, ["--help"]).output
    for stage in ("corpus", "dense", "prune", "capture_dense", "extract", "probe", "compensate", "report"):
        assert stage in listed

"""What was changed while a stage ran is not recorded as what its result is of."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from restorelcc.base.cell import Cell
from restorelcc.base.errors import StageFailed
from restorelcc.base.layout import Layout
from restorelcc.pipeline import as_recorded as module
from restorelcc.pipeline import inputs, workspace
from restorelcc.pipeline import versions as package_versions
from restorelcc.pipeline.as_recorded import READ, VERSIONS, as_recorded
from restorelcc.pipeline.inputs import lay_out_inputs
from restorelcc.pipeline.params import load_params
from restorelcc.pipeline.stages import STAGES
from restorelcc.pipeline.workspace import Run
from tests.dag import ROOT

CORPUS = ("corpus", Cell("mine"))
PRUNE = ("prune", Cell("mine", "wanda-0.5"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    data = {"calibration": "texts.txt", "instructions": "pairs/*.jsonl", "heldout": "texts.txt"}
    content["grid"] |= {"model": ["mine"]}
    content["models"] = {"mine": {"source": "some/model", "data": data, "tasks": ["arc_easy"]}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    shutil.copytree(ROOT / "versions", tmp_path / "versions")
    (tmp_path / "texts.txt").write_text("one\ntwo")
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "a.jsonl").write_text('{"question": "q", "response": "r"}')
    lay_out_inputs(load_params(tmp_path / "params.yaml"), "mine", Layout(tmp_path))
    return tmp_path


def _set(folder: Path, section: str, **values: object) -> None:
    content = yaml.safe_load((folder / "params.yaml").read_text())
    content[section] |= values
    (folder / "params.yaml").write_text(yaml.safe_dump(content))


def _laid_out(folder: Path, stage: str) -> None:
    """As another run does whose settings of the model are others."""
    settings = (f"models.mine.settings={{{stage}: {{seed: 7}}}}",)
    lay_out_inputs(load_params(folder / "params.yaml", settings), "mine", Layout(folder))


def _installed(folder: Path, group: str) -> None:
    (folder / "versions" / group).write_text("numpy==9.9\n")


def _renamed(folder: Path) -> None:
    content = yaml.safe_load((folder / "params.yaml").read_text())
    content["models"]["another"] = content["models"].pop("mine")
    content["grid"]["model"] = ["another"]
    (folder / "params.yaml").write_text(yaml.safe_dump(content))


def _run(folder: Path, stage: str, cell: Cell, change: Callable[[Path], object], *overrides: str) -> None:
    with as_recorded(folder / "params.yaml", overrides, Layout(folder), stage, cell):
        change(folder)


@pytest.mark.parametrize(
    ("stage", "change", "named"),
    [
        (PRUNE, lambda folder: _set(folder, "prune", samples=3), "params.yaml"),
        (PRUNE, lambda folder: (folder / "params.yaml").write_text("grid: ["), "params.yaml"),
        (PRUNE, lambda folder: _renamed(folder), "params.yaml"),
        (CORPUS, lambda folder: (folder / "texts.txt").write_text("one\ntwo\nthree"), "texts.txt"),
        (CORPUS, lambda folder: (folder / "pairs" / "a.jsonl").write_text("{}"), "a.jsonl"),
        (CORPUS, lambda folder: (folder / "texts.txt").unlink(), "texts.txt"),
        (PRUNE, lambda folder: _laid_out(folder, "prune"), "settings/prune.json"),
        (PRUNE, lambda folder: _installed(folder, "numerics"), "versions/numerics"),
        (CORPUS, lambda folder: _installed(folder, "corpus"), "versions/corpus"),
    ],
)
def test_a_change_ends_the_stage(
    project: Path, stage: tuple[str, Cell], change: Callable[[Path], object], named: str
) -> None:
    with pytest.raises(
        StageFailed, match=rf"{named} was changed while {stage[0]}@mine.*`dvc commit --force {stage[0]}"
    ):
        _run(project, *stage, change)


def test_an_entry_changed_between_two_stages_of_a_run_ends_the_second(project: Path) -> None:
    """DVC watches the entry as `inputs` laid it out when the run began."""

    def entry(**values: object) -> None:
        content = yaml.safe_load((project / "params.yaml").read_text())
        content["models"]["mine"] |= values
        (project / "params.yaml").write_text(yaml.safe_dump(content))

    compensate = ("compensate", Cell("mine", "wanda-0.5", "0.25"))
    entry(settings={"compensate": {"epochs": 7}})
    _run(project, *PRUNE, lambda _: None)
    with pytest.raises(StageFailed, match=r"models\.mine in .* is not what was laid out for this run.*compensate@mine"):
        _run(project, *compensate, lambda _: pytest.fail("it has begun"))
    lay_out_inputs(load_params(project / "params.yaml"), "mine", Layout(project))
    _run(project, *compensate, lambda _: None)


def _touched(folder: Path) -> None:
    for name in ("texts.txt", "params.yaml"):
        (folder / name).write_bytes((folder / name).read_bytes())


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        (PRUNE, lambda folder: _set(folder, "compensate", seed=3)),
        (PRUNE, lambda folder: _set(folder, "grid", pruning=["wanda-0.5", "wanda-0.6"])),
        (PRUNE, lambda folder: (folder / "texts.txt").write_text("one")),
        (CORPUS, _touched),
        (CORPUS, lambda folder: _set(folder, "prune", samples=3)),
        (CORPUS, lambda folder: _laid_out(folder, "prune")),
        (PRUNE, lambda folder: _installed(folder, "corpus")),
    ],
)
def test_what_the_stage_does_not_use_may_change(
    project: Path, stage: tuple[str, Cell], change: Callable[[Path], object]
) -> None:
    _run(project, *stage, change)


def test_what_python_writes_beside_a_task_is_no_change(project: Path) -> None:
    (project / "tasks").mkdir()
    (project / "tasks" / "mine.yaml").write_text("task: mine\ndataset_path: json\n")
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["models"]["mine"]["tasks"] = ["tasks"]
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    lay_out_inputs(load_params(project / "params.yaml"), "mine", Layout(project))
    evaluate = ("evaluate_dense", Cell("mine"))

    def compiled(folder: Path) -> None:
        (folder / "tasks" / "__pycache__").mkdir()
        (folder / "tasks" / "__pycache__" / "utils.cpython-311.pyc").write_bytes(b"code")

    _run(project, *evaluate, compiled)
    with pytest.raises(StageFailed, match=r"mine\.yaml was changed while evaluate_dense@mine"):
        _run(project, *evaluate, lambda folder: (folder / "tasks" / "mine.yaml").write_text("task: other"))


def test_what_is_set_for_the_run_stays_over_the_file(project: Path) -> None:
    _run(project, *PRUNE, lambda folder: _set(folder, "prune", samples=3), "prune.samples=5")


def test_code_that_the_stage_has_loaded_counts_and_other_code_does_not(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = module._code()
    loaded, other = (
        str(Path(module.__file__).parents[1] / "base" / "cell.py"),
        str(Path(module.__file__).parents[1] / "base" / "new.py"),
    )
    assert loaded in digests and not any("/cli/" in path for path in digests)
    for name, told in ((loaded, True), (other, False)):
        found = iter([digests, digests | {name: "another"}])
        monkeypatch.setattr(module, "_code", lambda found=found: next(found))
        if told:
            with pytest.raises(StageFailed, match=r"cell\.py was changed while prune@mine"):
                _run(project, *PRUNE, lambda _: None)
        else:
            _run(project, *PRUNE, lambda _: None)


def test_the_files_are_those_that_dvc_watches() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    prefix = "data/inputs/${item.model}/"
    for name, stage in STAGES.items():
        deps = [dep.removeprefix(prefix) for dep in stages[name]["deps"] if dep.startswith(prefix)]
        watched = {dep.replace("${item.pruning}", "{pruning}") for dep in deps if not dep.startswith("settings/")}
        assert watched == set(READ.get(stage.folder, ())), name
        groups = [dep.removeprefix("versions/") for dep in stages[name]["deps"] if dep.startswith("versions/")]
        assert groups == list(VERSIONS.get(stage.folder, ("numerics",))), name


def test_what_a_run_at_work_depends_on_is_laid_out_when_it_has_ended(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, versions = project / "data/inputs/mine/settings/prune.json", project / "versions/numerics"
    old, seen = (settings.read_text(), "numpy==0.1\n"), list[tuple[str, str]]()
    versions.write_text("numpy==0.1\n")

    def at_work(root: Path) -> list[Run]:
        seen.append((settings.read_text(), versions.read_text()))
        return [Run(12, "dvc repro")] if len(seen) < 4 else []

    for place in (workspace, inputs, package_versions):
        monkeypatch.setattr(place, "at_work", at_work)
    params = load_params(project / "params.yaml", ("models.mine.settings={prune: {seed: 7}}",))
    lay_out_inputs(params, "mine", Layout(project))
    assert json.loads(settings.read_text())["section"] == {"seed": 7}
    assert len(seen) == 5 and set(seen) == {old}, "and was looked at once more"
    assert "inputs: process 12 (dvc repro) is at work in" in capsys.readouterr().err

    seen.clear()
    package_versions.write_versions(project)
    assert f"numpy=={package_versions.installed('numpy')}" in versions.read_text().splitlines()
    assert len(seen) == 5 and {found for _, found in seen} == {"numpy==0.1\n"}

    seen.clear()
    lay_out_inputs(params, "mine", Layout(project))
    assert not seen, "nothing would change, so two flows over one grid share its stages"
    monkeypatch.setenv("DVC_STAGE", "evaluate_dense@mine")
    lay_out_inputs(load_params(project / "params.yaml"), "mine", Layout(project))
    assert settings.read_text() == old[0] and not seen, "a stage does not wait for its own run"


_RUNS = """
import sys
from pathlib import Path
from restorelcc.pipeline.running import held_lock
from restorelcc.pipeline.workspace import flow_running, run_lock
root = Path(sys.argv[2])
with flow_running(root) if sys.argv[1] == "a flow" else held_lock(run_lock(root)):
    print("in", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("what", ["a flow", "restorelcc run"])
def test_a_whole_run_is_at_work_between_two_of_its_stages_too(what: str, project: Path) -> None:
    layout, settings = Layout(project), project / "data/inputs/mine/settings/prune.json"
    changed = load_params(project / "params.yaml", ("models.mine.settings={prune: {seed: 7}}",))
    before = settings.read_bytes()
    command = [sys.executable, "-c", _RUNS, what, str(project)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "in\n"
        assert workspace.at_work(project) == [Run(process.pid, what)]
        assert workspace.other_runs(project) == [], "no stage is"
        lay_out_inputs(changed, "mine", layout, wait=False)  # as under DVC's lock, for which the run may wait
        assert settings.read_bytes() == before
        shutil.rmtree(layout.inputs(Cell("mine")))
        lay_out_inputs(changed, "mine", layout)
        assert json.loads(settings.read_text())["section"] == {"seed": 7}, "nothing depended on it: it does not wait"
        process.communicate()
    assert workspace.at_work(project) == []
    for name, old in (("flow-killed", True), ("flow-begins", False)):
        path = workspace.run_lock(project, name)
        path.touch()
        os.utime(path, (1, 1) if old else None)
    with workspace.flow_running(project):
        names = {path.name for path in workspace.run_lock(project).parent.glob("flow-*")}
        assert len(names) == 2 and "flow-begins" in names, "what a killed one left is gone"
    lay_out_inputs(load_params(project / "params.yaml"), "mine", layout, wait=False)
    assert settings.read_bytes() == before

"""dvc.yaml against the code: the same stages everywhere, every import a dependency, paths as in the layout."""

import ast
from pathlib import Path

import pytest
import yaml

from restorelcc.cli import STAGES, app
from restorelcc.core.cell import Cell
from restorelcc.io.layout import Layout
from restorelcc.params import Params
from tests.dag import ROOT, code_deps

DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
AXES = {"model": "${item.model}", "pruning": "${item.pruning}", "head_ratio": "${item.head_ratio}"}
AXES |= {"baseline": "${item.baseline}"}
LAYERS = ("core", "io", "stages", "cli", "flows")


def _folder(stage: str) -> str:
    return stage.split("_")[0]


def test_stages_are_verbs_folders_and_params_sections() -> None:
    assert set(DVC) == {*STAGES, "report"}
    folders = {path.name for path in (ROOT / "restorelcc").iterdir() if (path / "stage.py").is_file()}
    assert {_folder(stage) for stage in DVC} == folders
    assert folders == set(Params.model_fields) - {"grid", "models"}
    verbs = {command.name for command in app.registered_commands}
    assert set(DVC) <= verbs
    for folder in folders:
        section = f"{folder.title()}Config"
        assert f"class {section}(" in (ROOT / "restorelcc" / folder / "config.py").read_text()


@pytest.mark.parametrize("stage", DVC)
def test_deps_cover_the_imports_and_nothing_else(stage: str) -> None:
    listed = [dep for dep in DVC[stage]["deps"] if dep.startswith("restorelcc/")]
    assert listed == code_deps(_folder(stage))


@pytest.mark.parametrize("stage", DVC)
def test_params_are_the_stages_section_and_its_model(stage: str) -> None:
    expected = [_folder(stage), "models.${item.model}"] if stage in STAGES else ["report", "grid"]
    assert DVC[stage]["params"] == expected


@pytest.mark.parametrize("stage", STAGES)
def test_the_matrix_is_the_grid_and_the_command_names_the_cell(stage: str) -> None:
    needs = STAGES[stage].needs
    assert DVC[stage]["matrix"] == {axis: f"${{grid.{axis}}}" for axis in needs}
    options = "".join(f" --{axis.replace('_', '-')} {AXES[axis]}" for axis in needs)
    assert DVC[stage]["cmd"] == f"restorelcc {stage}{options}"


def test_paths_are_those_of_the_layout() -> None:
    layout = Layout(Path())
    model, pruned, restored = Cell(AXES["model"]), Cell(*list(AXES.values())[:2]), Cell(*list(AXES.values())[:3])
    recovered = Cell(*list(AXES.values())[:2], baseline=AXES["baseline"])
    expected = {
        "corpus": [layout.corpus(model)],
        "dense": [layout.dense(model)],
        "capture_dense": [layout.dense_activations(model)],
        "prune": [layout.pruned(pruned)],
        "capture_pruned": [layout.pruned_activations(pruned)],
        "extract": [layout.components(pruned)],
        "probe": [layout.heads(pruned)],
        "compensate": [layout.compensation(restored), layout.training(restored)],
        "evaluate_dense": [
            layout.samples(model),
            layout.details(model),
            layout.reference(model),
            layout.metrics(model),
        ],
        "evaluate_pruned": [layout.samples(pruned), layout.details(pruned), layout.metrics(pruned)],
        "evaluate_restored": [layout.samples(restored), layout.details(restored), layout.metrics(restored)],
        "baseline": [layout.baseline(recovered)],
        "evaluate_baseline": [layout.samples(recovered), layout.details(recovered), layout.metrics(recovered)],
        "report": [layout.report],
    }
    for stage, paths in expected.items():
        assert DVC[stage]["outs"] + DVC[stage].get("metrics", []) == [str(path) for path in paths]


def _layer(module: str) -> str:
    part = module.removeprefix("restorelcc.").split(".")[0]
    if module.startswith("flows"):
        return "flows"
    if part in ("core", "io"):
        return part
    return "cli" if part in ("cli", "verbs", "params", "api", "oneshot", "__main__", "restorelcc") else "stages"


def test_imports_point_one_way_and_stages_do_not_meet() -> None:
    for path in [*(ROOT / "restorelcc").rglob("*.py"), *(ROOT / "flows").rglob("*.py")]:
        own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                if not name.startswith(("restorelcc.", "flows")):
                    continue
                assert LAYERS.index(_layer(name)) <= LAYERS.index(_layer(own)), f"{own} imports {name}"
                if _layer(own) == _layer(name) == "stages":
                    assert own.split(".")[1] == name.split(".")[1], f"{own} imports another stage: {name}"


def test_files_stay_short_and_no_pickle_or_remote_code_is_loaded() -> None:
    for path in (ROOT / "restorelcc").rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= 320, path
        for forbidden in ("torch.load(", "pickle.", "yaml.load(", "trust_remote_code=True"):
            assert forbidden not in text, f"{path} has {forbidden}"

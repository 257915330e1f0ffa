"""dvc.yaml against the code: the same stages everywhere, every import a dependency, paths as in the layout."""

import ast
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tokenize
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace

import networkx
import pytest
import yaml
from dvc.repo import Repo
from filelock import lock_descriptor

from restorelcc.base.cell import Cell
from restorelcc.base.layout import Layout
from restorelcc.base.model_entry import USED_BY, ModelEntry
from restorelcc.cli.app import app, report
from restorelcc.pipeline.one_run import VARIABLE
from restorelcc.pipeline.params import Params
from restorelcc.pipeline.stages import STAGES
from restorelcc.pipeline.stale import grid_outs, remove_stale_metrics, remove_stale_metrics_if_alone, stale_metrics
from restorelcc.pipeline.versions import installed, read_groups
from restorelcc.stages.inputs import Named
from restorelcc.stages.inputs.stage import lay_out
from tests.dag import PACKAGE, ROOT, imported_modules, module_file, module_name, packages, rooms, stage_folders

DVC_FILE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
DVC = DVC_FILE["stages"]
AXES = {"model": "${item.model}", "pruning": "${item.pruning}", "head_ratio": "${item.head_ratio}"}
AXES |= {"recovery": "${item.recovery}"}
# Floors of the house: imports point only downwards, and rooms of one floor do not meet.
FLOORS = (
    {"base"},
    {"models"},
    {"activations", "sparsity", "compensation"},
    {"training", "release"},
    {"stages"},
    {"pipeline", "api"},
    {"cli", "flows"},
    {"__main__", "__init__"},
)


def _folder(stage: str) -> str:
    return stage.split("_")[0]


def test_stages_are_verbs_folders_and_params_sections() -> None:
    assert set(DVC) == {"inputs", *STAGES, "report"}
    folders = set(stage_folders())
    assert {_folder(stage) for stage in DVC} == folders
    assert {name: stage.folder for name, stage in STAGES.items()} == {name: _folder(name) for name in STAGES}
    folders.remove("inputs")  # which has no settings of its own: it lays out what the others name
    assert folders == set(Params.model_fields) - {"grid", "models"} == {*USED_BY, "report"}
    verbs = {command.name for command in app.registered_commands}
    assert set(DVC) <= verbs
    for folder in folders:
        section = f"{folder.title()}Config"
        assert f"class {section}(" in (PACKAGE / "stages" / folder / "__init__.py").read_text()


@pytest.mark.parametrize("stage", DVC)
def test_code_and_packages_are_dependencies(stage: str) -> None:
    """A stage's own folder, every room that it imports from and no other, and groups of packages with all it uses."""
    listed, folder = DVC[stage]["deps"], _folder(stage)
    code = [dep for dep in listed if dep.startswith("restorelcc/")]
    assert code[0] == f"restorelcc/stages/{folder}"
    assert sorted(code[1:]) == sorted(f"restorelcc/{room}" for room in rooms(folder))
    assert len(code) <= 6, "one to five rooms"
    groups = read_groups(ROOT)
    own = [dep.removeprefix("versions/") for dep in listed if dep.startswith("versions/")]
    assert packages(folder) <= {package for group in own for package in groups[group]}
    assert len(own) <= 2
    assert all(dep.startswith(("restorelcc/", "versions/", "data/")) for dep in listed)


@pytest.mark.parametrize("stage", DVC)
def test_params_are_the_stages_section_and_its_model(stage: str) -> None:
    expected = {
        "inputs": ["models.${item.model}", "grid.pruning", "corpus", "prune", "evaluate"],
        "report": ["report", "grid"],
    }
    assert DVC[stage]["params"] == expected.get(stage, [_folder(stage)])


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_depends_on_its_part_of_the_models_entry(stage: str) -> None:
    own = f"data/inputs/${{item.model}}/settings/{_folder(stage)}.json"
    assert own in DVC[stage]["deps"]


def test_every_file_that_a_model_can_name_is_a_dependency() -> None:
    """Everything that the stage `inputs` lays out, and each in the stages that read it."""
    entry = ModelEntry(source="microworld")
    laid = lay_out("m", Named(entry=entry, prunings=("${item.pruning}",)), ROOT)
    named = {name.partition("/")[0] if name.startswith("beside") else name for name in laid}
    deps = {dep for stage in STAGES for dep in DVC[stage]["deps"] if dep.startswith("data/inputs")}
    assert {f"data/inputs/${{item.model}}/{name}" for name in named} == deps
    readers = {
        name: {_folder(stage) for stage in STAGES if f"data/inputs/${{item.model}}/{name}" in DVC[stage]["deps"]}
        for name in named
    }
    assert readers == {f"settings/{stage}.json": {stage} for stage in USED_BY} | {
        "calibration": {"corpus"},
        "instructions": {"corpus"},
        "heldout": {"corpus"},
        "encoder": {"corpus"},
        "tokenizer": {"corpus"},
        "model": {"dense"},
        "external/${item.pruning}": {"prune"},
        "tasks-1": {"evaluate"},
        "tasks-2": {"evaluate"},
        "beside": {"evaluate"},
    }


def test_every_recorded_package_is_used_by_a_stage() -> None:
    used = set().union(*(packages(folder) for folder in stage_folders()))
    assert {package for group in read_groups(ROOT).values() for package in group} == used


def test_versions_are_those_of_the_lock() -> None:
    locked = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]
    lock = {package["name"]: package["version"] for package in locked if package["name"] != "restorelcc"}
    for group in read_groups(ROOT).values():
        for package, recorded in group.items():
            assert recorded == lock[package.lower()] == installed(package)


def test_a_run_of_another_grid_deletes_no_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run --model mine` and `report --set` leave those of the other models for `export` and the next full run."""
    asked: list[object] = []
    monkeypatch.setattr("restorelcc.pipeline.stale.remove_stale_metrics_if_alone", lambda *given: asked.append(given))
    monkeypatch.setattr("restorelcc.stages.report.stage.run", lambda *_: SimpleNamespace(missing=[]))
    monkeypatch.setattr("restorelcc.pipeline.versions.check_versions", lambda *_: None)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.setenv("DVC_STAGE", "report")
    monkeypatch.setenv("RESTORELCC_TABLE", "0")
    for settings, times in ((("grid.model=[tiny]",), 0), ((), 1)):
        monkeypatch.setenv(VARIABLE, json.dumps(settings))
        report(tmp_path / "params.yaml")
        assert len(asked) == times


def test_stale_metrics_are_what_no_cell_of_the_grid_writes(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    wide = {axis: [] for axis in yaml.safe_load((ROOT / "params.yaml").read_text())["grid"]} | {
        "model": ["a", "b"],
        "pruning": ["wanda-0.5"],
        "head_ratio": [0.1, 1, 1.0],
    }
    metrics = {out for out in grid_outs(DVC_FILE, wide) if out.startswith("data/metrics")}
    for out in metrics:
        path = tmp_path / out
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert stale_metrics(Layout(tmp_path), wide) == []
    stale = {str(path.relative_to(tmp_path)) for path in stale_metrics(Layout(tmp_path), wide | {"model": ["a"]})}
    assert stale == {out for out in metrics if out.startswith("data/metrics/b/")} != set()
    stale = {str(path.relative_to(tmp_path)) for path in stale_metrics(Layout(tmp_path), wide | {"head_ratio": [1]})}
    assert stale == {out for out in metrics if "heads-0.1." in out or "heads-1.0." in out} != set()


def _with_metrics(tmp_path: Path) -> None:
    """A project with metrics of a and b, some by hand; DVC's cache has b's."""
    stages = {
        "e": {"cmd": "x", "matrix": {"model": "${grid.model}"}, "metrics": ["data/metrics/${item.model}/dense.json"]}
    }
    own = {"cmd": "x", "matrix": {"seed": [1, 2]}, "outs": ["data/metrics/own-${item.seed}.txt"]}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages | {"own": own}}))
    Repo.init(str(tmp_path), no_scm=True).close()
    names = ("a/dense.json", "b/dense.json", "b/by-hand.json", "notes.md", "own-1.txt")
    for name in names:
        path = tmp_path / "data/metrics" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    known = hashlib.md5(b"b/dense.json").hexdigest()
    cached = tmp_path / ".dvc/cache/files/md5" / known[:2] / known[2:]
    cached.parent.mkdir(parents=True)
    cached.write_text("b/dense.json")


def test_only_what_dvc_can_bring_back_is_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _with_metrics(tmp_path)
    removed = remove_stale_metrics(Layout(tmp_path), {"model": ["a"]})
    assert [str(path.relative_to(tmp_path)) for path in removed] == ["data/metrics/b/dense.json"]
    left = {
        path.relative_to(tmp_path / "data/metrics").as_posix()
        for path in tmp_path.rglob("data/metrics/*")
        if path.is_file()
    }
    assert {"notes.md", "own-1.txt"} <= left and (tmp_path / "data/metrics/b/by-hand.json").is_file()
    assert "left as they are: data/metrics/b/by-hand.json, data/metrics/notes.md" in capsys.readouterr().err


def test_metrics_stay_while_another_run_may_need_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run --model b` beside a flow of another grid: between its stages it holds DVC's lock, in one it is noted."""
    _with_metrics(tmp_path)
    layout, grid, metrics = Layout(tmp_path), {"model": ["a"]}, tmp_path / "data/metrics/b/dense.json"
    with subprocess.Popen([sys.executable, "-c", "input()", "repro"], stdin=subprocess.PIPE) as other:
        run = {"pid": other.pid, "cmd": "-c repro"}
        for noted, ours in (({"read": {"x": [run]}}, False), ({"write": {str(layout.report): run}}, True)):
            (tmp_path / ".dvc/tmp/rwlock").write_text(json.dumps(noted))
            monkeypatch.delenv("DVC_STAGE", raising=False)
            assert remove_stale_metrics(layout, grid) == [] and metrics.is_file()
            monkeypatch.setenv("DVC_STAGE", "report")  # whoever writes the report is the DVC that runs this stage
            with (tmp_path / ".dvc/tmp/lock").open("a") as held:
                assert lock_descriptor(held.fileno(), blocking=False)
                remove_stale_metrics_if_alone(layout, grid)
                assert metrics.is_file()
            remove_stale_metrics_if_alone(layout, grid)
            assert metrics.is_file() is not ours
        other.kill()


@pytest.mark.parametrize("stage", DVC)
def test_a_stage_that_loads_a_model_waits_for_a_gpu(stage: str) -> None:
    loads = stage in STAGES and STAGES[stage].loads_model
    writes = stage == "corpus"  # a model that writes its data itself
    assert DVC[stage].get("meta") == ({"resource": "gpu"} if loads else {"own_words": "gpu"} if writes else None)
    folder = PACKAGE / "stages" / _folder(stage)
    assert (loads or writes) == any(
        "load_entry(" in path.read_text() or "load_model(" in path.read_text() for path in folder.glob("*.py")
    )


@pytest.mark.parametrize("stage", STAGES)
def test_the_matrix_is_the_grid_and_the_command_names_the_cell(stage: str) -> None:
    needs = STAGES[stage].axes
    assert DVC[stage]["matrix"] == {axis: f"${{grid.{values}}}" for axis, values in STAGES[stage].matrix.items()}
    assert list(STAGES[stage].matrix) == list(needs)
    assert DVC[stage]["cmd"] == f"restorelcc {stage} ${{item}}", "spelled so, DVC quotes the values for the shell"


def test_paths_are_those_of_the_layout() -> None:
    layout = Layout(Path())
    model, pruned, restored = Cell(AXES["model"]), Cell(*list(AXES.values())[:2]), Cell(*list(AXES.values())[:3])
    recovered = Cell(*list(AXES.values())[:2], recovery=AXES["recovery"])
    evaluated = ("samples", "text_scores", "details", "metrics")
    expected = {
        "inputs": [layout.inputs(model) / "settings"],
        "corpus": [layout.corpus(model), layout.sources(model)],
        "dense": [layout.dense(model)],
        "capture_dense": [layout.dense_activations(model)],
        "prune": [layout.pruned(pruned)],
        "capture_pruned": [layout.pruned_activations(pruned)],
        "extract": [layout.components(pruned)],
        "probe": [layout.heads(pruned)],
        "compensate": [layout.compensation(restored), layout.training(restored)],
        "evaluate_dense": [
            layout.samples(model),
            layout.text_scores(model),
            layout.details(model),
            layout.reference(model),
            layout.metrics(model),
        ],
        "evaluate_pruned": [getattr(layout, name)(pruned) for name in evaluated],
        "evaluate_restored": [getattr(layout, name)(restored) for name in evaluated],
        "recover": [layout.recovered(recovered)],
        "evaluate_recovered": [getattr(layout, name)(recovered) for name in evaluated],
        "speed": [layout.speed(restored)],
        "report": [layout.report],
    }
    assert expected.keys() == DVC.keys()
    for stage, paths in expected.items():
        outs = [out if isinstance(out, str) else next(iter(out)) for out in DVC[stage]["outs"]]
        assert outs + DVC[stage].get("metrics", []) == [str(path) for path in paths]


def test_the_table_of_stages_has_every_one() -> None:
    page = (ROOT / "docs" / "workflow.md").read_text(encoding="utf-8")
    table = page.partition("\n## The stages\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = [name for cell in cells for name in re.findall(r"`(\S+)`", cell)]
    assert [stage for stage in DVC if not any(fnmatchcase(stage, name) for name in named)] == []
    assert [name for name in named if not any(fnmatchcase(stage, name) for stage in DVC)] == []


def _room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0 if path.is_relative_to(ROOT / "flows") else 1].removesuffix(".py")


def _floor(room: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if room in floor)


def test_imports_point_downwards_and_stages_do_not_meet() -> None:
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "flows").rglob("*.py")]:
        own = _room(path)
        for module in imported_modules(path):
            file = module_file(module)
            assert file
            room = _room(file)
            assert room == own or _floor(room) < _floor(own), f"{path} imports {module}"
            if own == room == "stages":
                assert path.relative_to(PACKAGE).parts[1] == file.relative_to(PACKAGE).parts[1], f"{path}: {module}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = networkx.DiGraph()
    for path in PACKAGE.rglob("*.py"):
        graph.add_edges_from((module_name(path), module) for module in imported_modules(path))
    assert list(networkx.simple_cycles(graph)) == []


def test_base_needs_no_torch() -> None:
    modules = [f"restorelcc.base.{path.stem}" for path in (PACKAGE / "base").glob("*.py") if path.stem != "__init__"]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_every_room_says_what_it_knows() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


def _lines_of_code(path: Path) -> int:
    """Lines that hold more than a comment or a docstring."""
    text = path.read_text(encoding="utf-8")
    aside = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in aside]
    code = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            code -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(code)


def test_no_file_is_a_scrap() -> None:
    """What is shorter stands with what it is about; only an __init__ may say one thing."""
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    assert [str(path.relative_to(ROOT)) for path in files if _lines_of_code(path) < 20] == []


def test_no_link_is_tracked() -> None:
    listed = subprocess.run(["git", "ls-files", "--stage"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not [line for line in listed.stdout.splitlines() if line.startswith("120000")]


def test_files_stay_short_and_no_pickle_or_remote_code_is_loaded() -> None:
    for path in (ROOT / "restorelcc").rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= 320, path
        for forbidden in ("torch.load(", "pickle.", "yaml.load(", "trust_remote_code=True"):
            assert forbidden not in text, f"{path} has {forbidden}"

"""An edit of a file that the user named, and the exact set of stages that `dvc repro` then executes.

The files, links, digests and the DAG are real, `inputs` too; the stages behind it are light. They are as exact as the
true ones: tests/stages/corpus asserts that a table of the corpus changes with the files that it is made of alone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.dag import ROOT
from tests.flows.light import FEW, LightProject
from tests.flows.servers import FAST_LOCK
from tests.flows.user_files import MODEL, PRUNINGS, RATIO, user_params, write_user_files

Edit = Callable[[LightProject, Path], None]
INPUTS, CORPUS, DENSE = (f"{stage}@{MODEL}" for stage in ("inputs", "corpus", "dense"))


def per(stages: str, prunings: tuple[str, ...] = PRUNINGS) -> set[str]:
    """Names of the cells of stages: per model, per pruning or per ratio as the stage is."""
    names: set[str] = set()
    for stage in stages.split():
        if stage in ("capture_dense", "evaluate_dense"):
            names.add(f"{stage}@{MODEL}")
        else:
            last = f"-{RATIO}" if stage in ("compensate", "evaluate_restored") else ""
            names |= {f"{stage}@{MODEL}-{pruning}{last}" for pruning in prunings}
    return names


EVALUATIONS = per("evaluate_dense evaluate_pruned evaluate_restored") | {"report"}
BEHIND_PRUNE = "prune capture_pruned extract probe compensate evaluate_pruned evaluate_restored"
CALIBRATION = per(BEHIND_PRUNE) | {CORPUS, "report"}
PAIRS = per("capture_dense capture_pruned extract probe compensate evaluate_restored") | {CORPUS, "report"}
WEIGHTS = per(f"capture_dense evaluate_dense {BEHIND_PRUNE}") | {DENSE, "report"}
THEIRS = per(BEHIND_PRUNE, ("external-theirs",)) | {"report"}
NOTHING: set[str] = set()
MOVED = "held-out texts moved"  # until `inputs` has run its link leads nowhere, which `dvc status` only complains of


def append(name: str, text: str = "\n") -> Edit:
    def edit(project: LightProject, home: Path) -> None:
        with (home / name).open("a") as file:
            file.write(text)

    return edit


def replace(name: str, old: str, new: str) -> Edit:
    def edit(project: LightProject, home: Path) -> None:
        text = (home / name).read_text()
        assert old in text
        (home / name).write_text(text.replace(old, new))

    return edit


def write(name: str, text: str) -> Edit:
    return lambda project, home: (home / name).write_text(text.format(home=home)) and None


def remove(name: str) -> Edit:
    return lambda project, home: (home / name).unlink()


def touch(name: str) -> Edit:
    return lambda project, home: os.utime(home / name)


def set_(key: str, value: object) -> Edit:
    return lambda project, home: project.set(key, value)


def cut_pairs(project: LightProject, home: Path) -> None:
    """861 rows to 100, in small."""
    lines = (home / "pairs.jsonl").read_text().splitlines(keepends=True)
    (home / "pairs.full").write_text("".join(lines))
    (home / "pairs.jsonl").write_text("".join(lines[:30]))


def put_pairs_back(project: LightProject, home: Path) -> None:
    shutil.copyfile(home / "pairs.full", home / "pairs.jsonl")


def move_heldout(project: LightProject, home: Path) -> None:
    (home / "heldout.jsonl").rename(home / "texts.jsonl")
    project.set(f"models.{MODEL}.data.heldout", str(home / "texts.jsonl"))


def link_calibration(project: LightProject, home: Path) -> None:
    """The same rows behind a link."""
    (home / "calibration.jsonl").rename(home / "real.jsonl")
    (home / "calibration.jsonl").symlink_to(home / "real.jsonl")


def shard_calibration(project: LightProject, home: Path) -> None:
    """The same texts in two files of a folder."""
    lines = (home / "calibration.jsonl").read_text().splitlines(keepends=True)
    (home / "shards").mkdir()
    (home / "shards" / "1.jsonl").write_text("".join(lines[:9]))
    (home / "shards" / "2.jsonl").write_text("".join(lines[9:]))
    project.set(f"models.{MODEL}.data.calibration", str(home / "shards"))


TASK = "include: ../{name}\ntask: three\ndataset_path: json\ntest_split: test\n"
# In this order in one project; each states what runs since the executed one before.
EDITS: list[tuple[str, Edit, set[str]]] = [
    ("nothing", lambda project, home: None, NOTHING),
    ("a row more of calibration", append("calibration.jsonl", '{"text": "more"}\n'), CALIBRATION),
    ("calibration touched", touch("calibration.jsonl"), NOTHING),
    ("calibration behind a link", link_calibration, NOTHING),
    ("and the file behind that link edited", append("real.jsonl", '{"text": "again"}\n'), CALIBRATION),
    ("instructions cut to half", cut_pairs, PAIRS),
    ("instructions put back: all of it comes from the cache", put_pairs_back, NOTHING),
    ("one answer corrected", replace("pairs.jsonl", "it is 7", "it is 8"), PAIRS),
    ("held-out texts edited", append("heldout.jsonl", '{"text": "more"}\n'), EVALUATIONS | {CORPUS}),
    (MOVED, move_heldout, {INPUTS, CORPUS, "report"}),
    ("the metric of a task", replace("tasks/one.yaml", "metric: acc", "metric: acc_norm"), EVALUATIONS),
    ("what a task includes", append("shared.yaml", "# an edit\n"), EVALUATIONS),
    ("what a task calls", append("tasks/utils.py", "# an edit\n"), EVALUATIONS),
    ("items beside a task", append("tasks/items.jsonl", '{"question": "new?"}\n'), EVALUATIONS),
    ("items elsewhere", append("elsewhere/more.jsonl", '{"question": "new?"}\n'), EVALUATIONS),
    ("a new task in the folder", write("tasks/three.yaml", TASK.replace("{name}", "shared.yaml")), EVALUATIONS),
    ("a file that nothing includes", write("late.yaml", "output_type: multiple_choice\n"), NOTHING),
    ("a task that now includes it", write("tasks/three.yaml", TASK.replace("{name}", "late.yaml")), EVALUATIONS),
    ("and that file edited", append("late.yaml", "# an edit\n"), EVALUATIONS),
    ("a task removed: results from the cache", remove("tasks/three.yaml"), {f"evaluate_dense@{MODEL}"}),
    ("what a called function imports, elsewhere", append("functions/more.py", "# an edit\n"), EVALUATIONS),
    ("a prompt beside the tasks", write("tasks/prompt.md", "Answer."), EVALUATIONS),
    ("a readme of the tasks", append("tasks/README.md"), NOTHING),
    ("a local copy of a task's data", append("copies/arc_easy/validation.jsonl", '{"question": "!"}\n'), EVALUATIONS),
    ("the dense weights", append("dense/model.safetensors", "x"), WEIGHTS),
    ("the dense tokenizer", append("dense/tokenizer.json", " "), WEIGHTS | PAIRS),
    ("the dense chat template", write("dense/chat_template.jinja", "{{{{ messages }}}}"), WEIGHTS | PAIRS),
    ("another file beside them", write("dense/preprocessor_config.json", "1"), WEIGHTS),
    ("which goes again: all of it comes from the cache", remove("dense/preprocessor_config.json"), NOTHING),
    ("its generation config", append("dense/generation_config.json", " "), WEIGHTS),
    ("a readme of the weights", append("dense/README.md"), NOTHING),
    ("the external checkpoint pruned again in place", write("theirs/model.safetensors", "60 %"), THEIRS),
    ("its tokenizer", append("theirs/tokenizer.json", " "), THEIRS),
    ("the encoder", append("encoder/1_Pooling/config.json", " "), PAIRS),
    ("one task less", set_(f"models.{MODEL}.tasks", ["arc_easy"]), EVALUATIONS | {INPUTS}),
    (
        "a setting of this model alone",
        set_(f"models.{MODEL}.settings", {"compensate": {"epochs": 9}}),
        per("compensate evaluate_restored") | {INPUTS, "report"},
    ),
    ("calibration in a folder of shards", shard_calibration, CALIBRATION | {INPUTS}),
    ("a hidden file among them", write("shards/.DS_Store", "x"), NOTHING),
    ("a shard more", write("shards/3.jsonl", '{{"text": "a third"}}\n'), CALIBRATION),
    (
        "a pattern for the same shards",
        lambda project, home: project.set(f"models.{MODEL}.data.calibration", str(home / "shards/*.jsonl")),
        CALIBRATION | {INPUTS},
    ),
    ("nothing, at the end", lambda project, home: None, NOTHING),
]
# Executed for real, and then left as they are: what the cache brings back, what others build on, and one of each kind.
# Of the others DVC is asked what it would run, in milliseconds, and they are undone.
EXECUTED = (
    "nothing",
    "calibration behind a link",
    "instructions cut to half",
    "instructions put back: all of it comes from the cache",
    MOVED,
    "a new task in the folder",
    "a file that nothing includes",
    "a task that now includes it",
    "a task removed: results from the cache",
    "another file beside them",
    "which goes again: all of it comes from the cache",
    "the external checkpoint pruned again in place",
    "a setting of this model alone",
    "calibration in a folder of shards",
    "nothing, at the end",
)


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> tuple[LightProject, Path]:
    folder = tmp_path_factory.mktemp("user")
    home = folder / "home of a user"  # a path with blanks
    write_user_files(home)
    project = LightProject(folder / "project", code=())  # no edit is one of code
    project.environment["PYTHONPATH"] = f"{ROOT}:{FAST_LOCK}"
    project.write_params(user_params(project.params(), home))
    project.commit("a model of my own")
    assert len(project.repro()) == 5 + 2 * 7 + 1
    return project, home


@contextmanager
def undone(project: LightProject, home: Path, kept: Path) -> Iterator[None]:
    """What an edit may change, as it was before."""
    params, folders = project.params(), {home: kept / "home", project.folder / "data/inputs": kept / "inputs"}
    for folder, copy in folders.items():
        shutil.copytree(folder, copy, symlinks=True)
    yield
    project.write_params(params)
    for folder, copy in folders.items():
        shutil.rmtree(folder)
        copy.rename(folder)


def test_an_edit_of_a_users_file_runs_exactly_what_depends_on_it(
    user: tuple[LightProject, Path], tmp_path: Path
) -> None:
    project, home = user
    assert len(EDITS) >= 25 and set(EXECUTED) <= {what for what, *_ in EDITS}
    wrong = []
    for what, edit, expected in EDITS:
        if what in EXECUTED:
            edit(project, home)
            seen = bool(project.status()) if "cache" in what else bool(expected)
            ran = project.repro()
        else:
            with undone(project, home, tmp_path):
                edit(project, home)
                ran = sorted(project.would_run())
                seen = bool(ran)
        if set(ran) != expected or len(ran) != len(set(ran)) or seen != (bool(expected) or "cache" in what):
            extra, lacking = sorted(set(ran) - expected), sorted(expected - set(ran))
            wrong.append(f"{what}: ran also {extra}, did not run {lacking}, dvc status saw it: {seen}")
    assert not wrong, "\n".join(wrong)


def test_a_model_that_writes_its_data_itself_is_one_of_the_files_of_its_corpus(
    user: tuple[LightProject, Path], tmp_path: Path
) -> None:
    project, home = user[0].copy(tmp_path / "own"), user[1]
    project.set(f"models.{MODEL}.data.instructions", f"self:{home}/pairs.jsonl")
    assert set(project.repro()) == PAIRS | {INPUTS}
    for edit, expected in (
        (append("dense/model.safetensors", "x"), WEIGHTS | PAIRS),
        (append("pairs.jsonl", '{"question": "one more?"}\n'), PAIRS),
        (append("dense/README.md"), NOTHING),
    ):
        with undone(project, home, tmp_path / "kept"):
            edit(project, home)
            assert project.would_run() == expected
    project.set(f"models.{MODEL}.threads", 2)
    assert CORPUS in project.would_run(), "how it runs may change what it writes"


def test_a_file_that_is_gone_is_one_sentence_and_back_is_as_before(user: tuple[LightProject, Path]) -> None:
    project, home = user
    (home / "pairs.jsonl").rename(home / "kept")
    done = project.restorelcc("inputs")
    assert done.code == 2
    sentence = f"data file {home}/pairs.jsonl does not exist: correct its path under models.{MODEL}.data.instructions"
    said = done.text.strip().replace(" (its folder has 'real.jsonl')", "")  # where an edit before has made that file
    assert said == f"restorelcc: error: {sentence}"
    assert project.run("dvc", "repro", "--quiet").code != 0
    (home / "kept").rename(home / "pairs.jsonl")
    assert project.repro() == []


def test_two_people_with_another_file_of_the_same_path_do_not_share_results(
    user: tuple[LightProject, Path], tmp_path: Path
) -> None:
    """The run-cache goes by what is in a file: a colleague's result is not taken for one's own."""
    project, home = user
    other = project.copy(tmp_path / "other")
    before = (other.folder / f"data/corpus/{MODEL}/train.parquet").read_text()
    (home / "pairs.jsonl").write_text(json.dumps({"question": "another?", "response": "file"}) + "\n")
    other.repro()
    edited = (other.folder / f"data/corpus/{MODEL}/train.parquet").read_text()
    assert edited != before
    shutil.copyfile(home / "pairs.full", home / "pairs.jsonl")
    shutil.rmtree(other.folder / f"data/corpus/{MODEL}")
    (other.folder / "dvc.lock").unlink()
    other.repro()
    assert (other.folder / f"data/corpus/{MODEL}/train.parquet").read_text() != edited


def test_a_colleague_without_the_users_files_gets_the_results_as_recorded(tmp_path: Path) -> None:
    home = tmp_path / "home"
    write_user_files(home)
    ann = LightProject(tmp_path / "ann", stages=FEW, code=())
    ann.environment["PYTHONPATH"] = f"{ROOT}:{FAST_LOCK}"
    ann.write_params(user_params(ann.params(), home))
    stages = ann.repro()
    assert ann.restorelcc("share", str(tmp_path / "remote")).code == 0
    ann.commit("results")
    assert ann.restorelcc("push").code == 0
    home.rename(tmp_path / "on Ann's machine alone")

    bob = ann.clone(tmp_path / "bob")
    bob.environment["PYTHONPATH"] = ann.environment["PYTHONPATH"]
    for restored in (1, 0):  # the report reads results alone, and nobody's files
        text = bob.restorelcc("pull").text
        counts = f"{restored} stages restored, {len(stages) - 2} as dvc.lock has them, 0 left to compute"
        assert counts in text, text  # not `inputs`, of which there is nothing
        assert "results computed from it can be read here, but not computed again" in text
        assert bob.artifacts() == {
            path: content for path, content in ann.artifacts().items() if not path.startswith("inputs/")
        }
        assert bob.sh("git", "status", "--porcelain") == ""
    bob.set("prune.seed", 7)
    assert f"{len(PRUNINGS) * 2 + 1} left to compute" in bob.restorelcc("pull").text
    bob.set(f"models.{MODEL}.sequence_length", 31)
    assert f"{len(stages)} left to compute" in bob.restorelcc("pull").text, "nothing is of this entry"


def test_links_lead_to_files_and_none_of_them_is_ever_written(user: tuple[LightProject, Path]) -> None:
    project, home = user
    before = {path: (path.read_bytes(), path.stat().st_mode) for path in home.rglob("*") if path.is_file()}
    for command in (
        ("dvc", "checkout", "--force"),
        ("dvc", "gc", "--workspace", "--force"),
        ("dvc", "repro", "--force"),
    ):
        project.sh(*command)
    assert {path: (path.read_bytes(), path.stat().st_mode) for path in home.rglob("*") if path.is_file()} == before

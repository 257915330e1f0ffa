"""What comes from elsewhere runs no code of its own and reaches no shell: the package and dvc.yaml as a whole."""

from __future__ import annotations

import ast
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from restorelcc.base.errors import BadInput
from restorelcc.pipeline.params import checked
from restorelcc.pipeline.stages import STAGES
from tests.dag import PACKAGE, ROOT

LOADERS = ("from_pretrained", "from_config")  # of transformers' Auto classes
OTHERS = ("SentenceTransformer",)
NOT_THEIRS = ("PeftModel", "kind")  # peft has no code of its own to load; `kind` is a class of transformers itself


def _calls(file: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Attribute) and called.attr in LOADERS and ast.unparse(called.value) not in NOT_THEIRS:
            yield node
        if isinstance(called, ast.Name) and called.id in OTHERS:
            yield node


def test_no_class_of_a_checkpoint_own_is_ever_run() -> None:
    """Without trust_remote_code=False transformers asks on stdin, in the middle of a run, and `yes |` answers."""
    files = [path for room in (PACKAGE, ROOT / "flows", ROOT / "benchmarks") for path in room.rglob("*.py")]
    calls = [(file, call) for file in files for call in _calls(file)]
    assert len(calls) >= 8, "the walk finds nothing any more"
    for file, call in calls:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given.get("trust_remote_code") == "False", f"{file}:{call.lineno}"


EVIL = (
    "wanda-0.5; touch X;",
    "a' $(touch X) `touch X` \"b",
    "--params=/evil",
    "x\ntouch X",
    "-0.5 | touch X",
    "~ * $HOME",
)


@pytest.mark.parametrize("evil", EVIL)
def test_no_value_of_the_grid_reaches_the_shell_by_dvc(
    evil: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What DVC makes of dvc.yaml, run by the shell it takes: every value arrives as one argument."""
    from dvc.repo import Repo

    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["grid"] = {"model": [evil], "pruning": [evil], "head_ratio": [evil, 0.25]}
    content["grid"] |= {"recovery": [evil], "speed": [evil]}
    content["models"] = {evil: content["models"]["tiny"]}
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    text = (tmp_path / "dvc.yaml").read_text().replace("models.${item.model}", "models")  # no key that DVC can name
    (tmp_path / "dvc.yaml").write_text(text)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    Repo.init(str(tmp_path), no_scm=True).close()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "restorelcc").write_text('#!/bin/sh\nprintf "%s\\0" "$@" > "$SEEN"\n')
    (tmp_path / "bin" / "restorelcc").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    with Repo(str(tmp_path)) as repo:
        commands = sorted({str(stage.cmd) for stage in repo.index.stages})
    assert len(commands) >= len(STAGES) + 2
    environment = os.environ | {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "SEEN": str(tmp_path / "seen")}
    for command in commands:
        subprocess.run(["/bin/sh", "-c", command], env=environment, check=True, cwd=tmp_path)
        stage, *options = (tmp_path / "seen").read_bytes().decode().split("\0")[:-1]
        assert stage in {"inputs", "report", *STAGES}
        names, values = options[::2], options[1::2]
        axes = STAGES[stage].axes if stage in STAGES else ("model",) * (stage == "inputs")
        assert names == [f"--{axis}" for axis in axes] and set(values) <= {evil, "0.25"}
        assert shlex.split(command)[1:] == [stage, *options]
    assert not (tmp_path / "X").exists()


@pytest.mark.parametrize("evil", EVIL)
def test_the_first_stage_of_all_refuses_such_a_grid(evil: str) -> None:
    """`inputs` reads the whole grid, and every other stage of a cell waits for what it writes."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for name, stage in stages.items():
        if name not in ("inputs", "report"):
            assert any(dep.startswith("data/inputs/${item.model}/settings") for dep in stage["deps"]), name
    for axis in ("model", "pruning", "recovery", "head_ratio"):
        content = yaml.safe_load((ROOT / "params.yaml").read_text())
        content["grid"][axis] = [evil]
        with pytest.raises(BadInput) as caught:
            checked(content)
        assert len(str(caught.value)) < 600

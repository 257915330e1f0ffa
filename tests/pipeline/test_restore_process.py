"""`restorelcc restore` with its stages in processes of their own: exit codes, and an edit of the installed code.

The processes are forks of one that has imported packages, and nothing of this project.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from restorelcc.models.checkpoints import save_checkpoint
from tests import pico
from tests.dag import PACKAGE
from tests.flows.servers import forked_stages, forking_python
from tests.stages.prune.project import words

QUICK = ["--set", "probe.steps=5", "--set", "compensate.epochs=1", "--set", "compensate.learning_rates=[0.05]"]
QUICK += ["--threads", "1", "--head-ratio", "0.25", "--set", "prune.sequence_length=24"]
SCORE = "return weight_OI.float().abs() * squares_I"
INVERTED = "return -weight_OI.float().abs() * squares_I"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Python whose `-m restorelcc` is such a fork."""
    folder = tmp_path_factory.mktemp("numerics")
    with forked_stages(folder, "serve-numerics") as socket:
        yield forking_python(folder / "bin", socket, "restorelcc")


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A folder with dense/, pairs.jsonl and texts.txt."""
    save_checkpoint(tmp_path / "dense", pico.pico("mistral"), pico.word_tokenizer())
    rows = [{"instruction": words(5, n), "output": words(3, 50 + n)} for n in range(40)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "texts.txt").write_text("\n".join(words(30, n) for n in range(30)))
    return tmp_path


def _restore(given: Path, python: Path, packages: Path = PACKAGE.parent) -> tuple[int, str]:
    command = [str(python), "-P", "-m", "restorelcc", "restore", "--dense", "dense", "--pruning", "wanda-0.5"]
    command += ["--instructions", "pairs.jsonl", "--calibration", "texts.txt", "--out", "out", "--overwrite", *QUICK]
    environment = os.environ | {"PYTHONPATH": str(packages), "RESTORELCC_PROGRESS": "0", "LIGHT_PYTHON": str(python)}
    done = subprocess.run(
        command,
        cwd=given,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_what_a_stage_refuses_is_one_sentence_and_exit_code_2(given: Path, python: Path) -> None:
    (given / "pairs.jsonl").write_text('{"neither": "one", "nor": "the other"}\n')
    code, text = _restore(given, python)
    said = [line for line in text.splitlines() if not line.startswith("corpus: ")]
    assert code == 2 and len(said) == 1, text
    assert said[0].startswith("restorelcc: error: ") and "pairs.jsonl" in said[0]
    assert not (given / "out").exists()


def test_after_an_edit_of_the_installed_code_it_prunes_again(given: Path, python: Path, tmp_path: Path) -> None:
    packages = tmp_path / "site-packages"
    shutil.copytree(PACKAGE, packages / "restorelcc", ignore=shutil.ignore_patterns("__pycache__"))
    code, text = _restore(given, python, packages)
    assert code == 0, text
    weights = given / "out.work" / "data" / "model" / "wanda-0.5" / "pruned" / "model.safetensors"
    before = load_file(weights)
    scores = packages / "restorelcc" / "stages" / "prune" / "prune.py"
    assert scores.read_text().count(SCORE) == 1
    scores.write_text(scores.read_text().replace(SCORE, INVERTED))
    code, text = _restore(given, python, packages)
    assert code == 0, text
    done = {line.split()[1] for line in text.splitlines() if line.endswith(" is done")}
    assert done == {"inputs", "corpus", "dense", "capture_dense"}
    after = load_file(weights)
    first = "model.layers.0.self_attn.q_proj.weight"  # what it reads is the same, so exactly the other half is zero now
    assert (before[first] == 0).float().mean() == 0.5
    assert torch.equal(before[first] == 0, after[first] != 0)

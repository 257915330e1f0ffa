"""What the verbs do not import that people wait for: seconds for torch and transformers, which they can do without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.release.export.restored import pair_of

HEAVY = {"torch", "transformers", "pandas", "datasets", "pyarrow", "accelerate", "scipy", "dvc", "lm_eval", "peft"}
_RUN = """
import sys
from restorelcc.cli.app import app
try:
    app(sys.argv[1:])
except SystemExit as ended:
    assert not ended.code, ended.code
print("HEAVY", *sorted({name.partition(".")[0] for name in sys.modules} & set(%r.split())), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    pair_of(folder)
    return folder


@pytest.mark.parametrize("verb", ["--help", "--version", "check", "compensation show", "restore --help"])
def test_a_light_verb_imports_nothing_heavy(verb: str, folder: Path) -> None:
    arguments = verb.split() + ([str(folder / "compensation.safetensors")] if verb == "compensation show" else [])
    command = [sys.executable, "-c", _RUN % " ".join(HEAVY), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].split() == ["HEAVY"]

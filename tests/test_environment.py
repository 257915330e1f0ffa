"""What libraries read from the environment is there before the command loads them."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from restorelcc.__main__ import DEFAULTS
from tests.dag import ROOT

SHOWN = "import pyarrow; print(pyarrow.default_memory_pool().backend_name)"
(INSTALLED,) = entry_points(group="console_scripts", name="restorelcc")
COMMANDS = {"restorelcc": INSTALLED.value.partition(":")[0], "python -m restorelcc": "restorelcc.__main__"}


def _pool(module: str, **environment: str) -> str:
    """Arrow's allocator after a command that loads it has run in `module`'s main()."""
    code = (
        "import sys\n"
        f"from {module} import main\n"
        "sys.argv = ['restorelcc', 'table', '--params', '/nowhere/params.yaml']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"{SHOWN}\n"
    )
    inherited = {name: value for name, value in os.environ.items() if name not in DEFAULTS}
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
        env=inherited | environment,
    )
    return done.stdout.split()[-1]


@pytest.mark.parametrize("module", COMMANDS.values(), ids=COMMANDS)
def test_arrow_takes_its_memory_from_the_system(module: str) -> None:
    assert _pool(module) == "system"


def test_what_the_user_has_set_stays() -> None:
    assert _pool(INSTALLED.value.partition(":")[0], ARROW_DEFAULT_MEMORY_POOL="mimalloc") == "mimalloc"

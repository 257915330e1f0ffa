"""What light verbs do not import, since it takes seconds, and how a verb ends that is interrupted."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from restorelcc.__main__ import _with_asked
from restorelcc.cli.app import app
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


_NEEDS = {"compensation show": "compensation.safetensors", "inspect --json": "pruned", "inspect": "pruned"}
_NEEDS |= {"engines": "pruned"}


@pytest.mark.parametrize("verb", ["--help", "--version", "check", "restore --help", *_NEEDS])
def test_a_light_verb_imports_nothing_heavy(verb: str, folder: Path) -> None:
    arguments = verb.split() + ([str(folder / _NEEDS[verb])] if verb in _NEEDS else [])
    command = [sys.executable, "-c", _RUN % " ".join(HEAVY), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].split() == ["HEAVY"]


_WAITS = """
import sys
from restorelcc import __main__ as program
from restorelcc.cli import app
app.app.command("wait")(lambda: (print("waiting", flush=True), __import__("time").sleep(60)))
sys.argv = ["restorelcc", "wait"]
program.main()
"""


@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGINT, 130, "interrupted;"), (15, 143, "by SIGTERM;")])
def test_an_interrupted_verb_ends_with_one_sentence(number: int, code: int, said: str) -> None:
    with subprocess.Popen([sys.executable, "-c", _WAITS], stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout and process.stdout.readline() == "waiting\n"
        process.send_signal(number)
        told = process.communicate(timeout=60)[1].splitlines()
    assert (process.returncode, len(told)) == (code, 1)
    assert told[0].startswith("restorelcc: interrupted") and said in told[0] and "half-written" in told[0]


@pytest.mark.parametrize("verb", ["table", "compensation", "capture_dense", "baseline"])
def test_a_verb_is_built_alone_as_it_is_among_all(verb: str) -> None:
    alone, whole = get_command(_with_asked(app, verb)), get_command(app)
    assert isinstance(alone, TyperGroup) and isinstance(whole, TyperGroup)
    assert set(alone.commands) == {verb} < set(whole.commands)
    assert [each.opts for each in alone.params] == [each.opts for each in whole.params] != []
    one, among_all = alone.commands[verb], whole.commands[verb]
    assert (one.help, one.hidden) == (among_all.help, among_all.hidden)
    assert [each.opts for each in one.params] == [each.opts for each in among_all.params]
    assert list(getattr(one, "commands", ())) == list(getattr(among_all, "commands", ()))


def test_what_is_no_verb_is_answered_by_the_whole_application() -> None:
    assert _with_asked(app, "tables") is _with_asked(app, "--help") is app

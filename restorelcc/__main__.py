"""The command `restorelcc`, and `python -m restorelcc`: environment variables first, then the command line."""

from __future__ import annotations

import os
import sys
from copy import copy
from typing import TYPE_CHECKING

from restorelcc.base.ending import pipe_closed, tell
from restorelcc.base.processes import end_as_interrupted, end_with_parent, run_code_that_dvc_records

if TYPE_CHECKING:
    import typer

# What libraries read from the environment when they load.
DEFAULTS = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "USE_HUB_KERNELS": "NO",  # compiled code from the hub is never fetched in place of the library's own
    "TOKENIZERS_PARALLELISM": "false",
    # Waiting threads spin by default: with another busy process, a step then takes twenty times as long.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Arrow's own pool keeps what it has had: writing activations then takes three times the memory in use.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}


def set_defaults() -> None:
    """Set variables that the user has not set, before torch and pyarrow are imported, which read them once."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():  # bars of other libraries, whose every tick would be a line of the log
        os.environ.setdefault("TQDM_DISABLE", "1")


def _with_asked(app: typer.Typer, verb: str) -> typer.Typer:
    """The application with one verb alone, or whole where it has none of that name: before it runs one, typer builds
    every one that it has."""
    commands = [command for command in app.registered_commands if command.name == verb]
    groups = [group for group in app.registered_groups if group.name == verb]
    if not (commands or groups):
        return app
    alone = copy(app)
    alone.registered_commands, alone.registered_groups = commands, groups
    return alone


def main() -> None:
    """Run a command; if it fails, end with its one sentence and its exit code."""
    try:
        run_code_that_dvc_records()
        end_as_interrupted()
        end_with_parent()  # before the imports, which take seconds
        set_defaults()
        from restorelcc.cli.app import app

        try:
            _with_asked(app, sys.argv[1] if len(sys.argv) > 1 else "")()
        finally:
            sys.stdout.flush()  # a reader that left is noticed here, and not when the interpreter ends
    except BrokenPipeError:
        raise SystemExit(pipe_closed()) from None
    except SystemExit as ended:
        interrupt = getattr(ended.__context__, "__cause__", None)  # which typer ends without a word
        if isinstance(interrupt, KeyboardInterrupt):
            raise SystemExit(tell(interrupt)) from None
        raise
    except (Exception, KeyboardInterrupt) as error:
        raise SystemExit(tell(error)) from None


if __name__ == "__main__":
    main()

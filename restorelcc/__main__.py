"""The command `restorelcc`, and `python -m restorelcc`: environment variables first, then the command line."""

from __future__ import annotations

import os
import sys

from restorelcc.base.ending import pipe_closed, tell
from restorelcc.base.processes import end_as_interrupted, end_with_parent, run_code_that_dvc_records

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


def main() -> None:
    """Run a command; if it fails, end with its one sentence and its exit code."""
    try:
        run_code_that_dvc_records()
        end_as_interrupted()
        end_with_parent()  # before the imports, which take seconds
        set_defaults()
        from restorelcc.cli.app import app

        try:
            app()
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

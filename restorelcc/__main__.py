"""The command `restorelcc`, and `python -m restorelcc`: environment variables first, then the command line."""

from __future__ import annotations

import os
import sys

from restorelcc.base.errors import ending
from restorelcc.base.processes import end_with_parent

# What libraries read from the environment when they load.
DEFAULTS = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
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


def main() -> None:
    """Run a command; if it fails, end with its one sentence and its exit code."""
    try:
        end_with_parent()  # before the imports, which take seconds
        set_defaults()
        from restorelcc.cli.app import app

        app()
    except (Exception, KeyboardInterrupt) as error:
        found = ending(error)
        if found is None:
            raise
        print(f"restorelcc: {found[0]}", file=sys.stderr)
        raise SystemExit(found[1]) from None


if __name__ == "__main__":
    main()

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
    # Threads that wait spin by default: beside another busy process a step then takes twenty times as long.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Arrow's own pool keeps what it has had: writing activations then takes three times the memory in use.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}


def set_defaults() -> None:
    """Set what the user has not; before torch and pyarrow are imported, which read it once."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def main() -> None:
    """Run a command and end as it ends: with one sentence and an exit code of its own where it fails."""
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

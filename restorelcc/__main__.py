"""The command `restorelcc`, and `python -m restorelcc`."""

from __future__ import annotations

from restorelcc.environment import set_defaults


def main() -> None:
    """Entry point: sets what libraries read when they load, then loads them."""
    set_defaults()
    from restorelcc.cli.app import main as command

    command()


if __name__ == "__main__":
    main()

"""`restorelcc ARGUMENTS`, and what the process opened, read and loaded.

    python -m tests.traced REPORT ARGUMENTS...
    python -m tests.traced serve SOCKET MODULE...

The second traces from its start, imports packages, and then runs the first in forks (tests/flows/forked.py calls it):
each fork imports the project's own modules and whatever else it needs by itself. The packages, and what they opened and
asked for, count as the fork's. A command `serve` makes such a fork a server of its own, of more packages.

REPORT becomes a JSON file: `files` that Python opened, `folders` that it listed, `environment` variables that were
asked for (by a module of restorelcc, or by others), `modules` that were loaded.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

files: set[str] = set()
folders: set[str] = set()
environment: dict[str, set[str]] = {"restorelcc": set(), "others": set()}


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        files.add(str(Path(os.fsdecode(arguments[0])).absolute()))
    elif event in ("os.listdir", "os.scandir") and isinstance(arguments[0], str | bytes | os.PathLike):
        folders.add(str(Path(os.fsdecode(arguments[0])).absolute()))


class _Environment(type(os.environ)):  # type: ignore[misc]
    """os.environ that notes what is asked for."""

    def __getitem__(self, key: str) -> str:
        asked = sys._getframe(1)
        while asked.f_back and asked.f_globals.get("__name__") in (
            "os",
            "collections.abc",
            "_collections_abc",
            __name__,
        ):
            asked = asked.f_back
        own = str(asked.f_globals.get("__name__", "")).startswith(("restorelcc", "flows"))
        environment["restorelcc" if own else "others"].add(os.fsdecode(key))
        return super().__getitem__(key)


def main() -> None:
    """Trace from now on."""
    os.environ.__class__ = _Environment
    sys.addaudithook(_hook)
    run(sys.argv[1:])


def run(arguments: list[str]) -> None:
    """Serve, or run the command; the report is written however it ends."""
    if arguments[0] == "serve":
        from tests.flows.forked import serve

        serve(arguments[1], arguments[2:], run)
    report, *arguments = arguments
    sys.argv = ["restorelcc", *arguments]
    from restorelcc.__main__ import main as command

    try:
        if arguments:
            command()
        else:  # what the command line itself loads, whichever stage it is to run
            _load_command_line()
    finally:
        seen_files, seen_folders = sorted(files), sorted(folders)
        modules = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
        content = {
            "files": seen_files,
            "folders": seen_folders,
            "environment": {who: sorted(names) for who, names in environment.items()},
            "modules": modules,
        }
        Path(report).write_text(json.dumps(content, default=str))


def _load_command_line() -> None:
    app = importlib.import_module("restorelcc.cli.app")
    for node in ast.walk(ast.parse(inspect.getsource(app._run))):
        if isinstance(node, ast.ImportFrom) and node.module:
            importlib.import_module(node.module)


if __name__ == "__main__":
    main()

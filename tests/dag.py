"""What a stage's code depends on, read from its imports."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def imported_modules(path: Path) -> set[str]:
    """Dotted names of the project's modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("restorelcc"):
            base = node.module or ""
            names |= {f"{base}.{alias.name}" if _file(f"{base}.{alias.name}") else base for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("restorelcc")}
    return {name for name in names if _file(name)}


def _file(module: str) -> Path | None:
    path = ROOT / (module.replace(".", "/") + ".py")
    return path if path.is_file() else None


def code_deps(stage_folder: str) -> list[str]:
    """The stage's own folder and every module outside it that its files import, directly or through others."""
    own = ROOT / "restorelcc" / stage_folder
    todo = list(own.glob("*.py"))
    seen: set[Path] = set(todo)
    while todo:
        for module in imported_modules(todo.pop()):
            path = _file(module)
            if path and path not in seen:
                seen.add(path)
                todo.append(path)
    outside = sorted(str(path.relative_to(ROOT)) for path in seen if own not in path.parents)
    return [f"restorelcc/{stage_folder}", *outside]

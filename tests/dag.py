"""What a stage's code depends on, read from its imports. `python -m tests.dag` writes it into dvc.yaml."""

from __future__ import annotations

import ast
import re
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


def rewrite(text: str) -> str:
    """dvc.yaml with every stage's code deps as its imports have them; all else, comments too, stays as it is."""
    lines: list[str] = []
    stage, in_deps = "", False
    for line in text.splitlines():
        if re.fullmatch(r"  \w+:", line):
            stage = line.strip(" :")
        if re.fullmatch(r"    \w+:.*", line):
            in_deps = line == "    deps:"
            lines += [line, *(f"      - {dep}" for dep in code_deps(stage.split("_")[0]))] if in_deps else [line]
        elif not (in_deps and line.startswith("      - restorelcc/")):
            lines.append(line)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    dvc_yaml = ROOT / "dvc.yaml"
    dvc_yaml.write_text(rewrite(dvc_yaml.read_text(encoding="utf-8")), encoding="utf-8")

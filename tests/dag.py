"""What a stage's code depends on, read from its imports: modules of the project, and versions of packages.

`python -m tests.dag` writes both: a folder of links imports/<stage>/ to the modules outside the stage's own folder, the
packages into dvc.yaml, and new ones into versions.json. A folder is one dependency to DVC, where twenty modules would
make dvc.lock so long that reading and writing it takes longer than small stages do.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

from restorelcc.workflow.versions import FILE, installed

ROOT = Path(__file__).parents[1]

# Imported name to the distributions whose version can change a result: its own, and those that it computes with.
DISTRIBUTIONS = {
    "accelerate": ("accelerate",),
    "datasets": ("datasets",),
    "jinja2": ("jinja2",),
    "lm_eval": ("lm-eval",),
    "markupsafe": ("jinja2",),
    "matplotlib": ("matplotlib",),
    "numpy": ("numpy",),
    "peft": ("peft",),
    "pyarrow": ("pyarrow",),
    "safetensors": ("safetensors",),
    "scipy": ("scipy",),
    "sentence_transformers": ("sentence-transformers",),
    "sklearn": ("scikit-learn",),
    "tokenizers": ("tokenizers",),
    "torch": ("torch",),
    "transformers": ("safetensors", "tokenizers", "transformers"),
}
# They check, fetch or draw on a terminal; no result comes from them.
HARMLESS = {"httpx", "httpx2", "huggingface_hub", "packaging", "pydantic", "rich", "tqdm", "typer", "yaml"}


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


def code_files(stage_folder: str) -> set[Path]:
    """The stage's own files and every module outside them that they import, directly or through others."""
    own = ROOT / "restorelcc" / stage_folder
    todo = list(own.glob("*.py"))
    seen: set[Path] = set(todo)
    while todo:
        for module in imported_modules(todo.pop()):
            path = _file(module)
            if path and path not in seen:
                seen.add(path)
                todo.append(path)
    return seen


def code_deps(stage_folder: str) -> list[str]:
    """The stage's own folder, and the folder of links to what it imports."""
    return [f"restorelcc/{stage_folder}", f"imports/{stage_folder}"]


def links(stage_folder: str) -> dict[str, str]:
    """Name and target of every link in imports/<stage>/."""
    own = ROOT / "restorelcc" / stage_folder
    outside = sorted(str(path.relative_to(ROOT)) for path in code_files(stage_folder) if own not in path.parents)
    return {path.removeprefix("restorelcc/").replace("/", "."): f"../../{path}" for path in outside}


def existing_links(stage_folder: str) -> dict[str, str]:
    """What is there now."""
    folder = ROOT / "imports" / stage_folder
    return {path.name: str(path.readlink()) for path in sorted(folder.glob("*"))}


def write_links(stage_folder: str) -> None:
    """Make imports/<stage>/ what the imports say."""
    folder = ROOT / "imports" / stage_folder
    folder.mkdir(parents=True, exist_ok=True)
    wanted, there = links(stage_folder), existing_links(stage_folder)
    for name in there.keys() - wanted.keys():
        (folder / name).unlink()
    for name in wanted.keys() - there.keys():
        (folder / name).symlink_to(wanted[name])


def foreign_imports(path: Path) -> set[str]:
    """Top-level names of what a file imports from neither the standard library nor the project."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
    return names - set(sys.stdlib_module_names) - {"restorelcc"}


def package_deps(stage_folder: str) -> list[str]:
    """Distributions whose version a stage's results depend on. Fails for a package that nobody has judged."""
    names = set().union(*(foreign_imports(path) for path in code_files(stage_folder))) - HARMLESS
    unjudged = names - set(DISTRIBUTIONS)
    assert not unjudged, f"can {unjudged} change a result? Add to DISTRIBUTIONS or HARMLESS in tests/dag.py"
    return sorted({package for name in names for package in DISTRIBUTIONS[name]})


def rewrite(text: str) -> str:
    """dvc.yaml with every stage's code and package deps as its imports have them; all else, comments too, stays."""
    lines: list[str] = []
    stage, section = "", ""
    for line in text.splitlines():
        if re.fullmatch(r"  \w+:", line):
            stage = line.strip(" :").split("_")[0]
        if re.fullmatch(r"    \w+:.*", line):
            section = line.strip().partition(":")[0]
            lines += [line, *_written(section, stage)]
        elif not (section == "deps" and line.startswith(("      - restorelcc/", "      - imports/"))) and not (
            section == "params" and (line.startswith("          ") or line == f"      - {FILE}:")
        ):
            lines.append(line)
    return "\n".join(lines) + "\n"


def _written(section: str, stage: str) -> list[str]:
    if section == "deps":
        return [f"      - {dep}" for dep in code_deps(stage)]
    packages = package_deps(stage) if section == "params" else []
    return [f"      - {FILE}:", *(f"          - {package}" for package in packages)] if packages else []


def stage_folders() -> list[str]:
    """Folders of the package that are stages."""
    return sorted(path.parent.name for path in (ROOT / "restorelcc").glob("*/stage.py"))


def rewritten_versions(text: str) -> str:
    """versions.json with the packages of all stages, the new ones as they are installed."""
    recorded = json.loads(text)
    packages = sorted(set().union(*(package_deps(stage) for stage in stage_folders())))
    return json.dumps({name: recorded.get(name, installed(name)) for name in packages}, indent=2) + "\n"


if __name__ == "__main__":
    for folder in stage_folders():
        write_links(folder)
    for file, change in ((ROOT / "dvc.yaml", rewrite), (ROOT / FILE, rewritten_versions)):
        file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")

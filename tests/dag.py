"""What a stage's code depends on, read from its imports: modules of the project, and versions of packages.

`python -m tests.dag` writes both as links in a folder imports/<stage>/, to the modules outside the stage's own folder
and to the files of imports/packages/, and new ones of those. A folder is one dependency to DVC, where twenty modules
and ten packages would make dvc.lock so long that reading and writing it takes longer than small stages do.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

from restorelcc.pipeline.versions import FOLDER, installed, write_version

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
    "sentence_transformers": ("sentence-transformers", "torch"),
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
    modules = {path.removeprefix("restorelcc/").replace("/", "."): f"../../{path}" for path in outside}
    return modules | {f"{package}.version": f"../../{FOLDER}/{package}" for package in package_deps(stage_folder)}


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
    """dvc.yaml with every stage's deps on code as the conventions have them; all else, comments too, stays."""
    lines: list[str] = []
    stage, section = "", ""
    for line in text.splitlines():
        if re.fullmatch(r"  \w+:", line):
            stage = line.strip(" :").split("_")[0]
        if re.fullmatch(r"    \w+:.*", line):
            section = line.strip().partition(":")[0]
            lines += [line, *(f"      - {dep}" for dep in code_deps(stage) if section == "deps")]
        elif not (section == "deps" and line.startswith(("      - restorelcc/", "      - imports/"))):
            lines.append(line)
    return "\n".join(lines) + "\n"


def stage_folders() -> list[str]:
    """Folders of the package that are stages."""
    return sorted(path.parent.name for path in (ROOT / "restorelcc").glob("*/stage.py"))


def packages() -> set[str]:
    """Distributions that any stage's results depend on."""
    return set().union(*(package_deps(stage) for stage in stage_folders()))


def write_packages() -> None:
    """Make imports/packages/ what the imports say; a new package is recorded as it is installed."""
    wanted, there = packages(), {path.name for path in (ROOT / FOLDER).glob("*")}
    for name in there - wanted:
        (ROOT / FOLDER / name).unlink()
    for name in wanted - there:
        value = installed(name)
        assert value, f"install {name}, so that its version can be recorded"
        write_version(ROOT, name, value)


if __name__ == "__main__":
    for folder in stage_folders():
        write_links(folder)
    write_packages()
    dvc_file = ROOT / "dvc.yaml"
    dvc_file.write_text(rewrite(dvc_file.read_text(encoding="utf-8")), encoding="utf-8")

"""What a stage's code depends on, read from its imports: rooms of the package, and packages whose version counts."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "restorelcc"

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
HARMLESS = {"filelock", "httpx", "httpx2", "huggingface_hub", "packaging", "pydantic", "rich", "tqdm", "typer", "yaml"}
HARMLESS |= {"gguf"}  # it decodes a fixed format, and what comes out is written down in the dense checkpoint


def module_file(module: str) -> Path | None:
    """The file of a module of the project; of a package the one that says what it is (the whole one only hands on)."""
    below = ROOT / module.replace(".", "/")
    path = below.with_suffix(".py") if below != PACKAGE and not below.is_dir() else below / "__init__.py"
    return path if path.is_file() and below != PACKAGE else None


def module_name(path: Path) -> str:
    """Dotted name of a file's module."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path) -> set[str]:
    """Dotted names of the project's modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("restorelcc"):
            base = node.module or ""
            names |= {f"{base}.{alias.name}" if module_file(f"{base}.{alias.name}") else base for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("restorelcc")}
    return {name for name in names if module_file(name)}


def code_files(folder: str) -> set[Path]:
    """The stage's own files and every module outside them that they import, directly or through others."""
    todo = list((PACKAGE / "stages" / folder).rglob("*.py"))
    seen = set(todo)
    while todo:
        for module in imported_modules(todo.pop()):
            path = module_file(module)
            if path and path not in seen:
                seen.add(path)
                todo.append(path)
    return seen


def rooms(folder: str) -> set[str]:
    """Rooms of the package that a stage's code comes from, its own folder aside."""
    own = PACKAGE / "stages" / folder
    return {path.relative_to(ROOT).parts[1] for path in code_files(folder) if own not in path.parents}


def foreign_imports(path: Path) -> set[str]:
    """Top-level names of what a file imports from neither the standard library nor the project."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
    return names - set(sys.stdlib_module_names) - {"restorelcc"}


def packages(folder: str) -> set[str]:
    """Distributions whose version a stage's results depend on. Fails for a package that nobody has judged."""
    names = set().union(*(foreign_imports(path) for path in code_files(folder))) - HARMLESS
    unjudged = names - set(DISTRIBUTIONS)
    assert not unjudged, f"can {unjudged} change a result? Add to DISTRIBUTIONS or HARMLESS in tests/dag.py"
    return {package for name in names for package in DISTRIBUTIONS[name]}


def stage_folders() -> list[str]:
    """Folders of the package that are stages."""
    return sorted(path.parent.name for path in (PACKAGE / "stages").glob("*/stage.py"))

"""A hook of mkdocs: README.md, CONTRIBUTING.md and CHANGELOG.md become pages of the site; their links hold there."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=as_page((ROOT / name).read_text(encoding="utf-8"))))
    return files


def as_page(text: str) -> str:
    """Links of a file of the root, as they are from docs/."""
    text = re.sub(r"(\]\(|src=\")docs/", r"\1", text)
    for name, page in PAGES.items():
        text = text.replace(f"]({name}", f"]({page}")
    return text

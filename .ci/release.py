"""A release: `make release TAG=v1.2.3`. The tag gives the version.

    python .ci/release.py v1.2.3

Writes the version into the package and the citation, gives the changes that wait in CHANGELOG.md a heading, commits,
and tags the commit. Nothing is pushed. Where it cannot be done, one sentence says why, and nothing is changed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHANGES, WAITING = "CHANGELOG.md", "## Unreleased\n"


def git(*arguments: str) -> str:
    """What git says. Raises CalledProcessError where it fails."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def refusal(tag: str) -> str | None:
    """Why there can be no such release."""
    if not re.fullmatch(r"v\d+\.\d+\.\d+", tag):
        return f"{tag!r} is no tag of a release: give one such as v1.2.3 (make release TAG=v1.2.3)"
    if git("status", "--porcelain"):
        return "the working tree has changes: commit them, or put them away"
    if git("tag", "--list", tag):
        return f"there is a tag {tag} already: give the next one"
    waiting = (ROOT / CHANGES).read_text(encoding="utf-8").partition(WAITING)[2].partition("\n## ")[0]
    return None if waiting.strip() else f"{CHANGES} has nothing under {WAITING.strip()!r}: say there what changed"


def edited(version: str) -> dict[Path, str]:
    """The files that name the version, as they will be. Raises ValueError for one that names none."""
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    found = {}
    for name, pattern, text in (
        ("restorelcc/__init__.py", r'(?m)^__version__ = ".*"$', f'__version__ = "{version}"'),
        ("CITATION.cff", r"(?m)^version: .*$", f"version: {version}"),
        (CHANGES, re.escape(WAITING), f"{WAITING}\n## {version} - {today}\n"),
    ):
        content, times = re.subn(pattern, text, (ROOT / name).read_text(encoding="utf-8"), count=1)
        if not times:
            raise ValueError(f"{name} names no version")
        found[ROOT / name] = content
    return found


def main(arguments: list[str]) -> int:
    tag = arguments[0] if len(arguments) == 1 else ""
    if why := refusal(tag):
        print(f"release: {why}", file=sys.stderr)
        return 2
    for path, content in edited(tag.removeprefix("v")).items():
        path.write_text(content, encoding="utf-8")
    git("commit", "--quiet", "--all", "--message", f"Release {tag.removeprefix('v')}")
    git("tag", "--annotate", tag, "--message", tag)
    print(f"Tagged {tag}. `uv build` makes wheel and sdist; `git push --follow-tags` publishes the tag.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

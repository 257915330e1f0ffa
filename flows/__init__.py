"""Prefect flows over the pipeline in dvc.yaml: when, where and how many at once. DVC decides what is stale."""

import os
from contextlib import suppress
from pathlib import Path


def _project() -> Path:
    """The project: the folder one is in, or the nearest above it that is one; else the repository that this folder is
    part of; and where there is none, the folder one is in."""
    here, repository = Path.cwd(), Path(__file__).parents[1]
    projects = [path for path in (here, *here.parents, repository) if _is_project(path)]
    return projects[0] if projects else here


def _is_project(folder: Path) -> bool:
    return (folder / "dvc.yaml").is_file() and (folder / "params.yaml").is_file()


ROOT = Path(os.environ.get("RESTORELCC_ROOT") or _project()).resolve()

# Before Prefect is imported: nothing is sent anywhere, and unless somebody set Prefect up, its files stay in .work.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
if _is_project(ROOT) and not (Path.home() / ".prefect" / "profiles.toml").exists():
    _home = Path(os.environ.setdefault("PREFECT_HOME", str(ROOT / ".work" / "prefect")))
    with suppress(OSError):  # a folder that nobody may write in: `--help` is for everybody
        _home.mkdir(parents=True, exist_ok=True)

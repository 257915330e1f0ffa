"""Prefect flows over the pipeline in dvc.yaml: when, where and how many at once. DVC decides what is stale."""

import os
from pathlib import Path

# The project: the repository that this folder is part of, or, where the package is installed, the folder one is in.
_REPOSITORY = Path(__file__).parents[1]
_HERE = _REPOSITORY if (_REPOSITORY / "dvc.yaml").is_file() else Path.cwd()
ROOT = Path(os.environ.get("RESTORELCC_ROOT", _HERE)).resolve()

# Before Prefect is imported: nothing is sent anywhere, and unless somebody set Prefect up, its files stay in .work.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
if not (Path.home() / ".prefect" / "profiles.toml").exists():
    _home = Path(os.environ.setdefault("PREFECT_HOME", str(ROOT / ".work" / "prefect")))
    _home.mkdir(parents=True, exist_ok=True)

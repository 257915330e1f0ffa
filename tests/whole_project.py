"""The pipeline as a user runs it: a copy of the project, at pico size unless told otherwise, under git and DVC."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.dag import ROOT
from tests.flows.servers import FAST_LOCK, LIBRARIES, forked_command

PICO: dict[str, Any] = {
    "grid": {"head_ratio": [0.25], "pruning": ["wanda-0.5"]},
    "corpus": {
        "microworld": {"documents": 600, "test_items": 20, "dev_items": 20, "train_pairs": 60, "valid_pairs": 20}
        | {"contrast_pairs": 40, "calibration_documents": 64}
    },
    "dense": {
        "architecture": {"layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 6, "width": 32, "ffn_width": 48},
        "pretrain": {"max_steps": 10, "decay_steps": 5, "eval_every": 10, "floor": 0.0},
    },
    "compensate": {"epochs": 1},
    # Ten steps leave the model at chance, which is what the sanity gate is there to stop.
    "evaluate": {"bootstrap_samples": 200, "sanity_gate": False, "generation": {"new_tokens": 8}},
}


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    return base | {k: merged(base[k], v) if isinstance(v, dict) and k in base else v for k, v in over.items()}


class Project:
    """A copy of the project, in a repository of its own. With `socket`, stages are forks that share their imports,
    `dvc` is one where there is a process for it, and dvc.lock is parsed by libyaml."""

    def __init__(self, folder: Path, changes: dict[str, Any] = PICO, socket: Path | None = None) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
            shutil.copy(ROOT / name, folder / name)
        shutil.copytree(ROOT / "versions", folder / "versions")
        shutil.copytree(ROOT / "restorelcc", folder / "restorelcc", ignore=shutil.ignore_patterns("__pycache__"))
        self.write_params(merged(yaml.safe_load((ROOT / "params.yaml").read_text()), changes))
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
            "RESTORELCC_PROGRESS": "0",
        }
        if socket:
            commands = {"restorelcc": forked_command(socket)}
            if libraries := os.environ.get(LIBRARIES):
                commands["dvc"] = f"{forked_command(Path(libraries))} dvc"
            bin_folder = folder.with_name(f"{folder.name}-bin")
            bin_folder.mkdir()
            for name, line in commands.items():
                (bin_folder / name).write_text(f'#!/bin/sh\nexec {line} "$@"\n')
                (bin_folder / name).chmod(0o755)
            self.environment["PATH"] = f"{bin_folder}:{self.environment['PATH']}"
            self.environment["PYTHONPATH"] = os.pathsep.join([str(FAST_LOCK), os.environ.get("PYTHONPATH", "")])
        self.run("git", "init", "--quiet")
        self.run("dvc", "init", "--quiet")

    def run(self, *command: str, code: int = 0) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, (
            f"{command} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
        return done.stdout + done.stderr

    def repro(self) -> set[str]:
        """Run `dvc repro`; the stages that were executed (not restored from the cache)."""
        output = self.run("dvc", "repro")
        return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage ")}

    def params(self) -> dict[str, Any]:
        return yaml.safe_load((self.folder / "params.yaml").read_text())

    def write_params(self, content: dict[str, Any]) -> None:
        (self.folder / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    def set(self, section: str, key: str, value: Any) -> None:
        content = self.params()
        content[section][key] = value
        self.write_params(content)

    def json(self, path: str) -> dict[str, Any]:
        return json.loads((self.folder / path).read_text())

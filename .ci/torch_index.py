"""Which index `make` takes torch from, before anything is installed: standard library only.

Prints the index, or nothing for the one that pip is configured to use. Says on stderr what will be downloaded.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import urllib.request

CPU = "https://download.pytorch.org/whl/cpu"
SECONDS = 2  # that the index may take to answer
# Sizes of torch 2.13.0 for Linux x86, from the index and from uv.lock.
CPU_SIZE, CUDA_SIZE = "about 190 MB", "2.7 GB with its CUDA packages"


def choice(given: str, *, linux_x86: bool, gpu: bool, reachable: bool) -> tuple[str, str]:
    """(index, what to tell the user). given: TORCH_INDEX, which always holds."""
    if given:
        return given, f"torch comes from {given}"
    if not linux_x86:
        return "", "torch comes from pip's index"
    if gpu:
        return "", f"torch comes from pip's index: from PyPI {CUDA_SIZE}"
    if reachable:
        return CPU, f"no NVIDIA GPU here: torch comes from {CPU}, {CPU_SIZE} (TORCH_INDEX=<url> takes another build)"
    return "", (
        f"no NVIDIA GPU here, but {CPU} does not answer: torch comes from pip's index, {CPU_SIZE} if that has the "
        f"CPU build, {CUDA_SIZE} from PyPI"
    )


def answers(url: str) -> bool:
    """Whether an index has a page of torch, within SECONDS."""
    try:
        with urllib.request.urlopen(f"{url}/torch/", timeout=SECONDS):
            return True
    except (OSError, ValueError):
        return False


def main() -> None:
    """Print the index."""
    given, gpu = os.environ.get("TORCH_INDEX", "").strip(), shutil.which("nvidia-smi") is not None
    linux_x86 = sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64")
    asked = linux_x86 and not gpu and not given
    index, told = choice(given, linux_x86=linux_x86, gpu=gpu, reachable=asked and answers(CPU))
    print(told, file=sys.stderr)
    print(index)


if __name__ == "__main__":
    main()

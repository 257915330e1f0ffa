"""The product with a packed weight in C (kernel.c): compiled by the user's compiler when it is first needed, and kept.

Without a compiler, or on a system that this does not know, there is no kernel, and torch computes instead (model.py).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from restorelcc.base.errors import BadInput, first_line
from restorelcc.base.progress import notice

SOURCE = Path(__file__).with_name("kernel.c")
LEVELS = ("plain C", "AVX2", "AVX-512 VBMI2")  # as restorelcc_level counts them
_V2 = ("popcnt", "fma", "f16c", "bmi1", "bmi2", "avx2")
# What /proc/cpuinfo must list for each level; gcc and clang call these features the same, but for bmi1.
_NEEDS: dict[str, tuple[str, ...]] = {
    "AVX-512 VBMI2": (*_V2, "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vbmi2"),
    "AVX2": _V2,
    "plain C": (),
}
_FLAG = {"bmi1": "-mbmi", "avx512_vbmi2": "-mavx512vbmi2"}
_SECONDS = 120  # that a compiler may take
_int, _pointer = ctypes.c_int64, ctypes.c_void_p


class NotCompiled(RuntimeError):
    """The compiler is there, and refuses the source or a flag."""


class Kernel:
    """The functions of a compiled library."""

    def __init__(self, path: Path, threads: bool) -> None:
        """threads: whether it was compiled with OpenMP."""
        library = ctypes.CDLL(str(path))
        self.linear, self.expand = library.restorelcc_linear, library.restorelcc_expand
        self.linear.argtypes = [
            *(ctypes.c_int, _pointer, _pointer, _pointer, ctypes.c_int, _pointer, _pointer, _pointer),
            *(_int, _int, _int, ctypes.c_int),
        ]
        self.expand.argtypes = [
            *(ctypes.c_int, _pointer, _pointer, _pointer, ctypes.c_int, _pointer),
            *(_int, _int, ctypes.c_int),
        ]
        self.linear.restype, self.expand.restype = ctypes.c_int, None
        self.level, self.threads = LEVELS[library.restorelcc_level()], threads


@lru_cache(maxsize=1)
def kernel() -> Kernel | None:
    """The best kernel for this machine, or None, which is said once, with the reason.

    Raises BadInput when the folder that compiled code is kept in could have been written by somebody else.
    """
    if os.environ.get("RESTORELCC_PACKED_KERNEL") == "0":
        return None
    try:
        return best_compiled()
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        why = error.strerror and f"{error.strerror}: {error.filename}" if isinstance(error, OSError) else None
        why = why or first_line(error)
        notice("packed", f"torch computes the packed layers, slowly, because there is no kernel: {why}")
        return None


def best_compiled() -> Kernel:
    """The library of the highest level that this processor has and the compiler knows; a lower one is told.

    Raises as `compiled` does where it makes none of them.
    """
    best = LEVELS.index(best_level())
    for level in reversed(LEVELS[: best + 1]):
        try:
            found = compiled(level)
        except NotCompiled as error:
            if level == LEVELS[0]:
                raise
            lower = LEVELS[LEVELS.index(level) - 1]
            notice("packed", f"the kernel for {level} cannot be made, that for {lower} is slower: {first_line(error)}")
        else:
            return found
    raise AssertionError("there is a lowest level")


def best_level() -> str:
    """The first of LEVELS, from its end, that this processor has. Raises RuntimeError on an unknown system."""
    if os.name != "posix" or sys.byteorder != "little":
        raise RuntimeError(f"it is not made for {platform.system()} on {platform.machine()}")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return "plain C"  # no Linux
    features = set(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())
    return next(level for level, needed in _NEEDS.items() if features.issuperset(needed))


def compiled(level: str) -> Kernel:
    """The library of a level, compiled unless it was before. Raises RuntimeError without a compiler, NotCompiled where
    it refuses, BadInput as `cache_folder`."""
    compiler = _compiler()
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=_SECONDS)
    if version.returncode != 0:
        raise RuntimeError(f"`{shlex.join(compiler)} --version` fails: name a C compiler in $CC")
    flags = ["-O3", "-std=gnu11", "-shared", "-fPIC", *(_FLAG.get(need, f"-m{need}") for need in _NEEDS[level])]
    folder = cache_folder()
    for threads in (["-fopenmp"], []):  # Apple's clang has no OpenMP
        made_of = [SOURCE.read_text(encoding="utf-8"), *compiler, version.stdout, *flags, *threads, platform.machine()]
        path = folder / f"kernel-{hashlib.sha256(chr(0).join(made_of).encode()).hexdigest()[:40]}.so"
        why = "" if path.exists() else _compile([*compiler, *flags, *threads], path)
        if not why:
            _check_own(path)
            return Kernel(path, bool(threads))
    raise NotCompiled(f"{' '.join(compiler)} does not compile it ({why})")


def _compiler() -> list[str]:
    try:
        named = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:
        raise RuntimeError(f"$CC is {os.environ['CC']!r}, which is no command: correct it or unset it") from error
    found = shutil.which(named[0]) if named else next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if found is None:
        raise RuntimeError(f"there is no C compiler ({named[0] if named else 'cc, gcc or clang'})")
    return [found, *named[1:]]


def _compile(command: list[str], path: Path) -> str:
    """Write the library to its place when it is whole. Returns what the compiler says where it fails."""
    with tempfile.TemporaryDirectory(prefix="compile-", dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        done = subprocess.run(
            [*command, str(SOURCE), "-o", str(made), "-lm"], capture_output=True, text=True, timeout=_SECONDS
        )
        if done.returncode != 0:
            return (done.stderr.strip().splitlines() or ["no message"])[-1][:300]
        made.chmod(0o500)
        made.replace(path)
    return ""


def cache_folder() -> Path:
    """Where compiled code is kept: below $XDG_CACHE_HOME, or ~/.cache; made for this user alone.

    Raises BadInput when it belongs to somebody else, or others may write into it: its code would be run.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "restorelcc" / "kernels"
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    _check_own(folder)
    return folder


def _check_own(path: Path) -> None:
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise BadInput(
            f"{path} is a link, belongs to another user, or may be written by others, and code from it would be run: "
            "delete it, or set XDG_CACHE_HOME to a folder of your own"
        )

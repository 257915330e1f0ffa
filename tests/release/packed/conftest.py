"""Compiled kernels are kept for the session, away from the user's own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from restorelcc.release.packed import kernel as kernel_module


@pytest.fixture(scope="session", autouse=True)
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        kernel_module.kernel.cache_clear()
        yield
    kernel_module.kernel.cache_clear()


@pytest.fixture
def compiler() -> str:
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        pytest.skip("there is no C compiler")
    return found

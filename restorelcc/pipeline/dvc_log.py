"""DVC's log while it works in this process: messages that concern the user become notices, the rest is dropped."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from restorelcc.base.progress import notice

_TOLD = {
    re.compile(r"Stage '(\w+)@.*' didn't change, skipping"): "is done",
    re.compile(r"Stage '(\w+)@.*' is cached - skipping run"): "was computed before and is restored from the cache",
}


class _Teller(logging.Handler):
    """Warnings unchanged, and a notice for each stage that did not have to run."""

    def __init__(self, title: str) -> None:
        super().__init__(logging.INFO)
        self.title = title

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        for pattern, words in _TOLD.items():
            if match := pattern.match(text):
                notice(self.title, f"{match[1]} {words}")
        if record.levelno >= logging.WARNING:
            notice(self.title, text)


@contextmanager
def told(title: str) -> Iterator[None]:
    """While this is active, print only the messages of DVC that concern the user."""
    logger = logging.getLogger("dvc")
    level, handlers = logger.level, logger.handlers
    logger.handlers = [_Teller(title)]
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers = handlers
        logger.setLevel(level)

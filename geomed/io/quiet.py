"""Silence around libraries that put values of a file into warnings and logs."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOGGERS = ("pydicom", "nibabel.global", "PIL")


class _Quiet:
    """How many readers are inside, and the filters of warnings from before the first of them.

    ``warnings.catch_warnings`` alone, left by one thread, would put back the filters that another still needs.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.filters = warnings.catch_warnings()

    def filter(self, record: logging.LogRecord) -> bool:
        """Let a record through if no reader is inside."""
        return not self.inside


_quiet = _Quiet()


def _start_anew() -> None:
    """In a forked process: a lock that a thread of the parent held would never open."""
    _quiet.lock, _quiet.inside = threading.Lock(), 0


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_start_anew)


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no records of the libraries that read scans while any thread is inside.

    pydicom quotes what it finds odd, and that may be a name or a date. What matters of it becomes an error here.
    """
    with _quiet.lock:
        _quiet.inside += 1
        if _quiet.inside == 1:
            _quiet.filters = warnings.catch_warnings()
            _quiet.filters.__enter__()
            warnings.simplefilter("ignore")
            for name in _LOGGERS:
                logging.getLogger(name).addFilter(_quiet)  # adding it twice is adding it once
    try:
        yield
    finally:
        with _quiet.lock:
            _quiet.inside -= 1
            if _quiet.inside == 0:
                _quiet.filters.__exit__(None, None, None)

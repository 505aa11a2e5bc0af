"""Open rasters, each lent to one reader at a time and kept open between them."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

import rasterio
from rasterio.errors import NotGeoreferencedWarning

from geomed.io.tiff import needed_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_Key: TypeAlias = tuple[str, tuple[int, int], int]


def _room_for_files() -> int:
    """How many files one process may keep open: half of what the system allows, between 16 and 2048."""
    if sys.platform == "win32":
        return 256
    import resource  # Unix only

    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 2048 if allowed == resource.RLIM_INFINITY else max(16, min(allowed // 2, 2048))


class _Handles:
    """The open files that nobody reads just now.

    A handle of GDAL must not be used by two threads at a time, but by one after the other it may. So there are as many
    handles of a file as threads read it at once, not as many as there are threads.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.lock = threading.Lock()
        self.idle: OrderedDict[_Key, list[tuple[int, rasterio.DatasetReader]]] = OrderedDict()
        self.count = 0

    def take(self, key: _Key) -> rasterio.DatasetReader | None:
        """An idle handle of a file, if possible the one that this thread had: it remembers what it decoded."""
        with self.lock:
            handles = self.idle.get(key)
            if not handles:
                return None
            self.count -= 1
            mine = (place for place, (thread, _) in enumerate(handles) if thread == threading.get_ident())
            _, handle = handles.pop(next(mine, -1))
            if not handles:
                del self.idle[key]
            return handle

    def give(self, key: _Key, handle: rasterio.DatasetReader) -> None:
        """Keep a handle, and close those that were not used for longest where there are too many."""
        spare = []
        with self.lock:
            self.idle.setdefault(key, []).append((threading.get_ident(), handle))
            self.idle.move_to_end(key)
            self.count += 1
            while self.count > self.room:
                _, oldest = self.idle.popitem(last=False)
                self.count -= len(oldest)
                spare += [one for _, one in oldest]
        for one in spare:
            one.close()


class Silence:
    """No warning about missing georeferencing while any thread is inside: a grid without one is a grid.

    ``warnings.catch_warnings`` alone, left by one thread, would put back the filters that another still needs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore", NotGeoreferencedWarning)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(None, None, None)


_handles = _Handles(_room_for_files())
_silence = Silence()


def _start_anew() -> None:
    """In a forked process: locks that a thread of the parent held would never open, and its handles are not ours."""
    global _handles, _silence
    _inherited.append(_handles)  # not closed: a connection to a server would be closed for the parent as well
    _handles, _silence = _Handles(_handles.room), Silence()


_inherited: list[_Handles] = []
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_start_anew)


def silence() -> Silence:
    """What keeps rasterio quiet about rasters without a place in the world."""
    return _silence


@contextmanager
def lent(path: Path, url: str = "") -> Iterator[rasterio.DatasetReader]:
    """The open file: kept open, for opening costs ten times as much as reading a window.

    Args:
        path: a file on this machine; one that was written anew is opened anew.
        url: an address as GDAL takes it (``https://``, ``s3://``); "": the path.

    Raises:
        ValueError: the file is shorter than its directory says.
        OSError: it cannot be opened.
    """
    if url:
        key = (url, (0, 0), os.getpid())
    else:
        stat = path.stat()
        key = (str(path), (stat.st_mtime_ns, stat.st_size), os.getpid())
    handles = _handles
    handle = handles.take(key)
    if handle is None:
        handle = _remote(url) if url else _local(path)
    try:
        yield handle
    except BaseException:
        handle.close()  # what it keeps of a failed read is not to be trusted
        raise
    handles.give(key, handle)


def _local(path: Path) -> rasterio.DatasetReader:
    needed, size = needed_bytes(path), path.stat().st_size
    if needed is not None and needed > size:
        # GDAL opens such a file without its last tags, among them perhaps coordinate system and band names
        raise ValueError(
            f"{path}: the file is truncated, by its directory it has {needed} bytes and there are {size}; copy it again"
        )
    with silence():
        return rasterio.open(path)


def _remote(url: str) -> rasterio.DatasetReader:
    # without this GDAL lists what lies beside the file, which takes many requests or is forbidden
    with silence(), rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
        return rasterio.open(url)

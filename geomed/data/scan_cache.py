"""Decoded and resized scans in one memory-mapped file: addressed by what they are made of, so that it cannot go stale.

The key of an entry is the SHA-256 of the file's own SHA-256, of the recipe (the canonical JSON of all that is done to
it), of geomed's version and of ``VERSION``. Size and time of a file would be cheaper to look at and can lie: an archive
is unpacked with its old times, an editor keeps them. All bytes are read once in a run, not in each epoch, and hashing
them costs little beside decoding them. No path, name or time is an input of the key or is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from geomed import __version__
from geomed.data.duplicates import PRINT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import BinaryIO

    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

VERSION = 1
"""Of the layout and of the code that decodes and resizes: to be raised when either gives other pixels than before."""

FACTS = np.dtype(
    [
        ("print", PRINT),
        ("bits", "<i4"),
        ("unit", "S16"),
        ("orientation", "S3"),
        ("colour", "?"),
        ("volume", "?"),
        ("flat", "?"),
    ]
)
"""What is known of a file once it has been decoded: its looks, stored bits, unit, and what kind of scan it is."""

_ENTRY = np.dtype([("key", "V32"), ("offset", "<i8"), ("shape", "<i4", (4,)), ("facts", FACTS)])
_MAGIC = b"geomed scans\0\0\0\1"
_TRAILER = len(_MAGIC) + 8 + 8 + 32  # magic, count, offset of the index, its SHA-256
_AT_ONCE = 64  # files in flight while a cache is made
_READ = 1 << 20

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A scan as it is kept."""

    values: NDArray[np.generic]
    """uint8 or int16 [S, C, H, W]; S is 1 of a picture."""

    facts: NDArray[np.void]
    """Type ``FACTS``."""


class Shard:
    """The scans of a set in one file, read in place; it pickles as its path."""

    def __init__(self, path: Path, order: NDArray[np.int64]) -> None:
        """Open a file made by ``ScanCache``.

        Args:
            path: the file.
            order: for each scan its number in the file.

        Raises:
            ValueError: the file is not complete.
        """
        self.path, self.order = path, order
        entries, self._dtype = _index(path)
        self._facts = entries["facts"]
        self._places = list(zip(entries["offset"].tolist(), map(tuple, entries["shape"].tolist()), strict=True))
        self._bytes = np.memmap(path, mode="r", dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.order)

    def __getstate__(self) -> dict[str, object]:
        """What is pickled: where the scans are, not the scans."""
        return {"path": self.path, "order": self.order}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Open the file again, in a process of its own."""
        self.__init__(**state)

    def __getitem__(self, index: int) -> NDArray[np.generic]:
        """The scan [S, C, H, W], a view of the file that cannot be written to."""
        start, shape = self._places[self.order[index]]
        return np.ndarray(shape, dtype=self._dtype, buffer=self._bytes, offset=start)

    def facts(self) -> NDArray[np.void]:
        """What is known of each scan, type ``FACTS``."""
        return self._facts[self.order]


@dataclass(frozen=True, kw_only=True)
class ScanCache:
    """A folder of decoded scans, each set in one file that is written once, as a whole, and never changed.

    It holds pixels of patients: the folder and its files are for their owner only, and nothing in them says whose the
    scans are. What is no longer wanted stays; the folder can be deleted at any time.
    """

    folder: str
    """Where; several sets and several runs may share it."""

    workers: int | None = None
    """Threads that decode; None: one for each core, at most eight."""

    def hold(
        self,
        files: Sequence[Path | tuple[Path, ...]],
        recipe: Mapping[str, object],
        render: Callable[[int], Rendered],
        dtype: np.dtype[np.generic],
    ) -> Shard:
        """The scans of these files: from the cache where it has them, else decoded, and kept.

        Args:
            files: of each scan, one or several; a folder is all that is in it.
            recipe: all that is done to a file, in JSON's types.
            render: number of a scan → the scan, as the recipe says.
            dtype: uint8 or int16, of all of them.

        Raises:
            ValueError: files cannot be read, see ``UnusableScansError``; or the cache cannot be written.
        """
        folder = Path(self.folder).expanduser()
        whole = {"geomed": __version__, "version": VERSION, "dtype": dtype.name, **recipe}
        text = json.dumps(whole, sort_keys=True, allow_nan=False)
        stamps = {}

        def identity(index: int) -> bytes:
            stamps[index] = _stamp(files[index])
            return hashlib.sha256(text.encode() + file_digest(files[index])).digest()

        def rendered(index: int) -> Rendered:
            scan = render(index)
            if _stamp(files[index]) != stamps[index]:
                raise ValueError("the file was changed while it was read; start again when nothing writes to it")
            return scan

        with ThreadPoolExecutor(self._threads) as pool:
            keys = list(_all_or_errors(pool.map(_caught(identity), range(len(files)))))
        distinct = list(dict.fromkeys(keys))
        number = {key: index for index, key in enumerate(distinct)}
        order = np.array([number[key] for key in keys], dtype=np.int64)
        path = folder / f"{hashlib.sha256(b''.join(distinct)).hexdigest()[:32]}.scans"
        with contextlib.suppress(OSError, ValueError):
            return Shard(path, order)
        first = {key: index for index, key in reversed(list(enumerate(keys)))}
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _alone(path.with_suffix(".lock")) as alone:
                with contextlib.suppress(OSError, ValueError):  # another process has made it meanwhile
                    return Shard(path, order)
                if alone:  # what is left is of a process that was killed
                    for left in folder.glob(f"{path.stem}.*.part"):
                        left.unlink(missing_ok=True)
                self._make(path, [(key, first[key]) for key in distinct], rendered, dtype)
            return Shard(path, order)
        except OSError as error:
            raise ValueError(
                f"the cache of scans cannot be written ({error.strerror}); make room, or name another folder"
            ) from None

    def _make(
        self,
        path: Path,
        wanted: Sequence[tuple[bytes, int]],
        render: Callable[[int], Rendered],
        dtype: np.dtype[np.generic],
    ) -> None:
        known = _elsewhere(path.parent, {key for key, _ in wanted}, dtype)
        entries = np.zeros(len(wanted), dtype=_ENTRY)
        draft = path.with_name(f"{path.stem}.{os.getpid()}.{secrets.token_hex(4)}.part")
        missing = [(number, index) for number, (key, index) in enumerate(wanted) if key not in known]
        try:
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123  (it takes the handle)
                file.write(_MAGIC + dtype.name.encode().ljust(64 - len(_MAGIC)))
                for number, (key, _) in enumerate(wanted):
                    if key in known:
                        entries[number] = known[key].copy_to(file)
                for number, scan in self._rendered(missing, render):
                    values = np.ascontiguousarray(scan.values, dtype=dtype)
                    entries[number] = (np.void(wanted[number][0]), file.tell(), values.shape, scan.facts)
                    file.write(values.data)
                    file.write(b"\0" * (-file.tell() % 64))
                start, listed = file.tell(), entries.tobytes()
                file.write(listed + _MAGIC + len(entries).to_bytes(8, "little") + start.to_bytes(8, "little"))
                file.write(hashlib.sha256(listed).digest())
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        _log.info(
            "cache of scans: %d decoded, %d taken over, %.1f MB",
            len(missing),
            len(wanted) - len(missing),
            path.stat().st_size / 1e6,
        )

    def _rendered(
        self, missing: Sequence[tuple[int, int]], render: Callable[[int], Rendered]
    ) -> Iterator[tuple[int, Rendered]]:
        """The scans in their order, a few of them in memory at a time."""
        numbers, indices = [number for number, _ in missing], [index for _, index in missing]
        with ThreadPoolExecutor(self._threads) as pool:

            def results() -> Iterator[Rendered | Exception]:
                for start in range(0, len(indices), _AT_ONCE):
                    yield from pool.map(_caught(render), indices[start : start + _AT_ONCE])

            yield from zip(numbers, _all_or_errors(results(), indices), strict=True)

    @property
    def _threads(self) -> int:
        return self.workers or min(os.cpu_count() or 1, 8)


class UnusableScansError(ValueError):
    """All that was wrong with a set of files."""

    def __init__(self, errors: Mapping[int, Exception]) -> None:
        """Number of a scan → what is wrong with it."""
        super().__init__(f"{len(errors)} files cannot be used")
        self.errors = errors


def measure(count: int, render: Callable[[int], Rendered], workers: int | None = None) -> NDArray[np.void]:
    """What is known of each scan, type ``FACTS``, where nothing is kept of its pixels.

    Raises:
        ValueError: files cannot be read; see ``UnusableScansError``.
    """
    with ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 8)) as pool:
        facts = _all_or_errors(pool.map(_caught(lambda index: render(index).facts), range(count)))
        return np.array(list(facts), dtype=FACTS)


def file_digest(path: Path | tuple[Path, ...]) -> bytes:
    """SHA-256 of a file's bytes; of several, of their digests; of a folder, those of its files in the order of names.

    Raises:
        OSError: it cannot be read.
    """
    total = hashlib.sha256()
    if isinstance(path, tuple) or path.is_dir():
        for one in path if isinstance(path, tuple) else sorted(path.iterdir()):
            if one.is_file():
                total.update(file_digest(one))
        return total.digest()
    with path.open("rb") as file:
        while block := file.read(_READ):
            total.update(block)
    return total.digest()


@dataclass(frozen=True)
class _Known:
    """An entry of another set."""

    path: Path
    entry: NDArray[np.void]
    size: int

    def copy_to(self, file: BinaryIO) -> NDArray[np.void]:
        """Write its pixels and give the entry with their new place."""
        entry = self.entry.copy()
        with self.path.open("rb") as source:
            source.seek(int(entry["offset"]))
            entry["offset"] = file.tell()
            file.write(source.read(self.size))
        file.write(b"\0" * (-file.tell() % 64))
        return entry


def _elsewhere(folder: Path, wanted: set[bytes], dtype: np.dtype[np.generic]) -> dict[bytes, _Known]:
    """What other sets of the folder have of the wanted entries: their keys say that they are the same."""
    known: dict[bytes, _Known] = {}
    for path in folder.glob("*.scans"):
        with contextlib.suppress(OSError, ValueError):
            entries, kept = _index(path)
            if kept != dtype:
                continue
            for number, key in enumerate(entries["key"].tolist()):
                if key in wanted and key not in known:
                    size = int(np.prod(entries["shape"][number])) * dtype.itemsize
                    known[key] = _Known(path, entries[number], size)
    return known


def _index(path: Path) -> tuple[NDArray[np.void], np.dtype[np.generic]]:
    """The entries of a file and the type of its scans.

    Raises:
        ValueError: the file is cut off or not one of these.
    """
    with path.open("rb") as file:
        head = file.read(64)
        length = file.seek(0, os.SEEK_END)
        file.seek(max(length - _TRAILER, 0))
        trailer = file.read()
        at = len(_MAGIC)
        count, start = (int.from_bytes(trailer[at + i : at + i + 8], "little") for i in (0, 8))
        if head[:at] != _MAGIC or trailer[:at] != _MAGIC or start + count * _ENTRY.itemsize + _TRAILER != length:
            raise ValueError("a file of the cache is not complete; it is made anew")
        file.seek(start)
        listed = file.read(count * _ENTRY.itemsize)
    if hashlib.sha256(listed).digest() != trailer[-32:]:
        raise ValueError("a file of the cache is damaged; it is made anew")
    return np.frombuffer(listed, dtype=_ENTRY), np.dtype(head[at:].decode().strip())


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """One process at a time, and whether that is so; the system ends the lock of a process that is killed.

    Where there are no locks, several processes do the same work, and the last one's file, which is the same, stays.
    """
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "wb") as file:  # noqa: PTH123  (it takes the handle)
        alone = False
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
            alone = True
        yield alone


def _stamp(path: Path | tuple[Path, ...]) -> tuple[int, ...]:
    """What changes when a file is written to."""
    if isinstance(path, tuple):
        return tuple(number for one in path for number in _stamp(one))
    found = [path, *sorted(path.iterdir())] if path.is_dir() else [path]
    return tuple(
        number
        for one in found
        for status in [one.stat()]
        for number in (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    )


def _caught(work: Callable[[int], Result]) -> Callable[[int], Result | Exception]:
    def attempt(index: int) -> Result | Exception:
        try:
            return work(index)
        except (ValueError, OSError) as error:
            return error

    return attempt


def _all_or_errors(results: Iterator[Result | Exception], numbers: Sequence[int] | None = None) -> Iterator[Result]:
    """The results as they come; once one is wrong, the others are only looked at for what is wrong with them too."""
    errors: dict[int, Exception] = {}
    for position, result in enumerate(results):
        if isinstance(result, Exception):
            errors[position if numbers is None else numbers[position]] = result
        elif not errors:
            yield result
    if errors:
        raise UnusableScansError(errors)

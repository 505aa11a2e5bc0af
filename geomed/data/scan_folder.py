"""Which scans lie below a folder: pictures, NIfTI volumes, and DICOM files put together by their series."""

from __future__ import annotations

import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from tqdm import tqdm

from geomed.data.scan_files import DICOM, ENDINGS, NIFTI
from geomed.data.scan_slices import DicomSlices, Nifti, Picture, Slices
from geomed.io.dicom_header import is_document, read_header
from geomed.io.scan import explained

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from geomed.data.scan_files import Reading
    from geomed.io.dicom_header import Header

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Sorted:
    """What files hold."""

    scans: tuple[Slices, ...]
    """Pictures and volumes in the order of their first files."""

    documents: int
    """DICOM files that are no pictures."""

    errors: tuple[Exception, ...]
    """What is wrong with the heads of DICOM files; they name a file by its number only."""


def scans_below(root: Path, *, pattern: str, exclude: Sequence[str]) -> tuple[tuple[Path, ...], int]:
    """The files that are scans, in the order of their paths, and how many there are that are not.

    Args:
        root: the folder.
        pattern: what a path below it has to look like.
        exclude: what it must not look like. Hidden files and folders are left out, too.

    Raises:
        ValueError: there is no such folder; the message does not name it.
    """
    if not root.is_dir():
        raise ValueError("the folder of scans is not there; correct `folder`")
    found, others = [], 0
    for path in sorted(root.rglob("*")):
        below = path.relative_to(root)
        written = below.as_posix()
        if any(name.startswith(".") for name in below.parts) or not path.is_file():
            continue
        if not fnmatchcase(written, pattern) or any(fnmatchcase(written, one) for one in exclude):
            continue
        if path.name.lower().endswith(ENDINGS) or _says_dicom(path):
            found.append(path)
        else:
            others += 1
    return tuple(found), others


def sort_scans(files: Sequence[Path], reading: Reading) -> Sorted:
    """Put DICOM files of one series in one folder together, by their heads; other files are a scan each.

    Args:
        files: in order; errors call them by their numbers, from 1.
        reading: what they do not say themselves.
    """
    names = [f"file {number} of {len(files)}" for number in range(1, len(files) + 1)]
    made: list[tuple[int, Slices]] = []
    dicom = []
    for index, path in enumerate(files):
        ending = path.name.lower()
        if ending.endswith(NIFTI):
            made.append((index, Nifti(path=path, named=names[index])))
        elif ending.endswith(DICOM) or not ending.endswith(ENDINGS):
            dicom.append(index)
        else:
            made.append((index, Picture(path=path, named=names[index])))

    def head(at: int) -> _Head | None:
        with explained(names[dicom[at]]):
            return _head(files[dicom[at]], reading)

    series: dict[object, list[tuple[int, _Head]]] = defaultdict(list)
    documents, errors = 0, []
    for index, found in zip(dicom, attempted(head, len(dicom), "sorting scans"), strict=True):
        if isinstance(found, Exception):
            errors.append(found)
        elif found is None:
            documents += 1
        else:
            series[(files[index].parent, found.series) if found.series else index].append((index, found))
    for group in series.values():
        shots = [(at, frame) for at, (_, one) in enumerate(group) for frame in range(len(one.heights))]
        heights = [height for _, one in group for height in one.heights]
        order = range(len(shots)) if None in heights else np.argsort(np.array(heights, dtype=float), kind="stable")
        volume = DicomSlices(
            files=tuple(files[index] for index, _ in group),
            named=tuple(names[index] for index, _ in group),
            shots=tuple(shots[place] for place in order),
        )
        made.append((group[0][0], volume))
    scans = tuple(one for _, one in sorted(made, key=lambda pair: pair[0]))
    return Sorted(scans=scans, documents=documents, errors=tuple(errors))


def attempted(work: Callable[[int], Result], count: int, what: str) -> list[Result | Exception]:
    """What becomes of each number, or the error that it ends in, by several threads, with a bar if it takes long."""

    def attempt(index: int) -> Result | Exception:
        try:
            return work(index)
        except (ValueError, OSError) as error:
            return error

    threads = min(os.cpu_count() or 1, 8)
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=count, desc=what, unit="scan", delay=2, leave=False) as bar,
    ):
        results = []
        for result in pool.map(attempt, range(count)):
            results.append(result)
            bar.update()
        return results


@dataclass(frozen=True, kw_only=True)
class _Head:
    """What matters of a DICOM file here."""

    series: str
    """Compared, and never shown."""

    heights: tuple[float | None, ...]
    """Of each frame along its normal in mm; None: it does not say it."""


def _head(path: Path, reading: Reading) -> _Head | None:
    """None of a file that is no picture."""
    try:
        header = read_header(path, reading.modality)
    except ValueError:
        if is_document(path):
            return None
        raise
    return _Head(series=header.series, heights=_heights(header))


def _heights(header: Header) -> tuple[float | None, ...]:
    heights: list[float | None] = []
    for frame in header.frames:
        if frame.position is None or frame.directions is None:
            heights.append(None)
        else:
            normal = np.cross(frame.directions[:3], frame.directions[3:])
            heights.append(float(normal @ np.array(frame.position)))
    return tuple(heights)


def _says_dicom(path: Path) -> bool:
    """Whether the letters DICM stand where they have to, whatever the name: archives write names without endings."""
    if path.name == "DICOMDIR":
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:  # a message of the system would quote the path
        return False

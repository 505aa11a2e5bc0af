"""Scans picture by picture: slices of volumes one by one, and which of them show something."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from geomed.data.scan_cache import FACTS
from geomed.io.dicom import read_frame
from geomed.io.dicom_header import read_header
from geomed.io.nifti import read_nifti_slice
from geomed.io.scan import Scan, explained

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from geomed.data.rendition import Rendition
    from geomed.data.scan_files import Reading

_BULK = (0.5, 99.5)  # percentiles between which the values of a slice are said to spread


class Slices(ABC):
    """A picture, or a volume whose slices are pictures; implementations are frozen dataclasses and hold no pixels."""

    files: tuple[Path, ...]
    """Where it lies."""

    @abstractmethod
    def each(self, reading: Reading) -> Iterator[tuple[int, str, Scan]]:
        """Every slice in order: its place, how errors call it, and its values.

        Raises:
            ValueError: a file cannot be read.
        """

    @abstractmethod
    def at(self, place: int, reading: Reading) -> Scan:
        """One slice, the others left undecoded as far as the format allows.

        Raises:
            ValueError: its file cannot be read any more.
        """

    @property
    @abstractmethod
    def called(self) -> str:
        """How errors call it: by the number of its first file."""

    def unpacks(self, reading: Reading) -> bool:
        """Whether one slice costs as much as all of them."""
        return False


@dataclass(frozen=True, kw_only=True)
class _OneFile(Slices):
    """What lies in a file of its own."""

    path: Path = field(repr=False)
    """The file."""

    named: str
    """How errors call it."""

    @property
    def files(self) -> tuple[Path, ...]:  # type: ignore[override]  # there is one
        """The file."""
        return (self.path,)

    @property
    def called(self) -> str:
        """See ``Slices.called``."""
        return self.named


@dataclass(frozen=True, kw_only=True)
class Picture(_OneFile):
    """A PNG, JPEG, TIFF or BMP."""

    def each(self, reading: Reading) -> Iterator[tuple[int, str, Scan]]:
        """See ``Slices.each``."""
        yield 0, self.named, self.at(0, reading)

    def at(self, place: int, reading: Reading) -> Scan:
        """See ``Slices.at``."""
        return reading.read(self.path, named=self.named)


@dataclass(frozen=True, kw_only=True)
class Nifti(_OneFile):
    """A NIfTI volume, sliced along its third axis, after it was turned where ``Reading.orientation`` says so."""

    def each(self, reading: Reading) -> Iterator[tuple[int, str, Scan]]:
        """See ``Slices.each``."""
        volume = reading.read(self.path, named=self.named)
        for place in range(len(volume.values)):
            yield place, f"{self.named}, slice {place + 1}", _slice(volume, place)

    def at(self, place: int, reading: Reading) -> Scan:
        """See ``Slices.at``."""
        if self.unpacks(reading):
            return _slice(reading.read(self.path, named=self.named), place)
        return read_nifti_slice(self.path, place, unit=reading.unit, named=self.named)

    def unpacks(self, reading: Reading) -> bool:
        """Whether one slice costs as much as all of them: gzipped, or turned."""
        return reading.orientation is not None or self.path.suffix.lower() == ".gz"


@dataclass(frozen=True, kw_only=True)
class DicomSlices(Slices):
    """Frames of one DICOM series, or a single one, as they are stored; they need not be a regular stack."""

    files: tuple[Path, ...] = field(repr=False)
    """The files, in any order."""

    named: tuple[str, ...]
    """How errors call each of them."""

    shots: tuple[tuple[int, int], ...]
    """File and frame, counted from 0, of each slice in order."""

    @property
    def called(self) -> str:
        """See ``Slices.called``."""
        return self.named[0]

    def each(self, reading: Reading) -> Iterator[tuple[int, str, Scan]]:
        """See ``Slices.each``."""
        header, of = None, -1
        for place, (file, frame) in enumerate(self.shots):
            if header is None or file != of:  # the header of a multi-frame file is long
                with explained(self.named[file]):
                    header, of = read_header(self.files[file], reading.modality), file
            yield place, self.named[file], read_frame(header, frame, named=self.named[file])

    def at(self, place: int, reading: Reading) -> Scan:
        """See ``Slices.at``."""
        file, frame = self.shots[place]
        with explained(self.named[file]):
            header = read_header(self.files[file], reading.modality)
        return read_frame(header, frame, named=self.named[file])


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The slices of a scan that show something, rendered."""

    places: NDArray[np.int32]
    """Which they are."""

    blank: int
    """How many others show nothing."""

    values: NDArray[np.generic]
    """[S, C, size, size]."""

    facts: NDArray[np.void]
    """Type ``geomed.data.scan_cache.FACTS``, without a print."""


def shown(slices: Slices, reading: Reading, rendition: Rendition, min_spread: float) -> Shown:
    """Decode all slices once and keep those that are not blank, or as many of them as ``rendition.slices`` says.

    The spread of a slice is the distance of the 0.5th from the 99.5th percentile of its values: what covers less than
    half a percent of it does not count. Nothing is left of a slice without any, and none of a volume is kept whose
    spread is less than ``min_spread`` of the median of the others: noise of the air around a patient.

    Raises:
        ValueError: a file cannot be read, or a slice that is kept is no such scan as the rendition takes.
    """
    places, spreads = [], []
    made: list[NDArray[np.generic] | ValueError] = []
    facts = np.zeros((), dtype=FACTS)
    for place, named, scan in slices.each(reading):
        spread = _spread(scan)
        places.append(place)
        spreads.append(spread)
        made.append(_rendered(scan, rendition, named) if spread > 0 else ValueError(named))
        facts["unit"], facts["bits"], facts["colour"] = scan.unit.encode()[:16], scan.bits, scan.unit == "RGB"
    facts["volume"] = len(places) > 1
    there = np.array(spreads)
    least = min_spread * float(np.median(there[there > 0])) if len(places) > 1 and there.any() else 0.0
    kept = np.flatnonzero((there > 0) & (there >= least))
    blank = len(places) - len(kept)
    if rendition.slices is not None and len(kept) > rendition.slices:
        kept = kept[((np.arange(rendition.slices) + 0.5) * len(kept) / rendition.slices).astype(np.int64)]
    values = np.empty((len(kept), len(rendition.bands), rendition.size, rendition.size), dtype=rendition.dtype)
    for at, number in enumerate(kept):
        one = made[number]
        if isinstance(one, ValueError):
            raise one
        values[at] = one
    return Shown(places=np.array(places, dtype=np.int32)[kept], blank=blank, values=values, facts=facts[()])


def rendered(slices: Slices, place: int, reading: Reading, rendition: Rendition) -> NDArray[np.generic]:
    """One slice [C, size, size], as ``shown`` has it.

    Raises:
        ValueError: it cannot be read any more.
    """
    made = _rendered(slices.at(place, reading), rendition, slices.called)
    if isinstance(made, ValueError):
        raise made
    return made


def _rendered(scan: Scan, rendition: Rendition, named: str) -> NDArray[np.generic] | ValueError:
    """A slice as it is kept, or what is wrong with it, which matters only if it is kept."""
    try:
        return rendition.pixels(scan)[0]
    except ValueError as error:
        return ValueError(f"{named}: {error}")


def _spread(scan: Scan) -> float:
    """Distance of two percentiles of the values that are no padding."""
    values = scan.values if scan.padded is None else scan.values[~scan.padded]
    low, high = np.percentile(values.astype(np.float32, copy=False), _BULK)
    return float(high) - float(low)


def _slice(volume: Scan, place: int) -> Scan:
    """One slice of a volume as a picture."""
    return replace(
        volume,
        values=volume.values[place],
        padded=None if volume.padded is None else volume.padded[place],
        spacing=None if volume.spacing is None else volume.spacing[1:],
        affine=None,
    )

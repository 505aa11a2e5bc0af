"""DICOM: single images, classic series and enhanced multi-frame volumes, right or refused."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from geomed.io.dicom_geometry import Stack, stack
from geomed.io.dicom_header import read_header
from geomed.io.dicom_pixels import read_values
from geomed.io.scan import Scan, UnreadableScanError, explained

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geomed.io.dicom_header import Header, Pick
    from geomed.io.voi import Voi, VoiTable

_SUFFIXES = frozenset({".dcm", ".dic", ".dicom", ".ima"})


@dataclass(frozen=True, kw_only=True)
class DicomVolume:
    """A volume whose headers were read and found good, and whose pixels were not read yet."""

    named: str
    """How errors call it."""

    stack: Stack = field(repr=False)
    """Its slices in order."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns)."""
        header = self.stack.picks[0][0]
        return len(self.stack.picks), *header.size

    @property
    def spacing(self) -> tuple[float, float, float]:
        """(slices, rows, columns) in mm."""
        return self.stack.spacing

    def read(self, slices: slice = slice(None)) -> Scan:
        """The volume, or some of its slices that follow each other.

        Args:
            slices: which, counted from the lowest along the normal; a step is not taken.

        Raises:
            UnreadableScanError: the pixels are truncated, damaged, cannot be decoded here, or are in no known unit.
        """
        first, last, step = slices.indices(len(self.stack.picks))
        if step != 1 or first >= last:
            raise ValueError(f"{slices} of {len(self.stack.picks)} slices: take one or more in turn, with a step of 1")
        affine = self.stack.affine.copy()
        affine[:3, 3] += affine[:3, 0] * first
        with explained(self.named):
            return _scan(self.stack.picks[first:last], volume=(self.stack.spacing, affine))


def read_dicom(
    path: str | Path, *, frame: int | None = None, modality: str | None = None, named: str | None = None
) -> Scan:
    """Read one file: a picture or a slice, or the volume of an enhanced multi-frame file.

    Values are in their unit: CT in HU (a CT without rescale is refused), PET in the unit it says, others "grey" after
    their rescale. MONOCHROME1 is mirrored within the stored range, so that bright is high in all pictures, but a
    quantity as HU stays itself. Colours become RGB. No window is applied: ``window`` does, on request. Only geometry,
    units, windows and the layout of the pixels are taken out of the file.

    Args:
        path: the file.
        frame: the frame of a film or stack, from 0, that is wanted as a picture; None: the file holds one, or a volume.
        modality: what a file is that does not say it, as "OT"; None: it says it.
        named: how errors call it; None: the name of the file.

    Raises:
        UnreadableScanError: it is missing, no DICOM image, contradicts itself, is truncated, cannot be decoded here, or
            promises more than memory holds.
    """
    path = Path(path)
    with explained(named or path.name):
        header = read_header(path, modality)
        count = len(header.frames)
        if frame is None and count > 1:
            if any(one.position is None for one in header.frames):
                raise UnreadableScanError(f"it holds {count} frames that say no position; take one of them: frame=0 …")
            ordered = stack([(header, number) for number in range(count)])
            return _scan(ordered.picks, volume=(ordered.spacing, ordered.affine))
        if not 0 <= (frame or 0) < count:
            raise UnreadableScanError(f"it has no frame {frame}, it holds {count}; take one from 0 to {count - 1}")
        return _scan([(header, frame or 0)], volume=None)


def read_frame(header: Header, frame: int, *, named: str) -> Scan:
    """One frame of a file whose header was read before, as ``read_dicom`` reads it.

    Args:
        header: of the file.
        frame: its number, from 0.
        named: how errors call the file.

    Raises:
        UnreadableScanError: the pixels are truncated, damaged, cannot be decoded here, or are in no known unit.
    """
    with explained(named):
        return _scan([(header, frame)], volume=None)


def open_series(
    files: str | Path | Sequence[str | Path], *, modality: str | None = None, named: str | None = None
) -> DicomVolume:
    """Read the headers of a series and order its slices by position; its pixels wait for ``read``.

    Args:
        files: one file for each slice, in any order, or their folder: of it the files of which neither name nor
            content is DICOM's are left out, and so is DICOMDIR.
        modality: as in ``read_dicom``.
        named: how errors call it; None: the name of the folder, or "a series". Files are called by their place.

    Raises:
        UnreadableScanError: a file cannot be read, or the slices are no regular volume: mixed series, gaps, duplicates,
            different directions, spacings, sizes, bits or units, or places that are not known.
    """
    if isinstance(files, str | Path):
        named = named or Path(files).name
        paths = _files(Path(files), named)
    else:
        named, paths = named or "a series", [Path(file) for file in files]
    picks: list[Pick] = []
    with explained(named):
        for number, path in enumerate(paths, start=1):
            with explained(f"file {number} of {len(paths)}"):
                header = read_header(path, modality)
            picks += [(header, frame) for frame in range(len(header.frames))]
        return DicomVolume(named=named, stack=stack(picks))


def read_series(
    files: str | Path | Sequence[str | Path], *, modality: str | None = None, named: str | None = None
) -> Scan:
    """Read a series as one volume: ``open_series`` and then ``read``, which see."""
    return open_series(files, modality=modality, named=named).read()


def series_in(folder: str | Path, *, named: str | None = None) -> tuple[tuple[Path, ...], ...]:
    """The DICOM images of a folder, sorted by series, the largest first.

    Raises:
        UnreadableScanError: there is none, or one of them cannot be read.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    named = named or Path(folder).name
    paths = _files(Path(folder), named)
    for number, path in enumerate(paths, start=1):
        with explained(f"{named}: file {number} of {len(paths)}"):
            found[read_header(path, None).series].append(path)
    return tuple(tuple(one) for one in sorted(found.values(), key=len, reverse=True))


def _files(folder: Path, named: str) -> list[Path]:
    """The files of a folder that are DICOM's by name or by content."""
    if not folder.is_dir():
        raise UnreadableScanError(f"{named}: this is no folder; give one, or a list of files")
    found = [path for path in sorted(folder.iterdir()) if path.is_file() and _is_dicom(path)]
    if not found:
        raise UnreadableScanError(f"{named}: no file of this folder is DICOM; give another")
    return found


def _is_dicom(path: Path) -> bool:
    """Whether the name says so, or the letters DICM stand where they have to."""
    if path.suffix.lower() in _SUFFIXES or path.name == "DICOMDIR":
        return path.name != "DICOMDIR"
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _scan(picks: Sequence[Pick], volume: tuple[tuple[float, ...], object] | None) -> Scan:
    """Pixels and what is said of them."""
    header, number = picks[0]
    read = read_values(picks)
    return Scan(
        values=read.values if volume else read.values[0],
        unit=read.unit,
        modality=header.modality,
        photometric=header.photometric,
        bits=8 if header.photometric == "PALETTE COLOR" else header.stored,
        spacing=volume[0] if volume else header.frames[number].spacing,
        affine=volume[1] if volume else None,  # type: ignore[arg-type]
        windows=_shared_windows(picks),
        mirror=read.mirror,
        padded=read.padded if volume or read.padded is None else read.padded[0],
    )


def _shared_windows(picks: Sequence[Pick]) -> tuple[Voi | VoiTable, ...]:
    """The windows that all slices propose; one that changes from slice to slice is none of the volume."""
    header, number = picks[0]
    windows = header.frames[number].windows
    return windows if all(one.frames[frame].windows == windows for one, frame in picks) else ()

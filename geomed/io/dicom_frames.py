"""What a DICOM file says of each of its frames: place, unit and windows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from geomed.io.dicom_elements import count_of, numbers_of, one_of, sequence_of, tables_of, tag_of, windows_of, word_of
from geomed.io.scan import UnreadableScanError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom.dataset import Dataset

    from geomed.io.voi import Voi, VoiTable

_RESCALE_UNITS = frozenset({"HU", "US", "HU_MOD", "MGML", "Z_EFF", "ED", "EDW", "PCT"})


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One slice or picture of a file."""

    position: tuple[float, ...] | None
    """(x, y, z) of its first pixel in mm, LPS."""

    directions: tuple[float, ...] | None
    """Unit vectors of a step to the next column, then to the next row."""

    spacing: tuple[float, ...] | None
    """(rows, columns) in mm."""

    rescale: tuple[float, float] | None
    """(slope, intercept)."""

    rescale_type: str
    """What the file calls the unit after that, "" where it says nothing."""

    windows: tuple[Voi | VoiTable, ...]
    """Those that it proposes."""


def frames_of(item: Dataset, *, signed: bool) -> tuple[Frame, ...]:
    """Each frame: what is said of it, else of all frames, else at the top as in classic files."""
    count = count_of(item, "NumberOfFrames", 1)
    shared = sequence_of(item, "SharedFunctionalGroupsSequence")
    each = sequence_of(item, "PerFrameFunctionalGroupsSequence")
    if each and len(each) != count:
        raise UnreadableScanError(f"it promises {count} frames and describes {len(each)}; fetch it anew")
    if not each and not shared:
        described = _frame([item], signed=signed)
        if count > 1:  # one position cannot be the one of all
            described = replace(described, position=None)
        return (described,) * count
    groups = [[*each[number : number + 1], *shared, item] for number in range(count)]
    return tuple(_frame(parts, signed=signed) for parts in groups)


def _frame(parts: Sequence[Dataset], *, signed: bool) -> Frame:
    """One frame of the data sets that speak of it, the nearest first."""
    place = _holder(parts, "PlanePositionSequence", "ImagePositionPatient")
    turn = _holder(parts, "PlaneOrientationSequence", "ImageOrientationPatient")
    measure = _holder(parts, "PixelMeasuresSequence", "PixelSpacing")
    units = _holder(parts, "PixelValueTransformationSequence", "RescaleSlope")
    voi = _holder(parts, "FrameVOILUTSequence", "WindowCenter")
    position = numbers_of(place, "ImagePositionPatient", 3)
    directions = numbers_of(turn, "ImageOrientationPatient", 6)
    spacing = numbers_of(measure, "PixelSpacing", 2)
    slope, intercept = numbers_of(units, "RescaleSlope", 1), numbers_of(units, "RescaleIntercept", 1)
    if len(slope) != len(intercept) or slope == (0.0,):
        raise UnreadableScanError(
            f"a rescale is a slope other than 0 and an intercept, it says {slope or 'none'} and {intercept or 'none'}; "
            "correct the file"
        )
    if spacing and min(spacing) <= 0:
        raise UnreadableScanError(f"its pixels are {spacing[0]:g} x {spacing[1]:g} mm wide; correct the file")
    if directions:
        across, down = np.array(directions[:3]), np.array(directions[3:])
        if abs(across @ across - 1) > 0.02 or abs(down @ down - 1) > 0.02 or abs(across @ down) > 0.01:
            raise UnreadableScanError(
                "its rows and columns are not at right angles or not of length 1; correct the file"
            )
    return Frame(
        position=position or None,
        directions=directions or None,
        spacing=spacing or None,
        rescale=(slope[0], intercept[0]) if slope else None,
        rescale_type=_unit_word(word_of(units, "RescaleType")),
        windows=(*tables_of(voi, "VOILUTSequence", signed=signed), *windows_of(voi)),
    )


def _holder(parts: Sequence[Dataset], group: str, keyword: str) -> Dataset:
    """The data set that holds a keyword: in a functional group of the frame, of all frames, or at the top."""
    if len(parts) == 1:
        return parts[0]
    for part in parts:
        inside = sequence_of(part, group)
        if inside and tag_of(keyword) in inside[0]:
            return inside[0]
    return parts[-1]


def _unit_word(said: str) -> str:
    """A unit that DICOM defines; OD is one of films, not of the patient, and says no more than grey."""
    return "" if said in {"", "OD"} else one_of(said, _RESCALE_UNITS) or "?"

"""Where slices lie: their order along the normal, and the refusal of what is no regular stack of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from geomed.io.scan import UnreadableScanError

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import NDArray

    from geomed.io.dicom_frames import Frame
    from geomed.io.dicom_header import Pick

_COSINES = 1e-3
"""Two directions are the same if no component differs by more: files write them with four digits or more."""

_STEPS = 0.01
"""Two steps are the same if they differ by less than this part of one, or by ``_ROUNDING``."""

_ROUNDING = 0.01
"""Millimetres to which files round positions."""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Slices in order."""

    picks: tuple[Pick, ...]
    """From the lowest along the normal."""

    spacing: tuple[float, float, float]
    """(slices, rows, columns) in mm."""

    affine: NDArray[np.float64]
    """[4, 4]: (slice, row, column, 1) → (x, y, z, 1) in mm, LPS."""


def stack(picks: Sequence[Pick]) -> Stack:
    """Order slices by position along their normal; their numbers in the file and in the acquisition have no part in it.

    Raises:
        UnreadableScanError: they are not one regular volume; it says why, and with how many slices.
    """
    frames = [header.frames[number] for header, number in picks]
    if len(frames) < 2:
        raise UnreadableScanError("a volume has two slices at least, this is 1; read it as a single image")
    _refuse_different(picks)
    positions, turn, spacing = _placed(frames)
    normal = np.cross(turn[:3], turn[3:])
    heights = positions @ normal
    order = np.argsort(heights, kind="stable")
    step = _refuse_irregular(positions[order], heights[order], normal)
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = turn[3:] * spacing[0]
    affine[:3, 2] = turn[:3] * spacing[1]
    affine[:3, 3] = positions[order[0]]
    return Stack(
        picks=tuple(picks[number] for number in order),
        spacing=(float(np.linalg.norm(step)), float(spacing[0]), float(spacing[1])),
        affine=affine,
    )


def _refuse_different(picks: Sequence[Pick]) -> None:
    """Refuse slices of several series, coordinate systems, sizes or kinds of pixels."""
    series = Counter(header.series for header, _ in picks)
    if len(series) > 1:
        raise UnreadableScanError(
            f"{len(picks)} slices are of {len(series)} series, {_counts(series, show=False)}; "
            "give the files of one: `series_in` sorts them"
        )
    if len({header.frame_of_reference for header, _ in picks}) > 1:
        raise UnreadableScanError(
            f"{len(picks)} slices of one series lie in several coordinate systems: the patient was placed anew "
            "between them; give those of one"
        )
    layouts = [header.layout for header, _ in picks]
    for place in range(0, len(layouts[0]), 2):
        found = Counter(layout[place + 1] for layout in layouts)
        if len(found) > 1:
            raise UnreadableScanError(
                f"its slices differ in {layouts[0][place]}: {_counts(found)}; give those of one kind"
            )
    if picks[0][0].colours:
        raise UnreadableScanError(f"a volume is grey, this is {picks[0][0].photometric}; read its slices one by one")


def _placed(frames: Sequence[Frame]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(positions [slices, 3], directions [6], (rows, columns) in mm) of slices that have them, and the same ones."""
    for what in ("position", "directions", "spacing"):
        missing = sum(getattr(frame, what) is None for frame in frames)
        if missing:
            raise UnreadableScanError(
                f"{missing} of {len(frames)} slices say no {what}, so their place is not known; "
                "read them one by one as single images"
            )
    turns = np.array([frame.directions for frame in frames])
    odd = int((np.abs(turns - np.median(turns, axis=0)) > _COSINES).any(axis=1).sum())
    if odd:
        raise UnreadableScanError(
            f"{odd} of {len(frames)} slices are turned otherwise than the others (a localiser, or several planes); "
            "give those of one plane"
        )
    spacings = np.array([frame.spacing for frame in frames])
    if (np.abs(spacings / spacings[0] - 1) > 1e-3).any():
        found = Counter(f"{rows:g} x {columns:g} mm" for rows, columns in spacings)
        raise UnreadableScanError(f"its pixels are of several widths: {_counts(found)}; give slices of one")
    return np.array([frame.position for frame in frames]), turns[0], spacings[0]


def _refuse_irregular(
    positions: NDArray[np.float64], heights: NDArray[np.float64], normal: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The step (x, y, z) from slice to slice, the same everywhere."""
    count = len(heights)
    steps = np.diff(heights)
    usual = float(np.median(steps[steps > _ROUNDING])) if (steps > _ROUNDING).any() else 0.0
    near = max(_ROUNDING, _STEPS * usual)
    doubled = int((steps <= near).sum())
    if doubled:
        places = count - doubled
        many = f"all {places} positions hold {count // places}" if count % places == 0 else f"{doubled} lie on another"
        raise UnreadableScanError(
            f"{count} slices have {places} positions, {many} (duplicates, or several echoes, times or weightings); "
            "give one of each position"
        )
    wide = np.flatnonzero(np.abs(steps - usual) > near)
    if len(wide):
        first = int(wide[0])
        lost = (steps[wide] / usual).round().astype(int) - 1
        whole = bool((np.abs(steps[wide] - (lost + 1) * usual) <= near * (lost + 1)).all() and (lost > 0).all())
        raise UnreadableScanError(
            f"{count} slices are {usual:.4g} mm apart, but {steps[first]:.4g} mm after slice {first + 1} of them"
            f"{f' and at {len(wide) - 1} more places' if len(wide) > 1 else ''}: "
            f"{f'slices missing: {int(lost.sum())}' if whole else 'the spacing changes'}; complete the series"
        )
    moves = np.diff(positions, axis=0)
    aside = np.linalg.norm(moves - np.outer(moves @ normal, normal), axis=1)
    if (aside > near).any():
        raise UnreadableScanError(
            f"each slice is shifted by up to {aside.max():.3g} mm against the one below, {usual:.4g} mm away: the "
            "stack is sheared (a tilted gantry); resample it before"
        )
    step: NDArray[np.float64] = (positions[-1] - positions[0]) / (count - 1)
    return step


def _counts(found: Counter[Hashable] | Counter[str] | Counter[object], *, show: bool = True) -> str:
    """How often each was found."""
    often = found.most_common(4)
    more = f" and {len(found) - len(often)} more" if len(found) > len(often) else ""
    return (", ".join(f"{what} ({count})" if show else str(count) for what, count in often)) + more

"""Which pixels to read and which of them to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of pixels."""

    row: int
    """First row."""

    column: int
    """First column."""

    height: int
    """Rows."""

    width: int
    """Columns."""

    @property
    def slices(self) -> tuple[slice, slice]:
        """(rows, columns), to index an array."""
        return slice(self.row, self.row + self.height), slice(self.column, self.column + self.width)

    def within(self, outer: Window) -> Window:
        """The same rectangle, counted from the corner of ``outer``."""
        return Window(self.row - outer.row, self.column - outer.column, self.height, self.width)


def _spans(length: int, size: int, margin: int) -> Iterator[tuple[int, int, int, int]]:
    """(first read, count read, first kept, count kept) along one axis."""
    if length <= size:
        yield 0, length, 0, length
        return
    kept = 0
    while kept < length:
        start = min(max(kept - margin, 0), length - size)
        end = length if start + size == length else start + size - margin
        yield start, size, kept, end - kept
        kept = end


def cover(shape: tuple[int, int], *, size: int, margin: int = 0) -> Iterator[tuple[Window, Window]]:
    """Windows (read, keep) of which the kept parts partition the raster.

    Every window read is ``size`` x ``size`` and lies inside the raster: at the border it is shifted inwards, never
    padded. A side that is shorter than ``size`` is read whole.

    Args:
        shape: rows and columns of the raster.
        size: side of a window read, in pixels.
        margin: pixels at each inner side of a window that are read for context only.

    Raises:
        ValueError: the raster is empty, or the margins leave nothing to keep.
    """
    if min(shape) < 1:
        raise ValueError(f"a raster must have at least one pixel, this one is {shape[0]} x {shape[1]}")
    if margin < 0 or size <= 2 * margin:
        raise ValueError(f"twice the margin must be smaller than the window: 2 x {margin} against {size}")
    for row, height, keep_row, keep_height in _spans(shape[0], size, margin):
        for column, width, keep_column, keep_width in _spans(shape[1], size, margin):
            yield Window(row, column, height, width), Window(keep_row, keep_column, keep_height, keep_width)

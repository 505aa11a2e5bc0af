"""Whether a map shows where its windows met."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)

from geomed.pixels import IGNORE

if TYPE_CHECKING:
    from collections.abc import Sequence

_STRIP = 128


def seam_score(
    values: Float[np.ndarray, "h w"] | Float[np.ndarray, "k h w"] | UInt8[np.ndarray, "h w"],
    borders_rows: Sequence[int],
    borders_columns: Sequence[int],
) -> float:
    """How much more a map changes across borders of windows than across all other lines parallel to them.

    The ratio of the two changes less 1: 0 means no seam, 1 that a border shows twice the change of another line; below
    0 it is smoother there than elsewhere. A change is the mean absolute difference of neighbours or, of classes, the
    share of neighbours that differ. Rows and columns have a reference each, since land may be striped one way. Few
    borders on a small map make a noisy score: compare it with that of lines where no border is.

    Args:
        values: probabilities (float), NaN where nothing was observed, or classes (uint8), 255 where nothing was.
        borders_rows: the first row below each border: border r lies between the rows r - 1 and r.
        borders_columns: the first column to the right of each border.

    Returns:
        The excess; NaN if nothing was observed along the borders or along the other lines, infinite if only the borders
        show any change.

    Raises:
        ValueError: no borders, or one that does not lie inside; classes with an axis of their own.
    """
    found = Seams((values.shape[-2], values.shape[-1]), borders_rows, borders_columns)
    for row in range(0, values.shape[-2], _STRIP):
        found.add(values[..., row : row + _STRIP, :])
    return found.score()


class Seams:
    """The same of a map that is read strip by strip, from top to bottom."""

    def __init__(self, shape: tuple[int, int], borders_rows: Sequence[int], borders_columns: Sequence[int]) -> None:
        """Nothing seen yet.

        Args:
            shape: rows and columns of the whole map.
            borders_rows: as in ``seam_score``.
            borders_columns: likewise.

        Raises:
            ValueError: no borders, or one that does not lie inside.
        """
        self._borders = [
            _lines(borders, length, what)
            for borders, length, what in zip(
                (borders_rows, borders_columns), shape, ("borders_rows", "borders_columns"), strict=True
            )
        ]
        if not any(len(lines) for lines in self._borders):
            raise ValueError(
                "a seam score needs a border of windows, none was given; a map of one window has no seams to look for"
            )
        # of each line, by the number of the row or column behind it
        self._changes = [np.zeros(length) for length in shape]
        self._pairs = [np.zeros(length) for length in shape]
        self._seen = 0
        self._last: np.ndarray | None = None

    def add(self, values: Float[np.ndarray, "h w"] | Float[np.ndarray, "k h w"] | UInt8[np.ndarray, "h w"]) -> None:
        """See the next rows, with all their columns.

        Raises:
            ValueError: they do not fit the map, or are classes with an axis of their own.
        """
        height, width = (len(changes) for changes in self._changes)
        rows = values.shape[-2]
        if values.shape[-1] != width or self._seen + rows > height:
            raise ValueError(
                f"strips of this map have {width} columns and {height - self._seen} rows are left of it, this one has "
                f"{values.shape[-1]} and {rows}; give each row once, from the top"
            )
        if values.dtype == np.uint8 and values.ndim != 2:
            raise ValueError(f"classes are [H, W], these are {list(values.shape)}; give probabilities as floats")
        if not rows:
            return
        across = _changes(values, axis=-1)
        for kept, new in zip((self._changes[1], self._pairs[1]), across, strict=True):
            kept[1:] += new
        first = self._seen
        if self._last is not None:
            values, first = np.concatenate((self._last, values), axis=-2), first - 1
        down = _changes(values, axis=-2)
        for kept, new in zip((self._changes[0], self._pairs[0]), down, strict=True):
            kept[first + 1 : first + 1 + len(new)] = new
        self._seen += rows
        self._last = values[..., -1:, :].copy()

    def score(self) -> float:
        """The excess, as ``seam_score`` tells it.

        Raises:
            ValueError: some rows have not been seen.
        """
        height = len(self._changes[0])
        if self._seen != height:
            raise ValueError(f"the map has {height} rows and {self._seen} were seen; add the others before")
        found = expected = 0.0
        pairs = 0
        for lines, changes, counts in zip(self._borders, self._changes, self._pairs, strict=True):
            other = np.ones(len(changes), dtype=bool)
            other[lines] = False
            here, elsewhere = counts[lines].sum(), counts[other].sum()
            if not here:
                continue
            if not elsewhere:
                return math.nan
            pairs += here
            found += changes[lines].sum()
            expected += here * changes[other].sum() / elsewhere
        if not pairs:
            return math.nan
        if not expected:
            return math.inf if found else 0.0
        return float(found / expected - 1)


def _lines(borders: Sequence[int], length: int, what: str) -> np.ndarray:
    lines = np.unique(np.asarray(borders, dtype=np.int64))
    wrong = lines[(lines < 1) | (lines >= length)]
    if wrong.size:
        raise ValueError(
            f"{what}: a border lies between two lines of the map, from 1 to {length - 1}, not at {wrong[0]}; leave the "
            "sides of the map out"
        )
    return lines


def _changes(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the changes across each line and how many pairs of neighbours it has, both observed."""
    before, after = (np.moveaxis(values, axis, -1)[..., part] for part in (slice(None, -1), slice(1, None)))
    if values.dtype == np.uint8:
        both = (before != IGNORE) & (after != IGNORE)
        return ((before != after) & both).sum(0, dtype=np.float64), both.sum(0, dtype=np.float64)
    change = np.abs(after - before)
    if change.ndim == 3:
        change = change.mean(0)
    both = ~np.isnan(change)  # of one class or of all
    return np.where(both, change, 0).sum(0, dtype=np.float64), both.sum(0, dtype=np.float64)

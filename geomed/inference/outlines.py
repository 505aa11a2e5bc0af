"""Outlines of a map's areas of one class, found in one pass over its rows.

An area is a set of pixels of one class that are connected by their sides. Its corners are seen wherever two rows meet
and need nothing but the four pixels around them, so they are collected row by row. When the last pixel of an area has
passed, its corners are linked into rings: along a line of the grid they are, by turns, the beginnings and the ends of
the boundary's stretches. No stretch ends where a strip of rows does, so that there are no seams to be mended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

SKIP = 255
"""Value of pixels that belong to no area."""

_CORNERS = 1 << 20
"""Corners that are linked at once, and given out together; a larger area alone."""


@dataclass(frozen=True, kw_only=True)
class Outlines:
    """Areas with their boundaries: in order of their last rows, then of their first pixels.

    Boundaries are valid polygons (OGC Simple Features 1.2.1, section 6.1.11): rings are simple and meet in points only,
    exteriors come first, and there are no corners but where a boundary turns.
    """

    first: Integers
    """First pixel of each area, row * width + column."""

    value: NDArray[np.uint8]
    """Its class."""

    pixels: Integers
    """Number of its pixels."""

    weight: Integers
    """Sum of its pixels' known weights."""

    weighed: Integers
    """Number of its pixels with known weights."""

    corners: Integers
    """(row, column) of all rings' corners, the first one repeated at the end of its ring: exteriors go clockwise as the
    raster is seen, interiors counter-clockwise."""

    rings: Integers
    """Where each ring begins in ``corners``; the last number is the end of the last one."""

    areas: Integers
    """Where each area begins in ``rings``; likewise."""


@dataclass(frozen=True, kw_only=True)
class _Areas:
    """Areas and their corners, not yet in order."""

    first: Integers
    value: NDArray[np.uint8]
    pixels: Integers
    weight: Integers
    weighed: Integers
    corners: Integers  # see _corners
    owner: Integers  # index of the area of each corner

    def only(self, chosen: Integers) -> _Areas:
        """Some of them, in this order."""
        place = np.full(len(self.first), -1, np.int64)
        place[chosen] = np.arange(len(chosen))
        owner = place[self.owner]
        mine = owner >= 0
        return _Areas(
            first=self.first[chosen],
            value=self.value[chosen],
            pixels=self.pixels[chosen],
            weight=self.weight[chosen],
            weighed=self.weighed[chosen],
            corners=self.corners[mine],
            owner=owner[mine],
        )


class Tracer:
    """Takes a map from above, strip by strip, and gives every area as soon as it has been seen whole.

    It keeps one row of pixels, and the corners of the areas that this row cuts.
    """

    def __init__(self, width: int) -> None:
        """Begin a map of ``width`` columns."""
        none = np.zeros(0, np.int64)
        self._width = width
        self._line = 0  # number of rows that have passed
        self._row = np.full(width + 1, SKIP, np.uint8)  # the last of them, after a column outside of the map
        self._area = np.full(width + 1, -1, np.int64)  # index in _open of each of its pixels
        self._open = _Areas(
            first=none, value=none.astype(np.uint8), pixels=none, weight=none, weighed=none, corners=none, owner=none
        )

    def add(self, classes: NDArray[np.uint8], weights: NDArray[np.int32] | None = None) -> Iterator[Outlines]:
        """Areas that end before the last of the next rows.

        Args:
            classes: the rows [rows, columns], ``SKIP`` where no area is wanted.
            weights: a whole number for each pixel, negative where it is not known.
        """
        return self._pass(classes, weights)

    def finish(self) -> Iterator[Outlines]:
        """Areas that end with the map."""
        return self._pass(np.full((1, self._width), SKIP, np.uint8), None)

    def _pass(self, classes: NDArray[np.uint8], weights: NDArray[np.int32] | None) -> Iterator[Outlines]:
        stride, rows = self._width + 1, len(classes) + 1
        # a column outside of the map, on the left, is also what lies right of the row above; one pixel more ends it all
        flat = np.full(rows * stride + 1, SKIP, np.uint8)
        flat[:stride] = self._row
        flat[stride:-1].reshape(-1, stride)[:, 1:] = classes

        begins = np.concatenate(([True], flat[1:] != flat[:-1]))
        run = np.cumsum(begins, dtype=np.int32) - 1
        starts = np.flatnonzero(begins)
        kept = flat[starts] != SKIP
        seen = np.flatnonzero(kept & (starts < stride))  # runs of the last row that has passed
        entry = np.full(len(self._open.first), len(starts), np.int64)  # one of them for each open area
        np.minimum.at(entry, self._area[starts[seen]], seen)

        touch = flat[stride:-1] == flat[: -stride - 1]  # the pixel above is of the same class
        touch &= flat[stride:-1] != SKIP
        touch &= begins[stride:-1] | begins[: -stride - 1]  # once for each pair of runs
        touches = np.flatnonzero(touch)
        root = _connected(
            len(starts),
            np.concatenate((run[touches], entry[self._area[starts[seen]]])),
            np.concatenate((run[touches + stride], seen)),
        )
        heads = np.flatnonzero((root == np.arange(len(starts))) & kept)
        area = np.full(len(starts), -1, np.int64)
        area[heads] = np.arange(len(heads))
        area = area[root]

        now = self._measure(flat, starts, area, heads, weights)
        known = area[entry]
        first = now.first
        np.minimum.at(first, known, self._open.first)
        codes, pixel = _corners(flat, stride)
        now = _Areas(
            first=first,
            value=now.value,
            pixels=now.pixels + _sums(known, self._open.pixels, len(heads)),
            weight=now.weight + _sums(known, self._open.weight, len(heads)),
            weighed=now.weighed + _sums(known, self._open.weighed, len(heads)),
            corners=np.concatenate((self._open.corners, codes + self._line * stride * 8)),
            owner=np.concatenate((known[self._open.owner], area[run[pixel]])),
        )

        last = np.zeros(len(heads), np.int64)
        np.maximum.at(last, area[kept], starts[kept] // stride)
        going, ended = np.flatnonzero(last == rows - 1), np.flatnonzero(last < rows - 1)
        ended = ended[np.lexsort((first[ended], last[ended]))]
        self._line += len(classes)
        self._row = flat[-stride - 1 : -1].copy()
        bottom = area[run[-stride - 1 : -1]]
        place = np.full(len(heads) + 1, -1, np.int64)  # the last one: of no area
        place[going] = np.arange(len(going))
        self._area = place[bottom]
        self._open = now.only(going)
        return _outlines(now.only(ended), stride, self._line + 1)

    def _measure(
        self,
        flat: NDArray[np.uint8],
        starts: Integers,
        area: Integers,
        heads: Integers,
        weights: NDArray[np.int32] | None,
    ) -> _Areas:
        """What the new rows add to each area, but for the corners."""
        stride, count = self._width + 1, len(heads)
        row, column = np.divmod(starts[heads], stride)
        fresh = np.flatnonzero((area >= 0) & (starts >= stride))
        weight = weighed = np.zeros(count, np.int64)
        if weights is not None:
            padded = np.full(len(flat), -1, np.int32)
            padded[stride:-1].reshape(-1, stride)[:, 1:] = weights
            weighed = _sums(area[fresh], np.add.reduceat(padded >= 0, starts, dtype=np.int64)[fresh], count)
            np.maximum(padded, 0, out=padded)
            weight = _sums(area[fresh], np.add.reduceat(padded, starts, dtype=np.int64)[fresh], count)
        none = np.zeros(0, np.int64)
        return _Areas(
            first=(self._line + row - 1) * self._width + column - 1,
            value=flat[starts[heads]],
            pixels=_sums(area[fresh], np.diff(starts, append=len(flat))[fresh], count),
            weight=weight,
            weighed=weighed,
            corners=none,
            owner=none,
        )


def _sums(index: Integers, values: Integers, count: int) -> Integers:
    """Sums of whole numbers by index."""
    total = np.zeros(count, np.int64)
    np.add.at(total, index, values)
    return total


def _connected(count: int, left: Integers, right: Integers) -> Integers:
    """For each of ``count`` nodes the least one that edges (left, right) connect it with."""
    root = np.arange(count)
    while True:
        low, high = root[left], root[right]
        apart = np.flatnonzero(low != high)
        if not apart.size:
            return root
        left, right = left[apart], right[apart]
        low, high = low[apart], high[apart]
        np.minimum.at(root, np.maximum(low, high), np.minimum(low, high))
        while not np.array_equal(farther := root[root], root):
            root = farther


def _corners(flat: NDArray[np.uint8], stride: int) -> tuple[Integers, Integers]:
    """Corners of areas between the rows, and for each of them a pixel of its area.

    A corner is its place * 8 + 4 (its horizontal side lies to the right, not to the left) + 2 (its vertical one below,
    not above) + 1 (the boundary, with the area on its right, arrives by the vertical side and leaves by the other).
    """
    around = [flat[: -stride - 1], flat[1:-stride], flat[stride:-1], flat[stride + 1 :]]
    bent = (around[0] != around[1]) | (around[2] != around[3])
    bent &= (around[0] != around[2]) | (around[1] != around[3])
    place = np.flatnonzero(bent)
    around = [pixels[place] for pixels in around]
    codes, pixel = [], []
    for quadrant in range(4):  # the bits of its number: right, down
        right, down = quadrant & 1, quadrant >> 1
        own, beside, below, across = (around[quadrant ^ turn] for turn in range(4))
        outward = np.flatnonzero((own != SKIP) & (own != beside) & (own != below))
        inward = np.flatnonzero((own != beside) & (beside != SKIP) & (beside == below) & (below == across))
        sides, clockwise = right * 4 + down * 2, int(right == down)
        codes += [place[outward] * 8 + sides + clockwise, place[inward] * 8 + sides + 1 - clockwise]
        pixel += [place[outward] + right + down * stride, place[inward] + 1 - right + down * stride]
    return np.concatenate(codes), np.concatenate(pixel)


def _outlines(areas: _Areas, stride: int, lines: int) -> Iterator[Outlines]:
    """Link the corners of areas, a moderate number at once."""
    keys = np.sort(areas.owner * (8 * stride * lines) + areas.corners)
    ends = np.cumsum(np.bincount(areas.owner, minlength=len(areas.first)))
    start = begin = 0
    while start < len(ends):
        stop = max(int(np.searchsorted(ends, begin + _CORNERS, side="right")), start + 1)
        end = int(ends[stop - 1])
        corners, rings, owner = _link(keys[begin:end], stride, lines)
        yield Outlines(
            first=areas.first[start:stop],
            value=areas.value[start:stop],
            pixels=areas.pixels[start:stop],
            weight=areas.weight[start:stop],
            weighed=areas.weighed[start:stop],
            corners=corners,
            rings=rings,
            areas=np.searchsorted(owner, np.arange(start, stop + 1)),
        )
        start, begin = stop, end


def _link(keys: Integers, stride: int, lines: int) -> tuple[Integers, Integers, Integers]:
    """Sorted corners → closed rings [corners, (row, column)], where each begins, and the area of each."""
    # Two corners of an area in one place: it touches itself. There a ring goes on along the same pixel outside of the
    # area, not along the same one inside, so that it never meets itself: the two outside are not connected by the
    # sides of pixels outside, or the area would not be connected by those inside.
    twice = np.flatnonzero(keys[1:] >> 3 == keys[:-1] >> 3)
    keys = keys.copy()
    keys[twice] ^= 2
    keys[twice + 1] ^= 2
    owner, place = np.divmod(keys >> 3, stride * lines)
    row, column = np.divmod(place, stride)

    # along a line of the grid the corners are, by turns, the beginning and the end of a stretch of boundary
    here = np.arange(len(keys))
    along = np.argsort((((owner * stride + column) * lines + row) << 1) + (keys >> 1 & 1))
    vertical = np.empty_like(along)
    vertical[along[0::2]], vertical[along[1::2]] = along[1::2], along[0::2]
    following = np.where(keys & 1, here ^ 1, vertical)

    head, left = _cycles(following)
    heads = np.flatnonzero(head == here)
    ring = np.searchsorted(heads, head)
    sizes = np.bincount(ring, minlength=len(heads))
    rings = np.concatenate(([0], np.cumsum(sizes + 1)))
    corners = np.empty((rings[-1], 2), np.int64)
    position = rings[ring] + sizes[ring] - 1 - left
    corners[position, 0], corners[position, 1] = row, column
    corners[rings[1:] - 1] = corners[rings[:-1]]
    return corners, rings, owner[heads]


def _cycles(following: Integers) -> tuple[Integers, Integers]:
    """The least member of each one's cycle, and the number of steps that are left before it comes again.

    By doubling (Wyllie, The Complexity of Parallel Computations, 1979): as many rounds as the longest cycle has bits.
    """
    head, hop = np.arange(len(following)), following
    while not np.array_equal(lower := np.minimum(head, head[hop]), head):
        head, hop = lower, hop[hop]
    here = np.arange(len(following))
    final = head[following] == following
    left, hop = (~final).astype(np.int64), np.where(final, here, following)
    while (ahead := left[hop]).any():
        left += ahead
        hop = hop[hop]
    return head, left

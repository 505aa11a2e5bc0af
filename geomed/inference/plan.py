"""Which windows a raster is mapped with, how much each counts where, and how the work is cut into super-tiles.

All of it is a function of numbers. Windows stand evenly, every two neighbours overlapping by at least what was asked
for; none leaves the raster, none is padded. Their weights along rows and along columns multiply to the weight of a
pixel and add up to one at each, so that nothing is divided later and the outermost pixel counts as any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from geomed.windows import Window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How a raster is cut."""

    size: int = 256
    """Side of a window in pixels."""

    overlap: int = 64
    """Pixels that two neighbours share, at least."""

    margin: int | None = None
    """Pixels at the inner sides of a window that are context only; None: a quarter of the overlap. A model that sees no
    farther than this, and treats every place alike, maps as if it had seen the whole raster at once."""

    blend: Literal["cosine", "linear", "none"] = "cosine"
    """How one window fades into the next between their margins; none: cut in the middle."""

    rows: int = 1024
    """About the rows of a super-tile, the unit that is kept when a run is interrupted."""

    columns: int = 16384
    """About the most columns of a super-tile: memory grows with them."""

    def __post_init__(self) -> None:
        """Refuse what leaves nothing of a window.

        Raises:
            ValueError: it does.
        """
        if self.size < 1 or not 0 <= self.overlap < self.size:
            raise ValueError(
                f"windows must be at least a pixel and overlap by less than their side, not {self.size} and "
                f"{self.overlap}; change one"
            )
        if not 0 <= 2 * self.context <= self.overlap:
            raise ValueError(
                f"twice the margin must not be more than the overlap: 2 x {self.context} against {self.overlap}; "
                "change one"
            )
        if min(self.rows, self.columns) < 1:
            raise ValueError(f"super-tiles need rows and columns, not {self.rows} and {self.columns}; correct them")

    @property
    def context(self) -> int:
        """The margin, settled."""
        return self.overlap // 4 if self.margin is None else self.margin


@dataclass(frozen=True, kw_only=True, eq=False)
class Axis:
    """The windows along rows, or along columns."""

    length: int
    """Pixels of the raster."""

    size: int
    """Pixels of a window: the tiling's, or the raster's where that is shorter."""

    starts: tuple[int, ...]
    """First pixel of each window."""

    weights: NDArray[np.float32]
    """What each window [n] counts at each of its pixels [size]; they add up to 1 at every pixel of the raster."""

    @classmethod
    def of(cls, length: int, tiling: Tiling) -> Axis:
        """Windows over so many pixels.

        Raises:
            ValueError: there are none.
        """
        if length < 1:
            raise ValueError(f"a raster must have at least one pixel, this one has {length} along a side")
        size = min(tiling.size, length)
        steps = -(-(length - size) // (tiling.size - tiling.overlap))
        starts = tuple(number * (length - size) // steps for number in range(steps + 1)) if steps else (0,)
        return cls(length=length, size=size, starts=starts, weights=_weights(starts, size, length, tiling))

    @cached_property
    def counts(self) -> tuple[slice, ...]:
        """For each window its own pixels from the first to the last at which it counts."""
        where = [np.flatnonzero(each) for each in self.weights]
        return tuple(slice(int(each[0]), int(each[-1]) + 1) for each in where)

    @cached_property
    def begins(self) -> tuple[int, ...]:
        """For each window the first pixel at which it counts, and at last the length: what lies before needs it not."""
        return (*(start + each.start for start, each in zip(self.starts, self.counts, strict=True)), self.length)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """For each window the pixel after the last at which it counts."""
        return tuple(start + each.stop for start, each in zip(self.starts, self.counts, strict=True))

    def halo(self, window: int) -> int:
        """The first window that counts at a pixel where this one, but none after it, begins to."""
        return next(number for number in range(window + 1) if self.ends[number] > self.begins[window])

    def groups(self, about: int) -> list[tuple[int, int]]:
        """Windows [first, end) for runs of about so many pixels, as even as they can be."""
        count = len(self.starts)
        parts = max(1, min(count, round(self.length / about)))
        edges = [number * count // parts for number in range(parts + 1)]
        return list(pairwise(edges))


@dataclass(frozen=True, kw_only=True)
class SuperTile:
    """A part of the raster that is mapped and kept as one."""

    number: int
    """Its place in the plan."""

    keep: Window
    """Its pixels; those of all super-tiles partition the raster."""

    rows: tuple[int, int]
    """Windows [first, end) along rows that finish its pixels, in order."""

    halo: int
    """The first window along rows that counts in it; those before ``rows`` are computed again if not at hand."""

    columns: tuple[int, int]
    """Windows [first, end) along columns that count in it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """All windows and super-tiles of a raster."""

    tiling: Tiling
    """What was asked for."""

    rows: Axis
    """Windows along rows."""

    columns: Axis
    """Windows along columns."""

    tiles: tuple[SuperTile, ...]
    """From top to bottom, one band of columns after the other."""

    @classmethod
    def of(cls, shape: tuple[int, int], tiling: Tiling) -> Plan:
        """Plan a raster of so many rows and columns.

        Raises:
            ValueError: it has no pixel.
        """
        rows, columns = (Axis.of(length, tiling) for length in shape)
        tiles = list[SuperTile]()
        for left, right in columns.groups(tiling.columns):
            for top, bottom in rows.groups(tiling.rows):
                row, column = rows.begins[top], columns.begins[left]
                keep = Window(row, column, rows.begins[bottom] - row, columns.begins[right] - column)
                tiles.append(
                    SuperTile(
                        number=len(tiles),
                        keep=keep,
                        rows=(top, bottom),
                        halo=rows.halo(top),
                        columns=(columns.halo(left), right),
                    )
                )
        return cls(tiling=tiling, rows=rows, columns=columns, tiles=tuple(tiles))

    @property
    def window_size(self) -> tuple[int, int]:
        """Rows and columns of every window."""
        return self.rows.size, self.columns.size

    def windows(self, tile: SuperTile) -> int:
        """How many windows a super-tile needs if nothing of them is at hand."""
        return (tile.rows[1] - tile.halo) * (tile.columns[1] - tile.columns[0])


def _weights(starts: Sequence[int], size: int, length: int, tiling: Tiling) -> NDArray[np.float32]:
    """Weights of the windows along one axis."""
    raw = np.ones((len(starts), size))
    for number in range(1, len(starts)):
        shared = starts[number - 1] + size - starts[number]
        fade = np.zeros(shared)
        fade[shared // 2 :] = 1
        if tiling.blend != "none" and shared > 2 * tiling.context:
            ramp = shared - 2 * tiling.context
            share = (np.arange(ramp) + 0.5) / ramp
            fade[:] = 0
            fade[tiling.context : tiling.context + ramp] = (
                share if tiling.blend == "linear" else np.sin(share * np.pi / 2) ** 2
            )
            fade[tiling.context + ramp :] = 1
        raw[number, :shared] *= fade
        raw[number - 1, size - shared :] *= 1 - fade
    total = np.zeros(length)
    for start, each in zip(starts, raw, strict=True):
        total[start : start + size] += each
    scaled = [each / total[start : start + size] for start, each in zip(starts, raw, strict=True)]
    return np.stack(scaled).astype(np.float32)

"""Rasters read onto another grid: of another pixel size, or of another coordinate system."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from geomed.io.geotiff import GeoTiff
from geomed.windows import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Numbers: TypeAlias = NDArray[np.integer] | NDArray[np.floating]
    Warp: TypeAlias = Callable[[Numbers, Numbers], tuple[NDArray[np.float64], ...]]

_PIECE = 512  # side of the pieces in which a window is read: of a turned grid a long one would span half the raster
_STEPS = (64, 32, 16, 8, 4, 2, 1)
_CLOSE = 0.02  # error of an interpolated position that is allowed, in pixels of the raster
_SAMPLED = 16  # cells along each side in which that error is looked at
_JUMP = 16  # times as far as at the centre of the grid: there a map is cut, as at the date line
_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class Resampled:
    """A raster read onto another grid.

    Values are interpolated bilinearly (where a pixel of the grid is k times as large as one of the raster, as the mean
    of k x k points in it) and are float32; they are NaN outside of the raster and wherever one of the pixels that they
    would be made of is no observation. Codes are those of the pixel under the centre.

    What is read of a pixel does not depend on the window: positions are computed exactly at points that are fixed to
    the grid, and between them linearly with an error below a fiftieth of a pixel.
    """

    raster: GeoTiff
    """Where the numbers are."""

    grid: GeoBox
    """What they are read onto."""

    step: int
    """Pixels of the grid between two points whose position is computed exactly; 0: one affine transform does."""

    ratio: float
    """Pixels of the raster along one of the grid, about the grid's centre."""

    missing: float | None = None
    """Number that means "no observation" besides what the file declares."""

    outside: int | None = None
    """Code where the raster has no pixel; None: not codes but values, which are interpolated."""

    @classmethod
    def onto(
        cls, raster: GeoTiff, grid: GeoBox, *, missing: float | None = None, outside: int | None = None
    ) -> Resampled:
        """Look how the raster lies on a grid.

        Args:
            raster: where the numbers are.
            grid: what they are wanted on.
            missing: number that means "no observation" besides what the file declares.
            outside: code where the raster has no pixel, of codes; None: values.

        Raises:
            ValueError: only one of both has a coordinate system, or the grid has no place in the raster's.
        """
        step, ratio = _fit(raster, grid)
        return cls(raster=raster, grid=grid, step=step, ratio=ratio, missing=missing, outside=outside)

    @property
    def path(self) -> Path:
        """The file."""
        return self.raster.path

    @property
    def bands(self) -> tuple[str, ...]:
        """Description of each band."""
        return self.raster.bands

    @property
    def scales(self) -> tuple[float, ...]:
        """Factor of each band that the file declares."""
        return self.raster.scales

    @property
    def offsets(self) -> tuple[float, ...]:
        """Summand of each band that the file declares."""
        return self.raster.offsets

    @property
    def dtype(self) -> str:
        """Type of what is read."""
        return "float32" if self.outside is None else self.raster.dtype

    @property
    def nodata(self) -> None:
        """What is no observation is NaN, whatever number the file has for it."""

    def mask(self, window: Window, bands: Sequence[int]) -> None:
        """What is no observation is NaN, whatever mask the file has for it."""

    def read(
        self, window: Window, bands: Sequence[int] | None = None, *, out: NDArray[np.generic] | None = None
    ) -> NDArray[np.generic]:
        """Values or codes [bands, rows, columns], see ``GeoTiff.read``.

        Raises:
            ValueError: the file is truncated or damaged there.
        """
        wanted = tuple(bands) if bands is not None else tuple(range(1, len(self.bands) + 1))
        shape = (len(wanted), window.height, window.width)
        made: NDArray[np.generic] = np.empty(shape, dtype=self.dtype) if out is None else out
        for piece in _pieces(window) if self._turned() else (window,):
            rows, columns = piece.within(window).slices
            made[:, rows, columns] = (
                self._codes(piece, wanted) if self.outside is not None else self._mean(piece, wanted)
            )
        return made

    def _turned(self) -> bool:
        there = ~self.raster.grid.affine @ self.grid.affine
        return bool(self.step) or bool(there.b) or bool(there.d)

    def _codes(self, window: Window, bands: tuple[int, ...]) -> NDArray[np.generic]:
        y, x = self._positions(window, 1)
        known = self._inside(y, x)
        if not known.any():
            return np.full((len(bands), window.height, window.width), self.outside, dtype=self.raster.dtype)
        y, x = _settled(y, x, known)
        rows = np.floor(y + _ROUNDING).astype(np.int64).clip(0, self.raster.grid.shape.y - 1)
        columns = np.floor(x + _ROUNDING).astype(np.int64).clip(0, self.raster.grid.shape.x - 1)
        box = _box(rows, columns)
        found = self.raster.read(box, bands)[:, rows - box.row, columns - box.column]
        return np.where(known, found, np.asarray(self.outside, dtype=found.dtype))

    def _mean(self, window: Window, bands: tuple[int, ...]) -> NDArray[np.float32]:
        parts = max(round(self.ratio), 1)
        y, x = self._positions(window, parts)
        values = self._interpolated(y, x, bands, (window.height * parts, window.width * parts))
        if parts == 1:
            return values
        return values.reshape(len(bands), window.height, parts, window.width, parts).mean(axis=(2, 4))

    def _interpolated(
        self, y: NDArray[np.float64], x: NDArray[np.float64], bands: tuple[int, ...], shape: tuple[int, int]
    ) -> NDArray[np.float32]:
        """Bilinear values at positions, which are [n, 1] and [1, m] or both [n, m]."""
        known = self._inside(y, x)
        if not known.any():
            return np.full((len(bands), *shape), np.nan, dtype=np.float32)
        y, x = _settled(y, x, known)
        high, wide = self.raster.grid.shape.yx
        top, below, down = _neighbours(y, high)
        left, right, across = _neighbours(x, wide)
        box = _box(np.stack([top, below]), np.stack([left, right]))
        numbers, lost = self._known(box, bands)
        top, below, left, right = top - box.row, below - box.row, left - box.column, right - box.column
        upper = numbers[:, top, left] * (1 - across) + numbers[:, top, right] * across
        lower = numbers[:, below, left] * (1 - across) + numbers[:, below, right] * across
        values = np.asarray(upper * (1 - down) + lower * down, dtype=np.float32)
        if lost is not None:
            sideways, beneath = across > 0, down > 0
            gone = lost[:, top, left] | (lost[:, top, right] & sideways) | (lost[:, below, left] & beneath)
            values[gone | (lost[:, below, right] & sideways & beneath)] = np.nan
        if not known.all():
            values[:, ~known] = np.nan
        return values

    def _known(self, box: Window, bands: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
        """Numbers of a box, 0 where there is no observation, and where that is [C, H, W] (None: nowhere)."""
        numbers = self.raster.read(box, bands)
        lost = np.zeros(numbers.shape, dtype=np.bool_)
        if np.issubdtype(numbers.dtype, np.floating):
            lost |= ~np.isfinite(numbers)
        for number in {self.raster.nodata, self.missing} - {None}:
            lost |= numbers == number
        mask = self.raster.mask(box, bands)
        if mask is not None:
            lost |= ~mask
        if not lost.any():
            return numbers.astype(np.float32), None
        return np.where(lost, 0, numbers).astype(np.float32), lost

    def _inside(self, y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.bool_]:
        height, width = self.raster.grid.shape.yx
        with np.errstate(invalid="ignore"):
            rows, columns = (y > -_ROUNDING) & (y < height + _ROUNDING), (x > -_ROUNDING) & (x < width + _ROUNDING)
        return rows & columns

    def _positions(self, window: Window, parts: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where (row, column) in the raster the centres of the parts of a window's pixels lie."""
        y = window.row + (np.arange(window.height * parts) + 0.5)[:, None] / parts
        x = window.column + (np.arange(window.width * parts) + 0.5)[None, :] / parts
        if self.step == 0:
            there = ~self.raster.grid.affine @ self.grid.affine
            if there.b == there.d == 0:  # rows depend on rows only
                return there.e * y + there.f, there.a * x + there.c
            return there.d * x + there.e * y + there.f, there.a * x + there.b * y + there.c
        step = self.step
        rows = np.arange(window.row // step, (window.row + window.height - 1) // step + 2)
        columns = np.arange(window.column // step, (window.column + window.width - 1) // step + 2)
        points = np.stack(_warp(self.raster, self.grid)(rows[:, None] * step, columns[None, :] * step))
        down, across = y[:, 0] / step - rows[0], x[0] / step - columns[0]
        top, left = np.floor(down).astype(np.int64), np.floor(across).astype(np.int64)
        with np.errstate(invalid="ignore"):
            far = _JUMP * step * self.ratio
            torn = np.zeros(points.shape[1:], dtype=np.bool_)
            torn[:-1] |= (np.abs(np.diff(points, axis=1)) > far).any(axis=0)
            torn[:, :-1] |= (np.abs(np.diff(points, axis=2)) > far).any(axis=0)
            torn[:-1, :-1] |= torn[1:, :-1] | torn[:-1, 1:]
            weight = (down - top)[:, None]
            lines = points[:, top] * (1 - weight) + points[:, top + 1] * weight
            weight = across - left
            found = lines[:, :, left] * (1 - weight) + lines[:, :, left + 1] * weight
        found[:, torn[top[:, None], left[None, :]]] = np.nan
        return found[0], found[1]


def finer(raster: GeoTiff, grid: GeoBox, *, outside: int) -> Resampled:
    """Codes on a grid, or on one whose pixels divide its own where the raster's are smaller.

    Raises:
        ValueError: see ``Resampled.onto``.
    """
    parts = max(math.ceil(_fit(raster, grid)[1] - 0.1), 1)  # other systems turn and stretch a little
    shape = (grid.shape.y * parts, grid.shape.x * parts)
    return Resampled.onto(raster, GeoBox(shape, grid.affine @ Affine.scale(1 / parts), grid.crs), outside=outside)


Raster: TypeAlias = GeoTiff | Resampled
"""A file on its own grid or on another."""


def _warp(raster: GeoTiff, grid: GeoBox) -> Warp:
    """(row, column) on a grid → (row, column) in a raster, both counted from corners; not finite where it has none."""
    transform = None if grid.crs == raster.grid.crs else grid.crs.transformer_to_crs(raster.grid.crs)
    here, there = grid.affine, ~raster.grid.affine

    def warp(rows: Numbers, columns: Numbers) -> tuple[NDArray[np.float64], ...]:
        y, x = np.broadcast_arrays(here.d * columns + here.e * rows + here.f, here.a * columns + here.b * rows + here.c)
        if transform is not None:
            x, y = transform(x, y)
        with np.errstate(invalid="ignore"):
            return there.d * x + there.e * y + there.f, there.a * x + there.b * y + there.c

    return warp


def _fit(raster: GeoTiff, grid: GeoBox) -> tuple[int, float]:
    """(step, ratio) of ``Resampled``."""
    if (grid.crs is None) != (raster.grid.crs is None):
        raise ValueError(
            f"{raster.path}: to bring it to another grid both must have a coordinate system, its own is "
            f"{raster.grid.crs}, that of the other {grid.crs}; give the file its own (gdal_edit.py -a_srs)"
        )
    warp = _warp(raster, grid)
    height, width = grid.shape.yx
    y, x = np.array([height / 2, height / 2 + 1, height / 2]), np.array([width / 2, width / 2, width / 2 + 1])
    found = np.stack(warp(y, x))
    ratio = float(np.hypot(*(found[:, 1:] - found[:, :1])).max())
    if not math.isfinite(ratio) or ratio == 0:
        raise ValueError(
            f"{raster.path}: the centre of the grid to bring it to has no place in its coordinate system, "
            f"{raster.grid.crs}; leave the file out"
        )
    if grid.crs == raster.grid.crs:
        return 0, ratio
    return next(step for step in _STEPS if step == 1 or _off(warp, (height, width), step) < _CLOSE), ratio


def _off(warp: Warp, shape: tuple[int, int], step: int) -> float:
    """By how many pixels the middle of a cell is off if it is interpolated between its corners."""
    spread = [np.unique(np.linspace(0, max(size - 1, 0) // step, _SAMPLED).astype(np.int64)) * step for size in shape]
    rows, columns = spread[0][:, None], spread[1][None, :]
    corners = [np.stack(warp(rows + down, columns + across)) for down in (0, step) for across in (0, step)]
    middle = np.stack(warp(rows + step / 2, columns + step / 2))
    with np.errstate(invalid="ignore"):
        off = np.abs(sum(corners) / 4 - middle)
    known = np.isfinite(off)
    return float(off[known].max()) if known.any() else 0.0


def _neighbours(at: NDArray[np.float64], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """The pixels before and after a position, and how far it is from the centre of the first to that of the second."""
    first = np.floor(at - 0.5 + _ROUNDING)
    share = np.where(at - 0.5 - first < _ROUNDING, 0, at - 0.5 - first).astype(np.float32)
    whole = first.astype(np.int64)
    before, after = whole.clip(0, size - 1), (whole + 1).clip(0, size - 1)
    return before, np.where(share > 0, after, before), share


def _settled(
    y: NDArray[np.float64], x: NDArray[np.float64], known: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions that are not known put onto one that is, so that no more is read for them."""
    if y.shape != known.shape or known.all():
        return y, x
    return np.where(known, y, y[known][0]), np.where(known, x, x[known][0])


def _box(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Window:
    top, left = int(rows.min()), int(columns.min())
    return Window(top, left, int(rows.max()) - top + 1, int(columns.max()) - left + 1)


def _pieces(window: Window) -> Iterator[Window]:
    for row in range(window.row, window.row + window.height, _PIECE):
        for column in range(window.column, window.column + window.width, _PIECE):
            height = min(_PIECE, window.row + window.height - row)
            yield Window(row, column, height, min(_PIECE, window.column + window.width - column))

"""One area as a series of images on one grid, read window by window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from geomed.data.products import Product, find_products, year_of
from geomed.data.units import in_units, stored
from geomed.io.dates import date_of_day
from geomed.io.sampling import look_up
from geomed.windows import Window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from geomed.data.area import Area

_BEST_FIRST = (4, 5, 6, 7, 2, 11, 10, 3, 8, 9, 1, 0)
_RANKS = np.full(256, 11, dtype=np.int16)
_RANKS[list(_BEST_FIRST)] = (0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
_NEVER = 100
_SEEN = 256  # side of the square that the check of units looks at


@dataclass(frozen=True, kw_only=True)
class Series:
    """The images of an area.

    Several products of one day are merged pixel by pixel: the one that is clear, and among those the one of the best
    scene class (vegetation, soil and water before unclassified, dark, snow, cirrus, shadow, clouds, defects); the
    first by file name wins ties.
    """

    area: Area
    """What the user said."""

    grid: GeoBox
    """The grid that windows count in."""

    coarser: int
    """Image pixels along one pixel of the grid."""

    finer: int
    """Grid pixels along one pixel of the images; one of both is 1."""

    year: int
    """The year that the labels belong to."""

    days: tuple[int, ...]
    """Dates in days since 1970-01-01, ascending, each once."""

    products: tuple[tuple[Product, ...], ...]
    """The products of each date."""

    min_clear: float
    """A date is left out of a window of which a smaller share than this is clear."""

    @classmethod
    def open(cls, area: Area, bands: Sequence[str], resolution: float | None = None, *, min_clear: float) -> Series:
        """Find the files of an area and read their heads.

        Args:
            area: where they are.
            bands: the bands wanted, by name.
            resolution: pixel size of the grid in the unit of the coordinate system; None: that of the images. It
                must be a whole multiple of theirs or a whole part of it; pixels that do not fill one are left out.
            min_clear: share of a window that must be clear for a date to stay.

        Raises:
            ValueError: the files do not make a series, or the resolution does not fit them.
        """
        return cls.of(area, find_products(area, bands), resolution, min_clear=min_clear)

    @classmethod
    def of(cls, area: Area, found: Sequence[Product], resolution: float | None = None, *, min_clear: float) -> Series:
        """A series of products that are found already, by date and on one grid; see ``open``.

        Raises:
            ValueError: the resolution does not fit them.
        """
        image = found[0].raster.grid
        coarser, finer = (1, 1) if resolution is None else _ratio(image, resolution, area.name)
        rows, columns = image.shape.y * finer // coarser, image.shape.x * finer // coarser
        if min(rows, columns) < 1:
            raise ValueError(
                f"area {area.name}: {image.shape.yx} pixels hold no pixel of {resolution}; choose a smaller resolution"
            )
        days = tuple(sorted({product.day for product in found}))
        return cls(
            area=area,
            grid=GeoBox((rows, columns), image.affine @ Affine.scale(coarser / finer), image.crs),
            coarser=coarser,
            finer=finer,
            year=year_of(area, [date_of_day(product.day) for product in found]),
            days=days,
            products=tuple(tuple(p for p in found if p.day == day) for day in days),
            min_clear=min_clear,
        )

    @property
    def name(self) -> str:
        """The area's name."""
        return self.area.name

    @property
    def merged(self) -> int:
        """How many days have several products."""
        return sum(len(products) > 1 for products in self.products)

    @property
    def pointwise(self) -> bool:
        """Cloudy dates are left out window by window."""
        return False

    def read(self, window: Window) -> dict[str, NDArray[np.generic]]:
        """``values`` [T, C, H, W], ``days`` [T] and ``valid`` [T, H, W] of a window.

        A date of which less than ``min_clear`` of the window is clear is left out; where that leaves none, the one
        that is clearest by its masks stays, even if nothing of it is valid.

        Raises:
            ValueError: a file is truncated or damaged.
        """
        kept = []
        clearest, most = 0, -1.0
        for index, day in enumerate(self.days):
            clear = [self._clear(product, window) for product in self.products[index]]
            hope = float(np.logical_or.reduce([good for good, _ in clear]).mean())
            if hope > most:
                clearest, most = index, hope
            if hope < self.min_clear:
                continue
            values, valid = self._merge(index, window, clear)
            if valid.mean() >= self.min_clear:
                kept.append((values, day, valid))
        if not kept:
            clear = [self._clear(product, window) for product in self.products[clearest]]
            values, valid = self._merge(clearest, window, clear)
            kept.append((values, self.days[clearest], valid))
        days = np.array([day for _, day, _ in kept], dtype=np.int64)
        values, valid = np.stack([values for values, _, _ in kept]), np.stack([valid for _, _, valid in kept])
        return {"values": values, "days": days, "valid": valid}

    def observed(self, window: Window) -> None:
        """A label counts even where no date is clear."""

    def usable(self, window: Window) -> bool:
        """Whether any date is clear enough in a window."""
        for index in range(len(self.days)):
            clear = [self._clear(product, window) for product in self.products[index]]
            hope = np.logical_or.reduce([good for good, _ in clear])
            if hope.any() and hope.mean() >= self.min_clear:
                valid = self._merge(index, window, clear)[1]
                if valid.any() and valid.mean() >= self.min_clear:
                    return True
        return False

    def doubts_about_units(self) -> str | None:
        """A line about scale and offset that look wrong in a sample of the numbers, or None."""
        named = self.area.reflectance
        step = max(len(self.days) // 5, 1)
        seen = []
        height, width = min(self.grid.shape.y, _SEEN), min(self.grid.shape.x, _SEEN)
        window = Window((self.grid.shape.y - height) // 2, (self.grid.shape.x - width) // 2, height, width)
        for products in self.products[::step]:
            values, valid = self._image(products[0], window)
            seen.append(values[:, valid & self._clear(products[0], window)[0]].ravel())
        numbers = (np.concatenate(seen) - named.offset) / named.scale
        if not numbers.size:
            return None
        low, high = np.percentile(numbers, (1, 99))
        if named.offset == 0 and named.scale < 0.01 and low >= 1000:
            return (
                f"area {self.area.name}: 99 % of its clear numbers are above {low:.0f}, as in products of processing "
                "baseline 04.00 and later, which add 1000 to each number; if it is such, name reflectance.offset: -0.1"
            )
        if named.scale < 0.01 and high < 10:
            return (
                f"area {self.area.name}: 99 % of its clear numbers are below {high:.3g}, as if they were reflectance "
                f"already; if so, name reflectance.scale: 1 instead of {named.scale:g}"
            )
        return None

    def _merge(
        self, index: int, window: Window, clear: Sequence[tuple[NDArray[np.bool_], NDArray[np.int16]]]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The best pixels of a date, 0 where not valid."""
        images, valids, ranks = [], [], []
        for product, (good, rank) in zip(self.products[index], clear, strict=True):
            values, there = self._image(product, window)
            images.append(values)
            valids.append(good & there)
            ranks.append(rank + _NEVER * ~valids[-1])
        best = np.argmin(ranks, axis=0)
        values = np.take_along_axis(np.stack(images), best[None, None], axis=0)[0]
        valid = np.take_along_axis(np.stack(valids), best[None], axis=0)[0]
        return np.where(valid, values, np.float32(0)), valid

    def _clear(self, product: Product, window: Window) -> tuple[NDArray[np.bool_], NDArray[np.int16]]:
        """Where the masks let a product through, and how good its scene class is (0 is best).

        A pixel that is larger than those of the mask is clear only if all of it is.
        """
        shape = (window.height, window.width)
        clear, rank = np.ones(shape, dtype=np.bool_), np.zeros(shape, dtype=np.int16)
        if product.scl is not None:
            codes = look_up(product.scl.raster, product.scl.band, self.grid, window, outside=0)
            clear &= np.isin(codes, self.area.masks.clear).all(axis=0)
            whole = np.nan_to_num(codes, nan=0).clip(0, 255).astype(np.uint8)
            rank = _RANKS[whole].max(axis=0)
        if product.bad is not None:
            clear &= (look_up(product.bad.raster, product.bad.band, self.grid, window, outside=1) == 0).all(axis=0)
        return clear, rank

    def _image(self, product: Product, window: Window) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Reflectance on the grid and where every band of it was observed; a larger pixel is the mean of its parts."""
        unit = product.units or self.area.reflectance
        native, crop = self._native(window)
        numbers, there = stored(product.images, native, unit.nodata)
        values = in_units(numbers, there, scale=unit.scale, offset=unit.offset)
        if self.coarser > 1:
            parts = (window.height, self.coarser, window.width, self.coarser)
            values = values.reshape(-1, *parts).mean(axis=(2, 4), dtype=np.float64).astype(np.float32)
            return values, np.asarray(there.reshape(parts).all(axis=(1, 3)))
        if self.finer > 1:
            values = values.repeat(self.finer, axis=1).repeat(self.finer, axis=2)
            there = there.repeat(self.finer, axis=0).repeat(self.finer, axis=1)
        return values[:, crop.slices[0], crop.slices[1]], there[crop.slices]

    def _native(self, window: Window) -> tuple[Window, Window]:
        """The image pixels of a window, and the window within them, counted in pixels of the grid."""
        k, f = self.coarser, self.finer
        row, column = window.row * k // f, window.column * k // f
        end_row, end_column = -(-(window.row + window.height) * k // f), -(-(window.column + window.width) * k // f)
        native = Window(row, column, end_row - row, end_column - column)
        return native, Window(window.row - row * f, window.column - column * f, window.height, window.width)


def _ratio(image: GeoBox, resolution: float, name: str) -> tuple[int, int]:
    """(image pixels along a grid pixel, grid pixels along an image pixel)."""
    a = image.affine
    across, down = np.hypot(a.a, a.d), np.hypot(a.b, a.e)
    ratio = resolution / across if resolution > 0 else 0.0
    coarser, finer = max(round(ratio), 1), max(round(1 / ratio), 1) if ratio else 1
    if abs(across - down) > 1e-6 * across or not ratio or abs(ratio * finer / coarser - 1) > 1e-6:
        raise ValueError(
            f"area {name}: resolution {resolution} must be a whole multiple or a whole part of the images' pixel, "
            f"{across:g} x {down:g}; choose such a one or resample the images before (gdalwarp)"
        )
    return coarser, finer

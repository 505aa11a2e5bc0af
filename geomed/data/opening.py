"""Scenes to be mapped, opened: from a file, one file for each band, a folder of dates, or items of a catalogue."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from geomed.data.area import Area
from geomed.data.image import BAND, Image, ImageFiles, band_files
from geomed.data.mapping_settings import chosen, names_of
from geomed.data.products import Product, fitting, images_in, listed_products
from geomed.data.series import Series
from geomed.io.geotiff import GeoTiff

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from geomed.data.mapping_settings import Settings
    from geomed.data.units import Units
    from geomed.windows import Window


@dataclass(frozen=True, kw_only=True)
class MappedScene:
    """A scene, opened; what is read of it is what training would read."""

    name: str
    """It names the map."""

    images: ImageFiles | Series
    """Its files."""

    days: tuple[int, ...]
    """When it was observed, days since 1970-01-01, ascending; of an image that no catalogue dates it is empty."""

    notes: tuple[str, ...]
    """What was found out about it: its units and who says them, and what it lacks."""

    @property
    def grid(self) -> GeoBox:
        """Shape, transform and coordinate system, which may be None."""
        return self.images.grid

    @property
    def pointwise(self) -> bool:
        """Whether what is read of a pixel is the same in every window."""
        return self.images.pointwise

    def read(self, window: Window) -> dict[str, NDArray[np.generic]]:
        """``values``, ``valid`` and, of a series, ``days`` of a window.

        Raises:
            ValueError: a file is truncated or damaged.
        """
        return self.images.read(window)


class Place(ABC):
    """Where a scene lies."""

    @abstractmethod
    def open(self, name: str, settings: Settings) -> MappedScene:
        """Read the heads of the files.

        Raises:
            ValueError: they are not as they must be; the message names the file, the rule and the way out.
        """


@dataclass(frozen=True, kw_only=True)
class Nowhere(Place):
    """A scene that was named and is not there."""

    reason: str
    """What is missing."""

    def open(self, name: str, settings: Settings) -> MappedScene:
        """Tell what is missing.

        Raises:
            ValueError: always.
        """
        raise ValueError(self.reason)


@dataclass(frozen=True, kw_only=True)
class ImagePlace(Place):
    """A single image: one file of all bands, or, with ``{band}`` in its path, one for each."""

    path: str
    """The path."""

    def open(self, name: str, settings: Settings) -> MappedScene:
        """See ``Place.open``."""
        names = None if BAND in self.path else self._names(settings)
        image = Image(
            name=name, path=self.path, scale=1, offset=0, nodata=settings.unseen, band_names=names
        )  # a unit is chosen when the files are known
        files = band_files(image, settings.bands, reproject=settings.reproject)
        units, who = chosen(settings, files, f"image {name}")
        image = replace(image, scale=units.scale, offset=units.offset)
        return mapped(ImageFiles.of(image, files, settings.bands), units, who)

    def _names(self, settings: Settings) -> tuple[str, ...] | None:
        """Names of the bands where the file has none."""
        raster = GeoTiff.open(self.path)
        if len(raster.bands) == 1 < len(settings.bands):
            raise ValueError(
                f"{self.path}: it holds one band, and the model reads {len(settings.bands)} "
                f"({', '.join(settings.bands)}); if each band has its file, write {BAND} in the path where the band's "
                f"name stands{_example(raster.path, settings.bands)}"
            )
        return names_of(raster, settings)


@dataclass(frozen=True, kw_only=True)
class SeriesPlace(Place):
    """A series: a folder with a file for each date, or one file with all bands of all dates."""

    path: str
    """The path."""

    def open(self, name: str, settings: Settings) -> MappedScene:
        """See ``Place.open``."""
        area = area_of(name, self.path, settings)
        where = Path(self.path)
        if settings.band_names is not None:
            first = next(iter(images_in(where, settings.masks)), None) if where.is_dir() else where
            if first is not None:
                area = replace(area, band_names=names_of(GeoTiff.open(first), settings))
        found = []
        for product in listed_products(area, settings.bands):
            units, who = chosen(settings, product.images, f"series {name}")
            found.append((replace(product, units=units), who))
        return mapped_series(area, found, settings)


def area_of(name: str, path: str, settings: Settings) -> Area:
    """A series as the settings have it."""
    return Area(name=name, images=path, season=settings.season, masks=settings.masks, band_names=settings.band_names)


def mapped_series(area: Area, found: list[tuple[Product, str]], settings: Settings) -> MappedScene:
    """A series of products with who says their units."""
    fit = fitting(area, [product for product, _ in found], reproject=settings.reproject)
    series = Series.of(area, fit, min_clear=settings.min_clear)
    said = dict.fromkeys(_said(product.units, who) for product, who in found if product.units is not None)
    return MappedScene(name=area.name, images=series, days=series.days, notes=(*said, *_lacks(series)))


def mapped(image: ImageFiles, units: Units, who: str, days: tuple[int, ...] = ()) -> MappedScene:
    """An image with its units and who says them."""
    return MappedScene(name=image.name, images=image, days=days, notes=(_said(units, who), *_lacks(image)))


def _said(units: Units, who: str) -> str:
    return f"scale {_text(units.scale)} and offset {_text(units.offset)} {who}"


def _lacks(images: ImageFiles | Series) -> tuple[str, ...]:
    return () if images.grid.crs is not None else ("no coordinate system",)


def _text(value: float | tuple[float, ...]) -> str:
    return ", ".join(f"{one:g}" for one in value) if isinstance(value, tuple) else f"{value:g}"


def _example(path: Path, bands: tuple[str, ...]) -> str:
    held = max((band for band in bands if band in path.name), key=path.name.rfind, default=None)
    return "" if held is None else f", as {path.with_name(BAND.join(path.name.rsplit(held, 1)))}"

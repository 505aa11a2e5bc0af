"""Scenes that are items of a STAC catalogue."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from geomed.data.alignment import finest, onto
from geomed.data.headers import refuse_other_grid
from geomed.data.image import Image, ImageFiles
from geomed.data.mapping_settings import Settings, chosen, united
from geomed.data.opening import MappedScene, Place, area_of, mapped, mapped_series
from geomed.data.products import Layer, Product, in_season, season_text
from geomed.io.dates import date_of_day
from geomed.io.geotiff import GeoTiff

if TYPE_CHECKING:
    from geomed.data.units import Files, Units
    from geomed.io.resampled import Raster
    from geomed.io.stac_items import Item


@dataclass(frozen=True, kw_only=True)
class StacImage(Place):
    """A single image: an item of a catalogue."""

    item: Item
    """The item."""

    def open(self, name: str, settings: Settings) -> MappedScene:
        """See ``Place.open``."""
        files, told = item_files(self.item, settings)
        files = _on_finest(files, settings)
        units, who = chosen(settings, files, f"item {self.item.name}", told)
        image = Image(name=name, path=self.item.name, scale=units.scale, offset=units.offset, nodata=units.nodata)
        days = () if self.item.day is None else (self.item.day,)
        return mapped(ImageFiles.of(image, files, settings.bands), units, who, days)


@dataclass(frozen=True, kw_only=True)
class StacSeries(Place):
    """A series: the items of one tile."""

    items: tuple[Item, ...]
    """The items, by date."""

    def open(self, name: str, settings: Settings) -> MappedScene:
        """See ``Place.open``."""
        area = area_of(name, name, settings)
        found = []
        for item in self.items:
            if item.day is None:
                raise ValueError(f"item {item.name}: a series needs its date, it has no datetime; complete the item")
            if not in_season(area, date_of_day(item.day)):
                continue
            files, told = item_files(item, settings)
            files = _on_finest(files, settings)
            scl = None
            if settings.masks.scl is not None:
                scl = Layer(raster=GeoTiff.open(item.mask("SCL").href), band=1)
            units, who = chosen(settings, files, f"item {item.name}", told)
            found.append((Product(day=item.day, images=files, scl=scl, bad=None, units=units), who))
        if not found:
            raise ValueError(f"tile {name}: it has no item{season_text(area)}; choose another season")
        return mapped_series(area, found, settings)


def item_files(item: Item, settings: Settings) -> tuple[Files, Units | None]:
    """The files of an item with the bands wanted, and the units that the item names.

    Raises:
        ValueError: a band or a file is missing, or the item contradicts itself.
    """
    places = [item.find(band) for band in settings.bands]
    told = [asset.bands[number - 1] for asset, number in places]
    files: list[tuple[Raster, tuple[int, ...]]] = []
    opened: dict[str, GeoTiff] = {}
    for (asset, number), held in zip(places, told, strict=True):
        raster = opened.get(asset.href) or GeoTiff.open(asset.href)
        if number > len(raster.bands):
            raise ValueError(
                f"{asset.href}: item {item.name} names {len(asset.bands)} bands of it and it has {len(raster.bands)}; "
                "correct the item"
            )
        if raster.alpha is not None and len(asset.bands) >= raster.alpha:
            raster = replace(raster, alpha=None)  # the item has a name for it
        if raster.nodata is None and held.nodata is not None:
            raster = replace(raster, nodata=held.nodata)
        opened[asset.href] = raster
        if files and files[-1][0] == raster:
            files[-1] = (raster, (*files[-1][1], number))
        else:
            files.append((raster, (number,)))
    if any(held.scale is None and held.offset is None for held in told):
        return tuple(files), None
    pairs = [(1.0 if one.scale is None else one.scale, 0.0 if one.offset is None else one.offset) for one in told]
    if item.offset_applied and any(offset for _, offset in pairs) and settings.scale is None:
        raise ValueError(
            f"item {item.name}: it names an offset of {min(offset for _, offset in pairs):g} and says that it is "
            "applied already (earthsearch:boa_offset_applied), which catalogues get wrong; say what holds with --scale "
            "and --offset"
        )
    return tuple(files), united(pairs, None)


def _on_finest(files: Files, settings: Settings) -> Files:
    """Files of larger pixels brought bilinearly to the grid of those with the smallest.

    Raises:
        ValueError: they differ in more than the size of their pixels, and are not to be reprojected.
    """
    first = finest(files)
    for raster, _ in files:
        share = abs(raster.grid.affine.determinant / first.grid.affine.determinant)
        coarser = raster.grid.crs == first.grid.crs and share > 1 + 1e-6
        if not (coarser or settings.reproject):
            refuse_other_grid(
                raster, first, what="the bands of an item", way_out="bring them to one grid, or add --reproject"
            )
    return onto(files, first.grid, missing=settings.unseen)

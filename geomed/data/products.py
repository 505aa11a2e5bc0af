"""Which files make up a series: their dates, bands, masks, and whether they fit together."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from geomed.data.alignment import onto
from geomed.data.headers import (
    agency_name,
    band_texts,
    positions,
    refuse_other_grid,
    refuse_other_units,
    with_alpha_of_names,
)
from geomed.data.units import Files, Units  # noqa: TC001  (the fields' types)
from geomed.io.dates import date_in, date_table, days_since_epoch, iso_date
from geomed.io.geotiff import GeoTiff
from geomed.io.resampled import Raster, Resampled, finer

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterator, Sequence

    from geomed.data.area import Area, Masks

ENDINGS = {".tif", ".tiff", ".jp2", ".vrt"}
"""Names of images end so."""

_STEM = "{stem}"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One band of a raster."""

    raster: Raster
    """The file."""

    band: int
    """Its band, from 1."""


@dataclass(frozen=True, kw_only=True)
class Product:
    """One acquisition: the wanted bands and the masks that go with them."""

    day: int
    """Days since 1970-01-01."""

    images: Files
    """The files with the wanted bands, on one grid."""

    scl: Layer | None
    """Scene classification."""

    bad: Layer | None
    """Cloud mask: 0 is good."""

    units: Units | None = None
    """Its own units where products of one area differ in them; None: the area's."""

    @property
    def raster(self) -> Raster:
        """The first of its files, whose name is the product's."""
        return self.images[0][0]

    @property
    def masks(self) -> tuple[Layer, ...]:
        """The masks that there are."""
        return tuple(layer for layer in (self.scl, self.bad) if layer is not None)


def find_products(area: Area, bands: Sequence[str]) -> tuple[Product, ...]:
    """The products of an area, by date, those of one date by name.

    Only the heads of the files are read.

    Raises:
        ValueError: no files; a name without a date; a band or a mask that is missing; grids that differ within the
            area; a scale or offset in a file that contradicts the area's.
    """
    return fitting(area, listed_products(area, bands))


def listed_products(area: Area, bands: Sequence[str]) -> list[Product]:
    """The products of an area, whether they fit together or not.

    Raises:
        ValueError: no files; a name without a date; a band or a mask that is missing.
    """
    where = Path(area.images)
    if where.is_dir():
        found = list(_from_folder(area, where, bands))
    elif where.is_file():
        found = list(_from_stack(area, GeoTiff.open(where), bands))
    else:
        raise ValueError(f"area {area.name}: {where} is neither a folder nor a file; correct the path of its images")
    if not found:
        raise ValueError(
            f"area {area.name}: {where} holds no image{season_text(area)}; "
            f"it needs files ending in {' or '.join(sorted(ENDINGS))} within the season"
        )
    return found


def fitting(area: Area, found: Sequence[Product], *, reproject: bool = False) -> tuple[Product, ...]:
    """Products that make a series, by date, those of one date by name.

    Args:
        area: what the user says of them.
        found: at least one; the first gives the grid.
        reproject: bring images of other grids to that of the first, bilinearly, and masks of other coordinate systems
            by the pixel under the centre, instead of refusing them.

    Raises:
        ValueError: their grids differ, or a scale or offset in a file contradicts the area's.
    """
    first = found[0].raster
    for product in found:
        _check_units(product, area)
        if reproject:
            continue
        for raster, _ in product.images:
            refuse_other_grid(
                raster,
                first,
                what="the images of an area",
                way_out="bring them to one grid (gdalwarp) or make two areas of them",
            )
        for mask in product.masks:
            if mask.raster.grid.crs != first.grid.crs:
                raise ValueError(
                    f"{mask.raster.path}: a mask must have the coordinate system of its image, {first.grid.crs}, not "
                    f"{mask.raster.grid.crs}; reproject it (gdalwarp -r near)"
                )
    made = [_onto(product, first, area) for product in found] if reproject else found
    return tuple(sorted(made, key=lambda product: (product.day, product.raster.path.stem)))


def _onto(product: Product, first: Raster, area: Area) -> Product:
    """A product on the grid of the first."""
    nodata = (product.units or area.reflectance).nodata
    images = onto(product.images, first.grid, missing=nodata)
    scl, bad = (
        layer if layer is None or layer.raster.grid.crs == first.grid.crs else _mask_onto(layer, first, outside)
        for layer, outside in ((product.scl, 0), (product.bad, 1))
    )
    return replace(product, images=images, scl=scl, bad=bad)


def _mask_onto(layer: Layer, first: Raster, outside: int) -> Layer:
    """A mask of another coordinate system on the grid of the images, or a finer one with the same corner."""
    if isinstance(layer.raster, Resampled):
        return layer
    return Layer(raster=finer(layer.raster, first.grid, outside=outside), band=layer.band)


def year_of(area: Area, days: Sequence[dt.date]) -> int:
    """The year that the labels of an area belong to, see ``Area.year``."""
    if area.year is not None:
        return area.year
    if area.season is not None:
        return _season(area)[1].year
    return Counter(day.year for day in days).most_common(1)[0][0]


def is_mask(path: Path, masks: Masks) -> bool:
    """Whether a file is a mask beside an image, by its name."""
    return any(
        pattern is not None
        and _STEM in pattern
        and "/" not in pattern
        and fnmatch(path.name, pattern.replace(_STEM, "*"))
        for pattern in (masks.scl, masks.bad)
    )


def images_in(folder: Path, masks: Masks) -> list[Path]:
    """The images of a folder, masks left out, by name."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in ENDINGS and not is_mask(path, masks)]
    return sorted(found, key=lambda path: path.stem)


def _from_folder(area: Area, folder: Path, bands: Sequence[str]) -> Iterator[Product]:
    images = images_in(folder, area.masks)
    dates = _dates(images, folder / "dates.csv")
    for path in images:
        if not in_season(area, dates[path]):
            continue
        raster = GeoTiff.open(path)
        names = _band_names(area, raster)
        yield Product(
            day=days_since_epoch(dates[path]),
            images=((with_alpha_of_names(raster, names), positions(bands, names, raster)),),
            scl=_mask(area.masks.scl, raster, names),
            bad=_mask(area.masks.bad, raster, names),
        )


def _from_stack(area: Area, raster: GeoTiff, bands: Sequence[str]) -> Iterator[Product]:
    table = raster.path.with_suffix(".csv")
    layers = _stack_table(raster, table) if table.is_file() else _stack_descriptions(area, raster)
    dates = sorted({date for date, _ in layers})
    for number, date in enumerate(dates):
        if not in_season(area, date):
            continue
        names = [name if day == date else "" for day, name in layers]
        yield Product(
            day=days_since_epoch(date),
            images=((raster, positions(bands, names, raster, f" on {date}")),),
            scl=_stack_mask(area.masks.scl, raster, names, number, dates),
            bad=_stack_mask(area.masks.bad, raster, names, number, dates),
        )


def _dates(images: Sequence[Path], table: Path) -> dict[Path, dt.date]:
    if not table.is_file():
        return {path: date_in(path.stem, where=str(path)) for path in images}
    rows = {row["file"].strip(): iso_date(row["date"], where=str(table)) for row in date_table(table, ("file", "date"))}
    unknown = sorted(rows.keys() - {path.name for path in images})
    unlisted = [path.name for path in images if path.name not in rows]
    if unknown or unlisted:
        raise ValueError(
            f"{table}: it must list exactly the images beside it, but {(unknown or unlisted)[0]} is "
            f"{'no image there' if unknown else 'not listed'}; correct the table"
        )
    return {path: rows[path.name] for path in images}


def _stack_table(raster: GeoTiff, table: Path) -> list[tuple[dt.date, str]]:
    rows = date_table(table, ("index", "date", "band"))
    if [row["index"].strip() for row in rows] != [str(number) for number in range(1, len(raster.bands) + 1)]:
        raise ValueError(
            f"{table}: the column index must count the {len(raster.bands)} bands of {raster.path.name} from 1; "
            "correct it"
        )
    return [(iso_date(row["date"], where=str(table)), agency_name(row["band"])) for row in rows]


def _stack_descriptions(area: Area, raster: GeoTiff) -> list[tuple[dt.date, str]]:
    layers = []
    for number, text in enumerate(band_texts(raster, area.band_names, f"area {area.name}"), start=1):
        where = f"{raster.path}, band {number}"
        words = re.split(r"[ _]+", text.strip())
        if len(words) != 2:
            raise ValueError(
                f"{where}: a stack needs date and band in each description, as '2018-04-21 B04', not {text!r}; "
                f"describe the bands or list them in {raster.path.with_suffix('.csv').name} (index,date,band)"
            )
        dated = words if re.search(r"\d{4}", words[0]) else words[::-1]
        layers.append((date_in(dated[0], where=where), agency_name(dated[1])))
    return layers


def _band_names(area: Area, raster: GeoTiff) -> list[str]:
    return [agency_name(name) for name in band_texts(raster, area.band_names, f"area {area.name}")]


def _mask(pattern: str | None, raster: GeoTiff, names: Sequence[str]) -> Layer | None:
    if pattern is None:
        return None
    if _STEM not in pattern:
        return Layer(raster=raster, band=positions([pattern], names, raster)[0])
    return Layer(raster=_beside(pattern, raster), band=1)


def _stack_mask(
    pattern: str | None, raster: GeoTiff, names: Sequence[str], number: int, dates: Sequence[dt.date]
) -> Layer | None:
    """The mask of the date of this number: by its description, or by its place among as many bands as dates."""
    if pattern is None or _STEM not in pattern:
        return _mask(pattern, raster, names)
    mask = _beside(pattern, raster)
    if all(mask.bands):
        listed = [date_in(text, where=f"{mask.path}, band {band}") for band, text in enumerate(mask.bands, start=1)]
        if dates[number] not in listed:
            raise ValueError(f"{mask.path}: there is no band for {dates[number]}; a mask needs every date of its stack")
        return Layer(raster=mask, band=listed.index(dates[number]) + 1)
    if len(mask.bands) != len(dates):
        raise ValueError(
            f"{mask.path}: a mask needs a band for each of the {len(dates)} dates, it has {len(mask.bands)}; "
            "describe its bands by date or complete them"
        )
    return Layer(raster=mask, band=number + 1)


def _beside(pattern: str, raster: GeoTiff) -> GeoTiff:
    path = raster.path.parent / pattern.replace(_STEM, raster.path.stem)
    if not path.is_file():
        raise ValueError(
            f"{raster.path}: its mask {path.name} is missing; add it, name another pattern in masks, "
            "or write masks.scl: null if there is none"
        )
    return GeoTiff.open(path)


def _check_units(product: Product, area: Area) -> None:
    """What a file declares must be what the area says."""
    named = product.units or area.reflectance
    found = [(raster, band) for raster, bands in product.images for band in bands]
    scales, offsets = (np.broadcast_to(value, len(found)).tolist() for value in (named.scale, named.offset))
    for (raster, band), scale, offset in zip(found, scales, offsets, strict=True):
        refuse_other_units(raster, band, scale=scale, offset=offset, owner=f"reflectance of area {area.name}")


def _season(area: Area) -> tuple[dt.date, dt.date]:
    first, last = area.season or ("0001-01-01", "9999-12-31")
    where = f"season of area {area.name}"
    start, end = iso_date(first, where=where), iso_date(last, where=where)
    if start > end:
        raise ValueError(f"{where}: it must not end before it starts, {first} to {last}; swap them")
    return start, end


def in_season(area: Area, day: dt.date) -> bool:
    """Whether a day is to be used, see ``Area.season``."""
    start, end = _season(area)
    return start <= day <= end


def season_text(area: Area) -> str:
    """The season in a message."""
    return "" if area.season is None else f" from {area.season[0]} to {area.season[1]}"

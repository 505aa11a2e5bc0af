"""One date of one place: what a user says about its files, and how they are read window by window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from geomed.data.alignment import finest, onto
from geomed.data.area import Labels  # noqa: TC001  (jsonargparse resolves the fields' types)
from geomed.data.headers import (
    agency_name,
    band_texts,
    positions,
    refuse_other_grid,
    refuse_other_units,
    with_alpha_of_names,
)
from geomed.data.units import Files, in_units, stored
from geomed.io.geotiff import GeoTiff

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from geomed.windows import Window

BAND = "{band}"
"""Stands in a path for the name of a band."""
UNDATED = 0
"""Year of an image that names none."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """One date of one place, of any sensor.

    Stored numbers become values by ``scale * number + offset``. Both are always said, never guessed: whether a file
    holds reflectance, digital numbers or 8-bit grey values stands in no file.
    """

    name: str
    """Unique; it names the map."""

    path: str
    """One GeoTIFF (or VRT, JPEG 2000) with all bands, or, with ``{band}`` in place of the band's name, one file for
    each band; a relative path counts from where the program is started."""

    scale: float | tuple[float, ...]
    """Value of one step of the stored numbers, of all bands or of each: 0.0001 for Sentinel-2's reflectance, 1/255 for
    8-bit colours from 0 to 1."""

    offset: float | tuple[float, ...]
    """Value of the number 0, likewise: -0.1 for Sentinel-2's processing baseline 04.00 and later."""

    nodata: float | None = None
    """Number that means "no observation" besides what the files declare."""

    labels: Labels | None = None
    """The truth; None: this image can only be predicted."""

    band_names: tuple[str, ...] | None = None
    """Names of the bands in the order of the file, only for a file that does not describe its bands itself."""

    year: int | None = None
    """The year of the labels, for ``ByYear`` and for images of one place at two dates: images that share ground may
    stand in two parts only if their years differ."""


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """The files of an image, opened."""

    image: Image
    """What the user said."""

    grid: GeoBox
    """The grid of all its files."""

    parts: Files
    """Files with the bands wanted of each, from 1; in order they give the wanted bands."""

    @classmethod
    def open(cls, image: Image, bands: Sequence[str]) -> ImageFiles:
        """Read the heads of the files.

        Raises:
            ValueError: a file or a band is missing, the grids of the files differ, or scale and offset do not fit the
                bands or contradict a file.
        """
        return cls.of(image, band_files(image, bands), bands)

    @classmethod
    def of(cls, image: Image, parts: Files, bands: Sequence[str]) -> ImageFiles:
        """An image of files that are found already.

        Raises:
            ValueError: scale and offset do not fit the bands or contradict a file.
        """
        for what, value in (("scale", image.scale), ("offset", image.offset)):
            if isinstance(value, tuple) and len(value) != len(bands):
                raise ValueError(
                    f"image {image.name}: {what} must be one number or one for each of the {len(bands)} bands "
                    f"({', '.join(bands)}), it has {len(value)}; correct it"
                )
        scales, offsets = (np.broadcast_to(value, len(bands)).tolist() for value in (image.scale, image.offset))
        found = [(raster, band) for raster, wanted in parts for band in wanted]
        for (raster, band), scale, offset in zip(found, scales, offsets, strict=True):
            refuse_other_units(raster, band, scale=scale, offset=offset, owner=f"image {image.name}")
        return cls(image=image, grid=parts[0][0].grid, parts=parts)

    @property
    def name(self) -> str:
        """The image's name."""
        return self.image.name

    @property
    def year(self) -> int:
        """The image's year."""
        return UNDATED if self.image.year is None else self.image.year

    @property
    def pointwise(self) -> bool:
        """What is read of a pixel is the same in every window."""
        return True

    def read(self, window: Window) -> dict[str, NDArray[np.generic]]:
        """``values`` [C, H, W] and ``valid`` [H, W] of a window.

        Raises:
            ValueError: a file is truncated or damaged.
        """
        numbers, there = self._numbers(window)
        values = in_units(numbers, there, scale=self.image.scale, offset=self.image.offset)
        return {"values": values, "valid": there}

    def usable(self, window: Window) -> bool:
        """A window with a label that counts can be learned from."""
        return True

    def observed(self, window: Window) -> NDArray[np.bool_]:
        """Where every band was observed: no label counts elsewhere."""
        return self._numbers(window)[1]

    def _numbers(self, window: Window) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Numbers as stored and where all of them are observations."""
        return stored(self.parts, window, self.image.nodata)


def band_files(image: Image, bands: Sequence[str], *, reproject: bool = False) -> Files:
    """The files of an image, on one grid.

    Args:
        image: where they are.
        bands: the bands wanted, by name.
        reproject: bring files of other grids to that of the finest instead of refusing them, see ``finest``.

    Raises:
        ValueError: a file or a band is missing, or the grids of the files differ.
    """
    return _each_band(image, bands, reproject=reproject) if BAND in image.path else _one_file(image, bands)


def _one_file(image: Image, bands: Sequence[str]) -> Files:
    """The file, its bands found by their names as written or, where that fails, by the agency's."""
    raster = GeoTiff.open(image.path)
    names = band_texts(raster, image.band_names, f"image {image.name}")
    raster = with_alpha_of_names(raster, names)
    if not set(bands) <= set(names):
        bands, names = [agency_name(band) for band in bands], tuple(agency_name(name) for name in names)
    return ((raster, positions(bands, names, raster)),)


def _each_band(image: Image, bands: Sequence[str], *, reproject: bool) -> Files:
    """One file for each band."""
    if image.band_names is not None:
        raise ValueError(
            f"image {image.name}: band_names are for one file with all bands, its path {image.path} names the bands; "
            "leave band_names out"
        )
    rasters = []
    for band in bands:
        raster = GeoTiff.open(image.path.replace(BAND, band))
        if len(raster.bands) != 1:
            raise ValueError(
                f"{raster.path}: a file for one band must hold one, it holds {len(raster.bands)}; give a path without "
                f"{BAND} for a file of all bands"
            )
        rasters.append(raster)
    files = tuple((raster, (1,)) for raster in rasters)
    if reproject:
        return onto(files, finest(files).grid, missing=image.nodata)
    for raster in rasters[1:]:
        refuse_other_grid(
            raster, rasters[0], what="the bands of an image", way_out="bring them to one grid (gdalwarp) before"
        )
    return files

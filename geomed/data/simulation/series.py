"""Farmland under a sky, written as the files that a real Sentinel-2 series has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import geopandas
import numpy as np
import rasterio
from rasterio.features import rasterize
from rasterio.transform import Affine

from geomed.bands import SENTINEL2
from geomed.data.simulation.farmland import COVERS, generator
from geomed.data.simulation.phenology import CROPS
from geomed.data.simulation.sky import PIXEL, Sky, overpasses, rough_field, sky_above

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from geomed.data.simulation.farmland import Farmland

SUBPIXELS = 3
"""Samples along each side of a pixel: mixed pixels at borders are their mean."""

SCALE = 10_000
"""Digital number of reflectance 1; 0 is nodata, as in Level-2A products before processing baseline 04.00."""

OUTSIDE = 255
"""Value of the truth raster where no labelled field is."""

NDVI_BANDS = ("B04", "B08")
"""What the scene classification looks at to tell plants from soil."""


def write_series(
    land: Farmland,
    folder: Path,
    *,
    bands: Sequence[str],
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write one season of one area into an existing, empty folder.

    ``images/S2_YYYYMMDD.tif`` (uint16, reflectance * 10 000, bands by name) with its
    ``images/S2_YYYYMMDD_SCL.tif``, ``fields.gpkg`` (polygons with ``id`` and ``crop``) and ``truth.tif`` (class index
    of every pixel whose centre lies in a labelled field, else 255).

    Args:
        land: what grows.
        folder: where to.
        bands: Level-2A bands, in the order of the files.
        seed: seed of clouds and noise.
        progress: called with (images written, images in all) after each image.

    Returns:
        How many images were written.

    Raises:
        ValueError: the season is so cloudy that the archive holds no image.
    """
    (folder / "images").mkdir()
    ground = _Ground(land, seed)
    _write_labels(land, folder)
    rng = generator(seed, land.region, land.year.year, 1)
    orbit = int(generator(seed, land.region, 0).integers(5))
    passes = overpasses(rng, year=land.year.year, orbit=orbit, cloudiness=land.year.cloudiness)
    if not passes:
        raise ValueError(
            f"{land.region.name}-{land.year.year}: no pass is clear enough for an image; lower the year's cloudiness, "
            f"now {land.year.cloudiness}, or take another seed"
        )
    seen = (*bands, *(band for band in NDVI_BANDS if band not in bands))
    for index, overpass in enumerate(passes):
        chance = generator(seed, land.region, land.year.year, 2, index)
        bare = ground.seen(overpass.date.timetuple().tm_yday, seen)
        sky = sky_above(chance, overpass, size=land.size, latitude=land.region.latitude)
        red, infrared = (bare[..., seen.index(band)] for band in NDVI_BANDS)
        classes = sky.classify((infrared - red) / (infrared + red))
        numbers = _measure(chance, sky, bare[..., : len(bands)], bands)
        stem = f"S2_{overpass.date:%Y%m%d}"
        _write(folder / "images" / f"{stem}.tif", np.moveaxis(numbers, -1, 0), land, bands)
        _write(folder / "images" / f"{stem}_SCL.tif", classes[None], land, ("SCL",))
        if progress is not None:
            progress(index + 1, len(passes))
    return len(passes)


class _Ground:
    """Paints the reflectance of parcels onto pixels."""

    def __init__(self, land: Farmland, seed: int) -> None:
        side = land.size * SUBPIXELS
        verge, track = len(land.kind) - 2, len(land.kind) - 1
        shapes = [(polygon, track) for polygon in land.parcels.tracks]
        shapes += [(polygon, index) for index, polygon in enumerate(land.parcels.fields)]
        fine = rasterize(shapes, (side, side), fill=verge, transform=_transform(land, PIXEL / SUBPIXELS), dtype="int32")
        cells = fine.reshape(land.size, SUBPIXELS, land.size, SUBPIXELS).swapaxes(1, 2).reshape(-1, SUBPIXELS**2)
        self._land = land
        self._pure = cells[:, 0]
        self._mixed = np.flatnonzero((cells != cells[:, :1]).any(axis=1))
        self._parts = cells[self._mixed]
        rough = rough_field(generator(seed, land.region, 1), land.size, exponent=3.0)
        self._texture = (0.13 * np.clip(rough, -2.5, 2.5)).reshape(-1, 1)

    def seen(self, day: int, bands: Sequence[str]) -> NDArray[np.float64]:
        """Reflectance [rows, columns, bands] without any sky. Where growth is better, the soil is darker (humus)."""
        land = self._land
        plain = land.reflectance(day, bands)
        rich = land.reflectance(day, bands, vigour=1.1, brightness=0.96)
        poor = land.reflectance(day, bands, vigour=0.9, brightness=1.04)
        table = np.concatenate([plain, (rich - poor) / 0.2], axis=1)
        pixels = table[self._pure]
        mixed = np.zeros((len(self._mixed), table.shape[1]))
        for part in self._parts.T:
            mixed += table[part]
        pixels[self._mixed] = mixed / SUBPIXELS**2
        count = len(bands)
        reflectance = pixels[:, :count] + self._texture * pixels[:, count:]
        return np.asarray(np.clip(reflectance, 0.001, 1.0).reshape(land.size, land.size, count))


def _measure(
    rng: np.random.Generator, sky: Sky, ground: NDArray[np.float64], bands: Sequence[str]
) -> NDArray[np.uint16]:
    """Digital numbers: sky, what the atmospheric correction leaves, noise, and the resolution of each band."""
    wavelength = np.array([SENTINEL2[band].wavelength for band in bands])
    haze = rng.normal(0.0, 0.004) * (490.0 / wavelength) ** 1.2
    gain = 1.0 + rng.normal(0.0, 0.015)
    scene = gain * sky.over(ground, bands) + haze
    scene += np.hypot(0.002, 0.012 * scene) * rng.standard_normal(scene.shape)
    for index, band in enumerate(bands):
        scene[..., index] = _coarsened(scene[..., index], round(SENTINEL2[band].metres / PIXEL))
    numbers = np.clip(np.rint(scene * SCALE), 1, SCALE)
    numbers[sky.missing] = 0
    return numbers.astype(np.uint16)


def _coarsened(plane: NDArray[np.float64], factor: int) -> NDArray[np.float64]:
    """The plane as a sensor with ``factor`` times larger pixels delivers it, on the fine grid."""
    if factor == 1:
        return plane
    rows, columns = plane.shape
    padded = np.pad(plane, ((0, -rows % factor), (0, -columns % factor)), mode="edge")
    cells = padded.reshape(padded.shape[0] // factor, factor, padded.shape[1] // factor, factor).mean(axis=(1, 3))
    return np.asarray(cells.repeat(factor, axis=0).repeat(factor, axis=1)[:rows, :columns])


def _transform(land: Farmland, metres: float) -> Affine:
    west, north = land.region.corner
    return Affine(metres, 0.0, west, 0.0, -metres, north)


def _write_labels(land: Farmland, folder: Path) -> None:
    labelled = [index for index in range(len(land.parcels.fields)) if land.kind[index] < len(CROPS)]
    polygons = [land.parcels.fields[index] for index in labelled]
    crops = [COVERS[land.kind[index]].name for index in labelled]
    frame = geopandas.GeoDataFrame({"id": labelled, "crop": crops}, geometry=polygons, crs=land.region.epsg)
    frame.to_file(folder / "fields.gpkg", layer="fields", driver="GPKG", engine="pyogrio")
    shapes = [(land.parcels.fields[index], int(land.kind[index])) for index in labelled]
    shape, transform = (land.size, land.size), _transform(land, PIXEL)
    truth = rasterize(shapes, shape, fill=OUTSIDE, transform=transform, dtype="uint8")
    _write(folder / "truth.tif", truth[None], land, ("class",), nodata=OUTSIDE)


def _write(
    path: Path, planes: NDArray[np.uint8] | NDArray[np.uint16], land: Farmland, names: Sequence[str], nodata: int = 0
) -> None:
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=land.size,
        height=land.size,
        count=len(planes),
        dtype=planes.dtype,
        crs=f"EPSG:{land.region.epsg}",
        transform=_transform(land, PIXEL),
        nodata=nodata,
        tiled=True,
        blockxsize=64,  # a training window is small: a larger tile would be unpacked for a corner of it
        blockysize=64,
        compress="deflate",
        predictor=2,
        zlevel=1,
    ) as file:
        file.write(planes)
        file.descriptions = tuple(names)

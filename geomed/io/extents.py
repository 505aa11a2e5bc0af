"""How much of a map each class covers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from geomed.io.geotiff import GeoTiff
from geomed.windows import Window

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class Extents:
    """Sizes of the classes of a map, in index order."""

    pixels: tuple[int, ...]
    """Number of pixels of each class."""

    areas: tuple[float, ...] | None
    """Area of each class in m²: on the ellipsoid where coordinates are geographic, on the plane where they are
    projected. None without a coordinate system, and on a geographic grid that is turned against the meridians."""


def extents(map_path: Path, classes: int) -> Extents:
    """Count the pixels of a map and sum their areas, reading it once, strip by strip.

    Raises:
        ValueError: it cannot be read, or is not of whole numbers from 0 to 255.
    """
    source = GeoTiff.open(map_path)
    if source.dtype != "uint8":
        raise ValueError(f"{map_path}: a map of classes is uint8, not {source.dtype}; convert it")
    height, width = source.grid.shape.yx
    counts = np.zeros((height, classes), np.int64)
    for row in range(0, height, _ROWS):
        window = Window(row, 0, min(_ROWS, height - row), width)
        values = source.read(window, [1])[0].astype(np.int64) + 256 * np.arange(window.height)[:, None]
        table = np.bincount(values.ravel(), minlength=256 * window.height).reshape(-1, 256)
        counts[row : row + window.height] = table[:, :classes]
    areas = _pixel_areas(source.grid)
    return Extents(
        pixels=tuple(counts.sum(0).tolist()),
        areas=None if areas is None else tuple((areas @ counts).tolist()),
    )


def _pixel_areas(grid: GeoBox) -> NDArray[np.float64] | None:
    """Area of a pixel of each row in m²."""
    affine, height = grid.affine, grid.shape.y
    if grid.crs is None or (grid.crs.geographic and (affine.b or affine.d)):
        return None
    crs = grid.crs.proj
    factor = crs.axis_info[0].unit_conversion_factor
    if not grid.crs.geographic:
        return np.full(height, abs(affine.determinant) * factor**2)
    ellipsoid = crs.ellipsoid
    edges = np.sin((affine.f + affine.e * np.arange(height + 1)) * factor)
    # Snyder, Map Projections: A Working Manual, USGS Professional Paper 1395 (1987), eq. 3-12
    e = math.sqrt(1 - (ellipsoid.semi_minor_metre / ellipsoid.semi_major_metre) ** 2)
    q = 2 * edges if e == 0 else (1 - e**2) * (edges / (1 - (e * edges) ** 2) + np.arctanh(e * edges) / e)
    areas: NDArray[np.float64] = np.abs(np.diff(q)) * abs(affine.a * factor) * ellipsoid.semi_major_metre**2 / 2
    return areas

"""Files of one image or one series brought onto one grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geomed.data.headers import same_grid
from geomed.io.resampled import Raster, Resampled

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

    from geomed.data.units import Files


def finest(files: Files) -> Raster:
    """The file of the smallest pixels, the first of several, or of files of several coordinate systems."""
    rasters = [raster for raster, _ in files]
    if any(raster.grid.crs != rasters[0].grid.crs for raster in rasters):
        return rasters[0]  # degrees and metres cannot be compared
    return min(rasters, key=lambda raster: round(abs(raster.grid.affine.determinant), 9))


def onto(files: Files, grid: GeoBox, *, missing: float | None) -> Files:
    """Files, those of other grids interpolated onto this one.

    Args:
        files: where the bands are.
        grid: what they are wanted on.
        missing: number that means "no observation" besides what the files declare.

    Raises:
        ValueError: one has no coordinate system, or the grid has no place in its.
    """
    return tuple(
        (
            raster
            if same_grid(raster.grid, grid)
            else Resampled.onto(raster.raster if isinstance(raster, Resampled) else raster, grid, missing=missing),
            bands,
        )
        for raster, bands in files
    )

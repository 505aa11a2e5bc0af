"""The ground that a grid covers, in longitude and latitude, as GeoJSON has it."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import shapely
from pyproj import Transformer
from shapely.geometry.polygon import orient

from geomed.io.footprint import corners
from geomed.windows import Window

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

_STEPS = 20
"""Points on each side of a grid: its straight sides are curves on the ground."""

_DIGITS = 7
"""Decimals of a degree: a centimetre."""


def ground(grid: GeoBox) -> tuple[shapely.Geometry, tuple[float, float, float, float]] | None:
    """Footprint of a grid in WGS 84, and its bounding box (west, south, east, north).

    By RFC 7946: exteriors run counter-clockwise; what crosses the antimeridian is cut there (section 3.1.9), and west
    is then greater than east (5.2). A grid around a pole covers all longitudes (5.3). None without a coordinate system.

    Raises:
        ValueError: a corner lies where the coordinate system has no ground.
    """
    if grid.crs is None:
        return None
    ring = np.array(corners(grid, Window(0, 0, *grid.shape.yx)))
    steps = np.linspace(0, 1, _STEPS, endpoint=False)[:, None]
    sides = [start + steps * (end - start) for start, end in pairwise(ring)]
    ring = np.concatenate((*sides, ring[-1:]))
    east, north = Transformer.from_crs(grid.crs.proj, "OGC:CRS84", always_xy=True).transform(*ring.T)
    if not np.isfinite(east).all() or not np.isfinite(north).all():
        raise ValueError(
            f"a grid of {grid.shape.yx} pixels with {grid.affine.to_gdal()} leaves the area of {grid.crs}; "
            "correct its transform or its coordinate system"
        )
    east = np.unwrap(east, period=360)
    if abs(turn := east[-1] - east[0]) > 180:  # around a pole
        pole = 90 * np.sign(north.mean())
        east, north = np.append(east, [east[-1], east[0], east[0]]), np.append(north, [pole, pole, north[0]])
    shape = shapely.make_valid(shapely.Polygon(np.stack((east, north), axis=1).round(_DIGITS)))
    west, south, most, top = shape.bounds
    worlds = range(int(np.floor((west + 180) / 360)), int(np.ceil((most + 180) / 360)))
    whole = shapely.union_all([_world(shape, world) for world in worlds])
    polygons = [orient(part) for part in shapely.get_parts(whole) if isinstance(part, shapely.Polygon)]
    shape = polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)
    if abs(turn) > 180 or most - west >= 360:
        west, most = -180.0, 180.0
    return shape, (_wrapped(west), south, _wrapped(most) if most % 360 != 180 else 180.0, top)


def _world(shape: shapely.Geometry, number: int) -> shapely.Geometry:
    """The part of a shape with longitudes from 360 * number - 180 on, brought to where longitudes are."""
    middle = 360.0 * number
    part = shapely.intersection(shape, shapely.box(middle - 180, -90, middle + 180, 90))
    return shapely.set_precision(shapely.transform(part, lambda points: points - (middle, 0)), 10**-_DIGITS)


def _wrapped(longitude: float) -> float:
    return round((longitude + 180) % 360 - 180, _DIGITS)

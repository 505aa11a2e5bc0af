"""Fields as polygons: a plain cut into blocks by tracks and into parcels by verges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import shapely
from shapely.affinity import rotate
from shapely.geometry import LineString, Polygon, box

if TYPE_CHECKING:
    import numpy as np

TRACK_METRES = 9.0
"""Width of a farm track with its ditches."""

VERGE_METRES = 4.0
"""Width of the strip between neighbouring fields."""

SMALLEST = 0.15
"""Parcels below this share of the mean size (slivers at the edge of the area) are left to the verge."""


@dataclass(frozen=True, kw_only=True)
class Parcels:
    """The polygons of one area, in metres of its projection; no two overlap."""

    fields: tuple[Polygon, ...]
    """Parcels of land, from north to south."""

    tracks: tuple[Polygon, ...]
    """The roads between blocks of parcels."""


def cut_parcels(
    rng: np.random.Generator, bounds: tuple[float, float, float, float], *, hectares: float, skew: float
) -> Parcels:
    """Cut an area into parcels.

    The area, turned by ``skew``, is cut across its longer side again and again, each time near the middle and not quite
    at a right angle, until the pieces are of the wanted size: what land consolidation leaves. Large pieces are parted
    by tracks, small ones by verges.

    Args:
        rng: source of randomness.
        bounds: west, south, east, north in metres.
        hectares: mean size of a parcel.
        skew: direction of the fields against the grid, in degrees.
    """
    target = hectares * 1e4
    area = box(*bounds)
    pieces: list[Polygon] = [rotate(area.buffer(0.25 * math.sqrt(area.area), join_style="mitre"), skew)]
    tracks: list[Polygon] = []
    parcels: list[Polygon] = []
    while pieces:
        piece = pieces.pop()
        wide = piece.area > 9.0 * target
        if not wide and piece.area < target * rng.uniform(0.9, 2.1):
            parcels.append(piece)
            continue
        strip = _strip(rng, piece, TRACK_METRES if wide else VERGE_METRES)
        if wide:
            tracks.append(strip.intersection(piece))
        pieces.extend(part for part in shapely.get_parts(piece.difference(strip)) if part.area > 0)
    clipped = [parcel.intersection(area) for parcel in parcels if parcel.intersects(area)]
    kept = [parcel for parcel in clipped if isinstance(parcel, Polygon) and parcel.area >= SMALLEST * target]
    kept.sort(key=lambda parcel: (-parcel.centroid.y, parcel.centroid.x))
    return Parcels(fields=tuple(kept), tracks=tuple(track for track in tracks if track.intersects(area)))


def _strip(rng: np.random.Generator, piece: Polygon, width: float) -> Polygon:
    """A band across the longer side of a piece."""
    outline = piece.minimum_rotated_rectangle
    corners = list(outline.exterior.coords)[:3]
    (x0, y0), (x1, y1) = max((corners[:2], corners[1:]), key=lambda side: math.dist(*side))
    length = math.dist((x0, y0), (x1, y1))
    step = rng.uniform(-0.2, 0.2)
    middle_x = outline.centroid.x + step * (x1 - x0)
    middle_y = outline.centroid.y + step * (y1 - y0)
    across = math.atan2(y1 - y0, x1 - x0) + math.pi / 2 + math.radians(rng.normal(0.0, 3.0))
    reach_x, reach_y = length * math.cos(across), length * math.sin(across)
    line = LineString([(middle_x - reach_x, middle_y - reach_y), (middle_x + reach_x, middle_y + reach_y)])
    return line.buffer(width / 2.0, cap_style="flat")

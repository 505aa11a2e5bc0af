"""The ground that pixels cover."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

    from geomed.windows import Window


def corners(grid: GeoBox, window: Window) -> list[tuple[float, float]]:
    """Closed ring of a window's corners in the coordinates of the grid; it may be rotated."""
    top, left = window.row, window.column
    bottom, right = top + window.height, left + window.width
    ring = ((left, top), (right, top), (right, bottom), (left, bottom), (left, top))
    a = grid.affine
    return [(a.a * x + a.b * y + a.c, a.d * x + a.e * y + a.f) for x, y in ring]

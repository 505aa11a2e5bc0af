"""Pixels of one grid looked up in the raster of another: for codes, which must not be averaged."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from affine import Affine

from geomed.windows import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from geomed.io.raster import Reader


def look_up(raster: Reader, band: int, grid: GeoBox, window: Window, *, outside: int) -> NDArray[np.generic]:
    """The codes under each pixel of a window, as [n, rows, columns]: n = 1, or more where the raster is finer.

    A pixel of ``grid`` that is k times as large as one of the raster is looked up at the centres of its k x k parts,
    k rounded up: at whole ratios and a common corner these are exactly the raster's pixels in it. Both must share one
    coordinate system; the caller checks it.

    Args:
        raster: where the codes are.
        band: its band, from 1.
        grid: what the window counts in.
        window: the pixels wanted.
        outside: the code where the raster has no pixel.

    Raises:
        ValueError: the raster cannot be read.
    """
    there: Affine = ~raster.grid.affine @ grid.affine
    if there.almost_equals(Affine.identity(), 1e-9) and raster.grid.shape == grid.shape:
        return raster.read(window, [band])
    parts = max(math.ceil(max(math.hypot(there.a, there.d), math.hypot(there.b, there.e)) - 1e-6), 1)
    y = window.row + (np.arange(window.height * parts) + 0.5)[:, None] / parts
    x = window.column + (np.arange(window.width * parts) + 0.5)[None, :] / parts
    # the small shift keeps centres that fall onto a line between two pixels from jumping with rounding
    rows = np.floor(there.d * x + there.e * y + there.f + 1e-9).astype(np.int64)
    columns = np.floor(there.a * x + there.b * y + there.c + 1e-9).astype(np.int64)
    height, width = raster.grid.shape.yx
    known = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    if not known.any():
        codes: NDArray[np.generic] = np.full(known.shape, outside)
    else:
        top, left = int(rows[known].min()), int(columns[known].min())
        box = Window(top, left, int(rows[known].max()) - top + 1, int(columns[known].max()) - left + 1)
        read = raster.read(box, [band])[0]
        inside = read[(rows - top).clip(0, box.height - 1), (columns - left).clip(0, box.width - 1)]
        codes = inside if known.all() else np.where(known, inside, np.asarray(outside))
    split = codes.reshape(window.height, parts, window.width, parts)
    return split.transpose(1, 3, 0, 2).reshape(parts * parts, window.height, window.width)

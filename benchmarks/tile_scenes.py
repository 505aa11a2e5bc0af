"""Land that was never there: GeoTIFFs of any size for tiles.py, made block by block, the same every time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import rasterio
from affine import Affine
from rasterio.windows import Window

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
SCALE = 1e-4
BLOCK = 512
KINDS = 20
_FIELD = 44
_BEND = 400  # pixels; so much that borders of fields lie at all rows and columns alike
_OCTAVES = ((512, 0.5), (128, 0.25), (32, 0.15), (8, 0.1))


class Land:
    """Fractal noise and crooked fields; of any pixel the numbers can be told without its surroundings."""

    def __init__(self, side: int, seed: int = 0) -> None:
        """A square of so many pixels."""
        draw = np.random.default_rng(seed)
        self._noise = [
            [draw.random((side // step + 2, side // step + 2), dtype=np.float32) for step, _ in _OCTAVES]
            for _ in range(3)
        ]
        self._kinds = draw.integers(0, KINDS, ((side + _BEND) // _FIELD + 1,) * 2, dtype=np.uint8)
        self._spectra = np.cumsum(draw.uniform(0.005, 0.06, (KINDS, len(BANDS))), 1).astype(np.float32)
        self._seed = seed

    def block(self, row: int, column: int, height: int, width: int, date: int = 0) -> np.ndarray:
        """Reflectance x 10,000 [bands, height, width], never 0."""
        rows, columns = np.arange(row, row + height), np.arange(column, column + width)
        wave, bend = (self._fractal(grids[:2], rows, columns) for grids in self._noise[:2])
        shade = self._fractal(self._noise[2], rows, columns)
        down = ((rows[:, None] + _BEND * wave) / _FIELD).astype(np.int32)
        across = ((columns[None, :] + _BEND * bend) / _FIELD).astype(np.int32)
        kinds = self._kinds[down, across]
        season = np.random.default_rng((self._seed, date)).uniform(0.6, 1.4, (KINDS, 1)).astype(np.float32)
        seen = (self._spectra * season / SCALE).T[:, kinds]
        grain = np.random.default_rng((self._seed, date, row, column)).integers(0, 32, kinds.shape)
        seen *= 0.75 + 0.5 * shade
        return np.clip(seen + grain, 1, 65535).astype(np.uint16)

    @staticmethod
    def _fractal(grids: Sequence[np.ndarray], rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        total = np.zeros((len(rows), len(columns)), dtype=np.float32)
        for grid, (step, share) in zip(grids, _OCTAVES, strict=False):
            top, left = rows // step, columns // step
            below = (rows / step - top).astype(np.float32)[:, None]
            right = (columns / step - left).astype(np.float32)[None, :]
            part = grid[top.min() : top.max() + 2, left.min() : left.max() + 2]
            at = top - top.min()
            lines = part[at] * (1 - below) + part[at + 1] * below
            at = left - left.min()
            total += share * (lines[:, at] * (1 - right) + lines[:, at + 1] * right)
        return total


def scene(folder: Path, side: int, date: int | None = None) -> Path:
    """The file of a square scene, made if it is not there: ten bands, tiles of 512, deflate."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (f"land_{side}.tif" if date is None else f"land_{side}_{date}.tif")
    if path.is_file():
        return path
    part = path.with_name(path.name + ".part")
    land = Land(side)
    with rasterio.open(
        part,
        "w",
        driver="GTiff",
        width=side,
        height=side,
        count=len(BANDS),
        dtype="uint16",
        nodata=0,
        crs="EPSG:32631",
        transform=Affine(10, 0, 500_000, 0, -10, 5_700_000),
        tiled=True,
        blockxsize=BLOCK,
        blockysize=BLOCK,
        interleave="band",
        compress="deflate",
        zlevel=1,
        predictor=2,
        bigtiff="if_safer",
    ) as file:
        file.descriptions = BANDS
        for row in range(0, side, BLOCK):
            for column in range(0, side, BLOCK):
                height, width = min(BLOCK, side - row), min(BLOCK, side - column)
                file.write(land.block(row, column, height, width, date or 0), window=Window(column, row, width, height))
    part.replace(path)
    return path

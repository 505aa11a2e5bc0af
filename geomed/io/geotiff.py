"""GeoTIFF: reading any raster that GDAL opens, window by window, and writing maps of classes."""

from __future__ import annotations

import json
import os
import sys
import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Self
from xml.sax.saxutils import escape

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterioWindow

from geomed.io.tiff import needed_bytes
from geomed.windows import Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from numpy.typing import NDArray

NODATA = 255
"""Value of a map where no class is known."""

_TILE = 256


def _room_for_files() -> int:
    """How many files one process may keep open: half of what the system allows, between 16 and 2048."""
    if sys.platform == "win32":
        return 256
    import resource  # Unix only

    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 2048 if allowed == resource.RLIM_INFINITY else max(16, min(allowed // 2, 2048))


@dataclass(frozen=True, kw_only=True)
class GeoTiff:
    """The facts in the head of a raster file, and windows of its pixels. It holds no open file, so it pickles."""

    path: Path
    """The file."""

    grid: GeoBox
    """Shape, transform and coordinate system, which may be None; the transform may be rotated."""

    bands: tuple[str, ...]
    """Description of each band, "" where there is none."""

    dtype: str
    """Type of the stored numbers."""

    nodata: float | None
    """Number that means "no observation"."""

    scales: tuple[float, ...]
    """Factor of each band that the file declares, 1 where none."""

    offsets: tuple[float, ...]
    """Summand of each band that the file declares, 0 where none."""

    @classmethod
    def open(cls, path: str | Path) -> GeoTiff:
        """Read the head of a file.

        Raises:
            ValueError: it is missing, truncated or no raster, holds complex numbers, or lies on control points and not
                on a grid.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"{path}: there is no such file; correct the path")
        with _explained(path, "opened"):
            file = _file(path)
        if any("complex" in kind for kind in file.dtypes):
            raise ValueError(f"{path}: pixels must be real numbers, these are {file.dtypes[0]}; convert them before")
        if file.gcps[0] and file.transform.is_identity:
            raise ValueError(
                f"{path}: it is placed by {len(file.gcps[0])} ground control points, not on a grid; "
                "rectify it before (gdalwarp)"
            )
        return cls(
            path=path,
            grid=GeoBox(file.shape, file.transform, file.crs),
            bands=tuple(description or "" for description in file.descriptions),
            dtype=np.result_type(*file.dtypes).name,
            nodata=file.nodata,
            scales=tuple(file.scales),
            offsets=tuple(file.offsets),
        )

    @property
    def whole(self) -> Window:
        """All its pixels."""
        return Window(0, 0, self.grid.shape.y, self.grid.shape.x)

    def read(self, window: Window, bands: Sequence[int] | None = None) -> NDArray[np.generic]:
        """Stored numbers [bands, rows, columns]; bands count from 1, None: all.

        Raises:
            ValueError: the window leaves the raster, or the file is truncated or damaged there.
        """
        if not _inside(window, self.grid):
            raise ValueError(f"{self.path}: {window} leaves the raster of {self.grid.shape.yx}; read inside it")
        indexes = list(bands) if bands is not None else list(range(1, len(self.bands) + 1))
        with _explained(self.path, "read"):
            values: NDArray[np.generic] = _file(self.path).read(indexes, window=_rasterio(window))
        return values


class MapWriter:
    """A map of classes as a tiled GeoTIFF with colours and names, written window by window in any order.

    It grows beside its place as ``<name>.part`` and takes its name when it is closed, so a map that exists is whole.
    Where nothing is written the map holds ``NODATA``. The class names stand in the file as the band's tag
    ``CLASS_NAMES`` (JSON) and, for GDAL and QGIS, in ``<name>.aux.xml``.
    """

    def __init__(
        self,
        path: str | Path,
        grid: GeoBox,
        *,
        names: Sequence[str],
        colours: Sequence[tuple[int, int, int]],
    ) -> None:
        """Open the map.

        Args:
            path: where it will stand.
            grid: shape, transform and coordinate system (None is allowed) of the map.
            names: class names in index order, at most 255.
            colours: red, green and blue (0 to 255) of each class.

        Raises:
            ValueError: names and colours do not match, or there are too many.
        """
        if len(names) != len(colours) or not 0 < len(names) <= NODATA:
            raise ValueError(
                f"a map needs 1 to {NODATA} names and as many colours, not {len(names)} and {len(colours)}; "
                "give each class one of both"
            )
        self.path, self.grid, self.names = Path(path), grid, tuple(names)
        self._part = self.path.with_name(self.path.name + ".part")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._part.unlink(missing_ok=True)
        with _explained(self.path, "created"):
            self._file = rasterio.open(
                self._part,
                "w",
                driver="GTiff",
                height=grid.shape.y,
                width=grid.shape.x,
                count=1,
                dtype="uint8",
                nodata=NODATA,
                crs=None if grid.crs is None else CRS.from_wkt(grid.crs.to_wkt()),
                transform=grid.affine,
                tiled=True,
                blockxsize=_TILE,
                blockysize=_TILE,
                compress="deflate",
                sparse_ok=True,
                bigtiff="if_safer",
            )
        self._file.write_colormap(1, {**dict(enumerate(colours)), NODATA: (0, 0, 0)})
        self._file.update_tags(1, CLASS_NAMES=json.dumps(list(names)))

    def write(self, window: Window, values: NDArray[np.integer]) -> None:
        """Write class indices [rows, columns], ``NODATA`` where unknown.

        Raises:
            ValueError: the window leaves the map, the values have another shape, or one of them is no class.
        """
        if not _inside(window, self.grid) or values.shape != (window.height, window.width):
            raise ValueError(
                f"{self.path}: values {values.shape} do not fit {window} of a map of {self.grid.shape.yx}; "
                "write what the window holds"
            )
        wrong = np.setdiff1d(values, [*range(len(self.names)), NODATA])
        if wrong.size:
            raise ValueError(
                f"{self.path}: {wrong[0]} is no class, they are 0 to {len(self.names) - 1} and {NODATA} for unknown; "
                "write the index of the class"
            )
        with _explained(self.path, "written"):
            self._file.write(values.astype(np.uint8), 1, window=_rasterio(window))

    def close(self) -> None:
        """Finish the map and give it its name; closing twice does nothing."""
        if self._file.closed:
            return
        with _explained(self.path, "written"):
            self._file.close()
        entries = "".join(f"<Category>{escape(name)}</Category>" for name in self.names)
        beside = self.path.with_name(self.path.name + ".aux.xml")
        beside.write_text(
            f'<PAMDataset><PAMRasterBand band="1"><CategoryNames>{entries}</CategoryNames></PAMRasterBand>'
            "</PAMDataset>\n",
            encoding="utf-8",
        )
        self._part.replace(self.path)

    def discard(self) -> None:
        """Give the map up: what was written so far is deleted."""
        self._file.close()
        self._part.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.discard()


def write_map(
    path: str | Path,
    classes: NDArray[np.integer],
    grid: GeoBox,
    *,
    names: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
) -> None:
    """Write a whole map [rows, columns] at once; see ``MapWriter``.

    Raises:
        ValueError: the map does not fit the grid, or holds something that is no class.
    """
    with MapWriter(path, grid, names=names, colours=colours) as writer:
        writer.write(Window(0, 0, grid.shape.y, grid.shape.x), classes)


def _inside(window: Window, grid: GeoBox) -> bool:
    return (
        min(window.row, window.column) >= 0
        and min(window.height, window.width) >= 1
        and window.row + window.height <= grid.shape.y
        and window.column + window.width <= grid.shape.x
    )


def _rasterio(window: Window) -> RasterioWindow:
    return RasterioWindow(window.column, window.row, window.width, window.height)


def _file(path: Path) -> rasterio.DatasetReader:
    """The open file: kept open, for opening costs ten times as much as reading a window."""
    stat = path.stat()
    return _opened(path, (stat.st_mtime_ns, stat.st_size), os.getpid(), threading.get_ident())


@lru_cache(maxsize=_room_for_files())
def _opened(path: Path, _stamp: tuple[int, int], _process: int, _thread: int) -> rasterio.DatasetReader:
    """Stamp: a file written anew is opened anew. Process and thread: a handle of GDAL must not be shared."""
    needed, size = needed_bytes(path), path.stat().st_size
    if needed is not None and needed > size:
        # GDAL opens such a file without its last tags, among them perhaps coordinate system and band names
        raise ValueError(
            f"{path}: the file is truncated, by its directory it has {needed} bytes and there are {size}; copy it again"
        )
    return rasterio.open(path)


@contextmanager
def _explained(path: Path, what: str) -> Iterator[None]:
    """Turn GDAL's errors into one line with the file's name, and be silent about missing georeferencing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a grid without CRS is a grid: GeoTiff.grid tells
        try:
            yield
        except (RasterioError, OSError) as error:
            reason = str(error.__cause__ or error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{path}: the file cannot be {what} ({reason}); it is truncated, damaged or of another kind: "
                "copy it again"
            ) from error

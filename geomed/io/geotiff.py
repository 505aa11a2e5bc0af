"""GeoTIFF: reading any raster that GDAL opens, window by window, and writing maps of classes."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self
from xml.sax.saxutils import escape

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterioWindow

from geomed.io.handles import lent, silence
from geomed.windows import Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from numpy.typing import NDArray

NODATA = 255
"""Value of a map where no class is known."""

_TILE = 256


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

    masks: int = 0
    """Mask bands, which say where there is an observation: none, 1 for all bands together, or one for each."""

    alpha: int | None = None
    """The band, from 1, that says how opaque a pixel is; where it is 0 there is no observation."""

    url: str = ""
    """Where it is read from if not from ``path`` on this machine: an address as GDAL takes it."""

    @classmethod
    def open(cls, path: str | Path) -> GeoTiff:
        """Read the head of a file.

        Args:
            path: the file, or an address, see ``is_remote``.

        Raises:
            ValueError: it is missing, truncated or no raster, holds complex numbers, or lies on control points and not
                on a grid.
        """
        url = str(path) if is_remote(str(path)) else ""
        path = Path(path)
        if not url and not path.is_file():
            raise ValueError(f"{path}: there is no such file; correct the path")
        with _explained(url or path, "opened"), lent(path, url) as file:
            return cls._of(file, path, url)

    @classmethod
    def _of(cls, file: rasterio.DatasetReader, path: Path, url: str) -> GeoTiff:
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
            masks=_masks(file),
            alpha=_alpha(file),
            url=url,
        )

    @property
    def whole(self) -> Window:
        """All its pixels."""
        return Window(0, 0, self.grid.shape.y, self.grid.shape.x)

    def read(
        self, window: Window, bands: Sequence[int] | None = None, *, out: NDArray[np.generic] | None = None
    ) -> NDArray[np.generic]:
        """Stored numbers [bands, rows, columns].

        Args:
            window: the pixels wanted.
            bands: count from 1; None: all.
            out: where to put the numbers; None: into a new array.

        Raises:
            ValueError: the window leaves the raster, or the file is truncated or damaged there.
        """
        self._refuse_outside(window)
        indexes = list(bands) if bands is not None else list(range(1, len(self.bands) + 1))
        with _explained(self.url or self.path, "read"), lent(self.path, self.url) as file:
            values: NDArray[np.generic] = file.read(indexes, window=_rasterio(window), out=out)
        return values

    def mask(self, window: Window, bands: Sequence[int]) -> NDArray[np.bool_] | None:
        """Where [rows, columns] mask and alpha band let all of these bands through; None: the file has neither.

        An alpha band that is itself among the bands is data like the others. What is nodata or NaN is not looked for.

        Raises:
            ValueError: the window leaves the raster, or the file is truncated or damaged there.
        """
        transparent = self.alpha is not None and self.alpha not in bands
        if not self.masks and not transparent:
            return None
        self._refuse_outside(window)
        there = np.ones((window.height, window.width), dtype=np.bool_)
        with _explained(self.url or self.path, "read"), lent(self.path, self.url) as file:
            if self.masks:
                masked = list(bands[:1] if self.masks == 1 else bands)
                there &= (file.read_masks(masked, window=_rasterio(window)) != 0).all(axis=0)
            if transparent:
                there &= file.read(self.alpha, window=_rasterio(window)) != 0
        return there

    def _refuse_outside(self, window: Window) -> None:
        if not _inside(window, self.grid):
            raise ValueError(f"{self.path}: {window} leaves the raster of {self.grid.shape.yx}; read inside it")


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
        with _explained(self.path, "created"), silence():
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
        write_category_names(self.path.with_name(self.path.name + ".aux.xml"), self.names)
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


def write_category_names(path: Path, names: Sequence[str]) -> None:
    """Write names of classes where GDAL and QGIS look for them: a GeoTIFF has no place for them.

    Args:
        path: the raster's name with ``.aux.xml`` behind it; a file there is replaced whole.
        names: in index order.
    """
    entries = "".join(f"<Category>{escape(name)}</Category>" for name in names)
    part = path.with_name(path.name + ".part")
    part.write_text(
        f'<PAMDataset><PAMRasterBand band="1"><CategoryNames>{entries}</CategoryNames></PAMRasterBand></PAMDataset>\n',
        encoding="utf-8",
    )
    part.replace(path)


def _inside(window: Window, grid: GeoBox) -> bool:
    return (
        min(window.row, window.column) >= 0
        and min(window.height, window.width) >= 1
        and window.row + window.height <= grid.shape.y
        and window.column + window.width <= grid.shape.x
    )


def is_remote(path: str) -> bool:
    """Whether a text is an address (``https://``, ``s3://``, GDAL's ``/vsi…``), no path of a file on this machine."""
    return "://" in path or path.startswith("/vsi")


def _masks(file: rasterio.DatasetReader) -> int:
    """How many mask bands a file has, besides nodata and alpha."""
    flags = [set(found) for found in file.mask_flag_enums]
    if any(MaskFlags.per_dataset in found and MaskFlags.alpha not in found for found in flags):
        return 1
    return len(flags) if any(not found for found in flags) else 0


def _alpha(file: rasterio.DatasetReader) -> int | None:
    """The alpha band, unless it is described as something else: GDAL takes the fourth of four bytes for it."""
    for number, (meaning, text) in enumerate(zip(file.colorinterp, file.descriptions, strict=True), start=1):
        if meaning == ColorInterp.alpha and (text or "alpha").strip().lower() == "alpha":
            return number
    return None


def _rasterio(window: Window) -> RasterioWindow:
    return RasterioWindow(window.column, window.row, window.width, window.height)


@contextmanager
def _explained(path: Path | str, what: str) -> Iterator[None]:
    """Turn GDAL's errors into one line with the file's name."""
    try:
        yield
    except (RasterioError, OSError) as error:
        reason = str(error.__cause__ or error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path}: the file cannot be {what} ({reason}); it is truncated, damaged or of another kind: copy it again"
        ) from error

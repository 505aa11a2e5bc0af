"""Cloud Optimised GeoTIFF: a raster put together from pieces on disk, never whole in memory."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import shutil
import sys
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import numpy as np
import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile
from rasterio.windows import Window as RasterioWindow

from geomed.io.geotiff import NODATA, write_category_names
from geomed.io.handles import lent, silence
from geomed.io.tiff import needed_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from geomed.palette import Colour
    from geomed.windows import Window

_TILE = 256
_CACHE = 64 * 2**20
_SETTINGS = {"GDAL_CACHEMAX": _CACHE, "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
_CHUNK = 16 * 2**20
_FULL = 2**20
_SUM = 4


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the bands of a raster mean, and how it is stored. Its numbers are bytes."""

    bands: tuple[str, ...]
    """Description of each band."""

    classes: tuple[str, ...] = ()
    """Of a map of classes the names in index order, at most 255; () of anything else."""

    colours: tuple[Colour, ...] = ()
    """Of a map of classes the colour of each."""

    scale: float = 1
    """A value is ``scale * number + offset``."""

    offset: float = 0
    """The value of number 0."""

    nodata: int = NODATA
    """The number that means "not known"."""

    block: int = 512
    """Side of a tile in pixels."""

    def __post_init__(self) -> None:
        """Refuse what no raster can be.

        Raises:
            ValueError: there is no band, classes and colours do not match or share a raster with other bands, or a
                number is out of range.
        """
        if not self.bands:
            raise ValueError("a raster needs at least one band, there is none; describe each band")
        if len(self.classes) != len(self.colours) or len(self.classes) > NODATA:
            raise ValueError(
                f"a map of classes needs 1 to {NODATA} names and as many colours, not {len(self.classes)} and "
                f"{len(self.colours)}; give each class one of both"
            )
        if self.classes and len(self.bands) > 1:
            raise ValueError(f"a map of classes has one band, not {len(self.bands)}; store the others in another file")
        if not (math.isfinite(self.scale) and math.isfinite(self.offset) and self.scale):
            raise ValueError(
                f"scale and offset must be finite and the scale not 0, these are {self.scale} and {self.offset}; "
                "correct them"
            )
        if not 0 <= self.nodata <= 255 or self.nodata < len(self.classes):
            raise ValueError(
                f"nodata must be a byte that stands for no class, {self.nodata} does not; take a number from "
                f"{len(self.classes)} to 255"
            )
        if self.block < 16 or self.block % 16:
            raise ValueError(f"the side of a tile must be a multiple of 16 pixels, {self.block} is none; take 512")

    @property
    def resampling(self) -> Resampling:
        """How overviews are made: no mean of classes is a class."""
        return Resampling.mode if self.classes else Resampling.average


def encode_piece(bands: NDArray[np.uint8]) -> bytes:
    """Numbers [bands, rows, columns] as a lossless GeoTIFF without a place; the same numbers give the same bytes."""
    with silence(), MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            count=bands.shape[0],
            height=bands.shape[1],
            width=bands.shape[2],
            dtype="uint8",
            tiled=True,
            blockxsize=_TILE,
            blockysize=_TILE,
            compress="deflate",  # at its fastest: a piece is read once
            zlevel=1,
            predictor=2,
            interleave="band",
        ) as file:
            file.write(bands)
        data = bytes(memory.getbuffer())
    # libtiff decodes many a flipped bit without a word; what follows the end of a TIFF harms no reader
    return data + zlib.crc32(data).to_bytes(_SUM, "little")


def store_piece(path: Path, data: bytes) -> int:
    """Put an encoded piece in its place, whole or not at all, and give its size in bytes.

    Raises:
        OSError: it cannot be written, for want of space or otherwise; what was there before is still there.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    return len(data)


def write_piece(path: Path, bands: NDArray[np.uint8]) -> int:
    """Encode numbers [bands, rows, columns] and store them; see ``encode_piece`` and ``store_piece``.

    Raises:
        OSError: it cannot be written.
    """
    return store_piece(path, encode_piece(bands))


def read_piece(path: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The numbers of a piece.

    Args:
        path: its file.
        shape: bands, rows and columns that it must have.

    Raises:
        ValueError: it is missing, truncated, damaged or of another shape.
    """
    data = _intact(path)
    try:
        with silence(), MemoryFile(data) as memory, memory.open() as file:
            _refuse_unlike(path, file, shape)
            numbers: NDArray[np.uint8] = file.read()
    except (RasterioError, OSError) as error:
        raise ValueError(_broken(path, _reason(error))) from error
    return numbers


def assemble(path: Path, pieces: Sequence[tuple[Path, Window]], grid: GeoBox, layout: Layout) -> None:
    """Make one raster of pieces that partition it, as a Cloud Optimised GeoTIFF with overviews.

    It grows beside its place as ``<name>.part`` and takes its name when it is whole. Everything is inside the file,
    colours, descriptions, scale and the names of classes (the band's tag ``CLASS_NAMES``, JSON); only for GDAL and
    QGIS, which look for names nowhere else, they stand in ``<name>.aux.xml`` as well. The same pieces give the same
    bytes.

    Args:
        path: where the raster will stand.
        pieces: files of ``write_piece`` and where in the raster each belongs.
        grid: shape, transform, which may be rotated, and coordinate system, which may be None.
        layout: what the numbers mean.

    Raises:
        ValueError: the pieces leave a gap or overlap, or one is missing, damaged or of another shape.
        OSError: the raster cannot be written; nothing of it is left.
    """
    _refuse_no_partition(pieces, grid)
    for piece, window in pieces:
        _refuse_damaged(piece, (len(layout.bands), window.height, window.width))
    part = path.with_name(path.name + ".part")
    beside = path.with_name(path.name + ".aux.xml")
    try:
        _discard(part)
        part.touch()  # says what is wrong with a folder, GDAL would not
        _copy(part, _mosaic(pieces, grid, layout), layout)
        _refuse_other(part, pieces, grid, layout)
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        if layout.classes:
            write_category_names(beside, layout.classes)
        else:
            beside.unlink(missing_ok=True)  # of another raster that had this name
        part.replace(path)
    except (CPLE_BaseError, RasterioError, OSError) as error:
        reason, full = _reason(error), _full(error, path)
        _discard(part)
        if full:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({reason})", str(path)) from error
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise OSError(errno.EIO, f"the raster cannot be written ({reason})", str(path)) from error
    except BaseException:
        _discard(part)
        raise


def read_small(path: Path, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The first band of a map of classes shrunk to [rows, columns], by the commonest class, from its overviews.

    Raises:
        ValueError: the file is missing, truncated or damaged.
    """
    try:
        with lent(path) as file, rasterio.Env(GDAL_CACHEMAX=_CACHE):
            numbers: NDArray[np.uint8] = file.read(1, out_shape=shape, resampling=Resampling.mode)
    except (RasterioError, OSError) as error:
        raise ValueError(f"{path}: the map cannot be read ({_reason(error)}); make it again") from error
    return numbers


def _copy(part: Path, mosaic: str, layout: Layout) -> None:
    threads = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    options = {
        "compress": "deflate",
        "level": 6,
        "predictor": "no" if layout.classes else "yes",  # neighbours are alike in shares, in classes they are equal
        "blocksize": layout.block,
        "bigtiff": "if_safer",
        "overviews": "ignore_existing",
        "overview_resampling": layout.resampling.name,
        "num_threads": 1 if layout.classes else min(threads, 8),  # one band: threads cost as much as they bring
    }
    with (
        silence(),
        rasterio.Env(**_SETTINGS),
        MemoryFile(mosaic.encode(), ext=".vrt") as memory,
        memory.open() as source,
    ):
        rasterio.shutil.copy(source, part, driver="COG", **options)


def _mosaic(pieces: Sequence[tuple[Path, Window]], grid: GeoBox, layout: Layout) -> str:
    """The pieces as one raster, in GDAL's words (VRT)."""
    transform = ",".join(repr(float(number)) for number in grid.affine.to_gdal())
    reference = "" if grid.crs is None else f"<SRS>{escape(CRS.from_wkt(grid.crs.to_wkt()).to_wkt())}</SRS>"
    colours = ""
    if layout.classes:
        table = [*layout.colours, *[(0, 0, 0)] * (256 - len(layout.colours))]
        entries = "".join(f'<Entry c1="{red}" c2="{green}" c3="{blue}" c4="255"/>' for red, green, blue in table)
        colours = f"<ColorInterp>Palette</ColorInterp><ColorTable>{entries}</ColorTable>"
        names = escape(json.dumps(list(layout.classes)))
        colours += f'<Metadata><MDI key="CLASS_NAMES">{names}</MDI></Metadata>'
    if (layout.scale, layout.offset) != (1, 0):
        colours += f"<Offset>{float(layout.offset)!r}</Offset><Scale>{float(layout.scale)!r}</Scale>"
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{number}"><Description>{escape(name)}</Description>'
        f"<NoDataValue>{layout.nodata}</NoDataValue>{colours}"
        + "".join(_source(file, window, number) for file, window in pieces)
        + "</VRTRasterBand>"
        for number, name in enumerate(layout.bands, start=1)
    )
    return (
        f'<VRTDataset rasterXSize="{grid.shape.x}" rasterYSize="{grid.shape.y}">{reference}'
        f"<GeoTransform>{transform}</GeoTransform>{bands}</VRTDataset>"
    )


def _source(file: Path, window: Window, band: int) -> str:
    size = f'xSize="{window.width}" ySize="{window.height}"'
    target = f'xOff="{window.column}" yOff="{window.row}" {size}'
    return (
        f'<SimpleSource><SourceFilename relativeToVRT="0">{escape(str(file.absolute()))}</SourceFilename>'
        f"<SourceBand>{band}</SourceBand>"
        f'<SourceProperties RasterXSize="{window.width}" RasterYSize="{window.height}" DataType="Byte" '
        f'BlockXSize="{_TILE}" BlockYSize="{_TILE}"/>'
        f'<SrcRect xOff="0" yOff="0" {size}/><DstRect {target}/></SimpleSource>'
    )


def _refuse_no_partition(pieces: Sequence[tuple[Path, Window]], grid: GeoBox) -> None:
    windows = [window for _, window in pieces]
    rows, columns = grid.shape.yx
    for one in windows:
        if (
            min(one.row, one.column) < 0
            or min(one.height, one.width) < 1
            or one.row + one.height > rows
            or one.column + one.width > columns
        ):
            raise ValueError(f"pieces must lie inside the raster of {rows} x {columns}, {one} does not; correct it")
    tops = np.unique([0, rows, *(edge for one in windows for edge in (one.row, one.row + one.height))])
    lefts = np.unique([0, columns, *(edge for one in windows for edge in (one.column, one.column + one.width))])
    times = np.zeros((len(tops) - 1, len(lefts) - 1), dtype=np.int32)
    for one in windows:
        first, last = np.searchsorted(tops, (one.row, one.row + one.height))
        left, right = np.searchsorted(lefts, (one.column, one.column + one.width))
        times[first:last, left:right] += 1
    wrong = np.argwhere(times != 1)
    if len(wrong):
        row, column = wrong[0]
        raise ValueError(
            f"pieces must cover each pixel once, that in row {tops[row]} and column {lefts[column]} is covered "
            f"{times[row, column]} times; give windows that partition the raster of {rows} x {columns}"
        )


def _intact(path: Path) -> bytes:
    """The bytes of a piece if they are those that were stored."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(_broken(path, error.strerror or str(error))) from error
    if zlib.crc32(data[:-_SUM]).to_bytes(_SUM, "little") != data[-_SUM:]:
        raise ValueError(_broken(path, f"the checksum of its {len(data)} bytes is wrong"))
    return data


def _refuse_damaged(path: Path, shape: tuple[int, int, int]) -> None:
    """Look at a piece without decoding it."""
    data = _intact(path)
    try:
        with silence(), MemoryFile(data) as memory, memory.open() as file:
            _refuse_unlike(path, file, shape)
    except (RasterioError, OSError) as error:
        raise ValueError(_broken(path, _reason(error))) from error


def _refuse_unlike(path: Path, file: rasterio.DatasetReader, shape: tuple[int, int, int]) -> None:
    found, kinds = (file.count, *file.shape), set(file.dtypes)
    if found != shape or kinds != {"uint8"}:
        raise ValueError(_broken(path, f"{found} of {', '.join(sorted(kinds))}, not {shape} of uint8"))


def _refuse_other(part: Path, pieces: Sequence[tuple[Path, Window]], grid: GeoBox, layout: Layout) -> None:
    """Read the raster back: GDAL does not report every failed write, and the pieces will be deleted.

    Raises:
        OSError: it is cut short, or does not hold what the pieces hold.
    """
    needed, size = needed_bytes(part), part.stat().st_size
    if needed is None or needed > size:
        raise OSError(errno.EIO, f"{size} bytes were written of {needed}", str(part))
    with silence(), rasterio.Env(**_SETTINGS), rasterio.open(part) as whole:
        if (whole.count, *whole.shape) != (len(layout.bands), *grid.shape.yx):
            raise OSError(errno.EIO, f"a raster of {whole.count} x {whole.shape} was written", str(part))
        for path, window in pieces:
            with rasterio.open(path) as piece:
                for inside in _chunks(window, layout):
                    there = RasterioWindow(
                        window.column + inside.col_off, window.row + inside.row_off, inside.width, inside.height
                    )
                    if not np.array_equal(piece.read(window=inside), whole.read(window=there)):
                        raise OSError(errno.EIO, f"other numbers were written than {path} holds", str(part))
        levels = len(whole.overviews(1))
    for level in range(levels):
        with silence(), rasterio.Env(**_SETTINGS), rasterio.open(part, overview_level=level) as small:
            for _, inside in small.block_windows():
                small.read(window=inside)


def _chunks(window: Window, layout: Layout) -> Iterator[RasterioWindow]:
    """Parts of a piece that fit into memory, cut where the tiles of the raster are."""
    side = layout.block
    wide = max(1, _CHUNK // (side * side * len(layout.bands))) * side

    def cuts(first: int, length: int, step: int) -> Iterator[tuple[int, int]]:
        edges = [0, *range(step - first % step, length, step), length]
        return ((at, end - at) for at, end in itertools.pairwise(edges))

    for row, height in cuts(window.row, window.height, side):
        for column, width in cuts(window.column, window.width, wide):
            yield RasterioWindow(column, row, width, height)


def _discard(part: Path) -> None:
    """Remove an unfinished raster, and what GDAL keeps beside it while it makes overviews."""
    for ending in ("", ".ovr.tmp", ".msk.ovr.tmp", ".aux.xml"):
        part.with_name(part.name + ending).unlink(missing_ok=True)


def _full(error: BaseException, path: Path) -> bool:
    """Whether a write failed for want of space: GDAL does not always say so."""
    if isinstance(error, OSError) and error.errno not in {None, errno.EIO}:
        return error.errno == errno.ENOSPC
    return os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(path.parent).free < _FULL


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error.__cause__ or error).partition("\n")[0] or type(error).__name__


def _broken(path: Path, reason: str) -> str:
    return f"{path}: this piece of a raster is truncated, damaged or another one ({reason}); make it again"

"""Field polygons: every area of one class in a map becomes a row of a GeoParquet file by the fiboa specification.

fiboa 0.3.0 (https://fiboa.org/specification/v0.3.0) on Vecorel 0.1.0 (https://vecorel.org/specification/v0.1.0),
encoded as GeoParquet 1.1.0 (https://geoparquet.org/releases/v1.1.0).
"""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from tqdm import tqdm

from geomed.inference.outlines import SKIP, Outlines, Tracer
from geomed.io.geotiff import GeoTiff
from geomed.windows import Window

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox
    from pyproj import CRS

ROWS = 1024
"""Rows of the map that are read at once. The file does not depend on it."""

_GROUP = 1 << 15
"""Rows of a row group of the file."""

_FINE = 1 << 20
"""Steps of a confidence of 1: summed as whole numbers, which no order of the summands changes."""

_SCHEMAS = (
    "https://vecorel.org/specification/v0.1.0/schema.yaml",
    "https://fiboa.org/specification/v0.3.0/schema.yaml",
)

_OURS = {"class": "string", "class_index": "uint8", "confidence": "float"}


def write_fields(
    map_path: Path,
    out: Path,
    *,
    names: Sequence[str],
    collection: str,
    confidence: Path | None = None,
    background: Collection[str] = (),
    min_area: float = 0.0,
    determination_datetime: str | None = None,
) -> int:
    """Write the areas of a map, pixels of one class that are connected by their sides, as polygons.

    Columns: ``id`` (row and column of the area's first pixel), ``collection``, ``geometry`` in the map's coordinate
    system, ``bbox``, ``metrics:area`` (m²) and ``metrics:perimeter`` (m), ``determination:datetime``,
    ``determination:method`` (auto-imagery), and ours: ``class``, ``class_index`` and the mean ``confidence`` of its
    pixels. Areas and perimeters are those of the geometry: on the ellipsoid where coordinates are geographic, on the
    plane where they are projected, and null where a map has no coordinate system. fiboa asks for areas up to 1000 km²;
    a larger one is told as it is.

    The map is read once, from above, and what is complete is written: memory holds a strip of the map and the corners
    of the areas that go on. A file that exists is whole, and its bytes depend on the map and these arguments only.

    Args:
        map_path: classes as uint8, nodata where unknown.
        out: the file to write.
        names: of the classes in index order, at most 255.
        collection: identifier of the collection that the fields belong to; each map needs its own, for identifiers of
            fields are unique in one map only.
        confidence: a raster on the grid of the map, of which the first band is averaged.
        background: names of classes that are no fields.
        min_area: smaller ones are left out, in m².
        determination_datetime: when the fields were last observed (ISO 8601, UTC if it names no other zone);
            for a series its last date.

    Returns:
        Number of fields.

    Raises:
        ValueError: an argument breaks its rule, the map holds something that is no class, the confidence has another
            grid, or pyarrow is missing.
    """
    source = GeoTiff.open(map_path)
    layer = None if confidence is None else GeoTiff.open(confidence)
    rows = _Rows(
        collection=collection,
        names=tuple(names),
        grid=source.grid,
        crs=_crs(source.grid),
        observed=_moment(determination_datetime),
        confidence=layer is not None,
    )
    _check(source, layer, names, collection, background)
    if not min_area >= 0 or (min_area and rows.crs is None):
        raise ValueError(
            f"{map_path}: min_area must be 0 or more m², and 0 for a map without a coordinate system, not {min_area}; "
            "correct it"
        )
    skipped = [index for index, name in enumerate(names) if name in background]
    count = 0
    with _file(out, rows) as file:
        for outlines in _outlines(source, layer, len(names), skipped):
            table = rows.table(outlines, min_area)
            count += len(table)
            file.add(table)
    return count


def _check(
    source: GeoTiff, layer: GeoTiff | None, names: Sequence[str], collection: str, background: Collection[str]
) -> None:
    """Refuse what cannot be written."""
    if source.dtype != "uint8" or not 0 < len(names) <= SKIP:
        raise ValueError(
            f"{source.path}: a map of classes is uint8 with 1 to {SKIP} names, not {source.dtype} with {len(names)}; "
            "write it by geomed map"
        )
    if layer is not None and layer.grid != source.grid:
        raise ValueError(f"{layer.path}: the confidence must lie on the grid of {source.path}; write both by one run")
    if not collection:
        raise ValueError("a collection of fields must have an identifier, this one is empty; name it")
    if unknown := sorted(set(background) - set(names)):
        raise ValueError(f"background must be classes of the map, {unknown[0]!r} is none; they are {', '.join(names)}")


def _outlines(source: GeoTiff, layer: GeoTiff | None, classes: int, skipped: Sequence[int]) -> Iterator[Outlines]:
    """All areas of a map."""
    height, width = source.grid.shape.yx
    table = np.arange(SKIP + 1, dtype=np.uint8)
    table[skipped] = SKIP
    nodata = SKIP if source.nodata is None else int(source.nodata)
    table[nodata] = SKIP
    tracer = Tracer(width)
    with tqdm(total=height, desc=source.path.stem, unit="row", delay=2, leave=False) as bar:
        for row in range(0, height, ROWS):
            window = Window(row, 0, min(ROWS, height - row), width)
            values = source.read(window, [1])[0].astype(np.uint8, copy=False)
            wrong = (values >= classes) & (values != nodata)
            if wrong.any():
                raise ValueError(
                    f"{source.path}: {values[wrong][0]} is no class, they are 0 to {classes - 1} and {nodata} for "
                    "unknown; give the names that the map was written with"
                )
            yield from tracer.add(table[values], None if layer is None else _steps(layer, window))
            bar.update(window.height)
        yield from tracer.finish()


def _steps(layer: GeoTiff, window: Window) -> NDArray[np.int32]:
    """Confidence in whole steps, -1 where it is not known."""
    stored = layer.read(window, [1])[0]
    with np.errstate(invalid="ignore"):
        steps = np.rint((stored * np.float64(layer.scales[0]) + layer.offsets[0]) * _FINE)
        known = np.isfinite(steps) & (steps >= 0) & (steps <= _FINE)
        if layer.nodata is not None:
            known &= stored != layer.nodata
        return np.where(known, steps, -1).astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """How areas become rows of the file."""

    collection: str
    names: tuple[str, ...]
    grid: GeoBox
    crs: CRS | None
    observed: datetime | None
    confidence: bool

    def schema(self) -> pa.Schema:
        import pyarrow as pa

        number = pa.float64()
        columns = [
            pa.field("id", pa.string(), nullable=False),
            pa.field("collection", pa.string(), nullable=False),
            pa.field("geometry", pa.binary(), nullable=False),
            pa.field("bbox", pa.struct([(side, number) for side in ("xmin", "ymin", "xmax", "ymax")])),
            pa.field("metrics:area", pa.float32()),
            pa.field("metrics:perimeter", pa.float32()),
            pa.field("determination:datetime", pa.timestamp("ms", tz="UTC")),
            pa.field("determination:method", pa.string()),
            pa.field("class", pa.string()),
            pa.field("class_index", pa.uint8()),
        ]
        return pa.schema(columns + [pa.field("confidence", pa.float32())] * self.confidence)

    def table(self, outlines: Outlines, min_area: float) -> pa.Table:
        """The areas that are large enough."""
        import pyarrow as pa

        affine = self.grid.affine
        row, column = outlines.corners[:, 0], outlines.corners[:, 1]
        points = np.stack(
            (affine.a * column + affine.b * row + affine.c, affine.d * column + affine.e * row + affine.f), axis=1
        )
        if affine.determinant < 0:  # exteriors run counter-clockwise on the ground: the raster is seen from above
            points = _reversed(points, outlines.rings)
        shapes = shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, (outlines.rings, outlines.areas))
        area, perimeter = self._metrics(points, outlines)
        large = np.flatnonzero(np.isnan(area) | (area >= min_area))
        sides = shapely.bounds(shapes[large]).T
        number = len(large)
        width = self.grid.shape.x
        columns = [
            pa.array([f"r{first // width}c{first % width}" for first in outlines.first[large].tolist()], pa.string()),
            pa.repeat(pa.scalar(self.collection, pa.string()), number),
            pa.array(shapely.to_wkb(shapes[large]), pa.binary()),
            pa.StructArray.from_arrays([pa.array(side) for side in sides], ["xmin", "ymin", "xmax", "ymax"]),
            pa.array(area[large].astype(np.float32), from_pandas=True),
            pa.array(perimeter[large].astype(np.float32), from_pandas=True),
            pa.array([self.observed] * number, pa.timestamp("ms", tz="UTC")),
            pa.repeat(pa.scalar("auto-imagery"), number),
            pa.array(self.names, pa.string()).take(pa.array(outlines.value[large])),
            pa.array(outlines.value[large]),
        ]
        if self.confidence:
            with np.errstate(invalid="ignore"):  # 0 / 0: of no pixel the confidence is known
                mean = outlines.weight[large] / outlines.weighed[large] / _FINE
            columns.append(pa.array(mean.astype(np.float32), from_pandas=True))
        return pa.Table.from_arrays(columns, schema=self.schema())

    def _metrics(
        self, points: NDArray[np.float64], outlines: Outlines
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Area in m² and perimeter in m of each area."""
        if self.crs is None:
            unknown = np.full(len(outlines.first), math.nan)
            return unknown, unknown
        factor = self.crs.axis_info[0].unit_conversion_factor
        if not self.crs.is_geographic:
            edges = np.hypot(*np.diff(points, axis=0, append=points[:1]).T)
            edges[outlines.rings[1:] - 1] = 0  # from one ring to the next
            length = np.add.reduceat(edges, outlines.rings[outlines.areas[:-1]])
            return outlines.pixels * abs(self.grid.affine.determinant) * factor**2, length * factor
        geod = self.crs.get_geod()
        degrees = points * math.degrees(factor)
        rings = zip(outlines.rings[:-1].tolist(), outlines.rings[1:].tolist(), strict=True)
        measured = np.array([geod.polygon_area_perimeter(*degrees[start : end - 1].T) for start, end in rings])
        # exteriors are positive and interiors negative: their directions differ
        return tuple(np.abs(np.add.reduceat(measured, outlines.areas[:-1])).T)

    def metadata(self, bounds: list[float] | None) -> dict[str, str]:
        """What GeoParquet and Vecorel put beside the rows."""
        column: dict[str, Any] = {
            "encoding": "WKB",
            "geometry_types": [] if bounds is None else ["Polygon"],
            "crs": None if self.crs is None else self.crs.to_json_dict(),
            "orientation": "counterclockwise",
            "covering": {"bbox": {side: ["bbox", side] for side in ("xmin", "ymin", "xmax", "ymax")}},
        }
        if bounds is not None:
            column["bbox"] = bounds
        geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
        ours = {name: {"type": kind} for name, kind in _OURS.items() if name != "confidence" or self.confidence}
        told = {
            "schemas": {self.collection: _SCHEMAS},
            "schemas:custom": {
                "$schema": "https://vecorel.org/sdl/v0.2.0/schema.json",
                "required": [],
                "collection": {},
                "properties": ours,
            },
        }
        return {"geo": json.dumps(geo), "collection": json.dumps(told)}


class _File:
    """A growing Parquet file of full row groups."""

    def __init__(self, path: Path, rows: _Rows) -> None:
        import pyarrow.parquet as pq

        self._rows = rows
        self._writer = pq.ParquetWriter(path, rows.schema(), compression="zstd")
        self._waiting = rows.schema().empty_table()
        self._bounds: list[tuple[float, float, float, float]] = []

    def add(self, table: pa.Table) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        if not len(table):
            return
        sides = table["bbox"].combine_chunks()
        least = [pc.min(sides.field(side)).as_py() for side in ("xmin", "ymin")]
        most = [pc.max(sides.field(side)).as_py() for side in ("xmax", "ymax")]
        self._bounds.append((*least, *most))
        self._waiting = pa.concat_tables((self._waiting, table))
        while len(self._waiting) >= _GROUP:
            self._writer.write_table(self._waiting.slice(0, _GROUP).combine_chunks())
            self._waiting = self._waiting.slice(_GROUP)

    def close(self) -> None:
        if len(self._waiting):
            self._writer.write_table(self._waiting.combine_chunks())
        bounds = None
        if self._bounds:
            west, south, east, north = zip(*self._bounds, strict=True)
            bounds = [min(west), min(south), max(east), max(north)]
        self._writer.add_key_value_metadata(self._rows.metadata(bounds))
        self._writer.close()

    def discard(self) -> None:
        self._writer.close()


@contextmanager
def _file(out: Path, rows: _Rows) -> Iterator[_File]:
    """A file that takes its name when it is whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    try:
        file = _File(part, rows)
    except ModuleNotFoundError as error:
        raise ValueError("field polygons are written by pyarrow, which is missing; pip install pyarrow") from error
    try:
        yield file
        file.close()
    except BaseException:
        file.discard()
        part.unlink(missing_ok=True)
        raise
    part.replace(out)


def _reversed(points: NDArray[np.float64], rings: NDArray[np.int64]) -> NDArray[np.float64]:
    """The same rings in the other direction, from the same corner."""
    place = np.arange(len(points))
    sizes = np.diff(rings)
    mirrored: NDArray[np.float64] = points[np.repeat(rings[:-1] + rings[1:] - 1, sizes) - place]
    return mirrored


def _crs(grid: GeoBox) -> CRS | None:
    from pyproj import CRS

    if grid.crs is None:
        return None
    code = grid.crs.to_epsg()
    return CRS.from_wkt(grid.crs.to_wkt()) if code is None else CRS.from_epsg(code)


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(
            f"determination_datetime must be a date or time by ISO 8601, not {text!r}; write 2021-07-23T10:40:31Z"
        ) from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)

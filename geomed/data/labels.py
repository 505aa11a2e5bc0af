"""The truth of one area: codes in a raster or in polygons, brought to the grid of the images."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from affine import Affine
from rasterio.features import rasterize, shapes
from shapely import STRtree, polygons
from shapely.geometry import shape

from geomed.data.area import code_text
from geomed.io.footprint import corners
from geomed.io.geotiff import GeoTiff
from geomed.io.sampling import look_up
from geomed.pixels import IGNORE
from geomed.windows import Window, cover

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox
    from shapely.geometry.base import BaseGeometry

    from geomed.data.area import Labels, Legend

_log = logging.getLogger(__name__)
_RASTERS = {".tif", ".tiff", ".vrt", ".jp2", ".img"}
_SCAN = 1024  # side of the windows in which a label raster is scanned


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Polygons with one class each, and which of them covers a pixel."""

    geometries: tuple[BaseGeometry, ...]
    """Outlines in the coordinates of the images."""

    classes: tuple[int, ...]
    """Class index of each, IGNORE where it is not known."""

    tree: STRtree
    """An index of the outlines in space."""

    @classmethod
    def of(cls, geometries: Sequence[BaseGeometry], classes: Sequence[int]) -> Fields:
        """Fields with their index."""
        return cls(geometries=tuple(geometries), classes=tuple(classes), tree=STRtree(geometries))

    def near(self, grid: GeoBox, window: Window) -> NDArray[np.int64]:
        """Indices of the fields whose bounding box meets a window, ascending."""
        return np.sort(self.tree.query(polygons(corners(grid, window))))

    def ids(self, grid: GeoBox, window: Window, *, among: frozenset[int] | None = None) -> NDArray[np.int32]:
        """Index of the field that covers the centre of each pixel, -1 where none; the last one where several do.

        Args:
            grid: what the window counts in.
            window: the pixels wanted.
            among: fields to consider; None: all.
        """
        near = [int(index) for index in self.near(grid, window) if among is None or int(index) in among]
        return _burn([(self.geometries[index], index) for index in near], grid, window, fill=-1)


class Truth(ABC):
    """Class index of each pixel of an area."""

    @abstractmethod
    def read(self, grid: GeoBox, window: Window) -> NDArray[np.int64]:
        """Class indices [H, W] of a window, IGNORE where unknown.

        Raises:
            ValueError: a code is not in the legend, or the file cannot be read.
        """

    @abstractmethod
    def check(self) -> None:
        """Scan all labels once.

        Raises:
            ValueError: codes are not in the legend; they are listed with their counts.
        """

    @abstractmethod
    def fields(self) -> Fields:
        """The labelled fields: the polygons, or the connected regions of a raster."""


@dataclass(frozen=True, kw_only=True)
class RasterTruth(Truth):
    """Codes in a raster.

    A pixel of the grid keeps a class only if all label pixels in it agree ("pure pixels"); where the label pixels are
    larger it takes that of the one under its centre. The raster's nodata is IGNORE unless the legend lists it.
    """

    raster: GeoTiff
    """The file."""

    band: int
    """Its band with the codes, from 1."""

    table: Mapping[str, int]
    """Code as text → class index, or IGNORE."""

    def read(self, grid: GeoBox, window: Window) -> NDArray[np.int64]:  # noqa: D102  (see Truth)
        fill = IGNORE
        codes = look_up(self.raster, self.band, grid, window, outside=_OUTSIDE)
        classes = self._classes(codes, outside=fill)
        return np.where((classes == classes[0]).all(axis=0), classes[0], IGNORE)

    def check(self) -> None:  # noqa: D102  (see Truth)
        counts: Counter[str] = Counter()
        for window, _ in cover(self.raster.grid.shape.yx, size=_SCAN):
            for code, number in zip(*np.unique(self.raster.read(window, [self.band]), return_counts=True), strict=True):
                counts[_number_text(code)] += int(number)
        _refuse_unknown(counts, self._known(), str(self.raster.path), "pixels")

    def fields(self) -> Fields:  # noqa: D102  (see Truth)
        classes = self._classes(self.raster.read(self.raster.whole, [self.band]), outside=IGNORE)[0].astype(np.uint8)
        found = list(shapes(classes, mask=classes != IGNORE, connectivity=4, transform=self.raster.grid.affine))
        return Fields.of([shape(geometry) for geometry, _ in found], [int(value) for _, value in found])

    def _known(self) -> Mapping[str, int]:
        nodata = self.raster.nodata
        unlisted = {} if nodata is None else {_number_text(nodata): IGNORE}
        return {"nan": IGNORE, **unlisted, **self.table}

    def _classes(self, codes: NDArray[np.generic], *, outside: int) -> NDArray[np.int64]:
        present, where = np.unique(codes, return_inverse=True)
        texts = [_number_text(code) for code in present]
        known = {**self._known(), _number_text(_OUTSIDE): outside}
        _refuse_unknown(dict.fromkeys(texts, 1), known, str(self.raster.path), "pixels or more")
        return np.array([known[text] for text in texts], dtype=np.int64)[where].reshape(codes.shape)


_OUTSIDE = -(2**40)  # no code of a raster: it widens the type where a window leaves the labels


@dataclass(frozen=True, kw_only=True)
class PolygonTruth(Truth):
    """Codes in polygons, rasterised window by window.

    A pixel belongs to the polygon that covers its centre; where polygons of different classes overlap, and outside
    all of them, it is IGNORE.
    """

    polygons: Fields
    """The polygons in the coordinates of the images."""

    def read(self, grid: GeoBox, window: Window) -> NDArray[np.int64]:  # noqa: D102  (see Truth)
        near = self.polygons.near(grid, window)
        labels = np.full((window.height, window.width), IGNORE, dtype=np.int64)
        covered = np.zeros(labels.shape, dtype=np.int64)
        for value in sorted({self.polygons.classes[index] for index in near}):
            outlines = [(self.polygons.geometries[i], 1) for i in near if self.polygons.classes[i] == value]
            inside = _burn(outlines, grid, window, fill=0) == 1
            labels[inside] = value
            covered += inside
        return np.where(covered == 1, labels, IGNORE)

    def check(self) -> None:  # noqa: D102  (see Truth; the codes were looked up when the file was read)
        return

    def fields(self) -> Fields:  # noqa: D102  (see Truth)
        return self.polygons


def open_truth(labels: Labels | None, legend: Legend, grid: GeoBox, owner: str) -> Truth | None:
    """The truth of an area, or None where it has no labels.

    Args:
        labels: where they are.
        legend: the source's legend; it gives the class indices.
        grid: the grid of the images.
        owner: whose labels they are, as ``area north``.

    Raises:
        ValueError: the file does not fit: missing, another coordinate system, no such band, column or code.
    """
    if labels is None:
        return None
    own = legend if labels.legend is None else labels.legend
    foreign = [name for name in own.names if name not in legend.names]
    if foreign:
        raise ValueError(
            f"{labels.path}: its legend names {', '.join(foreign)}, which is no class of the source; "
            f"the classes are {', '.join(legend.names)}"
        )
    table = own.table(legend.names)
    path = Path(labels.path)
    if not path.is_file():
        raise ValueError(f"{owner}: there is no label file {path}; correct the path")
    if path.suffix.lower() in _RASTERS:
        return _open_raster(path, labels, table, grid)
    return _open_polygons(path, labels, table, grid)


def _open_raster(path: Path, labels: Labels, table: Mapping[str, int], grid: GeoBox) -> RasterTruth:
    raster = GeoTiff.open(path)
    if raster.grid.crs != grid.crs:
        raise ValueError(
            f"{path}: a label raster must have the coordinate system of its images, {grid.crs}, not "
            f"{raster.grid.crs}; reproject it (gdalwarp -r near) or give polygons"
        )
    count = len(raster.bands)
    if isinstance(labels.band, str) and labels.band not in raster.bands:
        raise ValueError(
            f"{path}: no band is described as {labels.band!r}, there are {', '.join(map(repr, raster.bands))}; "
            "give one of these or a number"
        )
    band = raster.bands.index(labels.band) + 1 if isinstance(labels.band, str) else labels.band
    if not 1 <= band <= count:
        raise ValueError(f"{path}: band {band} does not exist, there are 1 to {count}; correct the number")
    return RasterTruth(raster=raster, band=band, table=table)


def _open_polygons(path: Path, labels: Labels, table: Mapping[str, int], grid: GeoBox) -> PolygonTruth:
    import geopandas  # slow to import, and only needed for vector labels

    try:
        listed = geopandas.list_layers(path)
        layers = listed.name[listed.geometry_type.notna()].tolist()  # the others are tables, as QGIS's layer_styles
        frame = geopandas.read_file(path, layer=labels.layer or (layers or [None])[0])
    except (OSError, RuntimeError, ValueError) as error:  # pyogrio's errors are RuntimeErrors
        raise ValueError(
            f"{path}: the labels cannot be read ({str(error).splitlines()[0]}); give a GeoPackage or GeoJSON, its "
            "layer if it has several"
        ) from error
    if labels.layer is None and len(layers) != 1:
        raise ValueError(
            f"{path}: a label file must have one layer of polygons or name it, here {', '.join(layers) or 'none'}; "
            "set layer"
        )
    if labels.column not in frame.columns:
        columns = ", ".join(str(name) for name in frame.columns if name != "geometry")
        raise ValueError(f"{path}: there is no column {labels.column!r}, there are {columns}; name one of these")
    if (frame.crs is None) != (grid.crs is None):
        raise ValueError(
            f"{path}: labels and images must both have a coordinate system or neither, here {frame.crs} and "
            f"{grid.crs}; assign the missing one"
        )
    if grid.crs is not None:
        frame = frame.to_crs(grid.crs.to_wkt())
    frame = frame[~(frame.geometry.isna() | frame.geometry.is_empty)]
    other = sorted(set(frame.geometry.geom_type) - {"Polygon", "MultiPolygon"})
    if other:
        raise ValueError(f"{path}: labels must be polygons, there is {', '.join(other)}; buffer or remove them")
    unknown = frame[labels.column].isna()
    if unknown.any():
        _log.warning(
            "%s: %d of %d polygons have no %s: they are ignored", path, unknown.sum(), len(frame), labels.column
        )
    codes = ["" if missing else code_text(code) for code, missing in zip(frame[labels.column], unknown, strict=True)]
    _refuse_unknown(Counter(code for code in codes if code), table, str(path), "polygons")
    classes = [table[code] if code else IGNORE for code in codes]
    return PolygonTruth(polygons=Fields.of(list(frame.geometry), classes))


def _refuse_unknown(counts: Mapping[str, int], table: Mapping[str, int], where: str, unit: str) -> None:
    wrong = {code: number for code, number in sorted(counts.items()) if code not in table}
    if wrong:
        listed = ", ".join(f"{code} ({number} {unit})" for code, number in list(wrong.items())[:10])
        more = f" and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise ValueError(
            f"{where}: every label code must be in the legend, these are not: {listed}{more}; "
            "add them to a class or to ignore"
        )


def _number_text(code: object) -> str:
    return code_text(float(np.asarray(code))) if np.asarray(code).dtype.kind == "f" else code_text(code)


def _burn(shapes_: Sequence[tuple[BaseGeometry, int]], grid: GeoBox, window: Window, *, fill: int) -> NDArray[np.int32]:
    size = (window.height, window.width)
    if not shapes_:
        return np.full(size, fill, dtype=np.int32)
    corner = grid.affine @ Affine.translation(window.column, window.row)
    burnt: NDArray[np.int32] = rasterize(shapes_, out_shape=size, fill=fill, transform=corner, dtype=np.int32)
    return burnt

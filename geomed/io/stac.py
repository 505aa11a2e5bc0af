"""STAC items: what stands beside a map, and the card of the model that made it.

STAC 1.1.0 with the extensions projection 2.0, raster 2.0, classification 2.0, processing 1.2, file 2.1 and, of models,
mlm 1.5 (https://stac-extensions.github.io).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pystac
from pystac.extensions.projection import ProjectionExtension

from geomed.io.geotiff import GeoTiff
from geomed.io.ground import ground
from geomed.io.stac_document import add, class_objects, document, href, refuse_wrong, utc, write

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from odc.geo.geobox import GeoBox

    from geomed.io.extents import Extents
    from geomed.palette import Colour

_CLASSIFICATION = "https://stac-extensions.github.io/classification/v2.0.0/schema.json"
_PROCESSING = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"
_RASTER = "https://stac-extensions.github.io/raster/v2.0.0/schema.json"
_MLM = "https://stac-extensions.github.io/mlm/v1.5.2/schema.json"

_PARQUET = "application/vnd.apache.parquet"

_BYTES = "application/octet-stream"

_TASK = "semantic-segmentation"


@dataclass(frozen=True, kw_only=True)
class MapItem:
    """A map and the files that belong to it."""

    name: str
    """Identifier of the item."""

    grid: GeoBox
    """Shape, transform and coordinate system (None is allowed) of the map."""

    classes: tuple[str, ...]
    """Names in index order."""

    colours: tuple[Colour, ...]
    """One for each class."""

    map: Path
    """Classes as a Cloud Optimised GeoTIFF."""

    confidence: Path | None = None
    """Raster of the confidence in them."""

    probabilities: Path | None = None
    """Raster with a band for each class."""

    fields: Path | None = None
    """Polygons as GeoParquet."""

    thumbnail: Path | None = None
    """Picture of the map as PNG."""

    extents: Extents | None = None
    """Pixels and areas of the classes."""

    start: datetime | None = None
    """When it was observed, or first observed; in UTC if it names no zone. None: it is not known."""

    end: datetime | None = None
    """When it was last observed, of a series."""

    lineage: str = ""
    """How it was made, in a sentence."""

    software: Mapping[str, str] = field(default_factory=dict)
    """Names and versions of the programs that made it."""

    model: Path | None = None
    """The item of the model that made it."""

    model_name: str = ""
    """Name in that item."""

    sources: tuple[str, ...] = ()
    """Addresses of what was mapped, as links are to hold them."""

    def __post_init__(self) -> None:
        """Refuse what does not fit together."""
        refuse_wrong(self.name, self.classes, self.colours)
        if self.extents is not None and len(self.extents.pixels) != len(self.classes):
            raise ValueError(
                f"{self.name}: extents of {len(self.extents.pixels)} classes do not fit {len(self.classes)}; "
                "count again"
            )
        if self.end is not None and (self.start is None or utc(self.end) < utc(self.start)):
            raise ValueError(
                f"{self.name}: a series ends after it starts, not {self.start} to {self.end}; give both dates"
            )


@dataclass(frozen=True, kw_only=True)
class ModelItem:
    """A model card."""

    name: str
    """Name of the model."""

    architecture: str
    """Established name of its architecture."""

    bands: tuple[str, ...]
    """What it reads, in order."""

    classes: tuple[str, ...]
    """What it tells apart, in order of its logits."""

    colours: tuple[Colour, ...]
    """One for each class."""

    series: bool
    """Whether it reads several dates."""

    window: int
    """Side of the windows that it was trained on, in pixels."""

    fixed: bool = False
    """Whether it reads windows of that side only."""

    units: tuple[float, float] | None = None
    """(scale, offset): it was trained on scale * stored number + offset. None: not known."""

    mean: tuple[float, ...] | None = None
    """Of each band, subtracted before the network; None: not known."""

    deviation: tuple[float, ...] | None = None
    """Of each band, divided by before the network; None: not known."""

    parameters: int | None = None
    """Their number in all."""

    framework: str = "PyTorch"
    """What runs it."""

    artifact: Path | None = None
    """The model's file, if it is given away."""

    artifact_type: str = ""
    """Its kind in mlm's words: ``torch.save``, ``torch.export.save``, ``onnx`` …"""

    about: Mapping[str, str] = field(default_factory=dict)
    """Anything else that is to be told."""

    def __post_init__(self) -> None:
        """Refuse what does not fit together."""
        refuse_wrong(self.name, self.classes, self.colours)
        if (self.mean is None) != (self.deviation is None) or (
            self.mean is not None
            and self.deviation is not None
            and not len(self.mean) == len(self.deviation) == len(self.bands)
        ):
            raise ValueError(
                f"{self.name}: {len(self.bands)} bands need as many means and deviations, or none of both, "
                f"not {self.mean} and {self.deviation}"
            )
        if (self.artifact is None) != (not self.artifact_type):
            raise ValueError(
                f"{self.name}: a model's file needs its kind, and a kind a file, not {self.artifact} with "
                f"{self.artifact_type!r}; give both or none"
            )


def write_item(path: Path, item: MapItem) -> None:
    """Describe a map in a STAC item. The same map and item give the same bytes.

    Readers that know no extension find the footprint, the date, the files with sizes and SHA-256, and the areas of the
    classes in m² as ``geomed:areas``. A map without coordinate system has the geometry null. Where the date is not
    known the item's interval excludes none.

    Raises:
        ValueError: a raster cannot be read, or the map lies where its coordinate system has no ground.
    """
    place = ground(item.grid)
    told = document(item.name, place, item.start, item.end)
    affine, crs = item.grid.affine, item.grid.crs
    code = None if crs is None else crs.to_epsg()
    bounds = item.grid.boundingbox
    ProjectionExtension.ext(told, add_if_missing=True).apply(
        code=None if code is None else f"EPSG:{code}",
        wkt2=crs.proj.to_wkt("WKT2_2019") if crs is not None and code is None else None,
        shape=list(item.grid.shape.yx),
        transform=[affine.a, affine.b, affine.c, affine.d, affine.e, affine.f],
        bbox=[bounds.left, bounds.bottom, bounds.right, bounds.top],
    )
    told.properties["proj:code"] = None if code is None else f"EPSG:{code}"  # null is said, not left out
    told.properties["processing:level"] = "L4"  # results of a model, by mlm's best practices
    if item.start is None:
        told.properties["description"] = "The date of what was mapped is not known: the interval excludes none."
    if item.software:
        told.properties["processing:software"] = dict(item.software)
    if item.lineage:
        told.properties["processing:lineage"] = item.lineage
    if item.extents is not None and item.extents.areas is not None:
        told.properties["geomed:areas"] = [
            {"value": value, "title": title, "area": round(area, 2)}
            for value, (title, area) in enumerate(zip(item.classes, item.extents.areas, strict=True))
        ]
    told.stac_extensions += [_CLASSIFICATION, _PROCESSING, _RASTER]
    for key, file, asset in _assets(path.parent, item):
        add(told, key, file, asset)
    _link(told, path.parent, item)
    write(path, told)


def write_model_item(path: Path, item: ModelItem) -> None:
    """Describe a model in a STAC item by the mlm extension.

    Where and when a model may be used is not known here: the geometry is null and the interval excludes nothing. By the
    schemas of STAC and mlm only an item with a model's file may name bands, so that without one ``geomed:bands`` does.
    """
    told = document(item.name, None, None, None)
    told.stac_extensions += [_CLASSIFICATION, _MLM, *([_RASTER] if item.units and item.artifact else [])]
    side = item.window if item.fixed else -1
    scaling = None
    if item.mean is not None and item.deviation is not None:
        scaling = [
            {"type": "z-score", "mean": mean, "stddev": deviation}
            for mean, deviation in zip(item.mean, item.deviation, strict=True)
        ]
    units = {} if item.units is None else {"raster:scale": item.units[0], "raster:offset": item.units[1]}
    bands = [{"name": band, **units} for band in item.bands]
    given = item.artifact is not None
    told.properties |= {
        "bands" if given else "geomed:bands": bands,
        "mlm:name": item.name,
        "mlm:architecture": item.architecture,
        "mlm:tasks": [_TASK],
        "mlm:framework": item.framework,
        "mlm:hyperparameters": {"window": item.window},
        "mlm:input": [
            {
                "name": "image time series" if item.series else "image",
                "bands": list(item.bands) if given else [],
                "input": {
                    "shape": [-1, *([-1] if item.series else []), len(item.bands), side, side],
                    "dim_order": [
                        "batch",
                        *(["time"] if item.series else []),
                        "bands" if given else "channel",
                        "height",
                        "width",
                    ],
                    "data_type": "float32",
                },
                "value_scaling": scaling,
                "resize_type": None,
            }
        ],
        "mlm:output": [
            {
                "name": "logits",
                "tasks": [_TASK],
                "bands": [],
                "result": {
                    "shape": [-1, len(item.classes), side, side],
                    "dim_order": ["batch", "class", "height", "width"],
                    "data_type": "float32",
                },
                "classification:classes": class_objects(item.classes, item.colours),
            }
        ],
    }
    if item.parameters is not None:
        told.properties["mlm:total_parameters"] = item.parameters
    if item.about:
        told.properties["geomed:about"] = dict(item.about)
    if item.artifact is not None:
        kind = {"mlm:artifact_type": item.artifact_type, "bands": bands}
        where = href(item.artifact, path.parent)
        add(told, "model", item.artifact, pystac.Asset(where, "Model", None, _BYTES, ["mlm:model"], kind))
    write(path, told)


def _assets(folder: Path, item: MapItem) -> Iterator[tuple[str, Path, pystac.Asset]]:
    counts = None if item.extents is None else (*item.extents.pixels, item.grid.shape.y * item.grid.shape.x)
    classes = class_objects(item.classes, item.colours, counts)
    made: dict[str, Any] = {}
    if item.model is not None:
        expression = {"format": "stac-mlm", "expression": href(item.model, folder)}
        made = {"mlm:name": item.model_name, "processing:level": "L4", "processing:expression": expression}
    band = {**_bands(item.map, ["class"], item.grid)[0], "classification:classes": classes}
    rasters = [("map", "Classes", item.map, {"bands": [band], **made})]
    if item.confidence is not None:
        bands = _bands(item.confidence, ["confidence", "entropy"], item.grid)
        rasters.append(("confidence", "Confidence", item.confidence, {"bands": bands}))
    if item.probabilities is not None:
        bands = _bands(item.probabilities, item.classes, item.grid)
        rasters.append(("probabilities", "Probabilities of the classes", item.probabilities, {"bands": bands}))
    for key, title, file, fields in rasters:
        yield key, file, pystac.Asset(href(file, folder), title, None, pystac.MediaType.COG, ["data"], fields)
    if item.fields is not None:
        yield "fields", item.fields, pystac.Asset(href(item.fields, folder), "Polygons", None, _PARQUET, ["data"])
    if item.thumbnail is not None:
        where = href(item.thumbnail, folder)
        yield "thumbnail", item.thumbnail, pystac.Asset(where, "Picture", None, pystac.MediaType.PNG, ["thumbnail"])


def _link(told: pystac.Item, folder: Path, item: MapItem) -> None:
    """What the map was derived from: its model (mlm, section Relation Types), and what was mapped."""
    if item.model is not None:
        named = {"mlm:name": item.model_name, "processing:level": "L4"}
        told.add_link(pystac.Link("derived_from", href(item.model, folder), pystac.MediaType.GEOJSON, None, named))
    for source in item.sources:
        told.add_link(pystac.Link("derived_from", source))


def _bands(path: Path, names: Sequence[str], grid: GeoBox) -> list[dict[str, Any]]:
    """The bands of a raster as its head tells them; ``names`` where it names none."""
    raster = GeoTiff.open(path)
    if raster.grid.shape != grid.shape:
        raise ValueError(
            f"{path}: it has {raster.grid.shape.yx} pixels and the map {grid.shape.yx}; write both by one run"
        )
    bands = []
    for number, name in enumerate(raster.bands):
        band: dict[str, Any] = {
            "name": name or (names[number] if number < len(names) else f"{number + 1}"),
            "data_type": raster.dtype,
            "raster:sampling": "area",
        }
        if raster.nodata is not None:
            nodata = float(raster.nodata)
            band["nodata"] = "nan" if math.isnan(nodata) else int(nodata) if nodata.is_integer() else nodata
        if (raster.scales[number], raster.offsets[number]) != (1, 0):
            band |= {"raster:scale": raster.scales[number], "raster:offset": raster.offsets[number]}
        bands.append(band)
    return bands

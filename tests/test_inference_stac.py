import hashlib
import json
import re
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pystac
import pytest
import shapely
from affine import Affine
from fakes import GRID, write_raster
from jsonschema import Draft7Validator
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from pystac.validation.local_validator import get_local_schema_cache
from referencing import Registry, Resource

from geomed.io.extents import Extents, extents
from geomed.io.footprint import corners
from geomed.io.geotiff import write_map
from geomed.io.ground import ground
from geomed.io.stac import MapItem, ModelItem, write_item, write_model_item
from geomed.windows import Window

CLASSES = ("maize", "Wald / Süd \N{EVERGREEN TREE}", "wald sud", "\N{EVERGREEN TREE}")
COLOURS = ((242, 169, 0), (139, 203, 107), (0, 0, 1), (255, 255, 255))
SUMMER = datetime(2021, 7, 23, 10, 40, 31, tzinfo=UTC)


def assert_valid(content):
    """By the JSON schemas of STAC 1.1.0, without a network."""
    schemas = get_local_schema_cache()
    registry = Registry().with_resources((uri, Resource.from_contents(schema)) for uri, schema in schemas.items())
    schema = schemas["https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/item.json"]
    errors = [error.message for error in Draft7Validator(schema, registry=registry).iter_errors(content)]
    assert errors == []
    assert content["stac_version"] == "1.1.0"
    assert content["stac_extensions"] == sorted(set(content["stac_extensions"]))


def map_item(folder, grid=GRID, **fields):
    classes = np.random.default_rng(0).integers(0, 4, grid.shape.yx).astype(np.uint8)
    classes[:3] = 255
    write_map(folder / "map.tif", classes, grid, names=CLASSES, colours=COLOURS)
    given = {"name": "a scene", "grid": grid, "classes": CLASSES, "colours": COLOURS, "map": folder / "map.tif"}
    return MapItem(**given | {"start": SUMMER} | fields)


def written(path, item):
    (write_item if isinstance(item, MapItem) else write_model_item)(path, item)
    assert not list(path.parent.glob("*.part"))
    content = json.loads(path.read_text(encoding="utf-8"))
    assert_valid(content)
    assert pystac.Item.from_file(str(path)).id == item.name
    return content


def test_a_map_with_all_that_belongs_to_it(tmp_path):
    shares = np.full((2, 40, 48), 125, np.uint8)
    picture, polygons = tmp_path / "map.png", tmp_path / "fields #1.parquet"
    picture.write_bytes(b"picture")
    polygons.write_bytes(b"polygons")
    item = map_item(tmp_path)
    item = replace(
        item,
        confidence=write_raster(tmp_path / "sure.tif", shares, bands=("p", "h"), nodata=255, units=(1 / 250, 0)),
        probabilities=write_raster(tmp_path / "all.tif", shares.repeat(2, 0), nodata=255, units=(1 / 250, 0)),
        fields=polygons,
        thumbnail=picture,
        extents=extents(item.map, 4),
        lineage="Softmax of TSViT, blended over windows.",
        software={"geomed": "0.1"},
        model=tmp_path / "model.json",
        model_name="tsvit",
        sources=("./a scene.json",),
    )
    content = written(tmp_path / "map.json", item)
    properties, assets = content["properties"], content["assets"]
    assert properties["datetime"] == "2021-07-23T10:40:31Z"
    assert properties["proj:code"] == "EPSG:32631"
    assert properties["proj:shape"] == [40, 48]
    assert properties["proj:transform"] == [10, 0, 500_000, 0, -10, 5_600_000]
    assert properties["proj:bbox"] == [500_000, 5_599_600, 500_480, 5_600_000]
    assert properties["processing:software"] == {"geomed": "0.1"}
    assert properties["processing:level"] == "L4"
    assert set(assets) == {"map", "confidence", "probabilities", "fields", "thumbnail"}
    for asset in assets.values():
        assert asset["href"].startswith("./")
        file = tmp_path / asset["href"][2:].replace("%20", " ").replace("%23", "#")
        assert asset["file:size"] == file.stat().st_size
        assert asset["file:checksum"] == "1220" + hashlib.sha256(file.read_bytes()).hexdigest()
    assert assets["fields"]["href"] == "./fields%20%231.parquet"
    assert assets["fields"]["type"] == "application/vnd.apache.parquet"
    assert assets["thumbnail"]["roles"] == ["thumbnail"]
    assert "cloud-optimized" in assets["map"]["type"]
    assert assets["confidence"]["bands"][1] == {
        "name": "h", "data_type": "uint8", "nodata": 255, "raster:sampling": "area", "raster:scale": 0.004,
        "raster:offset": 0,
    }  # fmt: skip
    assert [band["name"] for band in assets["probabilities"]["bands"]] == list(CLASSES)
    (link,) = [link for link in content["links"] if "mlm:name" in link]
    assert (link["rel"], link["href"], link["mlm:name"]) == ("derived_from", "./model.json", "tsvit")
    assert assets["map"]["processing:expression"] == {"format": "stac-mlm", "expression": "./model.json"}
    first = (tmp_path / "map.json").read_bytes()
    written(tmp_path / "map.json", item)
    assert (tmp_path / "map.json").read_bytes() == first
    assert first.endswith(b"}\n")


def test_classes_and_their_areas(tmp_path):
    item = map_item(tmp_path)
    content = written(tmp_path / "map.json", replace(item, extents=extents(item.map, 4)))
    (band,) = content["assets"]["map"]["bands"]
    classes = band["classification:classes"]
    assert [told["value"] for told in classes] == [0, 1, 2, 3, 255]
    assert [told["name"] for told in classes] == ["maize", "Wald_Sud", "wald_sud", "class_3", "nodata"]
    assert [told["title"] for told in classes[:4]] == list(CLASSES)
    assert all(re.fullmatch("[0-9A-Za-z-_]+", told["name"]) for told in classes)
    assert [told.get("color_hint") for told in classes] == ["F2A900", "8BCB6B", "000001", "FFFFFF", None]
    assert [told.get("nodata") for told in classes] == [None] * 4 + [True]
    assert classes[-1]["count"] == 3 * 48
    assert sum(told["count"] for told in classes) == 40 * 48
    assert sum(told["percentage"] for told in classes) == pytest.approx(100, abs=1e-4)
    areas = content["properties"]["geomed:areas"]
    assert areas[1] == {"value": 1, "title": CLASSES[1], "area": 100.0 * classes[1]["count"]}
    assert sum(told["area"] for told in areas) == 37 * 48 * 100


def test_names_that_only_differ_in_what_is_lost(tmp_path):
    names = ("nodata", "a b", "a_b", "a/b", "", "nodata_4")
    colours = tuple((number, 0, 0) for number in range(6))
    content = written(tmp_path / "model.json", model_item(classes=names, colours=colours))
    classes = content["properties"]["mlm:output"][0]["classification:classes"]
    assert [told["name"] for told in classes] == ["nodata", "a_b", "a_b_2", "a_b_3", "class_4", "nodata_4"]


def test_a_series_has_an_interval(tmp_path):
    item = map_item(tmp_path, start=datetime(2021, 3, 5), end=SUMMER)  # noqa: DTZ001  (no zone is UTC)
    properties = written(tmp_path / "map.json", item)["properties"]
    assert properties["datetime"] is None
    assert (properties["start_datetime"], properties["end_datetime"]) == (
        "2021-03-05T00:00:00Z",
        "2021-07-23T10:40:31Z",
    )


def test_an_unknown_date_excludes_none_and_says_so(tmp_path):
    properties = written(tmp_path / "map.json", map_item(tmp_path, start=None))["properties"]
    assert (properties["start_datetime"], properties["end_datetime"]) == (
        "1900-01-01T00:00:00Z",
        "9999-12-31T23:59:59Z",
    )
    assert "not known" in properties["description"]


def test_without_a_coordinate_system(tmp_path):
    item = map_item(tmp_path, GeoBox(GRID.shape, Affine.identity(), None))
    content = written(tmp_path / "map.json", replace(item, extents=extents(item.map, 4)))
    assert content["geometry"] is None
    assert "bbox" not in content
    assert content["properties"]["proj:code"] is None
    assert "geomed:areas" not in content["properties"]
    assert content["assets"]["map"]["bands"][0]["classification:classes"][0]["count"] > 0


def test_a_coordinate_system_without_a_number(tmp_path):
    grid = GeoBox(GRID.shape, GRID.affine, "+proj=laea +lat_0=51 +lon_0=3.2 +x_0=500000 +y_0=5600000 +type=crs")
    properties = written(tmp_path / "map.json", map_item(tmp_path, grid))["properties"]
    assert properties["proj:code"] is None
    assert properties["proj:wkt2"].startswith("PROJCRS")


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"name": ""}, "must have an identifier"),
        ({"colours": COLOURS[:2]}, "need as many colours, not 4 and 2"),
        ({"extents": Extents(pixels=(1, 2), areas=None)}, "extents of 2 classes do not fit 4"),
        ({"start": None, "end": SUMMER}, "ends after it starts"),
        ({"end": datetime(2020, 1, 1, tzinfo=UTC)}, "ends after it starts"),
    ],
)
def test_maps_that_do_not_fit_together(tmp_path, changes, rule):
    with pytest.raises(ValueError, match=rule):
        map_item(tmp_path, **changes)


def test_a_layer_of_another_size_is_refused(tmp_path):
    other = write_raster(tmp_path / "sure.tif", np.zeros((1, 4, 5), np.uint8))
    with pytest.raises(ValueError, match=r"sure\.tif: it has .* pixels and the map"):
        write_item(tmp_path / "map.json", map_item(tmp_path, confidence=other))
    assert not list(tmp_path.glob("map.json*"))


def test_a_rotated_footprint():
    grid = GeoBox((400, 300), GRID.affine @ Affine.rotation(30), GRID.crs)
    shape, bounds = ground(grid)
    assert shape.is_valid
    assert shape.exterior.is_ccw
    assert len(shape.exterior.coords) == 81
    assert bounds == shape.bounds
    dense = shapely.segmentize(shapely.Polygon(corners(grid, Window(0, 0, 400, 300))), 10)
    to_degrees = Transformer.from_crs("EPSG:32631", "EPSG:4326", always_xy=True)
    dense = shapely.transform(dense, lambda points: np.stack(to_degrees.transform(*points.T), axis=1))
    assert shape.symmetric_difference(dense).area < 1e-5 * shape.area


@pytest.mark.parametrize("west", [179.5, -180.5])
def test_a_footprint_across_the_antimeridian(west):
    shape, bounds = ground(GeoBox((10, 10), Affine(0.1, 0, west, 0, -0.1, 50), "EPSG:4326"))
    assert [part.bounds for part in sorted(shape.geoms, key=lambda part: part.bounds)] == [
        (-180, 49, -179.5, 50),
        (179.5, 49, 180, 50),
    ]
    assert bounds == (179.5, 49, -179.5, 50)
    assert all(part.exterior.is_ccw for part in shape.geoms)


def test_a_projected_grid_across_the_antimeridian():
    grid = GeoBox((100, 3000), Affine(100, 0, 600_000, 0, -100, 7_000_000), "EPSG:32660")
    shape, bounds = ground(grid)
    assert isinstance(shape, shapely.MultiPolygon)
    assert shape.is_valid
    assert bounds[0] > 178
    assert bounds[2] < -174


@pytest.mark.parametrize(("code", "pole"), [("EPSG:3031", -90), ("EPSG:3413", 90)])
def test_a_footprint_around_a_pole(code, pole):
    shape, bounds = ground(GeoBox((100, 100), Affine(10_000, 0, -600_000, 0, -10_000, 500_000), code))
    assert shape.is_valid
    assert (bounds[0], bounds[2]) == (-180, 180)
    assert pole in (bounds[1], bounds[3])
    assert shape.intersects(shapely.Point(12.5, pole * 0.99))
    assert shape.bounds[0::2] == (-180, 180)


def test_the_whole_world():
    shape, bounds = ground(GeoBox((18, 36), Affine(10, 0, -180, 0, -10, 90), "EPSG:4326"))
    assert shape.area == 360 * 180
    assert bounds == (-180, -90, 180, 90)


def test_a_grid_outside_of_its_projection():
    with pytest.raises(ValueError, match="leaves the area of"):
        ground(GeoBox((10, 10), Affine(1e7, 0, 0, 0, -1e7, 9e7), "EPSG:3035"))


def model_item(**fields):
    given = {
        "name": "tsvit-l2",
        "architecture": "TSViT",
        "bands": ("B02", "B03"),
        "classes": CLASSES,
        "colours": COLOURS,
        "series": True,
        "window": 24,
    }
    return ModelItem(**given | fields)


def test_a_model_card(tmp_path):
    artifact = tmp_path / "model.onnx"
    artifact.write_bytes(b"weights")
    item = model_item(
        fixed=True, units=(1e-4, -0.1), mean=(0.1, 0.2), deviation=(1.0, 2.0), parameters=1234, framework="ONNX",
        artifact=artifact, artifact_type="onnx", about={"adapter": "LoRA(rank=4)"},
    )  # fmt: skip
    content = written(tmp_path / "model.json", item)
    properties = content["properties"]
    assert content["geometry"] is None
    for required in ("mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output"):
        assert properties[required]
    assert properties["mlm:total_parameters"] == 1234
    assert properties["bands"][0] == {"name": "B02", "raster:scale": 1e-4, "raster:offset": -0.1}
    (read,), (gives,) = properties["mlm:input"], properties["mlm:output"]
    assert read["input"]["shape"] == [-1, -1, 2, 24, 24]
    assert read["input"]["dim_order"] == ["batch", "time", "bands", "height", "width"]
    assert read["value_scaling"][1] == {"type": "z-score", "mean": 0.2, "stddev": 2.0}
    assert gives["result"]["shape"] == [-1, 4, 24, 24]
    assert [told["value"] for told in gives["classification:classes"]] == [0, 1, 2, 3]
    assert content["assets"]["model"]["roles"] == ["mlm:model"]
    assert content["assets"]["model"]["mlm:artifact_type"] == "onnx"
    assert properties["geomed:about"] == {"adapter": "LoRA(rank=4)"}


def test_a_model_that_is_not_given_away(tmp_path):
    content = written(tmp_path / "model.json", model_item(series=False))
    assert content["assets"] == {}
    assert content["properties"]["geomed:bands"] == [{"name": "B02"}, {"name": "B03"}]
    assert content["properties"]["mlm:input"][0]["input"]["shape"] == [-1, 2, -1, -1]
    assert content["properties"]["mlm:input"][0]["value_scaling"] is None


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"mean": (0.1, 0.2)}, "as many means and deviations"),
        ({"mean": (0.1,), "deviation": (1.0,)}, "as many means and deviations"),
        ({"artifact_type": "onnx"}, "a kind a file"),
        ({"classes": ()}, "need as many colours"),
    ],
)
def test_models_that_do_not_fit_together(changes, rule):
    with pytest.raises(ValueError, match=rule):
        model_item(**changes)

import json
import sys
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
import shapely.affinity
from affine import Affine
from fakes import GRID, write_raster
from odc.geo.geobox import GeoBox
from pyproj import Geod
from rasterio.features import shapes

from geomed.inference import fields
from geomed.inference.fields import write_fields
from geomed.inference.outlines import SKIP, Tracer
from geomed.io.extents import extents
from geomed.io.geotiff import write_map

NAMES = ("maize", "grass & clover", "wald/Süd")
COLOURS = ((242, 169, 0), (139, 203, 107), (0, 0, 0))


def traced(classes, height, weights=None):
    """{first pixel: (class, pixels, rings, weight, weighed)}, in the order in which they come."""
    tracer, areas = Tracer(classes.shape[1]), {}

    def take(parts):
        for part in parts:
            for area in range(len(part.first)):
                rings = range(part.areas[area], part.areas[area + 1])
                areas[int(part.first[area])] = (
                    int(part.value[area]),
                    int(part.pixels[area]),
                    tuple(
                        tuple(map(tuple, part.corners[part.rings[ring] : part.rings[ring + 1], ::-1])) for ring in rings
                    ),
                    int(part.weight[area]),
                    int(part.weighed[area]),
                )

    for row in range(0, len(classes), height):
        rows = slice(row, row + height)
        take(tracer.add(classes[rows], None if weights is None else weights[rows]))
    take(tracer.finish())
    return areas


def whole(classes):
    """The same polygons as GDAL makes them of the whole raster."""
    found = shapes(classes, mask=classes != SKIP, connectivity=4)
    return sorted((int(value), shapely.normalize(shapely.geometry.shape(shape)).wkt) for shape, value in found)


def polygons(areas):
    return [(value, shapely.Polygon(rings[0], rings[1:])) for value, _, rings, _, _ in areas.values()]


def assert_same(classes):
    expected = traced(classes, len(classes))
    ours = sorted((value, shapely.normalize(shape).wkt) for value, shape in polygons(expected))
    assert ours == whole(classes)  # the same vertices too: none on a seam, none where a side goes straight on
    for value, pixels, rings, _, _ in expected.values():
        shape = shapely.Polygon(rings[0], rings[1:])
        assert shape.is_valid
        assert shape.area == pixels
        assert value != SKIP
    assert sum(pixels for _, pixels, _, _, _ in expected.values()) == (classes != SKIP).sum()
    for height in {1, 2, 3, 5, len(classes) // 2 or 1}:
        again = traced(classes, height)
        assert again == expected
        assert list(again) == list(expected)  # in the same order


@pytest.mark.parametrize("seed", range(60))
def test_any_strips_give_what_gdal_makes_of_the_whole(seed):
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, rng.integers(1, 5), rng.integers(1, 16, 2)).astype(np.uint8)
    if seed % 3:
        classes[rng.random(classes.shape) < 0.3] = SKIP
    if seed % 4 == 0:
        classes = classes.repeat(3, 0).repeat(2, 1)
    assert_same(classes)


def snake():
    classes = np.full((23, 19), SKIP, np.uint8)
    classes[1::2, 1:-1] = 1
    classes[2::4, -2] = classes[4::4, 1] = 1
    return classes


def rings():
    row, column = np.indices((24, 21))
    return ((np.minimum(np.minimum(row, 23 - row), np.minimum(column, 20 - column)) // 2) % 2).astype(np.uint8)


def comb():
    """Arms that meet in the last row only, with holes that touch each other in points."""
    classes = np.zeros((17, 16), np.uint8)
    classes[:-1, ::3] = 1
    classes[3:9:2, 4::6] = classes[4:9:2, 5::6] = 2
    return classes


@pytest.mark.parametrize(
    "classes",
    [
        snake(),
        rings(),
        comb(),
        np.indices((12, 13)).sum(0).astype(np.uint8) % 2,
        (np.indices((12, 13)).sum(0) % 2 * SKIP).astype(np.uint8),
        np.full((9, 7), 2, np.uint8),
        np.full((1, 1), 2, np.uint8),
        np.full((5, 4), SKIP, np.uint8),
        np.eye(9, dtype=np.uint8),
        # one ring that closes through a point: its exterior and its interior touch there
        np.array([[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 1, 0], [1, 1, 0, 0]], np.uint8),
        np.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 1], [1, 1, 0, 1, 1], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1]], np.uint8),
    ],
    ids=["snake", "rings", "comb", "checkerboard", "half", "full", "pixel", "nothing", "diagonal", "hook", "holes"],
)
def test_shapes_that_are_hard_to_cut(classes):
    assert_same(classes)
    assert_same(classes.T.copy())


def test_weights_are_summed_where_they_are_known():
    rng = np.random.default_rng(3)
    classes = rng.integers(0, 3, (14, 11)).astype(np.uint8)
    weights = rng.integers(-1, 5, classes.shape).astype(np.int32)
    for height in (1, 4, 14):
        areas = traced(classes, height, weights)
        assert sum(area[3] for area in areas.values()) == weights[weights > 0].sum()
        assert sum(area[4] for area in areas.values()) == (weights >= 0).sum()


def test_many_areas_come_in_parts(monkeypatch):
    classes = np.random.default_rng(5).integers(0, 3, (40, 50)).astype(np.uint8)
    expected = traced(classes, 7)
    monkeypatch.setattr("geomed.inference.outlines._CORNERS", 100)
    assert traced(classes, 7) == expected


def blocks(seed=0, shape=(40, 48)):
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 3, (shape[0] // 4, shape[1] // 4)).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    classes[rng.random(shape) < 0.05] = 255
    return classes


def written(folder, classes, grid=GRID, **options):
    pytest.importorskip("pyarrow")
    write_map(folder / "map.tif", classes, grid, names=NAMES, colours=COLOURS)
    options = {"names": NAMES, "collection": "run"} | options
    count = write_fields(folder / "map.tif", folder / "fields.parquet", **options)
    assert [file.name for file in folder.glob("*.part")] == []
    table = geopandas.read_parquet(folder / "fields.parquet")
    assert len(table) == count
    return table


@pytest.mark.parametrize("angle", [0, 30])
def test_a_file_that_geopandas_reads(tmp_path, angle):
    grid = GeoBox(GRID.shape, GRID.affine @ Affine.rotation(angle), GRID.crs)
    classes = blocks()
    table = written(tmp_path, classes, grid, determination_datetime="2021-07-23T12:00:00+02:00")
    assert table.crs.to_epsg() == 32631
    assert table["geometry"].is_valid.all()
    assert all(shape.exterior.is_ccw and not any(hole.is_ccw for hole in shape.interiors) for shape in table.geometry)
    assert table["id"].is_unique
    assert set(table["collection"]) == {"run"}
    assert set(table["determination:method"]) == {"auto-imagery"}
    assert table["determination:datetime"].unique()[0].isoformat() == "2021-07-23T10:00:00+00:00"
    np.testing.assert_allclose(table["metrics:area"], table.area, rtol=1e-6)
    np.testing.assert_allclose(table["metrics:perimeter"], table.length, rtol=1e-6)
    assert table["metrics:area"].dtype == np.float32  # as the data type float of Vecorel
    assert (table["class"] == np.array(NAMES)[table["class_index"]]).all()
    areas = table.groupby("class_index")["metrics:area"].sum().tolist()
    assert areas == [100 * (classes == index).sum() for index in range(3)]
    assert "confidence" not in table
    a = grid.affine
    expected = [
        shapely.affinity.affine_transform(shape, (a.a, a.b, a.d, a.e, a.c, a.f))
        for _, shape in polygons(traced(classes, 40))
    ]
    assert all(
        ours.equals_exact(theirs, 1e-6, normalize=True) for ours, theirs in zip(table.geometry, expected, strict=True)
    )
    row, column = map(int, table["id"][5][1:].split("c"))
    assert classes[row, column] == table["class_index"][5]


def test_what_stands_beside_the_rows(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = written(tmp_path, blocks())
    told = parquet.read_metadata(tmp_path / "fields.parquet").metadata
    geo, ours = json.loads(told[b"geo"]), json.loads(told[b"collection"])
    assert geo["version"] == "1.1.0"
    assert geo["columns"]["geometry"]["geometry_types"] == ["Polygon"]
    assert geo["columns"]["geometry"]["bbox"] == table.total_bounds.tolist()
    assert geo["columns"]["geometry"]["crs"]["id"] == {"authority": "EPSG", "code": 32631}
    assert ours["schemas"]["run"] == list(fields._SCHEMAS)
    assert set(ours["schemas:custom"]["properties"]) == {"class", "class_index"}
    schema = parquet.read_schema(tmp_path / "fields.parquet")
    assert [name for name in schema.names if not schema.field(name).nullable] == ["id", "collection", "geometry"]
    near = geopandas.read_parquet(tmp_path / "fields.parquet", bbox=(500_000, 5_599_960, 500_040, 5_600_000))
    assert 0 < len(near) < len(table)


def test_neither_strips_nor_row_groups_change_a_byte(tmp_path, monkeypatch):
    written(tmp_path, blocks())
    expected = (tmp_path / "fields.parquet").read_bytes()
    for rows in (1, 7, 16):
        monkeypatch.setattr(fields, "ROWS", rows)
        written(tmp_path, blocks())
        assert (tmp_path / "fields.parquet").read_bytes() == expected
    monkeypatch.setattr(fields, "_GROUP", 10)
    table = written(tmp_path, blocks())
    groups = pytest.importorskip("pyarrow.parquet").ParquetFile(tmp_path / "fields.parquet").metadata
    assert {groups.row_group(number).num_rows for number in range(groups.num_row_groups - 1)} == {10}
    grouped = (tmp_path / "fields.parquet").read_bytes()
    monkeypatch.setattr(fields, "ROWS", 40)
    assert table.equals(written(tmp_path, blocks()))
    assert (tmp_path / "fields.parquet").read_bytes() == grouped


def test_areas_on_the_ellipsoid(tmp_path):
    grid = GeoBox((40, 48), Affine(0.01, 0.002, 11, 0.001, -0.02, 50), "EPSG:4326")
    table = written(tmp_path, blocks(), grid)
    geod = Geod(ellps="WGS84")
    for shape, area, perimeter in zip(table.geometry, table["metrics:area"], table["metrics:perimeter"], strict=True):
        assert area == pytest.approx(geod.geometry_area_perimeter(shape)[0], rel=1e-6)
        assert perimeter == pytest.approx(geod.geometry_length(shape.boundary), rel=1e-6)  # interiors count too


def test_feet_become_metres(tmp_path):
    table = written(tmp_path, blocks(), GeoBox(GRID.shape, GRID.affine, "EPSG:2263"))
    np.testing.assert_allclose(table["metrics:area"], table.area * (1200 / 3937) ** 2, rtol=1e-6)
    np.testing.assert_allclose(table["metrics:perimeter"], table.length * 1200 / 3937, rtol=1e-6)


def test_without_a_coordinate_system_there_are_no_metres(tmp_path):
    grid = GeoBox(GRID.shape, Affine.identity(), None)
    table = written(tmp_path, blocks(), grid)
    assert table.crs is None
    assert table["metrics:area"].isna().all()
    assert table["metrics:perimeter"].isna().all()
    assert table.area.sum() == (blocks() != 255).sum()
    with pytest.raises(ValueError, match=r"min_area must be .* 0 for a map without a coordinate system, not 5"):
        written(tmp_path, blocks(), grid, min_area=5)


def test_background_and_small_areas_are_left_out(tmp_path):
    every = written(tmp_path, blocks())
    table = written(tmp_path, blocks(), background=["maize"], min_area=1500)
    expected = every[(every["class"] != "maize") & (every["metrics:area"] >= 1500)]
    assert sorted(table["id"]) == sorted(expected["id"])


def test_nothing_to_write_gives_an_empty_file(tmp_path):
    table = written(tmp_path, blocks(), background=NAMES)
    assert (len(table), table.crs.to_epsg()) == (0, 32631)


def test_mean_confidence(tmp_path):
    rng = np.random.default_rng(1)
    stored = rng.integers(0, 251, (2, 40, 48)).astype(np.uint8)
    stored[:, 20:24, 8:12] = 255
    path = write_raster(tmp_path / "sure.tif", stored, nodata=255, units=(1 / 250, 0))
    classes = blocks()
    classes[20:24, 8:12] = 2
    classes[19:25, 7:13] = np.where(classes[19:25, 7:13] == 2, 0, classes[19:25, 7:13])
    classes[20:24, 8:12] = 2
    table = written(tmp_path, classes, confidence=path).set_index("id")
    assert np.isnan(table["confidence"]["r20c8"])  # of none of its pixels it is known
    east, north = np.meshgrid(500_005 + 10 * np.arange(48), 5_599_995 - 10 * np.arange(40))
    for name, row in table.drop("r20c8").iterrows():
        inside = shapely.contains_xy(row.geometry, east, north)
        assert row["confidence"] == pytest.approx(stored[0][inside & (stored[0] != 255)].mean() / 250, rel=1e-5), name


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"background": ["water"]}, "background must be classes of the map, 'water' is none"),
        ({"collection": ""}, "must have an identifier"),
        ({"min_area": -1}, "min_area must be 0 or more"),
        ({"min_area": float("nan")}, "min_area must be 0 or more"),
        ({"names": ("maize",)}, r"map\.tif: \d is no class, they are 0 to 0 and 255 for unknown"),
        ({"names": ()}, "uint8 with 1 to 255 names"),
        ({"determination_datetime": "last summer"}, "must be a date or time by ISO 8601, not 'last summer'"),
        ({"confidence": Path("none.tif")}, "there is no such file"),
    ],
)
def test_refusals_leave_nothing_behind(tmp_path, options, rule):
    with pytest.raises(ValueError, match=rule):
        written(tmp_path, blocks(), **options)
    assert not list(tmp_path.glob("fields*"))


def test_without_pyarrow_it_says_what_to_install(tmp_path, monkeypatch):
    write_map(tmp_path / "map.tif", blocks(), GRID, names=NAMES, colours=COLOURS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match="pip install pyarrow"):
        write_fields(tmp_path / "map.tif", tmp_path / "fields.parquet", names=NAMES, collection="run")
    assert not list(tmp_path.glob("fields*"))


def test_extents_agree_with_the_polygons(tmp_path):
    grid = GeoBox((40, 48), Affine(0.01, 0, 11, 0, -0.02, 50), "EPSG:4326")
    table = written(tmp_path, blocks(), grid)
    told = extents(tmp_path / "map.tif", 3)
    assert told.pixels == tuple((blocks() == index).sum() for index in range(3))
    # a polygon's sides are geodesics, a pixel's are parallels: over a hundredth of a degree they hardly differ
    np.testing.assert_allclose(told.areas, table.groupby("class_index")["metrics:area"].sum(), rtol=5e-5)
    grid = GeoBox(grid.shape, grid.affine @ Affine.rotation(1), grid.crs)
    written(tmp_path, blocks(), grid)
    assert extents(tmp_path / "map.tif", 3).areas is None

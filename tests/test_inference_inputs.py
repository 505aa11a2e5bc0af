"""Finding and opening what is to be mapped, and that it is read as training reads it."""

import json
import os
import pickle
import re
import threading
import warnings
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from fakes import BANDS, CLOUD, DATES, GRID, VEGETATION, numbers, write_raster, write_scene, write_series
from odc.geo.geobox import GeoBox

from geomed.data.area import Area, Masks
from geomed.data.image import Image, ImageFiles
from geomed.data.mapped_scenes import Settings, find_scenes
from geomed.data.series import Series
from geomed.data.units import Units
from geomed.inference.model import Scene
from geomed.windows import Window

WHOLE = Window(0, 0, 40, 48)
COARSE = GeoBox((20, 24), GRID.affine @ Affine.scale(2), GRID.crs)


def settings(**fields):
    return Settings(**{"bands": BANDS, "scale": 1e-4, "offset": 0.0, **fields})


def find(*inputs, listed=None, stac=None, **fields):
    return find_scenes([str(one) for one in inputs], listed, stac, settings(**fields))


def names(scenes):
    return [scene.name for scene in scenes]


def only(*inputs, **fields):
    (scene,) = find(*inputs, **fields)
    return scene.open()


def failure(scene):
    with pytest.raises(ValueError, match=r"; ") as caught:
        scene.open()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("each", [False, True])
def test_a_scene_is_read_as_training_reads_it(tmp_path, each):
    path = write_scene(tmp_path / "s", each=each)
    scene = pickle.loads(pickle.dumps(only(path, nodata=7)))  # noqa: S301  (what another process gets)
    assert isinstance(scene, Scene)
    assert (scene.name, scene.grid, scene.pointwise) == ("scene", GRID, True)
    trained = ImageFiles.open(Image(name="a", path=str(path), scale=1e-4, offset=0, nodata=7), BANDS)
    window = Window(3, 0, 20, 48)
    for key, values in trained.read(window).items():
        np.testing.assert_array_equal(scene.read(window)[key], values)
    assert not scene.read(window)["valid"].all()


def test_a_folder_of_dates_is_read_as_training_reads_it(tmp_path):
    scl = np.full((3, 40, 48), VEGETATION)
    scl[0, :, :16] = CLOUD
    folder = write_series(tmp_path / "north", scl=scl)
    scene = only(folder, series=True, season=("2021-01-01", "2021-06-01"), min_clear=0.5)
    assert isinstance(scene, Scene)
    assert (scene.name, scene.pointwise, scene.days) == ("north", False, (18691, 18761))
    area = Area(name="a", images=str(folder), season=("2021-01-01", "2021-06-01"))
    trained = Series.open(area, BANDS, min_clear=0.5).read(Window(0, 0, 16, 16))
    found = scene.read(Window(0, 0, 16, 16))
    assert len(found["days"]) == 1
    for key, values in trained.items():
        np.testing.assert_array_equal(found[key], values)


def test_patterns_files_and_folders_give_each_scene_once_by_name(tmp_path, monkeypatch):
    for name in ("b/one.tif", "a/two.tif", "a/deep/three.tif", "a/two_SCL.tif"):
        write_raster(tmp_path / name, numbers(0), bands=BANDS)
    (tmp_path / "a" / "notes.md").write_text("no image")
    monkeypatch.chdir(tmp_path)
    assert names(find("**/*")) == ["one", "three", "two"]
    assert names(find("a/*.tif", "a", "b/one.tif", tmp_path / "a" / "two.tif")) == ["one", "two"]
    assert names(find("*/[ot]*.tif")) == ["one", "two"]


def test_scenes_of_one_name_take_those_of_their_folders(tmp_path):
    for name in ("x/T31/B.tif", "y/T31/b.tif", "y/T32/b.tif", "y/T32/c d.tif"):
        write_raster(tmp_path / name, numbers(0)[:, :2, :2], bands=BANDS)
    assert names(find(tmp_path / "**/*.tif")) == ["T32_b", "c_d", "x_T31_B", "y_T31_b"]
    assert names(find(tmp_path / "y/T31/b.tif")) == ["b"]


def test_a_file_for_each_band_is_said_by_the_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("B02_a", "c"):
        for band, plane in zip(BANDS, numbers(0), strict=True):
            write_raster(Path("s") / f"{name}_{band}.tif", plane[None])
            write_raster(Path("t") / name / f"{band}.tif", plane[None])
    Path("s/c_B04.tif").unlink()
    first, second = find("s/*_{band}.tif")
    assert (first.name, second.name) == ("B02_a", "c")
    np.testing.assert_allclose(first.open().read(WHOLE)["values"], numbers(0) * 1e-4, rtol=1e-6)
    assert "c_B04.tif: there is no such file" in failure(second)
    assert names(find("t/*/{band}.tif")) == ["B02_a", "c"]
    assert names(find("**/{band}.tif")) == ["B02_a", "c"]
    assert names(find("t/c/{band}.tif")) == ["c"]
    told = failure(find("s/*.tif")[0])
    assert re.search(r"B02_a_B02\.tif: it holds one band, and the model reads 3 .*, as s.B02_a_\{band\}\.tif", told)
    with pytest.raises(ValueError, match=r"a model of series reads folders"):
        find("s/*_{band}.tif", series=True)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("s/*.jp2", r"s/\*\.jp2: nothing matches; s holds one.tif, x0, x1, x2, x3 and 2 more; correct the pattern"),
        ("s/nowhere.tif", "there is no such file; s holds one.tif"),
        ("u/v/*.tif", r"nothing matches; \. holds e/, s/;"),
        ("s/*_{band}.tif", r"nothing matches \(with B02 for \{band\}\); s holds one.tif"),
        ("e", "the folder holds no image"),
    ],
)
def test_an_input_without_a_match_tells_what_lies_there(tmp_path, monkeypatch, text, rule):
    monkeypatch.chdir(tmp_path)
    write_raster(Path("s/one.tif"), numbers(0))
    Path("e").mkdir()
    for number in range(6):
        Path(f"s/x{number}").touch()
    with pytest.raises(ValueError, match=rule):
        find(text)


def test_nothing_at_all_is_refused():
    with pytest.raises(ValueError, match="there is nothing to map"):
        find()


def test_a_list_names_scenes_one_by_one(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in ("a", "b", "c"):
        write_scene(tmp_path / "data" / name)
        (tmp_path / "data" / name / "scene.tif").rename(tmp_path / "data" / f"{name}.tif")
    write_raster(Path("here.tif"), numbers(0), bands=BANDS)
    listed = tmp_path / "data" / "tiles.txt"
    listed.write_text(f"# tiles\n\nhere.tif\n{tmp_path / 'data' / 'a.tif'}\ngone.tif\n[bc].tif\nnone_*.tif\n")
    scenes = find(listed=listed)
    assert names(scenes) == ["a", "b", "c", "gone", "here", "none"]
    assert "gone.tif: there is no such file" in failure(scenes[3])
    assert "correct the line of tiles.txt" in failure(scenes[5])
    assert scenes[1].open().grid == GRID
    with pytest.raises(ValueError, match="no such file; correct the path of the list"):
        find(listed=tmp_path / "no.txt")


def test_the_identity_follows_the_files_and_not_their_place(tmp_path):
    path = write_scene(tmp_path / "a")
    (first,) = find(path)
    moved = tmp_path / "b" / "scene.tif"
    moved.parent.mkdir()
    path.rename(moved)
    assert find(moved)[0].identity == first.identity
    os.utime(moved, ns=(1, 1))
    assert find(moved)[0].identity != first.identity
    folder = write_series(tmp_path / "north")
    (series,) = find(folder, series=True)
    assert find(folder, series=True)[0].identity == series.identity
    os.utime(folder / "S2_20210305_SCL.tif", ns=(1, 1))
    assert find(folder, series=True)[0].identity != series.identity
    assert re.fullmatch("[0-9a-f]{64}", series.identity)


def test_links_keep_their_names_and_a_mosaic_follows_its_sources(tmp_path):
    path = write_scene(tmp_path / "a")
    (tmp_path / "north.tif").symlink_to(path)
    assert names(find(tmp_path / "north.tif")) == ["north"]
    assert len(find(tmp_path / "north.tif", path)) == 1
    mosaic = tmp_path / "m.vrt"
    mosaic.write_text(
        '<VRTDataset rasterXSize="48" rasterYSize="40"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
        '<SourceFilename relativeToVRT="1">a/scene.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
        "</VRTRasterBand></VRTDataset>"
    )
    before = find(mosaic)[0].identity
    os.utime(path, ns=(1, 1))
    (scene,) = find(mosaic, bands=("B02",), band_names=("B02",))
    assert scene.identity != before
    np.testing.assert_allclose(scene.open().read(WHOLE)["values"], numbers(0)[:1] * 1e-4, rtol=1e-6)


def test_folders_and_stacks_are_series(tmp_path):
    write_series(tmp_path / "n")
    write_series(tmp_path / "s", dates=DATES[:1])
    (tmp_path / "empty").mkdir()
    described = tuple(f"{date} {band}" for date in DATES[:2] for band in BANDS)
    write_raster(tmp_path / "stack.tif", np.concatenate([numbers(0), numbers(1)]), bands=described)
    write_raster(tmp_path / "stack_SCL.tif", np.full((2, 40, 48), VEGETATION, np.uint8))
    scenes = find(tmp_path / "*", series=True)
    assert names(scenes) == ["n", "s", "stack"]
    assert [len(scene.open().read(WHOLE)["days"]) for scene in scenes] == [3, 1, 2]
    (empty,) = find(tmp_path / "empty", series=True)
    assert "holds no image" in failure(empty)


def test_bands_without_names_take_those_that_are_given(tmp_path):
    bare, described = tmp_path / "bare.tif", write_scene(tmp_path / "s")
    write_raster(bare, numbers(0))
    given = ("B08", "B04", "B02")
    np.testing.assert_allclose(only(bare, band_names=given).read(WHOLE)["values"], numbers(0)[::-1] * 1e-4, rtol=1e-6)
    np.testing.assert_allclose(only(described, band_names=given).read(WHOLE)["values"], numbers(0) * 1e-4, rtol=1e-6)
    assert "describes none of its 3" in failure(find(bare)[0])
    for date in DATES:
        write_raster(tmp_path / "n" / f"{date}.tif", numbers(0), bands=() if tmp_path.name else BANDS)
    scene = only(tmp_path / "n", series=True, band_names=given, masks=Masks(scl=None))
    np.testing.assert_allclose(scene.read(WHOLE)["values"][0], numbers(0)[::-1] * 1e-4, rtol=1e-6)


def test_units_are_the_users_or_the_files_or_those_of_training(tmp_path):
    silent = write_raster(tmp_path / "silent.tif", numbers(0), bands=BANDS)
    declared = write_raster(tmp_path / "declared.tif", numbers(0), bands=BANDS, units=(1e-3, -0.5))
    trained = {"scale": None, "offset": None, "trained": Units(scale=0.5, offset=2.0, nodata=1)}
    found = {
        (1e-4, 0.0, "as you say"): only(silent, trained=trained["trained"]),
        (1e-3, -0.5, "as the file declares"): only(declared, **trained),
        (0.5, 2.0, "as in training"): only(silent, **trained),
    }
    for (scale, offset, who), scene in found.items():
        assert scene.notes == (f"scale {scale:g} and offset {offset:g} {who}",)
        values = scene.read(Window(5, 5, 4, 4))["values"]
        np.testing.assert_allclose(values, numbers(0)[:, 5:9, 5:9] * scale + offset, rtol=1e-5)
    holes = [scene.read(WHOLE)["valid"][0, 0] for scene in found.values()]
    assert holes == [False, False, False]  # training knew 1 as no observation
    assert "declares scale 0.001 and offset -0.5" in failure(find(declared)[0])
    told = failure(find(silent, scale=None, offset=None)[0])
    assert "--scale and --offset" in told
    with rasterio.open(declared, "r+") as file:
        file.scales, file.offsets = (1e-3, 1, 1), (-0.5, 0, 0)
    assert "of 1 of 3 bands only" in failure(find(declared, **trained)[0])
    with rasterio.open(declared, "r+") as file:
        file.scales, file.offsets = (1, 2, 3), (0.5, 0, 0)
    values = only(declared, **trained).read(WHOLE)["values"]
    np.testing.assert_allclose(values[:, 9, 9], numbers(0)[:, 9, 9] * [1, 2, 3] + [0.5, 0, 0])
    with pytest.raises(ValueError, match="scale and offset belong together"):
        settings(offset=None)
    with pytest.raises(ValueError, match="min_clear is a share"):
        settings(min_clear=2)


def test_dates_of_a_series_may_each_declare_their_units(tmp_path):
    for index, units in enumerate([(1e-4, 0.0), (1e-4, -0.1)]):
        write_raster(tmp_path / "n" / f"{DATES[index]}.tif", numbers(0), bands=BANDS, units=units)
    scene = only(tmp_path / "n", series=True, scale=None, offset=None, masks=Masks(scl=None))
    values = scene.read(WHOLE)["values"]
    np.testing.assert_allclose(values[0] - values[1], 0.1, atol=1e-6)
    assert len(scene.notes) == 2


def next_zone():
    """A grid of the next UTM zone, turned by some degrees against GRID, that covers most of it."""
    east, north = GRID.crs.transformer_to_crs("EPSG:32632")(np.array([500_240.0]), np.array([5_599_800.0]))
    return GeoBox((50, 54), Affine(10, 0, east[0] - 270, 0, -10, north[0] + 250), "EPSG:32632")


@pytest.mark.parametrize("kind", ["shifted", "zone"])
def test_files_of_another_grid_are_refused_or_brought_to_the_first(tmp_path, kind):
    """A plane of values keeps its values under bilinear interpolation, wherever it is looked at."""
    shifted = GeoBox((40, 48), Affine(10, 0, 500_013, 0, -10, 5_599_995), GRID.crs)
    zone = next_zone() if kind == "zone" else shifted

    def plane(grid):
        x, y = np.meshgrid(np.arange(grid.shape.x) + 0.5, np.arange(grid.shape.y) + 0.5)
        east, north = grid.affine.a * x + grid.affine.c, grid.affine.e * y + grid.affine.f
        if grid.crs != GRID.crs:
            east, north = grid.crs.transformer_to_crs(GRID.crs)(east, north)
        return (((east - 499_000) * 0.5 + (north - 5_590_000) * 0.1)[None] + 1).astype(np.float32)

    write_raster(tmp_path / "a_B02.tif", plane(GRID), GRID, nodata=-1)
    values = plane(zone)
    values[0, 20, 24] = -1
    write_raster(tmp_path / "a_B04.tif", values, zone, nodata=-1)
    path = tmp_path / "a_{band}.tif"
    fields = {"bands": BANDS[:2], "scale": 1.0}
    assert "the bands of an image must have one" in failure(find(path, **fields)[0])
    scene = only(path, reproject=True, **fields)
    assert scene.grid == GRID
    read = pickle.loads(pickle.dumps(scene)).read(WHOLE)  # noqa: S301
    valid = read["valid"]
    assert 0.8 < valid.mean() < 1
    assert 4 <= (~valid[2:-4, 4:-4]).sum() <= 9  # what would be made of the hole
    inner = np.s_[4:-6, 6:-6]
    np.testing.assert_allclose(
        read["values"][1][inner][valid[inner]], read["values"][0][inner][valid[inner]], rtol=0, atol=0.02
    )
    for window in (Window(7, 3, 20, 21), Window(0, 40, 5, 8)):  # pointwise
        part = scene.read(window)
        np.testing.assert_array_equal(part["values"], read["values"][:, *window.slices])
        np.testing.assert_array_equal(part["valid"], valid[window.slices])


def test_dates_and_masks_of_another_grid_are_brought_to_the_first(tmp_path):
    scl = np.full((3, 40, 48), VEGETATION)
    folder = write_series(tmp_path / "n", scl=scl)
    zone = next_zone()
    write_raster(folder / "S2_20210723.tif", np.full((3, *zone.shape.yx), 500, np.uint16), zone, bands=BANDS, nodata=0)
    classes = np.full((1, *zone.shape.yx), VEGETATION, np.uint8)
    classes[0, :, : zone.shape.x // 2] = CLOUD
    write_raster(folder / "S2_20210723_SCL.tif", classes, zone)
    assert "must have one coordinate system" in failure(find(folder, series=True)[0])
    scene = only(folder, series=True, reproject=True)
    read = scene.read(WHOLE)
    assert read["values"].shape == (3, 3, 40, 48)
    last = read["valid"][2]
    assert 0.3 < last.mean() < 0.55
    np.testing.assert_allclose(read["values"][2][:, last], 0.05, rtol=1e-6)
    assert last[:, 30:-4].mean() > 0.9
    assert not last[:, :18].any()


def test_what_has_no_coordinate_system_or_is_turned_is_mapped_where_it_lies(tmp_path):
    bare = write_scene(tmp_path / "a", grid=GeoBox((40, 48), GRID.affine, None))
    turned = GeoBox((40, 48), Affine(8, 6, 500_000, 6, -8, 5_600_000), "EPSG:2154")
    rotated = write_scene(tmp_path / "b", grid=turned)
    assert only(bare).notes[1:] == ("no coordinate system",)
    assert only(bare).grid.crs is None
    assert only(rotated).grid == turned


def stac_item(folder, name="S2A_31UFS_20210514", *, day="2021-05-14T10:56:21.024000Z", assets=None, **properties):
    """An item with a file for each band, B08 of pixels twice as large."""
    made = {}
    for number, band in enumerate(BANDS):
        grid, values = (GRID, numbers(0)[number]) if band != "B08" else (COARSE, np.full((20, 24), 2000, np.uint16))
        write_raster(folder / name / f"{band}.tif", values[None], grid)
        told = {"scale": 1e-4, "offset": -0.1, "nodata": 1}
        common = {"B02": "blue", "B04": "red", "B08": "nir"}[band]
        made[common] = {
            "href": f"{name}/{band}.tif",
            "eo:bands": [{"name": band, "common_name": common}],
            "raster:bands": [told],
            "roles": ["data"],
        }
    write_raster(folder / name / "SCL.tif", np.full((1, 20, 24), VEGETATION, np.uint8), COARSE)
    made["scl"] = {"href": f"{name}/SCL.tif", "roles": ["data"]}
    made["visual"] = {"href": "no.tif", "roles": ["visual"], "eo:bands": [{"name": "B02"}]}
    return {
        "type": "Feature",
        "id": name,
        "properties": {"datetime": day, "grid:code": "MGRS-31UFS", **properties},
        "assets": made if assets is None else assets,
    }


def write_items(path, *items):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return path


def test_items_are_scenes_in_their_own_units_on_their_finest_grid(tmp_path):
    path = write_items(tmp_path / "items.json", stac_item(tmp_path))
    (scene,) = find(stac=path, scale=None, offset=None)
    assert scene.name == "S2A_31UFS_20210514"
    opened = pickle.loads(pickle.dumps(scene)).open()  # noqa: S301
    assert isinstance(opened, Scene)
    assert (opened.grid, opened.days) == (GRID, (18761,))
    assert opened.notes == ("scale 0.0001 and offset -0.1 as its catalogue says",)
    read = opened.read(WHOLE)
    np.testing.assert_allclose(
        read["values"][:2][:, read["valid"]], (numbers(0)[:2] * 1e-4 - 0.1)[:, read["valid"]], atol=1e-6
    )
    np.testing.assert_allclose(read["values"][2][read["valid"]], 0.1, atol=1e-6)
    assert np.argwhere(~read["valid"]).tolist() == [[0, 0]]
    assert find(stac=path)[0].open().notes == ("scale 0.0001 and offset 0 as you say",)
    for content in (stac_item(tmp_path), [stac_item(tmp_path)]):
        path.write_text(json.dumps(content))
        assert names(find(stac=path)) == ["S2A_31UFS_20210514"]


def test_coarser_bands_are_not_shifted(tmp_path):
    """A ramp over pixels twice as large is the same ramp over the small ones."""
    item = stac_item(tmp_path)
    x = (np.arange(24) + 0.5) * 2 + 100
    write_raster(tmp_path / item["id"] / "B08.tif", np.broadcast_to(x, (1, 20, 24)).astype(np.float32), COARSE)
    read = find(stac=write_items(tmp_path / "i.json", item), scale=1.0)[0].open().read(WHOLE)
    fine = np.arange(48) + 100.5
    np.testing.assert_allclose(read["values"][2][3, 1:-1], fine[1:-1], rtol=1e-6)


@pytest.mark.parametrize("form", ["keys", "names", "one file", "1.1"])
def test_assets_are_found_by_whatever_names_their_bands(tmp_path, form):
    write_raster(tmp_path / "all.tif", numbers(0), bands=("x", "y", "z"))
    for band, plane in zip(BANDS, numbers(0), strict=True):
        write_raster(tmp_path / f"{band}.tif", plane[None])
    assets = {
        "keys": {band: {"href": f"./{band}.tif"} for band in BANDS},
        "names": {
            f"f{i}": {"href": (tmp_path / f"{band}.tif").as_uri(), "eo:bands": [{"name": band}]}
            for i, band in enumerate(BANDS)
        },
        "one file": {
            "data": {
                "href": str(tmp_path / "all.tif"),
                "eo:bands": [{"common_name": c} for c in ("blue", "red", "nir")],
            }
        },
        "1.1": {
            f"{band}_10m": {"href": f"{band}.tif", "bands": [{"name": band, "raster:scale": 0.5, "raster:offset": 1.0}]}
            for band in BANDS
        },
    }[form]
    if form == "1.1":
        assets["B02_60m"] = {"href": "none.tif", "bands": [{"name": "B02"}], "gsd": 60}
        assets["B02_10m"]["gsd"] = 10
    path = write_items(tmp_path / "items.json", stac_item(tmp_path, assets=assets))
    scale, offset = (None, None) if form == "1.1" else (1e-4, 0.0)
    values = find(stac=path, scale=scale, offset=offset)[0].open().read(WHOLE)["values"]
    expected = numbers(0) * 0.5 + 1 if form == "1.1" else numbers(0) * 1e-4
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_items_of_a_tile_are_a_series(tmp_path):
    early = stac_item(tmp_path, "a", day="2021-03-05T10:00:00Z")
    late = stac_item(tmp_path, "b")
    for asset in ("blue", "red", "nir"):
        late["assets"][asset]["raster:bands"][0]["offset"] = 0
    other = stac_item(tmp_path, "c", **{"grid:code": "MGRS-32UFS"})
    classes = np.full((1, 20, 24), VEGETATION, np.uint8)
    classes[0, 0, 0] = CLOUD
    write_raster(tmp_path / "b" / "SCL.tif", classes, COARSE)
    path = write_items(tmp_path / "items.json", late, other, early)
    scenes = find(stac=path, series=True, scale=None, offset=None)
    assert names(scenes) == ["MGRS-31UFS", "MGRS-32UFS"]
    read = scenes[0].open().read(WHOLE)
    assert read["days"].tolist() == [18691, 18761]
    np.testing.assert_allclose((read["values"][1] - read["values"][0])[:, 5:, 5:], 0.1, atol=1e-6)
    assert np.argwhere(~read["valid"][1]).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert len(find(stac=path, series=True, season=("2021-04-01", "2021-06-01"))[0].open().read(WHOLE)["days"]) == 1
    assert "it has no item from 2020" in failure(find(stac=path, series=True, season=("2020-01-01", "2020-06-01"))[0])


@pytest.mark.parametrize(
    ("change", "fields", "rule"),
    [
        ({"drop": "red"}, {}, "no asset holds band B04, its assets are blue, nir, scl"),
        ({"href": "gone.tif"}, {}, "gone.tif: there is no such file"),
        ({"applied": True}, {"scale": None, "offset": None}, "earthsearch:boa_offset_applied"),
        ({"drop": "scl"}, {"series": True}, "it has no asset SCL"),
        ({"day": None}, {"series": True}, "a series needs its date"),
        ({"tile": None}, {"series": True}, "put together by their tile"),
        ({"twice": "red"}, {}, "B04 stands in several assets"),
        ({"zone": True}, {}, "the bands of an item must have one coordinate system"),
    ],
)
def test_an_item_that_is_not_complete_fails_alone(tmp_path, change, fields, rule):
    item = stac_item(tmp_path)
    item["assets"].pop(change.get("drop"), None)
    if "href" in change:
        item["assets"]["red"]["href"] = change["href"]
    item["properties"]["earthsearch:boa_offset_applied"] = change.get("applied", False)
    item["properties"]["datetime"] = change.get("day", item["properties"]["datetime"])
    item["properties"]["grid:code"] = change.get("tile", "MGRS-31UFS")
    if "twice" in change:
        item["assets"]["other"] = item["assets"].pop("red")
        item["assets"]["more"] = item["assets"]["other"]
    if "zone" in change:
        write_raster(tmp_path / item["id"] / "B04.tif", numbers(0)[:1], GeoBox((40, 48), GRID.affine, "EPSG:32632"))
    whole = stac_item(tmp_path, "whole", **{"grid:code": "MGRS-33UFS"})
    scenes = find(stac=write_items(tmp_path / "items.json", item, whole), **fields)
    assert len(scenes) == 2
    told = [failure(scene) for scene in scenes if scene.name not in {"whole", "MGRS-33UFS"}]
    assert len(told) == 1
    assert rule in told[0]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("{", "STAC items are JSON"),
        ("[]", "holds none"),
        ('{"type": "Catalog"}', "entry 1 is no STAC item"),
        ("3", "holds none"),
    ],
)
def test_what_is_no_item_is_refused(tmp_path, text, rule):
    path = tmp_path / "items.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rule):
        find(stac=path)


class _Files(BaseHTTPRequestHandler):
    """Serves a folder with ranges, as GDAL wants them."""

    def __init__(self, folder, *arguments):
        self.folder = folder
        super().__init__(*arguments)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.folder / self.path.partition("?")[0].lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        first, last = 0, len(content) - 1
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            first, last = int(asked[1]), min(int(asked[2] or last), last)
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[first : last + 1])

    def log_message(self, *_):
        pass


def test_items_are_read_over_the_network(tmp_path):
    item = stac_item(tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for asset in item["assets"].values():
            asset["href"] = f"http://127.0.0.1:{server.server_port}/{asset['href']}?sig=a//b"
        gone = json.loads(json.dumps(item))
        gone["id"] = "gone"
        gone["assets"]["red"]["href"] = gone["assets"]["red"]["href"].replace("B04", "B99")
        folder = tmp_path / "items"
        folder.mkdir()
        broken, scene = sorted(
            find(stac=write_items(folder / "items.json", item, gone)), key=lambda one: one.name != "gone"
        )
        read = pickle.loads(pickle.dumps(scene.open())).read(WHOLE)  # noqa: S301
        assert re.search(r"http://127.*B99\.tif\?sig=a//b: the file cannot be opened", failure(broken))
        (plain,) = find(f"http://127.0.0.1:{server.server_port}/{item['id']}/{{band}}.tif", bands=("B02", "B04"))
        assert plain.name == item["id"]
        np.testing.assert_allclose(plain.open().read(WHOLE)["values"], numbers(0)[:2] * 1e-4, rtol=1e-5)
        server.shutdown()
    np.testing.assert_allclose(read["values"][0][read["valid"]], (numbers(0)[0] * 1e-4)[read["valid"]], rtol=1e-5)


def test_many_threads_read_one_scene_with_few_files_open(tmp_path):
    path = write_scene(tmp_path, each=True)
    write_raster(tmp_path / "scene_B08.tif", numbers(0)[2][None, ::2, ::2].copy(), COARSE)
    scene = only(path, reproject=True)
    expected = scene.read(WHOLE)
    wrong = []

    def look():
        for row in range(0, 40, 2):
            window = Window(row, 0, 2, 48)
            if not np.array_equal(scene.read(window)["values"], expected["values"][:, *window.slices]):
                wrong.append(window)

    with warnings.catch_warnings():
        threads = [threading.Thread(target=look) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong

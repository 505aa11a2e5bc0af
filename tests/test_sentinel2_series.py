import logging
import pickle
from dataclasses import replace

import geopandas
import numpy as np
import pytest
import torch
from affine import Affine
from fakes import BANDS, CLOUD, DATES, GRID, VEGETATION, halves, numbers, write_polygons, write_raster, write_series
from jsonargparse import ArgumentParser
from odc.geo.geobox import GeoBox

from geomed.data.area import Area, Labels, Legend, Masks, Reflectance
from geomed.data.datamodule import DataModule
from geomed.data.sentinel2_series import Sentinel2Series
from geomed.data.source import IGNORE, collate
from geomed.evaluation.splits import ByArea, ByBlocks, ByYear
from geomed.io.dates import date_in, date_of_day, days_since_epoch

LEGEND = Legend(classes={"maize": [10], "grass": [20, 21]}, ignore=[0])


def area(folder, name="a", **fields):
    """An area whose images lie in ``folder/images`` and whose labels are halves: 10 left, 20 right."""
    if "labels" not in fields:
        fields["labels"] = Labels(path=str(write_raster(folder / "labels.tif", halves(), nodata=0)))
    return Area(name=name, images=str(fields.pop("images", folder / "images")), **fields)


def source(*areas, **fields):
    names = tuple(one.name for one in areas)
    fields = {"legend": LEGEND, "by": ByArea(train=names), "bands": BANDS, "window": 16, **fields}
    return Sentinel2Series(areas=areas, **fields)


@pytest.fixture
def simple(tmp_path):
    write_series(tmp_path / "images")
    return tmp_path


def everything(dataset):
    return [dataset[index] for index in range(len(dataset))]


def mosaic(samples, key, shape=(40, 48)):
    """The kept part of each sample put where it belongs; fails where two of them overlap."""
    whole = np.full((*samples[0][key].shape[:-2], *shape), np.nan)
    for sample in samples:
        row, column, height, width = sample["keep"].tolist()
        top, left = sample["read"].tolist()[:2]
        part = whole[..., row : row + height, column : column + width]
        assert np.isnan(part).all()
        rows, columns = slice(row - top, row - top + height), slice(column - left, column - left + width)
        part[...] = sample[key][..., rows, columns]
    return whole


def test_windows_hold_the_reflectance_of_their_pixels(simple):
    dataset = source(area(simple), by=ByArea(predict=("a",)), bands=("B08", "B02"), margin=2).split("predict")
    samples = everything(pickle.loads(pickle.dumps(dataset)))  # noqa: S301  (what a worker process does)
    expected = np.stack([numbers(index)[[2, 0]] for index in range(3)]) * 1e-4
    np.testing.assert_allclose(mosaic(samples, "values"), expected, rtol=1e-6)
    np.testing.assert_array_equal(mosaic(samples, "labels"), np.where(halves()[0] == 10, 0, 1))
    for sample in samples:
        assert [date_of_day(day).isoformat() for day in sample["days"].tolist()] == list(DATES)
        assert sample["valid"].all()
        assert [sample[key].dtype for key in ("values", "days", "valid", "labels", "scene", "read")] == [
            torch.float32,
            torch.int64,
            torch.bool,
            torch.int64,
            torch.int64,
            torch.int64,
        ]


def test_scenes_say_where_a_map_comes_out(simple):
    assert [(scene.name, scene.grid) for scene in source(area(simple)).scenes()] == [("a", GRID)]


def test_offset_is_added_and_nodata_and_nan_are_not_valid(tmp_path):
    values = numbers(0).astype(np.float32)
    values[0, 0, 0], values[1, 3, 4], values[2, 5, 6] = np.nan, -9999, np.inf
    write_raster(tmp_path / "images" / "2021-03-05.tif", values, bands=BANDS)
    units = Reflectance(offset=-0.1, nodata=-9999)
    one = area(tmp_path, reflectance=units, masks=Masks(scl=None))
    (sample,) = everything(source(one, window=64).split("train"))
    assert np.argwhere(~sample["valid"][0].numpy()).tolist() == [[0, 0], [3, 4], [5, 6]]
    assert (sample["values"][0][:, ~sample["valid"][0]] == 0).all()
    assert sample["values"][0, 1, 1, 1].item() == pytest.approx(1003 * 1e-4 - 0.1, abs=1e-7)


def test_clouds_are_masked_and_cloudy_dates_dropped_window_by_window(tmp_path):
    scl = np.full((3, 40, 48), VEGETATION)
    scl[0, :, :16] = CLOUD  # the left windows have no clear pixel on the first date
    scl[1, :8, :8] = CLOUD
    write_series(tmp_path / "images", scl=scl)
    samples = everything(source(area(tmp_path), by=ByArea(predict=("a",))).split("predict"))
    lengths = {tuple(sample["keep"].tolist()[:2]): len(sample["days"]) for sample in samples}
    assert {length for (_, column), length in lengths.items() if column == 0} == {2}
    assert {length for (_, column), length in lengths.items() if column > 0} == {3}
    corner = samples[0]["valid"][0]
    assert not corner[:8, :8].any()
    assert corner[8:].all()
    assert (samples[0]["values"][0][:, ~corner] == 0).all()
    batch = collate(samples)
    assert batch["valid"].shape[1] == 3
    assert not batch["valid"][0, 2].any()
    assert batch["days"][0, 2] == 0


def test_a_window_without_a_clear_date_leaves_train_but_never_predict(tmp_path, caplog):
    scl = np.full((3, 40, 48), VEGETATION)
    scl[:, :16, :16] = CLOUD
    write_series(tmp_path / "images", scl=scl)
    one = source(area(tmp_path), by=ByArea(train=("a",), predict=("a",)))
    with caplog.at_level(logging.INFO):
        train = one.split("train")
    assert len(train) == len(one.split("predict")) - 1
    assert "1 without a clear date" in train.summary
    assert train.summary in caplog.messages
    sample = one.split("predict")[0]
    assert sample["values"].shape == (1, 3, 16, 16)
    assert not sample["valid"].any()


def test_windows_without_labels_leave_train_and_every_pixel_counts_once_in_test(simple):
    codes = halves()
    codes[:, :, 16:32] = 0
    labels = Labels(path=str(write_raster(simple / "l.tif", codes, nodata=0)))
    one = area(simple, labels=labels)
    train = source(one).split("train")
    assert len(train) == 6
    assert "3 without a label" in train.summary
    assert "maize 640, grass 640" in train.summary
    test = source(one, by=ByArea(test=("a",)), window=24, margin=4).split("test")
    counted = sum(int((sample["labels"] != IGNORE).sum()) for sample in everything(test))
    assert counted == 1280


def test_a_raster_smaller_than_a_window_is_the_window(tmp_path):
    grid = GeoBox((1, 1), GRID.affine, GRID.crs)
    write_series(tmp_path / "images", grid=grid, dates=DATES[:1])
    labels = Labels(path=str(write_raster(tmp_path / "l.tif", np.array([[[21]]], np.uint8), grid)))
    (sample,) = everything(source(area(tmp_path, labels=labels)).split("train"))
    assert sample["values"].shape == (1, 3, 1, 1)
    assert sample["labels"].tolist() == [[1]]


def test_two_products_of_a_day_are_merged_by_scene_class(tmp_path, caplog):
    folder = write_series(tmp_path / "images", dates=("2021-03-05",))
    first, second = np.full((40, 48), 7), np.full((40, 48), 5)
    first[:10], second[:5], second[10:20] = CLOUD, 7, CLOUD
    write_raster(folder / "S2_20210305_SCL.tif", first[None].astype(np.uint8))
    write_raster(folder / "S2_20210305_2.tif", numbers(5), bands=BANDS)
    write_raster(folder / "S2_20210305_2_SCL.tif", second[None].astype(np.uint8))
    one = source(area(tmp_path), window=64)
    with caplog.at_level(logging.INFO):
        one.prepare()
    assert "area a: 2 products of 1 days, 1 days with several merged by best scene class" in caplog.messages
    (sample,) = everything(one.split("train"))
    taken = np.full((40, 48), 5)  # bare soil of the second before unclassified of the first
    taken[10:20] = 0  # the second is cloudy there
    expected = np.stack([np.where(taken == 5, *pair) for pair in zip(numbers(5), numbers(0), strict=True)])
    np.testing.assert_allclose(sample["values"][0], expected * 1e-4, rtol=1e-6)
    assert sample["valid"].all()
    write_raster(folder / "S2_20210305_2_SCL.tif", first[None].astype(np.uint8))
    (tied,) = everything(source(area(tmp_path), window=64).split("train"))
    np.testing.assert_allclose(tied["values"][0][:, 10:], numbers(0)[:, 10:] * 1e-4, rtol=1e-6)


def test_everything_is_brought_to_one_resolution(tmp_path):
    scl = np.full((3, 40, 48), VEGETATION)
    scl[0, 1, 1] = CLOUD
    write_series(tmp_path / "images", scl=scl)
    codes = halves()
    codes[0, 3, 7] = 0
    codes[0, 10, 11] = 20
    labels = Labels(path=str(write_raster(tmp_path / "l.tif", codes, nodata=0)))
    one = source(area(tmp_path, labels=labels), resolution=20, window=64)
    assert one.scenes()[0].grid == GeoBox((20, 24), GRID.affine @ Affine.scale(2), GRID.crs)
    (sample,) = everything(one.split("train"))
    expected = numbers(1).reshape(3, 20, 2, 24, 2).mean(axis=(2, 4)) * 1e-4
    np.testing.assert_allclose(sample["values"][1], expected, rtol=1e-5)
    assert np.argwhere(~sample["valid"].numpy()).tolist() == [[0, 0, 0]]
    wanted = np.zeros((20, 24), int)
    wanted[:, 12:] = 1
    wanted[1, 3] = wanted[5, 5] = IGNORE
    np.testing.assert_array_equal(sample["labels"], wanted)


def test_a_finer_resolution_repeats_pixels(simple):
    one = source(area(simple), resolution=5, window=32, by=ByArea(predict=("a",)))
    samples = everything(one.split("predict"))
    expected = numbers(2).repeat(2, axis=1).repeat(2, axis=2) * 1e-4
    np.testing.assert_allclose(mosaic(samples, "values", (80, 96))[2], expected, rtol=1e-6)


def test_masks_and_labels_of_other_pixel_sizes_are_looked_up(tmp_path):
    folder = write_series(tmp_path / "images", dates=DATES[:1])
    coarse = GeoBox((20, 24), GRID.affine @ Affine.scale(2), GRID.crs)
    classes = np.full((1, 20, 24), VEGETATION, np.uint8)
    classes[0, 2, 3] = CLOUD
    write_raster(folder / "S2_20210305_SCL.tif", classes, coarse)
    fine = GeoBox((80, 96), GRID.affine @ Affine.scale(0.5), GRID.crs)
    codes = halves((80, 96))
    codes[0, 0, 0] = 20
    labels = Labels(path=str(write_raster(tmp_path / "l.tif", codes, fine)))
    (sample,) = everything(source(area(tmp_path, labels=labels), window=64).split("train"))
    assert np.argwhere(~sample["valid"][0].numpy()).tolist() == [[4, 6], [4, 7], [5, 6], [5, 7]]
    assert np.argwhere(sample["labels"].numpy() == IGNORE).tolist() == [[0, 0]]


def test_a_generic_cloud_mask_and_a_mask_band(tmp_path):
    bad = np.zeros((1, 40, 48), np.uint8)
    bad[0, 0, 0] = 1
    values = np.concatenate([numbers(0), np.full((1, 40, 48), 4, np.uint16)])
    values[3, 0, 1] = 9
    write_raster(tmp_path / "images" / "2021-03-05.tif", values, bands=(*BANDS, "SCL"))
    write_raster(tmp_path / "clouds" / "2021-03-05_bad.tif", bad)
    masks = Masks(scl="SCL", bad="../clouds/{stem}_bad.tif")
    (sample,) = everything(source(area(tmp_path, masks=masks), window=64).split("train"))
    assert np.argwhere(~sample["valid"][0].numpy()).tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize("named", ["described", "table", "area"])
def test_a_stack_of_all_dates_is_a_series(tmp_path, named):
    stack = np.concatenate([numbers(1), numbers(0)])
    listed = [(date, band) for date in (DATES[1], DATES[0]) for band in BANDS]
    path = tmp_path / "stack.tif"
    names = tuple(f"{date} {band}" for date, band in listed)
    write_raster(path, stack, bands=names if named == "described" else ())
    if named == "table":
        rows = [f"{number},{date},{band}" for number, (date, band) in enumerate(listed, start=1)]
        path.with_suffix(".csv").write_text("\n".join(["index,date,band", *rows]))
    classes = np.full((2, 40, 48), VEGETATION, np.uint8)
    classes[0, 0, 0] = CLOUD
    write_raster(tmp_path / "stack_SCL.tif", classes, bands=DATES[:2] if named == "described" else ())
    one = area(tmp_path, images=path, band_names=names if named == "area" else None)
    (sample,) = everything(source(one, window=64).split("train"))
    np.testing.assert_allclose(sample["values"][0][:, 1:], numbers(0)[:, 1:] * 1e-4, rtol=1e-6)
    np.testing.assert_allclose(sample["values"][1], numbers(1) * 1e-4, rtol=1e-6)
    assert np.argwhere(~sample["valid"].numpy()).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        (("2021-03-05 B02", "2021-03-05 B04", "cloud"), "band 3: a stack needs date and band in each description"),
        (("2021-03-05 B02", "2021-03-05 B04", "2021-05-14 B08"), "on 2021-03-05: band B08 is missing"),
        (("2021-03-05 B02", "2021-03-05 B04"), "has 3 bands and band_names of area a 2"),
    ],
)
def test_a_stack_that_is_not_complete_gets_one_line(tmp_path, names, rule):
    path = write_raster(tmp_path / "stack.tif", numbers(0))
    with pytest.raises(ValueError, match=rule):
        source(area(tmp_path, images=path, masks=Masks(scl=None), band_names=names)).scenes()


def test_band_names_do_not_overrule_a_file(simple):
    with pytest.raises(ValueError, match="must not be overruled; leave band_names of area a out"):
        source(area(simple, band_names=BANDS)).scenes()


def test_dates_from_a_table_and_a_season(tmp_path):
    folder = tmp_path / "images"
    for number, name in enumerate(("x", "y", "z")):
        write_raster(folder / f"{name}.tif", numbers(number), bands=BANDS)
    (folder / "dates.csv").write_text("file,date\nz.tif,2020-12-31\nx.tif,2021-02-01\ny.tif,2021-01-01\n")
    one = area(tmp_path, masks=Masks(scl=None), season=("2021-01-01", "2021-02-01"))
    (sample,) = everything(source(one, window=64).split("train"))
    assert sample["days"].tolist() == [18628, 18659]
    np.testing.assert_allclose(sample["values"][0], numbers(1) * 1e-4, rtol=1e-6)
    (folder / "dates.csv").write_text("file,date\nz.tif,2020-12-31\nx.tif,2021-02-01\n")
    with pytest.raises(ValueError, match=r"dates\.csv: .* y\.tif is not listed"):
        source(one).scenes()


@pytest.mark.parametrize(
    ("name", "date"),
    [
        ("S2A_MSIL2A_20180421T105031_N0207_R051_T31UDS_20180422T125406", "2018-04-21"),
        ("S2_20181122_2", "2018-11-22"),
        ("T31UES 2019-01-14 L2A", "2019-01-14"),
        ("20200229", "2020-02-29"),
    ],
)
def test_dates_in_names(name, date):
    assert date_in(name, where=name).isoformat() == date
    assert date_of_day(days_since_epoch(date_in(name, where=name))).isoformat() == date


@pytest.mark.parametrize("name", ["scene", "20201301", "S2_2021-02-30", "20200101_20200102", "1234567890"])
def test_names_without_one_date_are_refused(name):
    with pytest.raises(ValueError, match=r"here: .* dates\.csv"):
        date_in(name, where="here")


def test_polygons_are_rasterised_and_overlaps_of_two_classes_ignored(simple):
    boxes = [(0, 0, 10, 10), (5, 5, 10, 10), (5, 0, 10, 3), (20, 20, 5, 5), (30, 30, 4, 4)]
    path = write_polygons(simple / "fields.gpkg", boxes, ["10", "20", "10", "0", None], crs="EPSG:4326")
    (sample,) = everything(source(area(simple, labels=Labels(path=str(path))), window=64).split("train"))
    wanted = np.full((40, 48), IGNORE)
    wanted[:10, :10], wanted[5:15, :3], wanted[5:15, 5:15] = 0, 0, 1
    wanted[5:10, 5:10] = IGNORE
    np.testing.assert_array_equal(sample["labels"], wanted)


def test_windows_of_polygons_agree_with_the_whole(simple):
    rng = np.random.default_rng(0)
    boxes = [(*rng.integers(0, 30, 2), *rng.integers(2, 12, 2)) for _ in range(12)]
    path = write_polygons(simple / "fields.geojson", boxes, [int(code) for code in rng.choice([10, 20], 12)])
    one = area(simple, labels=Labels(path=str(path)))
    (whole,) = everything(source(one, window=64).split("train"))
    pieces = everything(source(one, by=ByArea(predict=("a",)), margin=3).split("predict"))
    np.testing.assert_array_equal(mosaic(pieces, "labels"), whole["labels"])


@pytest.mark.parametrize("kind", ["polygons", "raster"])
def test_few_fields_are_kept_for_training_only(simple, kind):
    boxes = [(row, column, 8, 6) for row in (0, 10, 20, 30) for column in (0, 8, 16, 24)]
    codes = [10, 20] * 8
    if kind == "polygons":
        path = write_polygons(simple / "fields.gpkg", boxes, codes)
    else:
        raster = np.zeros((1, 40, 48), np.int16)
        for (row, column, height, width), code in zip(boxes, codes, strict=True):
            raster[0, row : row + height, column : column + width] = code
        path = write_raster(simple / "fields.tif", raster, nodata=0)
    one = area(simple, labels=Labels(path=str(path)))
    few = source(one, window=64, fields_per_class=2, seed=1, by=ByArea(train=("a",), predict=("a",)))
    (sample,) = everything(few.split("train"))
    counts = [int((sample["labels"] == index).sum()) for index in range(2)]
    assert counts == [96, 96]
    (everywhere,) = everything(few.split("predict"))
    assert int((everywhere["labels"] != IGNORE).sum()) == 16 * 48
    (again,) = everything(replace(few).split("train"))
    np.testing.assert_array_equal(again["labels"], sample["labels"])
    others = [everything(replace(few, seed=seed).split("train"))[0]["labels"] for seed in range(2, 6)]
    assert any((other != sample["labels"]).any() for other in others)


def test_blocks_never_read_a_pixel_of_another_part(simple):
    one = source(area(simple), by=ByBlocks(size=12, buffer=2, seed=5), window=8)
    seen = {}
    for part in ("train", "val", "test"):
        reads = np.zeros((40, 48), int)
        for sample in everything(one.split(part)):
            row, column, height, width = sample["read"].tolist()
            reads[row : row + height, column : column + width] = 1
        seen[part] = reads
    assert sum(seen.values()).max() == 1
    assert all(reads.any() for reads in seen.values())


def test_years_come_from_dates_or_season(tmp_path):
    for name, dates in (("one", ("2019-12-30", "2020-05-01", "2020-06-01")), ("two", ("2020-11-01", "2021-03-01"))):
        write_series(tmp_path / name / "images", dates=dates)
    areas = (area(tmp_path / "one", "one"), area(tmp_path / "two", "two", season=("2020-10-01", "2021-09-30")))
    by_year = source(*areas, by=ByYear(train=(2020,), test=(2021,)))
    assert {int(sample["scene"]) for sample in everything(by_year.split("train"))} == {0}
    assert {int(sample["scene"]) for sample in everything(by_year.split("test"))} == {1}


def test_an_area_without_labels_can_only_be_predicted(simple):
    one = area(simple, labels=None)
    assert "labels" not in source(one, by=ByArea(predict=("a",))).split("predict")[0]
    with pytest.raises(ValueError, match="area a has no labels, so it cannot be in train"):
        source(one).split("train")


def test_an_area_may_count_its_classes_in_its_own_way(simple):
    path = write_raster(simple / "l.tif", halves(codes=(7, 8)))
    own = Legend(classes={"grass": [7], "maize": [8]})
    one = source(area(simple, labels=Labels(path=str(path), legend=own)), window=64)
    assert one.split("train")[0]["labels"][0, [0, -1]].tolist() == [1, 0]
    foreign = Labels(path=str(path), legend=Legend(classes={"oats": [7, 8]}))
    with pytest.raises(ValueError, match="oats, which is no class of the source"):
        source(area(simple, labels=foreign)).split("train")


@pytest.mark.parametrize(("low", "warned"), [(1200, True), (300, False)])
def test_numbers_that_look_like_the_new_baseline_are_said(tmp_path, caplog, low, warned):
    write_raster(tmp_path / "images" / "2022-03-05.tif", numbers(0) + np.uint16(low), bands=BANDS)
    source(area(tmp_path, masks=Masks(scl=None)), bands=("B02",)).prepare()
    assert any("baseline 04.00" in message for message in caplog.messages) == warned


def test_numbers_that_are_reflectance_already_are_said(tmp_path, caplog):
    write_raster(tmp_path / "images" / "2022-03-05.tif", numbers(0).astype(np.float32) / 1e4, bands=BANDS)
    source(area(tmp_path, masks=Masks(scl=None))).prepare()
    assert any("name reflectance.scale: 1" in message for message in caplog.messages)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-300])


def _rewrite(path, values=None, grid=GRID, **fields):
    write_raster(path, numbers(0) if values is None else values, grid, **{"bands": BANDS, **fields})


SHIFTED = GeoBox((40, 48), Affine(10, 0, 500_010, 0, -10, 5_600_000), "EPSG:32631")
ZONE = GeoBox((40, 48), GRID.affine, "EPSG:32632")
LARGER = GeoBox((40, 49), GRID.affine, "EPSG:32631")
IMAGE = "S2_20210514.tif"


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (lambda f: _rewrite(f / IMAGE, bands=("B02", "B04", "B07")), f"{IMAGE}: band B08 is missing"),
        (lambda f: _rewrite(f / IMAGE, bands=("B02", "B02", "B08")), f"{IMAGE}: band names must be unique"),
        (lambda f: _rewrite(f / IMAGE, bands=()), f"{IMAGE}: bands are read by name, and the file describes none"),
        (lambda f: _rewrite(f / IMAGE, grid=ZONE), f"{IMAGE}: .* one coordinate system"),
        (lambda f: _rewrite(f / IMAGE, grid=SHIFTED), f"{IMAGE}: .* one transform"),
        (lambda f: _rewrite(f / IMAGE, np.ones((3, 40, 49), np.uint16), LARGER), f"{IMAGE}: .* one shape"),
        (lambda f: _rewrite(f / IMAGE, units=(1e-4, -0.1)), "declares scale 0.0001 and offset -0.1, .* offset 0;"),
        (lambda f: _rewrite(f / "scene.tif"), r"scene\.tif: no date in the name"),
        (lambda f: _rewrite(f / "S2_20211399.tif"), "20211399 is no day of the calendar"),
        (lambda f: (f / "S2_20210514_SCL.tif").unlink(), f"{IMAGE}: its mask S2_20210514_SCL.tif is missing"),
        (lambda f: _rewrite(f / "S2_20210514_SCL.tif", grid=ZONE), "a mask must have the coordinate system"),
        (lambda f: _truncate(f / IMAGE), f"{IMAGE}: the file is truncated"),
        (lambda f: (f / IMAGE).write_bytes(b"no image"), f"{IMAGE}: the file cannot be opened"),
        (lambda f: [path.unlink() for path in f.iterdir()], "holds no image"),
        (lambda f: [path.unlink() for path in f.iterdir()] + [f.rmdir()], "neither a folder nor a file"),
        (lambda f: _rewrite(f.parent / "labels.tif", np.full((1, 40, 48), 33, np.int16), bands=()), "33 .1920 pixels"),
        (lambda f: _rewrite(f.parent / "labels.tif", halves(), ZONE, bands=()), "a label raster must have the coord"),
        (lambda f: (f.parent / "labels.tif").unlink(), "there is no label file"),
    ],
)
def test_bad_files_get_one_line_before_training(simple, spoil, rule):
    one = area(simple)
    spoil(simple / "images")
    with pytest.raises(ValueError, match=rule) as caught:
        source(one).prepare()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "rule"),
    [
        ({"path": "labels.tif", "band": 3}, "band 3 does not exist"),
        ({"path": "labels.tif", "band": "CT"}, "no band is described as 'CT'"),
        ({"path": "fields.gpkg", "column": "kind"}, "no column 'kind', there are crop"),
        ({"path": "fields.gpkg", "layer": "other"}, "the labels cannot be read"),
        ({"path": "fields.gpkg"}, r"these are not: 99 \(1 polygons\)"),
    ],
)
def test_labels_that_do_not_fit_get_one_line(simple, labels, rule):
    write_polygons(simple / "fields.gpkg", [(0, 0, 5, 5), (9, 9, 5, 5)], [10, 99])
    write_raster(simple / "labels.tif", halves())
    fields = {**labels, "path": str(simple / labels["path"])}
    with pytest.raises(ValueError, match=rule) as caught:
        source(area(simple, labels=Labels(**fields))).prepare()
    assert "\n" not in str(caught.value)


def test_one_of_several_layers_must_be_named(simple):
    path = write_polygons(simple / "fields.gpkg", [(0, 0, 5, 5)], [10])
    frame = geopandas.read_file(path).assign(crop=20)
    frame.to_file(path, layer="later")
    with pytest.raises(ValueError, match="must have one layer of polygons or name it, here fields, later"):
        source(area(simple, labels=Labels(path=str(path)))).prepare()
    named = area(simple, labels=Labels(path=str(path), layer="later"))
    assert source(named, window=64).split("train")[0]["labels"][0, 0] == 1


@pytest.mark.parametrize("content", [b"", b"no polygons", b"crop\n10\n"])
def test_a_label_file_without_polygons_gets_one_line(simple, content):
    path = simple / ("fields.csv" if content.startswith(b"crop") else "fields.gpkg")
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"fields\..*: (the labels cannot be read|a label file must have one)"
    ) as caught:
        source(area(simple, labels=Labels(path=str(path)))).prepare()
    assert "\n" not in str(caught.value)


def test_a_file_that_breaks_while_training_is_named(simple):
    dataset = source(area(simple), window=64).split("train")
    _truncate(simple / "images" / IMAGE)
    with pytest.raises(ValueError, match=rf"{IMAGE}: the file is truncated"):
        dataset[0]


def test_labels_elsewhere_leave_nothing_to_train_on(simple):
    far = GeoBox((40, 48), Affine(10, 0, 700_000, 0, -10, 5_600_000), "EPSG:32631")
    labels = Labels(path=str(write_raster(simple / "far.tif", halves(), far)))
    with pytest.raises(ValueError, match="train has no window with a label and a clear date, of 9 windows of a"):
        source(area(simple, labels=labels)).split("train")


@pytest.mark.parametrize(
    "fields",
    [
        {"bands": ("red",)},
        {"bands": ("B99",)},
        {"bands": ()},
        {"bands": ("B02", "B02")},
        {"window": 8, "margin": 4},
        {"min_clear": 1.5},
        {"fields_per_class": 0},
    ],
)
def test_fields_that_make_no_sense_are_refused(fields):
    with pytest.raises(ValueError, match=r"bands|Sentinel-2 band|margin|min_clear|fields_per_class"):
        source(Area(name="a", images="nowhere"), **fields)


def test_a_resolution_that_does_not_fit_is_refused(simple):
    for resolution, rule in ((15, "a whole multiple"), (0, "a whole multiple"), (500, "hold no pixel of 500")):
        with pytest.raises(ValueError, match=rule):
            source(area(simple), resolution=resolution).scenes()


def test_a_legend_gives_a_code_once():
    with pytest.raises(ValueError, match="every code belongs to one class, 10 stands twice"):
        Legend(classes={"maize": [10], "grass": ["10"]})
    with pytest.raises(ValueError, match="1 to 254 classes"):
        Legend(classes={})


def test_yaml_builds_the_data_module(simple):
    labels = area(simple).labels.path
    text = f"""
data:
  source:
    class_path: geomed.data.sentinel2_series.Sentinel2Series
    init_args:
      areas:
        - name: a
          images: {simple / "images"}
          labels: {{path: {labels}, band: 1}}
          season: [2021-03-05, 2021-05-14]
          masks: {{clear: [4]}}
      legend: {{classes: {{maize: [10], grass: [20]}}, ignore: [0]}}
      by:
        class_path: geomed.evaluation.splits.ByArea
        init_args: {{train: [a], predict: [a]}}
      bands: [B04, B08]
      window: 16
  batch_size: 4
  augment: {{flip: false, drop_dates: 0.25}}
"""
    parser = ArgumentParser()
    parser.add_class_arguments(DataModule, "data")
    built = parser.instantiate(parser.parse_string(text)).data
    built.prepare_data()
    built.setup("predict")
    batches = list(built.predict_dataloader())
    assert [len(batch["values"]) for batch in batches] == [4, 4, 1]
    assert batches[0]["values"].shape == (4, 2, 2, 16, 16)
    assert built.augment.drop_dates == 0.25

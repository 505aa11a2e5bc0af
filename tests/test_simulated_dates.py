"""Laws of simulated dates: what a sensor does to a ground, and domains that cannot be mistaken for each other."""

import datetime as dt
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from jsonargparse import ArgumentParser

from geomed.bands import PASTIS_BANDS
from geomed.data.simulated_dates import SimulatedDates, clearest
from geomed.data.simulated_season import SimulatedSeason
from geomed.data.simulation.region import EARLIER, NORTH
from geomed.data.simulation.sensor import OTHER, PLAIN, Response, Sensor
from geomed.data.source import Source
from geomed.evaluation.splits import PARTS, ByArea, ByBlocks
from geomed.pixels import IGNORE
from geomed.windows import Window

BANDS = ("B02", "B04", "B08", "B11")
COARSE = Sensor(name="coarse", pixels=2)


def ground(seed=0, side=24, bands=BANDS):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.01, 0.6, (len(bands), side, side)).astype(np.float32), rng.random((side, side)) < 0.9


def seen(sensor, values, valid, bands=BANDS, seed=0):
    return sensor.observe(values, valid, bands=bands, rng=np.random.default_rng(seed))


def test_the_plain_sensor_changes_nothing():
    values, valid = ground()
    after, where = seen(PLAIN, values, valid)
    assert (where == valid).all()
    assert (after == np.where(valid, values, 0)).all()


def test_a_coarser_pixel_is_the_mean_of_what_it_covers_and_valid_if_all_of_it_is():
    values, valid = ground()
    after, where = seen(COARSE, values, valid)
    assert after.shape == (4, 12, 12)
    for row, column in itertools.product(range(12), range(12)):
        cell = slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2)
        assert where[row, column] == valid[cell].all()
        mean = values[:, *cell].astype(np.float64).mean(axis=(1, 2)) if where[row, column] else np.zeros(4)
        assert (after[:, row, column] == mean.astype(np.float32)).all()


@pytest.mark.parametrize("bands", [BANDS, PASTIS_BANDS, PASTIS_BANDS[::-1], ("B08",)])
def test_crosstalk_loses_no_light_and_leaves_grey_grey(bands):
    response = Response(crosstalk=0.4)
    mixing = response.mixing(bands)
    assert np.allclose(mixing.sum(axis=0), 1)
    assert np.allclose(mixing.sum(axis=1), 1)
    assert mixing.min() >= 0
    values = ground(bands=bands)[0].astype(np.float64)
    assert np.allclose(response(values, bands).sum(axis=0), values.sum(axis=0))
    assert np.allclose(response(np.full_like(values, 0.3), bands), 0.3)


def test_crosstalk_is_between_neighbours_by_wavelength_whatever_their_order():
    mixing = Response(crosstalk=0.4).mixing(("B08", "B02", "B04"))  # in order of wavelength: B02, B04, B08
    assert np.allclose(mixing, [[0.8, 0, 0.2], [0, 0.8, 0.2], [0.2, 0.2, 0.6]])


def test_gain_exponent_and_offset_follow_their_formula():
    values, _ = ground()
    response = Response(exponent=0.5, gains={"B04": 2.0}, offsets={"B08": -0.1})
    blue, red, near, _ = response(values.astype(np.float64), BANDS)
    assert np.allclose(blue, np.sqrt(values[0]))
    assert np.allclose(red, 2 * np.sqrt(values[1]))
    assert np.allclose(near, np.sqrt(values[2]) - 0.1)
    assert np.allclose(response(np.full((4, 1, 1), -0.04), BANDS)[0], -0.2)


def test_haze_is_blue_and_noise_has_its_deviation():
    values, valid = ground(side=96)
    hazy = seen(Sensor(name="hazy", haze=0.05), values, valid)[0] - seen(PLAIN, values, valid)[0]
    blue, red, near, infrared = hazy[:, valid].mean(axis=1)
    assert 0.049 < blue < 0.051
    assert blue > red > near > infrared > 0
    noise = seen(Sensor(name="noisy", noise=0.02), values, valid)[0] - seen(PLAIN, values, valid)[0]
    assert (noise[:, ~valid] == 0).all()
    assert abs(noise[:, valid].mean()) < 0.001
    assert np.allclose(noise[:, valid].std(axis=1), 0.02, rtol=0.05)
    assert abs(np.corrcoef(noise[:, valid])[0, 1]) < 0.05


def test_blur_spreads_a_point_keeps_a_flat_ground_and_lets_no_cloud_in():
    point, everywhere = np.zeros((1, 41, 41), dtype=np.float32), np.ones((41, 41), dtype=bool)
    point[0, 20, 20] = 1.0
    spread = seen(Sensor(name="soft", blur=1.5), point, everywhere, ("B04",))[0][0].astype(np.float64)
    assert spread.sum() == pytest.approx(1, abs=1e-5)
    distance = np.arange(41) - 20.0
    assert (spread.sum(axis=0) * distance**2).sum() == pytest.approx(1.5**2, rel=0.05)
    assert (spread == spread.T).all()
    _, valid = ground()
    flat = np.where(valid, np.float32(0.25), np.float32(0.9))[None].repeat(4, axis=0)
    after, where = seen(Sensor(name="soft", blur=1.0), flat, valid)
    assert np.allclose(after[:, where], 0.25)


def test_a_sensor_is_deterministic_and_leaves_its_input_alone():
    values, valid = ground()
    kept = values.copy(), valid.copy()
    first, again, other = (seen(OTHER, values, valid, seed=seed)[0] for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    assert first.dtype == np.float32
    assert (values == kept[0]).all()
    assert (valid == kept[1]).all()


def test_grounds_that_do_not_fit_are_refused():
    values, valid = ground(side=15)
    with pytest.raises(ValueError, match="do not divide a ground of 15 x 15"):
        seen(COARSE, values, valid)
    with pytest.raises(ValueError, match="values must be"):
        seen(PLAIN, values, valid[1:])
    with pytest.raises(ValueError, match="values must be"):
        seen(PLAIN, values[1:], valid)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "../x"}, "becomes a folder"),
        ({"name": ""}, "becomes a folder"),
        ({"pixels": 0}, "pixels is a count"),
        ({"pixels": 1.5}, "pixels is a count"),
        ({"blur": -0.1}, "blur must lie between 0 and 2"),
        ({"noise": float("nan")}, "noise must lie"),
        ({"haze": 3.0}, "haze must lie"),
    ],
)
def test_sensors_of_nonsense_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        Sensor(**{"name": "x", **fields})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"crosstalk": 0.6}, "crosstalk must lie between 0 and 0.5"),
        ({"exponent": 0.0}, "exponent must lie"),
        ({"gains": {"B04": -1.0}}, "gains of B04 must lie"),
        ({"gains": {"red": 1.0}}, "gains: no band is called red"),
        ({"offsets": {"B10": 0.0}}, "offsets: no band is called B10"),
        ({"offsets": {"B04": float("inf")}}, "offsets of B04 must lie"),
    ],
)
def test_responses_of_nonsense_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        Response(**fields)


def test_each_span_gives_its_clearest_date():
    def day(month, number):
        return dt.date(2021, month, number)

    clear = {day(6, 2): 0.8, day(6, 9): 0.9, day(6, 28): 0.9, day(7, 5): 0.4, day(7, 31): 0.6, day(8, 3): 0.1}
    months = {"first": day(6, 1), "last": day(8, 31)}
    assert clearest(clear, **months, count=3) == (day(6, 9), day(7, 31))
    assert clearest(clear, **months, count=1) == (day(6, 9),)
    assert clearest({day(8, 31): 1.0}, **months, count=92) == (day(8, 31),)
    assert clearest({day(8, 3): 0.4}, **months, count=3) == ()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("dates")


def dates(home, *, land=None, **changes):
    land = {"regions": (NORTH,), "years": (EARLIER,), "size": 64, "bands": BANDS, **(land or {})}
    fields = {"months": (5, 8), "dates": 3, "bands": BANDS, "window": 8, **changes}
    season = SimulatedSeason(root=str(home / "season"), **land)
    return SimulatedDates(season=season, root=str(home / "dates"), **fields)


@pytest.fixture(scope="module")
def plain(home):
    source = dates(home)
    source.prepare()
    return source


@pytest.fixture(scope="module")
def coarse(home):
    source = dates(home, sensor=COARSE)
    source.prepare()
    return source


def whole(source):
    """All pixels of each date, by the name of its scene."""
    data = replace(source, window=64, by=ByArea(predict=("north-2021",))).split("predict")
    return {scene.name: data[index] for index, scene in enumerate(source.scenes())}


def test_the_plain_sensor_gives_the_season_back(plain, home):
    scenes = whole(plain)
    assert 1 <= len(scenes) <= 3
    for name, sample in scenes.items():
        stem = home / "season" / "north-2021" / "images" / f"S2_{name.split('-')[-1]}"
        with rasterio.open(f"{stem}.tif") as file, rasterio.open(f"{stem}_SCL.tif") as mask:
            numbers, clear = file.read(), np.isin(mask.read(1), [4, 5, 6, 7])
        assert (sample["valid"].numpy() == clear).all()
        assert (sample["values"].numpy() == np.where(clear, numbers.astype(np.float32) * np.float32(1e-4), 0)).all()


def test_files_describe_themselves(coarse):
    folder = coarse.folder("north-2021")
    record = json.loads((folder / "dates.json").read_text())
    assert sorted(path.stem for path in folder.glob("*.tif")) == record["dates"]
    assert record["parameters"]["sensor"]["name"] == "coarse"
    for path in folder.glob("*.tif"):
        with rasterio.open(path) as file:
            assert file.descriptions == BANDS
            assert file.dtypes == ("int16",) * 4
            assert (file.nodata, file.shape) == (-32768, (32, 32))
            assert (file.transform.a, file.transform.e) == (20.0, -20.0)
            assert (file.transform.c, file.transform.f) == NORTH.corner
            assert file.scales == (1e-4,) * 4


def test_coarse_dates_are_means_of_the_plain_ones(plain, coarse):
    fine, rough = whole(plain), whole(coarse)
    assert fine.keys() == rough.keys()
    for name, sample in rough.items():
        valid = fine[name]["valid"].reshape(32, 2, 32, 2).all(dim=3).all(dim=1)
        means = fine[name]["values"].double().reshape(4, 32, 2, 32, 2).mean(dim=(2, 4))
        assert (sample["valid"] == valid).all()
        assert (sample["values"].double()[:, valid] - means[:, valid]).abs().max() < 0.51e-4  # of the stored numbers


@pytest.mark.parametrize("which", ["plain", "coarse"])
def test_labels_lie_where_their_fields_do(which, request):
    source = request.getfixturevalue(which)
    fields = geopandas.read_file(source.folder("north-2021") / "fields.gpkg")
    large = fields[fields.area > np.quantile(fields.area, 0.5)]
    checked = 0
    for scene, sample in zip(source.scenes(), whole(source).values(), strict=True):
        for field in large.itertuples():
            column, row = (int(value) for value in ~scene.grid.affine @ field.geometry.representative_point().coords[0])
            if sample["valid"][row, column]:
                centre = scene.grid.affine @ (column + 0.5, row + 0.5)
                hit = fields[fields.contains(geopandas.points_from_xy([centre[0]], [centre[1]])[0])]
                said = [source.classes.index(crop) for crop in hit.crop] or [IGNORE]
                assert [int(sample["labels"][row, column])] == said
                checked += said != [IGNORE]
    assert checked > 10


def test_samples_are_single_images(plain):
    for part in PARTS:
        data = plain.split(part)
        assert len(data) > 0
        for sample in (data[0], data[len(data) - 1]):
            height, width = sample["read"][2:].tolist()
            assert sample["values"].shape == (4, height, width)
            assert sample["values"].dtype == torch.float32
            assert sample["valid"].shape == sample["labels"].shape == (height, width)
            assert (sample["values"][:, ~sample["valid"]] == 0).all()
            assert (sample["labels"][~sample["valid"]] == IGNORE).all()
            assert {"scene", "read", "keep"} <= sample.keys()


@pytest.mark.parametrize("by", [None, ByBlocks(size=12, buffer=2, areas=("north-2021",), seed=3)])
@pytest.mark.parametrize("which", ["plain", "coarse"])
def test_no_place_stands_in_two_parts_on_any_date(which, by, request):
    source = replace(request.getfixturevalue(which), by=by)
    side = 64 if which == "plain" else 32
    used = {part: np.zeros((side, side), dtype=bool) for part in PARTS}
    shown = {part: {} for part in PARTS}
    for part in PARTS:
        for sample in source.split(part):
            row, column, height, width = sample["read"].tolist()
            used[part][row : row + height, column : column + width] = True
            shown[part].setdefault(int(sample["scene"]), set())
    for one, other in itertools.combinations(PARTS, 2):
        grown = np.pad(used[one], 1)
        near = np.max([grown[i : i + side, j : j + side] for i in range(3) for j in range(3)], axis=0)
        assert not (near & used[other]).any()
    assert all(found.any() for found in used.values())
    assert set().union(*shown.values()) == set(range(len(source.scenes())))


def labelled(source):
    """For each date the pixels (row, column) of the train part that have a label, with their class."""
    found = {index: {} for index in range(len(source.scenes()))}
    for sample in source.split("train"):
        rows, columns = np.nonzero(sample["labels"].numpy() != IGNORE)
        for row, column in zip(rows, columns, strict=True):
            place = row + int(sample["read"][0]), column + int(sample["read"][1])
            found[int(sample["scene"])][place] = int(sample["labels"][row, column])
    return found


def test_few_fields_are_the_same_on_every_date(plain):
    few, every = labelled(replace(plain, fields_per_class=1)), labelled(plain)
    places = sorted(set().union(*few.values()))
    for date, found in few.items():
        assert found == {place: every[date][place] for place in places if place in every[date]}
    fields = geopandas.read_file(plain.folder("north-2021") / "fields.gpkg")
    affine = plain.scenes()[0].grid.affine
    points = geopandas.points_from_xy(*zip(*(affine @ (c + 0.5, r + 0.5) for r, c in places), strict=True))
    owners = geopandas.sjoin(geopandas.GeoDataFrame(geometry=points, crs=fields.crs), fields, predicate="within")
    owners = owners.drop_duplicates("id")
    assert owners.crop.is_unique
    assert len(owners) == len({crop for found in every.values() for crop in found.values()})


def test_the_same_seed_gives_the_same_bytes_and_two_sensors_share_no_folder(home, plain, tmp_path):
    noisy = Sensor(name="noisy", noise=0.01)
    shutil.copytree(home / "season", tmp_path / "season")
    first, again = dates(home, sensor=noisy), dates(tmp_path, sensor=noisy)
    for source in (first, again):
        source.prepare()
    files = sorted(path.name for path in first.folder("north-2021").glob("*.tif"))
    assert files
    for name in files:
        assert (first.folder("north-2021") / name).read_bytes() == (again.folder("north-2021") / name).read_bytes()
    others = [
        plain,
        replace(plain, sensor=PLAIN),
        replace(plain, sensor=replace(noisy, noise=0.02)),
        replace(plain, months=(5, 7)),
        replace(plain, dates=2),
        dates(home, land={"seed": 1}),
        first,
    ]
    folders = [source.folder("north-2021") for source in others]
    assert folders[0] == folders[1]
    assert len(set(folders)) == len(folders) - 1
    assert plain.folder("north-2021") == replace(plain, seed=5, fields_per_class=2, window=4).folder("north-2021")


def stamps(root):
    return {path: path.stat().st_mtime_ns for path in Path(root).rglob("*") if path.is_file()}


def test_prepare_writes_once_and_shares_the_season(home, plain, coarse, tmp_path):
    before = stamps(home)
    plain.prepare()
    replace(coarse, seed=1).prepare()
    assert stamps(home) == before
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    moved = dates(tmp_path, sensor=COARSE)
    seasons = stamps(tmp_path / "season")
    next(moved.folder("north-2021").glob("*.tif")).unlink()
    moved.prepare()
    assert stamps(tmp_path).keys() == {tmp_path / path.relative_to(home) for path in before}
    assert stamps(tmp_path / "season") == seasons
    shutil.rmtree(tmp_path / "season")
    moved.prepare()  # what is complete needs no season
    assert not (tmp_path / "season").exists()


@pytest.mark.usefixtures("plain")
def test_an_interrupted_prepare_leaves_nothing_half(home, tmp_path, monkeypatch):
    shutil.copytree(home / "season", tmp_path / "season")
    source, calls = dates(tmp_path, sensor=COARSE), []

    def interrupted(self, *arguments, **named):
        calls.append(self.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return observe(self, *arguments, **named)

    observe = Sensor.observe
    monkeypatch.setattr(Sensor, "observe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        source.prepare()
    folder = source.folder("north-2021")
    assert [path.name for path in (tmp_path / "dates").iterdir()] == [f".{folder.name}.part"]
    with pytest.raises(ValueError, match=r"call prepare\(\) first"):
        source.split("train")
    source.prepare()
    assert [path.name for path in (tmp_path / "dates").iterdir()] == [folder.name]
    assert len(source.split("train")) > 0


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    source = dates(tmp_path)
    source.folder("north-2021").mkdir(parents=True)
    (source.folder("north-2021") / "thesis.txt").write_text("the only copy")
    with pytest.raises(ValueError, match="move it away"):
        source.prepare()
    assert (source.folder("north-2021") / "thesis.txt").read_text() == "the only copy"


def test_months_without_a_clear_date_are_told(plain):
    with pytest.raises(ValueError, match=r"north-2021: none of the 0 images from 2021-01-01 to 2021-01-31 shows 50%"):
        replace(plain, months=(1, 1)).prepare()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"months": (9, 4)}, "months must be the first and the last of one year"),
        ({"months": (0, 4)}, "months must be"),
        ({"months": (4, 13)}, "months must be"),
        ({"dates": 0}, "dates must be at least 1"),
        ({"bands": ("B04", "B12")}, r"some of the season's \(B02, B04, B08, B11\)"),
        ({"bands": ()}, "not none"),
        ({"bands": ("B04", "B04")}, "each once"),
        ({"window": 32}, "two windows along each side"),
        ({"window": 0}, "twice the margin"),
        ({"fields_per_class": 0}, "fields_per_class must be at least 1"),
        ({"sensor": Sensor(name="x", pixels=3)}, "do not divide an area of 64"),
    ],
)
def test_what_cannot_be_seen_is_refused(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        dates(tmp_path, **changes)


def test_an_area_that_is_not_there_is_told(plain):
    with pytest.raises(ValueError, match="no area is called south-2021, there are north-2021"):
        plain.folder("south-2021")
    with pytest.raises(ValueError, match="no area is called south-2021"):
        replace(plain, by=ByArea(train=("south-2021",))).split("train")


@pytest.mark.parametrize("size", range(128, 1025, 32))
def test_blocks_of_the_usual_split_hold_a_window(tmp_path, size):
    by = dates(tmp_path, land={"size": size}, sensor=COARSE, window=24)._by()
    blocks = list(by._blocks(Window(0, 0, size // 2, size // 2)))
    assert len(blocks) >= 4
    assert min(min(block.height, block.width) for block in blocks) >= 24


def test_a_config_is_short_and_can_be_written(tmp_path):
    config = """
source:
  class_path: geomed.data.simulated_dates.SimulatedDates
  init_args:
    season:
      regions: [geomed.data.simulation.region.SOUTH]
      years: [geomed.data.simulation.region.LATER]
    sensor: {sensor}
    months: [6, 7]
    by: {{class_path: geomed.evaluation.splits.ByBlocks, init_args: {{size: 34}}}}
"""
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(Source, "source")
    for text, sensor in (
        ("geomed.data.simulation.sensor.OTHER", OTHER),
        ("{name: soft, blur: 0.5, response: {gains: {B04: 1.2}}}", None),
    ):
        (tmp_path / "short.yaml").write_text(config.format(sensor=text))
        parsed = parser.parse_args(["--config", str(tmp_path / "short.yaml")])
        source = parser.instantiate(parsed).source
        assert source.sensor == (sensor or Sensor(name="soft", blur=0.5, response=Response(gains={"B04": 1.2})))
        assert [region.name for region in source.season.regions] == ["south"]
        assert source.months == (6, 7)
        (tmp_path / "long.yaml").write_text(parser.dump(parsed))
        again = parser.parse_args(["--config", str(tmp_path / "long.yaml")])
        assert parser.instantiate(again).source == source

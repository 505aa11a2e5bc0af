"""Laws of the simulated seasons: plants, light, parcels, skies, and the files they become."""

import datetime as dt
import json
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from jsonargparse import auto_cli
from rasterio.features import rasterize

from geomed.bands import PASTIS_BANDS
from geomed.data.simulated_season import SimulatedSeason
from geomed.data.simulation import sky
from geomed.data.simulation.canopy import LEVEL2A, Soil, canopy_reflectance, soil_reflectance
from geomed.data.simulation.farmland import COVERS, SEALED, farmland, shifted
from geomed.data.simulation.phenology import CROPS, Canopy
from geomed.data.simulation.region import EARLIER, LATER, NORTH, SOUTH, Calendar, Region, Year
from geomed.data.simulation.series import write_series
from geomed.data.simulation.sky import REVISIT, SEASON, Overpass, overpasses, sky_above
from geomed.data.source import Source
from geomed.evaluation.splits import ByArea

EARLY_JUNE = dt.date(2021, 6, 5)
DAYS = np.arange(40, 316, dtype=float)
INDEX = {crop.name: number for number, crop in enumerate(CROPS)}


def spectra(canopy, *, brightness=1.0, infrared=1.0, bands=LEVEL2A):
    count = len(canopy.green)
    ground = soil_reflectance(Soil(), brightness=np.full(count, brightness), wetness=0.3, bands=bands)
    return canopy_reflectance(canopy, ground, infrared=np.full(count, infrared), leaf=np.ones(count), bands=bands)


def ndvi_curve(name):
    red, near = spectra(CROPS[INDEX[name]].on(DAYS), bands=("B04", "B08")).T
    return (near - red) / (near + red)


def half_down(curve):
    """The first day after the peak on which the NDVI is below 0.4."""
    after = int(curve.argmax())
    return DAYS[after + int(np.argmax(curve[after:] < 0.4))]


def test_crops_peak_and_ripen_in_the_order_of_their_calendar():
    peak = {name: DAYS[ndvi_curve(name).argmax()] for name in INDEX}
    assert peak["winter barley"] < peak["winter wheat"] < peak["sunflower"] < peak["maize"]
    ripe = {name: half_down(ndvi_curve(name)) for name in INDEX if name not in {"grassland", "sugar beet"}}
    assert sorted(ripe, key=ripe.get) == ["winter barley", "rapeseed", "winter wheat", "sunflower", "potato", "maize"]
    assert ripe["winter wheat"] - ripe["winter barley"] > 10


def test_grass_stays_green_and_summer_crops_start_bare():
    growing = (DAYS > 90) & (DAYS < 300)
    assert ndvi_curve("grassland")[growing].min() > 0.45
    for name in ("maize", "sugar beet", "potato", "sunflower"):
        assert ndvi_curve(name)[DAYS < 110].max() < 0.2
        assert ndvi_curve(name).max() > 0.7


def test_mowing_takes_leaf_area_that_grows_back():
    grass = CROPS[INDEX["grassland"]]
    before, after, later = grass.on(np.array([141.0, 143.0, 185.0])).green
    assert after < 0.45 * before
    assert later > 0.85 * before


def test_a_catch_crop_greens_the_field_after_harvest_only():
    wheat = CROPS[INDEX["winter wheat"]]
    with_catch, without = wheat.on(DAYS, catch=1.0).green, wheat.on(DAYS).green
    assert np.allclose(with_catch[wheat.harvest > DAYS], without[wheat.harvest > DAYS], atol=0.1)
    assert with_catch[-1] > 1.5
    assert without[-1] < 0.01


def test_green_canopies_have_a_red_edge_and_flowers_are_yellow():
    dense, bloom = (Canopy(green=np.array([5.0]), dry=np.zeros(1), bloom=np.array([b])) for b in (0.0, 0.7))
    green = dict(zip(LEVEL2A, spectra(dense)[0], strict=True))
    assert green["B02"] < green["B03"] > green["B04"]
    assert green["B04"] < green["B05"] < green["B06"] < green["B07"] < green["B8A"]
    assert green["B12"] < green["B11"] < green["B8A"]
    yellow = dict(zip(LEVEL2A, spectra(bloom)[0], strict=True))
    assert yellow["B03"] > 1.8 * green["B03"]
    assert yellow["B04"] / yellow["B02"] > 2 * green["B04"] / green["B02"]


def test_wet_soil_is_dark_and_soil_rises_with_wavelength():
    dry, wet = (soil_reflectance(Soil(), brightness=np.ones(1), wetness=w, bands=LEVEL2A[:-1])[0] for w in (0.0, 1.0))
    assert np.allclose(wet, 0.55 * dry)
    assert (np.diff(dry) > 0).all()


def test_reflectance_stays_between_0_and_1_for_any_canopy():
    rng = np.random.default_rng(0)
    canopy = Canopy(green=rng.uniform(0, 9, 500), dry=rng.uniform(0, 6, 500), bloom=rng.uniform(0, 1, 500))
    for brightness in (0.3, 1.0, 2.0):
        values = spectra(canopy, brightness=brightness, infrared=1.3)
        assert values.min() > 0
        assert values.max() < 1


@pytest.mark.parametrize("seed", range(4))
def test_overpasses_are_irregular_and_follow_two_orbits(seed):
    passes = overpasses(np.random.default_rng(seed), year=2021, orbit=2, cloudiness=0.62)
    days = [one.date.timetuple().tm_yday for one in passes]
    assert days == sorted(set(days))
    assert SEASON[0] <= days[0]
    assert days[-1] <= SEASON[1]
    assert 22 <= len(days) <= 60
    assert {day % REVISIT for day in days} == {2, 0}
    assert len(set(np.diff(days))) >= 3
    assert {one.neighbour for one in passes if one.date.timetuple().tm_yday % REVISIT == 2} == {False}


def test_clouds_are_bright_shadows_dark_and_some_edges_escape_the_mask():
    ground = np.full((128, 128, 10), 0.1)
    overpass = Overpass(date=EARLY_JUNE, cover=0.35, neighbour=False)
    above = sky_above(np.random.default_rng(3), overpass, size=128, latitude=50.0)
    seen = above.over(ground, PASTIS_BANDS)
    classes = above.classify(np.full((128, 128), 0.8))
    blue, near = seen[..., 0], seen[..., 6]
    assert 0.2 < np.isin(classes, [8, 9]).mean() < 0.5
    assert blue[classes == 9].mean() > 0.35
    assert near[classes == 3].mean() < 0.07
    assert (above.cirrus > 0).any() or np.allclose(near[(above.opacity == 0) & (above.shadow == 0)], 0.1)
    assert ((classes == 4) & (above.opacity > 0.02)).any()
    assert set(np.unique(classes)) <= {0, 3, 4, 8, 9, 10}


def test_outside_the_swath_is_nodata():
    overpass = Overpass(date=EARLY_JUNE, cover=0.0, neighbour=True)
    skies = [sky_above(np.random.default_rng(seed), overpass, size=64, latitude=50.0) for seed in range(20)]
    cut = [one for one in skies if one.missing.any()]
    assert cut
    for one in cut:
        classes = one.classify(np.zeros((64, 64)))
        assert ((classes == 0) == one.missing).all()
        assert not one.missing.all()


def test_a_late_year_is_the_same_year_later():
    land = farmland(NORTH, EARLIER, size=96, seed=0)
    land = replace(land, wetness=np.zeros(366))  # the weather of a day does not move with the season
    late = replace(land, year=replace(EARLIER, delay=12.0))
    for day in (90, 150, 210, 270):
        assert np.allclose(late.reflectance(day + 12, PASTIS_BANDS), land.reflectance(day, PASTIS_BANDS))


def test_a_region_moves_single_crops_and_shift_scales_all_of_it():
    land = replace(farmland(SOUTH, LATER, size=96, seed=0), wetness=np.zeros(366))
    for scale in (0.0, 0.5, 1.0):
        region, year = shifted(SOUTH, LATER, scale)
        extra = SOUTH.calendar.delays["maize"]
        assert region.calendar.delay + region.calendar.delays["maize"] + year.delay == pytest.approx(
            scale * (SOUTH.calendar.delay + extra + LATER.delay)
        )
    region, year = shifted(SOUTH, LATER, 0.0)
    assert region.soil == Soil()
    assert region.calendar.length == region.calendar.vigour == 1.0
    assert set(region.shares.values()) == {1.0}
    maize = land.kind == INDEX["maize"]
    peaks = {}
    for extra in (0.0, 10.0):
        calendar = replace(SOUTH.calendar, delays={"maize": extra}, length=1.0)
        moved = replace(land, region=replace(SOUTH, calendar=calendar))
        near = np.stack([moved.reflectance(day, ("B08",))[maize, 0] for day in range(100, 300)])
        peaks[extra] = near.argmax(axis=0)
    assert (peaks[10.0] - peaks[0.0] == 10).all()


def test_parcels_do_not_overlap_and_stay_in_the_area():
    land = farmland(NORTH, EARLIER, size=128, seed=5)
    fields = land.parcels.fields
    assert len(fields) > 40
    west, north = NORTH.corner
    for field in fields:
        x0, y0, x1, y1 = field.bounds
        assert field.is_valid
        assert west <= x0 < x1 <= west + 1280
        assert north - 1280 <= y0 < y1 <= north
    for one, other in combinations(fields, 2):
        assert one.distance(other) > 1.0
    assert 0.8 < sum(field.area for field in fields) / 1280**2 < 0.97


def test_years_rotate_crops_on_the_same_fields_and_keep_grassland():
    first, second = (farmland(NORTH, year, size=128, seed=0) for year in (EARLIER, LATER))
    assert first.parcels == second.parcels
    grass = INDEX["grassland"]
    assert ((first.kind == grass) == (second.kind == grass)).all()
    assert (first.kind != second.kind).mean() > 0.4
    assert np.allclose(first.brightness, second.brightness)


def test_every_crop_gets_its_share_of_the_fields():
    kind = farmland(NORTH, EARLIER, size=200, seed=1).kind[:-2]
    farmed = (kind < len(CROPS)).sum()
    for name, share in NORTH.shares.items():
        assert abs((kind == INDEX[name]).sum() - share * farmed) <= 1
    assert (kind == COVERS.index(COVERS[len(CROPS)])).any()
    assert (kind == SEALED).any()


@pytest.fixture(scope="module")
def area(tmp_path_factory):
    folder = tmp_path_factory.mktemp("area")
    land = farmland(*shifted(NORTH, EARLIER, 1.0), size=96, seed=0)
    write_series(land, folder, bands=PASTIS_BANDS, seed=0)
    return folder


def read(path):
    with rasterio.open(path) as file:
        return file.read()


def images(folder):
    return sorted(path for path in (folder / "images").glob("S2_*.tif") if "SCL" not in path.name)


def test_files_look_like_sentinel2(area):
    files = images(area)
    assert len(files) >= 20
    for path in files:
        scl = path.with_name(f"{path.stem}_SCL.tif")
        with rasterio.open(path) as file, rasterio.open(scl) as mask:
            assert file.descriptions == PASTIS_BANDS
            assert (file.dtypes[0], mask.dtypes[0]) == ("uint16", "uint8")
            assert file.crs.to_epsg() == mask.crs.to_epsg() == NORTH.epsg
            assert file.transform == mask.transform
            assert (file.transform.a, file.transform.c, file.transform.f) == (10.0, *NORTH.corner)
            numbers, classes = file.read(), mask.read(1)
        assert ((numbers == 0).all(axis=0) == (classes == 0)).all()
        assert (numbers[:, classes != 0] > 0).all()
        assert numbers.max() <= 10_000
        high, clear = classes == 9, np.isin(classes, [4, 5])
        if high.sum() > 50 and clear.sum() > 50:
            assert np.median(numbers[0][high]) > 2 * np.median(numbers[0][clear])


def test_swir_has_the_detail_of_20_metres(area):
    swir = read(images(area)[0])[PASTIS_BANDS.index("B11")]
    assert (swir[::2, ::2] == swir[1::2, 1::2]).all()


def test_polygons_cover_their_truth(area):
    fields = geopandas.read_file(area / "fields.gpkg")
    assert fields.crs.to_epsg() == NORTH.epsg
    assert set(fields.crop) <= set(INDEX)
    assert fields.id.is_unique
    with rasterio.open(area / "truth.tif") as file:
        truth = file.read(1)
        burnt = rasterize(
            [(polygon, INDEX[crop]) for polygon, crop in zip(fields.geometry, fields.crop, strict=True)],
            file.shape, fill=255, transform=file.transform, dtype="uint8",
        )  # fmt: skip
    assert (truth == burnt).all()
    assert 0.6 < (truth != 255).mean() < 0.97


def test_the_same_seed_gives_the_same_pixels(area, tmp_path):
    again, other = tmp_path / "again", tmp_path / "other"
    for folder, seed in ((again, 0), (other, 1)):
        folder.mkdir()
        write_series(farmland(*shifted(NORTH, EARLIER, 1.0), size=96, seed=seed), folder, bands=PASTIS_BANDS, seed=seed)
    assert [path.name for path in images(again)] == [path.name for path in images(area)]
    for path in sorted((area / "images").iterdir()):
        assert (read(path) == read(again / "images" / path.name)).all()
    assert (read(again / "truth.tif") == read(area / "truth.tif")).all()
    assert (read(other / "truth.tif") != read(area / "truth.tif")).any()


def test_a_season_without_a_clear_pass_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sky, "CLOUDIEST", -1.0)
    with pytest.raises(ValueError, match=r"lower the year's cloudiness, now 0\.95"):
        season(tmp_path, years=(Year(year=2021, cloudiness=0.95),)).prepare()
    assert not (tmp_path / "north-2021").exists()


def season(root, **changes):
    fields = {"regions": (NORTH,), "years": (EARLIER,), "size": 64, "bands": ("B02", "B04", "B08"), "window": 16}
    return SimulatedSeason(root=str(root), **{**fields, "by": ByArea(train=("north-2021",)), **changes})


def stamps(root):
    return {path: path.stat().st_mtime_ns for path in Path(root).rglob("*.tif")}


def test_prepare_writes_once_and_anew_when_a_parameter_or_a_file_changes(tmp_path):
    calls = []
    source = season(tmp_path)
    source.prepare(lambda area, done, total: calls.append((area, done, total)))
    assert calls[-1][1] == calls[-1][2] == len(images(source.folder("north-2021")))
    record = json.loads((source.folder("north-2021") / "simulation.json").read_text())
    assert record["parameters"]["seed"] == 0
    before = stamps(tmp_path)
    source.prepare()
    assert stamps(tmp_path) == before
    images(source.folder("north-2021"))[0].unlink()
    source.prepare()
    assert stamps(tmp_path).keys() == before.keys()
    season(tmp_path, seed=1).prepare()
    assert stamps(tmp_path).keys() != before.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["north-2021"]


def test_a_killed_prepare_leaves_nothing_half_valid(tmp_path):
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[2]); from test_simulated_season import season\n"
        "season(sys.argv[1]).prepare(lambda area, done, total: done == 3 and os._exit(9))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)], check=False)
    assert done.returncode == 9
    assert [path.name for path in tmp_path.iterdir()] == [".north-2021.part"]
    source = season(tmp_path)
    source.prepare()
    assert [path.name for path in tmp_path.iterdir()] == ["north-2021"]
    assert len(source.split("train")) > 0


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "north-2021").mkdir()
    (tmp_path / "north-2021" / "thesis.txt").write_text("the only copy")
    with pytest.raises(ValueError, match="move it away"):
        season(tmp_path).prepare()
    assert (tmp_path / "north-2021" / "thesis.txt").read_text() == "the only copy"


def test_samples_come_through_the_reader_of_real_series(tmp_path):
    source = season(tmp_path, by=ByArea(train=("north-2021",), predict=("north-2021",)))
    source.prepare()
    assert source.classes == tuple(INDEX)
    assert [scene.name for scene in source.scenes()] == ["north-2021"]
    truth = read(source.folder("north-2021") / "truth.tif")[0]
    seen = np.full(truth.shape, 254)
    for sample in (data := source.split("train"))[0], data[len(data) - 1]:
        row, column, height, width = sample["read"].tolist()
        window = slice(row, row + height), slice(column, column + width)
        assert sample["values"].shape == (len(sample["days"]), 3, height, width)
        assert sample["values"].min() >= 0
        assert sample["values"].max() <= 1
        assert (sample["days"].diff() > 0).all()
        assert (sample["labels"].numpy() == truth[window]).all()
        seen[window] = 0
    assert (seen == 0).any()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": 10}, "size must be at least 64"),
        ({"shift": float("nan")}, "shift must lie"),
        ({"shift": -1.0}, "shift must lie"),
        ({"seed": -1}, "seed must be"),
        ({"bands": ("B10",)}, "B10 cannot be simulated"),
        ({"bands": ()}, "none cannot be simulated"),
        ({"bands": ("B04", "B04")}, "bands must be at least one and differ"),
        ({"regions": (replace(NORTH, soil=Soil(brightness=0.5)),), "shift": 3.0}, "brightness is a factor"),
        ({"regions": ()}, "regions must be at least one"),
        ({"years": (EARLIER, EARLIER)}, "years must be at least one and differ, not 2021, 2021"),
    ],
)
def test_what_cannot_be_simulated_is_refused(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        season(tmp_path, **changes)


def test_regions_refuse_unknown_crops_and_impossible_weather():
    place = {"name": "x", "epsg": 32631, "corner": (0.0, 0.0), "latitude": 50.0}
    with pytest.raises(ValueError, match="no crop is called rice"):
        Region(**place, shares={"rice": 1.0})
    with pytest.raises(ValueError, match="above 0"):
        Region(**place, shares={"maize": 0.0})
    with pytest.raises(ValueError, match="becomes a folder"):
        Region(**{**place, "name": "../x"}, shares={"maize": 1.0})
    with pytest.raises(ValueError, match=r"0\.3 to 100 hectares"):
        Region(**place, shares={"maize": 1.0}, hectares=0.0)
    with pytest.raises(ValueError, match="no crop is called rice"):
        Calendar(delays={"rice": 3.0})
    with pytest.raises(ValueError, match="length is a factor"):
        Calendar(length=0.0)
    with pytest.raises(ValueError, match="UTM zone"):
        Region(**{**place, "epsg": 4326}, shares={"maize": 1.0})
    for bad in (float("nan"), 400.0):
        with pytest.raises(ValueError, match="count of days"):
            Calendar(delay=bad)
        with pytest.raises(ValueError, match="count of days"):
            Year(year=2021, delay=bad)
    with pytest.raises(ValueError, match="brightness is a factor"):
        Soil(brightness=0.0)
    with pytest.raises(ValueError, match="cloudiness"):
        Year(year=2021, cloudiness=1.0)
    with pytest.raises(ValueError, match="year from 1970"):
        Year(year=0)


def test_the_usual_split_goes_from_the_first_area_to_the_last(tmp_path):
    assert SimulatedSeason(root=str(tmp_path))._by == ByArea(
        train=("north-2021",), val=("north-2022",), test=("south-2022",)
    )
    alone = SimulatedSeason(root=str(tmp_path), years=(LATER,))
    assert alone._by == ByArea(train=("north-2022",), test=("south-2022",))


def hold(source: Source):
    return source


def test_a_configuration_can_describe_it(tmp_path):
    text = f"""
source:
  class_path: geomed.data.simulated_season.SimulatedSeason
  init_args:
    root: {tmp_path}
    shift: 0.5
    years:
      - year: 2030
        delay: 3.0
    regions:
      - name: delta
        epsg: 32636
        corner: [300000.0, 3400000.0]
        latitude: 30.8
        calendar:
          delay: -40.0
          delays:
            maize: 5.0
        shares:
          maize: 0.5
          winter wheat: 0.5
    by:
      class_path: geomed.evaluation.splits.ByArea
      init_args:
        train: [delta-2030]
"""
    (tmp_path / "config.yaml").write_text(text)
    source = auto_cli(hold, args=["--config", str(tmp_path / "config.yaml")])
    assert source.years == (Year(year=2030, delay=3.0),)
    assert source.regions[0].calendar == Calendar(delay=-40.0, delays={"maize": 5.0})
    assert source.by == ByArea(train=("delta-2030",))

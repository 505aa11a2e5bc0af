from dataclasses import replace

import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from geomed.evaluation.splits import ByArea, ByBlocks, ByYear, Place, Share, Together, divide, refuse_touching
from geomed.windows import Window


def place(name, year=2020, *, east=0, shape=(64, 64), crs="EPSG:32631", metres=10):
    return Place(name=name, year=year, grid=GeoBox(shape, Affine(metres, 0, 500_000 + east, 0, -metres, 5e6), crs))


FAR = 100_000
PLACES = (place("a"), place("b", east=FAR), place("a later", 2021))


def names(shares, places=PLACES):
    return [places[share.area].name for share in shares]


def test_by_area_gives_whole_areas_and_maps_the_test():
    division = divide(ByArea(train=("a",), test=("b",)), PLACES)
    assert {part: names(shares) for part, shares in division.items()} == {
        "train": ["a"],
        "val": [],
        "test": ["b"],
        "predict": ["b"],
    }
    assert division["train"][0].blocks == (Window(0, 0, 64, 64),)


def test_areas_can_be_only_mapped():
    division = divide(ByArea(predict=("b", "a")), PLACES)
    assert names(division["predict"]) == ["b", "a"]
    assert not division["train"]


def test_by_year_lets_a_place_stand_in_two_parts():
    division = divide(ByYear(train=(2020,), test=(2021,)), PLACES)
    assert (names(division["train"]), names(division["test"])) == (["a", "b"], ["a later"])


@pytest.mark.parametrize(
    ("split", "places", "rule"),
    [
        (ByArea(train=("a",), test=("a",)), PLACES, "train and test touch in area a: .* overlap"),
        (ByYear(train=(2020,), val=(2020,)), PLACES, "train and val touch in area a"),
        (ByArea(train=("a",), test=("c",)), (place("a"), place("c", east=630)), "areas a and c share ground in 2020"),
        (ByArea(train=("a",), test=("c",)), (place("a"), place("c", east=640)), "areas a and c share ground in 2020"),
        (ByArea(train=("a",), test=("c",)), (place("a"), place("c", metres=20)), "areas a and c share ground"),
        (ByArea(train=("x",)), PLACES, "no area is called x, there are a, b, a later"),
        (ByYear(train=(1999,)), PLACES, "train: no area has the year 1999, there are 2020, 2021"),
        (ByArea(train=("a",)), (place("a"), place("a")), "area names must be unique, a stands twice"),
        (ByBlocks(size=64), PLACES, "area a has 1 blocks of 64 pixels, too few for 3 parts"),
    ],
)
def test_what_touches_or_does_not_exist_is_refused(split, places, rule):
    with pytest.raises(ValueError, match=rule) as caught:
        divide(split, places)
    assert "\n" not in str(caught.value)


def test_areas_in_two_coordinate_systems_are_compared():
    here = place("a")
    degrees = GeoBox((10, 10), Affine(0.001, 0, 3.001, 0, -0.001, 45.15), "EPSG:4326")
    there = Place(name="c", year=2020, grid=degrees)
    with pytest.raises(ValueError, match="areas a and c share ground"):
        divide(ByArea(train=("a",), test=("c",)), (here, there))
    away = Place(name="c", year=2020, grid=GeoBox((10, 10), Affine(0.001, 0, 9, 0, -0.001, 45), "EPSG:4326"))
    assert divide(ByArea(train=("a",), test=("c",)), (here, away))["test"]


def test_areas_side_by_side_with_a_gap_are_two_places():
    assert divide(ByArea(train=("a",), test=("c",)), (place("a"), place("c", east=650)))["test"]


@pytest.mark.parametrize("buffer", [1, 2, 5])
@pytest.mark.parametrize("shape", [(64, 64), (50, 131), (16, 90)])
def test_blocks_of_two_parts_keep_their_distance(buffer, shape):
    places = (place("a", shape=shape),)
    division = divide(ByBlocks(size=16, buffer=buffer, seed=3), places)
    inside = {part: _pixels(division[part]) for part in ("train", "val", "test")}
    assert all(inside.values())
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        grown = {
            (row + down, column + right)
            for row, column in inside[one]
            for down in range(-buffer, buffer + 1)
            for right in range(-buffer, buffer + 1)
        }
        assert not grown & inside[other]
    every = inside["train"] | inside["val"] | inside["test"]
    assert all(0 <= row < shape[0] and 0 <= column < shape[1] for row, column in every)
    assert len(every) == sum(map(len, inside.values()))


def _pixels(shares):
    return {
        (row, column)
        for share in shares
        for block in share.blocks
        for row in range(block.row, block.row + block.height)
        for column in range(block.column, block.column + block.width)
    }


def test_blocks_follow_fractions_seed_and_shape():
    split = ByBlocks(size=8, fractions=(0.5, 0.25, 0.25), seed=1)
    division = divide(split, (place("a"), place("b", east=FAR)))
    assert [len(division[part][0].blocks) for part in ("train", "val", "test")] == [32, 16, 16]
    assert division["train"][0].blocks == division["train"][1].blocks
    assert divide(split, (place("a"),))["train"][0].blocks == division["train"][0].blocks
    other = ByBlocks(size=8, fractions=(0.5, 0.25, 0.25), seed=2)
    assert divide(other, (place("a"),))["train"][0].blocks != division["train"][0].blocks
    assert names(divide(ByBlocks(size=8, areas=("b",)), PLACES)["train"]) == ["b"]


@pytest.mark.parametrize(
    "fields",
    [{"size": 8, "buffer": 0}, {"size": 2, "buffer": 2}, {"size": 8, "fractions": (1.0, 0.5, 0.0)}],
)
def test_blocks_that_make_no_sense_are_refused(fields):
    with pytest.raises(ValueError, match=r"blocks need|fractions must"):
        ByBlocks(**fields)


def test_splits_combine_for_adaptation():
    split = Together(splits=(ByArea(train=("a",)), ByBlocks(size=16, buffer=4, areas=("b",))))
    division = divide(split, PLACES)
    assert names(division["train"]) == ["a", "b"]
    assert names(division["test"]) == ["b"]
    assert names(division["predict"]) == ["b"]
    with pytest.raises(ValueError, match="train and val touch in area b"):
        divide(Together(splits=(ByArea(train=("b",)), ByBlocks(size=16, areas=("b",)))), PLACES)


def test_one_pixel_between_is_not_enough_for_a_wider_gap():
    shares = {
        "train": (Share(area=0, blocks=(Window(0, 0, 8, 8),)),),
        "val": (),
        "test": (Share(area=0, blocks=(Window(0, 9, 8, 8),)),),
    }
    refuse_touching(shares, PLACES, gap=1)
    with pytest.raises(ValueError, match="are 1 pixels apart, at least 2 are needed"):
        refuse_touching(shares, PLACES, gap=2)


def test_areas_on_two_continents_are_two_places():
    kenya = Place(name="k", year=2020, grid=GeoBox((64, 64), Affine(10, 0, 617_000, 0, -10, 9_625_000), "EPSG:32736"))
    brazil = Place(name="b", year=2020, grid=GeoBox((64, 64), Affine(10, 0, 790_000, 0, -10, 7_198_000), "EPSG:32722"))
    assert divide(ByArea(train=("k",), test=("b",)), (kenya, brazil))["test"]
    assert divide(ByArea(train=("b",), test=("k",)), (kenya, brazil))["test"]
    globe = Place(name="g", year=2020, grid=GeoBox((180, 360), Affine(1, 0, -180, 0, -1, 90), "EPSG:4326"))
    for names in (("g", "b"), ("b", "g")):
        with pytest.raises(ValueError, match="share ground in 2020"):
            divide(ByArea(train=names[:1], test=names[1:]), (globe, brazil))


def test_a_whole_scene_in_small_blocks_is_checked_in_a_moment():
    split = ByBlocks(size=24, buffer=2)
    scene = place("scene", shape=(2400, 2400))
    division = divide(split, (scene,))
    assert sum(len(share.blocks) for part in ("train", "val", "test") for share in division[part]) == 10_000
    close = replace(division["test"][0], blocks=(*division["test"][0].blocks, Window(0, 0, 3, 3)))
    with pytest.raises(ValueError, match="test touch in area scene"):
        refuse_touching({**division, "test": (close,)}, (scene,), gap=2)

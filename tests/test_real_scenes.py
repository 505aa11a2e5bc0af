"""Real single scenes of GEOMED_REAL_DATA: TerraMesh tiles with land cover, and Rachel Carson Reserve with polygons."""

import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from geomed.data.area import Labels, Legend
from geomed.data.image import Image
from geomed.data.scenes import Scenes
from geomed.data.source import IGNORE
from geomed.evaluation.splits import ByArea, ByBlocks

DATA = Path(os.environ.get("GEOMED_REAL_DATA", "../shared/data")) / "scenes"
TILES, RESERVE = DATA / "terramesh_tiles", DATA / "s2_l1c_rachel_carson"
RECIPES = Path(__file__).parent.parent / "datasets"
EIGHT = tuple(f"B{number:02d}" for number in range(1, 9))
CLASSES = {
    "Emergent Wetland": 279,
    "Forested Wetland": 92,
    "Herbaceous": 76,
    "Sand": 83,
    "Scrub-Shrub Wetland": 92,
    "Subtidal Haline": 51,
    "WetSand": 214,
}

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not TILES.is_dir(), reason=f"no real scenes in {DATA}: name its parent in GEOMED_REAL_DATA"),
]


def reserve(**fields):
    image = Image(
        name="rachel_carson",
        path=str(RESERVE / "2018-10-13_S2B_L1C_{band}.tif"),
        scale=0.4 / 255,
        offset=0,
        labels=Labels(path=str(RESERVE / "landcover_polygons.gpkg"), column="Classname"),
    )
    legend = Legend(classes={name: [name] for name in CLASSES})
    return Scenes(images=(image,), legend=legend, bands=EIGHT, **fields)


@pytest.fixture(scope="module")
def blocks():
    return reserve(by=ByBlocks(size=32, buffer=2, fractions=(0.5, 0, 0.5), seed=64), window=30)


def test_polygons_of_another_coordinate_system_meet_the_scene():
    source = reserve(by=ByArea(train=("rachel_carson",)), window=256)
    source.prepare()
    train = source.split("train")
    told = ", ".join(f"{name} {count}" for name, count in CLASSES.items())
    assert train.summary.endswith(told)
    assert train[0]["values"].shape == (8, 256, 256)
    assert source.scenes()[0].grid.shape.yx == (2201, 2629)


def test_no_polygon_stands_in_two_parts(blocks):
    polygons = blocks._parts.truths[0].polygons
    seen = {}
    for part in ("train", "test"):
        dataset = blocks.split(part)
        found = set()
        for index, spot in enumerate(dataset.spots):
            ids = polygons.ids(blocks.scenes()[0].grid, spot.read)
            found |= set(ids[dataset[index]["labels"].numpy() != IGNORE].tolist())
        seen[part] = found
    assert not seen["train"] & seen["test"]
    assert {polygons.classes[index] for index in seen["train"]} == set(range(7))
    assert {polygons.classes[index] for index in seen["test"]} == set(range(7))


def test_tiles_of_three_zones_come_in_one_unit():
    bands = (*EIGHT, "B8A", "B09", "B10", "B11", "B12")
    offsets = {"282D_485L_3_3": -0.1, "38D_378R_2_3": 0.0, "637U_59R_1_3": 0.0}
    images = tuple(
        Image(
            name=name,
            path=str(TILES / name / "S2L1C.tif"),
            band_names=bands,
            scale=1e-4,
            offset=offset,
            labels=Labels(path=str(TILES / name / "LULC.tif")),
        )
        for name, offset in offsets.items()
    )
    legend = Legend(classes={"water": [1], "trees": [2], "crops": [4], "built": [5], "bare": [6], "rangeland": [9]})
    source = Scenes(images=images, legend=legend, by=ByArea(train=tuple(offsets)), bands=bands, window=224)
    source.prepare()
    train = source.split("train")
    assert "water 25991, trees 19899, crops 66025, built 797, bare 3316, rangeland 34500" in train.summary
    for index in range(3):
        values = train[index]["values"]
        assert torch.isfinite(values).all()
        assert values[10].median() < 0.01  # B10 sees the high atmosphere only: next to nothing where there is no cirrus


@pytest.mark.parametrize("name", ["terramesh_tiles", "rachel_carson"])
def test_recipes_check_and_link(tmp_path, monkeypatch, name):
    source = {"terramesh_tiles": TILES, "rachel_carson": RESERVE}[name]
    script = str(RECIPES / name / "prepare.py")
    monkeypatch.setattr(sys, "argv", [script, "--source", str(source), "--out", str(tmp_path / "out")])
    runpy.run_path(script, run_name="__main__")
    linked = [path for path in (tmp_path / "out").iterdir() if path.is_symlink()]
    assert len(linked) == {"terramesh_tiles": 3, "rachel_carson": 9}[name]
    monkeypatch.setattr(sys, "argv", [script, "--source", str(tmp_path), "--out", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match=r"error: .*there is no such file"):
        runpy.run_path(script, run_name="__main__")
    assert np.all([path.resolve().is_relative_to(source.resolve()) for path in linked])

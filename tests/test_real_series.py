"""Real files of GEOMED_REAL_DATA: Sentinel-2 series of Flanders and rasters with real faults."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from geomed.data.area import Area, Labels, Legend
from geomed.data.sentinel2_series import Sentinel2Series
from geomed.data.source import IGNORE, collate
from geomed.evaluation.splits import ByArea, ByBlocks, ByYear
from geomed.io.geotiff import GeoTiff
from geomed.windows import cover

DATA = Path(os.environ.get("GEOMED_REAL_DATA", "../shared/data"))
SERIES, ODD = DATA / "sentinel2_series", DATA / "scenes" / "odd_rasters"

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not SERIES.is_dir(), reason=f"no real data in {DATA}: name its folder in GEOMED_REAL_DATA"),
]

LEGEND = Legend(
    classes={
        "maize": [1200],
        "grass": [9120],
        "potato": [5100],
        "cereals": [1110, 1120, 1500, 1510, 1910],
        "other": [2130, 7900],
    },
    ignore=[0, 9998],
)


def area(name):
    labels = Labels(path=str(SERIES / name / "labels.tif"), band="CT")
    return Area(name=name, images=str(SERIES / name / "images"), labels=labels)


@pytest.fixture(scope="module")
def both():
    return Sentinel2Series(
        areas=(area("flanders_2018"), area("flanders_2019_b")),
        legend=LEGEND,
        by=ByYear(train=(2018,), test=(2019,)),
        bands=("B05", "B06", "B07", "B8A", "B11", "B12"),
        resolution=20,
        min_clear=0.0,
    )


def test_two_areas_of_10_and_20_metres_are_read_together(both, caplog):
    with caplog.at_level("INFO"):
        both.prepare()
    assert "area flanders_2019_b: 146 products of 143 days, 3 days with several merged" in caplog.text
    assert "baseline" not in caplog.text
    assert [scene.grid.shape.yx for scene in both.scenes()] == [(32, 32), (32, 32)]
    assert {scene.grid.affine.a for scene in both.scenes()} == {20}
    for part, dates in (("train", 118), ("test", 143)):
        dataset = both.split(part)
        batch = collate([dataset[index] for index in range(len(dataset))])
        assert batch["values"].shape == (4, dates, 6, 24, 24)
        assert (batch["days"].diff(dim=1) > 0).all()
        assert 0.3 < batch["valid"].float().mean() < 0.7
        clear = batch["values"].movedim(2, -1)[batch["valid"]]
        assert 0.05 < clear.mean() < 0.4
        assert batch["values"].isfinite().all()


def test_pure_pixels_of_both_areas(both):
    counts = {}
    for part in ("train", "test"):
        dataset = replace(both, window=32).split(part)
        labels = dataset[0]["labels"].numpy()
        counts[part] = np.bincount(labels[labels != IGNORE], minlength=5)
    fine = {"train": [1249, 835, 25, 0, 127], "test": [1277, 1102, 445, 480, 0]}
    for part, pixels in fine.items():
        share = counts[part] / np.maximum(np.array(pixels) / 4, 1)
        assert (share <= 1).all()
        assert share[0] > 0.8
        assert (counts[part] > 0).tolist() == [count > 0 for count in pixels]


def test_ten_bands_at_ten_metres_in_blocks_with_few_fields():
    source = Sentinel2Series(
        areas=(area("flanders_2018"),), legend=LEGEND, by=ByBlocks(size=20, buffer=4), fields_per_class=1, window=16
    )
    source.prepare()
    parts = {part: source.split(part) for part in ("train", "val", "test", "predict")}
    assert len(parts["predict"]) == 16
    assert all(len(dataset) for dataset in parts.values())
    sample = parts["train"][0]
    assert sample["values"].shape[1:] == (10, 16, 16)
    assert sample["valid"].flatten(1).float().mean(1).min() >= 0.1


def test_a_band_that_is_not_there_is_named():
    source = Sentinel2Series(areas=(area("flanders_2019_b"),), legend=LEGEND, by=ByArea(predict=("flanders_2019_b",)))
    with pytest.raises(ValueError, match=r"S2_20180802\.tif: band B02, B03, B04, B08 is missing"):
        source.prepare()


@pytest.mark.parametrize("path", sorted(ODD.glob("*.tif")), ids=lambda path: path.stem)
def test_odd_rasters_are_read_or_get_one_line(path):
    refused = {
        "rasterio__corrupt": "truncated",
        "riocogeo__slc": "real numbers",
        "riotiler__cog_gcps": "control points",
    }
    if path.stem in refused:
        with pytest.raises(ValueError, match=refused[path.stem]) as caught:
            GeoTiff.open(path)
        assert "\n" not in str(caught.value)
        assert path.name in str(caught.value)
        return
    raster = GeoTiff.open(path)
    first = next(read for read, _ in cover(raster.grid.shape.yx, size=128))
    assert raster.read(first).shape == (len(raster.bands), first.height, first.width)

"""Single images as a source: what is read, what is refused, and that a ViT is trained on them and maps them."""

import json
import logging
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from fakes import (
    BANDS,
    GRID,
    halves,
    numbers,
    write_polygons,
    write_rachel_carson,
    write_raster,
    write_scene,
    write_terramesh_tiles,
)
from odc.geo.geobox import GeoBox
from test_sentinel2_series import everything, mosaic

from geomed.backbones.inputs import Inputs
from geomed.backbones.vit import ViT, ViTSize
from geomed.cli import main
from geomed.data.area import Labels, Legend
from geomed.data.datamodule import DataModule
from geomed.data.image import Image
from geomed.data.scenes import Scenes
from geomed.data.source import collate
from geomed.data.transforms import Augment, apply
from geomed.evaluation.splits import ByArea, ByBlocks, ByYear
from geomed.pixels import IGNORE, Pixels

LEGEND = Legend(classes={"water": [10], "trees": [20, 21]}, ignore=[0])
ZONE = GeoBox((40, 48), GRID.affine, "EPSG:32632")
SHIFTED = GeoBox((40, 48), Affine(10, 0, 500_010, 0, -10, 5_600_000), "EPSG:32631")


def image(folder, name="a", **fields):
    if "path" not in fields:
        fields["path"] = write_scene(folder / name)
    if "labels" not in fields:
        fields["labels"] = Labels(path=str(write_raster(folder / "labels.tif", halves(), nodata=0)))
    fields = {"scale": 1e-4, "offset": 0.0, **fields, "path": str(fields["path"])}
    return Image(name=name, **fields)


def source(*images, **fields):
    names = tuple(one.name for one in images)
    fields = {"legend": LEGEND, "by": ByArea(train=names), "bands": BANDS, "window": 16, **fields}
    return Scenes(images=images, **fields)


@pytest.mark.parametrize("each", [False, True])
def test_windows_hold_the_values_of_their_pixels(tmp_path, each):
    path = write_scene(tmp_path / "s", each=each)
    one = source(image(tmp_path, path=path), by=ByArea(predict=("a",)), bands=("B08", "B02"), margin=2)
    samples = everything(pickle.loads(pickle.dumps(one.split("predict"))))  # noqa: S301  (what a worker process does)
    np.testing.assert_allclose(mosaic(samples, "values"), numbers(0)[[2, 0]] * 1e-4, rtol=1e-6)
    np.testing.assert_array_equal(mosaic(samples, "labels"), np.where(halves()[0] == 10, 0, 1))
    for sample in samples:
        assert set(sample) == {"values", "valid", "labels", "scene", "read", "keep"}
        assert (sample["values"].dtype, sample["valid"].dtype) == (torch.float32, torch.bool)
        assert sample["valid"].all()
        assert sample["values"].shape == (2, *sample["valid"].shape)
    assert [(scene.name, scene.grid) for scene in one.scenes()] == [("a", GRID)]


def test_scale_and_offset_are_of_all_bands_or_of_each(tmp_path):
    path = write_scene(tmp_path / "s", values=np.full((3, 40, 48), 100, np.uint8))
    units = {"scale": (0.1, 0.2, 0.3), "offset": (1.0, 2.0, 3.0)}
    sample = source(image(tmp_path, path=path, **units), window=64).split("train")[0]
    np.testing.assert_allclose(sample["values"][:, 0, 0], [11, 22, 33], rtol=1e-6)
    with pytest.raises(ValueError, match="scale must be one number or one for each of the 2 bands"):
        source(image(tmp_path, path=path, **units), bands=BANDS[:2]).prepare()
    with pytest.raises(TypeError, match="scale"):
        Image(name="a", path=str(path))  # nothing is guessed


def test_a_unit_that_a_file_declares_is_not_contradicted(tmp_path):
    path = write_raster(tmp_path / "s.tif", numbers(0), bands=BANDS, units=(1e-4, -0.1))
    assert source(image(tmp_path, path=path, offset=-0.1)).split("train")
    with pytest.raises(ValueError, match=r"declares scale 0\.0001 and offset -0\.1, image a names scale 0\.0001"):
        source(image(tmp_path, path=path)).prepare()


def test_bands_go_by_their_names_as_written_or_by_the_agencys(tmp_path):
    path = write_scene(tmp_path / "s", bands=("blue", "red", "nir"))
    for bands in (("nir", "red"), ("B08", "B04")):
        sample = source(image(tmp_path, path=path), bands=bands, window=64).split("train")[0]
        np.testing.assert_allclose(sample["values"], numbers(0)[[2, 1]] * 1e-4, rtol=1e-6)
    unnamed = write_scene(tmp_path / "t", bands=("", "", ""))
    named = image(tmp_path, path=unnamed, band_names=("green", "thermal", "nir"))
    sample = source(named, bands=("thermal",), window=64).split("train")[0]
    np.testing.assert_allclose(sample["values"], numbers(0)[[1]] * 1e-4, rtol=1e-6)


def test_what_is_no_observation_is_zero_not_valid_and_has_no_label(tmp_path):
    values = numbers(0).astype(np.float64)
    values[0, 0, 0], values[1, 3, 4], values[2, 5, 6], values[2, 7, 8] = np.nan, -9999, np.inf, -1.7e308
    path = write_raster(tmp_path / "s.tif", values, bands=BANDS, nodata=-1.7e308)
    one = source(image(tmp_path, path=path, nodata=-9999), window=64, by=ByArea(train=("a",), predict=("a",)))
    train = one.split("train")
    sample = train[0]
    holes = [[0, 0], [3, 4], [5, 6], [7, 8]]
    assert np.argwhere(~sample["valid"].numpy()).tolist() == holes
    assert (sample["values"][:, ~sample["valid"]] == 0).all()
    assert np.argwhere(sample["labels"].numpy() == IGNORE).tolist() == holes
    assert "water 956, trees 960" in train.summary


def test_windows_without_an_observed_label_are_left_out_and_said(tmp_path, caplog):
    values = numbers(0)
    values[:, :16, :16] = 0
    path = write_raster(tmp_path / "s.tif", values, bands=BANDS, nodata=0)
    codes = halves()
    codes[:, :, 16:32] = 0
    labels = Labels(path=str(write_raster(tmp_path / "l.tif", codes, nodata=0)))
    one = source(image(tmp_path, path=path, labels=labels), by=ByArea(train=("a",), predict=("a",)))
    with caplog.at_level(logging.INFO):
        train = one.split("train")
    assert len(train) == 5
    assert "4 without a label" in train.summary
    assert train.summary in caplog.messages
    assert len(one.split("predict")) == 9
    nothing = write_raster(tmp_path / "n.tif", np.zeros((3, 40, 48), np.uint16), bands=BANDS, nodata=0)
    with pytest.raises(ValueError, match="train has no window with a label and an observation, of 9 windows of a"):
        source(image(tmp_path, path=nothing)).split("train")


def test_polygons_of_any_coordinate_system_and_label_rasters_of_another_grid(tmp_path):
    boxes = [(0, 0, 10, 10), (20, 20, 5, 5)]
    path = write_polygons(tmp_path / "fields.gpkg", boxes, ["10", "20"], crs="EPSG:4326")
    sample = source(image(tmp_path, labels=Labels(path=str(path))), window=64).split("train")[0]
    wanted = np.full((40, 48), IGNORE)
    wanted[:10, :10], wanted[20:25, 20:25] = 0, 1
    np.testing.assert_array_equal(sample["labels"], wanted)
    coarse = GeoBox((14, 16), GRID.affine @ Affine.scale(3), GRID.crs)
    labels = Labels(path=str(write_raster(tmp_path / "coarse.tif", halves((14, 16)), coarse)))
    sample = source(image(tmp_path, labels=labels), window=64).split("train")[0]
    np.testing.assert_array_equal(sample["labels"], np.where(np.arange(48) < 24, 0, 1)[None].repeat(40, 0))


def test_a_polygon_counts_in_one_part_only(tmp_path):
    """Blocks of 12 with 2 between them; polygons of 8 x 8 cross their borders."""
    boxes = [(row, column, 8, 8) for row in (1, 11, 21, 31) for column in (1, 11, 21, 31)]
    path = write_polygons(tmp_path / "fields.gpkg", boxes, [10, 20] * 8)
    one = image(tmp_path, labels=Labels(path=str(path)))
    split = ByBlocks(size=12, buffer=2, fractions=(0.5, 0, 0.5), seed=1)
    owners = {}
    for whole in (False, True):
        made = source(one, by=split, window=10, whole_polygons=whole)
        fields = made._parts.truths[0].polygons
        owners[whole] = [set() for _ in boxes]
        for part in ("train", "test"):
            for sample in everything(made.split(part)):
                row, column, height, width = sample["read"].tolist()
                labels = np.full((40, 48), IGNORE)
                labels[row : row + height, column : column + width] = sample["labels"]
                for number in range(len(boxes)):
                    top, left, high, wide = boxes[number]
                    if (labels[top : top + high, left : left + wide] != IGNORE).any():
                        owners[whole][number].add(part)
        assert len(fields.classes) == 16
    assert max(map(len, owners[False])) > 1
    assert max(map(len, owners[True])) == 1
    assert set().union(*owners[True]) == {"train", "test"}
    few = source(one, by=split, window=10, fields_per_class=1).split("train")
    counts = torch.bincount(torch.cat([sample["labels"].ravel() for sample in everything(few)]), minlength=256)[:2]
    assert counts.min() > 0
    assert counts.max() <= 64


def test_one_pixel_is_a_scene(tmp_path):
    grid = GeoBox((1, 1), GRID.affine, GRID.crs)
    labels = Labels(path=str(write_raster(tmp_path / "l.tif", np.array([[[21]]], np.uint8), grid)))
    one = source(image(tmp_path, path=write_scene(tmp_path / "s", grid=grid), labels=labels))
    (sample,) = everything(one.split("train"))
    assert sample["values"].shape == (3, 1, 1)
    assert sample["labels"].tolist() == [[1]]
    size = ViTSize(dim=8, depth=1, heads=2, patch=4)
    backbone = ViT("vit_tiny_patch16_224", size=size, image_size=8, inputs=Inputs(BANDS))
    batch = collate([sample])
    assert backbone(Pixels(values=batch["values"], valid=batch["valid"]))[0].grid == (1, 1)


def test_images_of_one_place_are_kept_apart_by_their_years(tmp_path):
    images = [image(tmp_path, name, year=year) for name, year in (("a", 2018), ("b", 2021))]
    split = source(*images, by=ByYear(train=(2018,), test=(2021,)))
    assert {int(sample["scene"]) for sample in everything(split.split("test"))} == {1}
    undated = source(*(replace(one, year=None) for one in images), by=ByArea(train=("a",), test=("b",)))
    with pytest.raises(ValueError, match="areas a and b share ground"):
        undated.prepare()


def test_samples_of_other_sizes_make_a_batch_and_move_together(tmp_path):
    pixels = np.arange(3 * 40 * 48, dtype=np.uint16).reshape(3, 40, 48)  # each tells where it was
    one = source(image(tmp_path, path=write_scene(tmp_path / "s", values=pixels), scale=1), window=32)
    sample, small = everything(one.split("train"))[0], everything(replace(one, window=12).split("train"))[0]
    batch = collate([sample, small])
    assert batch["values"].shape == (2, 3, 32, 32)
    assert not batch["valid"][1, 12:].any()
    assert (batch["labels"][1, :, 12:] == IGNORE).all()
    generator = torch.Generator().manual_seed(0)
    changed = [apply(sample, Augment().draw(sample, generator)) for _ in range(64)]
    assert len({tuple(one["values"][0].ravel().tolist()) for one in changed}) == 8
    for one in changed:
        rows, columns = np.divmod(one["values"][0].long().numpy(), 48)
        np.testing.assert_array_equal(one["labels"], sample["labels"][rows, columns])
        assert one["valid"].shape == (32, 32)
    with pytest.raises(ValueError, match="these samples are single images"):
        Augment(drop_dates=0.1).draw(sample, generator)


def test_a_vit_does_not_see_what_is_not_valid():
    torch.manual_seed(0)
    size = ViTSize(dim=8, depth=1, heads=2, patch=4)
    backbone = ViT("vit_tiny_patch16_224", size=size, image_size=8, inputs=Inputs(BANDS)).eval()
    values = torch.rand(2, 3, 8, 8)
    valid = torch.rand(2, 8, 8) > 0.3
    filled = torch.where(valid[:, None], values, backbone.inputs.mean[:, None, None])
    holes = torch.where(valid[:, None], values, torch.nan)
    seen = backbone(Pixels(values=holes, valid=valid))[0].data
    torch.testing.assert_close(seen, backbone(Pixels(values=filled))[0].data)
    with pytest.raises(ValueError, match=r"valid must be \(2, 8, 8\), not \(2, 8\); mask pixels"):
        Pixels(values=values, valid=valid[:, 0])


def _prepare_and_split(one):
    one.prepare()
    one.split("train")


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"path": "nowhere.tif"}, "nowhere.tif: there is no such file"),
        ({"path": "nowhere_{band}.tif"}, "nowhere_B02.tif: there is no such file"),
        ({"path": "each/scene_{band}.tif", "band_names": BANDS}, "image a: band_names are for one file with all bands"),
        ({"path": "all/scene.tif", "band_names": BANDS}, "must not be overruled; leave band_names of image a out"),
        ({"path": "named/scene.tif"}, "give image a band_names in the order of the file"),
        ({"path": "named/scene.tif", "band_names": ("B02", "B04")}, "has 3 bands and band_names of image a 2"),
        (
            {"path": "named/scene.tif", "band_names": ("B02", "B04", "B03")},
            "band B08 is missing, there are B02, B04, B03",
        ),
        ({"path": "zone/scene_{band}.tif"}, "scene_B08.tif: the bands of an image must have one coordinate system"),
        ({"path": "shifted/scene_{band}.tif"}, "scene_B08.tif: the bands of an image must have one transform"),
        ({"path": "stacked/scene_{band}.tif"}, "scene_B08.tif: a file for one band must hold one, it holds 3"),
        ({"path": "broken/scene.tif"}, "scene.tif: the file is truncated"),
        ({"labels": Labels(path="gone.gpkg")}, "image a: there is no label file gone.gpkg"),
        ({"labels": Labels(path="zone.tif")}, "a label raster must have the coordinate system of its images"),
        ({"labels": Labels(path="codes.tif")}, r"these are not: 33 \(1920 pixels\)"),
        ({"labels": Labels(path="fields.gpkg")}, r"these are not: 99 \(1 polygons\)"),
        ({"labels": Labels(path="fields.gpkg", column="kind")}, "no column 'kind', there are crop"),
        ({"labels": None}, "area a has no labels, so it cannot be in train"),
        ({"labels": Labels(path="far.tif")}, "train has no window with a label"),
    ],
)
def test_bad_input_gets_one_line(tmp_path, monkeypatch, fields, rule):
    monkeypatch.chdir(tmp_path)
    folder = Path()
    write_scene(folder / "all")
    write_scene(folder / "named", bands=("", "", ""))
    for name in ("each", "zone", "shifted", "stacked"):
        write_scene(folder / name, each=True)
    write_raster(folder / "zone" / "scene_B08.tif", numbers(0)[:1], ZONE)
    write_raster(folder / "shifted" / "scene_B08.tif", numbers(0)[:1], SHIFTED)
    write_raster(folder / "stacked" / "scene_B08.tif", numbers(0))
    broken = write_scene(folder / "broken")
    broken.write_bytes(broken.read_bytes()[:-300])
    write_raster(folder / "labels.tif", halves())
    write_raster(folder / "zone.tif", halves(), ZONE)
    write_raster(folder / "far.tif", halves(), GeoBox((40, 48), Affine(10, 0, 7e5, 0, -10, 5.6e6), GRID.crs))
    write_raster(folder / "codes.tif", np.full((1, 40, 48), 33, np.int16))
    write_polygons(folder / "fields.gpkg", [(0, 0, 5, 5), (9, 9, 5, 5)], [10, 99])
    fields = {"path": "all/scene.tif", "labels": Labels(path="labels.tif"), **fields}
    one = source(Image(name="a", scale=1e-4, offset=0, **fields))
    with pytest.raises(ValueError, match=rule) as caught:
        _prepare_and_split(one)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [{"images": ()}, {"bands": ()}, {"bands": ("B02", "B02")}, {"window": 8, "margin": 4}, {"fields_per_class": 0}],
)
def test_fields_that_make_no_sense_are_refused(fields):
    one = Image(name="a", path="nowhere", scale=1, offset=0)
    with pytest.raises(ValueError, match=r"one image|bands must|margin|fields_per_class"):
        Scenes(**{"images": (one,), "legend": LEGEND, "by": ByArea(), "bands": BANDS, **fields})


def test_workers_read_what_this_process_reads(tmp_path):
    one = source(image(tmp_path))
    batches = []
    for workers in (0, 1):
        module = DataModule(one, batch_size=4, workers=workers)
        module.setup("fit")
        batches.append([batch["values"] for batch in module.train_dataloader()])
    for here, there in zip(*batches, strict=True):
        torch.testing.assert_close(here, there)


CONFIG = """\
model:
  backbone:
    class_path: ViT
    init_args:
      name: vit_tiny_patch16_224
      size: {{dim: 16, depth: 1, heads: 2, patch: 4}}
      image_size: 16
      inputs: {{class_path: Inputs, init_args: {{bands: {bands}, mean: {mean}, std: {std}}}}}
  head: {{class_path: Linear, init_args: {{num_classes: {classes}}}}}
{model}
data:
  source:
    class_path: Scenes
    init_args:
      bands: {bands}
      window: 16
      margin: 2
      images: {images}
      legend: {legend}
      by: {{class_path: ByBlocks, init_args: {{size: 16, buffer: 2, fractions: [0.5, 0.2, 0.3], seed: 2}}}}
trainer: {{max_epochs: 1, accelerator: cpu, enable_progress_bar: false}}
"""
EIGHT = [f"B{number:02d}" for number in range(1, 9)]
THIRTEEN = [*EIGHT, "B8A", "B09", "B10", "B11", "B12"]


def config(path, *, images, legend, model=""):
    path.write_text(
        CONFIG.format(
            bands=json.dumps(EIGHT),
            mean=[0.2] * 8,
            std=[0.1] * 8,
            classes=len(legend["classes"]),
            model=model,
            images=json.dumps(images),
            legend=json.dumps(legend),
        )
    )
    return str(path)


@pytest.mark.filterwarnings("default")  # Lightning's own advice is the user's to see
def test_a_vit_learns_tiles_is_adapted_to_a_scene_and_maps_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_terramesh_tiles(Path("tiles"))
    write_rachel_carson(Path("reserve"))
    tiles = [
        {
            "name": folder.name,
            "path": str(folder / "S2L1C.tif"),
            "band_names": THIRTEEN,
            "scale": 1e-4,
            "offset": offset,
            "labels": {"path": str(folder / "LULC.tif")},
        }
        for folder, offset in zip(sorted(Path("tiles").iterdir()), (-0.1, 0.0), strict=True)
    ]
    base = config(Path("base.yaml"), images=tiles, legend={"classes": {"water": [1], "crops": [4], "rangeland": [9]}})
    assert main(["fit", "--config", base]) == 0
    reserve = {
        "name": "reserve",
        "path": "reserve/2018-10-13_S2B_L1C_{band}.tif",
        "scale": 0.4 / 255,
        "offset": 0,
        "nodata": 0,
        "labels": {"path": "reserve/landcover_polygons.gpkg", "column": "Classname"},
    }
    weights = "  weights: {path: runs/base/checkpoints/last.ckpt, head: false}\n"
    adapted = config(
        Path("adapted.yaml"),
        images=[reserve],
        legend={"classes": {"sand": ["Sand"], "wet": ["WetSand"]}, "ignore": ["Herbaceous"]},
        model=weights + "  adapter: {class_path: LoRA, init_args: {rank: 2}}",
    )
    assert main(["fit", "--config", adapted]) == 0
    assert Path("runs/adapted/adapter.safetensors").is_file()
    assert main(["test", "--config", adapted, "--ckpt_path", "last"]) == 0
    assert set(json.loads(Path("runs/adapted/metrics.json").read_text())["per_class"]) == {"sand", "wet"}
    assert main(["predict", "--config", adapted, "--ckpt_path", "last"]) == 0
    with (
        rasterio.open("runs/adapted/maps/reserve.tif") as made,
        rasterio.open("reserve/2018-10-13_S2B_L1C_B01.tif") as scene,
    ):
        assert (made.crs, made.transform, made.shape) == (scene.crs, scene.transform, scene.shape)
        unknown = np.any([rasterio.open(path).read(1) == 0 for path in sorted(Path("reserve").glob("*.tif"))], axis=0)
        np.testing.assert_array_equal(made.read(1) == IGNORE, unknown)
        assert 0 < unknown.sum() < unknown.size
    assert main(["fit", "--config", adapted, "--data.augment", "{drop_dates: 0.5}"]) == 2

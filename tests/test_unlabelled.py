"""Images without labels: windows drawn from rasters, and all pictures and slices below a folder."""

import pickle
import traceback

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from fakes import BANDS, GRID, numbers, write_raster, write_scene
from fakes_scans import PERSON, SIDE, enhanced, nine_cases, slice_of, uid, written
from odc.geo.geobox import GeoBox
from PIL import Image

from geomed.data.drawable import Drawable
from geomed.data.rendition import Rendition
from geomed.data.scan_cache import ScanCache
from geomed.data.scan_files import Reading
from geomed.data.unlabelled_rasters import UnlabelledRasters
from geomed.data.unlabelled_scans import UnlabelledScans
from geomed.io.dicom_header import read_header
from geomed.windows import Window


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rasters(*paths, **fields):
    given = {"bands": BANDS, "window": 8, "scale": 1.0, "offset": 0.0} | fields
    return UnlabelledRasters(paths=tuple(map(str, paths)), **given)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """40 x 48 pixels of which each number tells band, and row + column; 0 is nodata and nowhere."""
    folder = tmp_path_factory.mktemp("scene")
    return write_raster(folder / "scene.tif", numbers(0), bands=BANDS, nodata=0)


def test_the_same_seed_draws_the_same_window(scene):
    samples = rasters(scene).split("train")
    assert isinstance(samples, Drawable)
    first, again = (samples.draw(3, generator(5)) for _ in range(2))
    assert first.keys() == {"values", "valid"}
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert first["values"].shape == (3, 8, 8)
    assert first["values"].dtype == torch.float32
    assert first["valid"].shape == (8, 8)
    assert first["valid"].dtype == torch.bool
    others = [samples.draw(3, generator(seed))["values"] for seed in range(20)]
    assert len({float(one[0, 0, 0]) for one in others}) > 10


def test_as_a_plain_data_set_an_index_is_its_own_seed(scene):
    samples = rasters(scene, per_epoch=3).split("train")
    assert len(samples) == 3
    assert len(list(samples)) == 3
    assert torch.equal(samples[2]["values"], samples.draw(0, generator(2))["values"])
    with pytest.raises(IndexError):
        samples[3]


def test_windows_lie_inside_and_reach_every_place(scene):
    samples = rasters(scene).split("train")
    (raster,) = samples.rasters
    drawn = [samples.place(raster, draws) for draws in [generator()] for _ in range(4000)]
    assert {(one.height, one.width) for one in drawn} == {(8, 8)}
    assert {one.row for one in drawn} == set(range(40 - 8 + 1))
    assert {one.column for one in drawn} == set(range(48 - 8 + 1))


def test_rasters_are_drawn_by_their_area(tmp_path):
    for name, side, value in (("small", 8, 1), ("large", 24, 2)):
        write_raster(tmp_path / f"{name}.tif", np.full((1, side, side), value, np.uint8), bands=("B02",))
    samples = rasters(tmp_path, bands=("B02",)).split("train")
    draws = generator()
    found = [int(samples.draw(index, draws)["values"].max()) for index in range(400)]
    assert samples.fitting == 10
    assert found.count(1) == pytest.approx(40, abs=20)  # a ninth of the pixels; 20 are three standard deviations


def test_windows_of_too_much_nodata_are_drawn_again(tmp_path):
    values = numbers(0)
    values[:, :, :30] = 0
    path = write_raster(tmp_path / "scene.tif", values, bands=BANDS, nodata=0)
    for most in (0.0, 0.25):
        samples = rasters(path, max_missing=most).split("train")
        draws = generator()
        shares = [1 - samples.draw(index, draws)["valid"].double().mean().item() for index in range(60)]
        assert max(shares) <= most
        assert most == 0 or max(shares) > 0


def test_other_rasters_are_drawn_where_one_has_nothing(tmp_path):
    values = numbers(0)
    write_raster(tmp_path / "full.tif", values, bands=BANDS, nodata=0)
    for number in range(3):
        write_raster(tmp_path / f"empty{number}.tif", np.zeros_like(values), bands=BANDS, nodata=0)
    source = rasters(tmp_path)
    source.prepare()
    draws = generator()
    assert all(source.split("train").draw(index, draws)["valid"].all() for index in range(10))


def test_a_folder_of_nodata_is_refused_at_once(tmp_path):
    for number in range(2):
        write_raster(tmp_path / f"{number}.tif", np.zeros((3, 40, 48), np.uint16), bands=BANDS, nodata=0)
    with pytest.raises(ValueError, match=r"all-nodata.*raise max_missing, which is 0\.2, or give others"):
        rasters(tmp_path).prepare()


def test_bands_come_by_name_in_the_order_asked_for(tmp_path):
    stored = ("B08", "B02", "B04")
    write_raster(tmp_path / "one.tif", numbers(0), bands=stored)
    write_raster(tmp_path / "two.tif", numbers(0)[[1, 2, 0]], bands=BANDS)
    samples = rasters(tmp_path, bands=("B04", "B08")).split("train")
    assert len(samples.rasters) == 2
    for raster in samples.rasters:
        read = raster.read(Window(0, 0, 8, 8))["values"]
        assert np.array_equal(read, numbers(0)[[2, 0], :8, :8].astype(np.float32))


def test_units_are_applied_or_asked_for(tmp_path, scene):
    told = rasters(scene, scale=0.0001, offset=-0.1).split("train")
    plain = rasters(scene).split("train")
    values = told.draw(0, generator())["values"]
    assert torch.allclose(values, plain.draw(0, generator())["values"] * 0.0001 - 0.1)
    path = write_raster(tmp_path / "declared.tif", numbers(0), bands=BANDS, units=(0.5, 2.0))
    declared = rasters(path, scale=None, offset=None).split("train")
    assert torch.equal(declared.draw(0, generator())["values"], plain.draw(0, generator())["values"] * 0.5 + 2)
    with pytest.raises(ValueError, match="say it with scale and offset") as caught:
        rasters(scene, scale=None, offset=None).prepare()
    assert "--" not in str(caught.value)


def test_bands_without_names_are_named(tmp_path):
    path = write_raster(tmp_path / "plain.tif", numbers(0))
    with pytest.raises(ValueError, match="in the order of the file with band_names"):
        rasters(path).prepare()
    rasters(path, band_names=BANDS).prepare()


def test_nan_never_comes_out(tmp_path):
    values = numbers(0).astype(np.float32)
    values[1, ::3, ::3] = np.nan
    values[2, 1::5] = np.inf
    path = write_raster(tmp_path / "holes.tif", values, bands=BANDS)
    samples = rasters(path, max_missing=0.6).split("train")
    draws = generator()
    for index in range(20):
        sample = samples.draw(index, draws)
        assert sample["values"].isfinite().all()
        assert not sample["valid"].all()
        assert (sample["values"][:, ~sample["valid"]] == 0).all()


def test_one_file_for_each_band(tmp_path):
    for place in ("north", "south"):
        write_scene(tmp_path / place, each=True)
    source = rasters(tmp_path / "**" / "scene_{band}.tif", bands=("B08", "B02"))
    source.prepare()
    samples = source.split("train")
    assert len(samples.rasters) == 2
    sample = samples.draw(0, generator())
    assert torch.equal(sample["values"][0] - sample["values"][1], torch.full((8, 8), 2000.0))


def test_a_pickled_data_set_draws_the_same(scene):
    samples = rasters(scene).split("train")
    before = samples.draw(0, generator())
    copied = pickle.loads(pickle.dumps(samples))  # noqa: S301  (its own)
    after = copied.draw(0, generator())
    assert torch.equal(before["values"], after["values"])
    source = pickle.loads(pickle.dumps(rasters(scene)))  # noqa: S301
    assert len(source.split("train")) == len(samples) == 30


def test_a_raster_smaller_than_a_window_is_filled_to_it(tmp_path):
    for number in range(2):
        write_raster(tmp_path / f"{number}.tif", np.full((1, 5, 20), 7, np.uint8), bands=("B02",))
    samples = rasters(tmp_path, bands=("B02",)).split("train")
    sample = samples.draw(0, generator())
    assert sample["values"].shape == (1, 8, 8)
    assert sample["valid"][:5].all()
    assert not sample["valid"][5:].any()
    assert (sample["values"][:, 5:] == 0).all()
    with pytest.raises(
        ValueError, match=r"2 of 2 rasters[^\n]*\n  0: a raster of 5 x 20 pixels would fill less than half"
    ):
        rasters(tmp_path, bands=("B02",), window=12).prepare()


def test_only_the_blocks_of_a_window_are_read(tmp_path):
    """All other blocks are damaged, and nobody notices."""
    path, side = tmp_path / "large.tif", 512
    values = np.random.default_rng(0).integers(1, 255, (1, side, side), dtype=np.uint8)
    layout = {"driver": "GTiff", "height": side, "width": side, "count": 1, "dtype": "uint8", "crs": "EPSG:32631"}
    tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate", "predictor": 2}
    with rasterio.open(path, "w", **layout, **tiles, transform=GRID.affine) as file:
        file.write(values)
        file.set_band_description(1, "B02")
    with rasterio.open(path) as file:
        names = [(row, column) for row in range(8) for column in range(8) if (row, column) != (3, 2)]
        places = [
            tuple(int(file.get_tag_item(f"BLOCK_{what}_{column}_{row}", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE"))
            for row, column in names
        ]
    data = bytearray(path.read_bytes())
    for start, length in places:
        data[start : start + length] = b"\xff" * length
    path.write_bytes(data)
    samples = rasters(path, bands=("B02",), window=64).split("train")
    (raster,) = samples.rasters
    read = raster.read(Window(3 * 64, 2 * 64, 64, 64))["values"]
    assert np.array_equal(read, values[:, 192:256, 128:192].astype(np.float32))
    with pytest.raises(ValueError, match=r"large\.tif.*cannot be read"):
        samples.draw(0, generator())


def test_every_broken_raster_is_named(tmp_path):
    for number in range(5):
        write_raster(tmp_path / f"good{number}.tif", numbers(0), bands=BANDS)
    write_raster(tmp_path / "short.tif", numbers(0), bands=BANDS)
    whole = (tmp_path / "short.tif").read_bytes()
    (tmp_path / "short.tif").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.tif").write_bytes(b"no raster")
    write_raster(tmp_path / "pixel.tif", np.ones((3, 1, 1), np.uint16), bands=BANDS)
    write_raster(tmp_path / "other.tif", numbers(0), bands=("B02", "B04", "SCL"))
    with pytest.raises(ValueError, match="4 of 9 rasters cannot be used") as caught:
        rasters(tmp_path).prepare()
    told = str(caught.value)
    assert all(word in told for word in ("short.tif", "truncated", "text.tif", "pixel: a raster of 1 x 1", "other.tif"))
    assert "B08" in told
    assert "good" not in told


def test_an_unknown_band_is_refused_by_its_name(scene):
    with pytest.raises(ValueError, match=r"B11.*B02, B04, B08|scene\.tif.*B11"):
        rasters(scene, bands=("B02", "B11")).prepare()


def test_what_cannot_be_pre_trained_on_is_refused(tmp_path, scene):
    with pytest.raises(ValueError, match="there is one image, of 40 x 48 pixels"):
        rasters(scene, window=32).prepare()
    with pytest.raises(ValueError, match="there is no such file"):
        rasters(tmp_path / "nothing.tif").prepare()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="the folder holds no image"):
        rasters(tmp_path / "empty").prepare()
    for fields, rule in (
        ({"offset": None}, "scale and offset belong together"),
        ({"scale": 0.0}, "scale must be a finite number other than 0"),
        ({"bands": ("B02", "B02")}, "B02 stands twice"),
        ({"bands": ()}, "needs files and bands"),
        ({"max_missing": 1.0}, "max_missing is a share"),
        ({"per_epoch": 0}, "per_epoch"),
        ({"window": 1}, "2 x 2"),
    ):
        with pytest.raises(ValueError, match=rule):
            rasters(scene, **fields)


@pytest.mark.parametrize("part", ["val", "test", "predict"])
def test_there_is_no_part_but_train(tmp_path, scene, part):
    with pytest.raises(ValueError, match=f"no labels.*no {part}"):
        rasters(scene).split(part)
    with pytest.raises(ValueError, match=f"no labels.*no {part}"):
        UnlabelledScans(folder=str(tmp_path)).split(part)


def test_a_raster_nowhere_in_the_world_will_do(tmp_path):
    grid = GeoBox((20, 20), Affine.identity(), None)
    path = write_raster(tmp_path / "flat.tif", numbers(0, (20, 20)), grid, bands=BANDS)
    source = rasters(path)
    source.prepare()
    assert source.classes == source.scenes() == ()
    assert "1 rasters without labels" in source.summary


# Scans

FOLDER, WARD = "Jane_Doe-1970-12-24", "ward-of-jane"
SECRETS = (*PERSON.values(), FOLDER, WARD, uid("study"), uid("frame"), uid("series", "one"))
SMALL = Rendition(size=16)


def noise(seed, shape=(16, 16), most=256, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, most, shape).astype(dtype)


def png(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def nifti(path, values):
    """[z, y, x]."""
    import nibabel

    nibabel.Nifti1Image(values.transpose(2, 1, 0), np.diag([1, 1, 2, 1])).to_filename(path)
    return path


def scans(folder, **fields):
    return UnlabelledScans(folder=str(folder), **{"rendition": SMALL} | fields)


def series(count=6, **elements):
    """Slices of noise whose mean is their height."""
    made = []
    for number in range(count):
        values = 1024 + 10 * number + noise(number, most=400, dtype=np.int16)
        made.append(slice_of(10 * number, values.astype(np.int16), number=number, **elements))
    return made


def test_pictures_come_as_they_are(tmp_path):
    pictures = [noise(seed) for seed in range(3)]
    for number, values in enumerate(pictures):
        png(tmp_path / f"p{number}" / "picture.png", values)
    source = scans(tmp_path)
    source.prepare()
    samples = source.split("train")
    assert source.classes == source.scenes() == ()
    assert source.bands == ("grey",)
    assert len(samples) == len(list(samples)) == 3
    for sample, values in zip(samples, pictures, strict=True):
        assert sample.keys() == {"values"}
        assert sample["values"].dtype == torch.uint8
        assert np.array_equal(sample["values"][0].numpy(), values)


def test_pictures_of_16_bits_need_a_window(tmp_path):
    for seed in range(2):
        png(tmp_path / f"{seed}.png", noise(seed, most=40_000, dtype=np.uint16))
    with pytest.raises(ValueError, match=r"2 of 2 files cannot be used[^\n]*\n  file 1 of 2: it holds 16-bit"):
        scans(tmp_path).prepare()
    windowed = scans(tmp_path, rendition=Rendition(size=16, window="full")).split("train")[0]["values"]
    assert windowed.dtype == torch.uint8
    assert (int(windowed.min()), int(windowed.max())) == (0, 255)


def test_values_in_their_unit_are_real_numbers(tmp_path):
    for seed in range(2):
        png(tmp_path / f"{seed}.png", noise(seed, most=30_000, dtype=np.uint16))
    kept = scans(tmp_path, rendition=Rendition(size=16, depth=16)).split("train")[0]["values"]
    assert kept.dtype == torch.float32
    assert np.array_equal(kept[0].numpy(), noise(0, most=30_000, dtype=np.uint16))


def test_colours(tmp_path):
    png(tmp_path / "a.png", noise(0, (16, 16, 3)))
    png(tmp_path / "b.png", noise(1))
    source = scans(tmp_path, rendition=Rendition(size=16, colour=True))
    assert source.bands == ("red", "green", "blue")
    assert [tuple(sample["values"].shape) for sample in source.split("train")] == [(3, 16, 16)] * 2
    with pytest.raises(ValueError, match=r"1 of 2 files cannot be used[^\n]*\n  file 1 of 2: it has colours"):
        scans(tmp_path).prepare()


@pytest.mark.parametrize("cached", [False, True], ids=["read", "cached"])
def test_a_mixed_folder_gives_every_picture_and_slice(tmp_path, cached):
    folder = tmp_path / "scans"
    png(folder / "a" / "picture.png", noise(0))
    nifti(folder / "a" / "volume.nii", noise(1, (4, 16, 16), 3000, np.int16))
    nifti(folder / "a" / "volume2.nii.gz", noise(2, (3, 16, 16), 3000, np.int16))
    written(folder / "b", series(5))
    written(folder / "c", [*series(2, modality="MR", series="s1"), *series(3, modality="MR", series="s2")])
    (folder / "b" / "notes.txt").write_text("nothing")
    (folder / "b" / ".hidden.png").write_bytes(b"nothing")
    cache = ScanCache(folder=str(tmp_path / "cache")) if cached else None
    source = scans(folder, rendition=Rendition(size=16, window="full"), cache=cache)
    source.prepare()
    samples = source.split("train")
    assert len(samples) == 1 + 4 + 3 + 5 + 5
    assert "18 images without labels, of 1 pictures and 5 volumes" in source.summary
    assert "1 files that are no scans were left out" in source.summary
    assert ("set `cache`" in source.summary) != cached
    values = np.stack([sample["values"].numpy() for sample in samples])
    assert values.dtype == np.uint8
    uncached = scans(folder, rendition=Rendition(size=16, window="full")).split("train")
    assert np.array_equal(values, np.stack([sample["values"].numpy() for sample in uncached]))
    copied = pickle.loads(pickle.dumps(samples))  # noqa: S301  (its own)
    assert torch.equal(copied[7]["values"], samples[7]["values"])


def test_a_cache_is_filled_once(tmp_path, monkeypatch):
    folder = tmp_path / "scans"
    written(folder, series(4))
    fields = {"rendition": Rendition(size=16, window="lung"), "cache": ScanCache(folder=str(tmp_path / "cache"))}
    first = scans(folder, **fields).split("train")[2]["values"]
    monkeypatch.setattr("geomed.data.unlabelled_scans.shown", None)
    assert torch.equal(scans(folder, **fields).split("train")[2]["values"], first)


def test_slices_of_a_series_come_in_order_and_one_by_one(tmp_path, monkeypatch):
    written(tmp_path, [series()[number] for number in (3, 0, 5, 1, 4, 2)])
    samples = scans(tmp_path, rendition=Rendition(size=16, window=(200, 800))).split("train")
    assert len(samples) == 6
    opened = []

    def opening(path, modality):
        opened.append(path)
        return read_header(path, modality)

    monkeypatch.setattr("geomed.data.scan_slices.read_header", opening)
    for place, sample in enumerate(samples):
        expected = (10 * place + noise(place, most=400, dtype=np.int16) + 200) / 800 * 255
        assert np.abs(sample["values"][0].numpy() - expected).max() <= 0.51
    assert len(opened) == len(set(opened)) == 6


def test_frames_of_a_multi_frame_file_are_images(tmp_path):
    item = enhanced((20, 0, 30, 10))
    values = np.stack([noise(seed, (SIDE, SIDE), 1000, np.uint16) for seed in range(4)])
    item.PixelData = values.tobytes()
    written(tmp_path, [item])
    samples = scans(tmp_path, rendition=Rendition(size=16, depth=16)).split("train")
    found = np.stack([sample["values"][0].numpy() for sample in samples])
    assert np.array_equal(found, 2.0 * values[[1, 3, 0, 2]] - 1000)  # from the lowest


def test_an_irregular_series_will_do(tmp_path):
    """A gap, two echoes at each place, several series in a folder: no volume, but pictures all the same."""
    for case in nine_cases(tmp_path / "cases"):
        for path in case.files:
            path.unlink()
        if case.name in {"gap", "duplicate", "two series"}:
            items = [
                slice_of(z, 1024 + noise(z + n, most=400, dtype=np.int16), number=n) for n, z in enumerate((0, 10, 10))
            ]
            written(case.files[0].parent, items)
    assert len(scans(tmp_path, rendition=Rendition(size=16, window="full")).split("train")) == 9


def test_single_slices_of_a_plain_nifti_are_those_of_the_volume(tmp_path):
    values = noise(0, (5, 12, 16), 3000, np.int16)
    for name in ("plain.nii", "packed.nii.gz"):
        nifti(tmp_path / name, values)
    samples = scans(tmp_path, rendition=Rendition(size=16, depth=16, keep_aspect=False)).split("train")
    found = [sample["values"].numpy() for sample in samples]
    assert len(found) == 10
    for packed, plain in zip(found[:5], found[5:], strict=True):
        assert np.array_equal(packed, plain)


def test_nifti_volumes_are_turned_on_demand(tmp_path):
    values = noise(0, (3, 16, 16), 3000, np.int16)
    nifti(tmp_path / "one.nii", values)
    turned = scans(tmp_path, rendition=Rendition(size=16, depth=16), reading=Reading(orientation="LPS"))
    found = np.stack([sample["values"][0].numpy() for sample in turned.split("train")])
    assert np.array_equal(found, values[:, ::-1, ::-1])  # it was stored as RAS


@pytest.mark.parametrize("cached", [False, True], ids=["read", "cached"])
def test_slices_of_air_are_left_out(tmp_path, cached):
    """Of a head and the air above it, whose noise a window over the range of each slice would make as large as it."""
    rng = np.random.default_rng(0)
    volume = rng.normal(-1000, 10, (8, 16, 16))
    volume[2:6, 4:12, 4:12] = rng.normal(40, 60, (4, 8, 8))
    volume[5, 4:12, 4:12] = -1000
    volume[5, 7:9, 7:9] = 700  # the tip of it, 1.6 % of the slice
    volume[7] = -1024
    (tmp_path / "scans").mkdir()
    nifti(tmp_path / "scans" / "head.nii", volume.astype(np.int16))
    cache = ScanCache(folder=str(tmp_path / "cache")) if cached else None
    fields = {"rendition": Rendition(size=16, window="full"), "cache": cache}
    source = scans(tmp_path / "scans", **fields)
    assert len(source.split("train")) == 4
    assert "4 blank images were left out" in source.summary
    assert len(scans(tmp_path / "scans", min_spread=0, **fields).split("train")) == 7  # all but that of one value
    half = scans(tmp_path / "scans", **fields | {"rendition": Rendition(size=16, window="full", slices=2)})
    assert len(half.split("train")) == 2


def test_patterns_choose_files(tmp_path):
    for name in ("a/image.png", "a/image_mask.png", "b/image.png", "c/deep/image.png"):
        png(tmp_path / name, noise(len(name)))
    assert len(scans(tmp_path, exclude=("*_mask.png", "c/*")).split("train")) == 2
    assert len(scans(tmp_path, pattern="*/image.png").split("train")) == 3
    with pytest.raises(ValueError, match="below the folder there is no scan, but 0 other files"):
        scans(tmp_path, pattern="*.dcm").prepare()


def test_dicom_is_known_by_its_content_and_documents_are_left_out(tmp_path):
    paths = written(tmp_path, [*series(3), slice_of(0, noise(0, dtype=np.int16), modality="MR", Modality="SR")])
    for number, path in enumerate(paths):
        path.rename(tmp_path / f"1.2.840.{number}")
    source = scans(tmp_path, rendition=Rendition(size=16, window="full"))
    assert len(source.split("train")) == 3
    assert "1 DICOM files that are no pictures were left out" in source.summary


def test_numbers_that_mean_different_things_are_refused(tmp_path):
    written(tmp_path / "ct", series(2))
    written(tmp_path / "mr", series(2, modality="MR", series="mr"))
    for rendition in (Rendition(size=16, depth=16), Rendition(size=16, window=(0, 1000))):
        with pytest.raises(ValueError, match=r"several units \(HU, grey of 16 bits\)"):
            scans(tmp_path, rendition=rendition).prepare()
    scans(tmp_path, rendition=Rendition(size=16, window="robust")).prepare()


def test_scans_that_cannot_be_pre_trained_on_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the folder of scans is not there"):
        scans(tmp_path / "nowhere").prepare()
    with pytest.raises(ValueError, match="there is no scan"):
        scans(tmp_path).prepare()
    png(tmp_path / "a.png", noise(0))
    png(tmp_path / "b.png", np.full((16, 16), 7, np.uint8))
    with pytest.raises(ValueError, match="2 files hold one image that shows something, and 1 blank ones"):
        scans(tmp_path).prepare()
    with pytest.raises(ValueError, match="min_spread is a share"):
        scans(tmp_path, min_spread=1.0)


@pytest.mark.parametrize("cached", [False, True], ids=["read", "cached"])
def test_every_unreadable_file_is_counted_and_nobody_named(tmp_path, caplog, cached):
    folder = tmp_path / FOLDER
    paths = list(written(folder / WARD / "one", series(4)))
    paths.append(nifti(folder / WARD / "volume.nii.gz", noise(0, (3, 16, 16), 99, np.int16)))
    paths.append(nifti(folder / WARD / "volume2.nii", noise(0, (3, 16, 16), 99, np.int16)))
    paths += [png(folder / WARD / f"x{number}.png", noise(number)) for number in range(3)]
    planted = [*SECRETS, *(path.name for path in paths)]
    source = scans(folder, rendition=Rendition(size=16, window="full"))
    source.prepare()
    numbers_of = {source.path_of(number): number for number in range(1, 10)}
    assert source.path_of(1) == paths[0]
    paths[1].write_bytes(b"DOE^JANE 19701224")
    paths[2].write_bytes(paths[2].read_bytes()[:-50])
    for path in (paths[4], paths[5], paths[7]):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    paths[8].write_bytes(b"")
    cache = ScanCache(folder=str(tmp_path / "cache")) if cached else None
    for wrong in ((1, 2, 4, 5, 7, 8), (4, 5, 7, 8)):  # heads and pixels, then pixels alone
        for place in {1, 2} - set(wrong):
            paths[place].write_bytes(paths[0].read_bytes())
        with pytest.raises(ValueError, match=f"{len(wrong)} of 9 files cannot be used") as caught:
            scans(folder, rendition=source.rendition, cache=cache).prepare()
        told = str(caught.value)
        assert all((f"file {numbers_of[paths[place]]} of 9" in told) == (place in wrong) for place in range(9))
        shown = "".join(traceback.format_exception(caught.value)) + caplog.text + source.summary
        assert [word for word in planted if word.lower() in shown.lower()] == []
    with pytest.raises(ValueError, match="there is no 10"):
        source.path_of(10)


@pytest.mark.parametrize("cached", [False, True], ids=["read", "cached"])
def test_a_file_that_vanishes_names_nobody(tmp_path, cached):
    folder = tmp_path / FOLDER
    for number in range(3):
        png(folder / WARD / f"secret{number}.png", noise(number))
    samples = scans(folder).split("train")
    source = scans(folder, cache=ScanCache(folder=str(tmp_path / "cache")) if cached else None)
    source.path_of(2).unlink()  # the files are listed, and not read yet
    for read, rule in ((lambda: samples[1], "file 2 of 3: there is no such"), (source.prepare, "file 2 of 3: ")):
        with pytest.raises(ValueError, match=rule) as caught:
            read()
        shown = "".join(traceback.format_exception(caught.value))
        assert [word for word in (FOLDER, WARD, "secret1") if word in shown] == []
    assert samples[2]["values"].shape == (1, 16, 16)

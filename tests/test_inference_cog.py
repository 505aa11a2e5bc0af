import errno
import hashlib
import json
import os

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rio_cogeo import cog_validate

from geomed.io import cog
from geomed.io.cog import Layout, assemble, encode_piece, read_piece, read_small, store_piece, write_piece
from geomed.io.geotiff import GeoTiff
from geomed.windows import Window, cover

NAMES, COLOURS = ("maize", "grass & <clover>", "wheat"), ((242, 169, 0), (139, 203, 107), (165, 108, 54))
CLASSES = Layout(bands=("class",), classes=NAMES, colours=COLOURS)
UTM = GeoBox((1, 1), Affine(10, 0, 500_000, 0, -10, 5_600_000), "EPSG:32631")


def fields(shape, seed=0):
    """Classes [1, rows, columns] in patches, with single pixels among them and a corner unknown."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 3, (shape[0] // 20 + 1, shape[1] // 20 + 1)).astype(np.uint8)
    values = np.kron(coarse, np.ones((20, 20), np.uint8))[: shape[0], : shape[1]]
    odd = rng.random(shape) < 0.1
    values[odd] = rng.integers(0, 3, int(odd.sum()))
    values[: shape[0] // 4, : shape[1] // 3] = 255
    return values[None]


def cut(values, folder, size=400):
    folder.mkdir(exist_ok=True)
    pieces = []
    for number, (_, keep) in enumerate(cover(values.shape[1:], size=size)):
        path = folder / f"{number:05d}.tif"
        write_piece(path, np.ascontiguousarray(values[(slice(None), *keep.slices)]))
        pieces.append((path, keep))
    return pieces


def grid_of(shape, like=UTM):
    return GeoBox(shape, like.affine, like.crs)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 300, 700), (5, 257, 255)])
def test_a_piece_comes_back_and_has_the_same_bytes_each_time(tmp_path, shape):
    values = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    path = tmp_path / "a.tif"
    assert write_piece(path, values) == path.stat().st_size
    np.testing.assert_array_equal(read_piece(path, shape), values)
    assert encode_piece(values) == path.read_bytes()
    assert [one.name for one in tmp_path.iterdir()] == ["a.tif"]


def test_a_damaged_piece_is_never_taken_for_a_whole_one(tmp_path):
    path = tmp_path / "a.tif"
    values = fields((300, 300))
    data = encode_piece(values)
    for at in range(0, len(data), 211):
        flipped = bytearray(data)
        flipped[at] ^= 64
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"a\.tif: this piece of a raster .*make it again"):
            read_piece(path, values.shape)
    for length in (0, 3, 100, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="checksum"):
            read_piece(path, values.shape)
    store_piece(path, data)
    with pytest.raises(ValueError, match=r"\(1, 300, 300\) of uint8, not \(1, 300, 301\)"):
        read_piece(path, (1, 300, 301))
    with pytest.raises(ValueError, match="No such file"):
        read_piece(tmp_path / "b.tif", values.shape)


def test_a_piece_on_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    store_piece(path, b"before")

    def full(_number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store_piece(path, b"after")
    assert [one.name for one in tmp_path.iterdir()] == ["a.tif"]
    assert path.read_bytes() == b"before"


@pytest.mark.parametrize("shape", [(1, 1), (511, 512), (513, 40), (1500, 700), (37, 1300)])
def test_a_map_is_a_valid_cog_with_all_it_had(tmp_path, shape):
    values = fields(shape)
    path = tmp_path / "map.tif"
    assemble(path, cut(values, tmp_path / "pieces"), grid_of(shape), CLASSES)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["map.tif", "map.tif.aux.xml", "pieces"]
    valid, errors, warned = cog_validate(path, strict=True)
    assert (valid, errors, warned) == (True, [], [])
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(), values)
        assert (file.nodata, file.dtypes, file.descriptions) == (255, ("uint8",), ("class",))
        assert (file.crs.to_epsg(), file.transform) == (32631, UTM.affine)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert [file.colormap(1)[index][:3] for index in range(3)] == list(COLOURS)
        assert json.loads(file.tags(1)["CLASS_NAMES"]) == list(NAMES)
        levels = len(file.overviews(1))
    assert levels == {1: 0, 511: 0, 513: 1, 1500: 2, 37: 2}[shape[0]]
    for level in range(levels):
        with rasterio.open(path, overview_level=level) as file:
            small, step = file.read(1), 2 ** (level + 1)
        assert set(np.unique(small)) <= set(np.unique(values))
        # odd sides are shrunk by a little more than the step
        unknown = small[: max(shape[0] // 4 // step - 1, 0), : max(shape[1] // 3 // step - 1, 0)]
        assert (unknown == 255).all()
        assert (small == 255).sum() <= 1.1 * unknown.size + 2 * sum(small.shape)
    (tmp_path / "map.tif.aux.xml").unlink()
    with rasterio.open(path) as file:
        assert json.loads(file.tags(1)["CLASS_NAMES"]) == list(NAMES)
        assert (file.nodata, file.descriptions) == (255, ("class",))


def test_overviews_of_classes_hold_the_commonest(tmp_path):
    values = np.zeros((1, 1024, 1024), np.uint8)
    values[:, ::2, ::2] = 2
    values[:, 512:, :] = 1
    values[:, 512::2, 512::2] = 255
    assemble(tmp_path / "map.tif", cut(values, tmp_path / "pieces"), grid_of((1024, 1024)), CLASSES)
    with rasterio.open(tmp_path / "map.tif", overview_level=0) as file:
        small = file.read(1)
    assert (small[:256] == 0).all()
    assert (small[256:] == 1).all()
    assert read_small(tmp_path / "map.tif", (2, 2)).tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize(
    "grid",
    [
        GeoBox((600, 530), Affine(8, 6, 500_000, 6, -8, 5_600_000), "EPSG:2154"),
        GeoBox((600, 530), Affine(1e-4, 0, -76.7, 0, -1e-4, 34.7), "EPSG:4326"),
        GeoBox((600, 530), Affine(1, 0, 7, 0, -1, 9), None),
        GeoBox((600, 530), Affine.identity(), None),
        GeoBox((600, 530), Affine(10, 0, 500_000, 0, 10, 5_600_000), "EPSG:32733"),
    ],
    ids=["rotated", "degrees", "no coordinate system", "no place", "south up"],
)
def test_any_place_is_kept(tmp_path, grid):
    path = tmp_path / "map.tif"
    assemble(path, cut(fields((600, 530)), tmp_path / "pieces"), grid, CLASSES)
    found = GeoTiff.open(path).grid
    assert (found.shape, found.affine, found.crs) == (grid.shape, grid.affine, grid.crs)
    assert cog_validate(path, strict=True)[0]


def test_shares_keep_their_unit_and_unknown_stays_out_of_means(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 251, (3, 700, 900)).astype(np.uint8)
    values[:, 100:301, 50:333] = 255
    values[:, ::7, ::3] = 255
    layout = Layout(bands=("maize", "grass & <clover>", "wheat"), scale=1 / 250)
    path = tmp_path / "shares.tif"
    path.with_name("shares.tif.aux.xml").write_text("of another raster")
    assemble(path, cut(values, tmp_path / "pieces"), grid_of((700, 900)), layout)
    assert not path.with_name("shares.tif.aux.xml").exists()
    assert cog_validate(path, strict=True)[:2] == (True, [])
    raster = GeoTiff.open(path)
    np.testing.assert_array_equal(raster.read(raster.whole), values)
    assert (raster.bands, raster.nodata) == (layout.bands, 255)
    assert (raster.scales, raster.offsets) == ((1 / 250,) * 3, (0.0,) * 3)
    means = np.ma.masked_equal(values, 255).reshape(3, 350, 2, 450, 2).astype(float).mean((2, 4))
    with rasterio.open(path, overview_level=0) as file:
        small = file.read()
    np.testing.assert_array_equal(small == 255, means.mask)
    assert np.abs(small - means).max() <= 0.5


@pytest.mark.parametrize("layout", [CLASSES, Layout(bands=("share",), scale=1 / 250)])
def test_the_bytes_depend_on_the_pixels_alone(tmp_path, monkeypatch, layout):
    values = fields((700, 800))
    found = set()
    for cores, size in ((1, 400), (1, 400), (4, 650)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        assemble(tmp_path / "map.tif", cut(values, tmp_path / str(size), size), grid_of((700, 800)), layout)
        found.add(hashlib.sha256((tmp_path / "map.tif").read_bytes()).hexdigest())
    assert len(found) == 1


def test_names_with_odd_characters(tmp_path):
    folder = tmp_path / "a#b & <c>?d 'é"
    folder.mkdir()
    values = fields((60, 50))
    assemble(folder / "m#1 &.tif", cut(values, folder / "pieces"), grid_of((60, 50)), CLASSES)
    raster = GeoTiff.open(folder / "m#1 &.tif")
    np.testing.assert_array_equal(raster.read(raster.whole), values)


@pytest.mark.parametrize(
    ("windows", "rule"),
    [
        ([], "in row 0 and column 0 is covered 0 times"),
        ([Window(0, 0, 4, 6), Window(5, 0, 3, 6)], "in row 4 and column 0 is covered 0 times"),
        ([Window(0, 0, 8, 4), Window(2, 3, 6, 3), Window(0, 4, 2, 2)], "in row 2 and column 3 is covered 2 times"),
        ([Window(0, 0, 8, 7)], "must lie inside the raster of 8 x 6"),
        ([Window(-1, 0, 9, 6)], "must lie inside"),
    ],
)
def test_pieces_that_are_no_partition_are_refused(tmp_path, windows, rule):
    with pytest.raises(ValueError, match=rule):
        assemble(tmp_path / "m.tif", [(tmp_path / "p", one) for one in windows], grid_of((8, 6)), CLASSES)
    assert not list(tmp_path.iterdir())


def test_a_damaged_piece_is_named_and_the_old_map_stays(tmp_path):
    values = fields((600, 500))
    path = tmp_path / "map.tif"
    pieces = cut(values, tmp_path / "pieces")
    assemble(path, pieces, grid_of((600, 500)), CLASSES)
    before = path.read_bytes()
    content = bytearray(pieces[2][0].read_bytes())
    content[len(content) // 2] ^= 1
    pieces[2][0].write_bytes(content)
    with pytest.raises(ValueError, match=r"00002\.tif: this piece of a raster is .*make it again"):
        assemble(path, pieces, grid_of((600, 500)), CLASSES)
    assert path.read_bytes() == before


@pytest.mark.parametrize("fault", ["cut short", "other numbers", "error", "no file"])
def test_a_raster_that_was_not_written_whole_is_noticed(tmp_path, monkeypatch, fault):
    values = fields((600, 500))
    path = tmp_path / "map.tif"
    pieces = cut(values, tmp_path / "pieces")
    assemble(path, pieces, grid_of((600, 500)), CLASSES)
    before = path.read_bytes()
    copy = cog._copy

    def faulty(part, mosaic, layout):
        copy(part, mosaic, layout)
        part.with_name(part.name + ".ovr.tmp").write_bytes(b"left behind")
        if fault == "cut short":
            part.write_bytes(part.read_bytes()[:-100])
        elif fault == "other numbers":
            with rasterio.Env(), rasterio.open(part, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as file:
                file.write(255 - values)
        elif fault == "error":
            raise rasterio.errors.RasterioIOError("it failed\nfor a reason")
        else:
            part.unlink()

    monkeypatch.setattr(cog, "_copy", faulty)
    with pytest.raises(OSError, match=r"map\.tif") as caught:
        assemble(path, pieces, grid_of((600, 500)), CLASSES)
    assert "\n" not in str(caught.value)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["map.tif", "map.tif.aux.xml", "pieces"]
    assert path.read_bytes() == before


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError):
        assemble(tmp_path / "no" / "map.tif", cut(fields((20, 20)), tmp_path / "pieces"), grid_of((20, 20)), CLASSES)


def test_what_no_raster_can_be_is_refused():
    for fields_, rule in (
        ({"bands": ()}, "at least one band"),
        ({"bands": ("a",), "classes": NAMES}, "as many colours"),
        ({"bands": ("a", "b"), "classes": NAMES, "colours": COLOURS}, "has one band"),
        ({"bands": ("a",), "scale": 0}, "scale not 0"),
        ({"bands": ("a",), "classes": NAMES, "colours": COLOURS, "nodata": 2}, "stands for no class"),
        ({"bands": ("a",), "block": 100}, "multiple of 16"),
    ):
        with pytest.raises(ValueError, match=rule):
            Layout(**fields_)

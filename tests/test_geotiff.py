import json
import multiprocessing
import sys
import threading
import warnings

import numpy as np
import pytest
import rasterio
from affine import Affine
from fakes import GRID, numbers, write_raster
from odc.geo.geobox import GeoBox
from rasterio.errors import NotGeoreferencedWarning

from geomed.io.geotiff import NODATA, GeoTiff, MapWriter, write_map
from geomed.io.handles import Silence, _Handles, lent
from geomed.io.raster import Reader, Writer
from geomed.io.sampling import look_up
from geomed.io.tiff import needed_bytes
from geomed.windows import Window, cover

NAMES, COLOURS = ("maize", "grass & clover"), ((242, 169, 0), (139, 203, 107))


def test_reads_what_rasterio_reads_and_the_head(tmp_path):
    path = write_raster(tmp_path / "a.tif", numbers(0), bands=("B02", "B04", "B08"), nodata=0, units=(1e-4, -0.1))
    raster = GeoTiff.open(path)
    assert raster.grid == GRID
    assert raster.bands == ("B02", "B04", "B08")
    assert (raster.dtype, raster.nodata, raster.scales[0], raster.offsets[0]) == ("uint16", 0, 1e-4, -0.1)
    np.testing.assert_array_equal(raster.read(Window(3, 5, 7, 9), [3, 1]), numbers(0)[[2, 0], 3:10, 5:14])
    assert isinstance(raster, Reader)


def test_one_pixel_without_a_coordinate_system(tmp_path):
    grid = GeoBox((1, 1), Affine.identity(), None)
    raster = GeoTiff.open(write_raster(tmp_path / "a.tif", np.ones((1, 1, 1), np.float32), grid))
    assert raster.grid.crs is None
    assert raster.read(raster.whole).tolist() == [[[1.0]]]


def test_a_file_written_anew_is_read_anew(tmp_path):
    path = write_raster(tmp_path / "a.tif", numbers(0))
    GeoTiff.open(path).read(Window(0, 0, 1, 1))
    write_raster(path, numbers(7)[:2])
    assert GeoTiff.open(path).read(Window(0, 0, 1, 1)).ravel().tolist() == [701, 1701]


@pytest.mark.parametrize("options", [{}, {"tiled": True, "blockxsize": 16, "blockysize": 16}, {"BIGTIFF": "YES"}])
@pytest.mark.parametrize("lost", [1, 300, 6000, 11000])
def test_a_truncated_file_is_found_without_reading_it(tmp_path, options, lost):
    whole = write_raster(tmp_path / "whole.tif", numbers(0), bands=("B02", "B04", "B08"))
    path = tmp_path / "a.tif"
    with rasterio.open(whole) as file:
        profile, values = file.profile, file.read()
    with rasterio.open(path, "w", **{**profile, "tiled": False, **options}) as file:
        file.write(values)
        file.set_band_description(1, "B02")
    raster = GeoTiff.open(path)
    content = path.read_bytes()
    assert needed_bytes(path) == len(content)
    path.write_bytes(content[: len(content) - lost])
    with pytest.raises(ValueError, match=r"a\.tif: the file is truncated, by its directory it has \d+ bytes"):
        GeoTiff.open(path)
    with pytest.raises(ValueError, match=r"a\.tif: the file is truncated"):
        raster.read(raster.whole)


def test_a_damaged_block_is_named_when_it_is_read(tmp_path):
    path = tmp_path / "a.tif"
    profile = {"driver": "GTiff", "height": 40, "width": 48, "count": 3, "dtype": "uint16", "compress": "deflate"}
    with rasterio.open(path, "w", crs="EPSG:32631", transform=GRID.affine, **profile) as file:
        file.write(numbers(0))
    with rasterio.open(path) as file:
        offset = int(file.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1))
    content = bytearray(path.read_bytes())
    content[offset : offset + 40] = bytes(40)
    path.write_bytes(content)
    raster = GeoTiff.open(path)
    with pytest.raises(ValueError, match=r"a\.tif: the file cannot be read .*copy it again"):
        raster.read(raster.whole)


@pytest.mark.parametrize(
    ("content", "rule"),
    [(None, "there is no such file"), (b"", "cannot be opened"), (b"II*\0\x08\0\0\0", "cannot be opened")],
)
def test_what_is_no_raster_gets_one_line(tmp_path, content, rule):
    path = tmp_path / "a.tif"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rule) as caught:
        GeoTiff.open(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_complex_pixels_and_control_points_are_refused(tmp_path):
    with pytest.raises(ValueError, match="real numbers"):
        GeoTiff.open(write_raster(tmp_path / "c.tif", np.ones((1, 4, 4), np.complex64)))
    grid = GeoBox((4, 4), Affine.identity(), None)
    path = write_raster(tmp_path / "g.tif", np.ones((1, 4, 4), np.uint8), grid)
    with rasterio.open(path, "r+") as file:
        points = [rasterio.control.GroundControlPoint(row=r, col=c, x=c, y=-r) for r in (0, 3) for c in (0, 3)]
        file.gcps = (points, rasterio.crs.CRS.from_epsg(4326))
    with pytest.raises(ValueError, match="4 ground control points"):
        GeoTiff.open(path)


def test_a_window_outside_is_refused(tmp_path):
    raster = GeoTiff.open(write_raster(tmp_path / "a.tif", numbers(0)))
    with pytest.raises(ValueError, match="leaves the raster"):
        raster.read(Window(39, 0, 2, 2))


@pytest.mark.parametrize(
    "grid",
    [
        GeoBox((300, 270), Affine(10, 0, 500_000, 0, -10, 5_600_000), "EPSG:32631"),
        GeoBox((300, 270), Affine(8, 6, 500_000, 6, -8, 5_600_000), "EPSG:2154"),
        GeoBox((300, 270), Affine(1, 0, 7, 0, -1, 9), None),
    ],
    ids=["north up", "rotated", "no coordinate system"],
)
def test_a_map_written_in_any_order_comes_out_where_it_belongs(tmp_path, grid):
    rng = np.random.default_rng(0)
    classes = rng.choice([0, 1, NODATA], size=(300, 270))
    windows = list(cover((300, 270), size=96, margin=8))
    rng.shuffle(windows)
    path = tmp_path / "maps" / "map.tif"
    with MapWriter(path, grid, names=NAMES, colours=COLOURS) as writer:
        assert isinstance(writer, Writer)
        for _, keep in windows:
            writer.write(keep, classes[keep.slices])
        assert not path.exists()
    assert sorted(file.name for file in path.parent.iterdir()) == ["map.tif", "map.tif.aux.xml"]
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(1), classes)
        assert file.transform.almost_equals(grid.affine)
        assert (file.crs is None) if grid.crs is None else (file.crs.to_epsg() == grid.crs.to_epsg())
        assert (file.nodata, file.dtypes[0], file.compression.name) == (NODATA, "uint8", "deflate")
        assert file.block_shapes == [(256, 256)]
        assert [file.colormap(1)[index][:3] for index in range(2)] == list(COLOURS)
        assert json.loads(file.tags(1)["CLASS_NAMES"]) == list(NAMES)
    assert "<Category>grass &amp; clover</Category>" in path.with_name("map.tif.aux.xml").read_text()


def test_what_is_not_written_is_unknown(tmp_path):
    with MapWriter(tmp_path / "map.tif", GRID, names=NAMES, colours=COLOURS) as writer:
        writer.write(Window(2, 3, 1, 1), np.array([[1]]))
    with rasterio.open(tmp_path / "map.tif") as file:
        assert np.argwhere(file.read(1) != NODATA).tolist() == [[2, 3]]


def test_a_failed_map_leaves_the_old_one(tmp_path):
    path = tmp_path / "map.tif"
    write_map(path, np.zeros((40, 48), int), GRID, names=NAMES, colours=COLOURS)
    before = path.read_bytes()
    with (
        pytest.raises(ValueError, match="2 is no class"),
        MapWriter(path, GRID, names=NAMES, colours=COLOURS) as writer,
    ):
        writer.write(Window(0, 0, 1, 1), np.array([[2]]))
    assert path.read_bytes() == before
    assert not path.with_name("map.tif.part").exists()


def test_values_that_do_not_fit_are_refused(tmp_path):
    with MapWriter(tmp_path / "map.tif", GRID, names=NAMES, colours=COLOURS) as writer:
        with pytest.raises(ValueError, match="do not fit"):
            writer.write(Window(0, 0, 2, 2), np.zeros((2, 3), int))
        with pytest.raises(ValueError, match="do not fit"):
            writer.write(Window(39, 0, 2, 2), np.zeros((2, 2), int))
    with pytest.raises(ValueError, match="as many colours"):
        MapWriter(tmp_path / "b.tif", GRID, names=NAMES, colours=COLOURS[:1])


def test_looking_up_a_finer_raster_gives_all_its_pixels(tmp_path):
    fine = np.arange(64, dtype=np.int16).reshape(1, 8, 8)
    grid = GeoBox((8, 8), Affine(10, 0, 0, 0, -10, 0), "EPSG:32631")
    raster = GeoTiff.open(write_raster(tmp_path / "a.tif", fine, grid))
    coarse = GeoBox((4, 4), Affine(20, 0, 0, 0, -20, 0), "EPSG:32631")
    found = look_up(raster, 1, coarse, Window(1, 2, 2, 1), outside=-1)
    assert found.shape == (4, 2, 1)
    assert sorted(found[:, 0, 0].tolist()) == sorted(fine[0, 2:4, 4:6].ravel().tolist())


def test_looking_up_a_coarser_raster_repeats_it_and_marks_the_outside(tmp_path):
    grid = GeoBox((2, 2), Affine(20, 0, 0, 0, -20, 0), "EPSG:32631")
    raster = GeoTiff.open(write_raster(tmp_path / "a.tif", np.array([[[1, 2], [3, 4]]], np.uint8), grid))
    fine = GeoBox((4, 6), Affine(10, 0, -10, 0, -10, 0), "EPSG:32631")
    found = look_up(raster, 1, fine, Window(0, 0, 4, 6), outside=-7)
    assert found[0].tolist() == [[-7, 1, 1, 2, 2, -7]] * 2 + [[-7, 3, 3, 4, 4, -7]] * 2
    far = GeoBox((4, 6), Affine(10, 0, 9000, 0, -10, 0), "EPSG:32631")
    assert (look_up(raster, 1, far, Window(0, 0, 2, 2), outside=-7) == -7).all()


def test_as_many_files_stay_open_as_are_read_at_once(tmp_path, monkeypatch):
    path, opened, real = write_raster(tmp_path / "a.tif", numbers(0)), [], rasterio.open
    monkeypatch.setattr(rasterio, "open", lambda path: opened.append(path) or real(path))
    raster = GeoTiff.open(path)
    before = len(opened)

    def look():
        for row in range(40):
            np.testing.assert_array_equal(raster.read(Window(row, 0, 1, 48))[:, 0], numbers(0)[:, row])

    for _ in range(4):  # one after the other: they share the one handle
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert len(opened) == before
    with lent(raster.path) as first, lent(raster.path) as second:
        assert first is not second
    assert len(opened) == before + 1


def test_files_that_were_not_read_for_longest_are_closed(tmp_path):
    handles = _Handles(room=2)
    files = [rasterio.open(write_raster(tmp_path / f"{number}.tif", numbers(0))) for number in range(3)]
    for number in (0, 1, 0, 2):
        key = (str(number), (0, 0), 0)
        handles.give(key, handles.take(key) or files[number])
    assert [file.closed for file in files] == [False, True, False]
    assert handles.take(("1", (0, 0), 0)) is None
    assert handles.count == 2


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 of any fork beside threads
@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_process_reads_while_a_thread_of_its_parent_does(tmp_path):
    raster = GeoTiff.open(write_raster(tmp_path / "a.tif", numbers(0)))
    with lent(raster.path), multiprocessing.get_context("fork").Pool(1) as pool:
        read = pool.apply_async(raster.read, (raster.whole,)).get(timeout=60)
    np.testing.assert_array_equal(read, numbers(0))


def test_silence_ends_with_the_last_thread():
    quiet = Silence()
    quiet.__enter__()
    with quiet:
        warnings.warn("nowhere", NotGeoreferencedWarning, stacklevel=1)
    warnings.warn("nowhere", NotGeoreferencedWarning, stacklevel=1)
    quiet.__exit__()
    with pytest.warns(NotGeoreferencedWarning):
        warnings.warn("nowhere", NotGeoreferencedWarning, stacklevel=1)

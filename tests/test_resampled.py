"""Rasters on other grids, held against GDAL's warper and against arithmetic."""

import pickle

import numpy as np
import pytest
import rasterio
from affine import Affine
from fakes import GRID, write_raster
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.warp import reproject
from scipy.ndimage import gaussian_filter

from geomed.io.geotiff import GeoTiff
from geomed.io.raster import Reader
from geomed.io.resampled import Resampled, finer
from geomed.windows import Window, cover


def smooth(grid, bands=2):
    values = np.random.default_rng(0).normal(size=(bands, *grid.shape.yx))
    return (gaussian_filter(values, (0, 2, 2)) * 3000 + 5000).astype(np.uint16)


def around(crs, *, pixel=10.0, shape=(70, 90), turn=0.0):
    """A grid of a coordinate system about the middle of GRID."""
    east, north = GRID.crs.transformer_to_crs(crs)(np.array([500_240.0]), np.array([5_599_800.0]))
    centre = Affine.translation(east[0], north[0]) @ Affine.rotation(turn) @ Affine.scale(pixel, -pixel)
    return GeoBox(shape, centre @ Affine.translation(-shape[1] / 2, -shape[0] / 2), crs)


@pytest.mark.parametrize(
    ("onto", "tolerance"),
    [
        (around("EPSG:32632"), 4),
        (around("EPSG:4326", pixel=1e-4), 4),
        (around("EPSG:3857", pixel=15), 4),
        (around("EPSG:32631", turn=30), 1),
        (around("EPSG:32631", pixel=4), 1),
    ],
    ids=["next zone", "degrees", "Web Mercator", "turned", "finer"],
)
def test_values_are_those_of_gdals_bilinear_warper(tmp_path, onto, tolerance):
    values = smooth(GRID)
    resampled = Resampled.onto(GeoTiff.open(write_raster(tmp_path / "a.tif", values)), onto)
    expected = np.full((2, *onto.shape.yx), np.nan, np.float32)
    reproject(
        values.astype(np.float32),
        expected,
        src_transform=GRID.affine,
        src_crs="EPSG:32631",
        dst_transform=onto.affine,
        dst_crs=str(onto.crs),
        dst_nodata=np.nan,
        resampling=Resampling.bilinear,
        tolerance=0,
    )
    whole = Window(0, 0, *onto.shape.yx)
    found = resampled.read(whole)
    assert isinstance(resampled, Reader)
    assert found.dtype == np.float32
    known = np.isfinite(found) & np.isfinite(expected)
    assert known.sum() > 0.2 * known.size
    assert (np.isfinite(found) != np.isfinite(expected)).mean() < 0.005
    assert np.abs(found - expected)[known].max() < tolerance
    again = pickle.loads(pickle.dumps(resampled))  # noqa: S301
    for window, _ in cover(onto.shape.yx, size=32, margin=5):
        np.testing.assert_array_equal(again.read(window, [2])[0], found[1][window.slices])


def test_a_larger_pixel_is_the_mean_of_those_under_it(tmp_path):
    values = smooth(GRID)
    onto = GeoBox((20, 24), GRID.affine @ Affine.scale(2), GRID.crs)
    found = Resampled.onto(GeoTiff.open(write_raster(tmp_path / "a.tif", values)), onto).read(Window(0, 0, 20, 24))
    np.testing.assert_allclose(found, values.reshape(2, 20, 2, 24, 2).mean(axis=(2, 4)), rtol=1e-6)


def test_on_its_own_grid_nothing_changes_and_what_is_missing_spreads_no_further(tmp_path):
    values = smooth(GRID).astype(np.float64)
    values[0, 3, 4], values[1, 5, 6], values[0, 7, 8], values[1, 0, 0] = np.nan, -1.7e308, np.inf, -5
    raster = GeoTiff.open(write_raster(tmp_path / "a.tif", values, nodata=-1.7e308))
    found = Resampled.onto(raster, GRID, missing=-5).read(Window(0, 0, 40, 48))
    assert np.argwhere(np.isnan(found)).tolist() == [[0, 3, 4], [0, 7, 8], [1, 0, 0], [1, 5, 6]]
    np.testing.assert_array_equal(found[~np.isnan(found)], values[~np.isnan(found)].astype(np.float32))
    half = GeoBox((40, 48), GRID.affine @ Affine.translation(0.5, 0), GRID.crs)
    gone = np.isnan(Resampled.onto(raster, half, missing=-5).read(Window(0, 0, 40, 47)))
    assert np.argwhere(gone).tolist() == [[0, 3, 3], [0, 3, 4], [0, 7, 7], [0, 7, 8], [1, 0, 0], [1, 5, 5], [1, 5, 6]]


def test_outside_and_masked_is_missing(tmp_path):
    path = write_raster(tmp_path / "a.tif", smooth(GRID))
    with rasterio.open(path, "r+") as file:
        mask = np.full((40, 48), 255, np.uint8)
        mask[10, 11] = 0
        file.write_mask(mask)
    raster = GeoTiff.open(path)
    moved = GeoBox((40, 48), GRID.affine @ Affine.translation(-5, 0), GRID.crs)
    found = Resampled.onto(raster, moved).read(Window(0, 0, 40, 48))
    assert np.isnan(found[:, :, :5]).all()
    assert np.argwhere(np.isnan(found[0, :, 5:])).tolist() == [[10, 11]]
    far = GeoBox((40, 48), GRID.affine @ Affine.translation(500, 0), GRID.crs)
    assert np.isnan(Resampled.onto(raster, far).read(Window(0, 0, 2, 2))).all()


def test_codes_are_those_under_the_centre(tmp_path):
    codes = np.random.default_rng(0).integers(1, 12, (1, 40, 48)).astype(np.uint8)
    raster = GeoTiff.open(write_raster(tmp_path / "a.tif", codes))
    onto = around("EPSG:32632")
    found = Resampled.onto(raster, onto, outside=0).read(Window(0, 0, *onto.shape.yx))[0]
    expected = np.zeros(onto.shape.yx, np.uint8)
    reproject(
        codes[0],
        expected,
        src_transform=GRID.affine,
        src_crs="EPSG:32631",
        dst_transform=onto.affine,
        dst_crs="EPSG:32632",
        resampling=Resampling.nearest,
        tolerance=0,
    )
    assert (found != expected).mean() < 0.005  # those on an edge to within the error allowed
    assert found.dtype == np.uint8
    split = finer(raster, around("EPSG:32632", pixel=20, shape=(20, 30)), outside=0)
    assert split.grid.shape.yx == (40, 60)
    assert (
        Resampled.onto(raster, GeoBox((4, 4), Affine(10, 0, 0, 0, -10, 0), GRID.crs), outside=3).read(
            Window(0, 0, 4, 4)
        )
        == 3
    ).all()


def test_a_map_that_is_cut_at_the_date_line_is_unknown_there_and_right_elsewhere(tmp_path):
    world = GeoBox((180, 360), Affine(1, 0, -180, 0, -1, 90), "EPSG:4326")
    longitudes = np.broadcast_to(np.arange(360) - 179.5, (1, 180, 360)).astype(np.float32)
    raster = GeoTiff.open(write_raster(tmp_path / "a.tif", longitudes, world))
    fiji = GeoBox((30, 60), Affine(20_000, 0, 100_000, 0, -20_000, 8_000_000), "EPSG:32760")
    found = Resampled.onto(raster, fiji).read(Window(0, 0, 30, 60))[0]
    known = np.isfinite(found)
    assert 0.8 < known.mean() < 1
    assert (np.abs(found[known]) > 170).all()


def test_what_cannot_be_brought_together_is_refused(tmp_path):
    bare = write_raster(tmp_path / "a.tif", smooth(GRID), GeoBox((40, 48), GRID.affine, None))
    with pytest.raises(ValueError, match=r"a\.tif: to bring it to another grid both must have a coordinate system"):
        Resampled.onto(GeoTiff.open(bare), GRID)

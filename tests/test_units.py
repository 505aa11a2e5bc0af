"""Stored numbers become the same values, to the bit, as by the formula written down plainly."""

import numpy as np
import pytest
import rasterio
from fakes import GRID, numbers, write_raster
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp

from geomed.data.image import Image, ImageFiles
from geomed.data.units import in_units, observed, stored
from geomed.io.geotiff import GeoTiff
from geomed.windows import Window

WHOLE = Window(0, 0, 40, 48)
TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "uint64", "float32", "float64")


def plainly(values, nodata, scale, offset):
    there = np.isfinite(values).all(axis=0)
    for number in nodata:
        if number is not None:
            there &= (values != number).all(axis=0)
    factor, summand = (np.asarray(value, np.float32).reshape(-1, 1, 1) for value in (scale, offset))
    made = np.where(there, values, 0).astype(np.float32) * factor + summand
    made[:, ~there] = 0
    return there, made


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("nodata", [(), (0.0,), (None, 7.0), (np.nan, 3.5), (0, -1.0), (0.0, 200)])
@pytest.mark.parametrize(
    ("scale", "offset"), [(1e-4, -0.1), (1, 0), (-0.5, 0), ((1, 2, 3), (0, 0, 1)), (0, 2), (1, -0.0)]
)
def test_values_are_those_of_the_plain_formula(dtype, nodata, scale, offset):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 12, (3, 20, 30)).astype(dtype)
    if np.issubdtype(values.dtype, np.floating):
        values[rng.random(values.shape) < 0.05] = np.nan
        values[rng.random(values.shape) < 0.05] = -0.0
        values[0, 0, :4] = np.inf, -np.inf, np.finfo(dtype).max, 3.5
    there = observed(values, nodata)
    expected, made = plainly(values, nodata, scale, offset)
    np.testing.assert_array_equal(there, expected)
    with np.errstate(over="ignore"):
        found = in_units(values, there, scale=scale, offset=offset)
    assert found.dtype == np.float32
    assert found.tobytes() == made.tobytes()


def test_a_nodata_that_the_type_cannot_hold_means_nothing():
    values = np.zeros((1, 2, 2), np.uint8)
    assert observed(values, (-9999.0, 256, np.inf, -np.inf, 0.5, np.nan)).all()
    assert observed(values.astype(np.float32), (1e300, -1e300)).all()
    assert not observed(values, (0,)).any()


def test_a_nodata_outside_of_float32_does_not_overflow():
    values = np.full((2, 3, 3), -1.7e308)
    values[:, 0] = 5
    there = observed(values, (-1.7e308,))
    assert in_units(values, there, scale=2, offset=1)[0].tolist() == [[11] * 3, [0] * 3, [0] * 3]


def test_files_of_several_types_are_read_together(tmp_path):
    kinds = ("uint16", "int16", "float32")
    paths = [write_raster(tmp_path / f"{kind}.tif", numbers(0)[:1].astype(kind)) for kind in kinds]
    read, there = stored(tuple((GeoTiff.open(path), (1,)) for path in paths), WHOLE, 5)
    assert read.dtype == np.result_type(*kinds)
    for plane in read:
        np.testing.assert_array_equal(plane, numbers(0)[0])
    np.testing.assert_array_equal(there, numbers(0)[0] != 5)


def scene(path, bands=("B02", "B04", "B08"), **fields):
    opened = ImageFiles.open(Image(name="a", path=str(path), scale=1, offset=0, **fields), bands)
    return opened.read(WHOLE)


@pytest.mark.parametrize("kind", ["inside", "beside", "shared by files"])
def test_a_mask_band_says_what_is_no_observation(tmp_path, kind):
    mask = np.full((40, 48), 255, np.uint8)
    mask[2, 3] = 0
    if kind == "shared by files":
        path = tmp_path / "{band}.tif"
        files = [write_raster(tmp_path / f"B0{n}.tif", numbers(0)[:1]) for n in (2, 4, 8)]
    else:
        path = write_raster(tmp_path / "a.tif", numbers(0), bands=("B02", "B04", "B08"))
        files = [path]
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=kind == "inside"),
        rasterio.open(files[-1], "r+") as file,
    ):
        file.write_mask(mask)
    found = scene(path)
    assert np.argwhere(~found["valid"]).tolist() == [[2, 3]]
    assert (found["values"][:, 2, 3] == 0).all()
    assert GeoTiff.open(files[-1]).mask(Window(0, 0, 3, 4), [1])[2].tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("fourth", "named", "wanted", "holes"),
    [
        ("", ("B02", "B04", "B08", "alpha"), 3, 1),
        ("alpha", None, 3, 1),
        ("", ("B02", "B04", "B08", "B8A"), 3, 0),
        ("B8A", None, 4, 0),
    ],
    ids=["alpha", "described alpha", "named as a band", "described as a band"],
)
def test_an_alpha_band_is_transparency_unless_it_is_called_otherwise(tmp_path, fourth, named, wanted, holes):
    values = (numbers(0, bands=4) % 200 + 1).astype(np.uint8)
    values[3, 2, 3] = 0
    bands = () if named else ("B02", "B04", "B08", fourth)
    path = write_raster(tmp_path / "a.tif", values, bands=bands)
    with rasterio.open(path) as file:
        assert file.colorinterp[3] == ColorInterp.alpha  # GDAL's own reading of any four bands of bytes
    found = scene(path, ("B02", "B04", "B08", "B8A")[:wanted], band_names=named)
    assert (~found["valid"]).sum() == holes
    assert found["valid"][2, 3] == (holes == 0)


def test_a_file_without_mask_reads_none(tmp_path):
    raster = GeoTiff.open(
        write_raster(tmp_path / "a.tif", numbers(0), GeoBox((40, 48), GRID.affine, GRID.crs), nodata=0)
    )
    assert (raster.masks, raster.alpha, raster.mask(WHOLE, [1])) == (0, None, None)

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest
import torch

from geomed.bands import SENTINEL2, band_indices, band_name
from geomed.pixels import Pixels, day_of_year
from geomed.tokens import Tokens
from geomed.windows import Window, cover


def test_day_of_year_equals_the_calendar():
    days = torch.arange(-30_000, 60_000, 7)
    start = dt.date(1970, 1, 1)
    expected = [(start + dt.timedelta(int(day))).timetuple().tm_yday for day in days]
    assert day_of_year(days).tolist() == expected


@pytest.mark.parametrize("seed", range(60))
def test_kept_windows_partition_the_raster(seed):
    draw = np.random.default_rng(seed)
    height, width, size = (int(draw.integers(1, 60)) for _ in range(3))
    margin = int(draw.integers(0, (size - 1) // 2 + 1))
    seen = np.zeros((height, width), int)
    for read, keep in cover((height, width), size=size, margin=margin):
        seen[keep.slices] += 1
        assert read.row <= keep.row
        assert keep.row + keep.height <= read.row + read.height <= height
        assert read.column <= keep.column
        assert keep.column + keep.width <= read.column + read.width <= width
        assert (read.height, read.width) == (min(size, height), min(size, width))
        assert read.row == 0 or keep.row - read.row >= margin
        assert read.column == 0 or keep.column - read.column >= margin
        assert keep.within(read) == Window(keep.row - read.row, keep.column - read.column, keep.height, keep.width)
    assert (seen == 1).all()


@pytest.mark.parametrize(
    ("alias", "name"), [("B2", "B02"), ("b02", "B02"), ("blue", "B02"), ("nir08", "B8A"), ("B12", "B12")]
)
def test_bands_have_aliases(alias, name):
    assert band_name(alias) == name
    assert SENTINEL2[name].name == name


def test_bands_are_found_by_name():
    assert band_indices(["B08", "B04"], ["B02", "B04", "B08"], where="a.tif") == [2, 1]
    with pytest.raises(ValueError, match=r"a\.tif: band B11 is missing, there are B02"):
        band_indices(["B11"], ["B02"], where="a.tif")
    with pytest.raises(ValueError, match=r"a\.tif: band names must be unique, B02 stands twice"):
        band_indices(["B02"], ["B02", "B02"], where="a.tif")


SERIES = torch.zeros(2, 3, 4, 5, 6)
DAYS = torch.zeros(2, 3, dtype=torch.long)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Pixels(values=torch.zeros(2, 3)), "values must be"),
        (lambda: Pixels(values=SERIES), "a series needs its dates"),
        (lambda: Pixels(values=SERIES, days=DAYS[:, :2]), r"days must be \[B, T\]"),
        (lambda: Pixels(values=SERIES, days=DAYS.float()), "days must be whole numbers"),
        (lambda: Pixels(values=SERIES, days=DAYS, valid=DAYS), "valid must be boolean"),
        (lambda: Pixels(values=SERIES, days=DAYS, valid=DAYS[:1].bool()), "valid must be"),
        (lambda: Tokens(torch.zeros(1, 7, 2), (2, 3), 2), "prefix \\+ grid must count the tokens"),
        (lambda: band_name("B13"), "no Sentinel-2 band is called 'B13'"),
        (lambda: list(cover((4, 4), size=4, margin=2)), "twice the margin"),
        (lambda: list(cover((0, 4), size=4)), "at least one pixel"),
    ],
)
def test_wrong_values_are_told(make, told):
    with pytest.raises(ValueError, match=told):
        make()

"""Real files of GEOMED_REAL_DATA as `geomed map` meets them: odd and broken rasters, JPEG 2000, other grids."""

import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import rasterio

from geomed.data.area import Masks
from geomed.data.mapped_scenes import Settings, find_scenes
from geomed.windows import Window, cover

DATA = Path(os.environ.get("GEOMED_REAL_DATA", "../shared/data"))
SCENES = DATA / "scenes"
ODD = SCENES / "odd_rasters"
RULES = {
    "rasterio__corrupt": "the file is truncated",
    "riocogeo__slc": "pixels must be real numbers",
    "riotiler__cog_gcps": "ground control points, not on a grid",
}
BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not ODD.is_dir(), reason=f"no odd rasters in {ODD}: name the parent in GEOMED_REAL_DATA"),
]


def find(text, **fields):
    return find_scenes([str(text)], None, None, Settings(**{"scale": 1.0, "offset": 0.0, **fields}))


def look(scene):
    """(share that is valid, range of the values) over all of a scene, or the line that refuses it."""
    try:
        opened = scene.open()
        valid, low, high, windows = 0, np.inf, -np.inf, 0
        for window, _ in cover(opened.grid.shape.yx, size=1024):
            read = opened.read(window)
            assert read["values"].dtype == np.float32
            assert np.isfinite(read["values"]).all()
            assert not read["values"][:, ~read["valid"]].any()
            valid, windows = valid + int(read["valid"].sum()), windows + read["valid"].size
            if read["valid"].any():
                seen = read["values"][:, read["valid"]]
                low, high = min(low, float(seen.min())), max(high, float(seen.max()))
    except ValueError as error:
        return str(error)
    return valid / windows, low, high


@pytest.mark.parametrize("path", sorted(ODD.glob("*.tif")), ids=lambda path: path.stem)
def test_an_odd_raster_gives_values_or_one_line(path):
    with rasterio.open(path) as file:
        count, described, declared = file.count, file.descriptions, (file.scales[0], file.offsets[0])
        alpha = "alpha" in [meaning.name for meaning in file.colorinterp]
    names = tuple(
        text or ("alpha" if alpha and number == count else f"b{number}") for number, text in enumerate(described, 1)
    )
    bands = tuple(name for name in names if name != "alpha")
    units = {"scale": None, "offset": None} if declared != (1, 0) else {}
    (scene,) = find(path, bands=bands, band_names=None if any(described) else names, **units)
    found = look(scene)
    if isinstance(found, str):
        assert RULES[path.stem] in found
        assert "\n" not in found
        assert "; " in found
        return
    assert path.stem not in RULES
    share, low, high = found
    assert low <= high or share == 0
    expected = {
        "rasterio__all-nodata": 0,
        "rasterio__rotated": 1,
        "riotiler__inverted_lat": 0,
        "riocogeo__image_missing_nodata": 1,
    }
    if path.stem in expected:
        assert share == expected[path.stem]
    if path.stem in {"rasterio__alpha", "rasterio__RGBA.uint16", "riotiler__cog_rgb_mask", "rasterio__goes"}:
        assert 0 < share < 1


def test_tiles_of_jpeg2000_without_coordinate_systems():
    path = SCENES / "s2_l1c_19UDP_jp2" / "{band}.jp2"
    (one,) = find(path, bands=BANDS[1:8], nodata=0)
    assert one.name == "s2_l1c_19UDP_jp2"
    opened = one.open()
    assert opened.grid.crs is None
    assert "no coordinate system" in opened.notes
    share, low, high = look(one)
    assert 0.5 < share <= 1
    assert 0 < low < high < 30_000
    for reproject in (False, True):
        told = look(find(path, bands=BANDS, reproject=reproject)[0])
        assert ("both must have a coordinate system" if reproject else "must have one coordinate system") in told


def test_years_of_one_row_more_are_refused_or_brought_together(tmp_path):
    for year, name in ((2009, "20090818"), (2018, "20180716")):
        (tmp_path / f"naip_{year}0101.tif").symlink_to(
            (SCENES / "naip_north_dakota" / f"m_4709963_se_14_1_{name}.tif").resolve()
        )
    fields = {"bands": ("B02", "B03", "B04", "B08"), "series": True, "masks": Masks(scl=None), "nodata": 0}
    fields["band_names"] = ("red", "green", "blue", "nir")
    (scene,) = find(tmp_path, **fields)
    plain, onto = look(scene), find(tmp_path, reproject=True, **fields)[0].open()
    read = onto.read(Window(100, 100, 200, 200))
    assert read["values"].shape == (2, 4, 200, 200)
    assert read["valid"].mean() > 0.9
    assert isinstance(plain, tuple) or "must have one" in plain


def test_other_archives_open():
    (stack,) = find(
        SCENES / "ftw_s2_two_dates" / "inference-img.tif",
        bands=("B04", "B08"),
        series=True,
        masks=Masks(scl=None),
        band_names=tuple(
            f"{date} {band}" for date in ("2020-04-01", "2020-08-01") for band in ("B04", "B03", "B02", "B08")
        ),
    )
    read = stack.open().read(Window(100, 100, 64, 64))
    assert read["values"].shape == (2, 2, 64, 64)
    aerial = find(
        SCENES / "nb_aerial" / "*_clipped_1m_*.tif", bands=("red", "green"), band_names=("red", "green", "blue")
    )
    assert [isinstance(look(scene), tuple) for scene in aerial] == [True, True]
    tiles = find(SCENES / "terramesh_tiles" / "*" / "S2L1C.tif", bands=BANDS[:8], band_names=BANDS)
    zones = defaultdict(list)
    for tile in tiles:
        zones[str(tile.open().grid.crs)].append(tile.name)
    assert {name for names in zones.values() for name in names} == {
        f"{folder.name}_S2L1C" for folder in (SCENES / "terramesh_tiles").iterdir() if folder.is_dir()
    }
    assert len(zones) == 3
    bands = find(SCENES / "s2_l1c_rachel_carson" / "*_{band}.tif", bands=BANDS[:8])
    assert [scene.name for scene in bands] == ["2018-10-13_S2B_L1C"]

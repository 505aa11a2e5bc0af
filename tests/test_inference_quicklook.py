import numpy as np
import pytest
from affine import Affine
from matplotlib.image import imread
from odc.geo.geobox import GeoBox

from geomed.inference import quicklook as module
from geomed.inference.quicklook import class_shares, quicklook
from geomed.io.cog import Layout, assemble, write_piece
from geomed.io.geotiff import write_map
from geomed.palette import palette
from geomed.windows import Window

NAMES = ("maize", "5 $ a $x_{ton", "wheat\nspring", "日本")
COLOURS = palette(NAMES)
UTM = Affine(10, 0, 500_000, 0, -10, 5_600_000)


def make(folder, values, affine=UTM, crs="EPSG:32631", names=NAMES):
    path = folder / "map.tif"
    write_piece(folder / "piece", values[None])
    layout = Layout(bands=("class",), classes=names, colours=palette(names))
    assemble(path, [(folder / "piece", Window(0, 0, *values.shape))], GeoBox(values.shape, affine, crs), layout)
    return path


def look(path, folder, names=NAMES, **options):
    out = folder / "map.png"
    quicklook(path, out, names=names, colours=palette(names), title="A map of $ and more", **options)
    return (imread(out)[..., :3] * 255).round().astype(np.uint8)


def count(picture, colour):
    return int((picture == np.array(colour)).all(-1).sum())


def test_shares_are_counted_by_blocks(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.choice(np.array([0, 1, 3, 255], np.uint8), (1100, 700))
    found = class_shares(make(tmp_path, values), 4)
    np.testing.assert_array_equal(found, [(values == number).sum() for number in range(4)])
    with pytest.raises(ValueError, match="3 is no class, they are 0 to 2 and 255"):
        class_shares(tmp_path / "map.tif", 3)


def test_the_picture_shows_what_the_map_holds(tmp_path):
    values = np.zeros((1000, 900), np.uint8)
    values[500:] = 1
    values[:, 675:] = 255
    picture = look(make(tmp_path, values), tmp_path)
    assert picture.shape[1] <= 1200
    shown = [count(picture, colour) for colour in COLOURS]
    assert shown[0] == pytest.approx(shown[1], rel=0.02)
    assert shown[0] > 100_000
    assert shown[2] == shown[3] == 0
    before = (tmp_path / "map.png").read_bytes()
    look(tmp_path / "map.tif", tmp_path, counts=class_shares(tmp_path / "map.tif", 4))
    assert (tmp_path / "map.png").read_bytes() == before
    assert sorted(one.name for one in tmp_path.glob("map.png*")) == ["map.png"]


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (60, 70)])
@pytest.mark.parametrize("crs", [None, "EPSG:32631"])
def test_any_shape_has_a_picture(tmp_path, shape, crs):
    picture = look(make(tmp_path, np.zeros(shape, np.uint8), crs=crs), tmp_path)
    assert picture.shape[1] <= 1200
    assert picture.shape[0] <= 1300
    assert count(picture, COLOURS[0]) > 0


def test_a_map_without_overviews_and_one_without_a_class(tmp_path):
    path = tmp_path / "map.tif"
    grid = GeoBox((900, 1000), UTM, "EPSG:32631")
    write_map(path, np.full((900, 1000), 255), grid, names=NAMES, colours=COLOURS)
    picture = look(path, tmp_path)
    assert [count(picture, colour) for colour in COLOURS] == [0, 0, 0, 0]


@pytest.mark.parametrize(("shape", "names"), [((400, 400), 20), ((400, 400), 200), ((300, 1000), 200)])
def test_many_classes_fit(tmp_path, shape, names):
    names = tuple(f"class {number} of a very long name that goes on and on" for number in range(names))
    values = np.random.default_rng(0).integers(0, len(names), shape).astype(np.uint8)
    picture = look(make(tmp_path, values, names=names), tmp_path, names)
    assert max(picture.shape) <= 1200
    edges = np.concatenate([picture[:8].ravel(), picture[-8:].ravel(), picture[:, -8:].ravel()])
    assert (edges == 255).all()


def test_rare_classes_are_told_together():
    pixels = np.arange(100, 0, -1)
    pixels[3] = 0
    entries = module._entries([f"c{number}" for number in range(100)], palette([f"c{n}" for n in range(100)]), pixels)
    assert [one.name for one in entries[:4]] == ["c0", "c1", "c2", "c4"]
    assert (len(entries), entries[-1].name) == (40, "60 more classes")
    assert sum(one.share for one in entries) == pytest.approx(1)


@pytest.mark.parametrize(
    ("affine", "crs", "across", "down", "north"),
    [
        (UTM, "EPSG:32631", 10.004, 10.004, (0, 1)),
        (Affine(8, 6, 500_000, 6, -8, 5_600_000), "EPSG:32631", 10.004, 10.004, (0.6, 0.8)),
        (Affine(10, 0, 500_000, 0, 10, 5_600_000), "EPSG:32631", 10.004, 10.004, (0, -1)),
        (Affine(1e-4, 0, 5, 0, -1e-4, 60), "EPSG:4326", 5.58, 11.14, (0, 1)),
        (Affine(10, 0, 0, 0, -10, 8_399_738), "EPSG:3857", 5.02, 5.0, (0, 1)),
    ],
    ids=["utm", "turned", "south up", "degrees", "mercator"],
)
def test_metres_are_those_on_the_ground(affine, crs, across, down, north):
    ground = module._ground(GeoBox((10, 10), affine, crs))
    assert (ground.across, ground.down) == pytest.approx((across, down), rel=2e-3)
    assert ground.north == pytest.approx(north, abs=0.02)


def test_pixels_are_as_high_as_on_the_ground_and_bars_are_round():
    grid = GeoBox((1000, 1000), Affine(1e-4, 0, 5, 0, -1e-4, 60), "EPSG:4326")
    ground = module._ground(grid)
    high, wide = module._size(grid, ground, 800)
    assert high == 800
    assert wide == pytest.approx(400, abs=4)
    bar = module._bar(grid, ground, wide)
    assert bar.label in {"1 km", "2 km", "500 m"}
    assert 40 <= bar.length <= 220
    assert module._ground(GeoBox((10, 10), Affine.identity(), None)) is None


def test_names_and_colours_must_match(tmp_path):
    with pytest.raises(ValueError, match="as many colours"):
        quicklook(tmp_path / "a.tif", tmp_path / "a.png", names=NAMES, colours=COLOURS[:1], title="")
    with pytest.raises(ValueError, match="there is no such file"):
        quicklook(tmp_path / "a.tif", tmp_path / "a.png", names=NAMES, colours=COLOURS, title="")

import pickle

import numpy as np
import pytest
from fakes import numbers, write_pastis
from odc.geo.geobox import GeoBox

from geomed.data.pastis import CLASSES, Pastis
from geomed.data.source import IGNORE
from geomed.io.dates import date_of_day


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write_pastis(tmp_path_factory.mktemp("pastis"))


def test_official_folds_and_all_pixels(archive):
    source = Pastis(root=str(archive))
    source.prepare()
    assert len(source.classes) == 19
    assert [len(source.split(part)) for part in ("train", "val", "test", "predict")] == [108, 36, 36, 36]
    assert [scene.name for scene in source.scenes()] == ["10001", "10002", "10003", "10004", "10005"]
    assert {int(source.split("train")[index]["scene"]) for index in range(0, 108, 36)} == {0, 1, 2}
    counted = np.zeros((128, 128), int)
    dataset = pickle.loads(pickle.dumps(source.split("val")))  # noqa: S301  (what a worker process does)
    for index in range(len(dataset)):
        sample = dataset[index]
        row, column = sample["read"].tolist()[:2]
        rows, columns = np.nonzero(sample["labels"].numpy() != IGNORE)
        counted[rows + row, columns + column] += 1
    assert (counted[:100] == 1).all()
    assert (counted[:, :100] == 1).all()
    assert (counted[100:, 100:] == 0).all()


def test_a_sample_holds_reflectance_dates_and_classes(archive):
    sample = Pastis(root=str(archive), bands=("B8A", "B02"), window=128).split("test")[0]
    assert [date_of_day(day).isoformat() for day in sample["days"].tolist()] == [
        "2018-09-24",
        "2018-10-19",
        "2019-01-03",
    ]
    expected = (numbers(2, (128, 128), 10)[[7, 0]].astype(np.int64) + 5) * 1e-4
    np.testing.assert_allclose(sample["values"][2], expected, rtol=1e-6)
    assert sample["valid"].all()
    assert int(sample["scene"]) == 4
    labels = sample["labels"].numpy()
    assert CLASSES[labels[0, 0]] == "corn"
    assert labels[0, 127] == 0
    assert (labels[100:, 100:] == IGNORE).all()


def test_patches_lie_in_the_zone_of_their_tile(archive):
    grid = Pastis(root=str(archive)).scenes()[0].grid
    assert isinstance(grid, GeoBox)
    assert str(grid.crs) == "EPSG:32631"
    assert (grid.affine.c, grid.affine.f) == pytest.approx((505_000, 5_001_280), abs=10)


def test_dates_are_brought_into_order(tmp_path):
    write_pastis(tmp_path, dates=(20190103, 20180924))
    sample = Pastis(root=str(tmp_path)).split("val")[0]
    assert date_of_day(int(sample["days"][0])).isoformat() == "2018-09-24"
    assert sample["values"][0, 0, 0, 0].item() == pytest.approx((100 + 1 + 4) * 1e-4)


def test_a_missing_archive_and_folds_that_overlap_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"neither a folder PASTIS-R nor PASTIS-R\.zip"):
        Pastis(root=str(tmp_path)).scenes()
    with pytest.raises(ValueError, match="each in one part"):
        Pastis(train=(1, 2), val=(2,))
    with pytest.raises(ValueError, match="band B01 is missing"):
        Pastis(bands=("B01",))
    with pytest.raises(ValueError, match="twice the margin"):
        Pastis(window=8, margin=4)


@pytest.mark.parametrize("spoil", ["truncated", "missing", "shape"])
def test_an_array_that_is_not_whole_is_named(tmp_path, spoil):
    path = write_pastis(tmp_path) / "PASTIS-R" / "DATA_S2" / "S2_10002.npy"
    if spoil == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif spoil == "missing":
        path.unlink()
    else:
        np.save(path, np.zeros((2, 10, 128, 128), np.int16))
    with pytest.raises(ValueError, match=r"S2_10002\.npy: .*unpack the archive again") as caught:
        Pastis(root=str(tmp_path)).prepare()
    assert "\n" not in str(caught.value)

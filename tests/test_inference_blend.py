"""Windows, weights and blending: nothing is lost, nothing counts twice, and no seam is left."""

import numpy as np
import pytest
import torch
from affine import Affine
from odc.geo.geobox import GeoBox

from geomed.inference.plan import Axis, Plan, Tiling
from geomed.inference.reading import Meter
from geomed.inference.stream import blend
from geomed.inference.worker import turned

rng = np.random.default_rng(0)
SHAPES = [(1, 1), (1, 90), (63, 64), (64, 64), (65, 64), (129, 50), (150, 233)]
TILINGS = [
    Tiling(size=64, overlap=16, margin=4, rows=60, columns=100),
    Tiling(size=64, overlap=16, margin=4, blend="linear", rows=60, columns=100),
    Tiling(size=64, overlap=16, margin=8, rows=100, columns=60),
    Tiling(size=64, overlap=9, margin=4, blend="none", rows=30, columns=30),
    Tiling(size=64, overlap=50, margin=4, rows=40, columns=1000),
    Tiling(size=64, overlap=0, rows=1, columns=1),
]


class Array:
    """A scene in memory."""

    name, pointwise, days, notes = "array", True, (), ()

    def __init__(self, values, valid=None):
        self.values = values
        self.valid = np.ones(values.shape[-2:], dtype=bool) if valid is None else valid
        self.grid = GeoBox(values.shape[-2:], Affine.identity(), None)
        self.windows = []

    def read(self, window):
        self.windows.append(window)
        rows, columns = window.slices
        return {"values": self.values[..., rows, columns], "valid": self.valid[rows, columns]}


class Gaps(Array):
    """Of windows that begin in an odd row nothing comes."""

    pointwise = False

    def read(self, window):
        rows, columns = window.slices
        valid = np.full((1, window.height, window.width), window.row % 2 == 0)
        return {"values": self.values[None, :, rows, columns], "valid": valid, "days": np.zeros(1, dtype=np.int64)}


class Dates(Array):
    """A series in memory, whose windows have different dates."""

    pointwise = False

    def read(self, window):
        rows, columns = window.slices
        count = 1 + (window.row + window.column) % len(self.values)
        values = self.values[:count, :, rows, columns]
        valid = np.broadcast_to(self.valid[rows, columns], (count, *values.shape[-2:]))
        return {"values": values, "valid": valid, "days": np.arange(count)}


def mapped(scene, run, plan, tiles=None, **options):
    """Scores [K, H, W] of all pixels and where they are valid, NaN where nothing came."""
    shape = tuple(scene.grid.shape)
    scores, valid, seen = None, np.zeros(shape, dtype=bool), np.zeros(shape, dtype=int)
    for part in blend(scene, run, plan, plan.tiles if tiles is None else tiles, **options):
        keep = part.tile.keep
        rows = slice(keep.row + part.rows[0], keep.row + part.rows[1])
        columns = slice(keep.column, keep.column + keep.width)
        if part.scores is not None:
            scores = np.full((len(part.scores), *shape), np.nan, dtype=np.float32) if scores is None else scores
            scores[:, rows, columns] = part.scores
        valid[rows, columns] = part.valid
        seen[rows, columns] += 1
    return scores, valid, seen


def identity(batch):
    return batch["values"]


def convolution(channels=3, classes=4):
    """Treats every place alike and sees three pixels far."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(channels, 6, 5, padding=2), torch.nn.ReLU(), torch.nn.Conv2d(6, classes, 3, padding=1)]
    return torch.nn.Sequential(*layers).requires_grad_(requires_grad=False)


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 100, 127, 128, 129, 1000])
def test_weights_add_up_to_one_at_every_pixel(tiling, length):
    axis = Axis.of(length, tiling)
    total = np.zeros(length)
    for start, weights in zip(axis.starts, axis.weights, strict=True):
        assert 0 <= start <= length - axis.size
        total[start : start + axis.size] += weights
    assert np.abs(total - 1).max() < 1e-6
    shared = [a + axis.size - b for a, b in zip(axis.starts[:-1], axis.starts[1:], strict=True)]
    assert all(each >= tiling.overlap for each in shared)
    if tiling.blend != "none":
        for number in range(1, len(axis.starts)):
            assert not axis.weights[number][: tiling.context].any()
            assert not axis.weights[number - 1][axis.size - tiling.context :].any()


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_super_tiles_partition_the_raster(tiling, shape):
    plan = Plan.of(shape, tiling)
    seen = np.zeros(shape, dtype=int)
    for number, tile in enumerate(plan.tiles):
        assert tile.number == number
        seen[tile.keep.slices] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_come_back(tiling, shape):
    values = rng.integers(0, 10_000, (3, *shape)).astype(np.float32)
    scores, valid, seen = mapped(Array(values), identity, Plan.of(shape, tiling), batch_size=3)
    assert (seen == 1).all()
    assert valid.all()
    assert np.array_equal(scores.round(), values)
    if tiling.blend == "none":
        assert np.array_equal(scores, values)


@pytest.mark.parametrize("tiling", TILINGS[:5])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_that_treats_places_alike_maps_as_if_it_saw_all_at_once(tiling, shape):
    values = rng.random((3, *shape), dtype=np.float32)
    network = convolution()
    scores, _, _ = mapped(Array(values), lambda batch: network(batch["values"]), Plan.of(shape, tiling), batch_size=4)
    whole = network(torch.from_numpy(values)[None])[0].numpy()
    assert np.abs(scores - whole).max() < 1e-6


@pytest.mark.parametrize("tiling", TILINGS)
def test_super_tiles_alone_give_the_bytes_of_all_together(tiling):
    shape = (150, 233)
    values = rng.random((3, *shape), dtype=np.float32)
    network, plan = convolution(), Plan.of(shape, tiling)

    def run(batch):
        return network(batch["values"])

    together, _, _ = mapped(Array(values), run, plan, batch_size=3)
    alone = np.full_like(together, np.nan)
    for tile in reversed(plan.tiles):
        scores, _, _ = mapped(Array(values), run, plan, [tile], batch_size=3)
        rows, columns = tile.keep.slices
        alone[:, rows, columns] = scores[:, rows, columns]
    assert np.array_equal(alone, together)


def test_random_sizes_windows_and_overlaps():
    draw = np.random.default_rng(7)
    network = convolution()
    for _ in range(25):
        shape = tuple(int(side) for side in draw.integers(1, 140, 2))
        size = int(draw.integers(12, 80))
        overlap = int(draw.integers(8, max(9, size - 1)))
        tiling = Tiling(
            size=size,
            overlap=overlap,
            margin=int(draw.integers(4, overlap // 2 + 1)),
            rows=int(draw.integers(1, 100)),
            columns=int(draw.integers(1, 100)),
        )
        values = draw.random((3, *shape), dtype=np.float32)
        valid = draw.random(shape) < draw.choice([0.0, 0.02, 0.9])
        scores, told, seen = mapped(
            Array(values, valid),
            lambda batch: network(batch["values"]),
            Plan.of(shape, tiling),
            batch_size=int(draw.integers(1, 6)),
            readers=int(draw.integers(1, 4)),
        )
        assert (seen == 1).all(), tiling
        assert np.array_equal(told, valid), tiling
        if valid.any():
            whole = network(torch.from_numpy(values)[None])[0].numpy()
            assert np.abs(scores - whole)[:, valid].max() < 2e-6, tiling


def test_windows_without_an_observation_are_spared_the_model():
    valid = np.zeros((200, 200), dtype=bool)
    valid[:40, :40] = True
    meter, seen = Meter(), []

    def run(batch):
        seen.append(len(batch["values"]))
        return batch["values"]

    plan = Plan.of((200, 200), Tiling(size=64, overlap=16))
    mapped(Array(np.ones((2, 200, 200), dtype=np.float32), valid), run, plan, meter=meter)
    assert seen == [1]
    assert (meter.windows, meter.skipped) == (1, 15)


def test_a_scene_without_any_observation_has_no_scores():
    plan = Plan.of((100, 80), Tiling(size=64, overlap=16))
    scene = Array(np.ones((2, 100, 80), dtype=np.float32), np.zeros((100, 80), dtype=bool))
    scores, valid, seen = mapped(scene, identity, plan)
    assert scores is None
    assert not valid.any()
    assert (seen == 1).all()


def test_series_come_with_the_dates_of_each_window():
    values = rng.random((5, 2, 100, 90), dtype=np.float32)
    plan = Plan.of((100, 90), Tiling(size=32, overlap=8))
    dates = []

    def run(batch):
        assert batch["valid"].shape == (len(batch["days"]), batch["days"].shape[1], 32, 32)
        dates.append(batch["days"].shape[1])
        return batch["values"][:, 0]  # the first date, which every window has

    scores, valid, _ = mapped(Dates(values), run, plan)
    assert valid.all()
    assert np.abs(scores - values[0]).max() < 1e-6
    assert max(dates) == 5


def test_the_model_is_never_given_more_than_a_batch_and_readers_stay_close():
    scene = Array(rng.random((1, 640, 640), dtype=np.float32))
    plan = Plan.of((640, 640), Tiling(size=64, overlap=0))
    counts = []

    def run(batch):
        counts.append(len(batch["values"]))
        assert len({window.row for window in scene.windows}) <= len(counts) // 3 + 3  # two rows ahead, not more
        return batch["values"]

    mapped(scene, run, plan, batch_size=4, readers=2)
    assert max(counts) <= 4
    assert sum(counts) == 100


def test_turned_windows_are_turned_back():
    values = torch.randn(2, 3, 8, 8)
    assert torch.allclose(turned(lambda batch: batch["values"], {"values": values}), values, atol=1e-6)
    long = torch.randn(2, 3, 8, 5)
    assert torch.allclose(turned(lambda batch: batch["values"], {"values": long}), long, atol=1e-6)
    seen = []
    turned(lambda batch: seen.append(batch["values"]) or batch["values"], {"values": values})
    assert len({each.numpy().tobytes() for each in seen}) == 8


def test_a_file_that_breaks_halfway_stops_its_scene():
    class Broken(Array):
        def read(self, window):
            if window.row > 50:
                raise ValueError("north.tif: the file cannot be read")
            return super().read(window)

    plan = Plan.of((200, 200), Tiling(size=64, overlap=16))
    with pytest.raises(ValueError, match=r"north\.tif"):
        mapped(Broken(np.ones((1, 200, 200), dtype=np.float32)), identity, plan)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"size": 0}, "at least a pixel"),
        ({"size": 64, "overlap": 64}, "less than their side"),
        ({"overlap": 32, "margin": 17}, "twice the margin"),
        ({"margin": -1}, "twice the margin"),
        ({"rows": 0}, "rows and columns"),
    ],
)
def test_settings_that_leave_nothing_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        Tiling(**options)


def test_a_plan_for_another_shape_is_refused():
    plan = Plan.of((10, 10), Tiling())
    with pytest.raises(ValueError, match="plan it anew"):
        next(blend(Array(np.ones((1, 10, 11), dtype=np.float32)), identity, plan, plan.tiles))
    with pytest.raises(ValueError, match="at least one pixel"):
        Plan.of((0, 10), Tiling())


def test_where_a_window_is_left_out_the_others_count_more():
    plan = Plan.of((107, 30), Tiling(size=30, overlap=20, margin=0))
    assert {start % 2 for start in plan.rows.starts} == {0, 1}
    scores, valid, _ = mapped(Gaps(np.ones((1, 107, 30), dtype=np.float32)), lambda batch: batch["values"][:, 0], plan)
    assert np.abs(scores[:, valid] - 1).max() < 1e-6

"""Many scenes: nothing finished is done again, what fails fails alone, and the bytes are always the same."""

import errno
import hashlib
import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from affine import Affine
from odc.geo.geobox import GeoBox

from geomed.inference import batch as batch_module
from geomed.inference.batch import WORK, LocalEngine, map_scenes
from geomed.inference.ledger import Ledger, Shard
from geomed.inference.model import MapModel
from geomed.inference.outputs import STEPS, UNKNOWN, Layers
from geomed.inference.plan import Tiling
from geomed.inference.worker import Job, Worker, turned
from geomed.io.cog import read_piece

SHAPE = (150, 90)
JOB = Job(
    tiling=Tiling(size=32, overlap=8, rows=40, columns=60),
    layers=Layers(confidence=True, probabilities=True),
    batch_size=3,
)
SETTINGS = {"model": "a", "size": 32}
BANDS = {"map": 1, "confidence": 2, "probabilities": 4}


@dataclass
class Array:
    """A scene in memory."""

    name: str
    seed: int = 0
    broken_from: int = 10_000
    pointwise, days, notes = True, (), ("in memory",)

    @property
    def grid(self):
        return GeoBox(SHAPE, Affine.identity(), None)

    def read(self, window):
        if window.row + window.height > self.broken_from:
            raise ValueError(f"{self.name}.tif: the file cannot be read")
        values = np.random.default_rng(self.seed).normal(size=(2, *SHAPE)).astype(np.float32)
        valid = np.ones(SHAPE, dtype=bool)
        valid[:5, :7] = False
        rows, columns = window.slices
        return {"values": values[:, rows, columns], "valid": valid[rows, columns]}


@dataclass
class ArrayFile:
    """It, not opened yet."""

    name: str
    identity: str = "0" * 64
    seed: int = 0
    broken_from: int = 10_000

    def open(self):
        if self.broken_from == 0:
            raise ValueError(f"{self.name}.tif: no raster")
        return Array(self.name, self.seed, self.broken_from)


class Stitch:
    """Puts pieces together as arrays; the file is there when a scene is finished."""

    classes = 4

    def __init__(self, out, layers=("map", "confidence", "probabilities")):
        self.out, self.layers = out, layers

    def path(self, name):
        return self.out / f"{name}.npz"

    def finished(self, file):
        path = self.path(file.name)
        return path.is_file() and str(np.load(path)["identity"]) == file.identity

    def scene(self, scene, file, plan, piece):
        made = {"identity": np.array(file.identity)}
        for layer in self.layers:
            parts = {
                tile.number: read_piece(piece(tile.number, layer), (BANDS[layer], tile.keep.height, tile.keep.width))
                for tile in plan.tiles
            }
            whole = np.zeros((len(parts[0]), *scene.grid.shape), dtype=np.uint8)
            for tile in plan.tiles:
                rows, columns = tile.keep.slices
                whole[:, rows, columns] = parts[tile.number]
            made[layer] = whole
        np.savez(self.path(scene.name), **made)


class Network:
    """Counts its windows."""

    def __init__(self):
        torch.manual_seed(0)
        self.net = torch.nn.Conv2d(2, 4, 3, padding=1).requires_grad_(requires_grad=False)
        self.windows = 0

    def __call__(self, batch):
        self.windows += len(batch["values"])
        return self.net(batch["values"])


def model(network):
    names = ("a", "b", "c", "d")
    return MapModel(run=network, bands=("x", "y"), classes=names, series=False, fingerprint="f", window=32)


class Recording(LocalEngine):
    """Knows what it was asked for."""

    def __init__(self, worker):
        super().__init__(worker)
        self.asked = []

    def map(self, tasks):
        for task in tasks:
            self.asked += [(task.scene.name, tile) for tile in task.tiles]
            yield from super().map([task])


def go(out, files, *, network=None, shard=Shard(), settings=SETTINGS, **options):  # noqa: B008  (frozen)
    network = network or Network()
    with Ledger(out, settings, shard) as ledger:
        engine = Recording(Worker(model(network), JOB))
        summary = map_scenes(files, engine, JOB, ledger, Stitch(out), **options)
    network.asked = engine.asked
    return summary, network


def digest(out):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("*.npz"))}


@pytest.fixture
def files():
    return [ArrayFile("east", seed=1), ArrayFile("west", seed=2)]


@pytest.fixture
def whole(tmp_path, files):
    """Digests of the maps of one run without interruption."""
    go(tmp_path / "whole", files)
    return digest(tmp_path / "whole")


def test_what_is_written_is_what_the_model_says(tmp_path, files):
    summary, _ = go(tmp_path / "out", files[:1])
    assert summary.mapped == ["east"]
    assert summary.pixels == SHAPE[0] * SHAPE[1]
    made = np.load(tmp_path / "out/east.npz")
    known = made["map"][0] != UNKNOWN
    assert known.sum() == SHAPE[0] * SHAPE[1] - 35
    for layer in ("confidence", "probabilities"):
        assert (made[layer][:, ~known] == UNKNOWN).all()
    shares = made["probabilities"][:, known].astype(float) / STEPS
    assert np.abs(shares.sum(0) - 1).max() <= 4 * 0.5 / STEPS + 1e-6
    assert (shares.argmax(0) == made["map"][0, known]).mean() > 0.99  # but where two are rounded to the same
    assert np.abs(made["confidence"][0, known] / STEPS - shares.max(0)).max() <= 1 / STEPS
    entropy = -(shares * np.log(np.maximum(shares, 1e-9))).sum(0) / np.log(4)
    assert np.abs(made["confidence"][1, known] / STEPS - entropy).max() < 0.03
    assert not (tmp_path / "out" / WORK).exists() or not list((tmp_path / "out" / WORK).iterdir())


def test_a_finished_directory_is_left_as_it_is(tmp_path, files):
    go(tmp_path / "out", files)
    before = digest(tmp_path / "out")
    summary, network = go(tmp_path / "out", files)
    assert (summary.before, summary.mapped, network.windows) == (["east", "west"], [], 0)
    assert digest(tmp_path / "out") == before


@pytest.mark.parametrize("stop", [1, 3, 5, 9, 12])
def test_after_an_interruption_only_the_rest_is_computed(tmp_path, files, whole, stop):
    told = []

    def interrupt(done, _total):
        told.append(done)
        if len(told) == stop:
            raise KeyboardInterrupt

    _, full = go(tmp_path / "full", files)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "out", files, progress=interrupt)
    stored = len(list((tmp_path / "out" / WORK).rglob("*.probabilities.tif")))
    finished = len(list((tmp_path / "out").glob("*.npz")))
    summary, network = go(tmp_path / "out", files)
    assert digest(tmp_path / "out") == whole
    assert len(network.asked) == len(full.asked) - stored - finished * len(full.asked) / 2
    assert len(summary.mapped) + len(summary.before) == 2


@pytest.mark.parametrize("count", [2, 3, 8])
def test_shards_give_the_same_bytes(tmp_path, files, whole, count):
    finished = []
    for number in range(count):
        summary, _ = go(tmp_path / "out", files, shard=Shard(number=number, count=count))
        finished += summary.mapped
    assert sorted(finished) == ["east", "west"]
    assert digest(tmp_path / "out") == whole


def test_every_super_tile_belongs_to_one_shard():
    for count in (1, 2, 3, 7):
        for scene in range(5):
            for tiles in (1, 2, 9):
                owned = [
                    tile for number in range(count) for tile in Shard(number=number, count=count).own(scene, tiles)
                ]
                assert sorted(owned) == list(range(tiles))
    firsts = [next(n for n in range(4) if len(Shard(number=n, count=4).own(scene, 1))) for scene in range(4)]
    assert sorted(firsts) == [0, 1, 2, 3]  # single tiles go round


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2"])
def test_shards_written_otherwise_are_refused(text):
    with pytest.raises(ValueError, match="a shard is i/n"):
        Shard.parse(text)


def test_a_scene_that_fails_fails_alone_and_is_tried_again_when_asked(tmp_path, files, whole):
    bad = [ArrayFile("bad", broken_from=70), ArrayFile("worse", broken_from=0), *files]
    summary, _ = go(tmp_path / "out", bad)
    assert summary.failed == {"bad": "bad.tif: the file cannot be read", "worse": "worse.tif: no raster"}
    assert sorted(summary.mapped) == ["east", "west"]
    assert digest(tmp_path / "out") == whole
    summary, network = go(tmp_path / "out", bad)
    assert network.windows == 0
    assert "--retry-failed" in summary.failed["bad"]
    mended = [ArrayFile("bad"), ArrayFile("worse")]
    summary, _ = go(tmp_path / "out", mended, retry_failed=True)
    assert (summary.failed, sorted(summary.mapped)) == ({}, ["bad", "worse"])


def test_an_input_that_changed_is_mapped_anew(tmp_path, files):
    go(tmp_path / "out", files)
    before = digest(tmp_path / "out")
    changed = [files[0], ArrayFile("west", identity="1" * 64, seed=3)]
    summary, _ = go(tmp_path / "out", changed)
    assert (summary.mapped, summary.before) == (["west"], ["east"])
    after = digest(tmp_path / "out")
    assert after["east.npz"] == before["east.npz"]
    assert after["west.npz"] != before["west.npz"]


def test_a_piece_that_was_damaged_is_computed_again(tmp_path, files, whole):
    def interrupt(done, total):
        if done > total / 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "out", files, progress=interrupt)
    pieces = sorted((tmp_path / "out" / WORK).rglob("*.map.tif"))
    assert pieces
    pieces[0].write_bytes(pieces[0].read_bytes()[:-20])
    go(tmp_path / "out", files)
    assert digest(tmp_path / "out") == whole


def test_a_second_process_is_refused(tmp_path, files):
    with Ledger(tmp_path / "out", SETTINGS), pytest.raises(ValueError, match="another process is mapping into it"):
        go(tmp_path / "out", files)
    go(tmp_path / "out", files)  # it has let go


def test_a_directory_of_another_run_is_refused_and_both_are_named(tmp_path, files):
    go(tmp_path / "out", files)
    before = digest(tmp_path / "out")
    theirs = json.loads((tmp_path / "out/geomed_run.json").read_text())["fingerprint"]
    with pytest.raises(ValueError, match=f"fingerprint {theirs[:12]}.*size 32 there and 64 here"):
        go(tmp_path / "out", files, settings=SETTINGS | {"size": 64})
    assert digest(tmp_path / "out") == before


@pytest.mark.parametrize("text", ["{", "[]", '{"fingerprint": 1}'])
def test_a_run_file_that_is_none_is_refused(tmp_path, files, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/geomed_run.json").write_text(text)
    with pytest.raises(ValueError, match="does not tell of a run"):
        go(tmp_path / "out", files)


def test_a_manifest_that_is_none_is_refused(tmp_path, files):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/manifest.sqlite").write_bytes(b"no database, but some bytes that are long enough to be read" * 9)
    with pytest.raises(ValueError, match="manifest cannot be used"):
        go(tmp_path / "out", files)


def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path, files, whole, monkeypatch):
    stored, real = [], batch_module.store_piece

    def full(path, data):
        if len(stored) >= 5:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        stored.append(path)
        return real(path, data)

    monkeypatch.setattr(batch_module, "store_piece", full)
    with pytest.raises(OSError, match="No space left"):
        go(tmp_path / "out", files)
    monkeypatch.setattr(batch_module, "store_piece", real)
    assert not list((tmp_path / "out").rglob("*.part"))
    go(tmp_path / "out", files)
    assert digest(tmp_path / "out") == whole


def test_a_target_that_cannot_be_a_directory(tmp_path, files):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OSError, match="out"):
        go(tmp_path / "out", files)


def test_progress_reaches_the_whole(tmp_path, files):
    told = []
    go(tmp_path / "out", files, progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] == 2 * SHAPE[0] * SHAPE[1]


def test_flips_average_all_turned_forms():
    def corner(batch):
        """Knows how far to the right a pixel lies, but in the mean of all turned forms every place is alike."""
        values = batch["values"]
        ramp = torch.linspace(0, 1, values.shape[-1]).expand(values.shape[0], *values.shape[-2:])
        return torch.stack([ramp, 1 - ramp], 1)

    values = torch.rand(2, 2, 16, 16)
    mean = turned(lambda batch: torch.softmax(corner(batch), 1), {"values": values})
    assert torch.allclose(mean[0, 0], mean[0, 0].rot90(), atol=1e-6)
    assert torch.allclose(mean[0, 0], mean[0, 0].flip(0), atol=1e-6)
    assert not torch.allclose(corner({"values": values})[0, 0], corner({"values": values})[0, 0].rot90())


def test_windows_that_no_memory_holds_are_refused(tmp_path):
    class Vast(Array):
        @property
        def grid(self):
            return GeoBox((400_000, 400_000), Affine.identity(), None)

    @dataclass
    class VastFile(ArrayFile):
        def open(self):
            return Vast(self.name)

    job = Job(tiling=Tiling(size=200_000, rows=2**40), batch_size=4)
    with Ledger(tmp_path / "out", SETTINGS) as ledger:
        engine = LocalEngine(Worker(model(Network()), job))
        summary = map_scenes([VastFile("vast")], engine, job, ledger, Stitch(tmp_path / "out"))
    assert "take a smaller --size" in summary.failed["vast"]


def test_two_outputs_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two outputs would have the name a_confidence"):
        go(tmp_path / "out", [ArrayFile("a"), ArrayFile("a_confidence")])

"""`geomed map` as a user runs it: from a trained run to maps, through kills, shards and workers."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from fakes import GRID, VEGETATION, write_polygons, write_raster, write_series
from made_runs import make_run
from odc.geo.geobox import GeoBox
from rasterio.errors import NotGeoreferencedWarning

from geomed.cli import main
from geomed.inference import ray_engine

# Lightning's own advice and deprecations are the user's to see, no faults of these tests.
pytestmark = pytest.mark.filterwarnings("default")

BANDS = ("B02", "B04", "B08")
CONFIG = """\
model:
  backbone:
    class_path: ViT
    init_args:
      name: vit_tiny_patch16_224
      size: {{dim: 16, depth: 1, heads: 2, patch: 4}}
      image_size: 32
      inputs: {{class_path: Inputs, init_args: {{bands: [B02, B04, B08]}}}}
  head: {{class_path: Linear, init_args: {{num_classes: 2}}}}
  adapter: {{class_path: LoRA, init_args: {{rank: 2}}}}
data:
  source:
    class_path: Scenes
    init_args:
      bands: [B02, B04, B08]
      window: 32
      whole_polygons: false
      images:
        - name: home
          path: {folder}/home.tif
          scale: 1.0e-4
          offset: 0
          labels: {{path: {folder}/cover.gpkg, column: crop}}
      legend: {{classes: {{water: [water], land: [land]}}}}
      by: {{class_path: ByBlocks, init_args: {{size: 33, buffer: 1, fractions: [0.5, 0.25, 0.25]}}}}
  batch_size: 4
trainer: {{max_epochs: 1, accelerator: cpu, enable_progress_bar: false}}
"""


def land(height, width, seed):
    """Numbers [3, H, W] with a lake."""
    draw = np.random.default_rng(seed)
    values = draw.integers(500, 4000, (3, height, width))
    values[:, :, : width // 2] //= 3
    return values.astype(np.uint16)


def grid(height, width):
    return GeoBox((height, width), Affine(10, 0, 500_000, 0, -10, 5_600_000), "EPSG:32631")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's folder, trained for an epoch."""
    folder = tmp_path_factory.mktemp("trained")
    write_raster(folder / "home.tif", land(160, 160, 0), grid(160, 160), bands=BANDS, nodata=0)
    boxes = [(0, 0, 160, 80), (0, 80, 160, 80)]
    write_polygons(folder / "cover.gpkg", boxes, ["water", "land"], grid=grid(160, 160))
    (folder / "tiny.yaml").write_text(CONFIG.format(folder=folder))
    root = folder / "runs/tiny"
    assert main(["fit", "--config", str(folder / "tiny.yaml"), "--trainer.default_root_dir", str(root)]) == 0
    return root


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Two scenes, one of them with a corner that was not observed."""
    folder = tmp_path_factory.mktemp("scenes")
    for seed, (name, height, width) in enumerate((("east", 300, 210), ("west", 97, 150)), start=1):
        values = land(height, width, seed)
        if name == "east":
            values[:, :20, :30] = 0
        write_raster(folder / f"{name}.tif", values, grid(height, width), bands=BANDS, nodata=0)
    return folder


def words(trained, scenes, out, *more):
    given = ["map", "--model", str(trained), "--input", f"{scenes}/*.tif", "--out", str(out)]
    return [*given, "--rows", "60", "--threads", "1", "--batch-size", "4", *more]


def process(arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "geomed.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def digests(out):
    """Of all that a user finds in a directory."""
    found = [path for path in sorted(out.iterdir()) if path.suffix in {".tif", ".json", ".png", ".parquet"}]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.fixture(scope="module")
def whole(trained, scenes, tmp_path_factory):
    """Digests of a run without interruption."""
    out = tmp_path_factory.mktemp("whole") / "maps"
    assert main(words(trained, scenes, out)) == 0
    return digests(out)


def test_a_map_lies_where_its_pixels_came_from(trained, scenes, tmp_path, capsys):
    out = tmp_path / "maps"
    assert main(words(trained, scenes, out, "--confidence", "--probabilities", "--fields")) == 0
    told = capsys.readouterr().out
    assert "mapped 2 scenes" in told
    assert "MP/s" in told
    with rasterio.open(out / "east.tif") as made, rasterio.open(scenes / "east.tif") as given:
        assert (made.shape, made.transform, made.crs) == (given.shape, given.transform, given.crs)
        assert (made.count, made.dtypes[0], made.nodata) == (1, "uint8", 255)
        assert made.colormap(1)[0][:3] == (52, 120, 210)  # water is blue
        values = made.read(1)
        assert json.loads(made.tags(1)["CLASS_NAMES"]) == ["water", "land"]
        assert made.profile["tiled"]
    assert (values[:20, :30] == 255).all()
    assert (values[20:] != 255).all()
    assert set(np.unique(values)) <= {0, 1, 255}
    with rasterio.open(out / "east_probabilities.tif") as file:
        assert file.descriptions == ("water", "land")
        assert np.allclose(file.scales, 1 / 250)
        shares = file.read().astype(float)
        assert (shares[:, :20, :30] == 255).all()
        assert np.abs(shares[:, 20:].sum(0) - 250).max() <= 1
    item = json.loads((out / "east.json").read_text())
    assert {"map", "confidence", "probabilities", "fields", "thumbnail"} <= set(item["assets"])
    assert (out / "east_fields.parquet").stat().st_size > 0
    assert (out / "east.png").read_bytes().startswith(b"\x89PNG")
    assert not (out / ".work").exists()


def test_predict_and_map_agree_where_no_window_is_blended(trained, scenes, tmp_path):
    """The network of a checkpoint, its adapter folded in, answers as in training."""
    out = tmp_path / "maps"
    more = ("--overlap", "0", "--blend", "none", "--input", str(trained.parents[1] / "home.tif"))
    assert main(words(trained, scenes, out, *more)) == 0
    config = trained.parents[1] / "tiny.yaml"
    predicted = ("--trainer.default_root_dir", str(tmp_path / "run"))
    best = str(trained / "checkpoints/best.ckpt")
    assert main(["predict", "--config", str(config), "--ckpt_path", best, *predicted]) == 0
    with rasterio.open(out / "home.tif") as ours, rasterio.open(tmp_path / "run/maps/home.tif") as theirs:
        assert (ours.read(1) == theirs.read(1)).mean() > 0.999


@pytest.mark.parametrize("pause", [0.0, 0.15, 0.6])
def test_killed_at_any_moment_the_same_command_ends_with_the_same_bytes(trained, scenes, whole, tmp_path, pause):
    out = tmp_path / "maps"
    run = process(words(trained, scenes, out))
    until = time.monotonic() + 120
    while not list(out.glob(".work/*/*.tif")) and run.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(pause)
    run.kill()
    run.communicate()
    assert main(words(trained, scenes, out)) == 0
    assert digests(out) == whole


def test_shards_beside_each_other_give_the_same_bytes(trained, scenes, whole, tmp_path):
    out = tmp_path / "maps"
    runs = [process(words(trained, scenes, out, "--shard", f"{number}/2")) for number in (1, 2)]
    for run in runs:
        _, told = run.communicate(timeout=240)
        assert run.returncode == 0, told
    assert digests(out) == whole


def test_terminated_it_says_that_the_same_command_goes_on(trained, scenes, tmp_path):
    out = tmp_path / "maps"
    run = process(words(trained, scenes, out, "--flips", "--overlap", "28", "--batch-size", "1"))
    until = time.monotonic() + 120
    while not list(out.glob(".work/*/*.tif")) and run.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    run.send_signal(signal.SIGTERM)
    _, told = run.communicate(timeout=120)
    assert run.returncode == 143, told
    assert "the same command goes on" in told


def test_a_corrupt_scene_fails_alone(trained, scenes, whole, tmp_path, capsys):
    folder = tmp_path / "scenes"
    folder.mkdir()
    for name in ("east", "west"):
        (folder / f"{name}.tif").hardlink_to(scenes / f"{name}.tif")
    data = (scenes / "east.tif").read_bytes()
    (folder / "cut.tif").write_bytes(data[: len(data) // 2])
    (folder / "empty.tif").write_bytes(b"")
    write_raster(folder / "few.tif", land(40, 40, 3)[:2], grid(40, 40), bands=BANDS[:2])
    out = tmp_path / "maps"
    assert main(words(trained, folder, out)) == 3
    told = capsys.readouterr()
    lines = [line for line in told.err.splitlines() if line.startswith("geomed: ")]
    assert {line.split()[1] for line in lines} >= {"cut", "empty", "few"}
    assert "B08" in next(line for line in lines if line.startswith("geomed: few"))
    assert {name: each for name, each in digests(out).items() if "west" in name or "east" in name}.keys() == {
        name for name in whole if "west" in name or "east" in name
    }
    assert main(words(trained, folder, out)) == 3
    assert "--retry-failed" in capsys.readouterr().err
    (folder / "cut.tif").unlink()
    (folder / "cut.tif").write_bytes(data)
    (folder / "empty.tif").unlink()
    (folder / "few.tif").unlink()
    assert main(words(trained, folder, out)) == 0
    with rasterio.open(out / "cut.tif") as cut, rasterio.open(out / "east.tif") as east:
        assert np.array_equal(cut.read(), east.read())


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--size", "40", "--overlap", "40"), "less than their side"),
        (("--shard", "3/2"), "a shard is i/n"),
        (("--batch-size", "0"), "--batch-size"),
        (("--scale", "1"), "--offset"),
        (("--device", "toaster"), "--device"),
        (("--input", "nowhere/*.tif"), "nowhere"),
        (("--model", "nowhere"), "nowhere"),
    ],
)
def test_bad_calls_end_in_one_line(trained, scenes, tmp_path, capsys, more, told):
    assert main(words(trained, scenes, tmp_path / "maps", *more)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("geomed: error: ")]
    assert len(lines) == 1
    assert told in lines[0]
    assert not list(tmp_path.glob("maps/*.tif"))


def test_another_run_in_the_same_directory_is_refused(trained, scenes, whole, tmp_path, capsys):
    out = tmp_path / "maps"
    assert main(words(trained, scenes, out)) == 0
    assert main(words(trained, scenes, out, "--overlap", "10")) == 2
    assert "overlap 8 there and 10 here" in capsys.readouterr().err
    assert digests(out) == whole


@pytest.mark.parametrize(
    ("affine", "crs"),
    [(Affine.rotation(20) @ Affine.scale(10, -10), "EPSG:32631"), (Affine(10, 0, 0, 0, -10, 0), None)],
)
def test_turned_grids_and_grids_without_a_place_are_kept(trained, tmp_path, affine, crs):
    place = GeoBox((70, 40), affine, crs)
    write_raster(tmp_path / "in/odd.tif", land(70, 40, 4), place, bands=BANDS)
    assert main(words(trained, tmp_path / "in", tmp_path / "maps")) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(tmp_path / "maps/odd.tif") as made:
            assert made.transform.almost_equals(affine, 1e-9)
            assert made.crs == (None if crs is None else rasterio.crs.CRS.from_string(crs))


@pytest.mark.parametrize("kind", ["onnx", "torch-export"])
def test_an_exported_file_maps_as_its_run(trained, scenes, tmp_path, kind):
    file = tmp_path / ("tiny.onnx" if kind == "onnx" else "tiny.pt2")
    assert main(["export", "--model", str(trained), "--to", kind, "--out", str(file)]) == 0
    more = ("--probabilities", "--input", str(scenes / "west.tif"))
    for name, model in (("run", trained), ("file", file)):
        assert main(words(model, scenes, tmp_path / name, *more)) == 0
    with (
        rasterio.open(tmp_path / "run/west_probabilities.tif") as one,
        rasterio.open(tmp_path / "file/west_probabilities.tif") as other,
    ):
        assert np.abs(one.read().astype(int) - other.read().astype(int)).max() <= 1


def test_series_are_mapped_from_folders_of_dates(tmp_path):
    """With a cloud over one corner on all dates, which stays unknown, and one on a single date, which does not."""
    run = tmp_path / "runs/crops"
    make_run(run, "TSViT", "LoRA")
    clouds = np.full((3, *GRID.shape.yx), VEGETATION)
    clouds[:, :6, :9] = 9
    clouds[1, 20:, 20:] = 9
    write_series(tmp_path / "areas/home", bands=("B04", "B08", "B11"), scl=clouds)
    given = ["map", "--model", str(run), "--input", f"{tmp_path}/areas/*", "--out", str(tmp_path / "maps")]
    assert main([*given, "--scl", "{stem}_SCL.tif", "--bad", "none", "--min-clear", "0.1", "--confidence"]) == 0
    with rasterio.open(tmp_path / "maps/home.tif") as made:
        classes = made.read(1)
    unknown = np.zeros(classes.shape, dtype=bool)
    unknown[:6, :9] = True
    assert ((classes == 255) == unknown).all()
    item = json.loads((tmp_path / "maps/home.json").read_text())["properties"]
    assert (item["start_datetime"], item["end_datetime"]) == ("2021-03-05T00:00:00Z", "2021-07-23T00:00:00Z")


def test_a_raster_of_one_pixel(trained, tmp_path):
    write_raster(tmp_path / "in/dot.tif", land(1, 2, 5)[:, :, :1], grid(1, 1), bands=BANDS)
    assert main(words(trained, tmp_path / "in", tmp_path / "maps")) == 0
    with rasterio.open(tmp_path / "maps/dot.tif") as made:
        assert made.shape == (1, 1)
        assert made.read(1)[0, 0] in {0, 1}


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of two cores each, on this machine."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def mapping_workers():
    """Processes that map just now."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"_Replica.map" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


@pytest.mark.usefixtures("cluster")
def test_a_cluster_whose_worker_is_killed_gives_the_bytes_of_one_machine(trained, scenes, whole, tmp_path, monkeypatch):
    killed = []
    real = ray_engine.RayEngine.map

    def deadly(self, tasks):
        for told in real(self, tasks):
            yield told
            if not killed and (at_work := mapping_workers()):
                os.kill(at_work[0], signal.SIGKILL)
                killed.append(at_work[0])

    monkeypatch.setattr(ray_engine.RayEngine, "map", deadly)
    out = tmp_path / "maps"
    assert main(words(trained, scenes, out, "--engine", "ray", "--workers", "2")) == 0
    assert killed
    assert digests(out) == whole


@pytest.mark.usefixtures("cluster")
def test_more_workers_than_there_is_room_for_are_refused(trained, scenes, tmp_path, capsys):
    assert main(words(trained, scenes, tmp_path / "maps", "--engine", "ray", "--workers", "9")) == 2
    assert "room for 2 workers" in capsys.readouterr().err

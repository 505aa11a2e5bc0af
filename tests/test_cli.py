from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rasterio
import torch

from geomed.cli import main
from geomed.data.simulated_season import SimulatedSeason

# Lightning's own advice and deprecations are the user's to see, no faults of these tests.
pytestmark = pytest.mark.filterwarnings("default")

CONFIG = """\
model:
  backbone:
    class_path: TSViT
    init_args:
      inputs: {{class_path: Inputs, init_args: {{bands: [B04, B08, B11]}}}}
      num_classes: 8
      patch: 4
      image_size: 16
      size: {{dim: 16, heads: 2, head_dim: 8, temporal_depth: 1, spatial_depth: 1}}
  head: {{class_path: ClassTokens}}
  adapter: {{class_path: LoRA, init_args: {{rank: 2}}}}
data:
  source:
    class_path: SimulatedSeason
    init_args:
      root: {root}
      regions: [geomed.data.simulation.region.NORTH]
      years: [geomed.data.simulation.region.EARLIER]
      size: 64
      bands: [B04, B08, B11]
      window: 16
      by:
        class_path: ByBlocks
        init_args: {{size: 32, buffer: 2, fractions: [0.5, 0.25, 0.25]}}
  batch_size: 2
  in_memory: true
trainer: {{max_epochs: 1, accelerator: cpu, enable_progress_bar: false}}
"""


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(CONFIG.format(root=folder / "land"))
    return folder / "tiny.yaml"


@pytest.fixture(autouse=True)
def _stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(command: str, config: Path, *options: str) -> int:
    return main([command, "--config", str(config), *options])


def process(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "geomed.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_help_and_import_do_not_load_torch():
    code = "import sys, geomed, geomed.cli; geomed.cli.main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: geomed COMMAND" in done.stdout
    assert done.stdout.endswith("False\n")


def test_public_names_arrive_when_asked_for():
    import geomed

    assert geomed.TSViT.__name__ == "TSViT"
    with pytest.raises(AttributeError, match="geomed has no Nothing"):
        geomed.Nothing  # noqa: B018


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nothing"], "there is no command 'nothing'"),
        (["--config", "x.yaml", "fit"], "the command comes first: geomed fit --config x.yaml"),
        (["fit", "--config", "none.yaml"], "none.yaml"),
        (["fit", "--nope", "1"], "nope"),
    ],
)
def test_bad_calls_are_told_in_one_line(words, told, capsys):
    assert main(words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("geomed: error: ")]
    assert len(lines) == 1
    assert told in lines[0]


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (["--data.source.bands", "[B04,B08]"], "the source gives bands B04, B08, the backbone reads B04, B08, B11"),
        (["--model.backbone.num_classes", "3"], "the source has 8 classes"),
        (["--model.weights", "{path: gone.ckpt}"], "gone.ckpt: there is no such weights file"),
        (["--model.adapter.targets", "[nowhere]"], "matches no module of TSViT"),
        (["--data.source.window", "0"], "window"),
    ],
)
def test_bad_settings_are_told_before_training(config, option, told, capsys):
    assert run("fit", config, *option) == 2
    assert told in capsys.readouterr().err
    assert not list(Path("runs").glob("**/*.ckpt"))


def test_fit_test_predict_and_go_on(config):
    assert run("fit", config) == 0
    folder = Path("runs/tiny")
    assert (folder / "adapter.safetensors").stat().st_size < 20_000
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert run("test", config, "--ckpt_path", "last") == 0
    scores = json.loads((folder / "metrics.json").read_text())
    assert 0 <= scores["macro_f1"] <= 1
    assert run("predict", config, "--ckpt_path", "last") == 0
    (made,) = (folder / "maps").glob("*.tif")
    with rasterio.open(made) as written, rasterio.open(config.parent / "land/north-2021/truth.tif") as truth:
        assert (written.crs, written.transform, written.shape) == (truth.crs, truth.transform, truth.shape)
        assert written.nodata == 255
        assert set(written.read(1).flatten().tolist()) <= {*range(8), 255}
        assert len(written.colormap(1)) == 256
    steps = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert run("fit", config, "--ckpt_path", "last", "--trainer.max_epochs", "2") == 0
    kept = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert kept["global_step"] == 2 * steps
    assert kept["classes"] == list(SimulatedSeason().classes)


def test_a_checkpoint_of_another_model_is_told(config, capsys):
    assert run("fit", config) == 0
    assert run("test", config, "--ckpt_path", "last", "--model.backbone.patch", "2") == 2
    assert "the checkpoint is of another model" in capsys.readouterr().err


def test_a_checkpoint_that_could_run_code_is_refused(config, tmp_path, capsys):
    torch.save({"state_dict": {}, "more": Path("somewhere")}, tmp_path / "foreign.ckpt")
    assert run("test", config, "--ckpt_path", str(tmp_path / "foreign.ckpt")) == 2
    assert "the checkpoint holds more than tensors and numbers" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_random_weights_are_never_judged_as_the_last_ones(config, command, capsys):
    assert run(command, config, "--ckpt_path", "last") == 2
    assert "there is no last checkpoint; run geomed fit first" in capsys.readouterr().err


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_checkpoint_cut_off_is_told(config, share, capsys):
    assert run("fit", config) == 0
    last = Path("runs/tiny/checkpoints/last.ckpt")
    whole = last.read_bytes()
    last.write_bytes(whole[: int(share * len(whole))])
    for command in ("test", "fit"):
        assert run(command, config, "--ckpt_path", "last") == 2
        assert "last.ckpt: the checkpoint is broken or cut off" in capsys.readouterr().err


def test_an_adapter_file_works_in_another_run(config):
    assert run("fit", config) == 0
    base = ["--seed_everything", "0", "--model.adapter", "runs/tiny/adapter.safetensors"]
    assert run("test", config, *base, "--trainer.default_root_dir", "runs/other") == 0
    assert run("test", config, "--ckpt_path", "last") == 0
    first, second = (json.loads(Path(f"runs/{name}/metrics.json").read_text()) for name in ("tiny", "other"))
    assert first == second


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_run_goes_on(config, how):
    words = ["fit", "--config", str(config), "--trainer.max_epochs", "400"]
    running = process(*words)
    last = Path("runs/tiny/checkpoints/last.ckpt")
    until = time.monotonic() + 120
    while not last.exists() and time.monotonic() < until and running.poll() is None:
        time.sleep(0.05)
    assert running.poll() is None, running.communicate()
    running.send_signal(how)
    _, told = running.communicate(timeout=60)
    if how == signal.SIGTERM:
        assert running.returncode == 143
        assert "--ckpt_path last" in told
    reached = torch.load(last, weights_only=True)
    words[-1] = str(reached["epoch"] + 3)
    again = process(*words, "--ckpt_path", "last")
    _, told = again.communicate(timeout=120)
    assert again.returncode == 0, told
    assert torch.load(last, weights_only=True)["global_step"] > reached["global_step"] > 0


@pytest.mark.slow
def test_two_processes_train_together(config):
    words = ["--config", str(config), "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    running = process("fit", *words, "--trainer.max_epochs", "2")
    _, told = running.communicate(timeout=240)
    assert running.returncode == 0, told[-3000:]
    assert torch.load("runs/tiny/checkpoints/last.ckpt", weights_only=True)["global_step"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("first", ["LoRA, init_args: {rank: 2}", "Peft, init_args: {method: MISS, options: {r: 2}}"])
def test_two_processes_write_one_adapter_file(config, first):
    if "Peft" in first:
        pytest.importorskip("peft", reason="peft is not installed: geomed[peft]")
    stack = f"[{{class_path: {first}}}, {{class_path: AdaptFormer, init_args: {{bottleneck: 4}}}}]"
    words = ["--config", str(config), "--model.adapter", stack]
    running = process("fit", *words, "--trainer.devices", "2", "--trainer.strategy", "ddp")
    _, told = running.communicate(timeout=240)
    assert running.returncode == 0, told[-3000:]
    alone = ["--seed_everything", "0", "--model.adapter", "runs/tiny/adapter.safetensors"]
    assert run("test", config, *alone, "--trainer.default_root_dir", "runs/other") == 0
    assert run("test", config, "--model.adapter", stack, "--ckpt_path", "last") == 0
    written, kept = (json.loads(Path(f"runs/{name}/metrics.json").read_text()) for name in ("other", "tiny"))
    assert written == kept
    assert not list(Path("runs/tiny").glob("*.part"))

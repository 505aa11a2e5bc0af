"""Whole runs of `geomed pretrain`: two processes under DDP and FSDP2, runs that are stopped and go on, bfloat16."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import lightning
import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin
from safetensors import safe_open
from safetensors.torch import load_file

from geomed.cli import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # Lightning's advice is the user's to see, no fault of these tests
]

BANDS = ("B04", "B03", "B02")
CONFIG = """\
model:
  backbone:
    class_path: ViT
    init_args:
      name: vit_tiny_patch16_224
      inputs: {{class_path: Inputs, init_args: {{bands: [B04, B03, B02]}}}}
      image_size: 16
      size: {{dim: 16, depth: 3, heads: 2, patch: 4}}
      drop_path: 0.2
  adapter: {{class_path: ExPLoRA, init_args: {{rank: 2}}}}
  objective: {objective}
data:
  source:
    class_path: UnlabelledRasters
    init_args: {{paths: [{tiles}], bands: [B04, B03, B02], window: 32, scale: 1.0e-4, offset: 0.0, per_epoch: 16}}
  crops: {crops}
  batch_size: 4
trainer:
  max_epochs: 3
  accelerator: cpu
  enable_progress_bar: false
  callbacks: [{{class_path: test_pretraining_runs.Tracker}}]
"""
MAE = {"objective": "{class_path: MAE, init_args: {decoder: {dim: 16, depth: 1, heads: 2}}}", "crops": "{size: 16}"}
DINOV2 = {
    "objective": "{class_path: DINOv2, init_args: {prototypes: {count: 16, hidden: 16, bottleneck: 8}}}",
    "crops": "{size: 16, count: 2, local: {count: 2, size: 8}}",
}
OBJECTIVES = {"mae": MAE, "dinov2": DINOV2}
DDP = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


def fsdp(data: int = 2, tensor: int = 1) -> tuple[str, ...]:
    strategy = "{class_path: lightning.pytorch.strategies.ModelParallelStrategy, init_args: "
    strategy += f"{{data_parallel_size: {data}, tensor_parallel_size: {tensor}}}}}"
    return ("--trainer.devices", "2", "--trainer.strategy", strategy)


class Tracker(lightning.Callback):
    """Stops the process in the middle of an epoch where GEOMED_TEST_STOP says so; keeps what each process ended with.

    GEOMED_TEST_STOP is epoch, batch and signal, as in 1:2:9.
    """

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        wanted = os.environ.get("GEOMED_TEST_STOP")
        if wanted is not None:
            epoch, last, how = map(int, wanted.split(":"))
            if (trainer.current_epoch, batch_idx) == (epoch, last):
                os.kill(os.getpid(), how)

    def on_train_end(self, trainer, pl_module):
        if trainer.world_size > 1 and pl_module.device_mesh is None:
            state = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}
            sent = {id(buffer) for buffer in trainer.model.modules_buffers}
            names = [name for name, buffer in pl_module.named_buffers() if id(buffer) in sent]
            path = Path(trainer.default_root_dir) / f"ended-{trainer.global_rank}.pt"
            torch.save({"state": state, "sent": names}, path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small rasters, and a config of each objective that names them."""
    made = tmp_path_factory.mktemp("runs")
    (made / "tiles").mkdir()
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :64]
    for number in range(3):
        place = from_origin(5e5 + number * 1e4, 5e6, 10, 10)
        with rasterio.open(
            made / "tiles" / f"{number}.tif", "w", "GTiff", 64, 64, 3, "EPSG:32631", place, "uint16"
        ) as file:
            for band, name in enumerate(BANDS):
                waves = np.sin(columns / (3 + band + number)) + np.cos(rows / (5 + number))
                file.write((2000 + 500 * waves + rng.normal(0, 50, (64, 64))).astype("uint16"), band + 1)
                file.set_band_description(band + 1, name)
    for name, chosen in OBJECTIVES.items():
        (made / f"{name}.yaml").write_text(CONFIG.format(tiles=made / "tiles", **chosen))
    return made


def words(folder: Path, name: str, run: str, *options: str) -> list[str]:
    return [
        "pretrain",
        "--config",
        str(folder / f"{name}.yaml"),
        "--trainer.default_root_dir",
        str(folder / run),
        *options,
    ]


def process(given: list[str], **environment: str) -> tuple[int, str]:
    """Run the command line in processes of its own; returns the exit code and what it told."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | environment
    done = subprocess.run(
        [sys.executable, "-m", "geomed.cli", *given],
        capture_output=True,
        text=True,
        env={**os.environ, **settings},
        timeout=240,
        check=False,
    )
    return done.returncode, done.stderr


def ran(given: list[str], **environment: str) -> None:
    code, told = process(given, **environment)
    assert code == 0, told[-3000:]


def checkpoint(run: Path) -> dict:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)


def ended(run: Path) -> list[dict]:
    """What both processes ended with."""
    return [torch.load(run / f"ended-{rank}.pt", weights_only=True) for rank in range(2)]


def refuse_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert set(first) == set(second)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def refuse_other_files(first: Path, second: Path) -> None:
    """What two runs leave holds the same tensors, bit by bit."""
    names = {path.name for path in first.glob("*.safetensors")}
    assert names == {"adapter.safetensors", "objective.safetensors"}
    assert names == {path.name for path in second.glob("*.safetensors")}
    for name in names:
        refuse_difference(load_file(first / name), load_file(second / name))


# two processes


@pytest.fixture(scope="module")
def replicated(folder: Path) -> dict[str, Path]:
    """A run of each objective under DDP."""
    for name in OBJECTIVES:
        ran(words(folder, name, f"ddp-{name}", *DDP))
    return {name: folder / f"ddp-{name}" for name in OBJECTIVES}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_processes_learn_the_same(replicated: dict[str, Path], name: str):
    """Gradients are averaged, so parameters, and the averages of a teacher, are the same in both, never sent."""
    run = replicated[name]
    first, second = ended(run)
    refuse_difference(first["state"], second["state"])
    assert any("teacher" in key for key in first["state"]) == (name == "dinov2")
    assert not any("teacher" in key for key in first["sent"])
    assert all(tensor.isfinite().all() for tensor in first["state"].values())
    assert checkpoint(run)["global_step"] == 6  # of the 16 images each process reads 8, 4 in a step, thrice
    adapter = load_file(run / "adapter.safetensors")
    assert any(tensor.any() for key, tensor in adapter.items() if key.endswith("up"))  # these start at zero
    with safe_open(run / "adapter.safetensors", "pt") as file:
        assert "ExPLoRA" in str(file.metadata())


def test_processes_that_start_unlike_learn_the_same(folder: Path):
    """Without a seed each draws its own adapter; all go on from that of the first, the teacher's averages too."""
    ran(words(folder, "dinov2", "unseeded", *DDP, "--seed_everything", "false", "--trainer.max_epochs", "1"))
    first, second = ended(folder / "unseeded")
    refuse_difference(first["state"], second["state"])


def test_sharing_tensors_out_changes_no_bit(folder: Path, replicated: dict[str, Path]):
    ran(words(folder, "mae", "fsdp", *fsdp()))
    refuse_other_files(folder / "fsdp", replicated["mae"])


@pytest.mark.parametrize(("name", "strategy"), [("dinov2", DDP), ("mae", fsdp())], ids=["ddp", "fsdp"])
def test_two_processes_that_were_killed_go_on(folder: Path, replicated: dict[str, Path], name: str, strategy):
    given = words(folder, name, f"killed-{name}", *strategy)
    code, told = process(given, GEOMED_TEST_STOP=f"1:0:{signal.SIGKILL:d}")
    assert code == -signal.SIGKILL, told[-3000:]
    assert not (folder / f"killed-{name}" / "adapter.safetensors").exists()
    ran([*given, "--ckpt_path", "last"])
    refuse_other_files(folder / f"killed-{name}", replicated[name])


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("dinov2", fsdp(), "train it with the strategy ddp"),
        ("mae", fsdp(data=1, tensor=2), "a tensor_parallel_size of 1"),
        ("mae", (*fsdp(), "--merged", "true"), "leave merged out under FSDP"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_before_training(folder: Path, name: str, options, told: str):
    run = f"refused-{name}-{len(options)}"
    code, message = process(words(folder, name, run, *options))
    assert code == 2, message[-3000:]
    lines = [line for line in message.splitlines() if line.startswith("geomed: error:")]
    assert lines
    assert all(told in line for line in lines)  # each process says it, and no other
    assert "Traceback" not in message
    assert not list((folder / run).rglob("*.ckpt"))


# one process


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, Path]:
    """A run of each objective that nothing stops."""
    for name in OBJECTIVES:
        assert main(words(folder, name, f"whole-{name}")) == 0
    return {name: folder / f"whole-{name}" for name in OBJECTIVES}


@pytest.mark.parametrize(
    ("name", "how"), [("mae", signal.SIGKILL), ("dinov2", signal.SIGKILL), ("dinov2", signal.SIGTERM)]
)
def test_a_run_stopped_in_an_epoch_goes_on_bit_by_bit(folder: Path, whole: dict[str, Path], name: str, how):
    run = folder / f"stopped-{name}-{how:d}"
    given = words(folder, name, run.name)
    code, told = process(given, GEOMED_TEST_STOP=f"1:1:{how:d}")
    if how == signal.SIGTERM:
        assert code == 143, told[-3000:]
        (line,) = [line for line in told.splitlines() if line.startswith("geomed:")]
        assert line == f"geomed: stopped; go on with: geomed {' '.join(given)} --ckpt_path last"
    else:
        assert code == -how, told[-3000:]
    assert checkpoint(run)["epoch"] == 0
    assert not (run / "adapter.safetensors").exists()
    assert main([*given, "--ckpt_path", "last"]) == 0
    refuse_other_files(run, whole[name])
    first, second = checkpoint(run), checkpoint(whole[name])
    assert first["global_step"] == second["global_step"] == 12
    refuse_difference(first["state_dict"], second["state_dict"])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_low_precision_and_several_batches_a_step_stay_finite(folder: Path, name: str):
    options = ("--trainer.precision", "bf16-mixed", "--trainer.accumulate_grad_batches", "2")
    assert main(words(folder, name, f"low-{name}", *options)) == 0
    left = checkpoint(folder / f"low-{name}")
    assert left["global_step"] == 6
    assert all(tensor.isfinite().all() for tensor in left["state_dict"].values())
    adapter = load_file(folder / f"low-{name}" / "adapter.safetensors")
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in adapter.values())

"""What a newcomer does wrong with `geomed pretrain`: one line says it, before hours are spent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from PIL import Image

from geomed.adapters import ExPLoRA, attach
from geomed.adapters.files import save_adapter
from geomed.backbones.inputs import Inputs
from geomed.backbones.vit import ViT, ViTSize
from geomed.cli import main
from geomed.pixels import Pixels
from geomed.tasks.mae import MAE, DecoderSize
from geomed.tasks.objective import Views
from geomed.training_runs import check_checkpoint, ended_by, going_on, plain

MODEL = {
    "backbone": {
        "class_path": "ViT",
        "init_args": {
            "name": "vit_tiny_patch16_224",
            "inputs": {"class_path": "Inputs", "init_args": {"bands": ["grey"], "mean": [0.5], "std": [0.25]}},
            "image_size": 16,
            "size": {"dim": 16, "depth": 2, "heads": 2, "patch": 4},
        },
    },
    "objective": {"class_path": "MAE", "init_args": {"decoder": {"dim": 16, "depth": 1, "heads": 2}}},
    "adapter": {"class_path": "ExPLoRA", "init_args": {"rank": 2}},
}
TRAINER = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}

told = pytest.mark.filterwarnings("default")  # Lightning's advice is the user's to see, no fault of these tests


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans").mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)).save(tmp_path / "scans" / f"{number}.png")
    return tmp_path


def pretrain(name: str, *options: str, **changed: object) -> int:
    """Run a config; ``model``, ``data`` and ``trainer`` are updates."""
    source = {"class_path": "UnlabelledScans", "init_args": {"folder": "scans", "rendition": {"size": 32}}}
    config = {
        "model": MODEL | changed.pop("model", {}),
        "data": {"source": source, "crops": {"size": 16}, "batch_size": 4} | changed.pop("data", {}),
        "trainer": TRAINER | changed.pop("trainer", {}),
        **changed,
    }
    Path(f"{name}.yaml").write_text(json.dumps(config))  # JSON is YAML
    return main(["pretrain", "--config", f"{name}.yaml", *options])


@told
@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"model": {"adapter": {"class_path": "ExPLoRa"}}}, "there is no class ExPLoRa"),
        ({"model": {"adapter": [{"class_path": "ExPLoRA", "init_args": {"rnk": 2}}]}}, "Option 'rnk' is not accepted"),
        ({"model": {"adapter": {"class_path": "ExPLoRA", "init_args": {"rank": "two"}}}}, "Got value: two"),
        ({"model": {"adapter": {"class_path": "AdaptFormer"}}}, "take ExPLoRA"),
        ({"model": {"weights": {"path": "x"}}}, "it is to be str or null"),
        ({"model": {"optimisation": None}}, "null stands where settings belong"),
        ({"model": {"objective": None}}, "required: model.objective"),
        ({"model": {"optimizer": {"lr": 1}}}, "there is no option 'model.optimizer.lr'"),
        ({"data": {"crops": {"size": 18}}}, "no multiple of the backbone's 4; take 20"),
        ({"data": {"crops": {"size": 16, "local": {"count": 1, "size": 9}}}}, "local.size 9"),
        ({"data": {"crops": {"size": 4}}}, "hides none"),
        ({"trainer": {"precision": "bf16-true"}}, "take bf16-mixed"),
        ({"trainer": {"max_epochs": -1, "max_time": "00:00:00:02"}}, "sets no end"),
        ({"after": "wrong.yaml"}, "would come before itself"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_before_the_first_step(here: Path, capsys, changed: dict, says: str):
    assert pretrain("wrong", **changed) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("geomed: error: ")
    assert says in last
    assert "Union" not in last
    assert len(last) < 400
    assert not list((here / "runs").rglob("*.safetensors"))


@told
def test_a_circle_of_configs_is_refused(here: Path, capsys):
    (here / "one.yaml").write_text("after: two.yaml")
    assert pretrain("two", after="one.yaml") == 2
    assert "would come before itself" in capsys.readouterr().err


@told
def test_a_trial_leaves_nothing_that_looks_finished(here: Path):
    assert pretrain("trial", trainer={"fast_dev_run": True}) == 0
    assert not list((here / "runs").rglob("*.safetensors"))


@told
def test_what_goes_before_is_named_with_the_result(here: Path, capsys):
    assert pretrain("first") == 0
    first = "runs/first/adapter.safetensors"
    assert pretrain("second", model={"adapter": [first, MODEL["adapter"]]}) == 0
    assert f"adapter: [{first}, runs/second/adapter.safetensors, …]" in capsys.readouterr().out
    settings = here / "runs/second/pretraining.json"
    settings.write_text("{")
    assert pretrain("second") == 2
    assert "cannot be read; delete runs/second" in capsys.readouterr().err


def test_the_same_weights_leave_the_same_bytes(tmp_path: Path):
    inputs = Inputs(("grey",), mean=(0.5,), std=(0.25,))
    backbone = ViT("vit_tiny_patch16_224", inputs=inputs, size=ViTSize(dim=16, depth=1, heads=2, patch=4))
    attach(backbone, ExPLoRA(blocks=(), rank=2))
    left = set()
    for number in range(6):  # by chance the four entries of the header would stand alike once in 24 times
        save_adapter(tmp_path / f"{number}", backbone, [ExPLoRA(rank=2)], facts={"place": "Köln"})
        left.add((tmp_path / f"{number}").read_bytes())
    assert len(left) == 1


def test_masks_that_hide_nothing_are_refused():
    inputs = Inputs(("grey",), mean=(0.5,), std=(0.25,))
    size = ViTSize(dim=16, depth=1, heads=2, patch=4)
    backbone = ViT("vit_tiny_patch16_224", inputs=inputs, image_size=8, size=size)
    objective = MAE(mask=0.1, decoder=DecoderSize(dim=16, depth=1, heads=2))
    objective.bind(backbone)
    views = Views(wide=(Pixels(values=torch.rand(2, 1, 8, 8)),))
    with pytest.raises(ValueError, match="hides none"):
        objective(backbone, views, generator=torch.Generator(), done=0.0)


def test_going_on_is_said_once():
    assert going_on("fit", ["--config", "a", "--ckpt_path", "last", "--x", "1"]) == (
        "geomed fit --config a --x 1 --ckpt_path last"
    )
    assert going_on("pretrain", ["--ckpt_path=last"]) == "geomed pretrain --ckpt_path last"
    with pytest.raises(ValueError, match="--ckpt_path last"):
        check_checkpoint("pretrain", "best", Path("runs/x"))


def test_an_exit_after_a_key_is_no_exit_of_its_own():
    interrupted = SystemExit(1)
    interrupted.__context__ = KeyboardInterrupt()  # as Lightning leaves it
    assert ended_by(interrupted) == 2
    assert ended_by(SystemExit(1)) is None
    assert ended_by(SIGTERMException()) == 15


def test_other_messages_stay_as_they_are():
    assert plain("a rule,\n  a value, Expected a <class 'int'>") == "a rule, a value, Expected a <class 'int'>"

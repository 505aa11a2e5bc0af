from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from made_runs import CLASSES, SCENES, WRITTEN, answer, bare, batch_of, make_run, model_config, perturb, write_run

from geomed.adapters.adapter import adapted_modules, attach
from geomed.adapters.files import save_adapter
from geomed.adapters.lora import LoRA
from geomed.data.area import Masks
from geomed.inference.model import Units
from geomed.mapping.models import load_model
from geomed.mapping.runs import open_run

CPU = torch.device("cpu")


def edit(folder: Path, change) -> None:
    path = folder / "logs/version_0/config.yaml"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("kind", ["ViT", "TSViT"])
@pytest.mark.parametrize("adapter", [None, "LoRA", "AdaptFormer"])
def test_a_run_answers_as_it_was_trained(tmp_path, kind, adapter):
    folder, network = make_run(tmp_path / "run", kind, adapter)
    trained = load_model(folder, device=CPU)
    batch = batch_of(kind)
    torch.testing.assert_close(trained.model.run(batch), answer(network, batch), atol=1e-5, rtol=1e-5)
    model = trained.model
    assert (model.bands, model.classes, model.series) == (("B04", "B08", "B11"), CLASSES, kind == "TSViT")
    assert (model.window, model.patch, model.fixed) == ((16, 4, False) if kind == "ViT" else (8, 2, False))
    assert model.about.get("adapter", "") == {None: "", "LoRA": "LoRA (merged)", "AdaptFormer": "AdaptFormer"}[adapter]
    assert model.about["architecture"] == ("ViT vit_tiny_patch16_224" if kind == "ViT" else "TSViT")
    assert str(tmp_path) not in json.dumps(dict(model.about))


def test_what_training_knew_comes_along(tmp_path):
    single = load_model(make_run(tmp_path / "a", "ViT")[0], device=CPU)
    assert single.model.units == Units(scale=1e-4, offset=-0.1, nodata=0)
    assert (single.masks, single.min_clear, single.band_names) == (None, None, None)
    series = load_model(make_run(tmp_path / "b", "TSViT")[0], device=CPU)
    assert series.model.units == Units(scale=1e-4, offset=0.0)
    assert (series.masks, series.min_clear) == (Masks(scl=None, bad="{stem}_CLM.tif"), 0.3)


@pytest.mark.parametrize(
    ("more", "units"),
    [
        ({"scale": [1e-4, 1e-4, 1e-3]}, None),
        ({"offset": 0.0}, None),
        ({"band_names": ["B04", "B08", "B11"]}, Units(scale=1e-4, offset=-0.1, nodata=0)),
    ],
)
def test_units_that_differ_are_not_known(tmp_path, more, units):
    first = SCENES["init_args"]["images"][0]
    images = [first, {**first, "name": "two", **more}]
    source = {**SCENES, "init_args": {**SCENES["init_args"], "images": images}}
    trained = load_model(make_run(tmp_path / "run", "ViT", source=source)[0], device=CPU)
    assert trained.model.units == units
    assert trained.band_names is None


def test_a_source_of_ones_own_need_not_be_here(tmp_path):
    source = {"class_path": "nowhere.Mine", "init_args": {"window": 12}}
    model = load_model(make_run(tmp_path / "run", "ViT", source=source)[0], device=CPU).model
    assert (model.window, model.units) == (12, None)


def test_a_simulated_season_writes_as_sentinel2(tmp_path):
    source = {"class_path": "geomed.data.simulated_season.SimulatedSeason", "init_args": {"window": 8}}
    trained = load_model(make_run(tmp_path / "run", "TSViT", source=source)[0], device=CPU)
    assert (trained.model.units, trained.masks, trained.min_clear) == (Units(scale=1e-4, offset=0.0), Masks(), 0.1)


def test_nothing_is_needed_that_the_checkpoint_holds(tmp_path):
    def gone(config):
        config["model"]["backbone"]["init_args"] |= {"pretrained": True, "checkpoint": "gone.npz"}
        config["model"] |= {"weights": {"path": "gone.ckpt"}, "loss": {"class_path": "nowhere.Loss"}}

    folder, network = make_run(tmp_path / "run", "ViT", "LoRA")
    edit(folder, gone)
    batch = batch_of("ViT")
    torch.testing.assert_close(load_model(folder, device=CPU).model.run(batch), answer(network, batch))


@pytest.mark.parametrize("there", [True, False])
def test_adapters_from_a_file(tmp_path, there):
    folder, network = make_run(tmp_path / "run", "TSViT", "LoRA")
    path = tmp_path / "given.safetensors"
    if there:
        shutil.move(folder / "adapter.safetensors", path)
    edit(folder, lambda config: config["model"].update(adapter=str(path)))
    batch = batch_of("TSViT")
    torch.testing.assert_close(load_model(folder, device=CPU).model.run(batch), answer(network, batch))
    (path if there else folder / "adapter.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"the adapter that it names cannot be built \(.*given.safetensors: there is no"
    ):
        load_model(folder, device=CPU)


def test_a_plan_that_is_gone_stands_in_the_runs_adapter_file(tmp_path):
    from geomed.adapters.allocation_rule import AllocationRule
    from geomed.adapters.candidate import candidates
    from geomed.adapters.plan import make_plan
    from geomed.adapters.sensitivity import measure_sensitivity
    from geomed.adapters.spt import SPT

    network = bare("ViT")
    batch = batch_of("ViT")
    sensitivity = measure_sensitivity(
        network.backbone, lambda one: network(one["values"], one["valid"]).square().mean(), [batch], head=network
    )
    rule = AllocationRule(rank=2)
    assert candidates(network.backbone)
    make_plan(network.backbone, sensitivity, budget=500, rule=rule).save(tmp_path / "plan.json")
    adapter = SPT(plan=str(tmp_path / "plan.json"))
    attach(network.backbone, adapter)
    with torch.no_grad():
        for parameter in network.backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    network.eval()
    written = {"class_path": "SPT", "init_args": {"plan": str(tmp_path / "plan.json")}}
    write_run(tmp_path / "run", model_config("ViT", adapter=written), network, SCENES)
    with_plan = load_model(tmp_path / "run", device=CPU).model
    torch.testing.assert_close(with_plan.run(batch), answer(network, batch), atol=1e-5, rtol=1e-5)
    save_adapter(tmp_path / "run/adapter.safetensors", network.backbone, [adapter], head=network.head)
    (tmp_path / "plan.json").unlink()
    without = load_model(tmp_path / "run", device=CPU).model
    assert without.fingerprint == with_plan.fingerprint
    torch.testing.assert_close(without.run(batch), with_plan.run(batch))
    save_adapter(tmp_path / "run/adapter.safetensors", _other(), [LoRA(rank=2)])
    with pytest.raises(ValueError, match="was made on other weights than those of the checkpoint"):
        load_model(tmp_path / "run", device=CPU)
    (tmp_path / "run/adapter.safetensors").unlink()
    with pytest.raises(ValueError, match=r"plan.json: there is no such plan.*put the file back"):
        load_model(tmp_path / "run", device=CPU)


def _other():
    network = bare("ViT")
    perturb(network, 5)
    attach(network.backbone, LoRA(rank=2))
    return network.backbone


def test_the_best_checkpoint_goes_first_and_any_may_be_named(tmp_path):
    folder, network = make_run(tmp_path / "run", "ViT")
    last = load_model(folder, device=CPU).model
    perturb(network, 7)
    torch.save({"state_dict": network.state_dict(), "classes": list(CLASSES)}, folder / "checkpoints/best.ckpt")
    best = load_model(folder, device=CPU).model
    assert best.about["file"] == "checkpoint best.ckpt"
    assert best.fingerprint != last.fingerprint
    assert load_model(folder / "checkpoints/last.ckpt", device=CPU).model.fingerprint == last.fingerprint


def test_the_config_is_that_of_training(tmp_path):
    folder, _ = make_run(tmp_path / "run", "ViT")
    config = json.loads((folder / "logs/version_0/config.yaml").read_text())
    for version, window in ((9, 24), (10, 32)):
        config["data"]["source"]["init_args"]["window"] = window
        (folder / f"logs/version_{version}").mkdir()
        (folder / f"logs/version_{version}/config.yaml").write_text(
            f"data: {json.dumps(config['data'])}\n"
            f"model: {json.dumps(config['model'])}\n" + ("verbose: true\n" if version == 10 else "")
        )
    assert load_model(folder, device=CPU).model.window == 24


def test_the_fingerprint_tells_models_apart_and_nothing_else(tmp_path):
    folder, _ = make_run(tmp_path / "run", "ViT", "LoRA")
    shutil.copytree(folder, tmp_path / "elsewhere/copy")
    first = load_model(folder, device=CPU).model.fingerprint
    assert load_model(tmp_path / "elsewhere/copy", device=CPU).model.fingerprint == first
    assert load_model(folder, device=CPU, precision="bf16").model.fingerprint != first
    edit(folder, lambda config: config["model"]["adapter"]["init_args"].update(alpha=3.0))
    assert load_model(folder, device=CPU).model.fingerprint != first


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_answers_in_float32(tmp_path, precision):
    folder, network = make_run(tmp_path / "run", "TSViT")
    batch = batch_of("TSViT")
    logits = load_model(folder, device=CPU, precision=precision).model.run(batch)
    assert logits.dtype == torch.float32
    assert 0 < float((logits - answer(network, batch)).abs().max()) < 0.2


def test_adapters_are_merged_or_stay(tmp_path):
    assert not adapted_modules(open_run(make_run(tmp_path / "a", "ViT", "LoRA")[0]).network)
    run = open_run(make_run(tmp_path / "b", "ViT", "AdaptFormer")[0])
    assert adapted_modules(run.network)
    assert not any(parameter.requires_grad for parameter in run.network.parameters())
    assert not run.network.training


def broken(folder: Path) -> None:
    path = folder / "checkpoints/last.ckpt"
    path.write_bytes(path.read_bytes()[:2000])


def foreign(folder: Path) -> None:
    torch.save({"state_dict": {}, "classes": ["a"], "more": Path("x")}, folder / "checkpoints/last.ckpt")


def unlearned(folder: Path) -> None:
    torch.save({"state_dict": {}}, folder / "checkpoints/last.ckpt")


def set_model(*path: str, to: object):
    def change(config):
        inner = config["model"]
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = to

    return lambda folder: edit(folder, change)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (shutil.rmtree, "there is no such run, checkpoint or exported file"),
        (lambda folder: shutil.rmtree(folder / "logs"), "there is no config of its training"),
        (
            lambda folder: shutil.rmtree(folder / "checkpoints"),
            "neither checkpoints/best.ckpt nor checkpoints/last.ckpt",
        ),
        (broken, "last.ckpt: the checkpoint is broken or cut off"),
        (foreign, "last.ckpt: holds more than tensors and numbers"),
        (unlearned, "no checkpoint of geomed fit"),
        (set_model("backbone", "init_args", "size", "dim", to=32), "these are weights of another model"),
        (set_model("backbone", "init_args", "nonsense", to=1), "nonsense"),
        (set_model("nonsense", to=1), "nonsense"),
        (set_model("backbone", "class_path", to="Nothing"), "Nothing"),
        (set_model("adapter", to=WRITTEN["LoRA"]), "these are weights of another model"),
        (set_model("backbone", to=None), "config.yaml"),
        (lambda folder: (folder / "logs/version_0/config.yaml").write_text("a: ["), "not readable as a config"),
        (lambda folder: (folder / "logs/version_0/config.yaml").write_text("[]"), "holds no config"),
        (lambda folder: edit(folder, lambda config: config.pop("data")), "names data.source"),
        (lambda folder: edit(folder, lambda config: config["data"]["source"]["init_args"].pop("images")), "images"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tmp_path, damage, told):
    folder, _ = make_run(tmp_path / "run", "ViT")
    damage(folder)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        load_model(folder, device=CPU)
    assert told in str(caught.value)


def test_a_head_for_whole_images_makes_no_map(tmp_path):
    _, network = make_run(tmp_path / "run", "TSViT")
    from geomed.backbones.tsvit import TSViT, TSViTSize
    from geomed.heads.class_tokens import ClassTokensPooled
    from geomed.mapping.network import Network, reads_series

    size = TSViTSize(dim=16, heads=2, head_dim=8, temporal_depth=1, spatial_depth=1)
    backbone = TSViT(inputs=network.backbone.inputs, num_classes=3, size=size, image_size=8, space_token=True)
    with pytest.raises(ValueError, match="a map needs logits for each pixel, the head ClassTokensPooled gives"):
        reads_series(Network(backbone, ClassTokensPooled(backbone.spec)))


@pytest.mark.parametrize("command", ["map", "export"])
@pytest.mark.parametrize("name", ["Classification", "geomed.tasks.classification.Classification"])
def test_a_classification_makes_no_map(tmp_path, capfd, command, name):
    from geomed.cli import main

    folder, _ = make_run(tmp_path / "run", "ViT")
    edit(folder, lambda config: config.update(model={"class_path": name, "init_args": config["model"]}))
    out = tmp_path / "model.onnx"
    given = ["--model", str(folder), "--out", str(out)]
    assert main([command, *given, *(["--input", "a.tif"] if command == "map" else ["--to", "onnx"])]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "config.yaml: a Classification answers for whole images" in line
    assert not out.exists()


def test_an_unknown_precision_is_refused(tmp_path):
    with pytest.raises(ValueError, match="one of 32, bf16, fp16, not '64'"):
        load_model(tmp_path, device=CPU, precision="64")


@pytest.mark.filterwarnings("default")
def test_a_run_of_geomed_fit(tmp_path, monkeypatch):
    from test_cli import CONFIG

    from geomed.cli import main

    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(CONFIG.format(root=tmp_path / "land"))
    assert main(["fit", "--config", "tiny.yaml"]) == 0
    assert main(["test", "--config", "tiny.yaml", "--ckpt_path", "last"]) == 0
    shutil.rmtree(tmp_path / "land")
    trained = load_model("runs/tiny", device=CPU)
    assert len(trained.model.classes) == 8
    assert trained.model.run(batch_of("TSViT", side=16)).shape == (2, 8, 16, 16)

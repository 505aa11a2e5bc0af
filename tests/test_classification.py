from __future__ import annotations

import csv
import json
import math

import lightning
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from geomed.adapters import LoRA
from geomed.backbones.inputs import Inputs
from geomed.backbones.vit import ViT, ViTSize
from geomed.cli import main
from geomed.data.case_ids import CaseIds
from geomed.data.datamodule import DataModule
from geomed.data.folder_of_classes import FolderOfClasses
from geomed.data.med_mnist import MedMnist
from geomed.data.rendition import Rendition
from geomed.data.shuffle import Shuffle
from geomed.evaluation.patient_splits import ByPatient
from geomed.heads.attention_mil import AttentionMIL
from geomed.heads.linear import Linear
from geomed.heads.pooled import PRESENT, CumulativeLink, Pooled
from geomed.pixels import IGNORE
from geomed.tasks.baselines import baseline
from geomed.tasks.case_losses import BinaryCrossEntropy, CategoricalCrossEntropy
from geomed.tasks.classification import Classification
from geomed.tasks.optimisation import Optimisation
from geomed.tokens import Tokens, TokenSpec

SPEC = TokenSpec(dim=6, patch=8, class_token=True)
SIZE = ViTSize(dim=16, depth=1, heads=2, patch=8)


def vit(bands=("grey",)):
    inputs = Inputs(bands, mean=[0.5] * len(bands), std=[0.25] * len(bands))
    return ViT("vit_tiny_patch16_224", inputs=inputs, image_size=16, size=SIZE)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two images of each of 60 patients in three classes, bright at a place that says which."""
    folder = tmp_path_factory.mktemp("DOE_JANE")
    draw = np.random.default_rng(0)
    for label in range(3):
        (folder / "scans" / f"grade{label}").mkdir(parents=True)
        for patient in range(20):
            for image in range(2):
                pixels = draw.integers(0, 200, (16, 16), dtype=np.uint8)
                pixels[:, 5 * label : 5 * label + 5] = 255
                Image.fromarray(pixels).save(folder / "scans" / f"grade{label}" / f"{label}{patient:02}_{image}.png")
    return folder


def source(scans, **given):
    usual = {
        "folder": str(scans / "scans"),
        "patients": "([0-9]+)_[01]",
        "by": ByPatient(fractions=(0.5, 0.25, 0.25)),
        "rendition": Rendition(size=16),
        "ids": CaseIds(key_file=str(scans / "key")),
    }
    return FolderOfClasses(**(usual | given))


def trainer(folder, epochs=8, **given):
    return lightning.Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **given,
    )


def task(head=lambda spec: Pooled(spec, 3), **given):
    torch.manual_seed(0)
    usual = {"adapter": LoRA(rank=2), "optimisation": Optimisation(lr=2e-2)}
    return Classification(backbone=vit(), head=head, **(usual | given))


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*log_every_n_steps", "ignore:.*LeafSpec"
)


def test_pooled_reads_the_class_token_or_the_mean():
    tokens = (Tokens(torch.randn(2, 5, 6), (2, 2), 1),)
    head = Pooled(SPEC, 3)
    torch.testing.assert_close(head(tokens, (16, 16)), head.linear(tokens[0].data[:, 0]))
    mean = Pooled(SPEC, 3, tokens="mean")
    torch.testing.assert_close(mean(tokens, (16, 16)), mean.linear(tokens[0].data[:, 1:].mean(1)))
    with pytest.raises(ValueError, match="no class token"):
        Pooled(TokenSpec(dim=6, patch=8), 3, tokens="class")
    with pytest.raises(ValueError, match="take AttentionMIL"):
        head((tokens[0].carry(PRESENT, torch.ones(1, 2, dtype=torch.bool)),), (16, 16))


@pytest.mark.parametrize("grades", [2, 3, 5])
def test_grades_have_the_probabilities_of_proportional_odds(grades):
    torch.manual_seed(0)
    head = CumulativeLink(SPEC, grades).double()
    vectors = torch.randn(7, 6).double()
    with torch.no_grad():
        head.gaps += torch.randn(grades - 2)
    logs = head.answer(vectors).detach()
    torch.testing.assert_close(logs.exp().sum(1), torch.ones(7), check_dtype=False, atol=1e-6, rtol=0)
    thresholds = head.first.item() + np.concatenate([[0], np.cumsum(F.softplus(head.gaps).detach().numpy())])
    above = 1 / (1 + np.exp(-(head.linear(vectors).detach().numpy() - thresholds)))
    expected = -np.diff(np.concatenate([np.ones((7, 1)), above, np.zeros((7, 1))], axis=1), axis=1)
    np.testing.assert_allclose(logs.exp().numpy(), expected, atol=1e-6)
    far = head.answer(vectors * 1e4)
    assert torch.isfinite(far).all()  # no cancellation, where a difference of logistics would give log 0


def test_attention_leaves_absent_slices_out():
    torch.manual_seed(0)
    head = AttentionMIL(SPEC, 2, hidden=4)
    slices = torch.randn(5, 5, 6)
    present = torch.tensor([[True, True, True], [True, True, False]])
    tokens = Tokens(slices, (2, 2), 1, {PRESENT: present})
    alone = torch.cat(
        [
            head((Tokens(part, (2, 2), 1, {PRESENT: torch.ones(1, len(part), dtype=torch.bool)}),), (16, 16))
            for part in (slices[:3], slices[3:])
        ]
    )
    torch.testing.assert_close(head((tokens,), (16, 16)), alone)
    with pytest.raises(ValueError, match="single images"):
        head((Tokens(slices, (2, 2), 1),), (16, 16))


def test_cross_entropy_weighs_and_adjusts_as_published():
    logits, labels = torch.randn(4, 2), torch.tensor([0, 1, IGNORE, 1])
    seen = torch.tensor([0] * 9 + [1])
    weighted = CategoricalCrossEntropy("balanced")
    weighted.bind(("a", "b"), seen)
    weights = torch.tensor([10 / 18, 10 / 2])
    torch.testing.assert_close(weighted(logits, labels), F.cross_entropy(logits, labels, weights, ignore_index=IGNORE))
    adjusted = CategoricalCrossEntropy(adjustment=1.0)
    adjusted.bind(("a", "b"), seen)
    shifted = logits + torch.tensor([math.log(0.9), math.log(0.1)])
    torch.testing.assert_close(adjusted(logits, labels), F.cross_entropy(shifted, labels, ignore_index=IGNORE))
    with pytest.raises(ValueError, match="choose one"):
        CategoricalCrossEntropy("balanced", adjustment=1.0)
    with pytest.raises(ValueError, match="no training case shows b"):
        weighted.bind(("a", "b"), torch.zeros(3))


def test_unknown_findings_count_in_no_loss():
    logits = torch.randn(3, 2, requires_grad=True)
    labels = torch.tensor([[1.0, IGNORE], [0.0, 1.0], [IGNORE, IGNORE]])
    loss = BinaryCrossEntropy()
    loss.bind(("a", "b"), labels)
    expected = F.binary_cross_entropy_with_logits(logits[[0, 1, 1], [0, 0, 1]], torch.tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(loss(logits, labels), expected)
    loss(logits, labels).backward()
    assert not logits.grad[[0, 2, 2], [1, 0, 1]].any()
    nothing = loss(logits, torch.full((3, 2), float(IGNORE)))
    assert nothing == 0


def test_a_run_learns_and_leaves_what_the_report_reads(scans, tmp_path):
    data = DataModule(source(scans, names=("grade0", "grade1", "grade2"), graded=True), batch_size=16, augment=None)
    model = task(lambda spec: CumulativeLink(spec, 3, tokens="mean"), adapter=None)
    run = trainer(tmp_path / "run")
    run.fit(model, data)
    assert {"val/auroc", "val/quadratic_kappa"} <= set(run.callback_metrics)
    run.test(model, data, verbose=False)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["overall"]["AUROC"]["value"] > 0.8
    assert metrics["calibration"]["temperature"]["fitted_on"] == "val"
    assert [point["point"]["chosen_on"] for point in metrics["operating_points"]] == ["val", "val"]
    setup = json.loads((tmp_path / "run" / "evaluation" / "setup.json").read_text())
    assert setup["kind"] == "ordinal"
    assert setup["test_openings"] == 1
    assert setup["split"]["counts"]["test"] == {
        "patients": 15,
        "images": 30,
        "by_class": {"grade0": 10, "grade1": 10, "grade2": 10},
    }
    with (tmp_path / "run" / "evaluation" / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["part"] for row in rows} == {"val", "test"}
    assert len(rows) == 60
    sums = [sum(math.exp(float(row[f"logit_grade{k}"])) for k in range(3)) for row in rows]
    np.testing.assert_allclose(sums, 1, atol=1e-5)
    run.predict(model, data, return_predictions=False)
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"DOE" not in everything
    assert len((tmp_path / "run" / "predictions.csv").read_text().splitlines()) == 31
    run.test(model, data, verbose=False)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test_openings"] == 2


def test_a_frozen_backbone_reads_each_case_once(scans, tmp_path):
    counted = []
    model = task(adapter=None, freeze=True)
    model.backbone.register_forward_pre_hook(lambda _, given: counted.append(len(given[0].values)))
    trainer(tmp_path, epochs=3, num_sanity_val_steps=0).fit(
        model, DataModule(source(scans), batch_size=20, augment=None)
    )
    assert sum(counted) == 60 + 30  # train and val, whatever the epochs
    assert model.baseline == "linear probe"
    kept = model._kept
    batch = {name: value[None] for name, value in source(scans).split("train")[0].items()}
    model._trainer = None
    pixels = model(batch)
    torch.testing.assert_close(pixels, model.head.answer(kept[int(batch["case"])]))


def test_volumes_go_slice_by_slice(tmp_path):
    draw = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 12), ("val", 6), ("test", 6)):
        labels = np.arange(count)[:, None] % 2
        images = draw.integers(0, 120, (count, 28, 28, 28), dtype=np.uint8)
        images[:, 10:14] += (100 * labels[:, :, None, None]).astype(np.uint8)
        arrays |= {f"{part}_images": images, f"{part}_labels": labels.astype(np.uint8)}
    np.savez(tmp_path / "nodulemnist3d.npz", **arrays)
    volumes = MedMnist(file=str(tmp_path / "nodulemnist3d.npz"), name="nodulemnist3d", duplicates=None)
    model = task(lambda spec: AttentionMIL(spec, 2, hidden=4), adapter=None, freeze=True)
    data = DataModule(volumes, batch_size=4, augment=None)
    run = trainer(tmp_path / "run", epochs=2)
    run.fit(model, data)
    run.test(model, data, verbose=False)
    setup = json.loads((tmp_path / "run" / "evaluation" / "setup.json").read_text())
    assert setup["kind"] == "binary"
    assert setup["overrides"] == ["duplicates were not looked for"]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["patients"] is None


@pytest.mark.parametrize(
    ("head", "given", "told"),
    [
        (lambda spec: Pooled(spec, 2), {}, "num_classes 3"),
        (lambda spec: CumulativeLink(spec, 3), {}, "is for grades, these labels are multiclass"),
        (lambda spec: Pooled(spec, 3), {"loss": BinaryCrossEntropy()}, "does not learn multiclass labels"),
        (lambda spec: Linear(spec, 3), {}, "answers for every pixel"),
        (lambda spec: AttentionMIL(spec, 3), {}, "single images"),
    ],
)
def test_what_does_not_fit_is_refused(scans, tmp_path, head, given, told):
    with pytest.raises(ValueError, match=told):
        trainer(tmp_path, epochs=1).fit(task(head, **given), DataModule(source(scans), batch_size=16))


def test_other_channels_and_a_key_in_the_run_are_refused(scans, tmp_path):
    colours = source(scans, rendition=Rendition(size=16, colour=True))
    with pytest.raises(ValueError, match="the source gives the channels red"):
        trainer(tmp_path, epochs=1).fit(task(), DataModule(colours))
    inside = source(scans, ids=CaseIds(key_file=str(tmp_path / "key")))
    with pytest.raises(ValueError, match="inside the run's folder"):
        trainer(tmp_path, epochs=1).fit(task(), DataModule(inside))


def test_balanced_sampling_draws_every_class_as_often():
    labels = torch.tensor([0] * 900 + [1] * 100)
    shares = 1 / torch.bincount(labels).double()[labels]
    drawn = labels[[index for index, _ in Shuffle(torch.utils.data.TensorDataset(labels), 0, shares)]]
    assert abs(float(drawn.float().mean()) - 0.5) < 0.06


def config(scans):
    vit_args = {"name": "vit_tiny_patch16_224", "image_size": 16}
    vit_args["size"] = {"dim": 16, "depth": 1, "heads": 2, "patch": 8}
    vit_args["inputs"] = {"class_path": "Inputs", "init_args": {"bands": ["grey"], "mean": [0.5], "std": [0.25]}}
    by = {"class_path": "ByPatient", "init_args": {"fractions": [0.5, 0.25, 0.25]}}
    folder = {"folder": str(scans / "scans"), "patients": "([0-9]+)_[01]", "by": by, "rendition": {"size": 16}}
    model = {
        "backbone": {"class_path": "ViT", "init_args": vit_args},
        "head": {"class_path": "Pooled", "init_args": {"num_classes": 3}},
        "adapter": {"class_path": "LoRA", "init_args": {"rank": 2}},
    }
    return {
        "model": {"class_path": "Classification", "init_args": model},
        "data": {
            "source": {
                "class_path": "FolderOfClasses",
                "init_args": folder | {"ids": {"key_file": str(scans / "key")}},
            },
            "batch_size": 30,
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "num_sanity_val_steps": 0},
    }


def test_the_command_line_fits_and_tests(scans, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config(scans)))
    assert main(["test", "--config", "tiny.yaml"]) == 2
    assert "run geomed fit first" in capfd.readouterr().err
    assert main(["fit", "--config", "tiny.yaml"]) == 0
    assert main(["test", "--config", "tiny.yaml"]) == 0
    run = tmp_path / "runs" / "tiny"
    assert json.loads((run / "evaluation" / "setup.json").read_text())["model"]["adapter"] == "LoRA"
    saved = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert saved["classes"] == ["grade0", "grade1", "grade2"]
    for path in run.glob("checkpoints/*"):
        assert str(tmp_path).encode() not in path.read_bytes()
        assert b"DOE" not in path.read_bytes()


def test_baselines_keep_all_but_the_model(scans):
    own = config(scans)
    own["trainer"]["default_root_dir"] = "runs/tiny"
    own["ckpt_path"] = "runs/tiny/checkpoints/best.ckpt"
    probe, cnn = baseline(own, "linear-probe"), baseline(own, "cnn")
    for changed in (probe, cnn):
        assert changed["data"]["source"] == own["data"]["source"]
        assert changed["model"]["init_args"]["adapter"] is None
        assert changed["model"]["init_args"]["head"] == own["model"]["init_args"]["head"]
    assert probe["model"]["init_args"]["freeze"]
    assert probe["ckpt_path"] == "runs/tiny-linear-probe/checkpoints/best.ckpt"
    assert cnn["model"]["init_args"]["backbone"]["init_args"]["name"] == "resnet18"
    assert cnn["trainer"]["default_root_dir"] == "runs/tiny-cnn"
    with pytest.raises(ValueError, match="baselines are of a classification"):
        baseline({"model": {"backbone": {}}}, "cnn")


def test_baselines_are_refused_elsewhere(capfd):
    assert main(["predict", "--baselines"]) == 2
    assert "leave --baselines out" in capfd.readouterr().err
    assert main(["fit", "--baselines"]) == 2
    assert "is for a Classification" in capfd.readouterr().err

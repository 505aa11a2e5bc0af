r"""Adapt a vision backbone to labelled scans, beside a linear probe and a small CNN, and score each once, by patient.

python apps/medical_classification.py --table scans.csv --label diagnosis --classes benign malignant \
    --patients patient_id --model vit_small_patch14_reg4_dinov2.lvd142m --pretrained --size 224 --out out/scans
python apps/medical_classification.py --simulate --out out/simulated     # simulated patients: runs anywhere

Research software, not a medical device.
"""

import argparse
import json
from pathlib import Path

from lightning import Trainer, seed_everything

import geomed

SMALL = geomed.ViTSize(dim=64, depth=4, heads=4, patch=8)  # of the simulation
ADAPTERS = {
    "dvpt": geomed.DVPT(count=16, bottleneck=16, every=2),
    "lora": geomed.LoRA(rank=8, alpha=16, targets=("attn.qkv", "attn.proj", "fc1", "fc2")),
    "adaptformer": geomed.AdaptFormer(bottleneck=16, scale=0.5),
    "bitfit": geomed.BitFit(),
}
BANDS, MEAN, STD = ("red", "green", "blue"), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


def source(given: argparse.Namespace, *, home: bool = False) -> geomed.ScanTable | geomed.SimulatedCohort:
    """The scans, split by patient; of the simulation also those of other patients, whom the base is learned from."""
    rendition = geomed.Rendition(size=given.size, colour=True, window=given.window)
    cache, by = geomed.ScanCache(folder=str(given.out / "cache")), geomed.ByPatient(fractions=(0.6, 0.15, 0.25))
    ids = geomed.CaseIds(key_file=given.key)
    if given.simulate:
        label = geomed.OneOf(legend=geomed.Legend(classes={"healthy": [0], "referable": [1]}), column="referable")
        root, seed = str(given.out / ("home" if home else "cohort")), int(home)
        return geomed.SimulatedCohort(
            root=root, seed=seed, labels=label, by=by, rendition=rendition, cache=cache, ids=ids
        )
    label = geomed.OneOf(legend=geomed.Legend(classes={name: [name] for name in given.classes}), column=given.label)
    return geomed.ScanTable(
        table=given.table, labels=label, patients=given.patients, by=by, rendition=rendition, cache=cache, ids=ids
    )


def task(given: argparse.Namespace, method: str, classes: int) -> geomed.Classification:
    """A network for the classes: an adapter on a frozen backbone, its linear probe, or a small CNN."""
    inputs = geomed.Inputs(BANDS, MEAN, STD)
    if method == "cnn":
        backbone: geomed.Cnn | geomed.ViT = geomed.Cnn("resnet10t", inputs=inputs)
    else:
        small = SMALL if given.simulate else None
        backbone = geomed.ViT(
            given.model, inputs=inputs, pretrained=given.pretrained, image_size=given.size, size=small
        )
    based = given.base is not None and method != "cnn"
    return geomed.Classification(
        backbone=backbone,
        head=lambda spec: geomed.Pooled(spec, classes),
        adapter=ADAPTERS.get(method),
        freeze=method == "probe",
        weights=geomed.BaseWeights(path=given.base, head=False) if based else None,
        optimisation=geomed.Optimisation(lr=1e-3 if method in {"cnn", "base"} else 3e-3),
    )


def run(given: argparse.Namespace, method: str, scans: geomed.ScanTable | geomed.SimulatedCohort) -> Trainer:
    """Train, score test once where this is no base, and give the trainer back."""
    seed_everything(0)
    # nothing is mirrored: what is to be seen may depend on left and right
    data = geomed.DataModule(scans, batch_size=32, augment=None)
    folder = given.out / method
    trainer = Trainer(default_root_dir=folder, max_epochs=given.epochs, logger=False, enable_checkpointing=False)
    model = task(given, method, len(scans.classes))
    trainer.fit(model, datamodule=data)
    if method != "base":
        trainer.test(model, datamodule=data, verbose=False)
    return trainer


def main() -> None:
    """Train, score and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", help="CSV or Parquet with a header: a path, a label and a patient for each scan")
    parser.add_argument("--label", default="label", help="column of the label (default: label)")
    parser.add_argument("--classes", nargs="+", help="values of that column; of two the second is the positive one")
    parser.add_argument("--patients", default="patient_id", help="column of the patient; 'none' if nobody knows")
    parser.add_argument("--window", help="of scans that are no 8-bit pictures: lung, soft tissue, file, robust …")
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="timm's name of a VisionTransformer")
    parser.add_argument("--pretrained", action="store_true", help="fetch its weights; otherwise they are random")
    parser.add_argument("--base", help="checkpoint of an earlier run to start from, in place of timm's weights")
    parser.add_argument("--size", type=int, default=224, help="side of the images (default: 224)")
    parser.add_argument("--adapter", choices=ADAPTERS, default="dvpt")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--key", help="file of the key that names of cases are made with (default: the user's own)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for runs and cache")
    parser.add_argument("--simulate", action="store_true", help="simulate patients, and a base learned from others")
    given = parser.parse_args()
    if not given.simulate and None in (given.table, given.classes):
        parser.error("give --table and --classes, or --simulate")
    methods = (given.adapter, "probe", "cnn")
    if given.simulate:
        given.size = 64
        trained = run(given, "base", source(given, home=True))
        given.base = str(given.out / "base.ckpt")
        trained.save_checkpoint(given.base)
    scans = source(given)
    for method in methods:
        run(given, method, scans)
    print(f"{'method':<14}{'AUROC':>8}{'95 % interval':>18}{'ECE':>8}")
    for method in methods:
        found = json.loads((given.out / method / "metrics.json").read_text(encoding="utf-8"))
        auroc, ece = found["overall"]["AUROC"], found["calibration"]["ece_after"]
        interval = f"{auroc['interval']['low']:.3f}–{auroc['interval']['high']:.3f}"
        print(f"{method:<14}{auroc['value']:>8.3f}{interval:>18}{ece:>8.3f}")
    print(f"geomed report {' '.join(str(given.out / method) for method in methods)}")


if __name__ == "__main__":
    main()

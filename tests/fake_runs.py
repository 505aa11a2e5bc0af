"""Runs that a test of a report can read: simulated logits in the files that ``geomed test`` leaves."""

from __future__ import annotations

import csv
import hashlib
import json

import numpy as np
from PIL import Image

NAMES = {
    "binary": ("benign", "malignant"),
    "multiclass": ("bcc", "melanoma", "naevus", "keratosis"),
    "multilabel": ("effusion", "nodule", "oedema"),
    "ordinal": ("none", "mild", "moderate", "severe"),
}


def make_run(
    folder,
    *,
    kind="binary",
    classes=None,
    patients=90,
    images=2,
    skill=1.6,
    sure=2.5,
    adapter="LoRA",
    baseline=None,
    seed=0,
    cohort=0,
    known=True,
    pictures=0,
    fingerprint=None,
    attributes=True,
    **changes,
):
    """Write a run; ``skill`` parts the classes, ``sure`` blows the logits up, ``cohort`` names the test cases."""
    classes = list(classes or NAMES[kind])
    who, noise = np.random.default_rng((cohort, 1)), np.random.default_rng((seed, cohort, 2))
    rows, counts = [], {}
    for part, size in (("val", patients), ("test", patients)):
        owner = np.repeat(np.arange(size), images)
        count = len(owner)
        if kind == "multilabel":
            truth = (who.random((size, len(classes))) < np.linspace(0.2, 0.5, len(classes)))[owner].astype(int)
            level = 2 * truth - 1.0
        else:
            shares = np.array([0.65, 0.35]) if len(classes) == 2 else np.ones(len(classes)) / len(classes)
            truth = who.choice(len(classes), size, p=shares)[owner]
            truth[: len(classes) * images] = np.repeat(np.arange(len(classes)), images)
            level = np.eye(len(classes))[truth]
            if kind == "ordinal":
                level = -np.abs(np.arange(len(classes)) - truth[:, None])
        shared = who.normal(size=(size, len(classes)))[owner]
        logits = sure * (skill * level + 0.7 * shared + 0.6 * noise.normal(size=(count, len(classes))))
        if kind == "ordinal":
            logits -= np.log(np.exp(logits).sum(1, keepdims=True))
        groups = {
            "site": np.array(["North", "South", "East"])[who.choice(3, size, p=[0.5, 0.44, 0.06])][owner],
            "sex": np.array(["F", "M", ""])[who.choice(3, size, p=[0.45, 0.45, 0.1])][owner],
        }
        for at in range(count):
            case = hashlib.sha256(f"{cohort} {part} {at}".encode()).hexdigest()[:16]
            patient = hashlib.sha256(f"{cohort} {part} patient {owner[at]}".encode()).hexdigest()[:16]
            row = {"case": case, "patient": patient if known else "", "part": part}
            if kind == "multilabel":
                row |= {f"truth_{name}": truth[at, k] for k, name in enumerate(classes)}
            else:
                row["truth"] = truth[at]
            row |= {f"logit_{name}": repr(float(logits[at, k])) for k, name in enumerate(classes)}
            rows.append(row | ({name: values[at] for name, values in groups.items()} if attributes else {}))
        columns = truth if kind == "multilabel" else np.eye(len(classes), dtype=int)[truth]
        by_class = dict(zip(classes, columns.sum(0).tolist(), strict=True))
        counts[part] = {"patients": size if known else None, "images": count, "by_class": by_class}
    setup = {
        "kind": kind,
        "classes": classes,
        "data": ["Simulated scans, 2 images of each patient", "no image is of a person"],
        "split": {"image_level": not known, "counts": {"train": counts["val"], **counts}},
        "overrides": [],
        "model": {
            "backbone": "vit_small_patch16_224",
            "adapter": adapter,
            "trained": 73_728,
            "parameters": 21_665_664,
            "baseline": baseline,
        },
        "seed": seed,
        "test_openings": 1,
        "test_fingerprint": fingerprint or hashlib.sha256(f"test {kind} {cohort}".encode()).hexdigest(),
        "geomed": "0.0.1",
        "modality": "ultrasound",
    }
    evaluation = folder / "evaluation"
    evaluation.mkdir(parents=True)
    with (evaluation / "cases.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (evaluation / "setup.json").write_text(json.dumps(setup | changes), encoding="utf-8")
    for kept in ("thumbnails", "attention") if pictures else ():
        (evaluation / kept).mkdir()
        for row in [row for row in rows if row["part"] == "test"][:pictures]:
            across = np.linspace(0, 6, 96)
            wave = np.sin(across)[:, None] * np.cos(across * (1 + len(rows) % 3))
            pixels = (128 + 100 * wave + noise.normal(0, 18, (96, 96))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(evaluation / kept / f"{row['case']}.png")
    return folder

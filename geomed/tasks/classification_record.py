"""What a tested classification leaves in the run's folder: every answer, what it came from, and the scores."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from geomed import __version__
from geomed.evaluation.bootstrap import Bootstrap
from geomed.evaluation.calibration import CalibrationError
from geomed.evaluation.classification_scores import ClassificationScores
from geomed.evaluation.labelled_cases import LabelledCases, kind
from geomed.evaluation.openings import openings_beside
from geomed.evaluation.operating_point import OperatingPoint, OperatingScores, Rule
from geomed.evaluation.single_label import SingleLabel
from geomed.evaluation.splits import PARTS
from geomed.evaluation.temperature import Temperature
from geomed.pixels import IGNORE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor
    from torch.utils.data import Dataset

    from geomed.evaluation.predictions import Predictions
    from geomed.tasks.answers import Answers

WORST = 12
"""Errors of which a thumbnail is kept."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a report says of a model."""

    backbone: str
    """Name of the backbone."""

    adapter: str | None
    """Names of the adapters; None: there is none."""

    trained: int
    """Numbers that were trained."""

    parameters: int
    """Numbers of the whole model."""

    baseline: str | None
    """linear probe or cnn; None: this is no baseline."""


def write_record(
    folder: Path,
    source: LabelledCases,
    answers: Mapping[str, Answers],
    *,
    model: ModelFacts,
    rule: Rule,
    samples: Dataset[dict[str, Tensor]],
    attention: Callable[[Tensor], NDArray[np.floating] | None] | None = None,
) -> tuple[str, dict[str, float]]:
    """Score the test part and write ``evaluation/`` and ``metrics.json`` into the run's folder.

    The opening of the test set is noted beside the run's folder before its truth is used.

    Args:
        folder: the run's.
        source: of the cases.
        answers: of test, and of val where there is such a part.
        model: what is said of it.
        rule: how the operating point is chosen.
        samples: of the test part, for pictures of the worst errors.
        attention: the values [C, H, W] of one of these → how much attention each pixel gets [H, W]; None: nobody can
            say.

    Returns:
        The table of the scores, and the one that a log keeps, by name.

    Raises:
        ValueError: the record of openings is damaged, or the cases cannot be scored.
    """
    evaluation = folder / "evaluation"
    evaluation.mkdir(parents=True, exist_ok=True)
    raw = answers["test"].predictions(source)
    opened = openings_beside(folder).record(raw.fingerprint, run=folder.name)
    _write_cases(evaluation / "cases.csv", source, answers)
    setup = _setup(source, model, opened, raw.fingerprint)
    (evaluation / "setup.json").write_text(json.dumps(setup, indent=2) + "\n", encoding="utf-8")
    scored = _scored(raw, answers["val"].predictions(source) if "val" in answers else None, rule)
    notes = [
        f"{found.unknown} of {len(found.cases)} cases of {part} have a finding that nobody knows; the scores leave "
        "them out"
        for part, found in answers.items()
        if found.unknown
    ]
    scored.notes.extend(notes)
    metrics = scored.to_dict() | {"test_openings": opened}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    _write_worst(evaluation, source, scored.predictions, samples, attention)
    lines = [scored.table(), f"this test set has been opened {opened} time{'s' * (opened > 1)}"]
    return "\n".join(lines), {"auroc": scored.scores.overall["AUROC"].value}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scored:
    scores: ClassificationScores
    predictions: Predictions
    temperature: Temperature | None
    before: float
    after: float
    points: list[OperatingScores]
    notes: list[str]

    def to_dict(self) -> dict[str, object]:
        told = self.scores.to_dict()
        return told | {
            "calibration": {
                "temperature": None if self.temperature is None else self.temperature.to_dict(),
                "ece_before": self.before,
                "ece_after": self.after,
            },
            "operating_points": [point.to_dict() for point in self.points],
            "notes": [*self.scores.notes, *self.notes],
        }

    def table(self) -> str:
        lines = [self.scores.table()]
        if self.temperature is not None:
            lines.append(
                f"temperature {self.temperature.value:.3f}, fitted on val; calibration error {self.before:.3f} before, "
                f"{self.after:.3f} after"
            )
        return "\n".join([*lines, *(point.table() for point in self.points), *self.notes])


def _scored(raw: Predictions, val: Predictions | None, rule: Rule) -> _Scored:
    """Temperature and operating points of val, scores of test."""
    notes: list[str] = []
    temperature = None
    if val is None:
        notes.append("there is no val part: probabilities are not scaled, and no operating point is chosen")
    else:
        try:
            temperature = Temperature.fit(val)
        except ValueError as error:
            notes.append(f"probabilities are not scaled: {error}")
    test = raw if temperature is None else temperature.apply(raw)
    points = []
    if val is not None:
        scaled = val if temperature is None else temperature.apply(val)
        for chosen, asked in zip(_questions(scaled), _questions(test), strict=True):
            try:
                points.append(OperatingScores.of(OperatingPoint.choose(chosen, rule), asked))
            except ValueError as error:
                notes.append(f"no operating point for {asked.classes[1]}: {error}")
    if temperature is not None and temperature.note:
        notes.append(temperature.note)
    return _Scored(
        scores=ClassificationScores.of(test, bootstrap=Bootstrap(seed=0)),
        predictions=test,
        temperature=temperature,
        before=CalibrationError().of(raw),
        after=CalibrationError().of(test),
        points=points,
        notes=notes,
    )


def _questions(predictions: Predictions) -> list[SingleLabel]:
    """The questions of yes or no that a threshold answers: each grade or higher, or each scored class against all."""
    if isinstance(predictions, SingleLabel) and predictions.ordered and not predictions.binary:
        return [predictions.at_least(name) for name in predictions.classes[1:]]
    return [predictions.one_against_rest(predictions.classes[at]) for at in predictions.scored]


def _write_cases(path: Path, source: LabelledCases, answers: Mapping[str, Answers]) -> None:
    rows = []
    for part in ("val", "test"):
        if part not in answers:
            continue
        found = answers[part]
        for at, case in enumerate(found.cases.tolist()):
            row: dict[str, object] = {
                "case": source.case_id(case),
                "patient": source.patient_id(case) or "",
                "part": part,
            }
            if source.several:
                pairs = zip(source.classes, found.truth[at].tolist(), strict=True)
                row |= {f"truth_{name}": "" if truth == IGNORE else truth for name, truth in pairs}
            else:
                row["truth"] = int(found.truth[at])
            pairs = zip(source.classes, found.logits[at].tolist(), strict=True)
            rows.append(row | {f"logit_{name}": logit for name, logit in pairs} | source.attributes(case))
    _write_rows(path, rows)


def _write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    heads = list(dict.fromkeys(head for row in rows for head in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, heads, restval="")
        writer.writeheader()
        writer.writerows(rows)


def write_predictions(folder: Path, source: LabelledCases, answers: Answers) -> Path:
    """``predictions.csv``: a row for each case, with its name that says nothing, and the shares of the classes.

    They are the network's own, before any temperature.
    """
    folder.mkdir(parents=True, exist_ok=True)
    logits = answers.logits
    if source.several:
        shares = np.exp(-np.logaddexp(0, -logits))
    else:
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
    rows: list[dict[str, object]] = []
    for at, case in enumerate(answers.cases.tolist()):
        row: dict[str, object] = {"case": source.case_id(case), "patient": source.patient_id(case) or ""}
        if not source.several:
            row["decided"] = source.classes[int(shares[at].argmax())]
        row |= {f"probability_{name}": share for name, share in zip(source.classes, shares[at].tolist(), strict=True)}
        rows.append(row | {f"logit_{name}": x for name, x in zip(source.classes, logits[at].tolist(), strict=True)})
    path = folder / "predictions.csv"
    _write_rows(path, rows)
    return path


def _setup(source: LabelledCases, model: ModelFacts, opened: int, fingerprint: str) -> dict[str, object]:
    division = source.division
    counts: dict[str, object] = {}
    for part in PARTS:
        own = division.part(part)
        if not own:
            continue
        labels = source.truth(part)
        shown = [int((labels[:, k] == 1).sum() if source.several else (labels == k).sum()) for k in _numbers(source)]
        patients = {source.patient_id(case) for case in own}
        counts[part] = {
            "patients": None if None in patients else len(patients),
            "images": len(own),
            "by_class": dict(zip(source.classes, shown, strict=True)),
        }
    seed = os.environ.get("PL_GLOBAL_SEED", "")  # where Lightning keeps what --seed_everything said
    return {
        "kind": kind(source),
        "classes": list(source.classes),
        "data": source.summary.splitlines(),
        "split": {"image_level": division.image_level, "counts": counts},
        "overrides": list(source.overrides),
        "model": asdict(model),
        "seed": int(seed) if seed.isdigit() else None,
        "test_openings": opened,
        "test_fingerprint": fingerprint,
        "geomed": __version__,
        "modality": source.modality,
    }


def _numbers(source: LabelledCases) -> range:
    return range(len(source.classes))


def _write_worst(
    evaluation: Path,
    source: LabelledCases,
    predictions: Predictions,
    samples: Dataset[dict[str, Tensor]],
    attention: Callable[[Tensor], NDArray[np.floating] | None] | None,
) -> None:
    """Thumbnails of the most confident errors and the attention on them, pixels alone; those of an earlier test go."""
    for path in [*evaluation.glob("thumbnails/*.png"), *evaluation.glob("attention/*.png")]:
        path.unlink()
    numbers = {source.case_id(case): at for at, case in enumerate(source.division.part("test"))}
    for at in _worst(predictions):
        name = predictions.cases[at]
        values = _shown(samples[numbers[name]])
        drawn = _picture(values)
        _write_png(evaluation / "thumbnails" / f"{name}.png", drawn)
        shares = None if attention is None else attention(values)
        if shares is not None:
            _write_png(evaluation / "attention" / f"{name}.png", _overlay(drawn, shares))


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)


def _worst(predictions: Predictions) -> list[int]:
    """Cases that were decided wrongly, the most confident first."""
    shares = predictions.probabilities
    if isinstance(predictions, SingleLabel):
        wrong = predictions.decided != predictions.truth
        confidence = shares.max(1)
    else:
        missed = np.abs(shares - predictions.targets)
        confidence = missed.max(1)
        wrong = (predictions.answers != predictions.targets).any(1)
    order = np.argsort(np.where(wrong, -confidence, np.inf), kind="stable")
    return [int(at) for at in order[: min(WORST, int(wrong.sum()))]]


def _shown(sample: dict[str, Tensor]) -> Tensor:
    """[C, H, W]: the image, or the middle slice of a volume."""
    return sample["values"] if "values" in sample else sample["slices"][int(sample["present"].sum()) // 2]


def _picture(values: Tensor) -> NDArray[np.uint8]:
    """Grey or colour."""
    values = values[: 3 if len(values) >= 3 else 1]
    if values.is_floating_point():
        low, high = float(values.min()), float(values.max())
        values = (values - low) / max(high - low, 1e-12) * 255
    pixels: NDArray[np.uint8] = values.numpy().astype(np.uint8)
    return np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def _overlay(picture: NDArray[np.uint8], shares: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Attention in colour on the picture in grey, from the least to the most that a pixel of this picture gets."""
    from matplotlib import colormaps  # late: only a test with errors needs it

    grey = np.asarray(Image.fromarray(picture).convert("L"), np.float64) / 255
    heat = shares.astype(np.float64) - shares.min()
    heat /= max(float(heat.max()), 1e-12)
    mixed = 0.5 * grey[..., None] + 0.5 * colormaps["inferno"](heat)[..., :3]
    drawn: NDArray[np.uint8] = np.round(255 * mixed).astype(np.uint8)
    return drawn

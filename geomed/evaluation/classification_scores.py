"""How well a run classifies, with intervals by patients: what goes to metrics.json and to the screen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from geomed.evaluation.agreement import F1, Accuracy, BalancedAccuracy, Kappa, confusion_matrix
from geomed.evaluation.binning import EqualMass
from geomed.evaluation.calibration import CalibrationError, ClasswiseCalibrationError, DebiasedCalibrationError
from geomed.evaluation.delong import DeLong
from geomed.evaluation.multi_label import MultiLabel
from geomed.evaluation.predictions import refuse_one_class
from geomed.evaluation.proper_scores import Brier, LogLoss
from geomed.evaluation.roc import AUROC, AveragePrecision
from geomed.evaluation.single_label import SingleLabel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geomed.evaluation.bootstrap import Bootstrap
    from geomed.evaluation.interval import Estimate
    from geomed.evaluation.measure import Measure
    from geomed.evaluation.predictions import Predictions

IMAGE_LEVEL = "patients are unknown: intervals take images for independent and are too narrow; image-level, optimistic"
"""What stands under the scores of images whose patients nobody knows."""


@dataclass(frozen=True, kw_only=True)
class ClassificationScores:
    """Scores of one run on one part. Every one is an ``Estimate``: a value, an interval, or why there is none."""

    part: str
    """train, val or test."""

    classes: tuple[str, ...]
    """Names."""

    images: int
    """How many images."""

    patients: int
    """Of how many patients; as many as images where patients are unknown."""

    support: tuple[int, ...]
    """Images of each class in the truth."""

    overall: dict[str, Estimate]
    """By name of the measure; of two classes also AUROC with the interval in closed form."""

    per_class: dict[str, dict[str, Estimate]]
    """AUROC, AUPRC and F1 of each scored class against the rest, by class and name of the measure."""

    confusion: tuple[tuple[int, ...], ...] | None
    """Counts of images, rows are the truth, columns the most probable class; None for labels."""

    temperature: float
    """What the probabilities had been scaled with, 1 for none."""

    fingerprint: str
    """Which cases with which truth."""

    notes: tuple[str, ...] = ()
    """What a reader must know."""

    @classmethod
    def of(
        cls, predictions: Predictions, *, bootstrap: Bootstrap, measures: Sequence[Measure] | None = None
    ) -> ClassificationScores:
        """Score predictions.

        Args:
            predictions: of one part.
            bootstrap: of the intervals.
            measures: of the whole; None for ``standard_measures``.

        Raises:
            ValueError: all cases are of one class, or of one patient, or a measure has no meaning for such a task.
        """
        refuse_one_class(predictions, "scoring a classification")
        chosen = tuple(measures) if measures is not None else standard_measures(predictions)
        names = tuple(predictions.classes[at] for at in predictions.scored)
        several = names if len(names) > 1 else ()
        each = [(name, kind) for name in several for kind in (AUROC, AveragePrecision, F1)]
        estimates = bootstrap.estimates(predictions, [*chosen, *(kind(classes=(name,)) for name, kind in each)])
        overall = {measure.name: estimate for measure, estimate in zip(chosen, estimates, strict=False)}
        if DeLong.possible(predictions):
            closed = DeLong.of(predictions)
            overall[f"AUROC ({closed.method})"] = closed.estimate(level=bootstrap.level)
        per_class: dict[str, dict[str, Estimate]] = {name: {} for name in several}
        for (name, kind), estimate in zip(each, estimates[len(chosen) :], strict=True):
            per_class[name][kind().name] = estimate
        confusion = confusion_matrix(predictions).tolist() if isinstance(predictions, SingleLabel) else None
        return cls(
            part=predictions.part,
            classes=predictions.classes,
            images=len(predictions.cases),
            patients=predictions.n_patients,
            support=tuple(int(count) for count in predictions.targets.sum(0)),
            overall=overall,
            per_class=per_class,
            confusion=None if confusion is None else tuple(map(tuple, confusion)),
            temperature=predictions.temperature,
            fingerprint=predictions.fingerprint,
            notes=(IMAGE_LEVEL,) if predictions.image_level else (),
        )

    def to_dict(self) -> dict[str, object]:
        """The scores as JSON can hold them: NaN becomes None, with its reason."""
        return {
            "part": self.part,
            "images": self.images,
            "patients": None if IMAGE_LEVEL in self.notes else self.patients,
            "support": dict(zip(self.classes, self.support, strict=True)),
            "overall": {name: estimate.to_dict() for name, estimate in self.overall.items()},
            "per_class": {
                name: {measure: estimate.to_dict() for measure, estimate in estimates.items()}
                for name, estimates in self.per_class.items()
            },
            "confusion": None if self.confusion is None else [list(row) for row in self.confusion],
            "temperature": self.temperature,
            "fingerprint": self.fingerprint,
            "notes": list(self.notes),
        }

    def table(self) -> str:
        """The scores as aligned plain text: the whole, then the classes; "–" and its reason stand for NaN."""
        who = "unknown patients" if IMAGE_LEVEL in self.notes else f"{self.patients:,} patients"
        lines = [f"{self.part}: {self.images:,} images of {who}"]
        lines.append(", ".join(f"{name} {count:,}" for name, count in zip(self.classes, self.support, strict=True)))
        width = max(map(len, self.overall), default=0)
        for name, estimate in self.overall.items():
            lines.append(f"{name:<{width}}  {estimate.text()}  {estimate.reason}".rstrip())
        if self.per_class:
            heads = list(next(iter(self.per_class.values())))
            cells = [["class", *heads, "images"]]
            for name, estimates in self.per_class.items():
                count = self.support[self.classes.index(name)]
                cells.append([name, *(estimates[head].text() for head in heads), f"{count:,}"])
            widths = [max(len(row[at]) for row in cells) for at in range(len(cells[0]))]
            lines.append("-" * (sum(widths) + 2 * len(widths) - 2))
            lines += [
                f"{row[0]:<{widths[0]}}"
                + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
                for row in cells
            ]
        return "\n".join([*lines, *self.notes])


def standard_measures(predictions: Predictions) -> tuple[Measure, ...]:
    """The measures of a task: ranking, decisions, agreement of grades, and probabilities."""
    ranking: tuple[Measure, ...] = (AUROC(), AveragePrecision())
    if isinstance(predictions, MultiLabel):
        return (*ranking, F1(), Accuracy(), Brier(), LogLoss(), CalibrationError())
    ordered = isinstance(predictions, SingleLabel) and predictions.ordered
    return (
        *ranking,
        Accuracy(),
        BalancedAccuracy(),
        F1(),
        Kappa(),
        *((Kappa(quadratic=True),) if ordered else ()),
        Brier(),
        LogLoss(),
        CalibrationError(),
        CalibrationError(binning=EqualMass()),
        *(() if len(predictions.scored) == 1 else (ClasswiseCalibrationError(),)),
        DebiasedCalibrationError(),
    )

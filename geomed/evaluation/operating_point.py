"""The threshold above which a case is called positive: chosen on validation, used on test."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from geomed.evaluation.proportion import Proportion
from geomed.evaluation.roc import Curve
from geomed.evaluation.single_label import binary

if TYPE_CHECKING:
    from geomed.evaluation.predictions import Predictions


class Rule(ABC):
    """How an operating point is chosen on a curve; implementations are frozen dataclasses."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What a person calls it."""

    @abstractmethod
    def choose(self, curve: Curve) -> int:
        """The place on the curve.

        Raises:
            ValueError: only a threshold that calls all cases the same would do.
        """


@dataclass(frozen=True)
class Youden(Rule):
    """The greatest sensitivity + specificity - 1 (Youden, Cancer 3, 1950); of equal ones the highest threshold."""

    @property
    def name(self) -> str:
        """What a person calls it."""
        return "greatest Youden index"

    def choose(self, curve: Curve) -> int:
        """The place on the curve."""
        index = curve.sensitivity + curve.specificity - 1
        at = int(np.argmax(index > index.max() - 1e-12))
        if index[at] <= 1e-12:
            raise ValueError(
                "no threshold separates the validation cases better than chance; there is no operating point to use"
            )
        return at


@dataclass(frozen=True)
class SensitivityAtLeast(Rule):
    """The greatest specificity among thresholds that find at least this share of the positive cases."""

    share: float
    """Between 0 and 1."""

    def __post_init__(self) -> None:
        """Refuse percent."""
        _refuse_percent(self.share)

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"sensitivity of at least {self.share:g}"

    def choose(self, curve: Curve) -> int:
        """The place on the curve."""
        at = int(np.argmax(curve.sensitivity >= self.share - 1e-12))  # the first, for specificity falls from there
        if curve.specificity[at] <= 0:
            raise ValueError(
                f"a {self.name} is reached on validation only by calling every case positive; ask for less"
            )
        return at


@dataclass(frozen=True)
class SpecificityAtLeast(Rule):
    """The greatest sensitivity among thresholds that pass at least this share of the negative cases."""

    share: float
    """Between 0 and 1."""

    def __post_init__(self) -> None:
        """Refuse percent."""
        _refuse_percent(self.share)

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"specificity of at least {self.share:g}"

    def choose(self, curve: Curve) -> int:
        """The place on the curve."""
        enough = curve.specificity >= self.share - 1e-12
        at = int(np.argmax(np.where(enough, curve.sensitivity, -1.0)))
        if curve.sensitivity[at] <= 0:
            raise ValueError(
                f"a {self.name} is reached on validation only by calling every case negative; ask for less"
            )
        return at


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """A threshold, and on what it was chosen. Cases that score at least as much are called positive."""

    threshold: float
    """Probability of the positive class."""

    positive: str
    """Name of the positive class."""

    rule: str
    """How it was chosen."""

    part: str
    """On what it was chosen: val, and nothing else."""

    images: int
    """How many images that were."""

    patients: int
    """Of how many patients."""

    sensitivity: float
    """What it gave there: a choice flatters itself, so that this is no result."""

    specificity: float
    """Likewise."""

    temperature: float
    """Which temperature the probabilities had been scaled with."""

    fingerprint: str
    """Which cases they were."""

    def __post_init__(self) -> None:
        """Refuse what was not chosen on validation."""
        if self.part != "val":
            raise ValueError(
                f"an operating point is chosen on validation, not on {self.part}: sensitivity and specificity of the "
                "cases that a threshold was chosen on flatter it; give the predictions of val"
            )
        if not math.isfinite(self.threshold):
            raise ValueError(f"a threshold is a probability, not {self.threshold}")

    @classmethod
    def choose(cls, predictions: Predictions, rule: Rule) -> OperatingPoint:
        """Choose a threshold on validation.

        Raises:
            ValueError: the predictions are not of validation, there are more than two classes or cases of one only,
                or the rule finds nothing.
        """
        if predictions.part != "val":  # before anything of the test set is looked at
            raise ValueError(
                f"an operating point is chosen on validation, not on {predictions.part}; give the predictions of val"
            )
        asked = binary(predictions, "an operating point")
        curve = Curve.of(asked)
        at = rule.choose(curve)
        return cls(
            threshold=float(curve.thresholds[at]),
            positive=asked.classes[1],
            rule=rule.name,
            part=asked.part,
            images=len(asked.cases),
            patients=asked.n_patients,
            sensitivity=float(curve.sensitivity[at]),
            specificity=float(curve.specificity[at]),
            temperature=asked.temperature,
            fingerprint=asked.fingerprint,
        )

    def to_dict(self) -> dict[str, object]:
        """The point as JSON can hold it."""
        return {
            "threshold": self.threshold,
            "positive": self.positive,
            "rule": self.rule,
            "chosen_on": self.part,
            "images": self.images,
            "patients": self.patients,
            "sensitivity_there": self.sensitivity,
            "specificity_there": self.specificity,
            "temperature": self.temperature,
            "fingerprint": self.fingerprint,
        }


@dataclass(frozen=True, kw_only=True)
class OperatingScores:
    """What an operating point chosen elsewhere does to these cases."""

    point: OperatingPoint
    """The threshold and its origin."""

    sensitivity: Proportion
    """Share of the positive cases called positive."""

    specificity: Proportion
    """Share of the negative cases called negative."""

    positive_predictive_value: Proportion
    """Share of the cases called positive that are, at the prevalence of these cases."""

    negative_predictive_value: Proportion
    """Share of the cases called negative that are, at the prevalence of these cases."""

    @classmethod
    def of(cls, point: OperatingPoint, predictions: Predictions, *, level: float = 0.95) -> OperatingScores:
        """Score predictions at the point.

        Raises:
            ValueError: the predictions are of another class, have been scaled otherwise, are the very cases that the
                point was chosen on under the name of test, or have cases of one class only.
        """
        asked = binary(predictions, "scoring an operating point")
        if asked.classes[1] != point.positive:
            raise ValueError(
                f"the operating point is of {point.positive!r}, these predictions of {asked.classes[1]!r}; choose one "
                "for each class"
            )
        if not math.isclose(asked.temperature, point.temperature, rel_tol=1e-9):
            raise ValueError(
                f"the threshold was chosen at temperature {point.temperature:.4g}, these probabilities have "
                f"{asked.temperature:.4g}; scale validation and test with the same, then choose"
            )
        if asked.part == "test" and asked.fingerprint == point.fingerprint:
            raise ValueError(
                f"the operating point was chosen on these very {point.images} cases: they are not a test; use others"
            )
        called, positive = asked.probabilities[:, 1] >= point.threshold, asked.targets[:, 1]

        def share(hit: np.ndarray, among: np.ndarray) -> Proportion:
            return Proportion.of(hit[among], asked.patient_of[among], level=level)

        return cls(
            point=point,
            sensitivity=share(called, positive),
            specificity=share(~called, ~positive),
            positive_predictive_value=share(positive, called),
            negative_predictive_value=share(~positive, ~called),
        )

    def to_dict(self) -> dict[str, object]:
        """The scores as JSON can hold them."""
        told: dict[str, object] = {"point": self.point.to_dict()}
        return told | {name: share.to_dict() for name, share in self._shares()}

    def table(self) -> str:
        """The scores in percent as aligned plain text, one line each, with counts of images and patients."""
        head = (
            f"positive: {self.point.positive}, at a probability of {self.point.threshold:.4g} or more; chosen for the "
            f"{self.point.rule} on {self.point.images:,} images of {self.point.patients:,} patients of validation"
        )
        lines = [
            head,
            f"{'':<12}{'%':>8}{f'{100 * self._level:g} % interval':>18}{'images':>16}{'patients':>10}",
        ]
        for name, share in self._shares():
            value = f"{100 * share.value:.1f}" if share.images else "–"
            within = "" if share.interval is None else f"{100 * share.interval.low:.1f}–{100 * share.interval.high:.1f}"
            images = f"{share.hits:,} / {share.images:,}"
            lines.append(f"{SHORT[name]:<12}{value:>8}{within:>18}{images:>16}{share.patients:>10,}")
        return "\n".join(lines)

    @property
    def _level(self) -> float:
        interval = self.sensitivity.interval
        return 0.95 if interval is None else interval.level

    def _shares(self) -> tuple[tuple[str, Proportion], ...]:
        return (
            ("sensitivity", self.sensitivity),
            ("specificity", self.specificity),
            ("positive_predictive_value", self.positive_predictive_value),
            ("negative_predictive_value", self.negative_predictive_value),
        )


SHORT = {
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "positive_predictive_value": "PPV",
    "negative_predictive_value": "NPV",
}
"""What stands in a table."""


def _refuse_percent(share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"sensitivity and specificity are shares above 0 and up to 1, not {share}; divide percent")

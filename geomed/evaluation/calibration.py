"""Whether probabilities mean what they say: of the cases given 80 %, four in five should be so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float  # noqa: TC002  (annotations stay readable at run time)

from geomed.evaluation.binning import Binning, EqualMass, EqualWidth
from geomed.evaluation.measure import Measure, Weighted, columns, ratio
from geomed.evaluation.proper_scores import BrierParts
from geomed.evaluation.proportion import Proportion
from geomed.evaluation.single_label import SingleLabel, single

if TYPE_CHECKING:
    from geomed.evaluation.predictions import Predictions

    Confidence = tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]
    """What was said of each case, and whether it came true."""


TWICE = "resampling adds the bias of bins a second time, so that an interval would lie above the score"
"""Why calibration errors have no bootstrap interval; the bins of ``reliability`` have one each."""


@dataclass(frozen=True, kw_only=True)
class CalibrationError(Measure):
    """Expected calibration error (ECE): Σ over bins of (share of the cases) x |what was said - what came true|.

    Naeini, Cooper and Hauskrecht, AAAI 2015; of several classes with the probability of the most probable one and
    whether it is right (Guo et al., ICML 2017, "On calibration of modern neural networks", equation 3); of two classes
    with the probability of the positive one and whether the case is positive, which is the question in medicine; of
    labels the mean over labels. Its value depends on the bins, and of few cases it is too great even for perfect
    probabilities: see ``DebiasedCalibrationError``.
    """

    binning: Binning = field(default_factory=EqualWidth)
    """How probabilities are put into bins. A bootstrap keeps the bins of the whole."""

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"ECE ({self.binning.name})"

    @property
    def greater_is_better(self) -> bool:
        """Less is better."""
        return False

    @property
    def no_interval(self) -> str:
        """The bias of bins."""
        return TWICE

    def bind(self, predictions: Predictions) -> Weighted:
        """The error under weights."""
        return _mean([_absolute(*said, self.binning) for said in confidences(predictions)])


@dataclass(frozen=True, kw_only=True)
class ClasswiseCalibrationError(Measure):
    """The mean over classes of the ECE of each against the rest (Kull et al., NeurIPS 2019, section 2.1)."""

    binning: Binning = field(default_factory=EqualWidth)
    """How probabilities are put into bins."""

    classes: tuple[str, ...] = ()
    """Which classes the mean runs over; none: the positive class of two, or all."""

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"classwise ECE ({self.binning.name})"

    @property
    def greater_is_better(self) -> bool:
        """Less is better."""
        return False

    @property
    def no_interval(self) -> str:
        """The bias of bins."""
        return TWICE

    def bind(self, predictions: Predictions) -> Weighted:
        """The error under weights."""
        targets, scores = predictions.targets, predictions.probabilities
        return _mean(
            [_absolute(scores[:, at], targets[:, at], self.binning) for at in columns(predictions, self.classes)]
        )


@dataclass(frozen=True, kw_only=True)
class MaximumCalibrationError(Measure):
    """Maximum calibration error (MCE): the greatest gap of any bin that is not empty (Naeini et al., AAAI 2015).

    One case in a bin of its own can make it 1.
    """

    binning: Binning = field(default_factory=EqualWidth)
    """How probabilities are put into bins."""

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"MCE ({self.binning.name})"

    @property
    def greater_is_better(self) -> bool:
        """Less is better."""
        return False

    @property
    def no_interval(self) -> str:
        """The bias of bins."""
        return TWICE

    def bind(self, predictions: Predictions) -> Weighted:
        """The greatest gap under weights."""
        parts = [_binned(*said, self.binning) for said in confidences(predictions)]

        def greatest(weights: Float[np.ndarray, "draws n"]) -> Float[np.ndarray, " draws"]:
            gaps = [np.abs(np.nan_to_num(ratio(weights @ gap, weights @ member))).max(1) for gap, member in parts]
            return np.mean(gaps, axis=0)

        return greatest


@dataclass(frozen=True, kw_only=True)
class DebiasedCalibrationError(Measure):
    """Root mean square calibration error without the part that chance alone gives to small bins.

    Kumar, Liang and Ma, NeurIPS 2019, "Verified uncertainty calibration", section 5: from the squared gap of each bin
    y(1 - y) / (n - 1) is taken away; a sum below 0 counts as 0. Bins of one case say nothing and are left out.
    """

    binning: Binning = field(default_factory=EqualMass)
    """How probabilities are put into bins."""

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"debiased RMS calibration error ({self.binning.name})"

    @property
    def greater_is_better(self) -> bool:
        """Less is better."""
        return False

    @property
    def no_interval(self) -> str:
        """The bias of bins."""
        return TWICE

    def reason(self, predictions: Predictions) -> str:
        """All bins are too small."""
        return f"no bin of {self.binning.name} has two cases"

    def bind(self, predictions: Predictions) -> Weighted:
        """The error under weights."""
        parts = []
        for said, true in confidences(predictions):
            gap, member = _binned(said, true, self.binning)
            parts.append((gap, member, member * true[:, None]))

        def error(weights: Float[np.ndarray, "draws n"]) -> Float[np.ndarray, " draws"]:
            errors = []
            for gap, member, hit in parts:
                size = weights @ member
                size = np.where(size > 1, size, 0)
                share = ratio(weights @ hit, size)
                squares = ratio(weights @ gap, size) ** 2 - ratio(share * (1 - share), size - 1)
                squared = ratio((size * np.nan_to_num(squares)).sum(1), size.sum(1))
                errors.append(np.sqrt(np.maximum(squared, 0)))
            return np.mean(errors, axis=0)

        return error


@dataclass(frozen=True, kw_only=True)
class ReliabilityPoint:
    """One bin of a reliability diagram."""

    said: float
    """Mean probability of its cases."""

    true: Proportion
    """Share of them that came true, with counts of images and patients, and its interval."""

    def to_dict(self) -> dict[str, object]:
        """The point as JSON can hold it."""
        return {"said": self.said, "true": self.true.to_dict()}


def reliability(predictions: Predictions, *, binning: Binning | None = None) -> tuple[ReliabilityPoint, ...]:
    """The points of a reliability diagram, from the lowest probability up; empty bins have none.

    What was said is the probability of the positive class of two, or of the most probable one of several (DeGroot and
    Fienberg, The Statistician 32, 1983; intervals are those of ``Proportion``, by patients).

    Args:
        predictions: of one question. For a label or one of several classes take one_against_rest(name).
        binning: None for ten bins of equal mass.

    Raises:
        ValueError: several labels may hold for a case.
    """
    ((said, true),) = confidences(single(predictions, "a reliability diagram"))
    bins = (binning or EqualMass(bins=10)).assign(said)
    return tuple(
        ReliabilityPoint(
            said=float(said[bins == at].mean()),
            true=Proportion.of(true[bins == at], predictions.patient_of[bins == at]),
        )
        for at in np.unique(bins)
    )


def brier_parts(predictions: SingleLabel, *, binning: Binning | None = None) -> BrierParts:
    """The Brier score of the positive class of two, taken apart; the bins as in ``reliability``.

    Raises:
        ValueError: there are more than two classes.
    """
    if not predictions.binary:
        raise ValueError(
            f"a Brier score is taken apart for two classes, not {len(predictions.classes)}; take one_against_rest(name)"
        )
    said, true = predictions.probabilities[:, 1], predictions.targets[:, 1].astype(np.float64)
    bins = (binning or EqualMass(bins=10)).assign(said)
    counts = np.bincount(bins)
    mean_said = np.bincount(bins, weights=said) / np.maximum(counts, 1)
    mean_true = np.bincount(bins, weights=true) / np.maximum(counts, 1)
    share, prevalence = counts / len(said), float(true.mean())
    spread = said - mean_said[bins]
    return BrierParts(
        reliability=float(share @ (mean_said - mean_true) ** 2),
        resolution=float(share @ (mean_true - prevalence) ** 2),
        uncertainty=prevalence * (1 - prevalence),
        within=float(np.mean(spread**2) - 2 * np.mean(spread * (true - mean_true[bins]))),
    )


def confidences(predictions: Predictions) -> list[Confidence]:
    """What was said and whether it came true: one pair for one class of many, one for each label."""
    if isinstance(predictions, SingleLabel) and not predictions.binary:
        return [(predictions.probabilities.max(1), predictions.decided == predictions.truth)]
    return [(predictions.probabilities[:, at], predictions.targets[:, at]) for at in predictions.scored]


def _binned(
    said: Float[np.ndarray, " n"], true: Bool[np.ndarray, " n"], binning: Binning
) -> tuple[Float[np.ndarray, "n bins"], Float[np.ndarray, "n bins"]]:
    """What was said less what came true, in the column of each case's bin, and 1 there."""
    bins = np.unique(binning.assign(said), return_inverse=True)[1]  # empty bins need no column
    member = (bins[:, None] == np.arange(bins.max() + 1)).astype(np.float64)
    return member * (said - true)[:, None], member


def _absolute(said: Float[np.ndarray, " n"], true: Bool[np.ndarray, " n"], binning: Binning) -> Weighted:
    gap, _ = _binned(said, true, binning)
    return lambda weights: ratio(np.abs(weights @ gap).sum(1), weights.sum(1))


def _mean(parts: list[Weighted]) -> Weighted:
    return lambda weights: np.mean([part(weights) for part in parts], axis=0)

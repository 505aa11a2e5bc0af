"""Proper scores of probabilities: they are best, on average, only for the true ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from geomed.evaluation.measure import Measure, Weighted, ratio
from geomed.evaluation.single_label import SingleLabel

if TYPE_CHECKING:
    from geomed.evaluation.predictions import Predictions

SMALLEST = float(np.finfo(np.float64).tiny)
"""What a probability of 0 counts as in a logarithm, so that one rounded case costs 708 nats and not infinity."""


@dataclass(frozen=True, kw_only=True)
class Brier(Measure):
    """Brier score: mean squared distance of the probabilities from the truth, 0 at best.

    Of two classes (p - y)² of the positive one; of several the sum over classes, which is Brier's own definition
    (Monthly Weather Review 78, 1950) and at most 2; of labels the mean over labels.
    """

    @property
    def name(self) -> str:
        """What a person calls it."""
        return "Brier score"

    @property
    def greater_is_better(self) -> bool:
        """Less is better."""
        return False

    def bind(self, predictions: Predictions) -> Weighted:
        """The Brier score under weights."""
        squares = (predictions.probabilities - predictions.targets) ** 2
        if isinstance(predictions, SingleLabel):
            each = squares[:, 1] if predictions.binary else squares.sum(1)
        else:
            each = squares.mean(1)
        return lambda weights: ratio(weights @ each, weights.sum(1))


@dataclass(frozen=True, kw_only=True)
class LogLoss(Measure):
    """Negative log-likelihood of the truth per case in nats (Good 1952, "Rational decisions"); mean over labels."""

    @property
    def name(self) -> str:
        """What a person calls it."""
        return "log loss"

    @property
    def greater_is_better(self) -> bool:
        """Less is better."""
        return False

    def bind(self, predictions: Predictions) -> Weighted:
        """The log loss under weights."""
        if isinstance(predictions, SingleLabel):
            each = -log(np.take_along_axis(predictions.probabilities, predictions.truth[:, None], axis=1)[:, 0])
        else:
            yes = predictions.probabilities
            each = -np.where(predictions.targets, log(yes), log(1 - yes)).mean(1)
        return lambda weights: ratio(weights @ each, weights.sum(1))


@dataclass(frozen=True, kw_only=True)
class BrierParts:
    """What a Brier score is made of: reliability - resolution + uncertainty + within = Brier score.

    Murphy, Journal of Applied Meteorology 12, 1973, "A new vector partition of the probability score"; forecasts that
    differ within a bin leave a rest, the within-bin part of Stephenson, Coelho and Jolliffe, Weather and Forecasting
    23, 2008, "Two extra components in the Brier score decomposition".
    """

    reliability: float
    """Mean squared distance between what the bins predict and what happens in them; 0 is calibrated."""

    resolution: float
    """Mean squared distance between what happens in the bins and the prevalence; more is better."""

    uncertainty: float
    """Prevalence x (1 - prevalence), which no prediction changes."""

    within: float
    """Variance of the predictions within bins less twice their covariance with the truth."""

    def to_dict(self) -> dict[str, float]:
        """The parts by name."""
        return {
            "reliability": self.reliability,
            "resolution": self.resolution,
            "uncertainty": self.uncertainty,
            "within": self.within,
        }


def log(shares: np.ndarray) -> np.ndarray:
    """Logarithm of probabilities, of 0 as of the smallest number."""
    logs: np.ndarray = np.log(np.maximum(shares, SMALLEST))
    return logs

"""Ranking: the receiver operating characteristic, precision against recall, and the areas under them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float  # noqa: TC002  (annotations stay readable at run time)

from geomed.evaluation.measure import Measure, Weighted, absent, columns, ratio
from geomed.evaluation.single_label import binary

if TYPE_CHECKING:
    from geomed.evaluation.predictions import Predictions


@dataclass(frozen=True, kw_only=True)
class AUROC(Measure):
    """Area under the ROC curve: how likely a case of the class scores above one without it, ties counting half.

    The Mann-Whitney statistic (Hanley and McNeil, Radiology 143, 1982, "The meaning and use of the area under a ROC
    curve"). Of several classes the mean of each against the rest, unweighted (macro). A class that the truth lacks
    makes the mean NaN: it is not left out unless ``classes`` says so.
    """

    classes: tuple[str, ...] = ()
    """Which classes the mean runs over; none: the positive class of two, or all."""

    @property
    def name(self) -> str:
        """What a person calls it."""
        return "AUROC" + (f" of {', '.join(self.classes)}" if self.classes else "")

    @property
    def greater_is_better(self) -> bool:
        """More is better."""
        return True

    def reason(self, predictions: Predictions) -> str:
        """Which class is missing."""
        return absent(predictions, self.classes)

    def bind(self, predictions: Predictions) -> Weighted:
        """The area under weights."""
        targets, scores = predictions.targets, predictions.probabilities
        return _mean([_area(targets[:, at], scores[:, at]) for at in columns(predictions, self.classes)])

    def pooled(self, first: Predictions, second: Predictions) -> Weighted:
        """The area under weights of both, by their ranks within each, for the scales of two runs need not agree."""
        at = columns(first, self.classes)
        return _mean([_area(*_ranked(first, second, k)) for k in at])


@dataclass(frozen=True, kw_only=True)
class AveragePrecision(Measure):
    """Area under precision against recall as average precision, the sum of precision x step of recall.

    The step-wise sum, without interpolation: straight lines between points would flatter (Davis and Goadrich, ICML
    2006, "The relationship between precision-recall and ROC curves"). Its level by chance is the prevalence. Of several
    classes the unweighted mean, NaN if one of them is not in the truth.
    """

    classes: tuple[str, ...] = ()
    """Which classes the mean runs over; none: the positive class of two, or all."""

    @property
    def name(self) -> str:
        """What a person calls it."""
        return "AUPRC" + (f" of {', '.join(self.classes)}" if self.classes else "")

    @property
    def greater_is_better(self) -> bool:
        """More is better."""
        return True

    def reason(self, predictions: Predictions) -> str:
        """Which class is missing."""
        return absent(predictions, self.classes)

    def bind(self, predictions: Predictions) -> Weighted:
        """The average precision under weights."""
        at = columns(predictions, self.classes)
        return _mean([_average_precision(predictions.targets[:, k], predictions.probabilities[:, k]) for k in at])

    def pooled(self, first: Predictions, second: Predictions) -> Weighted:
        """The average precision under weights of both, by their ranks within each."""
        at = columns(first, self.classes)
        return _mean([_average_precision(*_ranked(first, second, k)) for k in at])


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """What every threshold gives: cases that score at least so much are called positive."""

    thresholds: Float[np.ndarray, " t"]
    """Decreasing; the first is infinity, where nothing is called positive, the others are scores that occur."""

    sensitivity: Float[np.ndarray, " t"]
    """Share of the positive cases called positive, the recall; increasing from 0 to 1."""

    specificity: Float[np.ndarray, " t"]
    """Share of the negative cases called negative; decreasing from 1 to 0."""

    precision: Float[np.ndarray, " t"]
    """Share of the cases called positive that are; NaN where none is called so."""

    @classmethod
    def of(cls, predictions: Predictions) -> Curve:
        """The curve of the positive class of two, with a point for every different score.

        Raises:
            ValueError: there are more than two classes, or cases of one only.
        """
        asked = binary(predictions, "a ROC curve")
        positive, scores = asked.targets[:, 1], asked.probabilities[:, 1]
        order, ends = _descending(scores)
        hits = np.concatenate(([0.0], np.cumsum(positive[order], dtype=np.float64)[ends]))
        called = np.concatenate(([0.0], ends + 1.0))
        return cls(
            thresholds=np.concatenate(([math.inf], scores[order][ends])),
            sensitivity=hits / positive.sum(),
            specificity=1 - (called - hits) / (~positive).sum(),
            precision=ratio(hits, called),
        )

    def thinned(self, points: int = 200) -> Curve:
        """At most so many points, evenly along the curve with both its ends: enough for a drawing."""
        if len(self.thresholds) <= points:
            return self
        walked = np.concatenate(
            ([0.0], np.cumsum(np.abs(np.diff(self.sensitivity)) + np.abs(np.diff(self.specificity))))
        )
        at = np.unique(np.searchsorted(walked, np.linspace(0, walked[-1], points)))
        return Curve(
            thresholds=self.thresholds[at],
            sensitivity=self.sensitivity[at],
            specificity=self.specificity[at],
            precision=self.precision[at],
        )

    def to_dict(self) -> dict[str, list[float | None]]:
        """The points as JSON can hold them: the first threshold, infinity, and NaN become None."""
        fields = {"threshold": self.thresholds, "sensitivity": self.sensitivity}
        fields |= {"specificity": self.specificity, "precision": self.precision}
        return {
            name: [float(value) if math.isfinite(value) else None for value in values]
            for name, values in fields.items()
        }


def _area(positive: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> Weighted:
    """AUROC as a function of weights: negatives are sorted once, and every draw is one running sum over them."""
    yes, no = np.flatnonzero(positive), np.flatnonzero(~positive)
    no = no[np.argsort(scores[no], kind="stable")]
    yes = yes[np.argsort(scores[yes], kind="stable")]  # only for the sake of memory: neighbours are read together
    below = np.searchsorted(scores[no], scores[yes], side="left")
    up_to = np.searchsorted(scores[no], scores[yes], side="right")
    tied = bool((below != up_to).any())

    def area(weights: Float[np.ndarray, "draws n"]) -> Float[np.ndarray, " draws"]:
        beaten = np.zeros((len(weights), len(no) + 1))
        np.cumsum(weights[:, no], axis=1, out=beaten[:, 1:])
        mine = weights[:, yes]
        wins = np.einsum("dn,dn->d", mine, beaten[:, below])
        if tied:
            wins = (wins + np.einsum("dn,dn->d", mine, beaten[:, up_to])) / 2
        return ratio(wins, mine.sum(1) * beaten[:, -1])

    return area


def _average_precision(positive: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> Weighted:
    """Average precision as a function of weights: mean precision where a positive case enters, by its weight."""
    order = np.argsort(-scores, kind="stable")
    yes = np.flatnonzero(positive)
    yes = yes[np.argsort(-scores[yes], kind="stable")]
    # equal scores enter together: up to the last case, and the last positive one, of the same score
    last = np.searchsorted(-scores[order], -scores[yes], side="right") - 1
    last_hit = np.searchsorted(-scores[yes], -scores[yes], side="right") - 1

    def area(weights: Float[np.ndarray, "draws n"]) -> Float[np.ndarray, " draws"]:
        if not len(yes):
            return np.full(len(weights), math.nan)
        mine = weights[:, yes]
        hits = np.cumsum(mine, axis=1)
        called = np.cumsum(weights[:, order], axis=1)[:, last]
        precision = np.divide(hits[:, last_hit], called, out=np.zeros_like(called), where=called > 0)
        return ratio(np.einsum("dn,dn->d", mine, precision), hits[:, -1])

    return area


def _mean(parts: list[Weighted]) -> Weighted:
    """The unweighted mean over classes; one that is NaN makes it NaN."""

    def mean(weights: Float[np.ndarray, "draws n"]) -> Float[np.ndarray, " draws"]:
        return sum((part(weights) for part in parts), np.zeros(len(weights))) / len(parts)

    return mean


def _descending(scores: Float[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    """The order from the greatest score down, and the last place of each group of equal ones in it."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    return order, ends


def _ranked(first: Predictions, second: Predictions, at: int) -> tuple[np.ndarray, np.ndarray]:
    """Truth and scores of one class in both, as ranks within each: exchanging ranks tests areas, not scales.

    Bandos, Rockette and Gur, Statistics in Medicine 24, 2005, "A permutation test sensitive to differences in areas for
    comparing ROC curves from a paired design".
    """
    targets = np.concatenate([part.targets[:, at] for part in (first, second)])
    return targets, np.concatenate([midranks(part.probabilities[:, at]) for part in (first, second)])


def midranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Ranks from 1; equal values share the mean of their ranks."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[group]
    return ranks

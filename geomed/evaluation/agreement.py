"""How far decided classes agree with the true ones: accuracy, F1, kappa."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float  # noqa: TC002  (annotations stay readable at run time)

from geomed.evaluation.measure import Measure, Weighted, columns, ratio, weighing
from geomed.evaluation.multi_label import MultiLabel
from geomed.evaluation.single_label import SingleLabel, single

if TYPE_CHECKING:
    from collections.abc import Callable

    from geomed.evaluation.predictions import Predictions

    Confusion = Callable[[Float[np.ndarray, "draws n"]], Float[np.ndarray, "draws truth predicted"]]
    """A confusion matrix under every row of weights."""


@dataclass(frozen=True, kw_only=True)
class Accuracy(Measure):
    """Share of the cases whose most probable class is the true one; of labels the mean over labels, decided at 0.5."""

    @property
    def name(self) -> str:
        """What a person calls it."""
        return "accuracy"

    @property
    def greater_is_better(self) -> bool:
        """More is better."""
        return True

    def bind(self, predictions: Predictions) -> Weighted:
        """The accuracy under weights."""
        if isinstance(predictions, SingleLabel):
            right = (predictions.decided == predictions.truth).astype(np.float64)
        else:
            right = (predictions.answers == predictions.targets).mean(1)
        return lambda weights: ratio(weights @ right, weights.sum(1))


@dataclass(frozen=True, kw_only=True)
class BalancedAccuracy(Measure):
    """Mean recall of the classes (Brodersen et al., ICPR 2010); of labels the mean of (sensitivity + specificity) / 2.

    NaN where a class has no case: its recall is unknown, and the mean of the others is another measure.
    """

    @property
    def name(self) -> str:
        """What a person calls it."""
        return "balanced accuracy"

    @property
    def greater_is_better(self) -> bool:
        """More is better."""
        return True

    def reason(self, predictions: Predictions) -> str:
        """Which class is missing."""
        counts, total = predictions.targets.sum(0), len(predictions.cases)
        bad = [
            name
            for name, count in zip(predictions.classes, counts, strict=True)
            if not count or (isinstance(predictions, MultiLabel) and count == total)
        ]
        return f"recall is unknown for want of cases: {', '.join(bad)}"

    def bind(self, predictions: Predictions) -> Weighted:
        """The balanced accuracy under weights."""
        matrices = _matrices(predictions)

        def balanced(weights: Float[np.ndarray, "draws n"]) -> Float[np.ndarray, " draws"]:
            recalls = [_diagonal(matrix(weights)) for matrix in matrices]
            return np.mean([ratio(*recall).mean(1) for recall in recalls], axis=0)

        return balanced


@dataclass(frozen=True, kw_only=True)
class F1(Measure):
    """2 TP / (2 TP + FP + FN), the harmonic mean of precision and recall; of several classes the unweighted mean.

    F1 of a class that is neither in the truth nor ever decided is 0 / 0: it makes the mean NaN. The mean is of F1 over
    classes, not the F1 of mean precision and recall (Opitz and Burst, 2019, "Macro F1 and Macro F1", on the two).
    """

    classes: tuple[str, ...] = ()
    """Which classes the mean runs over; none: the positive class of two, or all."""

    @property
    def name(self) -> str:
        """What a person calls it."""
        return "F1" + (f" of {', '.join(self.classes)}" if self.classes else "")

    @property
    def greater_is_better(self) -> bool:
        """More is better."""
        return True

    def reason(self, predictions: Predictions) -> str:
        """Which class is missing."""
        occurs = (predictions.targets | predictions.answers).any(0)
        bad = [predictions.classes[at] for at in columns(predictions, self.classes) if not occurs[at]]
        return f"neither in the truth nor decided: {', '.join(bad)}; name the classes of the mean to leave some out"

    def bind(self, predictions: Predictions) -> Weighted:
        """F1 under weights."""
        at = columns(predictions, self.classes)
        held, answered = (table[:, at].astype(np.float64) for table in (predictions.targets, predictions.answers))
        return lambda weights: ratio(2 * (weights @ (held * answered)), weights @ (held + answered)).mean(1)


@dataclass(frozen=True, kw_only=True)
class Kappa(Measure):
    """Cohen's kappa, agreement beyond chance: 1 - Σ w·observed / Σ w·expected over all disagreements.

    Unweighted after Cohen 1960 ("A coefficient of agreement for nominal scales"); with quadratic weights (i - j)² after
    Cohen 1968 ("Weighted kappa"), the usual score of grades. NaN where truth and decision are one and the same class.
    """

    quadratic: bool = False
    """Whether a disagreement counts by the square of its distance in grades, which needs ordered classes."""

    @property
    def name(self) -> str:
        """What a person calls it."""
        return "quadratic-weighted kappa" if self.quadratic else "kappa"

    @property
    def greater_is_better(self) -> bool:
        """More is better."""
        return True

    def reason(self, predictions: Predictions) -> str:
        """All is one class."""
        return "truth and decision are one and the same class, so that chance explains all"

    def bind(self, predictions: Predictions) -> Weighted:
        """Kappa under weights.

        Raises:
            ValueError: several labels may hold for a case, or quadratic weights are asked of classes without order.
        """
        asked = single(predictions, "kappa")
        if self.quadratic and not (asked.ordered or asked.binary):
            raise ValueError(
                f"quadratic weights need ordered classes, these have no order: {', '.join(asked.classes)}; "
                "say ordered=True where they are grades"
            )
        count = len(asked.classes)
        grades = np.arange(count, dtype=np.float64)
        cost = (grades[:, None] - grades) ** 2 if self.quadratic else 1 - np.eye(count)
        (matrix,) = _matrices(asked)

        def kappa(weights: Float[np.ndarray, "draws n"]) -> Float[np.ndarray, " draws"]:
            counts = matrix(weights)
            truth, decided = counts.sum(2), counts.sum(1)
            expected = np.einsum("di,ij,dj->d", truth, cost, decided)
            return 1 - ratio(np.einsum("dij,ij->d", counts, cost) * weights.sum(1), expected)

        return kappa


def confusion_matrix(predictions: SingleLabel) -> np.ndarray:
    """[K, K] counts of cases, rows are the truth, columns the most probable class."""
    count = len(predictions.classes)
    cells: np.ndarray = np.bincount(predictions.truth * count + predictions.decided, minlength=count**2)
    return cells.reshape(count, count)


def _matrices(predictions: Predictions) -> list[Confusion]:
    """The confusion matrix of the classes, or one of no and yes for each label."""
    if isinstance(predictions, SingleLabel):
        return [_confusion(predictions.truth, predictions.decided, len(predictions.classes))]
    answers = predictions.answers
    return [_confusion(predictions.truth[:, at], answers[:, at], 2) for at in predictions.scored]


def _confusion(truth: np.ndarray, decided: np.ndarray, count: int) -> Confusion:
    add = weighing(truth.astype(np.int64) * count + decided, count**2)
    return lambda weights: add(weights).reshape(len(weights), count, count)


def _diagonal(counts: Float[np.ndarray, "draws k k"]) -> tuple[np.ndarray, np.ndarray]:
    return np.diagonal(counts, axis1=1, axis2=2), counts.sum(2)

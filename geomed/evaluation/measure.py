"""What a measure of predictions is: one number, under any weights of the cases."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Integer

if TYPE_CHECKING:
    from typing import TypeVar

    from geomed.evaluation.predictions import Predictions

    Kind = TypeVar("Kind", bound=Predictions)

Weighted = Callable[[Float[np.ndarray, "draws n"]], Float[np.ndarray, " draws"]]
"""The measure of cases that count as often as each row of weights says; NaN where it has no meaning."""


class Measure(ABC):
    """A score of predictions; implementations are frozen keyword-only dataclasses.

    The value, its bootstrap, its jackknife and its permutation test all come out of the one function that ``bind``
    gives, so that they cannot follow different definitions.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """What a person calls it."""

    @property
    @abstractmethod
    def greater_is_better(self) -> bool:
        """Whether more of it is better."""

    @property
    def no_interval(self) -> str:
        """Why a bootstrap of the measure would mislead; empty where it would not."""
        return ""

    @abstractmethod
    def bind(self, predictions: Predictions) -> Weighted:
        """The measure of these cases as a function of their weights; whatever can be sorted or counted once is.

        Raises:
            ValueError: the measure has no meaning for such a task.
        """

    def reason(self, predictions: Predictions) -> str:
        """Why the measure of these predictions is NaN."""
        return "it has no meaning for these cases"

    def of(self, predictions: Predictions) -> float:
        """The measure, NaN where it has no meaning: ``reason`` says why."""
        return float(self.bind(predictions)(np.ones((1, len(predictions.cases))))[0])

    def pooled(self, first: Predictions, second: Predictions) -> Weighted:
        """The measure of the cases of both, the first's before the second's, for a test that exchanges the two."""
        return self.bind(joined(first, second))


def joined(first: Kind, second: Predictions) -> Kind:
    """The rows of both, one after the other; every patient is the same in both."""
    return replace(
        first,
        truth=np.concatenate((first.truth, second.truth)),
        probabilities=np.concatenate((first.probabilities, second.probabilities)),
        cases=(*(f"1 {case}" for case in first.cases), *(f"2 {case}" for case in second.cases)),
        patients=(first.patients or first.cases) + (second.patients or second.cases),
    )


def columns(predictions: Predictions, classes: tuple[str, ...]) -> tuple[int, ...]:
    """The columns that a mean over classes runs over: those named, or all that have a score of their own."""
    return tuple(predictions.column(name) for name in classes) if classes else predictions.scored


def absent(predictions: Predictions, classes: tuple[str, ...]) -> str:
    """Which of the classes that a mean runs over have no case, or no case without them; empty for none."""
    counts = predictions.targets.sum(0)
    total = len(predictions.cases)
    told = [
        f"{'no case is' if not counts[at] else f'all {total} cases are'} of {predictions.classes[at]!r}"
        for at in columns(predictions, classes)
        if counts[at] in (0, total)
    ]
    return ", ".join(told) + "; name the classes of the mean to leave some out" if told else ""


def weighing(
    groups: Integer[np.ndarray, " n"], count: int
) -> Callable[[Float[np.ndarray, "draws n"]], Float[np.ndarray, "draws groups"]]:
    """A function that adds the weights of each group of cases, for every row of weights."""
    order = np.argsort(groups, kind="stable")
    present, starts = np.unique(groups[order], return_index=True)

    def add(weights: Float[np.ndarray, "draws n"]) -> Float[np.ndarray, "draws groups"]:
        total = np.zeros((len(weights), count))
        total[:, present] = np.add.reduceat(weights[:, order], starts, axis=1)
        return total

    return add


def ratio(part: Float[np.ndarray, ...], whole: Float[np.ndarray, ...]) -> Float[np.ndarray, ...]:
    """Part of whole, NaN where there is no whole."""
    part, whole = np.broadcast_arrays(part, whole)
    shares: np.ndarray = np.divide(part, whole, out=np.full(whole.shape, math.nan), where=whole > 0)
    return shares

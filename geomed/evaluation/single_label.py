"""Predictions of which one class holds: binary, multi-class or ordinal."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np
from jaxtyping import Bool, Integer, Num  # noqa: TC002  (annotations stay readable at run time)

from geomed.evaluation.predictions import (
    SUM_TOLERANCE,
    Predictions,
    finite_logits,
    read_only,
    refuse_one_class,
    refuse_strange_truth,
    softmax,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True, eq=False)
class SingleLabel(Predictions):
    """One class holds for each case: binary, multi-class or ordinal. ``truth`` is [n], the index of the true class."""

    ordered: bool = False
    """Whether the classes are grades, from the lowest to the highest."""

    @classmethod
    def from_logits(
        cls,
        logits: Num[np.ndarray, "n k"] | Num[np.ndarray, " n"],
        *,
        classes: Sequence[str],
        truth: Integer[np.ndarray, " n"],
        cases: Sequence[str],
        patients: Sequence[str] | None,
        part: str,
        ordered: bool = False,
    ) -> Self:
        """Predictions from what the network gave: softmax in float64, where a float32 softmax would round to 0 and 1.

        float64 rounds to 1 where a logit leads by more than 36; cases beyond tie.

        Args:
            logits: [n, K]; or [n], the log-odds of the second class of two.
            classes: as in the fields, like all that follow.
            truth: likewise.
            cases: likewise.
            patients: likewise.
            part: likewise.
            ordered: likewise.

        Raises:
            ValueError: a logit is NaN or infinite, or any other field is wrong.
        """
        values = finite_logits(logits)
        if values.ndim == 1:
            values = np.stack((np.zeros_like(values), values), axis=1)
        return cls(
            classes=tuple(classes),
            truth=truth,
            probabilities=softmax(values),
            cases=tuple(cases),
            patients=None if patients is None else tuple(patients),
            part=part,
            ordered=ordered,
        )

    def _check_truth(self) -> None:
        refuse_strange_truth(self.truth, 1, len(self.classes))
        sums = self.probabilities.sum(1)
        far = np.abs(sums - 1) > SUM_TOLERANCE
        worst = sums[np.argmax(np.abs(sums - 1))]
        self.refuse_rows(
            far,
            f"do not sum to 1, the farthest to {worst:.6g}",
            "give softmax probabilities; labels that may hold together are MultiLabel",
        )

    @cached_property
    def targets(self) -> Bool[np.ndarray, "n k"]:
        """Which class holds for which case."""
        held: np.ndarray = self.truth[:, None] == np.arange(len(self.classes))
        return read_only(held)

    @property
    def binary(self) -> bool:
        """Whether there are two classes, the second of them the positive one."""
        return len(self.classes) == 2

    @property
    def scored(self) -> tuple[int, ...]:
        """The positive class of two, or all classes."""
        return (1,) if self.binary else tuple(range(len(self.classes)))

    @cached_property
    def decided(self) -> Integer[np.ndarray, " n"]:
        """The most probable class of each case; of equal ones the first."""
        most: np.ndarray = self.probabilities.argmax(1)
        return read_only(most)

    @property
    def answers(self) -> Bool[np.ndarray, "n k"]:
        """The most probable class of each case."""
        told: np.ndarray = self.decided[:, None] == np.arange(len(self.classes))
        return told

    def one_against_rest(self, name: str) -> SingleLabel:
        """The same cases as a question of yes or no: is it this class?"""
        at = self.column(name)
        if self.binary and at == 1:
            return self
        return self._yes_or_no(name, np.arange(len(self.classes)) == at)

    def at_least(self, name: str) -> SingleLabel:
        """The grades as a question of yes or no, as in referable disease: is it this grade or a higher one?

        Raises:
            ValueError: the classes are not ordered, or the grade is the lowest.
        """
        at = self.column(name)
        if not self.ordered or not at:
            raise ValueError(
                f"'at least {name}' needs ordered classes and a grade above the lowest, {self.classes[0]!r}; "
                "say ordered=True where the classes are grades"
            )
        return self._yes_or_no(f"{name} or higher", np.arange(len(self.classes)) >= at)

    def _yes_or_no(self, name: str, positive: Bool[np.ndarray, " k"]) -> SingleLabel:
        yes, no = self.probabilities[:, positive].sum(1), self.probabilities[:, ~positive].sum(1)
        return SingleLabel(
            classes=(f"not {name}", name),
            truth=positive[self.truth].astype(np.int64),
            probabilities=np.stack((no, yes), axis=1).clip(max=1),  # a sum of rounded shares may be a last digit above
            cases=self.cases,
            patients=self.patients,
            part=self.part,
            temperature=self.temperature,
        )

    def per_patient(self) -> Self:
        """One row for each patient: the mean of the probabilities of all images.

        Raises:
            ValueError: patients are unknown, or the images of one patient have different truths.
        """
        if self.patients is None:
            raise ValueError("rows by patient need to know the patients; give them, or score images")
        count = self.n_patients
        first = np.full(count, len(self.truth))
        np.minimum.at(first, self.patient_of, np.arange(len(self.truth)))
        torn = np.unique(self.patient_of[self.truth != self.truth[first][self.patient_of]])
        if len(torn):
            raise ValueError(
                f"one row for each patient needs one truth for each, {len(torn)} of {count} patients have images of "
                "different classes; score images, or let a table say what holds for the patient"
            )
        images = np.bincount(self.patient_of, minlength=count)
        sums = np.stack(
            [np.bincount(self.patient_of, weights=column, minlength=count) for column in self.probabilities.T], axis=1
        )
        names = tuple(self.patients[at] for at in first)
        return replace(
            self,
            truth=self.truth[first],
            probabilities=(sums / images[:, None]).clip(max=1),
            cases=names,
            patients=names,
        )


def single(predictions: Predictions, purpose: str) -> SingleLabel:
    """The predictions as one class for each case.

    Raises:
        ValueError: several labels may hold for a case.
    """
    if not isinstance(predictions, SingleLabel):
        raise ValueError(  # noqa: TRY004  (the project raises ValueError for every broken rule)
            f"{purpose} is of one class for each case, not of several labels; take one_against_rest(name)"
        )
    return predictions


def binary(predictions: Predictions, purpose: str) -> SingleLabel:
    """The predictions as a question of yes or no, with cases of both answers.

    Raises:
        ValueError: there are more than two classes, or cases of one only.
    """
    if not (isinstance(predictions, SingleLabel) and predictions.binary):
        raise ValueError(
            f"{purpose} is for one positive class against one negative, there are {len(predictions.classes)} "
            f"({', '.join(predictions.classes)}); take one_against_rest(name) or at_least(name)"
        )
    refuse_one_class(predictions, purpose)
    return predictions

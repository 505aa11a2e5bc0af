"""Predictions of labels of which any number holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from jaxtyping import Bool, Integer, Num  # noqa: TC002  (annotations stay readable at run time)

from geomed.evaluation.predictions import Predictions, finite_logits, refuse_strange_truth
from geomed.evaluation.single_label import SingleLabel

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True, eq=False)
class MultiLabel(Predictions):
    """Any number of labels holds for each case. ``truth`` is [n, K] of 0 and 1; the probabilities need not sum to 1."""

    @classmethod
    def from_logits(
        cls,
        logits: Num[np.ndarray, "n k"],
        *,
        classes: Sequence[str],
        truth: Integer[np.ndarray, "n k"],
        cases: Sequence[str],
        patients: Sequence[str] | None,
        part: str,
    ) -> Self:
        """Predictions from what the network gave: logistic function in float64.

        Args:
            logits: [n, K] log-odds of each label.
            classes: as in the fields, like all that follow.
            truth: likewise.
            cases: likewise.
            patients: likewise.
            part: likewise.

        Raises:
            ValueError: a logit is NaN or infinite, or any other field is wrong.
        """
        values = finite_logits(logits)
        return cls(
            classes=tuple(classes),
            truth=truth,
            probabilities=np.exp(-np.logaddexp(0, -values)),
            cases=tuple(cases),
            patients=None if patients is None else tuple(patients),
            part=part,
        )

    def _check_truth(self) -> None:
        refuse_strange_truth(self.truth, 2, 2)
        if self.truth.shape != self.probabilities.shape:
            raise ValueError(
                f"the truth of labels is [cases, labels] like the probabilities, {list(self.probabilities.shape)}, "
                f"not {list(self.truth.shape)}; give 0 or 1 for each"
            )

    @property
    def targets(self) -> Bool[np.ndarray, "n k"]:
        """Which labels hold for which case."""
        held: np.ndarray = self.truth == 1
        return held

    @property
    def scored(self) -> tuple[int, ...]:
        """All labels."""
        return tuple(range(len(self.classes)))

    @property
    def answers(self) -> Bool[np.ndarray, "n k"]:
        """The labels that are at least as likely as not."""
        likely: np.ndarray = self.probabilities >= 0.5
        return likely

    def one_against_rest(self, name: str) -> SingleLabel:
        """The same cases as a question of yes or no: does this label hold?"""
        at = self.column(name)
        return SingleLabel(
            classes=(f"not {name}", name),
            truth=self.truth[:, at].astype(np.int64),
            probabilities=np.stack((1 - self.probabilities[:, at], self.probabilities[:, at]), axis=1),
            cases=self.cases,
            patients=self.patients,
            part=self.part,
            temperature=self.temperature,
        )

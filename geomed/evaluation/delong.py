"""AUROC with its variance in closed form: DeLong's, and for several images of a patient Obuchowski's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Integer  # noqa: TC002  (annotations stay readable at run time)

from geomed.evaluation.interval import Estimate, Interval
from geomed.evaluation.roc import midranks
from geomed.evaluation.single_label import SingleLabel, binary

if TYPE_CHECKING:
    from typing import Self

    from geomed.evaluation.predictions import Predictions


@dataclass(frozen=True, kw_only=True, eq=False)
class DeLong:
    """AUROCs of one or more runs on the same cases, and how they vary together."""

    areas: Float[np.ndarray, " runs"]
    """AUROC of each run."""

    covariance: Float[np.ndarray, "runs runs"]
    """Their estimated variances and covariances."""

    clustered: bool
    """Whether some patient has several images."""

    @classmethod
    def of(cls, *runs: Predictions) -> Self:
        """Areas and covariance from placements.

        DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988, section 3, computed from midranks in O(n log n)
        after Sun and Xu, IEEE Signal Processing Letters 21, 2014, section III. Where patients have several images the
        placements are added up by patient, Obuchowski, Biometrics 53, 1997, "Nonparametric analysis of clustered ROC
        curve data", section 2, which is DeLong's where each has one.

        Raises:
            ValueError: there are more than two classes, cases of one only, fewer than two patients with positive or
                with negative cases, or the runs are of different cases.
        """
        asked = [binary(run, "DeLong's variance") for run in runs]
        if not asked:
            raise ValueError("DeLong's variance is of one run or more, none is given")
        head = asked[0]
        if any(run.cases != head.cases or run.fingerprint != head.fingerprint for run in asked):
            raise ValueError(
                f"DeLong's covariance is of runs on the same cases in the same order, there are "
                f"{', '.join(str(len(run.cases)) for run in asked)} cases that differ; predict the same test set"
            )
        positive = head.targets[:, 1]
        placed = [_placements(positive, run.probabilities[:, 1]) for run in asked]
        areas = np.array([values[positive].mean() for values in placed])
        rests = np.stack(placed) - areas[:, None]
        covariance = _clustered(rests, positive, head.patient_of)
        return cls(areas=areas, covariance=covariance, clustered=head.n_patients < len(head.cases))

    @staticmethod
    def possible(predictions: Predictions) -> bool:
        """Whether there are two classes, and two patients or more with cases of each."""
        if not (isinstance(predictions, SingleLabel) and predictions.binary):
            return False
        return all(len(np.unique(predictions.patient_of[side])) > 1 for side in predictions.targets.T)

    @property
    def method(self) -> str:
        """Whose variance it is."""
        return "Obuchowski, by patients" if self.clustered else "DeLong"

    def estimate(self, run: int = 0, *, level: float = 0.95) -> Estimate:
        """An AUROC with its interval on the scale of log-odds, so that it stays between 0 and 1.

        The delta method on the logit scale (Pepe, "The Statistical Evaluation of Medical Tests for Classification and
        Prediction", 2003, chapter 5). An area of 0 or 1 has no variance, and no interval.
        """
        area, variance = float(self.areas[run]), float(self.covariance[run, run])
        if not 0 < area < 1 or variance <= 0:
            note = "every pair is ranked alike: the variance is 0, which says that there are few or easy cases"
            none = Interval(low=math.nan, high=math.nan, level=level, method=self.method, note=note)
            return Estimate(value=area, interval=none)
        half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(variance) / (area * (1 - area))
        odds = math.log(area / (1 - area))
        low, high = (1 / (1 + math.exp(-end)) for end in (odds - half, odds + half))
        return Estimate(value=area, interval=Interval(low=low, high=high, level=level, method=self.method))

    def difference(self, first: int = 0, second: int = 1, *, level: float = 0.95) -> tuple[Estimate, float]:
        """The second area less the first with its interval, and the two-sided p-value of no difference."""
        gap = float(self.areas[second] - self.areas[first])
        contrast = np.zeros(len(self.areas))
        contrast[second], contrast[first] = 1, -1
        variance = float(contrast @ self.covariance @ contrast)
        if variance <= 1e-18:
            note = "both rank all cases alike: the variance is 0"
            none = Interval(low=math.nan, high=math.nan, level=level, method=self.method, note=note)
            return Estimate(value=gap, interval=none), 1.0 if gap == 0 else math.nan
        error = math.sqrt(variance)
        half = NormalDist().inv_cdf((1 + level) / 2) * error
        interval = Interval(low=max(-1.0, gap - half), high=min(1.0, gap + half), level=level, method=self.method)
        return Estimate(value=gap, interval=interval), math.erfc(abs(gap) / error / math.sqrt(2))


def _placements(positive: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Of a positive case the share of negatives below it; of a negative one the share of positives above it."""
    together = midranks(scores)
    placed = np.empty(len(scores))
    yes, no = int(positive.sum()), int((~positive).sum())
    placed[positive] = (together[positive] - midranks(scores[positive])) / no
    placed[~positive] = 1 - (together[~positive] - midranks(scores[~positive])) / yes
    return placed


def _clustered(
    rests: Float[np.ndarray, "runs n"], positive: Bool[np.ndarray, " n"], patient_of: Integer[np.ndarray, " n"]
) -> Float[np.ndarray, "runs runs"]:
    """Covariance of the areas from placements less the area, added up by patient."""
    count = int(patient_of.max()) + 1
    both = [
        np.stack([np.bincount(patient_of, weights=np.where(side, row, 0), minlength=count) for row in rests])
        for side in (positive, ~positive)
    ]
    have = [int(np.count_nonzero(np.bincount(patient_of[side], minlength=count))) for side in (positive, ~positive)]
    if min(have) < 2:
        raise ValueError(
            f"DeLong's variance needs two patients or more with positive cases and with negative ones, there are "
            f"{have[0]} and {have[1]}; report no interval"
        )
    yes, no = int(positive.sum()), int((~positive).sum())
    covariance = have[0] / (have[0] - 1) / yes**2 * both[0] @ both[0].T
    covariance += have[1] / (have[1] - 1) / no**2 * both[1] @ both[1].T
    cross = count / (count - 1) / (yes * no) * both[0] @ both[1].T
    total: np.ndarray = covariance + cross + cross.T
    return total

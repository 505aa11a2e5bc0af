"""Intervals by resampling patients with all of their images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Integer  # noqa: TC002  (annotations stay readable at run time)

from geomed.evaluation.interval import Estimate, Interval

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from geomed.evaluation.measure import Measure, Weighted
    from geomed.evaluation.predictions import Predictions

AT_ONCE = 2**20
"""Weights held at one time: enough for numpy's loops, few enough for the processor's cache."""


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Draws of patients with replacement; all images of a patient come along, however often it is drawn.

    Images of one patient resemble each other, so that an interval over images is too narrow (Field and Welsh, JRSS B
    69, 2007, "Bootstrapping clustered data"). Every measure sees the same draws, so that measures, runs and their
    differences are comparable draw by draw.
    """

    seed: int
    """Of the draws."""

    draws: int = 2000
    """How many; with 2000 the ends of a 95 % interval of a normal statistic vary by 1.5 % of its width from seed to
    seed (one standard deviation)."""

    level: float = 0.95
    """Confidence of the intervals."""

    stratified: bool = True
    """Whether patients are drawn within strata, so that every draw holds the classes in the numbers of the whole and
    almost none is without a class. A patient's stratum is the rarest class among its images, or none of the labels. The
    interval then speaks of cases mixed as these are (as DeLong's does); say False for a cohort whose prevalence is
    itself a finding. Draws without a class are left out and counted either way."""

    accelerated: bool = False
    """Whether the ends are corrected for bias and skewness (BCa: Efron, JASA 82, 1987, "Better bootstrap confidence
    intervals"; of strata Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 5.3.2), which
    costs as many evaluations more as there are patients and is worth it for fewer than a few hundred. Otherwise they
    are the plain percentiles, which lie too low for an AUROC near 1 of few patients."""

    def __post_init__(self) -> None:
        """Refuse what gives no interval."""
        if self.draws < 100:
            raise ValueError(f"the ends of an interval need at least 100 draws, not {self.draws}; 2000 are usual")
        if not 0.5 <= self.level < 1:
            raise ValueError(f"the level of an interval is a share, like 0.95, not {self.level}; divide percent")

    def weights(self, predictions: Predictions) -> Iterator[Float[np.ndarray, "draws n"]]:
        """How often each case counts in each draw, in blocks of draws.

        Raises:
            ValueError: there is one patient only.
        """
        patient_of, count = predictions.patient_of, predictions.n_patients
        if count < 2:
            raise ValueError(
                f"an interval over patients needs two or more, there is {count} with {len(patient_of)} images; "
                "report no interval"
            )
        strata = self._strata(predictions)
        draw = np.random.default_rng(self.seed)
        rows = max(1, AT_ONCE // len(patient_of))
        for start in range(0, self.draws, rows):
            block = min(rows, self.draws - start)
            times = np.empty((block, count))
            for members in strata:
                size = len(members)
                drawn = draw.integers(size, size=(block, size)) + size * np.arange(block)[:, None]
                times[:, members] = np.bincount(drawn.ravel(), minlength=block * size).reshape(block, size)
            yield times[:, patient_of]

    def estimates(self, predictions: Predictions, measures: Sequence[Measure]) -> tuple[Estimate, ...]:
        """Every measure of the predictions with its interval, from the same draws.

        Raises:
            ValueError: there is one patient only, or a measure has no meaning for such a task.
        """
        return self._estimates(predictions, measures, [measure.bind(predictions) for measure in measures])

    def differences(self, first: Predictions, second: Predictions, measures: Sequence[Measure]) -> tuple[Estimate, ...]:
        """Every measure of the second less that of the first, with its interval, from draws that both share.

        Both must hold the same cases in the same order; ``paired_difference.compare`` sees to it.
        """
        bound = [_difference(measure.bind(first), measure.bind(second)) for measure in measures]
        return self._estimates(first, measures, bound)

    def _estimates(
        self, predictions: Predictions, measures: Sequence[Measure], bound: Sequence[Weighted]
    ) -> tuple[Estimate, ...]:
        values = [float(measure(np.ones((1, len(predictions.cases))))[0]) for measure in bound]
        intervals: dict[int, Interval] = {}
        asked = [at for at, value in enumerate(values) if math.isfinite(value) and not measures[at].no_interval]
        if asked:
            some = [bound[at] for at in asked]
            drawn = np.concatenate([evaluate(some, block) for block in self.weights(predictions)], axis=1)
            slopes = self._jackknife(predictions, some) if self.accelerated else np.zeros((len(some), 0))
            for at, row, slope in zip(asked, drawn, slopes, strict=True):
                intervals[at] = self._interval(values[at], row, slope)
        return tuple(
            Estimate(value=value, interval=intervals.get(at) or self._none(measure.no_interval))
            if math.isfinite(value)
            else Estimate(value=math.nan, reason=measure.reason(predictions))
            for at, (measure, value) in enumerate(zip(measures, values, strict=True))
        )

    def _none(self, note: str) -> Interval:
        return Interval(low=math.nan, high=math.nan, level=self.level, method="none", note=note)

    def _strata(self, predictions: Predictions) -> list[Integer[np.ndarray, " m"]]:
        """Patients by the rarest class that they have images of."""
        count = predictions.n_patients
        if not self.stratified:
            return [np.arange(count)]
        has = np.zeros((count, len(predictions.classes)), dtype=bool)
        np.logical_or.at(has, predictions.patient_of, predictions.targets)
        rarest = np.where(has, has.sum(0), count + 1).argmin(1)
        rarest[~has.any(1)] = len(predictions.classes)
        return [np.flatnonzero(rarest == stratum) for stratum in np.unique(rarest)]

    def _interval(self, value: float, drawn: Float[np.ndarray, " draws"], slope: Float[np.ndarray, " p"]) -> Interval:
        kept = np.sort(drawn[np.isfinite(drawn)])
        left_out = len(drawn) - len(kept)
        method = ("BCa" if self.accelerated else "percentile") + " bootstrap of patients"
        method += ", stratified" if self.stratified else ""
        if len(kept) < len(drawn) / 2:
            note = f"{left_out} of {len(drawn)} draws have no score for want of a class: too few cases for an interval"
            low = high = math.nan
        elif kept[0] == kept[-1]:
            note = "all draws agree, which says that there are few or easy cases, not that the score is certain"
            low = high = float(kept[0])
        else:
            note = ""
            tails = self._tails(value, kept, slope)
            low, high = (float(end) for end in np.quantile(kept, tails))
        return Interval(
            low=low, high=high, level=self.level, method=method, draws=len(drawn), left_out=left_out, note=note
        )

    def _tails(
        self, value: float, kept: Float[np.ndarray, " draws"], slope: Float[np.ndarray, " p"]
    ) -> tuple[float, float]:
        """Which quantiles of the draws are the ends."""
        normal = NormalDist()
        ends = ((1 - self.level) / 2, (1 + self.level) / 2)
        if not self.accelerated:
            return ends
        below = (np.searchsorted(kept, value, side="left") + np.searchsorted(kept, value, side="right")) / 2
        bias = normal.inv_cdf(min(max(float(below) / len(kept), 0.5 / len(kept)), 1 - 0.5 / len(kept)))
        squares = float(slope @ slope)
        skew = float((slope**3).sum()) / (6 * squares**1.5) if squares > 0 else 0.0
        low, high = (bias + (bias + normal.inv_cdf(end)) / (1 - skew * (bias + normal.inv_cdf(end))) for end in ends)
        return normal.cdf(low), normal.cdf(high)

    def _jackknife(self, predictions: Predictions, bound: Sequence[Weighted]) -> Float[np.ndarray, "measures p"]:
        """How much each patient moves each measure, over its stratum's size; 0 where leaving it out leaves no score."""
        patient_of, count = predictions.patient_of, predictions.n_patients
        left: np.ndarray = np.empty((len(bound), count))
        rows = max(1, AT_ONCE // len(patient_of))
        for start in range(0, count, rows):
            without = np.arange(start, min(start + rows, count))
            left[:, without] = evaluate(bound, (patient_of != without[:, None]).astype(np.float64))
        slopes = np.zeros_like(left)
        for members in self._strata(predictions):
            part = left[:, members]
            known = np.isfinite(part)
            means = np.where(known, part, 0).sum(1, keepdims=True) / np.maximum(known.sum(1, keepdims=True), 1)
            size = len(members)
            slopes[:, members] = np.where(known, (size - 1) * (means - part), 0) / size
        return slopes


def evaluate(bound: Sequence[Weighted], weights: Float[np.ndarray, "draws n"]) -> Float[np.ndarray, "measures draws"]:
    """Every measure under every row of weights."""
    values: np.ndarray = np.stack([measure(weights) for measure in bound])
    return values


def _difference(first: Weighted, second: Weighted) -> Weighted:
    return lambda weights: second(weights) - first(weights)

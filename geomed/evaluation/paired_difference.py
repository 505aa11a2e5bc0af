"""Two runs on the same cases: by how much they differ, and how likely chance alone would do that."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool  # noqa: TC002  (annotations stay readable at run time)

from geomed.evaluation.bootstrap import AT_ONCE, evaluate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geomed.evaluation.bootstrap import Bootstrap
    from geomed.evaluation.interval import Estimate
    from geomed.evaluation.measure import Measure, Weighted
    from geomed.evaluation.predictions import Predictions


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """One measure of two runs on the same cases."""

    measure: str
    """Its name."""

    greater_is_better: bool
    """Whether more of it is better."""

    first: float
    """Of the first run."""

    second: float
    """Of the second run."""

    difference: Estimate
    """The second less the first, with the interval of a bootstrap that draws the same patients for both."""

    p_value: float
    """Two-sided, of the permutation test; NaN where there is no difference to test. It is of this one measure: who
    looks at many has to adjust it for that."""

    permutations: int
    """Of the test; the least p-value is one over these and one."""

    def to_dict(self) -> dict[str, object]:
        """The comparison as JSON can hold it: NaN becomes None."""
        return {
            "measure": self.measure,
            "greater_is_better": self.greater_is_better,
            "first": self.first if math.isfinite(self.first) else None,
            "second": self.second if math.isfinite(self.second) else None,
            "difference": self.difference.to_dict(),
            "p_value": self.p_value if math.isfinite(self.p_value) else None,
            "permutations": self.permutations,
        }


def compare(
    first: Predictions,
    second: Predictions,
    measures: Sequence[Measure],
    *,
    bootstrap: Bootstrap,
    permutations: int = 2000,
) -> tuple[PairedDifference, ...]:
    """Compare two runs case by case, whatever the order of the cases.

    The interval is a paired bootstrap of patients. The test exchanges the two runs' answers, all images of a patient
    together, and asks how often the difference is at least as great (Good, "Permutation, Parametric, and Bootstrap
    Tests of Hypotheses", 2005, on matched pairs); ranking measures exchange ranks. The p-value counts the observed
    exchange itself (Phipson and Smyth, Statistical Applications in Genetics and Molecular Biology 9, 2010, "Permutation
    p-values should never be zero").

    Args:
        first: the run to compare with.
        second: the run that is asked about.
        measures: of both.
        bootstrap: draws, seed and level; the seed serves the permutations too.
        permutations: of the test.

    Raises:
        ValueError: the runs do not hold the same cases with the same truth and patients.
    """
    if permutations < 100:
        raise ValueError(f"a permutation test needs at least 100 permutations, not {permutations}; 2000 are usual")
    second = _aligned(first, second)
    ones = np.ones((1, len(first.cases)))
    values = [evaluate([measure.bind(run) for measure in measures], ones)[:, 0] for run in (first, second)]
    differences = bootstrap.differences(first, second, measures)
    chances = _permuted(first, second, measures, permutations=permutations, seed=bootstrap.seed)
    return tuple(
        PairedDifference(
            measure=measure.name,
            greater_is_better=measure.greater_is_better,
            first=float(one),
            second=float(two),
            difference=difference,
            p_value=p,
            permutations=permutations,
        )
        for measure, one, two, difference, p in zip(measures, *values, differences, chances, strict=True)
    )


def _permuted(
    first: Predictions, second: Predictions, measures: Sequence[Measure], *, permutations: int, seed: int
) -> list[float]:
    """The p-value of each measure. Exchanging is weighting the rows of both runs with 0 and 1."""
    pooled = [measure.pooled(first, second) for measure in measures]
    patient_of, count = first.patient_of, first.n_patients
    draw = np.random.default_rng((seed, 1))  # another stream than that of the bootstrap
    rows = max(1, AT_ONCE // (2 * len(patient_of)))
    observed = _gaps(pooled, np.zeros((1, len(patient_of)), dtype=bool))[:, 0]
    extreme = np.zeros(len(pooled))
    counted = np.zeros(len(pooled))
    for start in range(0, permutations, rows):
        block = min(rows, permutations - start)
        gaps = _gaps(pooled, draw.integers(2, size=(block, count), dtype=np.int8).astype(bool)[:, patient_of])
        counted += np.isfinite(gaps).sum(1)
        # sums in another order differ in the last digits, which must not make an equal gap a smaller one
        extreme += (np.abs(gaps) >= np.abs(observed)[:, None] * (1 - 1e-9) - 1e-15).sum(1)
    return [
        float((1 + more) / (1 + of)) if math.isfinite(gap) else math.nan
        for more, of, gap in zip(extreme, counted, observed, strict=True)
    ]


def _gaps(pooled: Sequence[Weighted], swapped: Bool[np.ndarray, "draws n"]) -> np.ndarray:
    one = np.concatenate((~swapped, swapped), axis=1).astype(np.float64)
    return evaluate(pooled, 1 - one) - evaluate(pooled, one)


def _aligned(first: Predictions, second: Predictions) -> Predictions:
    """The second run in the order of the first's cases."""
    if type(first) is not type(second) or first.classes != second.classes:
        raise ValueError(
            f"two runs can be compared on one task and the same classes, not {list(first.classes)} "
            f"({type(first).__name__}) and {list(second.classes)} ({type(second).__name__}); predict the same with both"
        )
    place = {case: at for at, case in enumerate(second.cases)}
    missing = sum(case not in place for case in first.cases)
    strange = len(second.cases) - (len(first.cases) - missing)
    if missing or strange:
        raise ValueError(
            f"two runs can be compared on the same cases, {missing} of {len(first.cases)} of the first are not in the "
            f"second and {strange} of {len(second.cases)} the other way round; predict the same test set with both"
        )
    second = second.select(np.array([place[case] for case in first.cases], dtype=np.int64))
    differ = (first.truth != second.truth).reshape(len(first.cases), -1).any(1).sum()
    if differ or first.patients != second.patients:
        owners = sum(a != b for a, b in zip(first.patients or (), second.patients or (), strict=False))
        raise ValueError(
            f"two runs can be compared on the same truth and patients, {differ} cases have another truth and "
            f"{owners if first.patients and second.patients else len(first.cases)} another patient; use one table"
        )
    return second

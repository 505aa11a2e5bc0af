"""Runs on one test set, held against each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from geomed.evaluation.agreement import F1, Accuracy, BalancedAccuracy, Kappa
from geomed.evaluation.paired_difference import compare
from geomed.evaluation.proper_scores import Brier
from geomed.evaluation.roc import AUROC, AveragePrecision
from geomed.evaluation.single_label import SingleLabel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geomed.evaluation.measure import Measure
    from geomed.evaluation.paired_difference import PairedDifference
    from geomed.evaluation.predictions import Predictions
    from geomed.report.results import Results
    from geomed.report.run import Run

BASELINES = {"linear probe": "linear probe", "cnn": "CNN"}
"""What an adapter has to beat, and what a person calls it."""

LEVEL = 0.05
"""A p-value below it speaks for a difference."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One run against another; the first of the differences is the one that decides."""

    reference: Results
    """What is compared with: a baseline, or the first run."""

    asked: Results
    """The run that is asked about."""

    differences: tuple[PairedDifference, ...]
    """The run less the reference."""

    @property
    def outcome(self) -> str:
        """``better``, ``worse``, ``open`` where that is not shown, or ``unknown`` where nothing can be said.

        Both the interval and the permutation test have to speak for a difference.
        """
        told = self.differences[0]
        interval = told.difference.interval
        if interval is None or not interval.known or math.isnan(told.p_value):
            return "unknown"
        if interval.low <= 0 <= interval.high or told.p_value >= LEVEL:
            return "open"
        return "better" if (interval.low > 0) == told.greater_is_better else "worse"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs on one test set."""

    results: tuple[Results, ...]
    """In the order given."""

    pairs: tuple[Pair, ...]
    """Every adapter against every baseline; without baselines, or adapters, every run against the first."""

    missing: tuple[str, ...]
    """Baselines that no run here is."""

    @classmethod
    def of(cls, results: Sequence[Results], *, draws: int) -> Self:
        """Compare; ``draws`` are the permutations of the tests."""
        baselines = [one for one in results if one.run.setup.model.baseline]
        adapters = [one for one in results if not one.run.setup.model.baseline]
        if baselines and adapters:
            couples = [(baseline, adapter) for adapter in adapters for baseline in baselines]
        else:
            couples = [(results[0], other) for other in results[1:]]
        measures = _measures(results[0].test)
        pairs = tuple(
            Pair(
                reference=one,
                asked=two,
                differences=compare(one.test, two.test, measures, bootstrap=one.bootstrap, permutations=draws),
            )
            for one, two in couples
        )
        present = {one.run.setup.model.baseline for one in results}
        return cls(
            results=tuple(results),
            pairs=pairs,
            missing=tuple(name for kind, name in BASELINES.items() if kind not in present),
        )


def on_one_test_set(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs, those on the same test set together: what they say of it and the cases themselves must agree."""
    groups: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        test = run.test.predictions
        key = (run.setup.kind, test.classes, run.setup.test_fingerprint, test.fingerprint, test.image_level)
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def _measures(test: Predictions) -> list[Measure]:
    """What is compared; the first decides, and has a value whatever classes the test set lacks."""
    ordered = isinstance(test, SingleLabel) and test.ordered
    wanted: list[Measure] = [Kappa(quadratic=True)] if ordered else []
    wanted += [AUROC(), AveragePrecision()]
    wanted += [BalancedAccuracy()] if isinstance(test, SingleLabel) else [F1()]
    wanted += [Accuracy(), Brier()]
    return [measure for measure in wanted if not math.isnan(measure.of(test))]

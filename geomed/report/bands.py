"""Bands around a curve: where the curves of other patients of the same kind would run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
from jaxtyping import Float  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)

from geomed.evaluation.measure import ratio

if TYPE_CHECKING:
    from geomed.evaluation.bootstrap import Bootstrap
    from geomed.evaluation.single_label import SingleLabel

STEPS = 51
"""Places along the axis across."""

DRAWS = 500
"""At most so many: the ends of a band are drawn a few pixels wide."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Band:
    """A pointwise band: at each place across 95 % of the curves lie inside; not all of the curve does so at once."""

    across: Float[np.ndarray, " s"]
    """Places, from 0 to 1."""

    low: Float[np.ndarray, " s"]
    """Its lower edge."""

    high: Float[np.ndarray, " s"]
    """Its upper edge."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CurveBands:
    """Bands of a ROC curve and of precision against recall, from the same draws of patients.

    Sensitivity is averaged vertically, at fixed specificity (Fawcett, Pattern Recognition Letters 27, 2006, "An
    introduction to ROC analysis", section 8.1); precision is that of the first threshold that reaches the recall, as
    average precision counts it.
    """

    roc: Band
    """Sensitivity against 1 - specificity."""

    precision: Band
    """Precision against recall."""

    @classmethod
    def of(cls, test: SingleLabel, bootstrap: Bootstrap) -> Self | None:
        """The bands of a question of yes or no; None where there are fewer than ten draws with cases of both."""
        if test.n_patients < 2:
            return None
        scores, positive = test.probabilities[:, 1], test.targets[:, 1]
        order = np.argsort(-scores, kind="stable")
        ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
        across = np.linspace(0, 1, STEPS)
        rises, precisions = [], []
        for weights in replace(bootstrap, draws=min(bootstrap.draws, DRAWS)).weights(test):
            yes = np.cumsum((weights * positive)[:, order], axis=1)[:, ends]
            called = np.cumsum(weights[:, order], axis=1)[:, ends]
            for hits, all_called in zip(yes, called, strict=True):
                no = all_called - hits
                if not (hits[-1] and no[-1]):
                    continue
                recall = hits / hits[-1]
                fall = np.append(0, no / no[-1])
                # where it rises straight up the upper end counts: np.interp needs places that increase
                rises.append(np.interp(across, fall + 1e-12 * np.arange(len(fall)), np.append(0, recall)))
                first = np.searchsorted(recall, np.maximum(across, 1e-9) - 1e-12)
                precisions.append(ratio(hits, all_called)[np.minimum(first, len(recall) - 1)])
        if len(rises) < 10:
            return None
        ends_of_level = ((1 - bootstrap.level) / 2, (1 + bootstrap.level) / 2)
        edges = [np.nanquantile(np.array(drawn), ends_of_level, axis=0) for drawn in (rises, precisions)]
        roc, precision = (Band(across=across, low=low, high=high) for low, high in edges)
        return cls(roc=roc, precision=precision)

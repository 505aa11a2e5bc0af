"""Groups of cases that stay together, shared out so that every class has its share in every part."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from geomed.evaluation.patient_splits import Case


def groups_of(cases: Sequence[Case]) -> NDArray[np.int64]:
    """For each case the number of what must stay together: its patient, joined with groups that it belongs to."""
    roots: dict[object, object] = {}

    def root(item: object) -> object:
        while (above := roots.setdefault(item, item)) != item:
            roots[item] = roots[above]
            item = roots[item]
        return item

    items: list[object] = []
    for index, case in enumerate(cases):
        item = ("case", index) if case.patient is None else ("patient", case.patient)
        items.append(item)
        if case.group is not None:
            roots[root(item)] = root(("group", case.group))
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(root(item), len(numbers)) for item in items], dtype=np.int64)


def stratify(cases: Sequence[Case], fractions: Sequence[float], *, seed: int) -> list[list[int]]:
    """Whole groups into parts so that every class, and the cases as such, are shared out by ``fractions``.

    Greedy, as scikit-learn's StratifiedGroupKFold, here for parts of any size: groups come in descending order of the
    spread of their class counts, ties in an order drawn by ``seed``, and each goes where it brings the counts of
    classes and cases closest to the fractions, in squares relative to each fraction.

    Args:
        cases: what is to be shared out.
        fractions: of each part; they need not sum to 1, what is left over stays unused.
        seed: of the order among groups that are alike.

    Returns:
        For each part the indices of its cases, ascending.

    Raises:
        ValueError: there are fewer groups than parts.
    """
    groups = groups_of(cases)
    size = 1 + max((label for case in cases for label in case.labels), default=0)
    counts = np.zeros((int(groups.max()) + 1, size + 1))
    for group, case in zip(groups, cases, strict=True):
        counts[group, list(case.labels)] += 1
        counts[group, -1] += 1
    shares = np.array([*fractions, max(1 - sum(fractions), 0.0)])
    open_parts = np.flatnonzero(shares > 1e-9)
    wanted = int((np.array(fractions) > 0).sum())
    if len(counts) < wanted:
        raise ValueError(
            f"{len(counts)} patients or groups that stay together are too few for {wanted} parts; "
            "take fewer parts, or more patients"
        )
    totals = np.maximum(counts.sum(axis=0), 1)
    portions = counts / totals  # of each class, what a group holds
    order = list(range(len(counts)))
    random.Random(seed).shuffle(order)  # noqa: S311  (a split, not a secret)
    spread = counts[:, :-1].std(axis=1)
    order.sort(key=lambda group: -spread[group])
    filled = np.zeros((len(open_parts), size + 1))
    owner = np.zeros(len(counts), dtype=np.int64)
    target = shares[open_parts][:, None]
    for group in order:
        portion = portions[group]
        # what the sum of squares of (filled - target) / sqrt(target) grows by
        worse = (portion * (2 * (filled - target) + portion) / target).sum(axis=1)
        best = int(np.argmin(worse))
        owner[group] = open_parts[best]
        filled[best] += portion
    for part in np.flatnonzero(np.array(fractions) > 0):
        if not (owner == part).any():  # few and large groups: the largest part gives its smallest one
            giver = np.bincount(owner, minlength=len(shares)).argmax()
            given = min(np.flatnonzero(owner == giver).tolist(), key=lambda group: (counts[group, -1], group))
            owner[given] = part
    parts = owner[groups]
    return [np.flatnonzero(parts == part).tolist() for part in range(len(fractions))]

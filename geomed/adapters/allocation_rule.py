"""Which weights to train within a budget: the most sensitive ones, whole matrices by a small module, others singly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from geomed.adapters.candidate import Candidate  # noqa: TC001  (annotations are evaluated in the tests)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

Trains = Literal["nothing", "entries", "all", "lora", "adapter"]
"""What trains of a candidate: nothing, single entries, every entry (of a vector), or a small module (of a matrix)."""


@dataclass(frozen=True, kw_only=True)
class AllocationRule:
    """When many entries of one matrix or vector are sensitive, it is trained as a whole (He et al., section 3.2)."""

    structure: Literal["lora", "adapter"] = "lora"
    """What trains a matrix as a whole: a low-rank update, or a bottleneck."""

    rank: int = 8
    """Width of either."""

    alpha: float = 10.0
    """A matrix gets its module where alpha times its sensitive entries are at least the module's parameters."""

    beta: float = 5.0
    """A vector trains whole where beta times its sensitive entries are at least its length."""

    structured_only: bool = False
    """Train no single entries."""

    def __post_init__(self) -> None:
        """Refuse what means nothing, and shares at which more sensitive entries would train fewer parameters."""
        if self.rank < 1 or not (self.alpha >= 1 and self.beta >= 1):  # NaN is not
            raise ValueError(
                f"rank, alpha and beta must be at least 1, not {self.rank}, {self.alpha} and {self.beta}; the paper's "
                "are 8, 10 and 5"
            )

    def cost(self, candidate: Candidate) -> int:
        """Parameters that train it as a whole.

        Raises:
            ValueError: the rank is above the width of the matrix.
        """
        if candidate.kind == "vector":
            return candidate.size
        rows, columns = candidate.height, candidate.columns
        if self.rank > min(rows, columns):
            raise ValueError(
                f"{candidate}: rank must not exceed the width of the matrix, {self.rank} > {min(rows, columns)}; "
                "lower it"
            )
        if self.structure == "lora":
            return self.rank * (rows + columns)
        read = columns if candidate.operation == "proj" else rows  # it stands beside proj, and behind the others
        return self.rank * (read + rows) + self.rank + rows

    def trains(self, candidate: Candidate, sensitive: int) -> tuple[Trains, int]:
        """What trains of a candidate with so many sensitive entries, and as how many parameters."""
        share = self.beta if candidate.kind == "vector" else self.alpha
        whole = self.cost(candidate)
        if sensitive and sensitive * share >= whole:
            return ("all" if candidate.kind == "vector" else self.structure), whole
        if sensitive and not self.structured_only:
            return "entries", sensitive
        return "nothing", 0


class Ranking:
    """The entries of all candidates, the most sensitive first; equal ones in the order in which they stand.

    Entries of sensitivity zero are not ranked: no step would move them.
    """

    def __init__(self, candidates: Sequence[Candidate], scores: Mapping[str, Tensor]) -> None:
        """Sort each candidate's entries once; after that, any number of sensitive entries costs a few searches.

        Raises:
            ValueError: a candidate without scores, or with negative or infinite ones.
        """
        self.candidates = tuple(candidates)
        self._scores: list[np.ndarray] = []
        for one in self.candidates:
            values = one.of(scores[one.tensor]).detach().cpu().float().numpy().ravel() if one.tensor in scores else ()
            if len(values) != one.size or not (np.isfinite(values).all() and np.min(values) >= 0):
                raise ValueError(f"{one}: needs {one.size} finite scores, none negative; measure this very backbone")
            self._scores.append(np.asarray(values))
        self._ascending = [np.sort(values) for values in self._scores]
        self.length = int(self._above(np.float32(0)).sum())

    def _above(self, value: np.float32) -> np.ndarray:
        """How many entries of each candidate score more."""
        return np.array([len(every) - np.searchsorted(every, value, "right") for every in self._ascending])

    def _last(self, top: int) -> np.float32:
        """The score of the last of the ``top`` entries, found by halving among all float32 numbers."""
        low, high = 0, int(np.float32(np.inf).view(np.uint32))  # positive floats are ordered as their bits are
        while low < high:
            middle = (low + high) // 2
            if self._above(np.uint32(middle).view(np.float32)).sum() < top:
                high = middle
            else:
                low = middle + 1
        return np.uint32(low).view(np.float32)

    def sensitive(self, top: int) -> np.ndarray:
        """How many of the ``top`` entries each candidate has."""
        if top < 1:
            return np.zeros(len(self.candidates), int)
        if top >= self.length:
            return self._above(np.float32(0))
        last = self._last(top)
        above = self._above(last)
        ties = np.array([len(every) - np.searchsorted(every, last, "left") for every in self._ascending]) - above
        before = np.cumsum(ties) - ties
        return above + np.clip(top - above.sum() - before, 0, ties)

    def entries(self, number: int, count: int) -> np.ndarray:
        """The ``count`` most sensitive entries of a candidate, by their places in it, ascending."""
        scores = self._scores[number]
        last = self._ascending[number][len(scores) - count]
        above = np.flatnonzero(scores > last)
        return np.sort(np.concatenate((above, np.flatnonzero(scores == last)[: count - len(above)])))

    def total(self, top: int, rule: AllocationRule) -> int:
        """Parameters that train if the ``top`` entries count as sensitive."""
        pairs = zip(self.candidates, self.sensitive(top).tolist(), strict=True)
        return sum(rule.trains(one, count)[1] for one, count in pairs)


def within(ranking: Ranking, rule: AllocationRule, budget: int) -> int:
    """The largest number of sensitive entries that keeps the trained parameters within the budget.

    More sensitive entries never train fewer parameters, so halving finds it.

    Raises:
        ValueError: the smallest allocation is above the budget.
    """
    top = _largest(ranking, rule, budget)
    if ranking.total(top, rule):
        return top
    least = ranking.total(_largest(ranking, rule, 0) + 1, rule)
    if not least:
        raise ValueError("no weight has any sensitivity; does the loss depend on the backbone?")
    singly = ", or allow single entries (structured_only false)" if rule.structured_only else ""
    raise ValueError(
        f"the budget must hold the smallest allocation, {budget} is below its {least} parameters; raise it{singly}"
    )


def _largest(ranking: Ranking, rule: AllocationRule, budget: int) -> int:
    low, high = 0, ranking.length
    while low < high:
        middle = (low + high + 1) // 2
        if ranking.total(middle, rule) <= budget:
            low = middle
        else:
            high = middle - 1
    return low


def sweep(
    ranking: Ranking,
    rule: AllocationRule,
    budgets: Sequence[int],
    *,
    step: int = 20_000,
    steps: int = 79,
    besides: int = 0,
) -> dict[int, int]:
    """The reference code's search: among multiples of ``step``, the last that comes nearest to each budget.

    It may end above the budget, and far below it; it serves comparisons with published configurations.

    Args:
        ranking: of all candidates.
        rule: when a matrix or vector trains as a whole.
        budgets: parameters.
        step: sensitive entries from one try to the next.
        steps: tries.
        besides: parameters that count although they are no candidates; the reference adds the class token's 768.

    Returns:
        Each budget → the number of sensitive entries.
    """
    nearest = dict.fromkeys(budgets, (0, 0))
    for top in range(step, step * steps + 1, step):
        total = ranking.total(top, rule) + besides
        for budget, (before, _) in nearest.items():
            if abs(total - budget) <= abs(before - budget):
                nearest[budget] = (total, top)
    return {budget: top for budget, (_, top) in nearest.items()}

"""How probabilities are put into bins."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer  # noqa: TC002  (annotations stay readable at run time)

from geomed.evaluation.roc import midranks


class Binning(ABC):
    """A rule that puts probabilities into bins; implementations are frozen keyword-only dataclasses."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What a person calls it."""

    @abstractmethod
    def assign(self, probabilities: Float[np.ndarray, " n"]) -> Integer[np.ndarray, " n"]:
        """The bin of each, numbered from 0 upwards; equal probabilities are in one bin."""


@dataclass(frozen=True, kw_only=True)
class EqualWidth(Binning):
    """Bins [0, 1/m), [1/m, 2/m), … [1 - 1/m, 1], many of which may be empty."""

    bins: int = 15
    """How many; 15 is usual since Guo et al. 2017."""

    def __post_init__(self) -> None:
        """Refuse no bins."""
        _refuse_too_few(self.bins)

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.bins} bins of equal width"

    def assign(self, probabilities: Float[np.ndarray, " n"]) -> Integer[np.ndarray, " n"]:
        """The bin of each."""
        inner = np.linspace(0, 1, self.bins + 1)[1:-1]
        bins: np.ndarray = np.searchsorted(inner, probabilities, side="right")
        return bins


@dataclass(frozen=True, kw_only=True)
class EqualMass(Binning):
    """Bins of about as many cases each (Nixon et al. 2019, "Measuring calibration in deep learning", section 4.2)."""

    bins: int = 15
    """How many; fewer come out where many probabilities are equal, for those stay together."""

    def __post_init__(self) -> None:
        """Refuse no bins."""
        _refuse_too_few(self.bins)

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.bins} bins of equal mass"

    def assign(self, probabilities: Float[np.ndarray, " n"]) -> Integer[np.ndarray, " n"]:
        """The bin of each."""
        shares = (midranks(probabilities) - 0.5) / len(probabilities)
        bins: np.ndarray = np.unique((self.bins * shares).astype(np.int64), return_inverse=True)[1]
        return bins


def _refuse_too_few(bins: int) -> None:
    if bins < 2:
        raise ValueError(f"calibration needs two bins or more, not {bins}; 15 are usual")

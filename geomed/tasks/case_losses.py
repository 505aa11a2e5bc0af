"""Losses on the logits of whole images; what is labelled IGNORE counts in none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor, nn

from geomed.pixels import IGNORE

Weights = Mapping[str, float] | Literal["balanced"] | None
"""Weights of classes by name, those that are not named weigh 1; or by the inverse of how often they occur; or none."""


class CaseLoss(nn.Module, ABC):
    """Logits and labels of whole images → one number; zero where nothing is labelled."""

    several: bool
    """Whether it is of several labels for each case, or of one."""

    @abstractmethod
    def bind(self, classes: Sequence[str], labels: Shaped[Tensor, "n ..."]) -> None:
        """Learn the classes' names and order and the labels that are trained on, once, before training.

        Raises:
            ValueError: weights name a class that does not exist, or a class is never there.
        """

    @abstractmethod
    def forward(self, logits: Float[Tensor, "b k"], labels: Shaped[Tensor, "b ..."]) -> Float[Tensor, ""]:
        """The loss of a batch."""


class CategoricalCrossEntropy(CaseLoss):
    """Mean cross-entropy of one class for each case; of log-probabilities, as ``CumulativeLink`` gives, likelihood."""

    several = False
    weights: Tensor | None
    shift: Tensor | None

    def __init__(self, weights: Weights = None, *, smoothing: float = 0.0, adjustment: float = 0.0) -> None:
        """Choose how rare classes are heard.

        Args:
            weights: of classes; ``balanced``: n / (K n_k), whose mean over the training cases is 1.
            smoothing: share of the target that is spread over all classes.
            adjustment: logit adjustment (Menon et al., ICLR 2021, equation 10): so many times the logarithm of each
                class's share of the training cases is added to the logits while training, 1 for the balanced error.
                The logits then answer for classes that are equally frequent, and so do the probabilities.

        Raises:
            ValueError: weights and adjustment, which do the same, or shares that are none.
        """
        super().__init__()
        if weights is not None and adjustment:
            raise ValueError("weights and logit adjustment both answer for rare classes; choose one of them")
        if not 0 <= smoothing < 1 or adjustment < 0:
            raise ValueError(
                f"smoothing must be in [0, 1) and adjustment 0 or more, not {smoothing} and {adjustment}; correct them"
            )
        self.chosen, self.smoothing, self.adjustment = weights, smoothing, adjustment
        self.register_buffer("weights", None, persistent=False)
        self.register_buffer("shift", None, persistent=False)

    def bind(self, classes: Sequence[str], labels: Shaped[Tensor, "n ..."]) -> None:
        """Count the classes.

        Raises:
            ValueError: a weight for a class that does not exist, or a class without a training case.
        """
        counts = torch.bincount(labels[labels != IGNORE].long(), minlength=len(classes)).double()
        if self.adjustment:
            _refuse_absent(classes, counts)
            self.shift = (self.adjustment * (counts / counts.sum()).log()).float()
        if self.chosen == "balanced":
            _refuse_absent(classes, counts)
            self.weights = (counts.sum() / (len(classes) * counts)).float()
        elif self.chosen is not None:
            self.weights = _named(self.chosen, classes)

    def forward(self, logits: Float[Tensor, "b k"], labels: Int[Tensor, " b"]) -> Float[Tensor, ""]:
        """Weighted mean over the labelled cases."""
        if self.shift is not None:
            logits = logits + self.shift.to(logits)
        weights = None if self.weights is None else self.weights.to(logits)
        total = F.cross_entropy(
            logits, labels, weights, ignore_index=IGNORE, label_smoothing=self.smoothing, reduction="sum"
        )
        known = labels != IGNORE
        mass = known.sum() if weights is None else weights[torch.where(known, labels, 0)][known].sum()
        return total / mass.clamp(min=1e-12 if weights is not None else 1)


class BinaryCrossEntropy(CaseLoss):
    """Mean binary cross-entropy over all findings of all cases that are known."""

    several = True
    weights: Tensor | None

    def __init__(self, weights: Weights = None) -> None:
        """Choose how rare findings are heard.

        Args:
            weights: of the positive cases of each finding; ``balanced``: negative over positive training cases.
        """
        super().__init__()
        self.chosen = weights
        self.register_buffer("weights", None, persistent=False)

    def bind(self, classes: Sequence[str], labels: Shaped[Tensor, "n ..."]) -> None:
        """Count the findings.

        Raises:
            ValueError: a weight for a finding that does not exist, or a finding that no training case shows.
        """
        if self.chosen == "balanced":
            positive, negative = (labels == 1).sum(0).double(), (labels == 0).sum(0).double()
            _refuse_absent(classes, positive)
            self.weights = (negative / positive).float()
        elif self.chosen is not None:
            self.weights = _named(self.chosen, classes)

    def forward(self, logits: Float[Tensor, "b k"], labels: Shaped[Tensor, "b k"]) -> Float[Tensor, ""]:
        """Mean over what is known."""
        known = labels != IGNORE
        weights = None if self.weights is None else self.weights.to(logits)
        each = F.binary_cross_entropy_with_logits(
            logits, torch.where(known, labels, 0).to(logits), pos_weight=weights, reduction="none"
        )
        return (each * known).sum() / known.sum().clamp(min=1)


def _refuse_absent(classes: Sequence[str], counts: Tensor) -> None:
    absent = [name for name, count in zip(classes, counts.tolist(), strict=True) if not count]
    if absent:
        raise ValueError(f"no training case shows {', '.join(absent)}, so that it has no weight; name the weights")


def _named(weights: Mapping[str, float] | Literal["balanced"], classes: Sequence[str]) -> Tensor:
    table = dict(weights) if isinstance(weights, Mapping) else {}
    unknown = sorted(set(table) - set(classes))
    if unknown:
        raise ValueError(f"weights name {', '.join(unknown)}, the classes are {', '.join(classes)}; rename them")
    if min(table.values(), default=1.0) < 0:
        raise ValueError(f"weights must be 0 or more, the least is {min(table.values())}; correct it")
    return torch.tensor([table.get(name, 1.0) for name in classes])

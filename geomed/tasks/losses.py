"""Losses on dense logits; pixels labelled IGNORE count in none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence  # noqa: TC003  (jsonargparse reads the annotations)
from typing import cast

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor, nn

from geomed.pixels import IGNORE


class Loss(nn.Module, ABC):
    """Logits and labels → one number; zero where nothing is labelled."""

    def bind(self, classes: Sequence[str]) -> None:
        """Learn the classes' names and order, once, before training."""

    @abstractmethod
    def forward(self, logits: Float[Tensor, "b k h w"], labels: Int[Tensor, "b h w"]) -> Float[Tensor, ""]:
        """The loss of a batch."""


class CrossEntropy(Loss):
    """Mean cross-entropy over the labelled pixels, by class weights where given."""

    def __init__(self, weights: Mapping[str, float] | None = None, *, smoothing: float = 0.0) -> None:
        """Choose weights and smoothing.

        Args:
            weights: of classes by name; classes that are not named weigh 1.
            smoothing: share of the target that is spread over all classes.
        """
        super().__init__()
        self.named = dict(weights or {})
        self.smoothing = smoothing
        self.register_buffer("weights", None, persistent=False)

    def bind(self, classes: Sequence[str]) -> None:
        """Put the weights in the classes' order.

        Raises:
            ValueError: a weight for a class that does not exist.
        """
        unknown = sorted(set(self.named) - set(classes))
        if unknown:
            raise ValueError(f"weights name {', '.join(unknown)}, the classes are {', '.join(classes)}; rename them")
        if self.named:
            self.weights = torch.tensor([self.named.get(name, 1.0) for name in classes])

    def forward(self, logits: Float[Tensor, "b k h w"], labels: Int[Tensor, "b h w"]) -> Float[Tensor, ""]:
        """Weighted mean over the labelled pixels."""
        weights = None if self.weights is None else self.weights.to(logits)
        total = F.cross_entropy(
            logits, labels, weights, ignore_index=IGNORE, label_smoothing=self.smoothing, reduction="sum"
        )
        known = labels != IGNORE
        mass = known.sum() if weights is None else weights[torch.where(known, labels, 0)][known].sum()
        return total / mass.clamp(min=1e-12 if weights is not None else 1)


class Focal(Loss):
    """Focal loss (Lin et al., ICCV 2017), as segmentation-models-pytorch computes it."""

    def __init__(self, gamma: float = 2.0) -> None:
        """``gamma`` turns attention to what is still wrong; 0 is cross-entropy."""
        super().__init__()
        self.focal = smp.losses.FocalLoss("multiclass", gamma=gamma, ignore_index=IGNORE)

    def forward(self, logits: Float[Tensor, "b k h w"], labels: Int[Tensor, "b h w"]) -> Float[Tensor, ""]:
        """Mean over the labelled pixels."""
        if not bool((labels != IGNORE).any()):
            return logits.sum() * 0
        return self.focal(logits, labels)


class Dice(Loss):
    """Soft Dice (Milletari, Navab and Ahmadi, 3DV 2016), as segmentation-models-pytorch computes it."""

    def __init__(self, smooth: float = 1.0) -> None:
        """``smooth`` steadies classes of few pixels."""
        super().__init__()
        self.dice = smp.losses.DiceLoss("multiclass", smooth=smooth, ignore_index=IGNORE)

    def forward(self, logits: Float[Tensor, "b k h w"], labels: Int[Tensor, "b h w"]) -> Float[Tensor, ""]:
        """Mean over the classes that occur."""
        if not bool((labels != IGNORE).any()):
            return logits.sum() * 0
        return self.dice(logits, labels)


class Sum(Loss):
    """Several losses, each with its weight: cross-entropy and Dice, for example."""

    def __init__(self, losses: list[Loss], weights: list[float] | None = None) -> None:
        """One weight for each loss; None weighs all 1.

        Raises:
            ValueError: another number of weights than losses.
        """
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self.shares = [1.0] * len(losses) if weights is None else weights
        if len(self.shares) != len(losses) or not losses:
            raise ValueError(f"{len(losses)} losses need as many weights, not {len(self.shares)}")

    def bind(self, classes: Sequence[str]) -> None:
        """Pass the classes on."""
        for loss in cast("Iterable[Loss]", self.losses):
            loss.bind(classes)

    def forward(self, logits: Float[Tensor, "b k h w"], labels: Int[Tensor, "b h w"]) -> Float[Tensor, ""]:
        """Their weighted sum."""
        return torch.stack([w * loss(logits, labels) for w, loss in zip(self.shares, self.losses, strict=True)]).sum()

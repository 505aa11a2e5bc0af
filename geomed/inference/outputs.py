"""What is written of blended logits: classes, and if asked for confidence and the probabilities themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from geomed.inference.stream import Blended

UNKNOWN = 255
"""Of every layer where nothing was observed."""

STEPS = 250
"""Number that stands for 1 in layers of shares: value = number / 250."""


_AT_ONCE = 32  # rows that a cache holds


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Which rasters are written."""

    confidence: bool = False
    """Two bands: the probability of the class that was chosen, and the entropy of all, 1 where all are as likely. A
    probability is the softmax of the mean logits."""

    probabilities: bool = False
    """A band for each class."""

    def bands(self, classes: int) -> Mapping[str, int]:
        """Bands of each layer, by its name."""
        wanted = {"map": 1, "confidence": 2 * self.confidence, "probabilities": classes * self.probabilities}
        return {name: count for name, count in wanted.items() if count}


def layers_of(blended: Blended, layers: Layers, classes: int) -> dict[str, NDArray[np.uint8]]:
    """Finished rows, whose scores are logits, as numbers [bands, R, W] of each layer, on the CPU."""
    shape = tuple(blended.valid.shape)
    if blended.scores is None:
        bands = layers.bands(classes).items()
        return {name: np.full((count, *shape), UNKNOWN, dtype=np.uint8) for name, count in bands}
    there = blended.valid
    made = {"map": _best(blended.scores)[None]}
    if layers.confidence or layers.probabilities:
        shares = torch.softmax(blended.scores, 0)
        if layers.confidence:
            entropy = -torch.xlogy(shares, shares).sum(0) / math.log(max(classes, 2))
            made["confidence"] = torch.stack((_steps(shares.amax(0)), _steps(entropy)))
        if layers.probabilities:
            made["probabilities"] = _steps(shares)
    return {name: torch.where(there, value, UNKNOWN).cpu().numpy() for name, value in made.items()}


def _best(scores: Tensor) -> Tensor:
    """The class of the highest of the scores [K, R, W] as uint8: the first of several, and unknown where one is NaN."""
    if scores.device.type != "cpu":
        top, best = scores.max(0)
        return torch.where(top.isnan(), UNKNOWN, best).to(torch.uint8)
    numbers = scores.numpy()  # with which it takes a sixth of the time of torch's own reduction over the first axis
    chosen = np.full(numbers.shape[1:], UNKNOWN, dtype=np.uint8)
    for first in range(0, len(chosen), _AT_ONCE):
        some, rows = numbers[:, first : first + _AT_ONCE], chosen[first : first + _AT_ONCE]
        top = some.max(0)
        for number in reversed(range(len(some))):
            np.copyto(rows, number, where=some[number] == top)
    return torch.from_numpy(chosen)


def _steps(share: Tensor) -> Tensor:
    return (share * STEPS).round_().clamp_(0, STEPS).to(torch.uint8)

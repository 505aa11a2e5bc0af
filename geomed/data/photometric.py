"""Random changes of the values of an image of any bands."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

_SIGMA = (0.1, 2.0)  # of the blur, in pixels, with the radius below: DINOv2's
_RADIUS = 4


@dataclass(frozen=True, kw_only=True)
class Photometric:
    """Random changes of what a crop's pixels say, for objectives that compare views; MAE takes none.

    Colour jitter, for any count of bands. DINOv2 besides turns crops grey, solarises them and blurs the first global
    crop always, the second at times; ratios of bands are what a sensor measures, so here they only drift, and one
    chance of blur holds for all crops.
    """

    jitter: float = 0.0
    """Each band is multiplied about its mean by 1 + u and moved by v of its standard deviations in the crop, u and v
    uniform between -jitter and jitter. DINOv2 changes brightness and contrast by up to 0.4."""

    blur: float = 0.0
    """Chance that a crop is blurred, by a Gaussian of 0.1 to 2 pixels."""

    def __post_init__(self) -> None:
        """Refuse a jitter that turns images into their negative, and a chance that is none."""
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter is a share from 0 to below 1, not {self.jitter}; correct it")
        if not 0 <= self.blur <= 1:
            raise ValueError(f"blur is a chance from 0 to 1, not {self.blur}; correct it")

    def __call__(self, values: Tensor, valid: Tensor, generator: torch.Generator) -> Tensor:
        """The changed values [C, H, W]; what they are where not ``valid`` [H, W] means nothing."""
        if self.jitter:
            values = self._jittered(values, valid, generator)
        if self.blur and torch.rand((), generator=generator) < self.blur:
            low, high = _SIGMA
            values = _blurred(values, valid, low + (high - low) * float(torch.rand((), generator=generator)))
        return values

    def _jittered(self, values: Tensor, valid: Tensor, generator: torch.Generator) -> Tensor:
        drawn = self.jitter * (2 * torch.rand(2, len(values), 1, 1, generator=generator) - 1)
        pixels = valid.sum().clamp(min=1)
        mean = torch.where(valid, values, 0).sum((1, 2), keepdim=True) / pixels
        about = torch.where(valid, values - mean, 0)
        spread = torch.linalg.vector_norm(about, dim=(1, 2), keepdim=True) / pixels.sqrt()
        return torch.addcmul(mean + spread * drawn[1], about, 1 + drawn[0])


def _blurred(values: Tensor, valid: Tensor, sigma: float) -> Tensor:
    """Gaussian blur that neither pixels outside nor those that are not valid have a part in."""
    stacked = torch.cat([torch.where(valid, values, 0), valid[None].to(values)])
    for axis in (1, 2):
        stacked = _smoothed(stacked, sigma, axis)
    return stacked[:-1] / stacked[-1].clamp(min=1e-6)


def _smoothed(values: Tensor, sigma: float, axis: int) -> Tensor:
    """Sum of values along one axis with Gaussian weights, 0 outside."""
    # Adding shifted copies takes a third of the time of conv2d on a CPU.
    smoothed, length = values.clone(), values.shape[axis]
    for shift in range(1, min(_RADIUS, length - 1) + 1):
        weight, rest = math.exp(-0.5 * (shift / sigma) ** 2), length - shift
        smoothed.narrow(axis, 0, rest).add_(values.narrow(axis, shift, rest), alpha=weight)
        smoothed.narrow(axis, shift, rest).add_(values.narrow(axis, 0, rest), alpha=weight)
    return smoothed

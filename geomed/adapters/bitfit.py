"""Training biases alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geomed.adapters.adapter import Adapted, Adapter
from geomed.backbones.dates import DayOfYear

if TYPE_CHECKING:
    from geomed.adapters.place import Place


@dataclass(frozen=True, kw_only=True)
class BitFit(Adapter):
    """Trains a shift of each bias, starting from zero (Ben Zaken, Ravfogel and Goldberg, ACL 2022).

    A module without a bias gets one: TSViT's qkv, for example, as in arXiv 2310.01825.
    """

    paper: ClassVar[str] = "Ben Zaken, Ravfogel and Goldberg, ACL 2022"

    targets: tuple[str, ...] = ("qkv", "proj", "fc1", "fc2", "attention.norm", "mlp.norm", "patch", "dates.day")
    """Which Linear, Conv2d, norm or DayOfYear modules: shell-style patterns of paths or of their ends."""

    def wrap(self, place: Place) -> Adapted | None:
        """Wrap what has, or could have, a bias."""
        if not place.matches(self.targets):
            return None
        plain = place.plain
        if isinstance(plain, nn.Linear):
            return Shifted(place.module, plain.weight.new_zeros(plain.out_features))
        if isinstance(plain, nn.Conv2d):
            return Shifted(place.module, plain.weight.new_zeros(plain.out_channels, 1, 1))
        if isinstance(plain, DayOfYear):
            return Shifted(place.module, plain.weight.new_zeros(plain.weight.shape[0]))
        if isinstance(plain, nn.LayerNorm):
            return Shifted(place.module, plain.weight.new_zeros(plain.normalized_shape))
        return None


class Shifted(Adapted):
    """A module with something added to its output."""

    mergeable = True

    def __init__(self, base: nn.Module, shift: Tensor) -> None:
        """``shift`` broadcasts against the output."""
        super().__init__(base)
        self.shift = nn.Parameter(shift)

    def forward(self, x: Tensor) -> Tensor:
        """base(x) + shift."""
        if type(self.base) is nn.Linear:  # in one kernel
            bias = self.base.bias
            return F.linear(x, self.base.weight, self.shift if bias is None else bias + self.shift)
        return self.base(x) + self.shift

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """Bias + shift."""
        new = copy.deepcopy(self.base)
        shift = self.shift.detach().flatten()
        bias = new._parameters.get("bias")  # noqa: SLF001  (it may be registered as None, or absent)
        new.bias = nn.Parameter(shift.clone() if bias is None else bias + shift)
        return new

"""Training the gain and the shift of norms alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from timm.layers import LayerNorm
from torch import Tensor, nn

from geomed.adapters.adapter import Adapted, Adapter

if TYPE_CHECKING:
    from typing import TypeGuard

    from geomed.adapters.place import Place


@dataclass(frozen=True, kw_only=True)
class LayerNormTuning(Adapter):
    """Trains a change of each LayerNorm's gain and shift, both from zero.

    Kim et al. 2022 ("How to Adapt Your Large-Scale Vision-and-Language Model"), and Basu et al., AAAI 2024 ("Strong
    Baselines for Parameter-Efficient Few-Shot Fine-Tuning"), who call it LN-Tune. A norm without a shift gets one; a
    norm without a gain is left.
    """

    paper: ClassVar[str] = "Basu et al., AAAI 2024"

    targets: tuple[str, ...] = ("*",)
    """Which of the LayerNorms: shell-style patterns of paths or of their ends."""

    def wrap(self, place: Place) -> Adapted | None:
        """Wrap a LayerNorm."""
        plain = place.plain
        if not isinstance(plain, nn.LayerNorm) or plain.weight is None or not place.matches(self.targets):
            return None
        return TunedNorm(place.module, plain)


class TunedNorm(Adapted):
    """A LayerNorm with a changed gain and shift, in one kernel."""

    mergeable = True

    def __init__(self, base: nn.Module, plain: nn.LayerNorm) -> None:
        """``plain`` is the norm inside ``base``."""
        super().__init__(base)
        self.shape = list(plain.normalized_shape)
        self.eps = plain.eps
        self.gain = nn.Parameter(torch.zeros_like(plain.weight))
        self.shift = nn.Parameter(torch.zeros_like(plain.weight))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Normalise x and apply the changed gain and shift."""
        if not is_one_kernel(self.base):  # what changes is then added to whatever it computes
            return self.base(x) + F.layer_norm(x, self.shape, self.gain, self.shift, self.eps)
        weight, bias = self.base.weight, self.base.bias
        shift = self.shift if bias is None else bias + self.shift
        return F.layer_norm(x, self.shape, weight + self.gain, shift, self.eps)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """Gain and shift as changed."""
        new = copy.deepcopy(self.base)
        bias = new._parameters.get("bias")  # noqa: SLF001  (it may be registered as None)
        new.weight = nn.Parameter(new.get_parameter("weight") + self.gain)
        new.bias = nn.Parameter(self.shift.clone() if bias is None else bias + self.shift)
        return new


def is_one_kernel(module: nn.Module) -> TypeGuard[nn.LayerNorm]:
    """Whether it is a LayerNorm that does nothing but `torch.nn.functional.layer_norm`."""
    return type(module) in {nn.LayerNorm, LayerNorm}

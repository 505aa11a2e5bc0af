"""A small bottleneck beside each MLP."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch.nn.functional as F
from jaxtyping import Float  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor, nn

from geomed.adapters.adapter import Adapted, Adapter, innermost
from geomed.backbones.block import MlpBranch
from geomed.tokens import Tokens  # noqa: TC001  (likewise)

if TYPE_CHECKING:
    from geomed.adapters.place import Place


@dataclass(frozen=True, kw_only=True)
class AdaptFormer(Adapter):
    """Adds scale · U relu(D x + b) + c to each MLP's update, x the residual stream before the MLP's norm.

    Chen et al., NeurIPS 2022, equation 3; U and c start at zero.
    """

    paper: ClassVar[str] = "Chen et al., NeurIPS 2022"

    bottleneck: int = 64
    """Width between D and U."""

    scale: float = 0.1
    """How strongly it speaks."""

    norm: bool = False
    """Normalise x by the MLP's own norm first."""

    targets: tuple[str, ...] = ("mlp",)
    """Which MLP branches: shell-style patterns of paths or of their ends."""

    def __post_init__(self) -> None:
        """Refuse a bottleneck of nothing."""
        if self.bottleneck < 1:
            raise ValueError(f"bottleneck must be positive, not {self.bottleneck}")

    def wrap(self, place: Place) -> Adapted | None:
        """Wrap an MLP branch."""
        plain = place.plain
        if not isinstance(plain, MlpBranch) or not place.matches(self.targets):
            return None
        weight = innermost(plain.mlp.get_submodule("fc1")).get_parameter("weight")
        return ParallelMlp(place.module, self, weight, innermost(plain.norm))


class ParallelMlp(Adapted):
    """An MLP branch and a bottleneck beside it."""

    def __init__(self, base: nn.Module, adapter: AdaptFormer, fc1: Tensor, norm: nn.Module) -> None:
        """``fc1`` is the weight of the MLP's first Linear, which tells the width; ``norm`` is the branch's."""
        super().__init__(base)
        self.scale = adapter.scale
        width = fc1.shape[1]
        self.down = nn.Linear(width, adapter.bottleneck, device=fc1.device, dtype=fc1.dtype)
        self.up = nn.Linear(adapter.bottleneck, width, device=fc1.device, dtype=fc1.dtype)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self._norm = (norm,) if adapter.norm else ()  # in a tuple: used here, but not a part of this module

    def forward(self, tokens: Tokens) -> Float[Tensor, "b n d"]:
        """The MLP's update and the bottleneck's."""
        x = tokens.data
        for norm in self._norm:
            x = norm(x)
        return self.base(tokens) + self.scale * self.up(F.relu(self.down(x)))

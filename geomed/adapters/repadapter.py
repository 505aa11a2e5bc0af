"""Linear bottlenecks before attention and MLP, which fold into the Linears that follow."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor, nn

from geomed.adapters.adapter import Adapted, Adapter
from geomed.adapters.thin import narrowed, widened

if TYPE_CHECKING:
    from geomed.adapters.place import Place


@dataclass(frozen=True, kw_only=True)
class RepAdapter(Adapter):
    """Reads x + s (B (A x + a) + b) in place of x, with B of independent groups of channels.

    Luo et al. 2023, "Towards Efficient Visual Adaption via Structural Re-parameterization". A is drawn (Xavier), and a,
    B and b start at zero. All of it is linear, and folds into the Linear that reads it.
    """

    paper: ClassVar[str] = "Luo et al., arXiv 2302.08106"

    bottleneck: int = 8
    """Channels between A and B."""

    groups: int = 2
    """Groups of B: as many parts of the token's width, each read from its own part of the bottleneck."""

    scale: float = 1.0
    """How strongly it speaks."""

    targets: tuple[str, ...] = ("attn.qkv", "fc1")
    """The Linears that read what it gives: shell-style patterns of paths or of their ends."""

    def __post_init__(self) -> None:
        """Refuse a bottleneck that the groups do not divide."""
        if self.bottleneck < 1 or self.groups < 1 or self.bottleneck % self.groups:
            raise ValueError(
                "bottleneck and groups must be positive and groups must divide bottleneck, "
                f"not {self.bottleneck} and {self.groups}; choose a multiple of groups"
            )

    def wrap(self, place: Place) -> Adapted | None:
        """Wrap a Linear.

        Raises:
            ValueError: the groups do not divide its input.
        """
        plain = place.plain
        if not isinstance(plain, nn.Linear) or not place.matches(self.targets):
            return None
        if plain.in_features % self.groups:
            raise ValueError(
                f"{place.path}: groups must divide the width of a token, not {self.groups} and {plain.in_features}; "
                "choose a divisor"
            )
        return RepAdapted(place.module, self, plain)


class RepAdapted(Adapted):
    """A Linear that reads adapted tokens."""

    mergeable = True

    def __init__(self, base: nn.Module, adapter: RepAdapter, plain: nn.Linear) -> None:
        """``plain`` is the Linear inside ``base``."""
        super().__init__(base)
        width, weight = plain.in_features, plain.weight
        self.scale, self.groups = adapter.scale, adapter.groups
        self.down = nn.Linear(width, adapter.bottleneck, device=weight.device, dtype=weight.dtype)
        self.up = nn.Linear(adapter.bottleneck // adapter.groups, width, device=weight.device, dtype=weight.dtype)
        nn.init.xavier_uniform_(self.down.weight)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """base(x + s (B (A x + a) + b))."""
        up, shift = self._whole()
        return self.base(widened(x + shift, narrowed(x, self.down.weight), up))

    def _whole(self) -> tuple[Float[Tensor, "i h"], Float[Tensor, " i"]]:
        """(s B as one matrix, zero between groups; s (B a + b))."""
        up = torch.block_diag(*self.up.weight.chunk(self.groups)) * self.scale
        return up, torch.addmv(self.up.bias * self.scale, up, self.down.bias)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """W (1 + s B A), and the bias that a and b make."""
        new = copy.deepcopy(self.base)
        weight = new.get_parameter("weight")
        bias = new._parameters.get("bias")  # noqa: SLF001  (it may be registered as None)
        up, shift = self._whole()
        shift = weight @ shift
        new.bias = nn.Parameter(shift if bias is None else bias + shift)
        weight += weight @ up @ self.down.weight
        return new

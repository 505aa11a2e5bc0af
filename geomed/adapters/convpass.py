"""Small convolutions over the grid of patches, beside attention and MLP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor, nn

from geomed.adapters.adapter import Adapted, Adapter, running
from geomed.adapters.thin import narrowed, widened
from geomed.backbones.block import AttentionBranch, MlpBranch, recomputing
from geomed.tokens import Tokens  # noqa: TC001  (likewise)

if TYPE_CHECKING:
    from geomed.adapters.place import Place


@dataclass(frozen=True, kw_only=True)
class Convpass(Adapter):
    """Adds s (U act(K * act(D x + d) + k) + u) to the updates of attention and MLP, x the tokens after their norm.

    K is a convolution of 3 x 3 on the grid of patches, act(x) = x sigmoid(1.702 x) (Jie and Deng 2022, "Convolutional
    Bypasses Are Better Vision Transformer Adapters"). Class tokens and registers have no neighbours: they meet the
    centre of K alone. D is drawn (Xavier), K starts by passing on what it reads, U and u start at zero.
    """

    paper: ClassVar[str] = "Jie and Deng, arXiv 2207.07039"

    bottleneck: int = 8
    """Channels of the convolution."""

    scale: float = 1.0
    """How strongly it speaks; the paper searches 0.01 to 10."""

    targets: tuple[str, ...] = ("attention", "mlp")
    """Which branches of blocks over places: shell-style patterns of paths or of their ends."""

    def __post_init__(self) -> None:
        """Refuse a bottleneck of nothing."""
        if self.bottleneck < 1:
            raise ValueError(f"bottleneck must be positive, not {self.bottleneck}")

    def wrap(self, place: Place) -> Adapted | None:
        """Wrap an attention or MLP branch.

        Raises:
            ValueError: a pattern names blocks over dates.
        """
        plain = place.plain
        if not isinstance(plain, (AttentionBranch, MlpBranch)) or not place.matches(self.targets):
            return None
        if place.on_grid(self.targets) is None:
            return None
        return ConvpassBranch(place.module, self, place.stream())


class ConvpassBranch(Adapted):
    """A branch of a block and a convolution beside it."""

    def __init__(self, base: nn.Module, adapter: Convpass, like: Tensor) -> None:
        """``like`` is as wide as a token, and where and of the kind that weights are."""
        super().__init__(base)
        width, channels = like.shape[-1], adapter.bottleneck
        self.scale = adapter.scale
        self.down = nn.Linear(width, channels, device=like.device, dtype=like.dtype)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, device=like.device, dtype=like.dtype)
        self.up = nn.Linear(channels, width, device=like.device, dtype=like.dtype)
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.dirac_(self.conv.weight)
        for zero in (self.down.bias, self.conv.bias, self.up.weight, self.up.bias):
            if zero is not None:
                nn.init.zeros_(zero)

    def forward(self, tokens: Tokens, mask: None = None, queries: None = None) -> Float[Tensor, "b n d"]:
        """The branch's update and the convolution's; over places nothing is masked, and all tokens ask."""
        norm = running(self.base).get_submodule("norm")
        x = norm(tokens.data)
        with recomputing(norm, tokens.data, x):
            narrow = narrowed(x, self.down.weight, self.down.bias)
        narrow = _quick_gelu(self._spread(_quick_gelu(narrow).unflatten(0, x.shape[:2]), tokens))
        update = self.base(tokens) + self.up.bias * self.scale
        return widened(update, narrow, self.up.weight * self.scale)

    def _spread(self, narrow: Float[Tensor, "b n h"], tokens: Tokens) -> Float[Tensor, "m h"]:
        """The convolution on the grid, its centre on what stands before it."""
        rows, columns = tokens.grid
        plane = rearrange(narrow[:, tokens.prefix :], "b (r c) h -> b h r c", r=rows, c=columns)
        plane = rearrange(self.conv(plane), "b h r c -> h b (r c)")
        first = F.linear(narrow[:, : tokens.prefix], self.conv.weight[..., 1, 1], self.conv.bias)
        return torch.cat((rearrange(first, "b p h -> h b p"), plane), 2).flatten(1).t()


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)

"""A narrow network beside the blocks, so that the early ones need no backward pass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor, nn

from geomed.adapters.adapter import Adapted, Adapter
from geomed.backbones.block import recomputing
from geomed.tokens import Tokens  # noqa: TC001  (likewise)

if TYPE_CHECKING:
    from geomed.adapters.place import Place

_NARROW, _UP = "side.narrow", "side.up"


@dataclass(frozen=True, kw_only=True)
class SideNetwork(Adapter):
    """Sums a low-rank map of every block's input and adds a swish of the sum after the late blocks alone (DTL).

    h <- h + B A x before each block, x <- x + h sigmoid(beta h) after each late one, B zero at the start (Fu, Zhu and
    Wu, AAAI 2024): gradients stop where the late blocks begin, and of the early ones nothing is kept but their inputs.
    Here all A x are carried side by side, and h is made of them only where it is added.
    """

    paper: ClassVar[str] = "Fu, Zhu and Wu, AAAI 2024"

    rank: int = 2
    """Width of each map."""

    beta: float = 100.0
    """Sharpness of the swish; the larger, the nearer to max(h, 0)."""

    late: tuple[int, ...] = ()
    """Blocks after which the answer is added, counted from 0, or from -1 back; none means the later half."""

    kernel: int = 0
    """Side of a depth-wise convolution of the answer on the grid, one for all late blocks (DTL+); 0 for none."""

    def __post_init__(self) -> None:
        """Refuse widths that mean nothing."""
        if self.rank < 1 or self.beta <= 0:
            raise ValueError(f"rank and beta must be positive, not {self.rank} and {self.beta}")
        if self.kernel < 0 or (self.kernel and self.kernel % 2 == 0):
            raise ValueError(f"kernel must be odd, or 0 for no convolution, not {self.kernel}")

    def wrap(self, place: Place) -> Adapted | None:
        """Wrap a block over places, up to the last of the late ones.

        Raises:
            ValueError: it has a side network already, or there is no late block of such a number.
        """
        block = place.grid_block(("blocks.*",))
        if block is None:
            return None
        block.among(self.late)  # refuses numbers that are none
        late = {number % block.count for number in self.late} or set(range(block.count // 2, block.count))
        if block.number > max(late):
            return None
        if any(isinstance(module, SideBlock) for module in place.module.modules()):
            raise ValueError(f"{place.path}: there is a side network here already; give one, of a higher rank")
        like = place.stream()
        if block.number not in late:
            return SideBlock(place.module, self, like, late=False)
        mixer = place.shared.get(block.stage)
        if mixer is None and self.kernel:
            mixer = place.shared.setdefault(block.stage, _depth_wise(self.kernel, like))
        return SideBlock(place.module, self, like, late=True, mixer=mixer)


def _depth_wise(side: int, like: Tensor) -> nn.Conv2d:
    width = like.shape[-1]
    return nn.Conv2d(
        width, width, side, padding=side // 2, groups=width, bias=False, device=like.device, dtype=like.dtype
    )


class SideBlock(Adapted):
    """A block and its part of the side network."""

    def __init__(
        self, base: nn.Module, adapter: SideNetwork, like: Tensor, *, late: bool, mixer: nn.Module | None = None
    ) -> None:
        """``like`` has the width, device and dtype of the tokens; ``mixer`` is what the late blocks share."""
        super().__init__(base)
        self.beta = adapter.beta
        self.late = late
        shape = (adapter.rank, like.shape[-1])
        self.down = nn.Parameter(torch.empty(shape, device=like.device, dtype=like.dtype))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.up = nn.Parameter(torch.zeros(shape, device=like.device, dtype=like.dtype))  # B transposed
        self.mixer = mixer

    def forward(self, tokens: Tokens) -> Tokens:
        """The block, with the answer added if it is a late one.

        Raises:
            ValueError: the number of tokens differs from block to block.
        """
        narrow = F.linear(tokens.data, self.down)
        up: Tensor = self.up.clone()  # FSDP frees a parameter's own storage after its block
        if _NARROW in tokens.carried:
            before = tokens.carried[_NARROW]
            if before.shape[1] != narrow.shape[1]:
                raise ValueError(
                    f"a side network reads as many tokens at every block, not {before.shape[1]}, then "
                    f"{narrow.shape[1]}; attach it after the adapter that adds tokens"
                )
            narrow = torch.cat((before, narrow), -1)
            up = torch.cat((tokens.carried[_UP], up))
        tokens = self.base(tokens)
        if self.late:
            tokens = tokens.replace(self._with_answer(tokens, narrow, up))
        return tokens.carry(_NARROW, narrow).carry(_UP, up)

    def _with_answer(
        self, tokens: Tokens, narrow: Float[Tensor, "b n r"], up: Float[Tensor, "r d"]
    ) -> Float[Tensor, "b n d"]:
        """X + h sigmoid(beta h); neither h nor its swish is kept, as both are soon made again."""
        weight = (self.beta * up).to(narrow.dtype)

        def swish(x: Tensor) -> Tensor:
            return F.silu(x @ weight)

        h = narrow @ weight
        with recomputing(lambda x: x @ weight, narrow, h):
            answer = F.silu(h)
        if self.mixer is not None:
            with recomputing(swish, narrow, answer):
                grid = rearrange(answer[:, tokens.prefix :], "b (h w) d -> b d h w", h=tokens.grid[0])
                mixed = rearrange(self.mixer(grid), "b d h w -> b (h w) d")
            answer = torch.cat((answer[:, : tokens.prefix], mixed), 1)
        return torch.add(tokens.data, answer, alpha=1 / self.beta)

"""Learned tokens that refine the patch tokens after each block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geomed.adapters.adapter import Adapted, Adapter
from geomed.backbones.block import recomputing
from geomed.tokens import Tokens  # noqa: TC001  (annotations are evaluated by the shape checker in the tests)

if TYPE_CHECKING:
    from geomed.adapters.place import Place


@dataclass(frozen=True, kw_only=True)
class Rein(Adapter):
    """x + s (W_f (x + S' (W_T T' + b_T)) + b_f) on the patch tokens x after each block.

    Wei et al., "Stronger, Fewer, & Superior" (Rein), CVPR 2024, section 3. T = A B are ``tokens`` learned vectors of a
    block, S = softmax(x Tᵀ / √d) compares them with x; the first of them only takes attention away from the others: T'
    and S' are T and S without it. W_T, W_f and s are shared by all blocks of a stage. Prefix tokens pass as they are.

    Left out is the link from T to the queries of a Mask2Former head, 393,728 parameters on ViT-B: any head can follow.
    """

    paper: ClassVar[str] = "Wei et al., CVPR 2024"

    tokens: int = 100
    """Learned vectors of each block."""

    rank: int = 16
    """Width of A and B."""

    scale: float = 1e-3
    """Where s starts."""

    init: Literal["zero", "reference"] = "zero"
    """``zero``: W_f and b_f are zero, and the network starts unchanged. ``reference``: they are drawn as PyTorch draws
    a Linear's, and it does not."""

    blocks: tuple[int, ...] = ()
    """Blocks of each stage, from 0, or from -1 back; empty: all."""

    targets: tuple[str, ...] = ("blocks.*",)
    """Which blocks: shell-style patterns of paths or of their ends."""

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.tokens < 2 or self.rank < 1:
            raise ValueError(
                "tokens must be at least 2, for the first gives nothing, and rank positive, "
                f"not {self.tokens} and {self.rank}"
            )
        if self.init not in {"zero", "reference"}:
            raise ValueError(f"init must be zero or reference, not {self.init!r}")

    @property
    def identity(self) -> bool:
        """Where W_f starts from zero."""
        return self.init == "zero"

    def wrap(self, place: Place) -> Adapted | None:
        """Wrap a block over a grid of places.

        Raises:
            ValueError: there is no block of such a number, or the rank is above what A B can have.
        """
        block = place.grid_block(self.targets, self.blocks)
        if block is None:
            return None
        like = place.stream()
        if self.rank > min(self.tokens, like.shape[-1]):
            raise ValueError(
                f"{place.path}: rank must not exceed tokens and width, "
                f"{self.rank} > {min(self.tokens, like.shape[-1])}; lower it"
            )
        common = place.shared.get(block.stage)
        if not isinstance(common, Projections):
            common = place.shared[block.stage] = Projections(self, like)
        return RefinedBlock(place.module, self, like, common)


class Projections(nn.Module):
    """What the blocks of a stage share."""

    def __init__(self, adapter: Rein, like: Tensor) -> None:
        """``like`` has the width, device and dtype of the tokens."""
        super().__init__()
        width = like.shape[-1]
        self.values = nn.Linear(width, width, device=like.device, dtype=like.dtype)  # W_T
        self.update = nn.Linear(width, width, device=like.device, dtype=like.dtype)  # W_f
        self.scale = nn.Parameter(like.new_full((1,), adapter.scale))
        if adapter.init == "zero":
            nn.init.zeros_(self.update.weight)
            nn.init.zeros_(self.update.bias)


class RefinedBlock(Adapted):
    """A block and what its learned tokens add to the patch tokens."""

    def __init__(self, base: nn.Module, adapter: Rein, like: Tensor, common: Projections) -> None:
        """``common`` is the stage's."""
        super().__init__(base)
        self.common = common
        self.rows = nn.Parameter(nn.init.xavier_uniform_(like.new_empty(adapter.tokens, adapter.rank)))
        self.columns = nn.Parameter(nn.init.xavier_uniform_(like.new_empty(adapter.rank, like.shape[-1])))

    def forward(self, tokens: Tokens) -> Tokens:
        """The block, then the refinement."""
        tokens = self.base(tokens)
        x, update = tokens.data, self.common.update
        learned = self.rows @ self.columns
        kind = learned.dtype  # of products: under autocast not that of x
        own, scale = x.to(kind), self.common.scale.to(kind)
        attention = (F.linear(own, learned) * (1 / math.sqrt(x.shape[-1]))).softmax(-1).to(kind)
        # s on the small matrices, and zero where the first token is left out, spare passes over all tokens
        answers = F.pad(self.common.values(learned[1:]) * scale, (0, 0, 1, 0)).t()

        def refined(attention: Tensor) -> Tensor:
            return torch.addcmul(F.linear(attention, answers), own, scale)

        inner = refined(attention)
        with recomputing(refined, attention, inner):
            added = F.linear(inner, update.weight, update.bias * self.common.scale)
        if not tokens.prefix:
            return tokens.replace(x + added)
        patch = x.new_ones(x.shape[1], 1)
        patch[: tokens.prefix] = 0
        return tokens.replace(torch.addcmul(x, added, patch))

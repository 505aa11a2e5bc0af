"""Prompt tokens, as first published for vision."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from geomed.adapters.adapter import Adapted, Adapter
from geomed.adapters.prompt_tokens import (
    CarriedPrompts,
    backbone_around,
    inserted,
    parted,
    unused_name,
)
from geomed.backbones.block import Block
from geomed.tokens import Tokens

if TYPE_CHECKING:
    from geomed.adapters.place import Place


@dataclass(frozen=True, kw_only=True)
class VPT(Adapter):
    """Learned tokens between the prefix tokens and the patches (Jia et al., ECCV 2022, section 3.2).

    Deep (equations 6 and 7): every block gets prompts of its own, and what becomes of them is dropped. Shallow
    (equations 4 and 5): they enter before the first block and go through all blocks as tokens do; the features' tokens
    carry what becomes of them under ``vpt.0``. Prompts share the tokens' softmax, so the outputs change at once;
    `Prompts` is the kind that starts as the identity.
    """

    paper: ClassVar[str] = "Jia et al., ECCV 2022"

    count: int = 10
    """Prompts: in each block if deep, else in all."""

    deep: bool = True
    """New prompts for every block, or the same carried through."""

    targets: tuple[str, ...] = ("blocks.*",)
    """Which blocks over places: shell-style patterns of paths or of their ends."""

    blocks: tuple[int, ...] = ()
    """Their numbers within the stage, from the end if negative; empty: all."""

    def __post_init__(self) -> None:
        """Refuse no prompts."""
        if self.count < 1:
            raise ValueError(f"count must be positive, not {self.count}")

    @property
    def identity(self) -> bool:
        """Prompts take a part of the attention from the start."""
        return False

    def wrap(self, place: Place) -> Adapted | None:
        """Wrap a block.

        Raises:
            ValueError: it stands in no backbone, or reads dates and is named.
        """
        block = place.grid_block(self.targets, self.blocks)
        if block is None:
            return None
        backbone = backbone_around(place)
        if backbone is None:
            raise ValueError(
                f"{place.path}: prompts are drawn by the patch size of the backbone, and this block stands in none; "
                "attach to a Backbone, or to what holds one"
            )
        if self.deep:
            return DeepPrompted(place.module, self._drawn(place, backbone.spec.patch))
        prompts = place.shared.get(block.stage)
        if not isinstance(prompts, CarriedPrompts):
            prompts = CarriedPrompts(unused_name(place.root, "vpt"), self._drawn(place, backbone.spec.patch))
            place.shared[block.stage] = prompts
        return ShallowPrompted(place.module, prompts)

    def _drawn(self, place: Place, patch: int) -> Tensor:
        """Uniform, within Xavier's bound for a patch embedding of three bands, as the published code draws them."""
        like = place.stream()
        width = like.shape[-1]
        bound = math.sqrt(6 / (3 * patch**2 + width))
        return nn.init.uniform_(like.new_empty(self.count, width), -bound, bound)


class DeepPrompted(Adapted):
    """A block with prompts that no other block sees."""

    def __init__(self, base: nn.Module, prompts: Tensor) -> None:
        """``prompts`` [p, d] are where training starts."""
        super().__init__(base)
        self.prompts = nn.Parameter(prompts)

    def forward(self, tokens: Tokens) -> Tokens:
        """The block on tokens and prompts; nothing is computed of the prompts that only they would read."""
        count = len(self.prompts)
        prompted = inserted(tokens, self.prompts[None])
        if not isinstance(self.base, Block):
            out = self.base(prompted)
            return Tokens(parted(out.data, tokens, count)[0], tokens.grid, tokens.prefix, out.carried)
        update, _ = parted(self.base.attention(prompted), tokens, count)
        tokens = tokens.replace(tokens.data + update)
        return tokens.replace(tokens.data + self.base.mlp(tokens))


class ShallowPrompted(Adapted):
    """A block through which prompts are carried."""

    def __init__(self, base: nn.Module, prompts: CarriedPrompts) -> None:
        """``prompts`` are common to all blocks of the stage."""
        super().__init__(base)
        self.prompts = prompts

    def forward(self, tokens: Tokens) -> Tokens:
        """The block on tokens and prompts, and both handed on apart."""
        prompts = self.prompts.beside(tokens)
        out = self.base(inserted(tokens, prompts))
        data, prompts = parted(out.data, tokens, prompts.shape[1])
        return Tokens(data, tokens.grid, tokens.prefix, out.carried).carry(self.prompts.name, prompts)

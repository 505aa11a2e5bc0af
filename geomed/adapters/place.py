"""Where an adapter may go in: a module, its path, and the block that it stands in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from geomed.adapters.adapter import Adapted, innermost, running
from geomed.backbones.block import Block, WholeBlock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class BlockPlace:
    """Which block of which stage."""

    stage: str
    """The path of the stage: ``spatial`` or ``temporal`` in TSViT, empty in a ViT."""

    number: int
    """From 0 within its stage."""

    count: int
    """Blocks of the stage."""

    axes: int
    """Axes of the grid of its tokens: 2 for places, 1 for dates."""

    def among(self, blocks: Sequence[int]) -> bool:
        """Whether it is one of these blocks, counted from 0, or from the end with negative numbers; none means all.

        Raises:
            ValueError: the stage has no such block.
        """
        wrong = [block for block in blocks if not -self.count <= block < self.count]
        if wrong:
            stage = self.stage or "the backbone"
            raise ValueError(f"{stage} has blocks 0 to {self.count - 1}, not {wrong}; count from 0, or from -1 back")
        return not blocks or self.number in {block % self.count for block in blocks}


@dataclass(frozen=True, kw_only=True)
class Place:
    """One module of a network, as `Adapter.wrap` is asked about it."""

    module: nn.Module
    """What stands here now, possibly adapted already: what a wrapper takes as its base."""

    path: str
    """Its place as if nothing were attached, such as ``temporal.blocks.0.attention.attn.qkv``."""

    root: nn.Module
    """The whole network."""

    shared: dict[str, nn.Module]
    """What the places of one `attach` have in common, under keys of the adapter's choice; empty at the first place.
    A module in it trains if it becomes a child of the wrappers; files hold it once."""

    @property
    def plain(self) -> nn.Module:
        """The plain module inside any adapters."""
        return innermost(self.module)

    def matches(self, patterns: Sequence[str]) -> bool:
        """Whether the path, or its end after a dot, matches one of the shell-style patterns."""
        return any(fnmatch(self.path, pattern) or fnmatch(self.path, f"*.{pattern}") for pattern in patterns)

    def block(self) -> BlockPlace | None:
        """The block that this is, or that it is a part of."""
        found = re.match(r"(?:(.*)\.)?blocks\.(\d+)(?:\.|$)", self.path)
        if found is None:
            return None
        stage = found[1] or ""
        blocks = _at(self.root, f"{stage}.blocks".lstrip("."))
        plain = innermost(blocks.get_submodule(found[2]))
        axes = plain.axes if isinstance(plain, (Block, WholeBlock)) else 2
        return BlockPlace(stage=stage, number=int(found[2]), count=len(list(blocks.children())), axes=axes)

    def stream(self) -> Tensor:
        """A weight of the block that stands here; its last axis, device and dtype are those of the block's tokens."""
        weights = (
            weight
            for module in self.plain.modules()
            if not isinstance(module, Adapted)  # another adapter's tensors have widths of their own
            for weight in module.parameters(recurse=False)
        )
        return next(weight for weight in weights if weight.is_floating_point())

    def grid_block(self, targets: Sequence[str], blocks: Sequence[int] = ()) -> BlockPlace | None:
        """The block that stands here, if it is named by pattern and number and its tokens lie on a grid of places.

        Blocks over dates are passed over, unless a pattern names their stage.

        Raises:
            ValueError: a pattern names a stage over dates, or there is no block of such a number.
        """
        if not isinstance(self.plain, (Block, WholeBlock)) or not self.matches(targets):
            return None
        return self.on_grid(targets, blocks)

    def on_grid(self, targets: Sequence[str], blocks: Sequence[int] = ()) -> BlockPlace | None:
        """As `grid_block`, for a module within the block.

        Raises:
            ValueError: as there.
        """
        block = self.block()
        if block is None:
            return None
        if block.axes != 2:
            if any(block.stage in pattern for pattern in targets):
                raise ValueError(
                    f"{self.path}: this adapter is defined on tokens of places, and these are dates; "
                    "leave this stage out of targets"
                )
            return None
        return block if block.among(blocks) else None


def _at(root: nn.Module, path: str) -> nn.Module:
    """The module that runs at a path given as if nothing were attached."""
    module = running(root)
    for part in path.split("."):
        module = running(module.get_submodule(part))
    return module

"""The abstract backbone: pixels → tokens."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from geomed.backbones.inputs import Inputs
    from geomed.pixels import Pixels
    from geomed.tokens import Tokens, TokenSpec


class Backbone(nn.Module, ABC):
    """A vision network built of blocks `Tokens → Tokens`."""

    name: str = ""
    """What it is called where it comes from: timm's name."""

    spec: TokenSpec
    """What a head may know before any token exists."""

    inputs: Inputs
    """The bands it reads and their normalisation."""

    @abstractmethod
    def forward(self, pixels: Pixels, *, depths: Sequence[int] = (-1,)) -> tuple[Tokens, ...]:
        """Pixels → normalised tokens after each of the blocks asked for.

        Args:
            pixels: images, or series with their dates where the backbone reads series.
            depths: block numbers, counted from 0, or from the end with negative numbers.

        Raises:
            ValueError: the pixels are not what this backbone reads.
        """


def block_numbers(depths: Sequence[int], count: int) -> tuple[int, ...]:
    """Depths, negative ones too, → block numbers from 0.

    Raises:
        ValueError: there is no such block.
    """
    wrong = [depth for depth in depths if not -count <= depth < count]
    if wrong or not depths:
        raise ValueError(f"depths must lie in -{count} to {count - 1}, not {wrong or 'none'}; there are {count} blocks")
    return tuple(depth % count for depth in depths)


def pad_to_patches(values: Tensor, patch: int, *, fill: float = 0.0) -> Tensor:
    """Fill up the last two axes, below and to the right, to a multiple of the patch."""
    rows, columns = -values.shape[-2] % patch, -values.shape[-1] % patch
    return F.pad(values, (0, columns, 0, rows), value=fill) if rows or columns else values


def whole(tensor: Tensor) -> Tensor:
    """Its values on the CPU; where processes hold parts of it (FSDP), of all parts, and every process has to ask."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu()


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and values of a state, whatever the device: what an adapter file is bound to.

    Where processes hold parts of the tensors, every process has to ask.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = whole(state[name]).float().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()

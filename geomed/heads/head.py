"""The abstract head: tokens → logits."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor, nn

from geomed.tokens import Tokens  # noqa: TC001  (likewise)


class Head(nn.Module, ABC):
    """Built from a `TokenSpec`; reads the tokens of one or several depths."""

    depths: tuple[int, ...] = (-1,)
    """The blocks whose tokens it reads."""

    num_classes: int
    """Logits at each place."""

    ordered: bool = False
    """Whether the classes must be grades, in the order of their indices."""

    volumes: bool = False
    """Whether it reads volumes, slice by slice."""

    @abstractmethod
    def forward(self, tokens: tuple[Tokens, ...], size: tuple[int, int]) -> Float[Tensor, "b k ..."]:
        """Tokens of each depth → logits.

        Args:
            tokens: one value for each of `depths`.
            size: (H, W) of the pixels; dense heads answer for exactly these, padding cut off.
        """

"""What flows between blocks: a sequence of tokens that knows its own layout."""

from __future__ import annotations

import math
from collections.abc import Mapping  # noqa: TC003  (annotations are evaluated by the shape checker in the tests)
from dataclasses import dataclass, field

from jaxtyping import Float  # noqa: TC002  (likewise)
from torch import Tensor  # noqa: TC002  (likewise)


@dataclass(frozen=True, kw_only=True)
class TokenSpec:
    """What a head may know about a backbone before any token exists."""

    dim: int
    """Width of one token."""

    patch: int
    """Side of the square of pixels that one grid token stands for."""

    groups: int = 1
    """How many equal slices a token is made of: the number of class tokens of a TSViT, else 1."""

    class_token: bool = False
    """Whether the first token of the prefix stands for the whole image."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Prefix tokens (class, registers), then a row-major grid of patch tokens."""

    data: Float[Tensor, "b n d"]
    """The tokens."""

    grid: tuple[int, ...]
    """(h, w) in patches; (t,) dates inside TSViT's temporal stage."""

    prefix: int = 0
    """How many tokens stand before the grid."""

    carried: Mapping[str, Tensor] = field(default_factory=dict)
    """What adapters hand on from block to block beside the tokens, each under a name of its own."""

    def __post_init__(self) -> None:
        """Refuse a layout that does not describe the data."""
        if self.prefix + math.prod(self.grid) != self.data.shape[1]:
            raise ValueError(
                f"prefix + grid must count the tokens: {self.prefix} + {'x'.join(map(str, self.grid))} "
                f"is not {self.data.shape[1]}; give the grid of this very sequence"
            )

    def replace(self, data: Float[Tensor, "b n d"]) -> Tokens:
        """Other values on the same layout."""
        return Tokens(data, self.grid, self.prefix, self.carried)

    def carry(self, name: str, value: Tensor) -> Tokens:
        """The same tokens, with something handed on."""
        return Tokens(self.data, self.grid, self.prefix, {**self.carried, name: value})

    def patches(self) -> Float[Tensor, "b g d"]:
        """The grid tokens alone, prefix left out."""
        return self.data[:, self.prefix :]

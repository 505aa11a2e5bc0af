"""The head that compares tokens with prototypes while a network distils itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Prototypes:
    """What tokens are compared with, and by how large a head."""

    count: int = 65536
    """Prototypes."""

    hidden: int = 2048
    """Width of the two hidden layers."""

    bottleneck: int = 256
    """Width of a prototype."""

    separate: bool = False
    """A head of its own for the patches, as in the largest networks of DINOv2; otherwise image and patches share it."""

    def __post_init__(self) -> None:
        """Refuse sizes that mean nothing."""
        if self.count < 2 or min(self.hidden, self.bottleneck) < 1:
            raise ValueError(
                "there must be two prototypes or more, and positive widths, "
                f"not count {self.count}, hidden {self.hidden} and bottleneck {self.bottleneck}; correct them"
            )


class ProjectionHead(nn.Module):
    """Token → cosine of the angle to each prototype (Caron et al., ICCV 2021, section 3.1 and appendix C).

    Three Linears with GELU, l2 normalisation, and a last layer without bias whose rows have length 1. DINOv2's own code
    lets these lengths train, DINO's keeps them, as here: logits then stay within -1 and 1, whatever the temperature.
    """

    def __init__(self, dim: int, prototypes: Prototypes) -> None:
        """``dim`` is the width of a token; weights start as published."""
        super().__init__()
        hidden, bottleneck = prototypes.hidden, prototypes.bottleneck
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last = Directions(bottleneck, prototypes.count)

    def forward(self, tokens: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Logits, not yet divided by a temperature."""
        return self.last(F.normalize(self.mlp(tokens), dim=-1))


class Directions(nn.Module):
    """A Linear without bias whose rows are brought to length 1: weight normalisation with the gain 1.

    Salimans and Kingma, NeurIPS 2016, section 2. The rows are divided in `forward`: the weight stays a plain parameter,
    which can be copied and replaced (``torch.func.functional_call``).
    """

    def __init__(self, dim: int, count: int) -> None:
        """``count`` rows, their directions as those of a new Linear."""
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(dim, count, bias=False).weight.detach())

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Products with all rows."""
        return F.linear(x, F.normalize(self.weight, dim=-1))

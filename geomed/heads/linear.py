"""A Linear on each token: the plainest head, and the probe by which features are judged."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor, nn

from geomed.heads.head import Head
from geomed.tokens import Tokens, TokenSpec  # noqa: TC001  (jsonargparse reads the annotations)


class Linear(Head):
    """One Linear on each patch token, bilinear to the pixels: dense logits of any backbone."""

    def __init__(self, spec: TokenSpec, num_classes: int) -> None:
        """Build it for a backbone.

        Raises:
            ValueError: no classes.
        """
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be positive, not {num_classes}")
        self.patch = spec.patch
        self.num_classes = num_classes
        self.linear = nn.Linear(spec.dim, num_classes)

    def forward(self, tokens: tuple[Tokens, ...], size: tuple[int, int]) -> Float[Tensor, "b k h w"]:
        """Logits of each class at each pixel."""
        last = tokens[-1]
        height, _ = last.grid
        x = rearrange(self.linear(last.patches()), "b (h w) k -> b k h w", h=height)
        x = F.interpolate(x, scale_factor=self.patch, mode="bilinear", align_corners=False)
        return x[..., : size[0], : size[1]]

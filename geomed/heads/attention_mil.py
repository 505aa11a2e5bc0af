"""Volumes as bags of slices: attention finds those that speak for the whole."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor, nn

from geomed.heads.pooled import PRESENT, ImageHead
from geomed.tokens import Tokens, TokenSpec  # noqa: TC001  (jsonargparse reads the annotations)


class AttentionMIL(ImageHead):
    """Gated attention over slices (Ilse, Tomczak and Welling, ICML 2018, equation 9), and one Linear.

    A 2-D backbone reads each slice; weights softmax(w · (tanh(V h) * logistic(U h))) over the slices of a volume sum
    their vectors h.
    """

    volumes = True

    def __init__(
        self,
        spec: TokenSpec,
        num_classes: int,
        *,
        hidden: int = 128,
        tokens: Literal["class", "mean"] | None = None,
        dropout: float = 0.0,
    ) -> None:
        """Build it for a backbone.

        Args:
            spec: of the backbone.
            num_classes: of one label or several, two or more.
            hidden: width of V and U.
            tokens: what a slice is known by, as in ``Pooled``.
            dropout: share of a volume's vector that is left out in training.

        Raises:
            ValueError: fewer than two classes, no width, or a class token of a backbone that has none.
        """
        super().__init__(spec, num_classes, tokens)
        if hidden < 1:
            raise ValueError(f"hidden must be positive, not {hidden}")
        self.tangent, self.gate = nn.Linear(spec.dim, hidden), nn.Linear(spec.dim, hidden)
        self.weigh = nn.Linear(hidden, 1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(spec.dim, num_classes)

    def forward(self, tokens: tuple[Tokens, ...], size: tuple[int, int]) -> Float[Tensor, "b k"]:
        """Logits of each volume.

        Raises:
            ValueError: the tokens are of single images.
        """
        return self.answer(self.embed(tokens), tokens[-1].carried.get(PRESENT))

    def answer(self, vectors: Float[Tensor, "n d"], present: Bool[Tensor, "b s"] | None = None) -> Float[Tensor, "b k"]:
        """The vectors of the n slices that are present → logits of the volumes.

        Raises:
            ValueError: these are single images.
        """
        if present is None:
            raise ValueError("AttentionMIL weighs the slices of volumes, these are single images; take Pooled")
        bags = vectors.new_zeros(*present.shape, vectors.shape[-1])
        bags[present] = vectors
        weights = self.attention(bags, present)
        logits: Tensor = self.linear(self.dropout((weights[..., None] * bags).sum(1)))
        return logits

    def attention(self, bags: Float[Tensor, "b s d"], present: Bool[Tensor, "b s"]) -> Float[Tensor, "b s"]:
        """The weight of each slice; those of a volume sum to 1."""
        gated = torch.tanh(self.tangent(bags)) * torch.sigmoid(self.gate(bags))
        energy = self.weigh(gated).squeeze(-1)
        return energy.masked_fill(~present, float("-inf")).softmax(1)

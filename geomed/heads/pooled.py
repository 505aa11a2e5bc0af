"""Whole images: one vector from the tokens, and one Linear from it to the classes."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor, nn

from geomed.heads.head import Head
from geomed.tokens import Tokens, TokenSpec  # noqa: TC001  (jsonargparse reads the annotations)

PRESENT = "present"
"""Under this name the tokens of slices carry [B, S]: which slices of each volume they are, in order."""


class ImageHead(Head):
    """A head that reads one vector of each image, which can be computed once where the backbone is frozen."""

    def __init__(self, spec: TokenSpec, num_classes: int, tokens: Literal["class", "mean"] | None) -> None:
        """Say which vector.

        Raises:
            ValueError: fewer than two classes, or a class token of a backbone that has none.
        """
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be 2 or more, not {num_classes}; yes and no are two classes")
        if tokens == "class" and not spec.class_token:
            raise ValueError("this backbone has no class token; leave `tokens` out, or take the mean of the patches")
        self.num_classes = num_classes
        self.reads_class = spec.class_token if tokens is None else tokens == "class"

    def embed(self, tokens: tuple[Tokens, ...]) -> Float[Tensor, "n d"]:
        """One vector of each image: its class token, or the mean of its patch tokens."""
        last = tokens[-1]
        return last.data[:, 0] if self.reads_class else last.patches().mean(1)

    @abstractmethod
    def answer(self, vectors: Float[Tensor, "n d"], present: Bool[Tensor, "b s"] | None = None) -> Float[Tensor, "b k"]:
        """The vector of each image → logits.

        Args:
            vectors: as ``embed`` gives them; of volumes one for each slice that is present.
            present: which slices of each volume these are.

        Raises:
            ValueError: the head reads volumes and these are images, or the other way round.
        """


def refuse_volumes(present: Tensor | None) -> None:
    """Make sure that the vectors are of images.

    Raises:
        ValueError: they are of slices.
    """
    if present is not None:
        raise ValueError("this head reads single images, these are volumes; take AttentionMIL")


class Pooled(ImageHead):
    """A Linear on the class token, or on the mean of the patch tokens where there is none: logits of whole images."""

    def __init__(
        self,
        spec: TokenSpec,
        num_classes: int,
        *,
        tokens: Literal["class", "mean"] | None = None,
        dropout: float = 0.0,
    ) -> None:
        """Build it for a backbone.

        Args:
            spec: of the backbone.
            num_classes: of one label or several, two or more.
            tokens: which tokens; None: the class token where the backbone has one, else the mean of the patches.
            dropout: share of the vector that is left out in training.

        Raises:
            ValueError: fewer than two classes, or a class token of a backbone that has none.
        """
        super().__init__(spec, num_classes, tokens)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(spec.dim, num_classes)

    def forward(self, tokens: tuple[Tokens, ...], size: tuple[int, int]) -> Float[Tensor, "b k"]:
        """Logits of each class."""
        return self.answer(self.embed(tokens), tokens[-1].carried.get(PRESENT))

    def answer(self, vectors: Float[Tensor, "n d"], present: Bool[Tensor, "b s"] | None = None) -> Float[Tensor, "b k"]:
        """The vector of each image → logits.

        Raises:
            ValueError: these are volumes.
        """
        refuse_volumes(present)
        logits: Tensor = self.linear(self.dropout(vectors))
        return logits


class CumulativeLink(ImageHead):
    """Proportional odds for grades (McCullagh, "Regression models for ordinal data", JRSS B 42, 1980, section 2).

    One score f of the image and K - 1 thresholds in ascending order: P(grade > k) = logistic(f - threshold k). What
    comes out are the logarithms of the K probabilities, which sum to 1, so that cross-entropy of them is the
    likelihood; they are computed without cancellation, as log P = log s(a) + log s(-b) + log(1 - exp(b - a)) for
    neighbours a > b of f - threshold.
    """

    ordered = True

    def __init__(
        self,
        spec: TokenSpec,
        num_classes: int,
        *,
        tokens: Literal["class", "mean"] | None = None,
        dropout: float = 0.0,
    ) -> None:
        """Build it for a backbone; the thresholds start one apart, around 0.

        Args:
            spec: of the backbone.
            num_classes: grades, two or more.
            tokens: as in ``Pooled``.
            dropout: likewise.

        Raises:
            ValueError: fewer than two grades, or a class token of a backbone that has none.
        """
        super().__init__(spec, num_classes, tokens)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(spec.dim, 1, bias=False)  # the thresholds are its bias
        self.first = nn.Parameter(torch.tensor(-(num_classes - 2) / 2.0))
        self.gaps = nn.Parameter(torch.full((num_classes - 2,), 0.5413248546))  # softplus of it is 1

    def forward(self, tokens: tuple[Tokens, ...], size: tuple[int, int]) -> Float[Tensor, "b k"]:
        """Logarithms of the probabilities of the grades."""
        return self.answer(self.embed(tokens), tokens[-1].carried.get(PRESENT))

    def answer(self, vectors: Float[Tensor, "n d"], present: Bool[Tensor, "b s"] | None = None) -> Float[Tensor, "b k"]:
        """The vector of each image → logarithms of the probabilities of the grades.

        Raises:
            ValueError: these are volumes.
        """
        refuse_volumes(present)
        score = self.linear(self.dropout(vectors)).float()
        gaps = F.softplus(self.gaps.float())
        above = score - self.first.float() - F.pad(gaps.cumsum(0), (1, 0))  # [b, K - 1], descending
        inner = F.logsigmoid(above[:, :-1]) + F.logsigmoid(-above[:, 1:]) + torch.log(-torch.expm1(-gaps))
        return torch.cat((F.logsigmoid(-above[:, :1]), inner, F.logsigmoid(above[:, -1:])), 1)

"""TSViT's own heads: each class's map of tokens speaks for its class."""

from __future__ import annotations

from typing import Literal

from einops import rearrange
from jaxtyping import Float  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor, nn

from geomed.heads.head import Head
from geomed.tokens import Tokens, TokenSpec  # noqa: TC001  (jsonargparse reads the annotations)


def _width(spec: TokenSpec) -> int:
    if spec.groups < 2:
        raise ValueError("this head needs one token per class, as TSViT gives them; for other backbones use Linear")
    return spec.dim // spec.groups


class ClassTokens(Head):
    """Norm and one Linear from each class's token to the pixels of its patch (TSViT, section 3.4).

    The released code lays the pixels of a patch out in one row, which puts all but 1/n of them into a wrong place;
    ``order="reference"`` repeats it for comparisons and for its checkpoints as they were trained.
    """

    def __init__(
        self, spec: TokenSpec, num_classes: int | None = None, *, order: Literal["correct", "reference"] = "correct"
    ) -> None:
        """Build it for a backbone.

        Args:
            spec: of the backbone.
            num_classes: where it is not the number of class tokens, a Linear from their logits to so many classes
                follows (the ``mlp_change`` of arXiv 2310.01825, section 2.2); it always trains.
            order: how patches are assembled.

        Raises:
            ValueError: the backbone has no class tokens.
        """
        super().__init__()
        dim = _width(spec)
        self.spec = spec
        self.order = order
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, spec.patch**2)
        self.num_classes = spec.groups if num_classes is None else num_classes
        self.remap = nn.Linear(spec.groups, self.num_classes) if self.num_classes != spec.groups else None

    def forward(self, tokens: tuple[Tokens, ...], size: tuple[int, int]) -> Float[Tensor, "b k h w"]:
        """Logits of each class at each pixel."""
        (last,) = tokens
        height, width = last.grid
        x = rearrange(last.patches(), "b n (k d) -> b n k d", k=self.spec.groups)
        x = self.linear(self.norm(x))
        if self.order == "reference":
            x = rearrange(x, "b n k s -> b k (n s)").unflatten(2, (height * self.spec.patch, width * self.spec.patch))
        else:
            x = rearrange(x, "b (h w) k (p q) -> b k (h p) (w q)", h=height, p=self.spec.patch)
        x = x[..., : size[0], : size[1]]
        return (
            x if self.remap is None else rearrange(self.remap(rearrange(x, "b k h w -> b h w k")), "b h w k -> b k h w")
        )


class ClassTokensPooled(Head):
    """Norm and one Linear from each class's space token to one logit, for whole images (TSViT, section 3.4)."""

    def __init__(self, spec: TokenSpec) -> None:
        """Build it for a backbone that has a space token.

        Raises:
            ValueError: the backbone has no class tokens.
        """
        super().__init__()
        self.spec = spec
        self.num_classes = spec.groups
        self.norm = nn.LayerNorm(_width(spec))
        self.linear = nn.Linear(_width(spec), 1)

    def forward(self, tokens: tuple[Tokens, ...], size: tuple[int, int]) -> Float[Tensor, "b k"]:
        """Logits of each class.

        Raises:
            ValueError: the tokens have no space token before them.
        """
        (last,) = tokens
        if last.prefix < 1:
            raise ValueError("classifying whole images reads the space token; build TSViT with space_token=True")
        x = rearrange(last.data[:, 0], "b (k d) -> b k d", k=self.spec.groups)
        return self.linear(self.norm(x)).squeeze(-1)

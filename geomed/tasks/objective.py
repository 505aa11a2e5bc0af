"""What a network learns without labels: the contract of all objectives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence  # noqa: TC003  (annotations are evaluated by the shape checker in the tests)
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jaxtyping import Float  # noqa: TC002  (likewise)
from torch import Tensor, nn

from geomed.pixels import Pixels  # noqa: TC001  (likewise)

if TYPE_CHECKING:
    import torch

    from geomed.backbones.vit import ViT
    from geomed.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class Views:
    """The crops of a batch of images."""

    wide: tuple[Pixels, ...]
    """Global crops, each of all images: values [B, C, S, S]."""

    small: tuple[Pixels, ...] = ()
    """Local crops, likewise, smaller."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one batch gives."""

    loss: Tensor
    """What is minimised, a scalar."""

    features: Float[Tensor, "n d"]
    """One vector for each image, without a gradient: where they all become alike, the network has collapsed."""

    figures: Mapping[str, Tensor] = field(default_factory=dict)
    """What is logged beside the loss, by name."""

    entropy: Tensor | None = None
    """Of a teacher that assigns images to prototypes: the entropy of its mean assignment over the logarithm of their
    number, 0 where all images get the same one. None: there is no teacher."""


@dataclass(frozen=True, kw_only=True)
class LearningGroup:
    """Parameters that learn at a rate of their own."""

    name: str
    """What the rate is logged as."""

    parameters: Sequence[nn.Parameter]
    """What trains."""

    rate: float = 1.0
    """Its learning rate over that of the backbone."""

    frozen_until: float = 0.0
    """Share of all steps before which these stand still."""


class Objective(nn.Module, ABC):
    """A self-supervised objective: a config builds it, and `bind` gives it heads that fit a backbone."""

    shardable: bool = True
    """Whether FSDP may share the backbone's tensors out among processes."""

    @abstractmethod
    def bind(self, backbone: ViT) -> None:
        """Make what the objective needs beside a backbone whose adapters are attached; called once.

        Raises:
            ValueError: the objective is not defined on such a backbone.
        """

    @abstractmethod
    def forward(self, backbone: ViT, views: Views, *, generator: torch.Generator, done: float) -> Outcome:
        """The loss of one batch.

        Args:
            backbone: the one that was bound.
            views: crops of images.
            generator: on the CPU; every random choice comes from it.
            done: the share of all optimizer steps that is over, from 0 to 1.

        Raises:
            ValueError: the crops are not what the objective needs.
        """

    @abstractmethod
    def groups(self) -> tuple[LearningGroup, ...]:
        """What trains beside the backbone."""

    def after_step(self, backbone: ViT, done: float) -> None:
        """Follow the backbone after a step of the optimizer."""

    def tokens(self, backbone: ViT, pixels: Pixels) -> Tokens:
        """The tokens of the network that is the result: the backbone's, or its teacher's."""
        return backbone(pixels)[0]

    def result(self, backbone: ViT) -> dict[str, Tensor]:
        """The trained tensors that are the result where they are not the backbone's own, by their names in it."""
        return {}

    def kept(self) -> dict[str, Tensor]:
        """What of it a later run may go on from, by name."""
        return {name: value for name, value in self.state_dict().items() if "teacher" not in name}

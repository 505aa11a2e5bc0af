"""Any convolutional network of timm as a grid of tokens: the small network that a large one has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import timm
import torch
from einops import rearrange
from torch import nn

from geomed.backbones.backbone import Backbone, block_numbers
from geomed.backbones.inputs import Inputs  # noqa: TC001  (jsonargparse reads the annotations)
from geomed.backbones.weights import load_all, read_weights
from geomed.tokens import Tokens, TokenSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geomed.pixels import Pixels


class Cnn(Backbone):
    """A convolutional network, whose last map of features is read as a row-major grid of tokens without a prefix.

    It is one block: ``depths`` knows its end only. Adapters that need blocks of attention find none in it; those that
    stand beside plain Linears find what Linears there are.
    """

    def __init__(
        self,
        name: str = "resnet18",
        *,
        inputs: Inputs,
        pretrained: bool = False,
        checkpoint: str | None = None,
        drop_path: float = 0.0,
    ) -> None:
        """Build it, with random weights unless told otherwise.

        Args:
            name: timm's name of a network that gives maps of features, such as ``resnet18`` or ``resnet10t``.
            inputs: bands and normalisation; timm fits the first convolution to their number.
            pretrained: fetch timm's weights.
            checkpoint: a file of weights in timm's key layout, instead of fetching.
            drop_path: stochastic depth, where the network knows it.

        Raises:
            ValueError: timm has no such model, or it gives no map of features.
        """
        super().__init__()
        if not timm.is_model(name):
            near = ", ".join(timm.list_models(f"*{name.partition('.')[0]}*")[:5]) or "none alike"
            raise ValueError(f"timm has no model {name!r} (alike: {near}); see timm.list_models('resnet*')")
        options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
        try:
            model = timm.create_model(
                name, pretrained=pretrained, num_classes=0, global_pool="", in_chans=len(inputs.bands), **options
            )
            patch = int(model.feature_info[-1]["reduction"]) if "feature_info" in vars(model) else 0
            maps = _maps(model, len(inputs.bands), patch)
        except (TypeError, AssertionError) as error:
            raise ValueError(f"{name} gives no map of features ({error}); take a convolutional network") from error
        if not patch or maps.ndim != 4 or maps.shape[-1] != 2:
            raise ValueError(
                f"{name} gives features of shape {tuple(maps.shape)}, no map [B, C, H, W]; take a convolutional "
                "network, such as resnet18, or ViT for a transformer"
            )
        if checkpoint is not None:
            _load(model, checkpoint, str(model.pretrained_cfg.get("classifier", "")))
        self.name = name
        self.inputs = inputs
        self.network = model
        self.spec = TokenSpec(dim=maps.shape[1], patch=patch)

    def forward(self, pixels: Pixels, *, depths: Sequence[int] = (-1,)) -> tuple[Tokens, ...]:
        """Images → one token for each place of the last map of features.

        Args:
            pixels: single images of any size. Pixels that are not valid hold each band's mean.
            depths: -1 or 0, its end.

        Raises:
            ValueError: the pixels are a series, their bands are not this backbone's, or another depth is asked for.
        """
        if pixels.values.ndim != 4:
            raise ValueError(
                f"a Cnn reads single images [B, C, H, W], not {tuple(pixels.values.shape)}; choose one date"
            )
        block_numbers(depths, 1)
        values = self.inputs(pixels.values)
        if pixels.valid is not None:
            values = torch.where(pixels.valid[:, None], values, 0)  # also keeps NaN out
        maps = self.network(values)
        tokens = Tokens(rearrange(maps, "b c h w -> b (h w) c"), tuple(maps.shape[-2:]))
        return tuple(tokens for _ in depths)


def _load(model: nn.Module, checkpoint: str, classifier: str) -> None:
    """Weights in timm's layout; a classifier in the file is left out.

    Raises:
        ValueError: they are of another network.
    """
    state = {
        name: value
        for name, value in read_weights(checkpoint).items()
        if not classifier or not name.startswith(f"{classifier}.")
    }
    load_all(model, state, where="the checkpoint of the network")


@torch.no_grad()
def _maps(model: nn.Module, bands: int, patch: int) -> torch.Tensor:
    """What the network gives for two by two patches; asking changes nothing in it."""
    was = model.training
    features: torch.Tensor = model.eval()(torch.zeros(1, bands, 2 * max(patch, 16), 2 * max(patch, 16)))
    model.train(was)
    return features

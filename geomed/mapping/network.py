"""A backbone and a head as one module of plain tensors, and how it is run."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from geomed.pixels import Pixels

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from geomed.backbones.backbone import Backbone
    from geomed.heads.head import Head

PRECISIONS = {"32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What matrix products are computed in."""


class Network(nn.Module):
    """Values, validity and, of series, days → logits."""

    def __init__(self, backbone: Backbone, head: Head) -> None:
        """Both as they are."""
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, values: Tensor, valid: Tensor, days: Tensor | None = None) -> Tensor:
        """Logits [B, K, H, W] of values [B, (T), C, H, W], valid [B, (T), H, W] and days [B, T]."""
        pixels = Pixels(values=values, days=days, valid=valid)
        return self.head(self.backbone(pixels, depths=self.head.depths), pixels.size)


def reads_series(network: Network) -> bool:
    """Whether the backbone reads series; it is asked with a few empty pixels, and refuses what it does not read.

    Raises:
        ValueError: it reads neither images nor series, or the head does not answer for each pixel.
    """
    side, bands = 2 * network.backbone.spec.patch, len(network.backbone.inputs.bands)
    values, valid = torch.zeros(1, bands, side, side), torch.ones(1, side, side, dtype=torch.bool)
    with torch.no_grad():
        try:
            logits, series = network(values, valid), False
        except ValueError:
            logits = network(values[None], valid[None], torch.full((1, 1), 18000))
            series = True
    if logits.shape[2:] != (side, side):
        raise ValueError(
            f"a map needs logits for each pixel, the head {type(network.head).__name__} gives {tuple(logits.shape)} "
            f"for {side} x {side} pixels; train a dense head, such as Linear or ClassTokens"
        )
    return series


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context that computes in a precision.

    Raises:
        ValueError: there is no such precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"the precision is one of {', '.join(PRECISIONS)}, not {precision!r}")
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def runner(
    network: Callable[..., Tensor], *, device: torch.device, precision: str
) -> Callable[[dict[str, Tensor]], Tensor]:
    """A callable on batches; logits come out in float32, without gradients."""
    autocast(device, precision)  # refuses a precision that is none, before any batch

    def run(batch: dict[str, Tensor]) -> Tensor:
        given = [batch["values"], batch["valid"], *([batch["days"]] if "days" in batch else [])]
        with torch.no_grad(), autocast(device, precision):
            return network(*given).float()

    return run

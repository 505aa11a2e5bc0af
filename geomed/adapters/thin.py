"""Products with thin matrices: from the width of a token to a few channels and back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor


def narrowed(
    x: Float[Tensor, "*b i"], down: Float[Tensor, "r i"], bias: Float[Tensor, " r"] | None = None
) -> Float[Tensor, "n r"]:
    """The few channels x Aᵀ + bias of all n tokens.

    On a CPU each channel has its tokens side by side: products with so thin a matrix are up to four times faster that
    way round, here, in `widened` and in the backward pass of both.
    """
    flat = x.reshape(-1, x.shape[-1])
    if x.device.type != "cpu":
        return F.linear(flat, down, bias)
    if bias is None:
        return (down @ flat.t()).t()
    return torch.addmm(bias[:, None], down, flat.t()).t()


def widened(y: Float[Tensor, "*b o"], narrow: Float[Tensor, "n r"], up: Float[Tensor, "o r"]) -> Float[Tensor, "*b o"]:
    """The sum y + narrow Bᵀ, added while it is computed."""
    return torch.addmm(y.reshape(-1, y.shape[-1]), narrow, up.t().contiguous()).view(y.shape)

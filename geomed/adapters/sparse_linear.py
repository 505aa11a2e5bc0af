"""A Linear of which single weights train."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx

_AT_ONCE = 2**18
"""Numbers gathered together in the backward pass on a CPU, so that they stay in its cache; a GPU takes 64 times as
many."""


def sparse_linear(
    x: Float[Tensor, "*b i"],
    weight: Float[Tensor, "o i"],
    bias: Float[Tensor, " o"] | None,
    changes: Float[Tensor, " n"],
    places: Int[Tensor, " n"],
) -> Float[Tensor, "*b o"]:
    """The product x (W + S)ᵀ + b, where S holds ``changes`` at ``places`` of the flattened weight, all different.

    W is frozen. It takes one matrix product, as the plain Linear does; the backward pass forms no gradient of the shape
    of W, and keeps x alone, not the sum W + S. What x was computed from may be kept in its stead, see
    `geomed.backbones.block.recomputing`.
    """
    return _SparseLinear.apply(x, weight, bias, changes, places)


def changed(tensor: Tensor, changes: Float[Tensor, " n"], places: Int[Tensor, " n"] | None) -> Tensor:
    """A tensor with ``changes`` added at ``places`` of it flattened; without places, everywhere."""
    if places is None:
        return tensor + changes.view_as(tensor).to(tensor.dtype)
    return tensor.flatten().index_add(0, places, changes.to(tensor.dtype)).view_as(tensor)


class _SparseLinear(torch.autograd.Function):
    """The gradient of each change is Σ over tokens of g[row] x[column]."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None, changes: Tensor, places: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, changes, places)
        return F.linear(x, changed(weight, changes, places), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401  (torch's stubs do not know what was saved)
        x, weight, changes, places = ctx.saved_tensors
        back = through = through_bias = None
        flat = g.flatten(0, -2)
        if ctx.needs_input_grad[0]:
            back = (g @ changed(weight, changes, places).to(g.dtype)).to(x.dtype)
        if ctx.needs_input_grad[2]:
            through_bias = flat.sum(0)
        if ctx.needs_input_grad[3]:
            through = _gradient(flat, x.flatten(0, -2), places, changes)
        return back, None, through_bias, through, None


def _gradient(g: Tensor, x: Tensor, places: Tensor, changes: Tensor) -> Tensor:
    wide = torch.promote_types(changes.dtype, torch.float32)
    rows, columns = places // x.shape[1], places % x.shape[1]
    total = torch.zeros_like(changes, dtype=wide)
    for some_g, some_x in zip(*(_parts(each, len(places)) for each in (g, x)), strict=True):
        total += (some_g.index_select(1, rows).to(wide) * some_x.index_select(1, columns).to(wide)).sum(0)
    return total.to(changes.dtype)


def _parts(tokens: Tensor, numbers: int) -> tuple[Tensor, ...]:
    """Tokens in parts of which so many numbers each can be gathered at once; a compiler needs no parts."""
    if torch.compiler.is_compiling():
        return (tokens,)
    room = _AT_ONCE if tokens.device.type == "cpu" else 64 * _AT_ONCE
    return torch.split(tokens, max(1, room // max(1, numbers)))

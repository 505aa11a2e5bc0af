"""A Linear whose weight is shifted by a matrix of kernel values, of which only the largest survive.

Nothing but its input is kept for the backward pass: the matrix is made again from the points that it is a function of.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor

_COEFFICIENT = 0.1
_SAMPLE = 2**15
_CACHED = 2**17

_Part = tuple[slice, slice, slice]  # of [s, o, i]


class KernelShift(torch.autograd.Function):
    """y = (W + U) x + bias, U the kernel values that survive, of s matrices one below the other; without W: U x."""

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917  (a Function has no other place for what it reads)
        ctx: Any,  # noqa: ANN401  (torch types it so)
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        outs: Tensor,
        ins: Tensor,
        mix: Tensor | None,
        kept: Tensor,
        sparsifier: str,
    ) -> Tensor:
        """U goes into the weight first, so that there is one product with x and not two."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        with torch.autocast(device, enabled=False):
            merged, level = _merged(weight, outs, ins, mix, kept, sparsifier)
            y = F.linear(x.to(dtype), merged.to(dtype), None if bias is None else bias.to(dtype))
        ctx.save_for_backward(x, weight, outs, ins, mix, level)
        ctx.sparsifier = sparsifier
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """The same again, and the way back through it; the level counts as a constant."""
        x, weight, outs, ins, mix, level = ctx.saved_tensors
        for_x = for_bias = None
        with torch.autocast(x.device.type, enabled=False):
            for_weight = grad.flatten(0, -2).mT @ x.flatten(0, -2).to(grad.dtype)
            merged, *for_points = _back(for_weight, weight, outs, ins, mix, level, ctx.sparsifier)
            if ctx.needs_input_grad[0]:
                for_x = (grad @ merged.to(grad.dtype)).to(x.dtype)
            if ctx.needs_input_grad[2]:
                for_bias = grad.flatten(0, -2).sum(0)
        return for_x, for_weight if ctx.needs_input_grad[1] else None, for_bias, *for_points, None, None


@torch.no_grad()
def kernel_update(
    outs: Float[Tensor, "s 2 o h"],
    ins: Float[Tensor, "s 2 i h"],
    mix: Float[Tensor, "s 3"] | None,
    kept: Float[Tensor, " s"],
    sparsifier: str,
) -> Float[Tensor, "so i"]:
    """U by itself, to be folded into a weight."""
    return _merged(None, outs, ins, mix, kept, sparsifier)[0]


def _merged(
    weight: Tensor | None, outs: Tensor, ins: Tensor, mix: Tensor | None, kept: Tensor, sparsifier: str
) -> tuple[Tensor, Tensor]:
    """(W + U, what the survivors exceed)."""
    pairs = _Pairs(outs, ins)
    value = pairs.left.new_empty(len(outs), outs.shape[2], ins.shape[2], dtype=pairs.dtype)
    parts = pairs.parts(whole_columns=mix is not None)
    for part in parts:
        near, far = pairs.distances(part).unbind(1)
        torch.sub(near, far, out=value[part])
        if mix is not None:
            value[part] = _mixed(value[part], mix)[0]
    level = kept if sparsifier == "none" else _level(value, kept)
    for part in parts:
        _plus(weight, value[part], _factor(value[part], level, sparsifier), part, out=value[part])
    return value.flatten(0, 1), level


def _back(
    grad: Tensor, weight: Tensor | None, outs: Tensor, ins: Tensor, mix: Tensor | None, level: Tensor, sparsifier: str
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(W + U, the gradients for both sets of points and for the mixture), from that for the weight."""
    pairs = _Pairs(outs, ins)
    grad = grad.unflatten(0, (len(outs), -1))
    merged = torch.empty_like(grad, dtype=pairs.dtype)
    to_outs, to_ins = torch.zeros_like(pairs.outs), torch.zeros_like(pairs.ins)
    for_mix = None if mix is None else torch.zeros_like(mix)
    for part in pairs.parts(whole_columns=mix is not None):
        _, rows, columns = part
        distances = pairs.distances(part)
        value = plain = distances[:, 0] - distances[:, 1]
        soft = None
        if mix is not None:
            value, soft = _mixed(plain, mix)
        factor = _factor(value, level, sparsifier)
        _plus(weight, value, factor, part, out=merged[part])
        pull = grad[part].to(pairs.dtype)
        if factor is not None:
            # of v (|v| - t), or of v |v| with a constant |v|
            pull = pull * (torch.addcmul(2 * factor, factor.sign(), level) if sparsifier == "paper" else factor)
        if mix is not None and for_mix is not None and soft is not None:
            pull, more = _mixed_back(pull, plain, soft, mix)
            for_mix += more
        pull = torch.div(pull[:, None], distances, out=distances)
        to_outs[..., rows] += pairs.ins[..., columns] @ pull.mT
        to_ins[..., columns] += pairs.outs[..., rows] @ pull
    return merged.flatten(0, 1), pairs.gradient(outs, to_outs), pairs.gradient(ins, to_ins), for_mix


class _Pairs:
    """Each point of an output with each of an input: 0.1 |o - i|, by one product.

    A little is added to the squares, so that rounding cannot make them negative nor the slope of the root endless.
    """

    def __init__(self, outs: Tensor, ins: Tensor) -> None:
        """``outs`` [s, 2, o, h] and ``ins`` [s, 2, i, h]."""
        self.dtype = torch.promote_types(outs.dtype, torch.float32)
        # GPUs may be told to round factors to ten bits, and differences of near numbers do not survive that
        exact = torch.float64 if outs.is_cuda else self.dtype
        o, i = outs.to(exact), ins.to(exact)
        self.more = 1 + 2 * (outs.shape[-1] + 2) * torch.finfo(self.dtype).eps  # covers the rounding of such a sum
        o2, i2 = (points.square().sum(-1, keepdim=True) * self.more for points in (o, i))
        self.left = torch.cat((-2 * o, o2, torch.ones_like(o2)), -1) * _COEFFICIENT**2
        self.right = torch.cat((i, torch.ones_like(i2), i2), -1).mT
        # points as columns, above a row of ones
        self.outs, self.ins = (F.pad(points.to(self.dtype), (0, 1), value=1).mT for points in (outs, ins))

    def parts(self, *, whole_columns: bool) -> list[_Part]:
        """What is gone through together: on a CPU as many rows or columns as its cache holds, elsewhere all."""
        split, length = (self.ins, self.outs) if whole_columns else (self.outs, self.ins)
        count = step = split.shape[-1]
        if split.device.type == "cpu" and not torch.compiler.is_compiling():
            step = max(1, _CACHED // (len(split) * length.shape[-1]))
        every = slice(None)
        slices = [slice(first, first + step) for first in range(0, count, step)]
        return [(every, every, one) if whole_columns else (every, one, every) for one in slices]

    def distances(self, part: _Part) -> Tensor:
        """[s, 2, rows, columns]."""
        _, rows, columns = part
        return (self.left[:, :, rows] @ self.right[..., columns]).to(self.dtype).sqrt_()

    def gradient(self, points: Tensor, sums: Tensor) -> Tensor:
        """From sums over all others, of (other, 1) times the pair's gradient over its distance, to the points'."""
        sign = sums.new_tensor((_COEFFICIENT**2, -(_COEFFICIENT**2)))[:, None, None]
        sums = sums.mT * sign
        return (self.more * sums[..., -1:] * points - sums[..., :-1]).to(points.dtype)


def _level(value: Tensor, kept: Tensor) -> Tensor:
    """For each matrix what the share ``kept`` of its magnitudes exceeds: [s, 1, 1], interpolated.

    It is read off every n-th number where a matrix has more than 2^15; the share is then met within some thousandths.
    """
    step = max(1, value[0].numel() // _SAMPLE)
    while math.gcd(step, value.shape[-1]) > 1:  # so that no column is passed over
        step += 1
    sample = value.flatten(1)[:, ::step].abs()
    last = sample.shape[1] - 1
    place = (1 - kept.to(sample.dtype)) * last
    if sample.device.type == "cpu" and not torch.compiler.is_compiling():  # much faster than sorting
        below = [min(int(each), last) for each in place.tolist()]
        ends = [
            [row.kthvalue(1 + min(k + more, last)).values for more in (0, 1)]
            for row, k in zip(sample, below, strict=True)
        ]
        low, high = (torch.stack(end) for end in zip(*ends, strict=True))
        share = place - place.new_tensor(below)
    else:
        ordered = sample.sort(1).values
        first = place.floor().long().clamp(0, last)
        low, high = (ordered.gather(1, end[:, None])[:, 0] for end in (first, (first + 1).clamp(max=last)))
        share = place - first
    return torch.lerp(low, high, share)[:, None, None]


def _factor(value: Tensor, level: Tensor, sparsifier: str) -> Tensor | None:
    """What each value v is multiplied by: |v| - t or, as released, |v|, where |v| exceeds t, else 0."""
    if sparsifier == "none":
        return None
    excess = value.abs().sub_(level).relu_()
    return excess if sparsifier == "paper" else excess.sign().mul_(level).add_(excess)


def _plus(weight: Tensor | None, value: Tensor, factor: Tensor | None, part: _Part, *, out: Tensor) -> None:
    """This part of W + value x factor."""
    if factor is None:
        out.copy_(value)
    else:
        torch.mul(value, factor, out=out)
    if weight is not None:
        out += weight.unflatten(0, (len(value), -1))[part]


def _mixed(plain: Tensor, mix: Tensor) -> tuple[Tensor, Tensor]:
    """(k + alpha softmax(k / gamma) + beta, the softmax over the outputs)."""
    alpha, gamma, beta = mix.to(plain.dtype)[..., None, None].unbind(1)
    soft = torch.softmax(plain / gamma, 1)
    return torch.addcmul(plain, soft, alpha).add_(beta), soft


def _mixed_back(grad: Tensor, plain: Tensor, soft: Tensor, mix: Tensor) -> tuple[Tensor, Tensor]:
    """(the gradient for the kernel's own values, that for the mixture)."""
    alpha, gamma, _ = mix.to(plain.dtype)[..., None, None].unbind(1)
    weighed = grad * soft
    total = weighed.sum(1, keepdim=True)
    pull = torch.addcmul(weighed, soft, total, value=-1).mul_(alpha / gamma)
    for_gamma = -(pull * plain).sum((1, 2), keepdim=True) / gamma
    for_mix = torch.stack((total.sum((1, 2)), for_gamma[:, 0, 0], grad.sum((1, 2))), 1)
    return pull.add_(grad), for_mix.to(mix.dtype)

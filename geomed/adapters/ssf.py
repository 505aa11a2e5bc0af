"""Scaling and shifting what each operation gives."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from geomed.adapters.adapter import Adapted, Adapter
from geomed.adapters.layer_norm_tuning import is_one_kernel

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx

    from geomed.adapters.place import Place


@dataclass(frozen=True, kw_only=True)
class SSF(Adapter):
    """Multiplies each channel that an operation gives by a gain and adds a shift.

    Lian et al., "Scaling & Shifting Your Features", NeurIPS 2022, draw gains around 1 and shifts around 0; here they
    start there exactly, so that nothing changes at first. What is trained is the gain less one: small changes of it
    survive in any precision, and weight decay pulls the network back to where it was.
    """

    paper: ClassVar[str] = "Lian et al., NeurIPS 2022"

    targets: tuple[str, ...] = ("patch_embed.proj", "patch", "norm", "norm1", "norm2", "qkv", "attn.proj", "fc1", "fc2")
    """Which Linear, Conv2d or LayerNorm modules: shell-style patterns of paths or of their ends."""

    def wrap(self, place: Place) -> Adapted | None:
        """Wrap an operation."""
        plain = place.plain
        if not isinstance(plain, (nn.Linear, nn.Conv2d, nn.LayerNorm)) or not place.matches(self.targets):
            return None
        if plain.weight is None:
            return None
        if isinstance(plain, nn.LayerNorm):
            return ScaledNorm(place.module, plain)
        return (ScaledPlane if isinstance(plain, nn.Conv2d) else Scaled)(place.module, plain.weight)


class Scaled(Adapted):
    """An operation with a gain and a shift for each channel of its output, the last axis."""

    mergeable = True

    def __init__(self, base: nn.Module, weight: Tensor) -> None:
        """``weight`` has one row for each channel."""
        super().__init__(base)
        self.gain = nn.Parameter(weight.new_zeros(weight.shape[:1]))
        self.shift = nn.Parameter(weight.new_zeros(weight.shape[:1]))

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """(1 + gain) base(x) + shift."""
        return scaled(self.base(x), self.gain, self.shift)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The rows of W times 1 + gain, b times 1 + gain, plus shift."""
        new = copy.deepcopy(self.base)
        weight = new.get_parameter("weight")
        bias = new._parameters.get("bias")  # noqa: SLF001  (it may be registered as None)
        weight += weight * self.gain.view(-1, *[1] * (weight.ndim - 1))
        new.bias = nn.Parameter(self.shift.clone() if bias is None else bias + bias * self.gain + self.shift)
        return new


class ScaledPlane(Scaled):
    """A Conv2d with a gain and a shift for each of its output channels."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o hh ww"]:
        """(1 + gain) base(x) + shift."""
        y = self.base(x)
        gain, shift = (each.to(y.dtype)[:, None, None] for each in (self.gain, self.shift))
        return y + torch.addcmul(shift, y, gain)


class ScaledNorm(Scaled):
    """A LayerNorm with another gain and shift after its own."""

    def __init__(self, base: nn.Module, plain: nn.LayerNorm) -> None:
        """``plain`` is the norm inside ``base``."""
        super().__init__(base, plain.weight)
        self.shape = list(plain.normalized_shape)
        self.eps = plain.eps

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """(1 + gain) base(x) + shift, in one kernel where it can be."""
        if not is_one_kernel(self.base):
            return scaled(self.base(x), self.gain, self.shift)
        weight, bias = self.base.weight, self.base.bias
        shift = self.shift if bias is None else torch.addcmul(bias + self.shift, bias, self.gain)
        return F.layer_norm(x, self.shape, torch.addcmul(weight, weight, self.gain), shift, self.eps)


def scaled(y: Float[Tensor, "*b o"], gain: Float[Tensor, " o"], shift: Float[Tensor, " o"]) -> Float[Tensor, "*b o"]:
    """The sum y + gain y + shift, of which the sum alone is kept for the backward pass, not y.

    What follows a Linear mostly keeps its input as well, so that the adapter costs no memory there. The gradient of the
    gain, Σ g y, is read off the sum z: y = (z - shift) / (1 + gain). Where 1 + gain is nearer to zero than the root of
    the precision, that quotient is not exact: it is taken to be no nearer, so the gain's gradient comes out too small.
    """
    if torch.compiler.is_compiling():  # the compiler decides by itself what to keep
        return y + torch.addcmul(shift.to(y.dtype), y, gain.to(y.dtype))
    return _Scaled.apply(y, gain, shift)


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, y: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        z = torch.addcmul(shift.to(y.dtype), y, gain.to(y.dtype)).add_(y)
        ctx.save_for_backward(z, gain, shift)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401  (torch's stubs do not know what was saved)
        z, gain, shift = ctx.saved_tensors
        precise = torch.promote_types(gain.dtype, torch.float32)
        tokens = tuple(range(g.ndim - 1))
        total = g.sum(tokens, dtype=precise)
        factor = 1 + gain.to(precise)
        least = torch.finfo(z.dtype).eps ** 0.5
        factor = torch.where(factor < 0, factor.clamp(max=-least), factor.clamp(min=least))
        by_gain = ((g * z).sum(tokens, dtype=precise) - shift * total) / factor
        through = torch.addcmul(g, g, gain.to(g.dtype)) if ctx.needs_input_grad[0] else None
        return through, by_gain, total

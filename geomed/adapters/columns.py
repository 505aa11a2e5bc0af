"""Some columns of frozen matrices."""

from __future__ import annotations

import copy
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from timm.models import vision_transformer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from geomed.adapters.adapter import Adapted, Adapter, innermost, running
from geomed.backbones.block import Attention

if TYPE_CHECKING:
    from geomed.adapters.place import Place

_READ_BY = {"qkv": "proj", "fc1": "fc2"}


@dataclass(frozen=True, kw_only=True)
class Columns(Adapter):
    """Trains some columns of each matrix, as differences that start from zero (PaCA, Woo et al., ICLR 2025).

    For the gradients only the inputs of these columns are kept, where low-rank updates need all inputs; the forward
    pass is one product with the changed matrix. With ``heads``, and with ``coupled``, the columns are those of whole
    heads and channels, as in S2FT (Yang et al., NeurIPS 2024); an index makes its permutations needless.
    """

    paper: ClassVar[str] = "Woo et al., ICLR 2025; Yang et al., NeurIPS 2024"

    count: int = 8
    """Columns of each Linear."""

    choose: Literal["random", "norm"] = "random"
    """``random``: drawn anew for each Linear. ``norm``: those of the largest norm."""

    seed: int = 0
    """Of what is drawn: the same seed gives the same columns at the same path."""

    heads: int = 0
    """Whole heads in each attention's projection, in place of ``count`` columns; 0 chooses its columns one by one."""

    coupled: bool = False
    """Train also the rows that make what these columns read: V's in a fused qkv for proj, fc1's for fc2."""

    targets: tuple[str, ...] = ("attn.qkv", "attn.proj", "fc1", "fc2")
    """Which Linears: shell-style patterns of paths or of their ends. With ``coupled``, the later ones: proj and fc2."""

    def __post_init__(self) -> None:
        """Refuse choices that mean nothing."""
        if self.count < 1 or self.heads < 0 or not self.targets:
            raise ValueError(
                "count must be positive, heads not negative and targets named, "
                f"not {self.count}, {self.heads} and {self.targets}"
            )
        if self.choose not in {"random", "norm"}:
            raise ValueError(f"choose must be random or norm, not {self.choose!r}")

    def wrap(self, place: Place) -> Adapted | None:
        """Wrap a Linear.

        Raises:
            ValueError: more columns or heads than there are, or no rows that belong to the columns.
        """
        plain = place.plain
        if not isinstance(plain, nn.Linear):
            return None
        parent, _, name = place.path.rpartition(".")
        reader = replace(place, path=f"{parent}.{_READ_BY[name]}") if self.coupled and name in _READ_BY else None
        if reader is None or not reader.matches(self.targets):
            if not place.matches(self.targets):
                return None
            return PartlyTrained(place.module, plain, self._chosen(place.path, plain, _owner(place)), axis=1)
        if place.matches(self.targets):
            raise ValueError(
                f"{place.path}: with coupled, its rows belong to the columns of {reader.path}; leave it out of targets"
            )
        owner = _owner(place)
        read = innermost(owner.get_submodule(_READ_BY[name]))
        if not isinstance(read, nn.Linear) or plain.out_features != read.in_features * (3 if name == "qkv" else 1):
            raise ValueError(
                f"{place.path}: coupled is not defined here, {reader.path} does not read its rows one to one; "
                "leave coupled away"
            )
        rows = self._chosen(reader.path, read, owner) + (plain.out_features - read.in_features)
        return PartlyTrained(place.module, plain, rows, axis=0)

    def _chosen(self, path: str, plain: nn.Linear, owner: nn.Module) -> Int[Tensor, " n"]:
        """The columns of the Linear at this path, a part of ``owner``, in order."""
        unit, count, what = 1, self.count, "count"
        if self.heads and isinstance(owner, (Attention, vision_transformer.Attention)) and path.endswith(".proj"):
            unit, count, what = owner.head_dim, self.heads, "heads"
        units = plain.in_features // unit
        if count > units:
            raise ValueError(f"{path}: {what} must not exceed what there are, {count} > {units}; lower it")
        if self.choose == "random":
            made = torch.Generator("cpu").manual_seed(zlib.crc32(f"{self.seed} {path}".encode()))
            found = torch.randperm(units, generator=made, device="cpu")[:count]
        else:
            norms = torch.linalg.vector_norm(plain.weight.detach(), dim=0).unflatten(0, (units, unit))
            found = norms.square().sum(1).topk(count).indices
        first = found.sort().values * unit
        return (first[:, None] + torch.arange(unit, device=first.device)).flatten()


def _owner(place: Place) -> nn.Module:
    """The module that this one is a part of."""
    module = running(place.root)
    for part in place.path.split(".")[:-1]:
        module = running(module.get_submodule(part))
    return module


class PartlyTrained(Adapted):
    """A Linear of which some rows (axis 0) or columns (axis 1) train."""

    mergeable = True
    index: Tensor

    def __init__(self, base: nn.Module, plain: nn.Linear, index: Int[Tensor, " n"], *, axis: int) -> None:
        """``plain`` is the Linear inside ``base``."""
        super().__init__(base)
        self.axis = axis
        shape = list(plain.weight.shape)
        shape[axis] = len(index)
        self.change = nn.Parameter(plain.weight.new_zeros(shape))
        self.register_buffer("index", index.to(plain.weight.device))

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """The product with the changed matrix."""
        base = self.base
        if type(base) is nn.Linear:
            return _Product.apply(x, base.weight, base.bias, self.change, self.index, self.axis)
        if self.axis == 1:
            return base(x) + F.linear(x.index_select(-1, self.index), self.change)
        y = base(x)
        return y.index_add(-1, self.index, F.linear(x, self.change).to(y.dtype))

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The changed matrix."""
        new = copy.deepcopy(self.base)
        weight = new.get_parameter("weight")
        weight.index_add_(self.axis, self.index, self.change.to(weight.dtype))
        return new


class _Product(torch.autograd.Function):
    """x times the changed matrix, without the gradient of what does not train.

    The changed matrix is made again for the backward pass: a copy costs less than keeping it.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  (torch has no public type for it)
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        change: Tensor,
        index: Tensor,
        axis: int,
    ) -> Tensor:
        y = F.linear(x, weight.index_add(axis, index, change), bias)
        kept = x.index_select(-1, index).to(y.dtype) if axis == 1 else x
        ctx.save_for_backward(kept, weight, change, index)
        ctx.axis = axis
        ctx.dtype = x.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        kept, weight, change, index = ctx.saved_tensors
        to_x = to_change = None
        if ctx.needs_input_grad[0]:
            to_x = (grad @ weight.index_add(ctx.axis, index, change).to(grad.dtype)).to(ctx.dtype)
        if ctx.needs_input_grad[3]:
            kept = kept.flatten(0, -2).to(grad.dtype)
            grad = grad.flatten(0, -2)
            # the narrow factor stands first: the other way round the product takes up to nine times as long
            to_change = (kept.T @ grad).T if ctx.axis == 1 else grad.index_select(-1, index).T @ kept
            to_change = to_change.to(change.dtype)
        return to_x, None, None, to_change, None, None

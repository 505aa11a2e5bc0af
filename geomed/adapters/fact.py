"""Updates of all weights at once, as one tensor in few factors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor, nn

from geomed.adapters.adapter import Adapted, Adapter
from geomed.adapters.lora import with_weight

if TYPE_CHECKING:
    from geomed.adapters.place import Place


@dataclass(frozen=True, kw_only=True)
class FacT(Adapter):
    """W + s V C Uᵀ for each d x d slice of the weights, with one U and one V for all of them (Jie and Deng, AAAI 2023).

    The weights of a transformer of width d are one tensor of d x d slices: one each for q, k, v and the projection,
    four each for fc1 and fc2. V starts at zero. Factors are shared within one `attach`, and by width where a network
    has several; a slice is as wide as the weight's shorter side. The released code also drops a tenth of what the cores
    give out in training; this does not.
    """

    paper: ClassVar[str] = "Jie and Deng, AAAI 2023"

    rank: int = 16
    """Width of U, V and the cores."""

    form: Literal["tt", "tk"] = "tt"
    """Each slice's core C is ``tt`` (FacT-TT): a matrix of its own; ``tk`` (FacT-TK): a mixture, with weights of its
    own, of ``rank`` matrices that all slices share."""

    scale: float = 1.0
    """s; the paper chooses it by task, from 0.01 to 100."""

    targets: tuple[str, ...] = ("attn.qkv", "attn.proj", "fc1", "fc2")
    """Which Linear modules: shell-style patterns of paths or of their ends."""

    def __post_init__(self) -> None:
        """Refuse ranks and forms that mean nothing."""
        if self.rank < 1 or not self.targets:
            raise ValueError(f"rank must be positive and targets named, not {self.rank} and {self.targets}")
        if self.form not in {"tt", "tk"}:
            raise ValueError(f"form must be tt or tk, not {self.form!r}")

    def wrap(self, place: Place) -> Adapted | None:
        """Wrap a Linear.

        Raises:
            ValueError: the longer side of its weight is no multiple of the shorter, or the rank is above both.
        """
        plain = place.plain
        if not isinstance(plain, nn.Linear) or not place.matches(self.targets):
            return None
        width, length = sorted((plain.in_features, plain.out_features))
        if length % width:
            raise ValueError(
                f"{place.path}: FacT cuts weights into squares, and {plain.out_features} x {plain.in_features} "
                "leaves a rest; leave it out of targets"
            )
        if self.rank > width:
            raise ValueError(f"{place.path}: rank must not exceed the width, {self.rank} > {width}; lower it")
        factors = place.shared.setdefault(str(width), Factors(self, width, plain.weight))
        block = place.block()
        return FactoredLinear(place.module, self, plain, factors, all_slices=12 * (block.count if block else 1))


def _drawn(*shape: int, bound: float, like: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, device=like.device, dtype=like.dtype).uniform_(-bound, bound))


class Factors(nn.Module):
    """What all slices of one width share."""

    def __init__(self, adapter: FacT, width: int, like: Tensor) -> None:
        """U and V, and the matrices that cores are mixed of; drawn as in the released code."""
        super().__init__()
        rank = adapter.rank
        self.u = _drawn(rank, width, bound=width**-0.5, like=like)
        self.v = nn.Parameter(torch.zeros(width, rank, device=like.device, dtype=like.dtype))
        mixed = adapter.form == "tk"
        self.cores = _drawn(rank, rank, rank, bound=math.sqrt(3) / rank, like=like) if mixed else None


class FactoredLinear(Adapted):
    """A Linear whose slices have small cores between factors that all Linears share.

    The cores are folded into U or V, which costs nothing beside the tokens; what remains is a low-rank update.
    """

    mergeable = True

    def __init__(
        self, base: nn.Module, adapter: FacT, plain: nn.Linear, factors: nn.Module, *, all_slices: int
    ) -> None:
        """``plain`` is the Linear inside ``base``; ``all_slices`` of the network tell how large mixtures start."""
        super().__init__(base)
        rank, slices = adapter.rank, max(plain.weight.shape) // min(plain.weight.shape)
        self.scale = adapter.scale
        self.wide = plain.in_features > plain.out_features
        self.factors = factors
        if adapter.form == "tk":
            self.cores = _drawn(slices, rank, bound=math.sqrt(6 / (all_slices + rank)), like=plain.weight)
        else:
            fan_in = slices * rank if self.wide else rank
            self.cores = _drawn(slices, rank, rank, bound=fan_in**-0.5, like=plain.weight)

    def _pair(self) -> tuple[Float[Tensor, "r i"], Float[Tensor, "o r"]]:
        """(down, up) with up @ down the update of the whole weight."""
        u, v = self.factors.get_parameter("u"), self.factors.get_parameter("v")
        cores = self.cores * self.scale
        if cores.ndim == 2:
            cores = torch.tensordot(cores, self.factors.get_parameter("cores"), 1)
        if self.wide:
            return (cores @ u).transpose(0, 1).flatten(1), v
        return u, (v @ cores).flatten(0, 1)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """base(x) + s V C Uᵀ x, slice by slice."""
        down, up = self._pair()
        return self.base(x) + F.linear(F.linear(x, down), up)

    def merged(self) -> nn.Module:
        """W + s V C Uᵀ."""
        down, up = self._pair()
        return with_weight(self.base, up @ down)

"""Updates of full rank and few parameters: kernel values between learned points, of which only the largest survive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Float  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor, nn

from geomed.adapters.adapter import Adapted, Adapter
from geomed.adapters.kernels import KernelShift, kernel_update
from geomed.adapters.lora import with_weight

if TYPE_CHECKING:
    from geomed.adapters.place import Place

LINEARS = ("attn.qkv", "attn.proj", "fc1", "fc2")


@dataclass(frozen=True, kw_only=True)
class SNELL(Adapter):
    """W + U, U a matrix of kernel values that compete (Shen et al., NeurIPS 2024, arXiv 2411.01800).

    Each row and each column of a weight has two learned points of rank / 2 coordinates; a kernel value is
    0.1 (|o - i| - |o' - i'|), so that U has full rank at the parameters of LoRA. Of each matrix only the magnitudes
    above its own quantile survive. A fused qkv holds three matrices.

    U is not zero at the start: with the published sparsifiers zero would be a place that no gradient leads out of. It
    is small, its entries about the squares of numbers near 0.002. As in the released code the coefficients 0.1 are
    fixed. Unlike there, U has no dropout: it is added to the weight before the product with the input. It is made anew
    in each forward and each backward pass, so merge it before inference.
    """

    paper: ClassVar[str] = "Shen et al., NeurIPS 2024"

    rank: int = 8
    """Coordinates of the two points together; even. 8, 16 or 32 in the paper."""

    sparsity: float = 0.9
    """Share of each matrix that is zero; above 2^15 numbers it is met within some thousandths. At 0 nothing competes
    (KLoRA), and U is larger by two or three orders of magnitude."""

    sparsifier: Literal["released", "paper"] = "released"
    """What a value v that survives the level t becomes. ``released``: v |v|, |v| taken as a constant in the backward
    pass, as in the code of the published results. ``paper``: v (|v| - t), equation 5."""

    targets: tuple[str, ...] = LINEARS
    """Which Linear modules: shell-style patterns of paths or of their ends."""

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        _check_rank(self.rank, self.targets)
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must lie in [0, 1), not {self.sparsity}")

    @property
    def identity(self) -> bool:
        """It is not: see above."""
        return False

    def wrap(self, place: Place) -> Adapted | None:
        """Wrap a Linear."""
        plain = place.plain
        if not isinstance(plain, nn.Linear) or not place.matches(self.targets):
            return None
        return KernelLinear(place.module, self, plain, _matrices(place, plain))


@dataclass(frozen=True, kw_only=True)
class SNELLA(Adapter):
    """`SNELL` with a mixed kernel, and a sparsity of each matrix that follows its importance (arXiv 2510.24037).

    Its kernel is k + alpha softmax(k / gamma) + beta, the softmax over the outputs, for SNELL's kernel k and three
    learned numbers for each matrix. `geomed.adapters.survivors.Allocation` gives out the survivors while training; the
    command line sees to it by itself. Without it every matrix stays at ``initial``.
    """

    paper: ClassVar[str] = "Shen et al., 2025 (arXiv 2510.24037)"

    rank: int = 8
    """Coordinates of the two points together; even."""

    sparsity: float = 0.8
    """Share of all matrices together that is zero at the end of training. 0.2 to 0.93 on VTAB-1k, by task."""

    initial: float = 0.01
    """The same at the start, in each matrix."""

    sparsifier: Literal["released", "paper"] = "released"
    """As in `SNELL`."""

    targets: tuple[str, ...] = LINEARS
    """Which Linear modules: shell-style patterns of paths or of their ends."""

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        _check_rank(self.rank, self.targets)
        if not 0 <= self.initial <= self.sparsity < 1:
            raise ValueError(
                f"sparsity must rise from initial and stay under 1, not go from {self.initial} to {self.sparsity}"
            )

    @property
    def identity(self) -> bool:
        """It is not: see `SNELL`."""
        return False

    def wrap(self, place: Place) -> Adapted | None:
        """Wrap a Linear."""
        plain = place.plain
        if not isinstance(plain, nn.Linear) or not place.matches(self.targets):
            return None
        return KernelLinear(place.module, self, plain, _matrices(place, plain))


def _check_rank(rank: int, targets: tuple[str, ...]) -> None:
    if rank < 2 or rank % 2 or not targets:
        raise ValueError(f"rank must be even, two points share it, and targets named, not {rank} and {targets}")


def _matrices(place: Place, plain: nn.Linear) -> int:
    """How many matrices stand in the rows of this weight."""
    return 3 if place.path.rsplit(".", 1)[-1] == "qkv" and plain.out_features % 3 == 0 else 1


def _points(matrices: int, count: int, adapter: SNELL | SNELLA, like: Tensor) -> nn.Parameter:
    """Drawn as in the released code, where PyTorch's rule for convolutions is applied to [2, count, rank / 2]."""
    length = adapter.rank // 2
    bound = (count * length) ** -0.5
    drawn = torch.empty(matrices, 2, count, length, device=like.device, dtype=like.dtype)
    return nn.Parameter(drawn.uniform_(-bound, bound))


class KernelLinear(Adapted):
    """A Linear whose weight is shifted by kernel values, of one matrix or of several below each other."""

    mergeable = True
    kept: Tensor
    """The share of each matrix that survives."""

    def __init__(self, base: nn.Module, adapter: SNELL | SNELLA, plain: nn.Linear, matrices: int) -> None:
        """``plain`` is the Linear inside ``base``."""
        super().__init__(base)
        self.outs = _points(matrices, plain.out_features // matrices, adapter, plain.weight)
        self.ins = _points(matrices, plain.in_features, adapter, plain.weight)
        self.sparsifier: str = adapter.sparsifier
        self.mix: nn.Parameter | None = None
        self.goal: float | None = None
        sparsity = adapter.sparsity
        if isinstance(adapter, SNELLA):
            self.mix = nn.Parameter(plain.weight.new_tensor([1.0, 1.0, 0.0]).repeat(matrices, 1))
            self.goal = 1 - adapter.sparsity
            sparsity = adapter.initial
        elif not sparsity:
            self.sparsifier = "none"
        self.register_buffer("kept", plain.weight.new_full((matrices,), 1 - sparsity))

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """(W + U) x."""
        plain = self.base if type(self.base) is nn.Linear else None
        update = KernelShift.apply(
            x,
            None if plain is None else plain.weight,
            None if plain is None else plain.bias,
            self.outs,
            self.ins,
            self.mix,
            self.kept,
            self.sparsifier,
        )
        return update if plain is not None else self.base(x) + update

    def merged(self) -> nn.Module:
        """W + U."""
        return with_weight(self.base, kernel_update(self.outs, self.ins, self.mix, self.kept, self.sparsifier))

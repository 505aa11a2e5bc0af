"""Low-rank updates of weights."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor, nn

from geomed.adapters.adapter import Adapted, Adapter
from geomed.adapters.thin import narrowed, widened
from geomed.backbones.dates import DayOfYear

_SLICES = {"q": 0, "k": 1, "v": 2}

if TYPE_CHECKING:
    from geomed.adapters.place import Place


@dataclass(frozen=True, kw_only=True)
class LoRA(Adapter):
    """W + (alpha / rank) B A, with A drawn and B zero (Hu et al., ICLR 2022, section 4.1)."""

    paper: ClassVar[str] = "Hu et al., ICLR 2022"

    rank: int = 8
    """Width of the update."""

    alpha: float = 8.0
    """The update is scaled by alpha / rank."""

    targets: tuple[str, ...] = ("attn.qkv",)
    """Which Linear, Conv2d or DayOfYear modules: shell-style patterns of paths or of their ends."""

    parts: tuple[Literal["q", "k", "v"], ...] = ("q", "v")
    """On a fused qkv: the row slices that are adapted, each with its own pair. Empty: one pair for the whole matrix."""

    def __post_init__(self) -> None:
        """Refuse ranks and parts that mean nothing."""
        if self.rank < 1 or not self.targets:
            raise ValueError(f"rank must be positive and targets named, not {self.rank} and {self.targets}")
        if set(self.parts) - set(_SLICES) or len(set(self.parts)) != len(self.parts):
            raise ValueError(f"parts must be of q, k, v, each once, not {self.parts}")

    def wrap(self, place: Place) -> Adapted | None:
        """Wrap a Linear, a Conv2d or a table of dates.

        Raises:
            ValueError: the rank is above the width of the weight.
        """
        if not place.matches(self.targets):
            return None
        plain = place.plain
        if isinstance(plain, DayOfYear):
            self._check(place.path, *plain.weight.shape)
            return LowRankTable(place.module, self, plain)
        if isinstance(plain, nn.Conv2d) and plain.groups == 1:
            self._check(place.path, plain.out_channels, plain.weight[0].numel())
            return LowRankConv2d(place.module, self, plain)
        if not isinstance(plain, nn.Linear):
            return None
        if self.parts and place.path.rsplit(".", 1)[-1] == "qkv":
            self._check(place.path, plain.out_features // 3, plain.in_features)
            return LowRankSlices(place.module, self, plain)
        self._check(place.path, plain.out_features, plain.in_features)
        return LowRankLinear(place.module, self, plain)

    def _check(self, path: str, rows: int, columns: int) -> None:
        if self.rank > min(rows, columns):
            raise ValueError(
                f"{path}: rank must not exceed the width of the weight, {self.rank} > {min(rows, columns)}; lower it"
            )


def _drawn(rows: int, columns: int, like: Tensor) -> nn.Parameter:
    weight = torch.empty(rows, columns, device=like.device, dtype=like.dtype)
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    return nn.Parameter(weight)


def _zero(rows: int, columns: int, like: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.zeros(rows, columns, device=like.device, dtype=like.dtype))


class LowRankLinear(Adapted):
    """A Linear with a low-rank update."""

    mergeable = True

    def __init__(self, base: nn.Module, adapter: LoRA, plain: nn.Linear) -> None:
        """``plain`` is the Linear inside ``base``."""
        super().__init__(base)
        self.scale = adapter.alpha / adapter.rank
        self.down = _drawn(adapter.rank, plain.in_features, plain.weight)
        self.up = _zero(plain.out_features, adapter.rank, plain.weight)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """base(x) + scale B A x."""
        return widened(self.base(x), narrowed(x, self.down), self.up * self.scale)

    def update(self) -> Float[Tensor, "o i"]:
        """Scale B A, what is added to the weight."""
        return self.scale * self.up @ self.down

    def merged(self) -> nn.Module:
        """W + scale B A."""
        return with_weight(self.base, self.update())


class LowRankSlices(Adapted):
    """A fused qkv Linear with a low-rank update for some of its three row slices."""

    mergeable = True

    def __init__(self, base: nn.Module, adapter: LoRA, plain: nn.Linear) -> None:
        """``plain`` is the Linear inside ``base``, its rows laid out [q | k | v]."""
        super().__init__(base)
        self.scale = adapter.alpha / adapter.rank
        self.rank = adapter.rank
        self.parts = adapter.parts
        rows = plain.out_features // 3
        self.down = nn.Parameter(
            torch.cat([_drawn(adapter.rank, plain.in_features, plain.weight) for _ in adapter.parts]).detach()
        )
        self.up = _zero(len(adapter.parts) * rows, adapter.rank, plain.weight)

    def _whole_up(self) -> Float[Tensor, "o r"]:
        """B of all slices as one matrix, zero where a slice does not read."""
        ups = self.up.unflatten(0, (len(self.parts), -1))
        rows = []
        for name in _SLICES:
            place = self.parts.index(name) if name in self.parts else -1
            row = [ups[place] if column == place else torch.zeros_like(ups[0]) for column in range(len(self.parts))]
            rows.append(torch.cat(row, 1))
        return torch.cat(rows) * self.scale

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """base(x) + scale B A x, slice by slice."""
        return widened(self.base(x), narrowed(x, self.down), self._whole_up())

    def update(self) -> Float[Tensor, "o i"]:
        """Scale B A of each slice, what is added to the weight."""
        return self._whole_up() @ self.down

    def merged(self) -> nn.Module:
        """W + scale B A."""
        return with_weight(self.base, self.update())


class LowRankConv2d(Adapted):
    """A Conv2d with a low-rank update: a Conv2d to ``rank`` channels, then one of 1 x 1."""

    mergeable = True

    def __init__(self, base: nn.Module, adapter: LoRA, plain: nn.Conv2d) -> None:
        """``plain`` is the Conv2d inside ``base``."""
        super().__init__(base)
        self.scale = adapter.alpha / adapter.rank
        self.shape = tuple(plain.weight.shape[1:])
        self.step = plain.stride, plain.padding, plain.dilation
        self.down = _drawn(adapter.rank, plain.weight[0].numel(), plain.weight)
        self.up = _zero(plain.out_channels, adapter.rank, plain.weight)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o hh ww"]:
        """base(x) + scale B A x."""
        stride, padding, dilation = self.step
        narrow = F.conv2d(x, self.down.unflatten(1, self.shape), None, stride, padding, dilation)
        return self.base(x) + F.conv2d(narrow, (self.up * self.scale)[..., None, None])

    def update(self) -> Float[Tensor, "o i h w"]:
        """Scale B A, what is added to the weight."""
        return (self.scale * self.up @ self.down).unflatten(1, self.shape)

    def merged(self) -> nn.Module:
        """W + scale B A."""
        return with_weight(self.base, self.update())


class LowRankTable(Adapted):
    """A table of dates with a low-rank update, as if it were the Linear on one-hot days that it stands for."""

    mergeable = True

    def __init__(self, base: nn.Module, adapter: LoRA, plain: DayOfYear) -> None:
        """``plain`` is the table inside ``base``."""
        super().__init__(base)
        self.scale = adapter.alpha / adapter.rank
        self.down = _drawn(adapter.rank, plain.weight.shape[1], plain.weight)
        self.up = _zero(plain.weight.shape[0], adapter.rank, plain.weight)

    def forward(self, row: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """base(row) + scale B A[:, row]."""
        narrow = F.embedding(row.clamp(0, DayOfYear.rows - 1), self.down.t())
        return self.base(row) + F.linear(narrow, self.up * self.scale)

    def merged(self) -> nn.Module:
        """W + scale B A."""
        return with_weight(self.base, self.scale * self.up @ self.down)


@torch.no_grad()
def with_weight(plain: nn.Module, update: Tensor) -> nn.Module:
    """A copy of the module with its weight changed."""
    new = copy.deepcopy(plain)
    weight = new.get_parameter("weight")
    weight += update.to(weight.dtype)
    return new

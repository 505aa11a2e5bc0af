"""A bottleneck after each block; in some blocks a mixture of three, for all, the low and the high frequencies."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor, nn

from geomed.adapters.adapter import Adapted, Adapter
from geomed.backbones.block import recomputing
from geomed.tokens import Tokens  # noqa: TC001  (likewise)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from geomed.adapters.place import BlockPlace, Place


@dataclass(frozen=True, kw_only=True)
class EarthAdapter(Adapter):
    """x + s Σ w_k (U_k relu(V_k x_k + b_k) + c_k) on the patch tokens x after each block.

    Hu et al., "Earth-Adapter", AAAI 2026 (arXiv 2504.06220), section 3. In ``frequency_blocks`` there are three experts
    k, on all frequencies of x, on the low and on the high ones, mixed by w = softmax(R x + r) at every token; in other
    blocks one, on x itself. s is learned, one for each block. Prefix tokens pass as they are.

    V_k works on channels and the filter on places, so they change places: one product gives all V_k x and R x, and the
    filter runs on the narrow V_k x, as two small real matrices on the axes of the grid instead of Fourier transforms.
    """

    paper: ClassVar[str] = "Hu et al., AAAI 2026"

    bottleneck: int = 64
    """Width of each expert."""

    blocks: tuple[int, ...] = ()
    """Blocks of each stage, from 0, or from -1 back; empty: all. Where the first is left out, backpropagation ends
    early."""

    frequency_blocks: tuple[int, ...] | None = None
    """Which of them mix three experts; empty: none. None: the last three, or all where there are fewer. (The authors
    choose for each task, of 24 blocks: the first or last three or six.)"""

    cutoff: float = 0.3
    """What counts as low: this share of the frequencies of each axis."""

    mask: Literal["reference", "symmetric"] = "reference"
    """With c = floor(cutoff * side / 2): ``reference`` keeps the frequencies from -c to c - 1 and takes the real part,
    as the released code does, so that c and -c count half. ``symmetric`` keeps -c to c whole, a projection."""

    scale: float = 0.1
    """Where s starts."""

    init: Literal["zero", "reference"] = "zero"
    """``zero``: U and c are zero, and the network starts unchanged. ``reference``: they are drawn, and it does not."""

    targets: tuple[str, ...] = ("blocks.*",)
    """Which blocks: shell-style patterns of paths or of their ends."""

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.bottleneck < 1:
            raise ValueError(f"bottleneck must be positive, not {self.bottleneck}")
        if not 0 < self.cutoff <= 1:
            raise ValueError(f"cutoff must be a share of the frequencies, above 0 and at most 1, not {self.cutoff}")
        if self.mask not in {"reference", "symmetric"} or self.init not in {"zero", "reference"}:
            raise ValueError(
                f"mask must be reference or symmetric and init zero or reference, not {self.mask!r} and {self.init!r}"
            )

    @property
    def identity(self) -> bool:
        """Where up-projections start from zero."""
        return self.init == "zero"

    def wrap(self, place: Place) -> Adapted | None:
        """Wrap a block over a grid of places.

        Raises:
            ValueError: there is no block of such a number, or one that is not adapted is to mix experts.
        """
        block = place.grid_block(self.targets, self.blocks)
        if block is None:
            return None
        return EarthBlock(place.module, self, place.stream(), mixture=self._mixes(block))

    def _mixes(self, block: BlockPlace) -> bool:
        adapted = sorted({number % block.count for number in self.blocks}) or list(range(block.count))
        if self.frequency_blocks is None:
            return block.number in adapted[-3:]
        mixing = bool(self.frequency_blocks) and block.among(self.frequency_blocks)
        bare = [number for number in self.frequency_blocks if number % block.count not in adapted]
        if bare:
            raise ValueError(f"frequency_blocks must be among blocks {self.blocks}, not {bare}; name them in both")
        return mixing


class EarthBlock(Adapted):
    """A block and what is added to its patch tokens."""

    def __init__(self, base: nn.Module, adapter: EarthAdapter, like: Tensor, *, mixture: bool) -> None:
        """``like`` has the width, device and dtype of the tokens."""
        super().__init__(base)
        self.experts = 3 if mixture else 1
        self.bottleneck = adapter.bottleneck
        self.cutoff, self.symmetric = adapter.cutoff, adapter.mask == "symmetric"
        width, hidden = like.shape[-1], self.experts * self.bottleneck
        # rows: V of each expert (all, low, high), then the router; PyTorch's own start is the reference's
        self.down = nn.Linear(width, hidden + (3 if mixture else 0), device=like.device, dtype=like.dtype)
        # columns: U of each expert, then c of each
        self.up = nn.Linear(hidden + self.experts, width, bias=False, device=like.device, dtype=like.dtype)
        self.scale = nn.Parameter(like.new_full((1,), adapter.scale))
        if adapter.init == "zero":
            nn.init.zeros_(self.up.weight)
        else:
            bound = 1 / math.sqrt(self.bottleneck)
            nn.init.uniform_(self.up.weight, -bound, bound)
        self._filter: tuple[object, tuple[Tensor, Tensor]] | None = None

    def forward(self, tokens: Tokens) -> Tokens:
        """The block, then the experts."""
        tokens = self.base(tokens)
        x, prefix = tokens.data, tokens.prefix
        narrow = self.down(x)[:, prefix:]
        weights = self.scale.to(narrow.dtype).expand(*narrow.shape[:2], 1)
        if self.experts == 3:
            weights = (narrow[..., -3:].softmax(-1) * self.scale).to(narrow.dtype)
            narrow = self._bands(narrow, tokens.grid)
        active = F.relu(narrow)

        def hidden(active: Tensor) -> Tensor:
            """Of each expert w relu(…) and, for c, w; zero for prefix tokens, which spares a full-width copy."""
            each = active.unflatten(-1, (self.experts, -1)) * weights[..., None]
            both = torch.cat((each.flatten(-2), weights), -1)
            return F.pad(both, (0, 0, prefix, 0)) if prefix else both

        mixed = hidden(active)
        with recomputing(hidden, active, mixed):
            if mixed.dtype != x.dtype:  # under autocast, which would lower x itself below
                return tokens.replace(x + self.up(mixed))
            # added within the product: one tensor of full width instead of two
            return tokens.replace(torch.addmm(x.flatten(0, 1), mixed.flatten(0, 1), self.up.weight.t()).view(x.shape))

    def _bands(self, narrow: Float[Tensor, "b n r"], grid: tuple[int, ...]) -> Float[Tensor, "b n e"]:
        """V x + b of the three experts, each on its frequencies."""
        a, (height, width) = self.bottleneck, grid
        by_rows, by_columns = self._low_pass((height, width), narrow)
        low = torch.matmul(by_rows, narrow[..., a : 3 * a].reshape(narrow.shape[0], height, width * 2 * a))
        low = torch.matmul(by_columns, low.view(narrow.shape[0] * height, -1, 2 * a)).view(narrow.shape[0], -1, 2 * a)
        # a constant is all low: b of the low expert came through, that of the high one is lost with what is low
        high = narrow[..., 2 * a : 3 * a] + self.down.bias[2 * a : 3 * a].to(low.dtype) - low[..., a:]
        return torch.cat((narrow[..., :a], low[..., :a], high), -1)

    def _low_pass(self, grid: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
        """`low_pass`, made when the grid or the type of numbers changes. The compiler folds it by itself."""
        if torch.compiler.is_compiling():
            return low_pass(grid, self.cutoff, like, symmetric=self.symmetric)
        wanted = (grid, like.dtype, like.device)
        if self._filter is None or self._filter[0] != wanted:
            with torch.inference_mode(mode=False):  # or no later training step could use it
                self._filter = wanted, low_pass(grid, self.cutoff, like, symmetric=self.symmetric)
        return self._filter[1]


def low_pass(
    grid: tuple[int, int], cutoff: float, like: Tensor, *, symmetric: bool
) -> tuple[Float[Tensor, "th h"], Float[Tensor, "w tw"]]:
    """The low-pass of `EarthAdapter.mask` as two matrices (R, C): G [h, w] → T = R G as [h, t w], then C T as [h, w].

    F* diag(m) F, with F the unitary Fourier transform of one axis and m what is kept of it, is A + iB, and the real
    part of the two-dimensional filter is A_h G A_w' - B_h G B_w'; B is zero where m is symmetric. t counts the terms.

    Raises:
        ValueError: nothing of an axis would be kept.
    """
    axes = []
    for side in grid:
        reach = int(side * cutoff // 2)
        if not symmetric and reach == 0:
            raise ValueError(
                f"cutoff must keep a frequency of each axis, and {cutoff} of {side} tokens keeps none; "
                f"raise it to 2 / {side} or take mask='symmetric', which always keeps the mean"
            )
        last = min(reach, (side - 1) // 2) if symmetric else reach - 1
        place = torch.arange(side, device=like.device)
        kept = torch.arange(-reach, last + 1, device=like.device)
        phase = ((place[:, None] - place)[..., None] * kept).remainder(side)  # whole numbers: exact
        angle = phase.to(torch.promote_types(like.dtype, torch.float32)) * (2 * math.pi / side)
        axes.append((angle.cos().sum(-1) / side, angle.sin().sum(-1) / side))
    (rows, odd_rows), (columns, odd_columns) = axes
    if symmetric:
        return rows.to(like.dtype), columns.to(like.dtype)
    return (
        torch.stack((rows, -odd_rows), 1).flatten(0, 1).to(like.dtype),
        torch.cat((columns, odd_columns), 1).to(like.dtype),
    )


@torch.no_grad()
def load_released_earth_adapter(
    backbone: nn.Module, state: Mapping[str, Tensor], *, prefix: str = "backbone.refine_feat."
) -> None:
    """Fill the attached `EarthAdapter` from a released checkpoint (github.com/VisionXLab/Earth-Adapter, 49a8ff8).

    Which blocks mix experts, and the cut-off, are not in it: they stand in the released configs. Experts and routers of
    other blocks are in it, but were never used.

    Args:
        backbone: with the adapter attached.
        state: tensors by name, such as ``backbone.refine_feat.mlp_list1.0.0.weight``.
        prefix: what stands before ``mlp_list1``. The averaged copy in checkpoints of domain adaptation has another.

    Raises:
        ValueError: nothing is attached, or a tensor is missing or of another shape; nothing has been loaded then.
    """
    changes: list[tuple[Tensor, Tensor]] = []
    for path, block in backbone.named_modules():
        number = re.search(r"blocks\.(\d+)", path)
        if not isinstance(block, EarthBlock) or number is None:
            continue
        experts = [f"{prefix}mlp_list{expert + 1}.{number[1]}." for expert in range(block.experts)]
        names = {part: [expert + part for expert in experts] for part in ("0.weight", "0.bias", "2.weight", "2.bias")}
        if block.experts == 3:
            names["0.weight"].append(f"{prefix}router.{number[1]}.weight")
            names["0.bias"].append(f"{prefix}router.{number[1]}.bias")
        missing = sorted({f"{prefix}scale", *(name for part in names.values() for name in part)} - set(state))
        if missing:
            raise ValueError(
                f"{path} needs {missing[0]}, which is not there; check prefix, blocks and frequency_blocks"
            )
        shifts = [state[name][:, None] for name in names["2.bias"]]
        layer = int(number[1])
        changes += [
            (block.down.weight, torch.cat([state[name] for name in names["0.weight"]])),
            (block.down.bias, torch.cat([state[name] for name in names["0.bias"]])),
            (block.up.weight, torch.cat([*(state[name] for name in names["2.weight"]), *shifts], 1)),
            (block.scale, state[f"{prefix}scale"][layer : layer + 1]),
        ]
    wrong = [(tuple(there.shape), tuple(here.shape)) for here, there in changes if here.shape != there.shape]
    if wrong or not changes:
        told = f"a tensor is {wrong[0][0]} there and {wrong[0][1]} here" if wrong else "none is attached"
        raise ValueError(f"{told}; attach an EarthAdapter of the checkpoint's bottleneck to a backbone of its width")
    for here, there in changes:
        here.copy_(there)

"""Prompts that ask each sample anew."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor, nn

from geomed.adapters.adapter import Adapted, Adapter, running
from geomed.adapters.prompt_tokens import (
    CarriedPrompts,
    backbone_around,
    inserted,
    parted,
    unused_name,
)
from geomed.backbones.block import Block, MlpBranch, WholeBlock
from geomed.backbones.vit import ViT
from geomed.tokens import Tokens  # noqa: TC001  (likewise)

if TYPE_CHECKING:
    from geomed.adapters.place import Place


@dataclass(frozen=True, kw_only=True)
class DVPT(Adapter):
    """Dynamic visual prompt tuning (He et al., Neural Networks 185, 2025; arXiv 2307.09787).

    ``paper`` computes what the paper says, beside the MLP of each block, on the residual stream x as it enters there:

        Z = gelu(x D + b)            the bottleneck, of every token
        Q = softmax(P Zᵍᵀ / √m) Zᵍ    what the prompts P find among the grid's tokens
        R = softmax(Z Qᵀ / √m) Q     what each token takes back of it
        x ← x + MLP(x) + g ((Z + R) U + c)

    D, b, P, U and c are shared by ``every`` consecutive blocks, the scalar g, 1 at the start, is each block's own. The
    prompts ask the grid alone, for class token and registers are of another size in a residual stream; but those get
    the update as all tokens do. The paper leaves open how Q comes back to the tokens; projecting it up and then
    aggregating is the same as aggregating in the bottleneck, which is m wide instead of d, and projecting once.

    The network starts unchanged and both D and U learn from the first step: units of the bottleneck come in pairs of
    the same down-projection and of opposite up-projections, small, so that each pair's sum is zero while neither
    gradient is. (With U = 0 the gradient of D is zero in the first step, with g = 0 the gradients of both.) P follows
    in the second step.

    ``released`` computes what the authors' ViT code computes (github.com/NKUhealong/DVPT, commit 180a4a4), in which
    nothing is dynamic: its cross-attention has no effect on the output and is left out here. Prompts with positions of
    their own go through all blocks as ordinary tokens, and beside each MLP stands g (QuickGELU(x D + b) U + c) on every
    token, prompts too; g, 0 at the start, is shared as well. Its classifier reads the mean over prompts and class
    token: the features' tokens carry the prompts under ``dvpt.0``, before the backbone's last norm.
    """

    paper: ClassVar[str] = "He et al., Neural Networks 2025"

    mode: Literal["paper", "released"] = "paper"
    """What the paper says or what its code does."""

    count: int = 50
    """Prompts."""

    bottleneck: int = 20
    """Its width m."""

    every: int = 3
    """How many consecutive blocks share a bottleneck, and in ``paper`` its prompts."""

    aggregate: Literal["broadcast", "mean"] = "broadcast"
    """How tokens take back what the prompts found: each by attention, or all of them the mean (``paper`` only)."""

    targets: tuple[str, ...] = ("blocks.*",)
    """Which blocks over places: shell-style patterns of paths or of their ends."""

    blocks: tuple[int, ...] = ()
    """Their numbers within the stage, from the end if negative; empty: all."""

    def __post_init__(self) -> None:
        """Refuse sizes that mean nothing, and what ``released`` does not have."""
        if min(self.count, self.bottleneck, self.every) < 1:
            raise ValueError(
                f"count, bottleneck and every must be positive, not {self.count}, {self.bottleneck} and {self.every}"
            )
        if self.mode not in {"paper", "released"} or self.aggregate not in {"broadcast", "mean"}:
            raise ValueError(
                "mode must be paper or released and aggregate broadcast or mean, "
                f"not {self.mode!r} and {self.aggregate!r}"
            )
        if self.mode == "released" and self.aggregate != "broadcast":
            raise ValueError(f"mode released aggregates nothing, so aggregate={self.aggregate!r} is for paper only")

    @property
    def identity(self) -> bool:
        """The released code's prompts take a part of the attention from the start."""
        return self.mode == "paper"

    def wrap(self, place: Place) -> Adapted | None:
        """Wrap the MLP branch of a block, or for ``released`` the block.

        Raises:
            ValueError: the block has no MLP branch, reads dates and is named, or (``released``) is adapted as a whole
                already.
        """
        plain = place.plain
        if not isinstance(plain, (Block, WholeBlock, MlpBranch)):
            return None
        named = dataclasses.replace(place, path=place.path.removesuffix(".mlp"))
        block = named.on_grid(self.targets, self.blocks) if named.matches(self.targets) else None
        if block is None:
            return None
        if isinstance(plain, WholeBlock):
            raise ValueError(  # noqa: TRY004  (a setting that fits no such network)
                f"{place.path}: DVPT stands beside the MLP, and this block's is out of reach; use VPT"
            )
        group = f"bottleneck {block.number // self.every} of {block.stage}"
        if self.mode == "paper":
            return self._beside_mlp(place, group) if isinstance(plain, MlpBranch) else None
        return self._around_block(place, block.stage, group)

    def _beside_mlp(self, place: Place, group: str) -> Adapted:
        bottleneck = place.shared.get(group)
        if not isinstance(bottleneck, DynamicBottleneck):
            bottleneck = place.shared[group] = DynamicBottleneck(self, place.stream())
        return DynamicMlp(place.module, bottleneck)

    def _around_block(self, place: Place, stage: str, group: str) -> Adapted:
        block = place.module
        if not isinstance(block, Block):
            raise ValueError(  # noqa: TRY004  (likewise)
                f"{place.path}: this block is adapted as a whole already, and mode released reaches into it; "
                "attach DVPT first"
            )
        prompts = place.shared.get(f"prompts of {stage}")
        if not isinstance(prompts, CarriedPrompts):
            prompts = place.shared[f"prompts of {stage}"] = self._released_prompts(place)
        bottleneck = place.shared.get(group)
        if not isinstance(bottleneck, GatedBottleneck):
            bottleneck = place.shared[group] = GatedBottleneck(self, place.stream())
        return ReleasedBlock(block, prompts, bottleneck)

    def _released_prompts(self, place: Place) -> CarriedPrompts:
        """N(0, 1), positions N(0, 1/d); a norm between positions and blocks, which CLIP has, reads the prompts too."""
        backbone = backbone_around(place)
        norm = running(running(backbone.stem).get_submodule("norm_pre")) if isinstance(backbone, ViT) else None
        like = place.stream()
        prompts = nn.init.normal_(like.new_empty(self.count, like.shape[-1]))
        positions = nn.init.normal_(torch.empty_like(prompts), std=prompts.shape[1] ** -0.5)
        return CarriedPrompts(unused_name(place.root, "dvpt"), prompts, positions, norm)


def _linears(adapter: DVPT, like: Tensor) -> tuple[nn.Linear, nn.Linear]:
    """Down to the bottleneck and up again, drawn as PyTorch draws a Linear's weights."""
    wide, narrow = like.shape[-1], adapter.bottleneck
    return (
        nn.Linear(wide, narrow, device=like.device, dtype=like.dtype),
        nn.Linear(narrow, wide, device=like.device, dtype=like.dtype),
    )


class DynamicBottleneck(nn.Module):
    """What several blocks share in ``paper``: a bottleneck and the prompts that ask in it."""

    def __init__(self, adapter: DVPT, like: Tensor) -> None:
        """Units in pairs that cancel each other; an odd one out starts with no up-projection."""
        super().__init__()
        self.down, self.up = _linears(adapter, like)
        self.prompts = nn.Parameter(nn.init.normal_(like.new_empty(adapter.count, adapter.bottleneck)))
        self.mean = adapter.aggregate == "mean"
        half = adapter.bottleneck // 2
        with torch.no_grad():
            self.down.weight[half : 2 * half] = self.down.weight[:half]
            self.down.bias[half : 2 * half] = self.down.bias[:half]
            # Small: the first step of Adam then moves the output less through D than through U.
            nn.init.normal_(self.up.weight, std=1e-3)
            self.up.weight[:, half : 2 * half] = -self.up.weight[:, :half]
            self.up.weight[:, 2 * half :] = 0
            self.up.bias.zero_()

    def forward(self, tokens: Tokens, gate: Float[Tensor, 1]) -> Float[Tensor, "b n d"]:
        """The update of every token."""
        z = F.gelu(self.down(tokens.data))[:, None]  # one head
        grid = z[:, :, tokens.prefix :]
        found = F.scaled_dot_product_attention(self.prompts.to(z.dtype).expand(z.shape[0], 1, -1, -1), grid, grid)
        taken = found.mean(2, keepdim=True) if self.mean else F.scaled_dot_product_attention(z, found, found)
        return F.linear((z + taken)[:, 0], self.up.weight * gate, self.up.bias * gate)


class DynamicMlp(Adapted):
    """An MLP branch with a dynamic bottleneck beside it."""

    def __init__(self, base: nn.Module, bottleneck: DynamicBottleneck) -> None:
        """``bottleneck`` is shared by some blocks; the gate is not."""
        super().__init__(base)
        self.bottleneck = bottleneck
        self.gate = nn.Parameter(bottleneck.prompts.new_ones(1))

    def forward(self, tokens: Tokens) -> Float[Tensor, "b n d"]:
        """The MLP's update and the bottleneck's."""
        return self.base(tokens) + self.bottleneck(tokens, self.gate)


class GatedBottleneck(nn.Module):
    """What several blocks share in ``released``: a bottleneck behind a gate that starts at zero."""

    def __init__(self, adapter: DVPT, like: Tensor) -> None:
        """``like`` tells width, type and device."""
        super().__init__()
        self.down, self.up = _linears(adapter, like)
        self.gate = nn.Parameter(like.new_zeros(1))

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """The update of every token."""
        z = self.down(x)
        return F.linear(z * torch.sigmoid(1.702 * z), self.up.weight * self.gate, self.up.bias * self.gate)


class ReleasedBlock(Adapted):
    """A block through which prompts go with the tokens, and a bottleneck beside its MLP."""

    base: Block

    def __init__(self, base: Block, prompts: CarriedPrompts, bottleneck: GatedBottleneck) -> None:
        """``prompts`` are common to all blocks, ``bottleneck`` to some."""
        super().__init__(base)
        self.prompts = prompts
        self.bottleneck = bottleneck

    def forward(self, tokens: Tokens) -> Tokens:
        """The block on tokens and prompts, and both handed on apart."""
        prompts = self.prompts.beside(tokens)
        both = inserted(tokens, prompts)
        both = both.replace(both.data + self.base.attention(both))
        data = both.data + self.base.mlp(both) + self.bottleneck(both.data)
        data, prompts = parted(data, tokens, prompts.shape[1])
        return tokens.replace(data).carry(self.prompts.name, prompts)

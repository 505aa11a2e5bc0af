"""The pre-norm transformer block that every backbone here is built of: Tokens → Tokens, in two residual branches."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor, nn

from geomed.tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def recomputing(cheap: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Iterator[None]:
    """For what is computed within, the backward pass computes ``y = cheap(x)`` again instead of keeping y.

    It is worth it where x is kept anyway and ``cheap`` is cheap. (The first call of `torch.utils.checkpoint` imports
    the compiler: 150 MiB and more than a second.)
    """
    if torch.compiler.is_compiling() or not y.requires_grad or _kept_nowhere.get():
        yield  # the compiler, or `recomputed`, decides by itself what to keep
        return
    place = y.untyped_storage().data_ptr()

    def pack(kept: Tensor) -> Tensor | tuple[tuple[int, ...], tuple[int, ...], int]:
        if kept.layout != torch.strided or kept.untyped_storage().data_ptr() != place:
            return kept.detach()  # an operation that keeps its own output would otherwise keep itself alive
        return tuple(kept.shape), kept.stride(), int(kept.storage_offset())

    def unpack(packed: Tensor | tuple[tuple[int, ...], tuple[int, ...], int]) -> Tensor:
        return packed if isinstance(packed, Tensor) else cheap(x).as_strided(*packed)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


_kept_nowhere: ContextVar[bool] = ContextVar("_kept_nowhere", default=False)


def recomputed(block: nn.Module, tokens: Tokens) -> Tokens:
    """A block of which nothing is kept for the backward pass but its input (gradient checkpointing)."""
    from torch.utils.checkpoint import checkpoint  # late: it imports the compiler

    def run(data: Tensor) -> Tokens:
        if torch.compiler.is_compiling():
            return block(tokens.replace(data))
        before = _kept_nowhere.set(True)
        try:
            return block(tokens.replace(data))
        finally:
            _kept_nowhere.reset(before)

    return checkpoint(run, tokens.data, use_reentrant=False)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2), fused qkv laid out [q | k | v]."""

    def __init__(self, dim: int, *, heads: int, head_dim: int) -> None:
        """Queries, keys and values have no bias, as in TSViT; the projection has one."""
        super().__init__()
        self.num_heads = heads
        self.head_dim = head_dim
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.proj = nn.Linear(heads * head_dim, dim)

    def forward(
        self, x: Float[Tensor, "b n d"], attn_mask: Bool[Tensor, "b 1 1 n"] | None = None, queries: int | None = None
    ) -> Float[Tensor, "b q d"]:
        """Attend; with ``queries`` only the first so many tokens ask, all of them answer."""
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        if queries is not None:
            q = q[:, :, :queries]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.proj(rearrange(x, "b h n d -> b n (h d)"))


class Mlp(nn.Module):
    """Linear, activation, Linear; the activation is computed again in the backward pass instead of kept."""

    def __init__(self, fc1: nn.Module, act: nn.Module, fc2: nn.Module) -> None:
        """``act`` works number by number."""
        super().__init__()
        self.fc1 = fc1
        self.act = act
        self.fc2 = fc2

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Token by token."""
        hidden = self.fc1(x)
        active = self.act(hidden)
        with recomputing(self.act, hidden, active):
            return self.fc2(active)


class AttentionBranch(nn.Module):
    """norm → attention → scale, the part that is added to the residual stream."""

    def __init__(self, norm: nn.Module, attn: nn.Module, scale: nn.Module) -> None:
        """``attn`` is ours or timm's `Attention`; ``scale`` is LayerScale, drop path or the identity."""
        super().__init__()
        self.norm = norm
        self.attn = attn
        self.scale = scale

    def forward(
        self, tokens: Tokens, mask: Bool[Tensor, "b 1 1 n"] | None = None, queries: int | None = None
    ) -> Float[Tensor, "b q d"]:
        """The update, for the first ``queries`` tokens or all."""
        x = self.norm(tokens.data)
        with recomputing(self.norm, tokens.data, x):
            x = self.attn(x, attn_mask=mask) if queries is None else self.attn(x, attn_mask=mask, queries=queries)
        return self.scale(x)


class MlpBranch(nn.Module):
    """norm → MLP → scale, the part that is added to the residual stream."""

    def __init__(self, norm: nn.Module, mlp: nn.Module, scale: nn.Module) -> None:
        """``mlp`` has the Linears ``fc1`` and ``fc2``."""
        super().__init__()
        self.norm = norm
        self.mlp = mlp
        self.scale = scale

    def forward(self, tokens: Tokens) -> Float[Tensor, "b n d"]:
        """The update, token by token."""
        x = self.norm(tokens.data)
        with recomputing(self.norm, tokens.data, x):
            return self.scale(self.mlp(x))


class Block(nn.Module):
    """x + attention(x), then x + mlp(x)."""

    def __init__(self, attention: nn.Module, mlp: nn.Module, *, axes: int = 2) -> None:
        """Two branches, and the axes of the grid that they read: 2 for places, 1 for dates."""
        super().__init__()
        self.axes = axes
        self.attention = attention
        self.mlp = mlp

    def forward(
        self, tokens: Tokens, mask: Bool[Tensor, "b 1 1 n"] | None = None, queries: int | None = None
    ) -> Tokens:
        """Tokens → tokens; with ``queries`` only the first so many, which must all be prefix tokens.

        Args:
            tokens: a batch of sequences.
            mask: which tokens may be attended to.
            queries: how many prefix tokens are wanted of a last block; the others are not computed.
        """
        data = tokens.data if queries is None else tokens.data[:, :queries]
        data = data + self.attention(tokens, mask, queries)
        tokens = tokens.replace(data) if queries is None else Tokens(data, (0,), queries)
        return tokens.replace(data + self.mlp(tokens))


class WholeBlock(nn.Module):
    """A block that is not made of two pre-norm branches, run as it is."""

    axes = 2

    def __init__(self, block: nn.Module) -> None:
        """Any module [B, N, D] → [B, N, D]."""
        super().__init__()
        self.block = block

    def forward(self, tokens: Tokens) -> Tokens:
        """Tokens → tokens."""
        return tokens.replace(self.block(tokens.data))


def plain_block(dim: int, *, heads: int, head_dim: int, hidden: int, axes: int = 2) -> Block:
    """A block without LayerScale or drop path, its weights drawn as PyTorch draws a Linear's."""
    attention = Attention(dim, heads=heads, head_dim=head_dim)
    mlp = Mlp(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
    return Block(
        AttentionBranch(nn.LayerNorm(dim), attention, nn.Identity()),
        MlpBranch(nn.LayerNorm(dim), mlp, nn.Identity()),
        axes=axes,
    )

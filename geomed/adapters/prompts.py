"""Learned prompts beside the tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from timm.models import vision_transformer
from torch import Tensor, nn

from geomed.adapters.adapter import Adapted, Adapter, innermost
from geomed.backbones.block import Attention

if TYPE_CHECKING:
    from geomed.adapters.place import Place


@dataclass(frozen=True, kw_only=True)
class Prompts(Adapter):
    """Learned prompts that every token may attend to, in a softmax of their own that starts from nothing.

    Prompts that are mixed into the tokens' own softmax (Jia et al., ECCV 2022; Li and Liang, ACL 2021) disturb a
    trained network before they have learned anything. Here tokens attend to prompts apart and the answer is added,
    from zero (Zhang et al., "LLaMA-Adapter", ICLR 2024, section 3.2): the network starts unchanged.
    """

    paper: ClassVar[str] = "after Jia et al., ECCV 2022, and Zhang et al., ICLR 2024"

    count: int = 8
    """Prompts in each block."""

    kind: Literal["prefix", "tokens"] = "prefix"
    """``prefix``: keys and values of each head, the values zero at the start. ``tokens``: vectors in the place of
    normalised tokens, of which the block's own qkv makes keys and values, behind one gate per head, zero at first."""

    deep: bool = True
    """In every block, or only in the first of each stage."""

    targets: tuple[str, ...] = ("attn",)
    """Which attention modules: shell-style patterns of paths or of their ends."""

    def __post_init__(self) -> None:
        """Refuse no prompts."""
        if self.count < 1:
            raise ValueError(f"count must be positive, not {self.count}")

    def wrap(self, place: Place) -> Adapted | None:
        """Wrap an attention module.

        Raises:
            ValueError: it has prompts already, or computes something that prompts are not defined on here.
        """
        plain = place.plain
        if not isinstance(plain, (Attention, vision_transformer.Attention)) or not place.matches(self.targets):
            return None
        if not self.deep and "blocks.0." not in place.path:
            return None
        if place.module is not plain:
            raise ValueError(f"{place.path}: this attention is adapted already; give all prompts in one Prompts")
        if isinstance(plain, vision_transformer.Attention) and (
            plain.gate is not None or not isinstance(plain.norm, nn.Identity)
        ):
            raise ValueError(f"{place.path}: prompts need plain attention, this one has a gate or a norm; use LoRA")
        return PromptedAttention(plain, self)


class PromptedAttention(Adapted):
    """Attention that also reads prompts."""

    base: Attention | vision_transformer.Attention

    def __init__(self, base: Attention | vision_transformer.Attention, adapter: Prompts) -> None:
        """``base`` is plain attention with a fused qkv."""
        super().__init__(base)
        weight = innermost(base.qkv).get_parameter("weight")
        self.heads, self.head_dim = base.num_heads, base.head_dim
        self.kind = adapter.kind
        if self.kind == "prefix":
            self.keys = nn.Parameter(nn.init.normal_(weight.new_empty(1, self.heads, adapter.count, self.head_dim)))
            self.values = nn.Parameter(weight.new_zeros(1, self.heads, adapter.count, self.head_dim))
        else:
            self.prompts = nn.Parameter(nn.init.normal_(weight.new_empty(1, adapter.count, weight.shape[1])))
            self.gate = nn.Parameter(weight.new_zeros(self.heads, 1, 1))

    def forward(
        self, x: Float[Tensor, "b n d"], attn_mask: Bool[Tensor, "b 1 1 n"] | None = None, queries: int | None = None
    ) -> Float[Tensor, "b q d"]:
        """Attend to the tokens, and apart to the prompts."""
        q, k, v = self._heads(x)
        q = q if queries is None else q[:, :, :queries]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask) + self._from_prompts(q)
        out = self.base.proj(rearrange(out, "b h n d -> b n (h d)"))
        return self.base.proj_drop(out) if isinstance(self.base, vision_transformer.Attention) else out

    def _heads(self, x: Float[Tensor, "b n d"]) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = rearrange(self.base.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        if isinstance(self.base, vision_transformer.Attention):
            return self.base.q_norm(q), self.base.k_norm(k), v
        return q, k, v

    def _from_prompts(self, q: Float[Tensor, "b h n e"]) -> Float[Tensor, "b h n e"]:
        if self.kind == "prefix":
            keys: Tensor = self.keys
            values: Tensor = self.values
        else:
            _, keys, values = self._heads(self.prompts)
        many = (q.shape[0], -1, -1, -1)
        answer = F.scaled_dot_product_attention(q, keys.to(q.dtype).expand(many), values.to(q.dtype).expand(many))
        return answer if self.kind == "prefix" else self.gate.to(q.dtype) * answer

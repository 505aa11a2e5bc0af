"""Where a ViT's last block looks."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Literal

import torch
from einops import rearrange
from jaxtyping import Float  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from timm.models import vision_transformer
from torch import Tensor

from geomed.backbones.block import AttentionBranch
from geomed.backbones.vit import ViT

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from geomed.backbones.backbone import Backbone
    from geomed.pixels import Pixels


@torch.no_grad()
def attention_maps(
    backbone: Backbone, pixels: Pixels, *, asking: Literal["class", "mean"] = "class"
) -> Float[Tensor, "b h w"] | None:
    """The share of its attention that each patch gets in the last block, mean of the heads.

    What is shown is the network as it runs, adapters included: its own forward pass is run, and queries and keys are
    taken where it makes them. Register tokens and prompts among the tokens take part in the softmax and are left out of
    the map, which therefore sums to less than 1; prompts that attention reads apart from the tokens are not in it.

    The class token's attention in the last block is drawn as in Caron et al. (ICCV 2021, section 4.2.2 and figure 1),
    there for each head; nothing is said of the blocks before (Abnar and Zuidema, ACL 2020, follow it through all).

    Args:
        backbone: in the mode that is wanted.
        pixels: single images that it reads, on its device.
        asking: whose attention: the class token's, or the mean of all patches', for heads that read their mean.

    Returns:
        For each patch of the padded images; None where the backbone is no ViT, has no class token that could ask, or
        its last block has no plain attention with a fused qkv.
    """
    if not isinstance(backbone, ViT) or (asking == "class" and not backbone.spec.class_token):
        return None
    made: list[tuple[vision_transformer.Attention, Tensor]] = []
    with ExitStack() as hooks:
        branches = [module for module in backbone.blocks[-1].modules() if isinstance(module, AttentionBranch)]
        for module in (module for branch in branches for module in branch.attn.modules()):
            if type(module) is vision_transformer.Attention:
                hooks.enter_context(module.get_submodule("qkv").register_forward_hook(_keep(module, made)))
        (tokens,) = backbone(pixels)
    if not made:
        return None
    attention, fused = made[0]  # an adapter may ask for more of the same qkv afterwards, for its prompts
    q, k, _ = rearrange(fused, "b n (three h d) -> three b h n d", three=3, h=attention.num_heads)
    q, k = attention.q_norm(q), attention.k_norm(k)
    rows, columns = tokens.grid
    patches = rows * columns
    q = q[:, :, :1] if asking == "class" else q[:, :, -patches:]
    scores = q @ k.transpose(-2, -1) * attention.scale
    shares = scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(-1)
    return rearrange(shares[..., -patches:].mean((1, 2)), "b (h w) -> b h w", h=rows)


def _keep(
    attention: vision_transformer.Attention, made: list[tuple[vision_transformer.Attention, Tensor]]
) -> Callable[[nn.Module, object, Tensor], None]:
    def hook(_module: nn.Module, _given: object, answer: Tensor) -> None:
        made.append((attention, answer))

    return hook

"""Any timm VisionTransformer, DINOv2 with registers among them, with any bands and any image size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import timm
import torch
from jaxtyping import Bool, Float, Int  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from timm import layers as timm_layers
from timm.layers import PatchEmbed
from timm.models import vision_transformer
from torch import Tensor, nn

from geomed.backbones.backbone import Backbone, block_numbers, pad_to_patches
from geomed.backbones.block import AttentionBranch, Block, Mlp, MlpBranch, WholeBlock, recomputed
from geomed.backbones.inputs import Inputs  # noqa: TC001  (jsonargparse reads the annotations)
from geomed.tokens import Tokens, TokenSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geomed.pixels import Pixels


@dataclass(frozen=True, kw_only=True)
class ViTSize:
    """Widths and depths other than the model's own, for weights of one's own making."""

    dim: int
    """Width of a token."""

    depth: int
    """Blocks."""

    heads: int
    """Attention heads."""

    patch: int
    """Side of a patch in pixels."""

    mlp_ratio: float = 4.0
    """Hidden width of the MLPs over ``dim``."""

    norm_eps: float = 1e-6
    """What the norms add to the variance."""

    def __post_init__(self) -> None:
        """Refuse sizes that mean nothing."""
        if min(self.dim, self.depth, self.heads, self.patch) < 1 or self.dim % self.heads:
            raise ValueError(
                "dim, depth, heads and patch must be positive and heads must divide dim, "
                f"not {self.dim}, {self.depth}, {self.heads} and {self.patch}"
            )


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """Patches that a network is not to see, each replaced by one token that says so."""

    mask: Bool[Tensor, "b h w"]
    """True where a patch is hidden."""

    token: Float[Tensor, " d"]
    """What stands in its place, before its position is added."""


class ViT(Backbone):
    """A timm VisionTransformer, whose blocks run here as `Tokens → Tokens`.

    The features equal those of timm's ``forward_intermediates(norm=True)``. Weights, patch embedding, positions and
    attention are timm's own modules.
    """

    def __init__(
        self,
        name: str,
        *,
        inputs: Inputs,
        pretrained: bool = False,
        checkpoint: str | None = None,
        image_size: int | tuple[int, int] | None = None,
        drop_path: float = 0.0,
        checkpoint_blocks: bool = False,
        size: ViTSize | None = None,
    ) -> None:
        """Build it, with random weights unless told otherwise.

        Args:
            name: timm's name, such as ``vit_small_patch14_reg4_dinov2.lvd142m``.
            inputs: bands and normalisation. A band called red, green or blue (or B04, B03, B02) starts from that filter
                of the first convolution, any other from their mean; all are scaled by 3 / bands, so that activations
                keep their size.
            pretrained: fetch timm's weights.
            checkpoint: a file of weights in timm's key layout, instead of fetching.
            image_size: the size that positions are laid out for; None takes the model's own. Images of other sizes
                interpolate them.
            drop_path: stochastic depth.
            checkpoint_blocks: in training, keep only what passes between blocks and compute each again for its
                gradients: about a third more time for a fraction of the memory.
            size: widths and depths to build ``name`` with in place of its own.

        Raises:
            ValueError: timm has no such model, or it is no VisionTransformer.
        """
        super().__init__()
        if not timm.is_model(name):
            near = ", ".join(timm.list_models(f"*{name.partition('.')[0]}*")[:5]) or "none alike"
            raise ValueError(f"timm has no model {name!r} (alike: {near}); see timm.list_models('vit*')")
        options: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
        if size is not None:
            options |= {"embed_dim": size.dim, "depth": size.depth, "num_heads": size.heads}
            options |= {"patch_size": size.patch, "mlp_ratio": size.mlp_ratio}
            options["norm_layer"] = partial(nn.LayerNorm, eps=size.norm_eps)
        try:
            model = timm.create_model(
                name,
                pretrained=pretrained,
                checkpoint_path=checkpoint or "",
                num_classes=0,
                dynamic_img_size=True,
                drop_path_rate=drop_path,
                **options,
            )
        except TypeError as error:  # other families do not know dynamic_img_size
            raise ValueError(f"{name} is no VisionTransformer of timm ({error}); choose one, such as vit_*") from error
        if not isinstance(model, vision_transformer.VisionTransformer) or type(model.patch_embed) is not PatchEmbed:
            raise ValueError(
                f"{name} is a {type(model).__name__} on {type(model.patch_embed).__name__}; this backbone wraps timm's "
                "VisionTransformer with a plain patch embedding, such as vit_* or deit3_*"
            )
        self.name = name
        self.inputs = inputs
        _set_bands(model.patch_embed, inputs.bands)
        model.patch_embed.__class__ = _HidingPatchEmbed
        self.blocks = nn.ModuleList(_tokens_block(block) for block in model.blocks)
        self.norm = model.norm
        model.blocks = nn.Sequential()
        model.norm = nn.Identity()
        model.head_drop = model.fc_norm = model.head = nn.Identity()
        model.attn_pool, model.global_pool = None, ""
        self.stem = model  # what is left of it: patch embedding, prefix tokens, positions
        self.prefix: int = model.num_prefix_tokens
        self.checkpoint_blocks = checkpoint_blocks
        self.spec = TokenSpec(
            dim=model.embed_dim, patch=model.patch_embed.patch_size[0], class_token=model.has_class_token
        )

    def forward(
        self,
        pixels: Pixels,
        *,
        depths: Sequence[int] = (-1,),
        hidden: Hidden | None = None,
        kept: Int[Tensor, "b k"] | None = None,
    ) -> tuple[Tokens, ...]:
        """Images → prefix and patch tokens, normalised by the last norm, after each block asked for.

        Args:
            pixels: single images of any size. Pixels that are not valid hold each band's mean, and sides that the patch
                does not divide are padded with it.
            depths: numbers of blocks.
            hidden: patches to replace by a token (iBOT, Zhou et al., ICLR 2022).
            kept: the patches of each image that are read at all, row by row from 0; the grid of the tokens is then a
                row of so many (MAE, He et al., CVPR 2022). Adapters that need places do not work on it.

        Raises:
            ValueError: the pixels are a series, or their bands are not this backbone's.
        """
        wanted = block_numbers(depths, len(self.blocks))
        tokens = self._embedded(pixels, hidden)
        if kept is not None:
            rows = torch.arange(len(kept), device=kept.device)[:, None]
            data = torch.cat((tokens.data[:, : self.prefix], tokens.patches()[rows, kept]), 1)
            tokens = Tokens(data, (kept.shape[1],), self.prefix)
        seen: dict[int, Tokens] = {}
        for number, block in enumerate(self.blocks):
            tokens = recomputed(block, tokens) if self.checkpoint_blocks and self.training else block(tokens)
            if number in wanted:
                seen[number] = tokens.replace(self.norm(tokens.data))
            if number == max(wanted):
                break
        return tuple(seen[number] for number in wanted)

    def _embedded(self, pixels: Pixels, hidden: Hidden | None) -> Tokens:
        """Prefix and patch tokens before the first block."""
        if pixels.values.ndim != 4:
            raise ValueError(
                f"a ViT reads single images [B, C, H, W], not {tuple(pixels.values.shape)}; "
                "choose one date, or take TSViT for series"
            )
        values = self.inputs(pixels.values)
        if pixels.valid is not None:
            values = torch.where(pixels.valid[:, None], values, 0)  # also keeps NaN out
        values = pad_to_patches(values, self.spec.patch)
        grid = (values.shape[-2] // self.spec.patch, values.shape[-1] // self.spec.patch)
        if hidden is not None and tuple(hidden.mask.shape[1:]) != grid:
            raise ValueError(
                f"the mask of hidden patches must be [B, {grid[0]}, {grid[1]}] for these images, not "
                f"{tuple(hidden.mask.shape)}; make it for this grid"
            )
        return Tokens(self.stem(values if hidden is None else _PartlyHidden(values, hidden)), grid, self.prefix)


class _PartlyHidden(NamedTuple):
    """What goes into a stem in which some patches are replaced; all that it does with it is to embed it first."""

    values: Tensor
    hidden: Hidden


class _HidingPatchEmbed(PatchEmbed):
    """timm's patch embedding, which can leave patches out; the names of its weights stay as they are."""

    def forward(self, x: Tensor | _PartlyHidden) -> Tensor:
        """Images → patches [B, h, w, D]."""
        if isinstance(x, Tensor):
            return super().forward(x)
        patches = super().forward(x.values)
        return torch.where(x.hidden.mask[..., None], x.hidden.token.to(patches.dtype), patches)


def _tokens_block(block: nn.Module) -> nn.Module:
    if type(block) is not vision_transformer.Block:
        return WholeBlock(block)
    part = block.get_submodule
    return Block(
        AttentionBranch(part("norm1"), part("attn"), _chain(part("ls1"), part("drop_path1"))),
        MlpBranch(part("norm2"), _frugal(part("mlp")), _chain(part("ls2"), part("drop_path2"))),
    )


def _frugal(mlp: nn.Module) -> nn.Module:
    """A plain MLP of timm's as ours, which computes its GELU again instead of keeping it; any other as it is."""
    part = mlp.get_submodule
    if (
        type(mlp) is not timm_layers.Mlp
        or not isinstance(part("norm"), nn.Identity)
        or any(isinstance(module, nn.Dropout) and module.p for module in mlp.modules())
    ):
        return mlp
    return Mlp(part("fc1"), part("act"), part("fc2"))


def _chain(*modules: nn.Module) -> nn.Module:
    real = [module for module in modules if not isinstance(module, nn.Identity)]
    return nn.Identity() if not real else real[0] if len(real) == 1 else nn.Sequential(*real)


_COLOURS = {"red": 0, "B04": 0, "green": 1, "B03": 1, "blue": 2, "B02": 2}


@torch.no_grad()
def _set_bands(embed: PatchEmbed, bands: tuple[str, ...]) -> None:
    """Give the first convolution one input per band, from its three colour filters."""
    if tuple(_COLOURS.get(band, -1) for band in bands) == (0, 1, 2):
        return
    old = embed.proj
    filters = torch.cat((old.weight, old.weight.mean(1, keepdim=True)), 1)
    choice = [_COLOURS.get(band, 3) for band in bands]
    new = nn.Conv2d(
        len(bands), old.out_channels, old.kernel_size, old.stride, bias=old.bias is not None, dtype=old.weight.dtype
    )
    new.weight.copy_(filters[:, choice] * (3 / len(bands)))
    if old.bias is not None and new.bias is not None:
        new.bias.copy_(old.bias)
    embed.proj = new

"""Masked autoencoding: see a quarter of the patches, draw the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor, nn

from geomed.adapters.adapter import attach, merge
from geomed.adapters.explora import ExPLoRA
from geomed.backbones.backbone import whole
from geomed.backbones.block import plain_block
from geomed.backbones.weights import load_all, read_weights
from geomed.pixels import Pixels
from geomed.tasks.objective import LearningGroup, Objective, Outcome
from geomed.tokens import Tokens

if TYPE_CHECKING:
    from geomed.backbones.vit import ViT
    from geomed.tasks.objective import Views


@dataclass(frozen=True, kw_only=True)
class DecoderSize:
    """How large the network is that draws the patches; it is thrown away afterwards."""

    dim: int = 512
    """Width of a token."""

    depth: int = 8
    """Blocks."""

    heads: int = 16
    """Attention heads."""

    def __post_init__(self) -> None:
        """Refuse sizes that mean nothing."""
        if min(self.dim, self.depth, self.heads) < 1 or self.dim % self.heads:
            raise ValueError(f"dim, depth and heads must be positive and heads divide dim, not {self}")
        if self.dim % 4:
            raise ValueError(f"dim must be a multiple of 4, for its positions are sines and cosines, not {self.dim}")


@dataclass(frozen=True, kw_only=True)
class TrainedDecoder:
    """A decoder that an earlier run left, and what of it goes on training (ExPLoRA, section 4.1)."""

    path: str
    """The ``objective.safetensors`` of that run."""

    rank: int | None = 8
    """Width of the updates of each q and v, besides which the norms train; 0 makes no updates, and with None all of the
    decoder trains."""

    alpha: float = 1.0
    """They are scaled by alpha / rank."""

    prediction: bool = False
    """Train the last Linear too: for bands that the decoder was not made for it starts anew, so it has to."""

    @property
    def adapter(self) -> ExPLoRA | None:
        """What trains in it; None: all."""
        if self.rank is None:
            return None
        return ExPLoRA(blocks=(), rank=self.rank, alpha=self.alpha, class_token=False)


class MAE(Objective):
    """Masked autoencoding (He et al., CVPR 2022, sections 3 and 4.1; Cong et al., NeurIPS 2022, for many bands).

    The backbone reads some patches of each image. A light decoder gets what it says of them, a mask token for each
    other, positions, and draws the pixels of the others. The loss is the mean squared error of these, each patch
    normalised to mean 0 and variance 1. Pixels that are not valid are neither asked for nor counted.

    A decoder made anew trains whole. One that an earlier run left is frozen but for its norms and low-rank updates of q
    and v, as in ExPLoRA.
    """

    def __init__(
        self,
        *,
        mask: float = 0.75,
        normalise: bool = True,
        decoder: DecoderSize = DecoderSize(),
        trained_decoder: TrainedDecoder | None = None,
        rate: float = 1.0,
    ) -> None:
        """Choose the settings; the decoder is made by `bind`.

        Args:
            mask: share of the patches that are hidden.
            normalise: bring each patch to mean 0 and variance 1 before it is compared.
            decoder: its size.
            trained_decoder: where to take it from; None makes one.
            rate: learning rate of the decoder over that of the backbone.

        Raises:
            ValueError: a share or a rate that means nothing.
        """
        super().__init__()
        if not 0 < mask < 1 or rate <= 0:
            raise ValueError(f"mask must lie between 0 and 1 and rate be positive, not {mask} and {rate}")
        self.mask, self.normalise, self.size, self.rate = mask, normalise, decoder, rate
        self.trained_decoder = trained_decoder
        self.decoder: Decoder | None = None

    def bind(self, backbone: ViT) -> None:
        """Make or load the decoder.

        Raises:
            ValueError: the file holds another decoder, or an adapter needs patches on their grid.
        """
        _refuse_places(backbone)
        self._widths = backbone.spec.dim, len(backbone.inputs.bands) * backbone.spec.patch**2
        self.decoder = Decoder(self.size, *self._widths)
        if self.trained_decoder is not None:
            _continue(self.decoder, self.trained_decoder)

    def forward(self, backbone: ViT, views: Views, *, generator: torch.Generator, done: float) -> Outcome:
        """The error of the pixels that were hidden; the first global crop is read, others are not.

        Raises:
            ValueError: the objective is not bound, or nothing in the batch can be learned from.
        """
        if len(views.wide) != 1 or views.small:
            raise ValueError(
                f"masked autoencoding reads one crop of each image, not {len(views.wide)} and {len(views.small)} local "
                "ones; set count 1 and local 0 of crops"
            )
        guess = self._guess(backbone, views.wide[0], generator)
        target = guess.target
        if self.normalise:
            mean, deviation = guess.statistics()
            target = (target - mean) / deviation
        weight = (guess.weight * guess.hidden[..., None]).to(target.dtype)
        loss = ((guess.drawn.float() - target).square() * weight).sum() / weight.sum().clamp(min=1)
        return Outcome(loss=loss, features=guess.seen.patches().detach().float().mean(1))

    @torch.no_grad()
    def pictures(
        self, backbone: ViT, pixels: Pixels, generator: torch.Generator
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """What was seen, NaN elsewhere, and the same with what was drawn there, in the unit of the pixels.

        Where patches are normalised each gets back its own mean and spread, which the network did not see.
        """
        guess = self._guess(backbone, pixels, generator)
        drawn = guess.drawn.float()
        if self.normalise:
            mean, deviation = guess.statistics()
            drawn = drawn * deviation + mean
        seen = torch.where(guess.hidden[..., None], torch.nan, guess.target)
        both = (seen, torch.where(guess.hidden[..., None], drawn, guess.target))
        height, width = pixels.size
        patch, (rows, _) = backbone.spec.patch, guess.grid
        mean, std = backbone.inputs.mean[:, None, None], backbone.inputs.std[:, None, None]
        pattern = "b (h w) (c p q) -> b c (h p) (w q)"
        images = (rearrange(one, pattern, h=rows, p=patch, q=patch)[..., :height, :width] for one in both)
        first, second = (image * std + mean for image in images)
        return first, second

    def _guess(self, backbone: ViT, pixels: Pixels, generator: torch.Generator) -> _Guess:
        """Hide patches, read the others, draw all."""
        if self.decoder is None:
            raise ValueError("this MAE has no decoder yet; bind it to a backbone first")
        patch, bands = backbone.spec.patch, len(backbone.inputs.bands)
        target, valid = _patches(backbone.inputs(pixels.values), pixels.valid, patch)
        grid = (-(-pixels.size[0] // patch), -(-pixels.size[1] // patch))
        order = random_order(valid.any(-1), generator)
        count = max(1, round((1 - self.mask) * target.shape[1]))
        if count == target.shape[1]:
            raise ValueError(
                f"of {count} patches a share of {self.mask} hides none, so that nothing is learned; take larger crops, "
                "or hide more"
            )
        kept = order[:, :count].sort(1).values
        (seen,) = backbone(pixels, kept=kept)
        hidden = torch.ones(valid.shape[:2], dtype=torch.bool, device=valid.device).scatter(1, kept, value=False)
        return _Guess(
            grid=grid,
            target=target,
            weight=valid.repeat(1, 1, bands),
            hidden=hidden,
            seen=seen,
            drawn=self.decoder(seen, kept, grid),
        )

    def kept(self) -> dict[str, Tensor]:
        """The decoder, low-rank updates folded into its weights."""
        if self.decoder is None:
            return {}
        plain = Decoder(self.size, *self._widths)  # FSDP's modules cannot be copied
        if self.trained_decoder is not None and self.trained_decoder.adapter is not None:
            attach(plain, self.trained_decoder.adapter)
        plain.load_state_dict({name: whole(value) for name, value in self.decoder.state_dict().items()})
        merge(plain)
        return {f"decoder.{name}": value for name, value in plain.state_dict().items()}

    def groups(self) -> tuple[LearningGroup, ...]:
        """The decoder."""
        if self.decoder is None:
            return ()
        trained = [parameter for parameter in self.decoder.parameters() if parameter.requires_grad]
        return (LearningGroup(name="decoder", parameters=trained, rate=self.rate),)


@dataclass(frozen=True, kw_only=True)
class _Guess:
    """What a network made of images of which it saw a part."""

    grid: tuple[int, int]
    """Patches in rows and columns."""

    target: Float[Tensor, "b n v"]
    """What each patch holds, band by band, normalised as the backbone reads it."""

    weight: Bool[Tensor, "b n v"]
    """Which of that is valid."""

    hidden: Bool[Tensor, "b n"]
    """Which patches were not seen."""

    seen: Tokens
    """The backbone's tokens of the others."""

    drawn: Float[Tensor, "b n v"]
    """What the decoder says."""

    def statistics(self) -> tuple[Float[Tensor, "b n 1"], Float[Tensor, "b n 1"]]:
        """Mean and standard deviation (that of a sample, as published) of what is valid in each patch."""
        weight = self.weight.to(self.target.dtype)
        count = weight.sum(-1, keepdim=True)
        mean = (self.target * weight).sum(-1, keepdim=True) / count.clamp(min=1)
        variance = ((self.target - mean).square() * weight).sum(-1, keepdim=True) / (count - 1).clamp(min=1)
        return mean, (variance + 1e-6).sqrt()


class Decoder(nn.Module):
    """A few transformer blocks on all patches, the hidden ones a learned token (He et al., CVPR 2022, section 3)."""

    def __init__(self, size: DecoderSize, dim: int, values: int) -> None:
        """``dim`` is the width of the backbone's tokens, ``values`` what each patch holds."""
        super().__init__()
        self.embed = nn.Linear(dim, size.dim)
        self.mask_token = nn.Parameter(torch.empty(size.dim))
        self.blocks = nn.ModuleList(
            plain_block(size.dim, heads=size.heads, head_dim=size.dim // size.heads, hidden=4 * size.dim)
            for _ in range(size.depth)
        )
        self.norm = nn.LayerNorm(size.dim)
        self.predict = nn.Linear(size.dim, values)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, seen: Tokens, kept: Int[Tensor, "b k"], grid: tuple[int, int]) -> Float[Tensor, "b n values"]:
        """What was seen, and where → the values of all patches."""
        given = self.embed(seen.data)
        count = math.prod(grid)
        everywhere = self.mask_token.to(given.dtype).expand(len(given), count, -1)
        index = kept[..., None].expand(-1, -1, given.shape[-1])
        patches = everywhere.scatter(1, index, given[:, seen.prefix :])
        patches = patches + positions(grid, given.shape[-1]).to(patches)
        tokens = Tokens(torch.cat((given[:, : seen.prefix], patches), 1), grid, seen.prefix)
        for block in self.blocks:
            tokens = block(tokens)
        return self.predict(self.norm(tokens.patches()))


def random_order(useful: Bool[Tensor, "b n"], generator: torch.Generator) -> Int[Tensor, "b n"]:
    """The patches of each image in a random order, those in which nothing is valid last."""
    drawn = torch.rand(useful.shape, generator=generator).to(useful.device)
    return (drawn + (~useful).to(drawn.dtype)).argsort(1)


def positions(grid: tuple[int, int], dim: int) -> Float[Tensor, "n dim"]:
    """Fixed sines and cosines of row and column (He et al.'s decoder; Vaswani et al. 2017, section 3.5)."""
    rates = 10_000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    parts = [wave(place.reshape(-1, 1) * rates) for place in (columns, rows) for wave in (torch.sin, torch.cos)]
    return torch.cat(parts, 1).float()


def _patches(
    values: Float[Tensor, "b c h w"], valid: Bool[Tensor, "b h w"] | None, patch: int
) -> tuple[Float[Tensor, "b n cpp"], Bool[Tensor, "b n pp"]]:
    """Values of each patch, band by band, and which of its pixels are valid; sides are filled up as the ViT does."""
    if valid is None:
        valid = torch.ones_like(values[:, 0], dtype=torch.bool)
    room = (0, -values.shape[-1] % patch, 0, -values.shape[-2] % patch)
    values, valid = F.pad(torch.where(valid[:, None], values, 0), room), F.pad(valid, room)
    pattern = "b c (h p) (w q) -> b (h w) (c p q)"
    pixels = rearrange(valid[:, None], pattern, p=patch, q=patch)
    return rearrange(values, pattern, p=patch, q=patch).float(), pixels


@torch.no_grad()
def _refuse_places(backbone: ViT) -> None:
    """Make sure that the backbone and what is attached to it work on some patches of an image."""
    side = 2 * backbone.spec.patch
    blank = backbone.inputs.mean.expand(1, side, side, -1).movedim(-1, 1)
    training = backbone.training
    backbone.eval()  # nothing random is drawn
    try:
        backbone(Pixels(values=blank), kept=torch.zeros(1, 1, dtype=torch.long, device=blank.device))
    except ValueError as error:
        raise ValueError(
            f"masked autoencoding leaves patches out, and what is attached needs all of them on their grid ({error}); "
            "attach ExPLoRA, LoRA or another that works token by token, or take DINOv2"
        ) from error
    finally:
        backbone.train(training)


def _continue(decoder: Decoder, trained: TrainedDecoder) -> None:
    """Load what an earlier run left, and freeze it but for norms and low-rank updates."""
    state = read_weights(trained.path)
    state = {name.removeprefix("decoder."): value for name, value in state.items() if name.startswith("decoder.")}
    if trained.prediction:
        fresh = {name: value for name, value in decoder.state_dict().items() if name.startswith("predict.")}
        state = {name: value for name, value in state.items() if not name.startswith("predict.")} | fresh
    load_all(decoder, state, where=f"{trained.path} (decoder)")
    if trained.adapter is not None:
        attach(decoder, trained.adapter)
        decoder.predict.requires_grad_(trained.prediction)

"""TSViT: a transformer over the dates of each place, then over the places of each class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor, nn

from geomed.backbones.backbone import Backbone, block_numbers, pad_to_patches
from geomed.backbones.block import plain_block
from geomed.backbones.dates import DateCode
from geomed.backbones.inputs import Inputs  # noqa: TC001  (jsonargparse reads the annotations)
from geomed.tokens import Tokens, TokenSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from geomed.backbones.block import Block
    from geomed.pixels import Pixels


@dataclass(frozen=True, kw_only=True)
class TSViTSize:
    """Widths and depths; the defaults are those of the paper's PASTIS model (1,657,476 parameters with its head)."""

    dim: int = 128
    """Width of a token."""

    heads: int = 4
    """Attention heads."""

    head_dim: int = 32
    """Width of a head."""

    temporal_depth: int = 4
    """Blocks over the dates."""

    spatial_depth: int = 4
    """Blocks over the places."""

    mlp_ratio: int = 4
    """Hidden width of the MLPs over ``dim``."""


class Learned(nn.Module):
    """A learned constant, as a module, so that an adapter can find and wrap it."""

    def __init__(self, *shape: int) -> None:
        """Drawn from N(0, 1), as in the reference code."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape))

    def forward(self) -> Tensor:
        """The constant."""
        return self.weight


class Encoder(nn.Module):
    """Blocks and the norm after them."""

    def __init__(self, size: TSViTSize, depth: int, *, axes: int) -> None:
        """``depth`` blocks over a grid of so many axes."""
        super().__init__()
        self.blocks = nn.ModuleList(
            plain_block(size.dim, heads=size.heads, head_dim=size.head_dim, hidden=size.mlp_ratio * size.dim, axes=axes)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(size.dim)


class TSViT(Backbone):
    """Temporo-spatial vision transformer for image series (Tarasiou, Chavez and Zafeiriou, CVPR 2023).

    The dates of each patch are read together with one token per class; what the class tokens have gathered then forms
    one map of tokens per class, read by the spatial encoder. Output: tokens of width ``num_classes * dim``, the classes
    side by side, on the grid of patches (`TokenSpec.groups` tells how many).

    Exact against the reference: dates that are not valid are left out of attention, and dropped before any
    computation where the whole sample misses them; the last temporal block is computed for the class tokens alone.
    """

    def __init__(
        self,
        *,
        inputs: Inputs,
        num_classes: int,
        size: TSViTSize = TSViTSize(),
        patch: int = 2,
        image_size: int = 24,
        space_token: bool = False,
        years: bool = False,
        attend_padding: bool = False,
    ) -> None:
        """Build it with random weights.

        Args:
            inputs: bands and normalisation.
            num_classes: class tokens.
            size: widths and depths.
            patch: side of a patch in pixels.
            image_size: side in pixels at which positions are learned; smaller images use a part of them, larger ones
                interpolate them (bicubic).
            space_token: adds a prefix token to each class's map, for classifying whole images (section 3.4).
            years: tells the same day of different years apart, for series longer than a year.
            attend_padding: reads dates that are not valid as zeros at row 0 of the date table, which is what released
                checkpoints saw in training; for comparisons only.

        Raises:
            ValueError: a size that is not positive, or an image that the patch does not divide.
        """
        super().__init__()
        if min(num_classes, patch, image_size) < 1 or image_size % patch:
            raise ValueError(
                f"num_classes, patch and image_size must be positive and the patch must divide the image, "
                f"not {num_classes}, {patch} and {image_size}"
            )
        self.inputs = inputs
        self.spec = TokenSpec(dim=num_classes * size.dim, patch=patch, groups=num_classes)
        self.patch = nn.Linear(patch * patch * len(inputs.bands), size.dim)
        self.dates = DateCode(size.dim, years=years)
        self.class_tokens = Learned(1, num_classes, size.dim)
        self.temporal = Encoder(size, size.temporal_depth, axes=1)
        self.space_token = Learned(1, 1, size.dim) if space_token else None
        self.position = Learned(1, (image_size // patch) ** 2, size.dim)
        self.spatial = Encoder(size, size.spatial_depth, axes=2)
        self.attend_padding = attend_padding
        self._learned_grid = (image_size // patch, image_size // patch)

    def forward(self, pixels: Pixels, *, depths: Sequence[int] = (-1,)) -> tuple[Tokens, ...]:
        """Series → one token of all classes per patch, after each spatial block asked for.

        Args:
            pixels: series of any length and size; sides that the patch does not divide are padded.
            depths: numbers of spatial blocks.

        Raises:
            ValueError: the pixels are no series, or their bands are not this backbone's.
        """
        if pixels.days is None:
            raise ValueError("TSViT reads series [B, T, C, H, W] with days; for single images choose another backbone")
        values = self.inputs(pixels.values)
        valid = pixels.valid
        if valid is not None:
            pixel_valid = valid[..., None, None] if valid.ndim == 2 else valid
            values = torch.where(pixel_valid[:, :, None], values, 0)  # also keeps NaN out of masked attention
        grid = (-(-pixels.size[0] // self.spec.patch), -(-pixels.size[1] // self.spec.patch))
        values = pad_to_patches(values, self.spec.patch)
        if valid is not None and valid.ndim == 4:
            valid = pad_to_patches(valid, self.spec.patch, fill=True)
            valid = reduce(valid, "b t (h p) (w q) -> b t (h w)", "min", p=self.spec.patch, q=self.spec.patch)
        return self._spatial(self._temporal(values, pixels.days, valid), grid, depths)

    def _temporal(
        self, values: Float[Tensor, "b t c h w"], days: Int[Tensor, "b t"], valid: Bool[Tensor, "b t *n"] | None
    ) -> Float[Tensor, "b n k d"]:
        """Normalised series → what each class token has gathered at each patch."""
        if valid is None:
            return self._gather(values, days, None)
        observed = valid if valid.ndim == 2 else valid.any(-1)
        if self.attend_padding:
            return self._gather(values, days, None, observed)
        valid = valid if valid.ndim == 3 else valid[..., None]
        if torch.compiler.is_compiling():  # data-dependent shapes do not compile: mask instead of dropping dates
            return self._gather(values, days, valid, observed)
        parts: list[Tensor] = []
        order: list[Tensor] = []
        for rows, kept, masked in _buckets(observed, valid):
            take = (rows[:, None], kept)
            parts.append(self._gather(values[take], days[take], valid[take] if masked else None, observed[take]))
            order.append(rows)
        return parts[0] if len(parts) == 1 else torch.cat(parts)[torch.cat(order).argsort()]

    def _gather(
        self,
        values: Float[Tensor, "b t c h w"],
        days: Int[Tensor, "b t"],
        valid: Bool[Tensor, "b t #n"] | None,
        observed: Bool[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b n k d"]:
        patch, classes = self.spec.patch, self.class_tokens()
        patches = rearrange(values, "b t c (h p) (w q) -> b (h w) t (p q c)", p=patch, q=patch)
        code = self.dates(days, observed)[:, None]
        mask = None
        if valid is not None:
            mask = rearrange(valid, "b t n -> b n t").expand(patches.shape[:3])
            mask = F.pad(mask, (classes.shape[1], 0), value=True)
        step = _at_once(patches, patches.shape[0] * (classes.shape[1] + patches.shape[2]) * code.shape[-1])
        parts = torch.split(patches, step, 1)
        masks = [None] * len(parts) if mask is None else torch.split(mask, step, 1)
        pairs = zip(parts, masks, strict=True)
        return torch.cat([self._gather_some(some, code, classes, each) for some, each in pairs], 1)

    def _gather_some(
        self,
        patches: Float[Tensor, "b n t f"],
        code: Float[Tensor, "b 1 t d"],
        classes: Float[Tensor, "1 k d"],
        mask: Bool[Tensor, "b n k+t"] | None,
    ) -> Float[Tensor, "b n k d"]:
        """The temporal stage at some of the places."""
        count, places, dates, _ = patches.shape
        x = (self.patch(patches) + code).flatten(0, 1)
        x = torch.cat((classes.to(x.dtype).expand(x.shape[0], -1, -1), x), 1)  # len() would fix it in an export
        prefix = classes.shape[1]
        tokens = Tokens(x, (dates,), prefix)
        if mask is not None:
            mask = mask.flatten(0, 1)[:, None, None]
        last = len(self.temporal.blocks) - 1
        for number, block in enumerate(self.temporal.blocks):
            tokens = block(tokens, mask, prefix if number == last else None)
        return self.temporal.norm(tokens.data[:, :prefix]).unflatten(0, (count, places))

    def _spatial(
        self, gathered: Float[Tensor, "b n k d"], grid: tuple[int, int], depths: Sequence[int]
    ) -> tuple[Tokens, ...]:
        wanted = block_numbers(depths, len(self.spatial.blocks))
        position = self._positions(grid)
        maps = rearrange(gathered, "b n k d -> b k n d")
        step = _at_once(maps, maps[:, 0].numel())
        parts = [self._spread_some(some, position, grid, wanted) for some in torch.split(maps, step, 1)]
        prefix = 0 if self.space_token is None else 1
        return tuple(
            Tokens(rearrange(torch.cat(each, 1), "b k n d -> b n (k d)"), grid, prefix)
            for each in zip(*parts, strict=True)
        )

    def _spread_some(
        self,
        maps: Float[Tensor, "b k n d"],
        position: Float[Tensor, "1 n d"],
        grid: tuple[int, int],
        wanted: Sequence[int],
    ) -> list[Float[Tensor, "b k m d"]]:
        """The spatial stage for some of the classes, after each of the blocks wanted; m counts the space token too."""
        x = (maps + position).flatten(0, 1)
        prefix = 0
        if self.space_token is not None:
            x = torch.cat((self.space_token().to(x.dtype).expand(x.shape[0], -1, -1), x), 1)
            prefix = 1
        tokens = Tokens(x, grid, prefix)
        seen: dict[int, Tensor] = {}
        for number, block in enumerate(_up_to(self.spatial.blocks, max(wanted))):
            tokens = block(tokens)
            if number in wanted:
                seen[number] = self.spatial.norm(tokens.data).unflatten(0, maps.shape[:2])
        return [seen[number] for number in wanted]

    def _positions(self, grid: tuple[int, int]) -> Float[Tensor, "1 n d"]:
        """The learned positions for a grid of patches.

        Smaller grids take the upper left part, so that a place means the same whatever is cut off; larger ones stretch
        the whole.
        """
        position = self.position()
        if grid == self._learned_grid:
            return position
        height, width = self._learned_grid
        plane = rearrange(position, "1 (h w) d -> 1 d h w", h=height, w=width)
        reach = (max(grid[0], height), max(grid[1], width))
        if reach != self._learned_grid:
            precise = torch.promote_types(plane.dtype, torch.float32)
            plane = F.interpolate(plane.to(precise), size=reach, mode="bicubic", align_corners=False)
        plane = plane[..., : grid[0], : grid[1]]
        return rearrange(plane, "1 d h w -> 1 (h w) d").to(position.dtype)


_CACHED = 2**18


def _at_once(x: Tensor, numbers: int) -> int:
    """How many of x's slices along axis 1, of so many numbers each in the residual stream, go through a stage together.

    On a CPU as many as its cache holds: the memory of one part is then used again for the next, where large tensors
    would each be fetched from the system. (2^18 numbers were the fastest of 2^15 to 2^20.)
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return x.shape[1]
    return max(1, _CACHED // numbers)


def _up_to(blocks: nn.ModuleList, last: int) -> Iterator[Block]:
    yield from list(blocks)[: last + 1]


def _buckets(
    observed: Bool[Tensor, "b t"], valid: Bool[Tensor, "b t n"]
) -> Iterator[tuple[Int[Tensor, " s"], Int[Tensor, "s l"], bool]]:
    """Samples of (nearly) the same number of observed dates: (samples, their dates in order, whether a mask is needed).

    On a CPU lengths are told apart exactly; on a GPU they are rounded up to a multiple of eight, for fewer launches.
    """
    step = 1 if observed.device.type == "cpu" else 8
    longest = observed.shape[1]
    counts = observed.sum(1)
    full = (valid == observed[..., None]).flatten(1).all(1)
    told: list[tuple[int, bool]] = [
        (int(count), bool(whole)) for count, whole in torch.stack((counts, full), 1).tolist()
    ]
    lengths = [min(longest, max(1, -(-count // step) * step)) for count, _ in told]
    kept = (~observed).to(torch.uint8).argsort(dim=1, stable=True)
    for length in sorted(set(lengths)):
        rows = [number for number, each in enumerate(lengths) if each == length]
        masked = any(told[number][0] != length or not told[number][1] for number in rows)
        index = torch.tensor(rows, device=observed.device)
        yield index, kept[index, :length], masked

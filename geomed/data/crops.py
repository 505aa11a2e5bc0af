"""Random resized crops of single images, for pre-training without labels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from geomed.data.drawable import Drawable
from geomed.data.photometric import Photometric
from geomed.data.shuffle import count
from geomed.data.transforms import Augment, apply
from geomed.windows import Window

_TRIES = 10
_HALF = 0.5 - 1e-4  # a pixel that is half valid must count as valid however its weights are rounded


@dataclass(frozen=True, kw_only=True)
class LocalCrops:
    """Small crops, which only a student sees (DINOv2; Caron et al., ICCV 2021, section 3.1)."""

    count: int = 0
    """Crops of each image; DINOv2 takes 8."""

    size: int = 96
    """Side in pixels, a multiple of the backbone's patch: 98 where that is 14."""

    scale: tuple[float, float] = (0.05, 0.32)
    """Least and largest share of the image's area."""


@dataclass(frozen=True, kw_only=True)
class Crops:
    """Crops of one image at random places, sizes and aspects, each resized to a square.

    The defaults are MAE's (He et al., CVPR 2022, appendix A.1). DINOv2 (Oquab et al., TMLR 2024) takes ``count`` 2,
    ``scale`` 0.32 to 1, ``local`` with ``count`` 8, and ``photometric``.

    Area and aspect are drawn as torchvision's ``RandomResizedCrop.get_params`` does it: up to ten times, until the crop
    lies inside of the image, which makes the largest areas rarer; then the largest crop in the middle.
    Resizing is bicubic, as in both authors' code, with antialiasing, and by normalised convolution (Knutsson and
    Westin, CVPR 1993): pixels that are not valid have no weight, and a new pixel is valid where valid ones have at
    least half of it. What bicubic weights overshoot is cut off at each band's range in the image.
    """

    size: int = 224
    """Side of a global crop in pixels, a multiple of the backbone's patch."""

    scale: tuple[float, float] = (0.2, 1.0)
    """Least and largest share of the image's area in a global crop."""

    count: int = 1
    """Global crops of each image."""

    local: LocalCrops = field(default_factory=LocalCrops)
    """Local crops of each image."""

    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and largest width over height."""

    flip: bool = True
    """Mirror half of the crops."""

    rotate: bool = False
    """Turn each crop by a random count of quarter turns: right for images from above, wrong for most scans."""

    photometric: Photometric = field(default_factory=Photometric)
    """What may change in the values."""

    max_missing: float = 0.5
    """Share of a crop's pixels that may be not valid. A crop with more is drawn again, up to ten times in all; then the
    one with the fewest is taken."""

    def __post_init__(self) -> None:
        """Refuse sizes, shares and aspects that are none."""
        if min(self.size, self.count, self.local.size) < 1 or self.local.count < 0:
            raise ValueError(
                "size and count must be at least 1, local size at least 1 and local count at least 0, not "
                f"{self.size}, {self.count}, {self.local.size} and {self.local.count}; correct them"
            )
        for name, (low, high) in (("scale", self.scale), ("the scale of local", self.local.scale)):
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} is a least and a largest share in (0, 1], not {low} and {high}; correct it")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(
                f"ratio is a least and a largest width over height, not {self.ratio[0]} and {self.ratio[1]}; correct it"
            )
        if not 0 <= self.max_missing <= 1:
            raise ValueError(f"max_missing is a share from 0 to 1, not {self.max_missing}; correct it")

    def __call__(self, sample: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """The crops of a sample; everything random comes from ``generator``.

        Returns:
            ``global_crops`` float32 [G, C, S, S] in the sample's unit, 8-bit brightness as 0 to 1, and 0 where not
            valid; ``global_valid`` bool [G, S, S]; where there are local crops also ``local_crops`` [L, C, s, s] and
            ``local_valid`` [L, s, s].

        Raises:
            ValueError: the sample is no single image, or holds NaN where it says that it is valid.
        """
        image = _Image.of(sample)
        crops = {}
        for name, number, size, scale in (
            ("global", self.count, self.size, self.scale),
            ("local", self.local.count, self.local.size, self.local.scale),
        ):
            if number:
                cut = [self._crop(image, size, scale, generator) for _ in range(number)]
                crops[f"{name}_crops"] = torch.stack([values for values, _ in cut])
                crops[f"{name}_valid"] = torch.stack([valid for _, valid in cut])
        return crops

    def _crop(
        self, image: _Image, size: int, scale: tuple[float, float], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        values, valid = image.resized(self._region(image, scale, generator), size)
        crop = {"values": values, "valid": valid}
        crop = apply(crop, Augment(flip=self.flip, rotate=self.rotate).draw(crop, generator))
        values, valid = self.photometric(crop["values"], crop["valid"], generator), crop["valid"]
        if image.brightness and self.photometric.jitter:
            values = values.clamp(0, 1)
        return values if image.whole else torch.where(valid, values, 0), valid

    def _region(self, image: _Image, scale: tuple[float, float], generator: torch.Generator) -> Window:
        """The first of some regions that misses little enough, or the one that misses least."""
        best = _drawn(image.shape, scale, self.ratio, generator)
        for _ in range(_TRIES - 1):
            if image.missing(best) <= self.max_missing:
                break
            best = min(best, _drawn(image.shape, scale, self.ratio, generator), key=image.missing)
        return best


@dataclass(frozen=True, kw_only=True)
class _Image:
    """What all crops of a sample share."""

    stacked: Tensor
    """Values [C, H, W], 0 where not valid; where some are not, with ``valid`` as one more band."""

    valid: Tensor | None
    """[H, W]; None: all."""

    low: Tensor
    """Least valid value of each band [C, 1, 1]."""

    high: Tensor
    """Largest, likewise."""

    brightness: bool
    """The values were 8-bit and lie between 0 and 1."""

    @classmethod
    def of(cls, sample: dict[str, Tensor]) -> _Image:
        """Refuse what is no image.

        Raises:
            ValueError: a series, a volume, values of another type, NaN.
        """
        refuse_several(sample)
        values, valid = sample["values"], sample.get("valid")
        brightness = values.dtype == torch.uint8
        if not (brightness or values.is_floating_point()):
            raise ValueError(f"values are float, or uint8 of 8-bit pictures, not {values.dtype}; convert them")
        values = values.float() / 255 if brightness else values.float()
        if valid is not None and valid.all():
            valid = None
        inside = values.flatten(1) if valid is None else values[:, valid]
        if not inside.numel():
            inside = values.new_zeros(len(values), 1)
        low, high = inside.amin(1)[:, None, None], inside.amax(1)[:, None, None]
        if not (low.isfinite().all() and high.isfinite().all()):
            raise ValueError(
                "values hold NaN or infinity where they are said to be valid; mend the file, or set `valid` to False"
            )
        if valid is not None:
            values = torch.cat([torch.where(valid, values, 0), valid[None].float()])
        return cls(stacked=values, valid=valid, low=low, high=high, brightness=brightness)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.stacked.shape[-2], self.stacked.shape[-1]

    @property
    def whole(self) -> bool:
        """Every pixel is valid."""
        return self.valid is None

    def missing(self, region: Window) -> float:
        """Share of a region that is not valid."""
        if self.valid is None:
            return 0.0
        return 1 - int(self.valid[region.slices].count_nonzero()) / (region.height * region.width)

    def resized(self, region: Window, size: int) -> tuple[Tensor, Tensor]:
        """Values [C, size, size] of a region and where they are valid."""
        rows, columns = region.slices
        values = interpolate(self.stacked[None, :, rows, columns], (size, size), mode="bicubic", antialias=True)[0]
        valid = torch.ones(size, size, dtype=torch.bool)
        if not self.whole:
            weight = values[-1]
            values, valid = values[:-1] / weight.clamp(min=_HALF), weight >= _HALF
        values = values.clamp(self.low, self.high)
        return values if self.whole else torch.where(valid, values, 0), valid


class Cropped(Dataset[dict[str, Tensor]]):
    """Samples called by ``geomed.data.shuffle.Shuffle``, index and seed, and cropped."""

    def __init__(self, dataset: Dataset[dict[str, Tensor]], crops: Crops) -> None:
        """Crop the samples of a data set, and draw them first where it is a ``Drawable``."""
        self.dataset, self.crops = dataset, crops

    def __len__(self) -> int:
        return count(self.dataset)

    def __getitem__(self, called: tuple[int, int]) -> dict[str, Tensor]:
        """The crops of the sample of this index, as its seed draws them."""
        index, seed = called
        generator = torch.Generator().manual_seed(seed)
        if isinstance(self.dataset, Drawable):
            return self.crops(self.dataset.draw(index, generator), generator)
        return self.crops(self.dataset[index], generator)


def refuse_several(sample: dict[str, Tensor]) -> None:
    """Refuse a sample that is not a single image.

    Raises:
        ValueError: it is a series or a volume.
    """
    if "slices" in sample:
        raise ValueError(
            "pre-training reads single images, these samples are volumes; give their slices as images, as "
            "UnlabelledScans does"
        )
    if "days" in sample or sample["values"].ndim != 3:
        raise ValueError(
            f"pre-training reads single images, values of these samples are {list(sample['values'].shape)}, dates "
            "first; choose one date"
        )


def _drawn(
    shape: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> Window:
    """One region: its share of the area is uniform, the logarithm of its aspect too."""
    height, width = shape
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_TRIES):
        share, oblong, down, right = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        area = height * width * (scale[0] + share * (scale[1] - scale[0]))
        aspect = math.exp(low + oblong * (high - low))
        rows, columns = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < rows <= height and 0 < columns <= width:
            return Window(int(down * (height - rows + 1)), int(right * (width - columns + 1)), rows, columns)
    rows, columns = min(height, max(round(width / ratio[0]), 1)), min(width, max(round(height * ratio[1]), 1))
    return Window((height - rows) // 2, (width - columns) // 2, rows, columns)

"""Which patches are hidden from a student: rectangles."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class BlockMasks:
    """Rectangles of hidden patches (Bao et al., ICLR 2022, algorithm 1), as in the code of iBOT and DINOv2."""

    share: float = 0.5
    """Share of the global crops in which patches are hidden; at least one crop of a batch."""

    ratio: tuple[float, float] = (0.1, 0.5)
    """Lowest and highest share of the patches that are hidden in such a crop."""

    def __post_init__(self) -> None:
        """Refuse shares that mean nothing."""
        low, high = self.ratio
        if not 0 < self.share <= 1 or not 0 < low <= high < 1:
            raise ValueError(
                "share must lie in (0, 1] and ratio be two shares between 0 and 1, the lower one first, "
                f"not {self.share} and {self.ratio}; correct them"
            )

    def __call__(self, count: int, grid: tuple[int, int], generator: torch.Generator) -> Bool[Tensor, "n h w"]:
        """Masks for so many crops, True where a patch is hidden: of a masked crop at least one, and never all.

        The ratios of the masked crops come from intervals of equal length, one for each.

        Args:
            count: crops.
            grid: patches of each, rows and columns.
            generator: on the CPU.

        Raises:
            ValueError: the grid is a single patch.
        """
        if math.prod(grid) < 2:
            raise ValueError(
                f"patches can be hidden where there are two or more, not {grid[0]} x {grid[1]}; take larger crops"
            )
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        random = np.random.default_rng(seed)  # drawing single numbers with torch takes ten times as long
        masked = max(1, int(count * self.share))
        bounds = np.linspace(*self.ratio, masked + 1)
        masks = np.zeros((count, *grid), dtype=bool)
        for mask, low, high in zip(masks, bounds[:-1], bounds[1:], strict=False):
            _hide(mask, int(mask.size * random.uniform(low, high)), random)
        return torch.from_numpy(masks[random.permutation(count)])


def _hide(mask: np.ndarray, wanted: int, random: np.random.Generator) -> None:
    """Hide about so many patches, never more, by rectangles of any aspect from 0.3 to its inverse."""
    aspects = (math.log(0.3), -math.log(0.3))
    height, width = mask.shape
    wanted = max(wanted, 1)
    left, tries = wanted, 10
    while left and tries:
        tries -= 1
        area = random.uniform(min(4, left), left)  # of four patches or more, where so many are wanted
        aspect = math.exp(random.uniform(*aspects))
        tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < tall < height and 0 < wide < width):
            continue
        top, start = random.integers(height - tall + 1), random.integers(width - wide + 1)
        place = mask[top : top + tall, start : start + wide]
        new = place.size - int(place.sum())
        if 0 < new <= left:
            place[:] = True
            left, tries = left - new, 10
    if left == wanted:  # no rectangle fits into so small a grid
        mask.flat[random.integers(mask.size)] = True

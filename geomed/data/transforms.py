"""Random changes of training samples: drawn in one place, applied in another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

_SPACE = ("values", "slices", "valid", "labels")
_TIME = ("values", "days", "valid")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One drawn change of one sample."""

    flip: bool = False
    """Mirror left and right, before turning."""

    turns: int = 0
    """Quarter turns, 0 to 3."""

    dates: tuple[int, ...] | None = None
    """Indices of the dates that stay; None: all."""

    days: int = 0
    """Days by which the whole series moves in the calendar."""


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What may change a training sample; val, test and predict are never changed.

    Flips and quarter turns together reach the eight symmetries of the square with equal chance. ``read`` and ``keep``
    still say where the pixels came from, no longer how they lie.
    """

    flip: bool = True
    """Mirror half of the samples."""

    rotate: bool = True
    """Turn by a random count of quarter turns; a sample that is not square only by half turns."""

    drop_dates: float = 0.0
    """Chance of each date to be left out; one always stays."""

    shift_days: int = 0
    """Move each series by up to so many days, earlier or later: seasons differ in timing between regions and years, and
    a model that has learned one calendar by heart fails in the next (Nyborg et al., "TimeMatch", ISPRS Journal 188,
    2022)."""

    def __post_init__(self) -> None:
        """Refuse a chance that is none, and shifts that are none."""
        if not 0 <= self.drop_dates < 1:
            raise ValueError(f"drop_dates is a chance from 0 to below 1, not {self.drop_dates}; correct it")
        if not 0 <= self.shift_days <= 182:
            raise ValueError(f"shift_days is a count of days from 0 to half a year, not {self.shift_days}; correct it")

    def draw(self, sample: dict[str, Tensor], generator: torch.Generator) -> Change:
        """Draw the change of a sample; only its shape is looked at.

        Raises:
            ValueError: dates are to be dropped or shifted, and the sample is a single image.
        """
        height, width = sample["slices" if "slices" in sample else "values"].shape[-2:]
        if "days" not in sample and (self.drop_dates or self.shift_days):
            raise ValueError(
                "drop_dates and shift_days change series, these samples are single images; leave both of augment out"
            )
        flip = self.flip and bool(torch.rand((), generator=generator) < 0.5)
        turns = int(torch.randint(4, (), generator=generator)) if self.rotate else 0
        if height != width:
            turns -= turns % 2
        days = 0
        if self.shift_days:
            days = int(torch.randint(-self.shift_days, self.shift_days + 1, (), generator=generator))
        if not self.drop_dates:
            return Change(flip=flip, turns=turns, days=days)
        times = len(sample["days"])
        stay = torch.rand(times, generator=generator) >= self.drop_dates
        if not stay.any():
            stay[torch.randint(times, (), generator=generator)] = True
        return Change(flip=flip, turns=turns, dates=tuple(stay.nonzero()[:, 0].tolist()), days=days)


def apply(sample: dict[str, Tensor], change: Change) -> dict[str, Tensor]:
    """The changed sample: values, valid and labels move together."""
    changed = dict(sample)
    for key in _SPACE:
        if key in changed:
            tensor = changed[key].flip(-1) if change.flip else changed[key]
            changed[key] = tensor.rot90(change.turns, (-2, -1)).contiguous()
    if change.dates is not None:
        stay = torch.tensor(change.dates)
        for key in _TIME:
            changed[key] = changed[key][stay]
    if change.days:
        changed["days"] = changed["days"] + change.days
    return changed

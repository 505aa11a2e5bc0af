"""What enters a backbone: images in physical units with their dates and what is missing in them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor

IGNORE = 255
"""Label of a pixel whose class is unknown or that lies outside the part: it counts in no loss and no score."""


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """One batch of images or image series."""

    values: Float[Tensor, "b c h w"] | Float[Tensor, "b t c h w"]
    """Measured values in the unit of the source (Sentinel-2: surface reflectance, about 0 to 1)."""

    days: Int[Tensor, "b t"] | None = None
    """Acquisition dates of a series, whole days since 1970-01-01."""

    valid: Bool[Tensor, "b t"] | Bool[Tensor, "b t h w"] | Bool[Tensor, "b h w"] | None = None
    """Where there is an observation: False for padded dates, clouds and nodata; of single images [B, H, W]. None means
    everywhere."""

    def __post_init__(self) -> None:
        """Refuse dates or masks that do not belong to the values."""
        series = self.values.ndim == 5
        if not series and self.values.ndim != 4:
            raise ValueError(
                f"values must be [B, C, H, W] or [B, T, C, H, W], not {tuple(self.values.shape)}; "
                "add the missing axis or drop the extra one"
            )
        if series and self.days is None:
            raise ValueError("a series needs its dates: give days [B, T], whole days since 1970-01-01")
        lead = tuple(self.values.shape[:2])
        if self.days is not None and (not series or tuple(self.days.shape) != lead):
            raise ValueError(f"days must be [B, T] = {lead}, not {tuple(self.days.shape)}; give one day for each date")
        if self.days is not None and self.days.is_floating_point():
            raise ValueError(f"days must be whole numbers, not {self.days.dtype}; use days.long()")
        if self.valid is not None:
            size = tuple(self.values.shape[-2:])
            allowed = [lead, (*lead, *size)] if series else [(lead[0], *size)]
            if tuple(self.valid.shape) not in allowed:
                raise ValueError(
                    f"valid must be {' or '.join(map(str, allowed))}, not {tuple(self.valid.shape)}; "
                    f"mask {'dates or ' if series else ''}pixels"
                )
            if self.valid.dtype != torch.bool:
                raise ValueError(f"valid must be boolean, not {self.valid.dtype}; use valid.bool()")

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.values.shape[-2], self.values.shape[-1]


def day_of_year(days: Int[Tensor, ...]) -> Int[Tensor, ...]:
    """Days since 1970-01-01 → day of the year, 1 to 366, by exact integer arithmetic.

    The calendar is the proleptic Gregorian one, for any year from 0 on. Years are counted from 1 March, so that the
    leap day comes last (Hinnant, "chrono-compatible low-level date algorithms", civil_from_days).
    """
    shifted = days + 719_468  # days since 0000-03-01
    era = shifted.div(146_097, rounding_mode="floor")
    of_era = shifted - era * 146_097
    year = (of_era - of_era // 1_460 + of_era // 36_524 - of_era // 146_096) // 365
    from_march = of_era - (365 * year + year // 4 - year // 100)
    january = from_march >= 306  # January and February belong to the year that began in March before
    year = year + january.to(year.dtype)
    leap = ((year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))).to(days.dtype)
    return torch.where(january, from_march - 305, from_march + 60 + leap)

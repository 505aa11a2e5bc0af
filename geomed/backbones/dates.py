"""When a picture was taken, as a vector: one per day of the year, and one per year passed in long series."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor, nn

from geomed.pixels import day_of_year


class DayOfYear(nn.Module):
    """One learned vector per day of the year (TSViT, section 3.3), as a table plus a shared bias.

    Row 0 belongs to no day: the released checkpoints saw it at padded dates. 31 December of a leap year, day 366,
    takes the row of day 365, so that a table of 366 rows, theirs, covers every date.
    """

    rows = 366

    def __init__(self, dim: int) -> None:
        """Drawn like a Linear from one-hot days to ``dim``, which it is."""
        super().__init__()
        drawn = nn.Linear(self.rows, dim)
        self.weight = nn.Parameter(drawn.weight.detach())
        self.bias = nn.Parameter(drawn.bias.detach())

    def forward(self, row: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Rows of the table → vectors."""
        return F.embedding(row.clamp(0, self.rows - 1), self.weight.t()) + self.bias


class YearsPassed(nn.Module):
    """What tells the same day of two years apart: slow waves of the days since the first date of the series.

    The weights start at zero, so that it can be added to a trained backbone without changing it.
    """

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        """Waves of 2, 4, 8 and 16 years."""
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi / (365.25 * torch.tensor([2.0, 4.0, 8.0, 16.0])))
        self.project = nn.Linear(8, dim, bias=False)
        nn.init.zeros_(self.project.weight)

    def forward(self, days: Int[Tensor, "b t"], observed: Bool[Tensor, "b t"] | None) -> Float[Tensor, "b t d"]:
        """Absolute days, and which of them count → vectors."""
        first = days if observed is None else torch.where(observed, days, torch.iinfo(days.dtype).max)
        passed = days - first.amin(1, keepdim=True)
        if observed is not None:
            passed = torch.where(observed, passed, 0)
        phase = passed.to(self.frequencies.dtype)[..., None] * self.frequencies
        return self.project(torch.cat((phase.sin(), phase.cos()), -1).to(self.project.weight.dtype))


class DateCode(nn.Module):
    """Dates → vectors: the day of the year and, for series longer than a year, the years passed."""

    def __init__(self, dim: int, *, years: bool) -> None:
        """``years`` adds the code of the years passed."""
        super().__init__()
        self.day = DayOfYear(dim)
        self.years = YearsPassed(dim) if years else None

    def forward(self, days: Int[Tensor, "b t"], observed: Bool[Tensor, "b t"] | None) -> Float[Tensor, "b t d"]:
        """Days since 1970-01-01 → vectors; dates that are not observed take row 0."""
        row = day_of_year(days)
        code = self.day(row if observed is None else torch.where(observed, row, 0))
        return code if self.years is None else code + self.years(days, observed)

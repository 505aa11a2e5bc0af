"""An interval of a score, and how it came about."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Where the score of other patients of the same kind is expected to lie."""

    low: float
    """Lower end, NaN where there is none."""

    high: float
    """Upper end, NaN where there is none."""

    level: float
    """Its confidence, 0.95 for 95 %."""

    method: str
    """How it was computed, in a few words."""

    draws: int = 0
    """Of a bootstrap: how many resamples were drawn."""

    left_out: int = 0
    """Of a bootstrap: how many of them had no score, for want of a class, and were left out."""

    note: str = ""
    """What a reader must know about it."""

    def __post_init__(self) -> None:
        """Refuse what is no interval."""
        if not 0 < self.level < 1:
            raise ValueError(f"the level of an interval is a share, like 0.95, not {self.level}; divide percent")
        if self.low > self.high:
            raise ValueError(f"an interval is (low, high), not ({self.low}, {self.high}); swap the two")

    @property
    def known(self) -> bool:
        """Whether there is one."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def to_dict(self) -> dict[str, object]:
        """The interval as JSON can hold it: NaN becomes None."""
        told: dict[str, object] = {
            "low": self.low if math.isfinite(self.low) else None,
            "high": self.high if math.isfinite(self.high) else None,
            "level": self.level,
            "method": self.method,
        }
        if self.draws:
            told |= {"draws": self.draws, "left_out": self.left_out}
        return told | ({"note": self.note} if self.note else {})


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A score, its interval, and why there is none where there is none."""

    value: float
    """NaN where the score has no meaning."""

    interval: Interval | None = None
    """None where it was not asked for, or where there is no score."""

    reason: str = ""
    """Why the score is NaN."""

    def to_dict(self) -> dict[str, object]:
        """The score as JSON can hold it: NaN becomes None."""
        told: dict[str, object] = {"value": self.value if math.isfinite(self.value) else None}
        if self.interval is not None:
            told["interval"] = self.interval.to_dict()
        return told | ({"reason": self.reason} if self.reason else {})

    def text(self, *, percent: bool = False) -> str:
        """The score and its interval in short: ``0.871 (0.802–0.925)``; "–" stands for NaN."""
        if not math.isfinite(self.value):
            return "–"
        scale, digits = (100, 1) if percent else (1, 3)
        told = f"{scale * self.value:.{digits}f}"
        if self.interval is not None and self.interval.known:
            told += f" ({scale * self.interval.low:.{digits}f}–{scale * self.interval.high:.{digits}f})"
        return told

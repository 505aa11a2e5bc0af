"""Numbers as the page writes them, as HTML."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from geomed.evaluation.interval import Estimate, Interval
    from geomed.evaluation.proportion import Proportion


AGREE = "all draws agree"
"""What stands where an interval has no width, which says nothing of how certain a score is."""


def number(value: float, *, signed: bool = False) -> str:
    """Three decimals; a dash for NaN."""
    if not math.isfinite(value):
        return "&ndash;"
    return (f"{value:+.3f}" if signed else f"{value:.3f}").replace("-", "&minus;")


def span(interval: Interval | None, *, signed: bool = False) -> str:
    """Both ends; empty where there are none, or where they are one."""
    if interval is None or not interval.known or interval.low == interval.high:
        return ""
    return f"{number(interval.low, signed=signed)} to {number(interval.high, signed=signed)}"


def estimate(told: Estimate, *, signed: bool = False) -> str:
    """A cell's content: the value, and its interval or why there is none under it."""
    under = span(told.interval, signed=signed) or escape(told.reason)
    if not under and told.interval is not None and told.interval.known:
        under = AGREE
    return number(told.value, signed=signed) + (f' <span class="interval">{under}</span>' if under else "")


def share(told: Proportion) -> str:
    """A cell's content: the share with its interval and counts."""
    if not told.images:
        return '&ndash; <span class="interval">no case</span>'
    return f'{number(told.value)} <span class="interval">{span(told.interval)}; {told.hits:,} of {told.images:,}</span>'


def chance(p_value: float, permutations: int, *, equals: bool = False) -> str:
    """A p-value, with ``equals`` behind a sign; the least that so many permutations can give is told as such."""
    if not math.isfinite(p_value):
        return "&ndash;"
    least = 1 / (permutations + 1)
    if p_value <= least * 1.0001:
        return f"&le; {least:.2g}"
    return ("= " if equals else "") + (f"{p_value:.3f}" if p_value >= 0.001 else f"{p_value:.2g}")


def count(value: int | None) -> str:
    """With commas; a dash for what is not known."""
    return "&ndash;" if value is None else f"{value:,}"


def listed(names: list[str]) -> str:
    """Names one after the other with "and" before the last, as plain text."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)

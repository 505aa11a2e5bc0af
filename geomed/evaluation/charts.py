"""Charts as inline SVG: drawn in the page's own colours, so that they follow it from light to dark and into print."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from geomed.evaluation.svg import svg, text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from geomed.evaluation.comparison import CropSeasons, Row, Season
    from geomed.palette import Colour

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

MONTHS = (1, 32, 60, 91, 121, 152, 182, 213, 244, 274, 305, 335)
"""First days of the months in a common year; a leap day moves them by less than a stroke's width."""


def methods_chart(rows: Sequence[Row], *, references: Sequence[Row], best: str, width: int) -> str:
    """Macro F1 against trained parameters (logarithmic), one dot for each method; intervals as bars.

    Args:
        rows: the methods compared.
        references: drawn hollow; the first of them as a line across as well.
        best: name of the row to stress.
        width: of the drawing, in its own units; text is 12 of them high.
    """
    every = [*references, *rows]
    height = round(200 + 0.2 * width)
    left, right, top, bottom = 44, width - 14, 34, height - 46
    ends = [end for row in every for end in (row.macro_f1, *(row.interval or ()))]
    step, low, high = _ticks(min(ends), max(ends))

    def y(share: float) -> float:
        return bottom - (share - low) / (high - low) * (bottom - top)

    counts = [row.trained_parameters for row in every if row.trained_parameters]
    first, last = (math.floor(math.log10(min(counts))), math.ceil(math.log10(max(counts) + 1))) if counts else (0, 1)
    start = left + 62  # before it is the place of those that train nothing: 0 has no logarithm

    def x(count: int) -> float:
        return start + (math.log10(count) - first) / (last - first) * (right - start) if count else left + 22

    marks = [
        f'<line class="rule" x1="{left}" x2="{right}" y1="{y(at):.1f}" y2="{y(at):.1f}"/>'
        for at in _steps(low, high, step)
    ]
    marks += [text(left - 8, y(at) + 4, f"{100 * at:.0f}", "muted end") for at in _steps(low, high, step)]
    marks += [text(x(0), bottom + 18, "0", "muted middle")]
    marks += [text(x(10**at), bottom + 18, _decade(at), "muted middle") for at in range(first, last + 1)]
    marks += [
        f'<line class="rule" x1="{x(10**at):.1f}" x2="{x(10**at):.1f}" y1="{bottom}" y2="{bottom + 5}"/>'
        for at in range(first, last + 1)
    ]
    marks += [text(right, height - 6, "trained parameters", "muted end"), text(0, 12, "macro F1, %", "muted")]
    if references:
        line = y(references[0].macro_f1)
        marks.append(f'<line class="level" x1="{left}" x2="{right}" y1="{line:.1f}" y2="{line:.1f}"/>')
    taken: list[Box] = [
        (x(row.trained_parameters) - 6, y(row.macro_f1) - 6, x(row.trained_parameters) + 6, y(row.macro_f1) + 6)
        for row in every
    ]
    for row in sorted(every, key=lambda row: (row.name != best, -row.macro_f1)):
        at, up = x(row.trained_parameters), y(row.macro_f1)
        kind = "best" if row.name == best else "reference" if row in references else "method"
        if row.interval is not None:
            foot, head = (y(end) for end in row.interval)
            marks.append(f'<line class="{kind}" x1="{at:.1f}" x2="{at:.1f}" y1="{head:.1f}" y2="{foot:.1f}"/>')
        marks.append(f'<circle class="{kind}" cx="{at:.1f}" cy="{up:.1f}" r="{6 if kind == "best" else 5}"/>')
        marks.append(_label(row.name, at, up, kind, taken, (2, top - 8, width - 2, bottom - 2)))
    told = "; ".join(f"{row.name}: {100 * row.macro_f1:.1f} % with {row.trained_parameters:,} trained" for row in every)
    return svg(width, height, f"Macro F1 against trained parameters. {told}", marks)


def season_chart(seasons: CropSeasons, colour: Colour, *, days: tuple[int, int], top: float) -> str:
    """NDVI of one crop: the source region dashed, the target region in the crop's colour with its quartiles.

    Args:
        seasons: the two curves.
        colour: of the crop.
        days: first and last day of the axis.
        top: upper end of the axis.
    """
    width, height, left, right, bottom = 320, 170, 30, 312, 146
    first, last = days[0], max(days[1], days[0] + 1)

    def x(day: float) -> float:
        return left + (day - first) / (last - first) * (right - left)

    def y(value: float) -> float:
        return bottom - min(max(value, 0), top) / top * (bottom - 10)

    marks = []
    for value in (0, 0.2, 0.4, 0.6, 0.8, 1.0):
        if value <= top:
            marks.append(f'<line class="rule" x1="{left}" x2="{right}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
            marks.append(text(left - 6, y(value) + 4, f"{value:.1f}", "muted end"))
    marks += _months(first, last, x, right=right, bottom=bottom)
    paint = "#{:02x}{:02x}{:02x}".format(*colour)
    marks.append(f'<polygon class="band source" points="{_band(seasons.source, x, y)}"/>')
    marks.append(f'<polygon points="{_band(seasons.target, x, y)}" fill="{paint}" fill-opacity="0.3"/>')
    marks.append(f'<polyline class="curve source" points="{_line(seasons.source, x, y)}"/>')
    marks.append(f'<polyline class="curve under" points="{_line(seasons.target, x, y)}"/>')
    marks.append(f'<polyline class="curve" points="{_line(seasons.target, x, y)}" stroke="{paint}"/>')
    for season, name in ((seasons.source, "source dot"), (seasons.target, "dot")):
        if season.clear.sum() == 1:  # a line needs two dates
            at, value = season.days[season.clear][0], season.mean[season.clear][0]
            marks.append(f'<circle class="{name}" cx="{x(at):.1f}" cy="{y(value):.1f}" r="3.5" fill="{paint}"/>')
    told = (_told(seasons.source), _told(seasons.target))
    return svg(width, height, f"NDVI of {seasons.crop}. Source region: {told[0]}. Target region: {told[1]}", marks)


def change_chart(before: float, after: float) -> str:
    """A score before and after on a line from 0 to 1: hollow, filled; NaN is left out."""
    width, middle = 120, 8

    def x(share: float) -> float:
        return 6 + share * (width - 12)

    marks = [f'<line class="rule" x1="6" x2="{width - 6}" y1="{middle}" y2="{middle}"/>']
    if math.isfinite(before) and math.isfinite(after):
        kind = "gain" if after >= before else "loss"
        marks.append(f'<line class="{kind}" x1="{x(before):.1f}" x2="{x(after):.1f}" y1="{middle}" y2="{middle}"/>')
    if math.isfinite(before):
        marks.append(f'<circle class="reference" cx="{x(before):.1f}" cy="{middle}" r="4"/>')
    if math.isfinite(after):
        marks.append(f'<circle class="best" cx="{x(after):.1f}" cy="{middle}" r="4.5"/>')
    return (
        f'<svg class="change" viewBox="0 0 {width} 16" width="{width}" height="16" aria-hidden="true">'
        + "".join(marks)
        + "</svg>"
    )


def _months(first: int, last: int, x: Callable[[float], float], *, right: float, bottom: float) -> Iterator[str]:
    """A tick at the beginning of each month, its letter at the middle."""
    for year in range(first // 365 - 1, last // 365 + 2):
        for letter, day in zip("JFMAMJJASOND", MONTHS, strict=True):
            here = day + 365 * year
            if first <= here <= last:
                yield f'<line class="rule" x1="{x(here):.1f}" x2="{x(here):.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
            if first <= here + 15 <= last and x(here + 15) <= right:
                yield text(x(here + 15), bottom + 17, letter, "muted middle")


def _ticks(low: float, high: float) -> tuple[float, float, float]:
    """(step, first, last) of an axis of shares that holds both ends, with at most six steps."""
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2) if (high - low) / step <= 5)
    return (
        step,
        math.floor(low / step + 1e-9) * step,
        max(math.ceil(high / step - 1e-9), math.floor(low / step) + 1) * step,
    )


def _steps(low: float, high: float, step: float) -> Iterator[float]:
    return (low + at * step for at in range(round((high - low) / step) + 1))


def _decade(exponent: int) -> str:
    amount, unit = divmod(exponent, 3)[1], ("", " k", " M", " G", " T")[min(exponent // 3, 4)]
    return f"{10**amount}{unit}"


def _label(name: str, x: float, y: float, kind: str, taken: list[Box], frame: Box) -> str:
    """The name beside its dot, at the first place that is free; the place is then taken."""
    wide = 6.6 * len(name) + 2
    places = []
    for lift in (0, -15, 15, -28, 28, -41, 41, -54, 54):
        places += [(x + 10, y + lift, "start"), (x - 10, y + lift, "end")]
        if lift:
            places.append((x, y + lift, "middle"))

    def box(place: tuple[float, float, str]) -> Box:
        from_x = place[0] - {"start": 0, "end": wide, "middle": wide / 2}[place[2]]
        return from_x, place[1] - 7, from_x + wide, place[1] + 7

    def free(place: tuple[float, float, str]) -> bool:
        here = box(place)
        inside = frame[0] <= here[0] and frame[1] <= here[1] and here[2] <= frame[2] and here[3] <= frame[3]
        return inside and all(
            here[2] <= other[0] or other[2] <= here[0] or here[3] <= other[1] or other[3] <= here[1] for other in taken
        )

    place = next((place for place in places if free(place)), places[0])
    taken.append(box(place))
    leader = ""
    if abs(place[1] - y) > 15:
        leader = f'<line class="leader" x1="{x:.1f}" y1="{y:.1f}" x2="{place[0]:.1f}" y2="{place[1]:.1f}"/>'
    return leader + text(place[0], place[1] + 4, name, f"{place[2]} {kind}")


def _line(season: Season, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    clear = season.clear
    return _points(season.days[clear], season.mean[clear], x, y)


def _band(season: Season, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    clear = season.clear
    there, back = season.days[clear], season.days[clear][::-1]
    return _points(there, season.upper[clear], x, y) + " " + _points(back, season.lower[clear][::-1], x, y)


def _points(days: np.ndarray, values: np.ndarray, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    return " ".join(f"{x(float(day)):.1f},{y(float(value)):.1f}" for day, value in zip(days, values, strict=True))


def _told(season: Season) -> str:
    days, mean = season.days[season.clear], season.mean[season.clear]
    return f"highest {mean.max():.2f} on day {days[int(np.argmax(mean))]}"

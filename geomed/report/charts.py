"""Square charts from 0 to 1: curves with bands, and what was said against what came true."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)

from geomed.evaluation.svg import svg, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geomed.evaluation.calibration import ReliabilityPoint
    from geomed.report.bands import Band

COLOURS = 6
"""Runs with a colour and a dash of their own; further ones start again."""

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 306, 300, 48, 300, 10, 262


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """One run's curve."""

    run: int
    """Which run, from 0: its colour."""

    across: Float[np.ndarray, " p"]
    """Between 0 and 1."""

    up: Float[np.ndarray, " p"]
    """Between 0 and 1."""

    band: Band | None = None
    """Around it."""

    point: tuple[float, float] | None = None
    """The operating point."""


def curves_chart(
    traces: Sequence[Trace], *, across: str, up: str, told: str, level: float | None = None, diagonal: bool = False
) -> str:
    """Curves of runs, their bands, their operating points.

    Args:
        traces: one for each run.
        across: name of the axis.
        up: likewise.
        told: for who cannot see it.
        level: what chance gives, as a line across.
        diagonal: whether chance gives the diagonal.
    """
    marks = _frame(across, up)
    if diagonal:
        marks.append(_straight("level", 0, 0, 1, 1))
    if level is not None:
        marks.append(_straight("level", 0, level, 1, level))
    for trace in traces:
        if trace.band is not None:
            edge = np.concatenate((trace.band.across, trace.band.across[::-1]))
            rim = np.concatenate((trace.band.high, trace.band.low[::-1]))
            marks.append(f'<polygon class="spread {_colour(trace.run)}" points="{_places(edge, rim)}"/>')
    marks += [
        f'<polyline class="curve {_colour(trace.run)}" points="{_places(trace.across, trace.up)}"/>' for trace in traces
    ]
    marks += [_dot(f"point {_colour(trace.run)}", *trace.point, 5) for trace in traces if trace.point is not None]
    return svg(WIDTH, HEIGHT, told, marks)


def reliability_chart(
    before: Sequence[ReliabilityPoint], after: Sequence[ReliabilityPoint], *, across: str, told: str
) -> str:
    """What came true against what was said: hollow before scaling, filled with intervals after it.

    Args:
        before: points of the probabilities as the network gave them; none where nothing was scaled.
        after: points of the probabilities that the scores are of.
        across: what was said.
        told: for who cannot see it.
    """
    marks = [*_frame(across, "share that came true"), _straight("level", 0, 0, 1, 1)]
    marks += [_run_of(before, "curve source"), _run_of(after, "curve t0")]
    for point in after:
        if (interval := point.true.interval) is not None and interval.known:
            marks.append(_straight("whisker", point.said, interval.low, point.said, interval.high))
    marks += [_dot("reference", point.said, point.true.value, 3.6) for point in before]
    marks += [_dot("best", point.said, point.true.value, 4.4) for point in after]
    return svg(WIDTH, HEIGHT, told, marks)


def stepped(recall: np.ndarray, precision: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision against recall in steps, without the first point, where nothing is called and precision is unknown.

    Straight lines would promise what no threshold gives (Davis and Goadrich, ICML 2006).
    """
    recall, precision = recall[1:], precision[1:]
    across = np.concatenate(([0.0], np.repeat(recall, 2)[:-1]))
    return across, np.repeat(precision, 2)


def _colour(run: int) -> str:
    return f"t{run % COLOURS}"


def _x(value: float) -> float:
    return LEFT + value * (RIGHT - LEFT)


def _y(value: float) -> float:
    return BOTTOM - value * (BOTTOM - TOP)


def _frame(across: str, up: str) -> list[str]:
    marks = []
    for at in (0, 0.25, 0.5, 0.75, 1):
        marks += [_straight("rule", 0, at, 1, at), _straight("rule", at, 0, at, 1)]
        marks.append(text(_x(at), BOTTOM + 16, f"{at:g}", "muted middle"))
        marks.append(text(LEFT - 6, _y(at) + 4, f"{at:g}", "muted end"))
    middle = (TOP + BOTTOM) / 2
    turned = text(0, 0, up, "muted middle")
    return [
        *marks,
        text((LEFT + RIGHT) / 2, BOTTOM + 33, across, "muted middle"),
        f'<g transform="translate(10 {middle:.0f}) rotate(-90)">{turned}</g>',
    ]


def _straight(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    ends = f'x1="{_x(x1):.1f}" y1="{_y(y1):.1f}" x2="{_x(x2):.1f}" y2="{_y(y2):.1f}"'
    return f'<line class="{kind}" {ends}/>'


def _dot(kind: str, x: float, y: float, radius: float) -> str:
    return f'<circle class="{kind}" cx="{_x(x):.1f}" cy="{_y(y):.1f}" r="{radius}"/>'


def _places(across: np.ndarray, up: np.ndarray) -> str:
    return " ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in zip(across.tolist(), up.tolist(), strict=True))


def _run_of(points: Sequence[ReliabilityPoint], kind: str) -> str:
    said, true = np.array([point.said for point in points]), np.array([point.true.value for point in points])
    return f'<polyline class="{kind}" points="{_places(said, true)}"/>' if len(points) > 1 else ""

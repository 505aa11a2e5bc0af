"""A plan as a picture: block by block and operation by operation, what is sensitive and what trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from geomed.adapters.plan import Choice, Plan

KINDS = {"lora": "LoRA", "adapter": "adapter", "all": "whole", "entries": "entries"}
"""How a plan's words stand in the picture."""


def save_picture(path: Path, plan: Plan) -> None:
    """Write two heat maps, blocks downwards and operations across: shares of sensitivity, and trained parameters."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late: it loads for half a second
    from matplotlib.figure import Figure

    cells = _cells(plan)
    rows = list(dict.fromkeys(row for row, _ in cells))
    found = list(dict.fromkeys(column for _, column in cells))
    columns = [one for one in found if one not in {"biases", "norms"}]
    columns += [one for one in ("biases", "norms") if one in found]
    size = (1.3 * len(columns) + 1.6, 0.4 * len(rows) + 1.2)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    share = np.full((len(rows), len(columns)), np.nan)
    trained = np.full_like(share, np.nan)
    told: dict[tuple[int, int], tuple[str, str]] = {}
    for (row, column), choices in cells.items():
        at = rows.index(row), columns.index(column)
        share[at] = sum(choice.share for choice in choices)
        trained[at] = sum(choice.count for choice in choices)
        told[at] = ("< 0.01 %" if share[at] < 1e-4 else f"{100 * share[at]:.2g} %", _what(choices))
    _heat(left, share, {at: one for at, (one, _) in told.items()}, "Blues")
    _heat(right, trained, {at: one for at, (_, one) in told.items()}, "YlOrBr")
    left.set_title("share of all sensitivity", fontsize=9, loc="left")
    right.set_title("trained parameters", fontsize=9, loc="left")
    left.set_yticks(range(len(rows)), rows)
    for axes in (left, right):
        axes.set_xticks(range(len(columns)), columns)
    figure.suptitle(str(plan), fontsize=9, x=0.01, ha="left", fontweight="bold")
    figure.savefig(path, metadata={"Software": "geomed"})


def _cells(plan: Plan) -> dict[tuple[str, str], list[Choice]]:
    cells: dict[tuple[str, str], list[Choice]] = {}
    for choice in plan.choices:
        one = choice.candidate
        stage, _, number = one.block.rpartition("blocks.")
        row = f"{stage}block {number}" if one.block else one.module
        row = row.replace(".", " ")
        column = one.operation if one.kind == "matrix" else "norms" if "norm" in one.operation else "biases"
        cells.setdefault((row, column), []).append(choice)
    return cells


def _what(choices: list[Choice]) -> str:
    """How a cell's parameters train, and how many they are."""
    count = sum(choice.count for choice in choices)
    kinds = [name for kind, name in KINDS.items() if any(choice.trains == kind for choice in choices)]
    return f"{kinds[0] if len(kinds) == 1 else 'mixed'}\n{count:,}" if count else "–"


def _heat(axes: Axes, values: np.ndarray, told: dict[tuple[int, int], str], colours: str) -> None:
    """Colours by logarithm over four decades, for few cells hold most of it; the numbers stand within."""
    top = np.nanmax(values, initial=1e-12)
    shade = np.clip(1 + np.log10(np.maximum(values, 1e-30) / top) / 4, 0, 1)
    axes.imshow(shade, cmap=colours, vmin=0, vmax=1.35, aspect="auto")
    for (row, column), text in told.items():
        axes.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=6,
            color="white" if shade[row, column] > 0.85 else "black",
        )
    axes.tick_params(length=0, labelsize=7)
    axes.set_xticks(np.arange(values.shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(values.shape[0] + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)
    for side in axes.spines.values():
        side.set_visible(False)

"""A scene through a model: windows are read ahead, judged in batches and blended, and finished rows are given out."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from geomed.inference.reading import Meter, RowReading, WindowReading
from geomed.inference.slab import Slab

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from geomed.inference.model import Scene
    from geomed.inference.plan import Plan, SuperTile
    from geomed.inference.reading import Reading


@dataclass(frozen=True, kw_only=True)
class Blended:
    """Some finished rows of a super-tile."""

    tile: SuperTile
    """Whose they are."""

    rows: tuple[int, int]
    """Which of its rows, [first, end)."""

    scores: Tensor | None
    """Blended scores [K, R, W] on the device; None: nothing was observed in any window of them. Good until the next."""

    valid: Tensor
    """Where something was observed [R, W], on the device."""


def blend(
    scene: Scene,
    run: Callable[[dict[str, Tensor]], Tensor],
    plan: Plan,
    tiles: Sequence[SuperTile],
    *,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    readers: int = 2,
    meter: Meter | None = None,
) -> Iterator[Blended]:
    """Map super-tiles: finished rows come one after the other, from the top of each super-tile to its end.

    What ``run`` says of each window is averaged, so it should be logits, or anything whose mean means something.
    Batches are the same whichever super-tiles are asked for, so that their numbers are, too: on one kind of machine,
    with one number of threads.

    Args:
        scene: what to read.
        run: a batch of windows, with the tensors that ``MapModel.run`` tells, → scores [B, K, H, W].
        plan: of this scene's shape.
        tiles: super-tiles of the plan. Where one follows the other, what they share is computed once.
        batch_size: windows that go through the model at once, at most.
        device: where the model is.
        readers: threads that read.
        meter: where to count.

    Raises:
        ValueError: the plan is for another shape, or a file cannot be read; its message names it.
    """
    if (plan.rows.length, plan.columns.length) != tuple(scene.grid.shape):
        raise ValueError(
            f"{scene.name}: the plan is for {plan.rows.length} x {plan.columns.length} pixels, the scene has "
            f"{scene.grid.shape.y} x {scene.grid.shape.x}; plan it anew"
        )
    if batch_size < 1 or readers < 1:
        raise ValueError(f"there must be windows in a batch and readers, not {batch_size} and {readers}; correct them")
    for chain in _chains(tiles):
        reading = (RowReading if scene.pointwise else WindowReading)(
            scene,
            plan,
            range(chain[0].halo, chain[-1].rows[1]),
            chain[0].columns,
            batch_size=batch_size,
            readers=readers,
            device=torch.device(device),
            meter=Meter() if meter is None else meter,
        )
        with closing(reading):
            yield from _chain(run, plan, chain, reading)


def _chains(tiles: Sequence[SuperTile]) -> Iterator[list[SuperTile]]:
    """Runs of super-tiles that follow one another in one band of columns."""
    chain: list[SuperTile] = []
    for tile in tiles:
        if chain and (tile.columns != chain[-1].columns or tile.rows[0] != chain[-1].rows[1]):
            yield chain
            chain = []
        chain.append(tile)
    if chain:
        yield chain


def _chain(
    run: Callable[[dict[str, Tensor]], Tensor], plan: Plan, chain: Sequence[SuperTile], reading: Reading
) -> Iterator[Blended]:
    gaps = not reading.scene.pointwise
    slab = Slab(plan.rows, plan.columns, reading.columns, device=reading.device, gaps=gaps)
    coming = iter(chain)
    tile = next(coming)
    for row in reading.rows:
        slab.start(row)
        for batch in reading.batches(row):
            slab.see(batch.first, batch.there)
            if not batch.columns:
                continue
            began = time.perf_counter()
            for column, scores in zip(batch.columns, run(batch.tensors), strict=True):
                slab.add(column, scores[:, : plan.rows.size, : plan.columns.size].float())
            reading.meter.computed += time.perf_counter() - began
        if row >= tile.rows[0]:
            sums, valid = slab.give()
            across = slice(tile.keep.column - slab.left, tile.keep.column - slab.left + tile.keep.width)
            at = plan.rows.begins[row] - tile.keep.row
            reading.meter.pixels += valid.shape[0] * tile.keep.width
            yield Blended(
                tile=tile,
                rows=(at, at + valid.shape[0]),
                scores=None if sums is None else sums[:, :, across],
                valid=valid[:, across],
            )
            if row + 1 == tile.rows[1]:
                tile = next(coming, tile)
        if row + 1 < reading.rows.stop:
            slab.advance()

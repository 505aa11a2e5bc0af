"""Whether there is memory for a plan, asked before anything is computed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from geomed.inference.model import MapModel
    from geomed.inference.plan import Plan

_FLOAT = 4
_GROUP = Path("/sys/fs/cgroup")


def refuse_too_large(plan: Plan, model: MapModel, *, batch_size: int, readers: int, device: torch.device) -> None:
    """Refuse a plan that needs more memory than is free, by the least that it needs: the network's own is not counted.

    Raises:
        ValueError: it does.
    """
    size = plan.window_size[0] * plan.window_size[1]
    span = max(
        plan.columns.starts[tile.columns[1] - 1] + plan.columns.size - plan.columns.starts[tile.columns[0]]
        for tile in plan.tiles
    )
    many = min(batch_size, len(plan.columns.starts))
    slab = len(model.classes) * plan.rows.size * span * _FLOAT
    seen = many * size * _FLOAT * (len(model.bands) + 3 * len(model.classes))
    ahead = many * size * _FLOAT * len(model.bands) * (readers + 2)
    needs = {device.type: slab + seen, "cpu": ahead + (slab + seen if device.type == "cpu" else 0)}
    for kind, needed in needs.items():
        free = _free(device if kind == device.type else torch.device("cpu"))
        if free is not None and needed > free:
            raise ValueError(
                f"windows of {plan.tiling.size} pixels, {batch_size} at once in a scene {span} pixels wide, need at "
                f"least {needed / 2**30:.1f} GiB on {kind}, and {free / 2**30:.1f} are free; take a smaller --size, "
                "--batch-size or --columns"
            )


def _free(device: torch.device) -> int | None:
    """Bytes that can still be taken; None: not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu" or os.name != "posix":
        return None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None
    try:
        limit, used = ((_GROUP / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        return free if limit == "max" else min(free, int(limit) - int(used))
    except (OSError, ValueError):
        return free

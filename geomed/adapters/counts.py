"""What trains, counted and printed."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from geomed.adapters.adapter import Adapted

if TYPE_CHECKING:
    from torch import nn


def trainable(module: nn.Module) -> int:
    """Parameters that train."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def trainable_table(module: nn.Module) -> str:
    """A table of what trains: per part of the network and adapter, its parameters and their share of all."""
    total = sum(parameter.numel() for parameter in module.parameters())
    kinds: dict[str, str] = {
        name: type(child).__name__ for name, child in module.named_modules() if isinstance(child, Adapted)
    }
    counts: Counter[tuple[str, str]] = Counter()
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        owner = max((place for place in kinds if name.startswith(f"{place}.")), key=len, default="")
        part = ".".join(piece for piece in name.split(".")[:2] if piece not in {"weight", "bias", "base"})
        counts[part, kinds.get(owner, "itself")] += parameter.numel()
    rows = [(part, kind, count) for (part, kind), count in counts.items()]
    rows.append(("all", "", sum(counts.values())))
    width = max(len(part) for part, _, _ in rows)
    second = max(len(kind) for _, kind, _ in rows)
    lines = [f"{'trains':<{width}}  {'as':<{second}}  {'parameters':>12}  {'share':>8}"]
    for part, kind, count in rows:
        lines.append(f"{part:<{width}}  {kind:<{second}}  {count:>12,}  {count / max(total, 1):>8.3%}")
    return "\n".join(lines)

"""How many values of each matrix survive in SNELLA, while all together become fewer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from geomed.adapters.snell import KernelLinear

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

_DECAY = 0.85


class Allocation:
    """Gives the survivors of all SNELLA matrices in a network to those that matter (arXiv 2510.24037).

    A parameter's importance is |p dL/dp|. A matrix scores by the running mean of its points' importance times the
    running mean of how far that strays (Zhang et al., "AdaLoRA", ICLR 2023, section 3.2).
    """

    def __init__(self, root: nn.Module) -> None:
        """``root`` is the network, with or without SNELLA in it."""
        self.linears = {
            name: module
            for name, module in root.named_modules()
            if isinstance(module, KernelLinear) and module.goal is not None
        }
        self.start = sum(sum(module.kept.tolist()) * _size(module) for module in self.linears.values())
        self.means: dict[str, Tensor] = {}
        self.strays: dict[str, Tensor] = {}

    def __bool__(self) -> bool:
        """Whether there is something to allocate."""
        return bool(self.linears)

    @torch.no_grad()
    def observe(self) -> None:
        """Take note of the gradients; after each backward pass, before the optimiser's step."""
        for linear, module in self.linears.items():
            for name, points in (("outs", module.outs), ("ins", module.ins)):
                if points.grad is None:
                    continue
                now = (points * points.grad).abs_().nan_to_num_(nan=0, posinf=0)
                key = f"{linear}.{name}"
                mean = self.means.setdefault(key, torch.zeros_like(now)).lerp_(now, 1 - _DECAY)
                self.strays.setdefault(key, torch.zeros_like(now)).lerp_((now - mean).abs_(), 1 - _DECAY)

    @torch.no_grad()
    def allocate(self, progress: float) -> None:
        """Set what survives in each matrix.

        Args:
            progress: how much of the training is over, from 0 to 1.
        """
        sizes: list[int] = []
        scores: list[Tensor] = []
        end = 0.0
        for name, module in self.linears.items():
            sizes += len(module.kept) * [_size(module)]
            scores.append(self._score(f"{name}.outs", module.outs) + self._score(f"{name}.ins", module.ins))
            end += len(module.kept) * _size(module) * (module.goal or 0.0)
        survivors = share_out(volume(self.start, end, progress), torch.cat(scores).tolist(), sizes)
        shares = iter(count / size for count, size in zip(survivors, sizes, strict=True))
        for module in self.linears.values():
            module.kept.copy_(torch.tensor([next(shares) for _ in module.kept]))

    def _score(self, key: str, points: Tensor) -> Tensor:
        if key not in self.means:
            return points.new_zeros(len(points))
        return (self.means[key] * self.strays[key]).flatten(1).mean(1)

    def state(self) -> dict[str, Any]:
        """What has been noted so far, for a checkpoint."""
        return {"start": self.start, "means": self.means, "strays": self.strays}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.start = state["start"]
        points = {
            f"{name}.{part}": getattr(one, part) for name, one in self.linears.items() for part in ("outs", "ins")
        }
        self.means, self.strays = (
            {key: value.to(points[key]) for key, value in state[part].items()} for part in ("means", "strays")
        )


def _size(module: KernelLinear) -> int:
    """Numbers in each of its matrices."""
    return module.outs.shape[2] * module.ins.shape[2]


def volume(start: float, end: float, progress: float) -> int:
    """How many values survive in all matrices together: from ``start`` to ``end`` along a cubic."""
    return int(end + (start - end) * (1 - progress) ** 3)


def share_out(survivors: int, scores: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """Survivors for each matrix in proportion to its score, none more than its size; the rest goes to the others."""
    given = [0.0] * len(sizes)
    hungry = list(range(len(sizes)))
    left = float(survivors)
    while hungry:
        weights = {k: scores[k] for k in hungry}
        if sum(weights.values()) <= 0:  # nothing is known of these: the same share of each
            weights = {k: float(sizes[k]) for k in hungry}
        each = left / sum(weights.values())
        full = [k for k in hungry if each * weights[k] >= sizes[k]]
        for k in full or hungry:
            given[k] = min(each * weights[k], float(sizes[k]))
        if not full:
            break
        left -= sum(sizes[k] for k in full)
        hungry = [k for k in hungry if k not in full]
    return [int(count) for count in given]

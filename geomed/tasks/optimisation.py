"""AdamW with a warm-up and a cosine, counted in steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lightning import Trainer
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """AdamW (Loshchilov and Hutter, ICLR 2019), its rate rising linearly and then falling along half a cosine."""

    lr: float = 1e-3
    """Highest learning rate."""

    weight_decay: float = 0.0
    """Decoupled weight decay."""

    warmup: float = 0.1
    """Share of all steps in which the rate rises."""

    floor: float = 0.005
    """Last learning rate over the highest."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""

    def __post_init__(self) -> None:
        """Refuse rates and shares that mean nothing."""
        if self.lr <= 0 or not 0 <= self.warmup < 1 or not 0 <= self.floor <= 1:
            raise ValueError(
                f"lr must be positive, warmup in [0, 1) and floor in [0, 1], not {self.lr}, {self.warmup}, {self.floor}"
            )

    def factor(self, step: int, steps: int) -> float:
        """The rate at a step, over the highest."""
        rise = round(self.warmup * steps)
        if step < rise:
            return (step + 1) / (rise + 1)
        done = min((step - rise) / max(steps - rise - 1, 1), 1.0)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))

    def configure(self, parameters: Iterable[torch.nn.Parameter], steps: int) -> OptimizerLRSchedulerConfig:
        """What Lightning's ``configure_optimizers`` returns, for so many steps."""
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.factor(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def steps_of(trainer: Trainer) -> int:
    """All optimizer steps of a run, which rates follow a course over.

    Raises:
        ValueError: nothing bounds them.
    """
    steps = trainer.estimated_stepping_batches
    if math.isinf(steps):
        raise ValueError(
            f"rates follow a course over all steps, and max_epochs {trainer.max_epochs} sets no end; give max_epochs "
            "or max_steps (max_time may end a run before)"
        )
    return max(int(steps), 1)

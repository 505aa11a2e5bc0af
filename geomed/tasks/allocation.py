"""Allocates SNELLA's survivors while Lightning trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback

from geomed.adapters.survivors import Allocation

if TYPE_CHECKING:
    import lightning
    from torch.optim import Optimizer


class SparsityAllocation(Callback):
    """Drives `Allocation` where SNELLA is attached, and does nothing elsewhere.

    It allocates a hundred times in a run, evenly: as often as the reference, which does so after each of its hundred
    epochs. What survives in each matrix is a buffer of the network; what has been noted goes into the checkpoint.
    """

    times = 100

    def __init__(self) -> None:
        """Nothing is known before training starts."""
        self.allocation: Allocation | None = None
        self.every = 1
        self.steps = 1
        self._resumed: dict[str, Any] = {}

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Find the matrices.

        Raises:
            ValueError: there are some, and the training has no end that they could be allocated towards.
        """
        allocation = Allocation(pl_module)
        if not allocation:
            return
        steps = trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError(
                "SNELLA grows sparser until training ends, and this has no end; give max_epochs or max_steps"
            )
        self.steps = int(steps)
        self.every = max(1, self.steps // self.times)
        if self._resumed:
            allocation.load(self._resumed)
        self.allocation = allocation

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Optimizer
    ) -> None:
        """Note the gradients, and allocate now and then."""
        if self.allocation is None:
            return
        self.allocation.observe()
        step = trainer.global_step + 1
        if step % self.every == 0 and step < self.steps:
            self.allocation.allocate(step / self.steps)

    def state_dict(self) -> dict[str, Any]:
        """What has been noted."""
        return {} if self.allocation is None else self.allocation.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training starts."""
        self._resumed = state_dict

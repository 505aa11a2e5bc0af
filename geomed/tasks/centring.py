"""From a teacher's logits to targets that cannot all be the same: centring."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor, distributed, nn

if TYPE_CHECKING:
    from lightly.models.modules.center import Center


class Centring(nn.Module, ABC):
    """A teacher's logits → how much each token belongs to each prototype.

    All is computed in float32 and over all processes, whose numbers of tokens may differ. Every process has to call it,
    one without any token too.
    """

    def bind(self, prototypes: int) -> None:
        """Learn how many prototypes there are, once, before training."""

    @abstractmethod
    def forward(self, logits: Float[Tensor, "n k"], temperature: float) -> Float[Tensor, "n k"]:
        """Probabilities, float32, without a gradient."""


class RunningMean(Centring):
    """Subtract the running mean of the logits before the softmax (Caron et al., ICCV 2021, section 3.1, equation 4)."""

    def __init__(self, momentum: float = 0.9) -> None:
        """``momentum`` is the share of the mean that each batch leaves.

        Raises:
            ValueError: it is no share.
        """
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), not {momentum}; 0.9 is usual")
        self.momentum = momentum
        self.centre: Center | None = None

    def bind(self, prototypes: int) -> None:
        """Start from a mean of zero."""
        from lightly.models.modules.center import Center  # late: lightly takes seconds to import

        self.centre = Center(size=(1, prototypes), momentum=self.momentum)

    @torch.no_grad()
    def forward(self, logits: Float[Tensor, "n k"], temperature: float) -> Float[Tensor, "n k"]:
        """Softmax by the mean of the batches before; in training the mean then follows this batch.

        Raises:
            ValueError: it is not bound.
        """
        if self.centre is None:
            raise ValueError("this running mean does not know how many prototypes there are; call bind first")
        mean = self.centre.value.float()
        targets = logits.float().sub(mean).div_(temperature).softmax(-1)
        if self.training:
            # Center alone would weigh processes alike, and one without tokens would turn it into NaN.
            total = _over_processes(torch.cat((logits.float().sum(0), mean.new_full((1,), len(logits)))))
            self.centre.update(torch.where(total[-1] > 0, total[:-1] / total[-1].clamp(min=1), mean))
        return targets


class Sinkhorn(Centring):
    """Give all prototypes equal shares of a batch (Caron et al., NeurIPS 2020, section 3.2; DINOv2, section 4).

    Each iteration scales the columns to N / K and then the rows to 1. It knows nothing of batches before, so it wants
    large ones.
    """

    def __init__(self, iterations: int = 3) -> None:
        """``iterations`` of the Sinkhorn-Knopp algorithm.

        Raises:
            ValueError: none.
        """
        super().__init__()
        if iterations < 1:
            raise ValueError(f"iterations must be positive, not {iterations}; 3 is usual")
        self.iterations = iterations

    @torch.no_grad()
    def forward(self, logits: Float[Tensor, "n k"], temperature: float) -> Float[Tensor, "n k"]:
        """Rows of sum 1, whose columns have nearly equal sums."""
        with torch.autocast(logits.device.type, enabled=False):
            shares = logits.float() / temperature
            highest = shares.amax(1) if len(shares) else shares.new_zeros(0)
            shares = shares.sub_(highest[:, None]).exp_()
            top = highest.amax() if len(shares) else shares.new_tensor(-torch.inf)
            rows = highest.sub_(_over_processes(top, largest=True)).exp_()
            share = _over_processes(shares.new_full((), len(shares))) / shares.shape[1]
            # The scales change, not the matrix, which is read twice in each iteration and written once at the end. A
            # prototype that is next to nobody's keeps a finite one.
            for _ in range(self.iterations):
                columns = share / _over_processes(shares.mT @ rows).clamp_(min=1e-30)
                rows = (shares @ columns).reciprocal_()
            return shares.mul_(columns).mul_(rows[:, None])


def _over_processes(values: Tensor, *, largest: bool = False) -> Tensor:
    """The sum or the largest over all processes, in place; of this one where it is alone."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(values, distributed.ReduceOp.MAX if largest else distributed.ReduceOp.SUM)
    return values

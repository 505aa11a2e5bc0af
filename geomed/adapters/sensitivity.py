"""How much a loss depends on each weight of a network."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from geomed.adapters.candidate import candidates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping


@dataclass(frozen=True, kw_only=True, eq=False)
class Sensitivity:
    """Squared gradients, summed over batches or samples (He et al., ICCV 2023, section 3.1).

    One step of gradient descent on a weight alone changes the loss, to first order, by the square of its gradient.
    """

    scores: Mapping[str, Tensor]
    """Each tensor that a plan may choose from, by its name → as many scores as it has entries, float32 or wider."""

    samples: int
    """How many samples were seen."""

    reduction: Literal["batch", "sample"]
    """Whose gradients were squared: those of batches, or of single samples."""


def measure_sensitivity(
    backbone: nn.Module,
    loss: Callable[[dict[str, Tensor]], Tensor],
    batches: Iterable[dict[str, Tensor]],
    *,
    head: nn.Module | None = None,
    reduction: Literal["batch", "sample"] = "batch",
) -> Sensitivity:
    """Sum up the squared gradients of a loss.

    Each gradient is freed as soon as it has been squared: beside the weights and the scores, one is in memory. The
    network is in evaluation mode meanwhile (no dropout, no drop path), and afterwards it is as it was, with its
    gradients, flags and modes. It takes over two seconds: a bar tells how far it is.

    Args:
        backbone: the plain network whose weights are judged, those of `candidates`.
        loss: a batch → one number, through ``backbone`` and ``head``.
        batches: dicts of tensors with the samples along the first axis, on the backbone's device.
        head: what else with weights the loss goes through; it may hold the backbone too.
        reduction: ``batch`` squares the gradient of each batch's loss, as the reference code does; ``sample`` that of
            each sample alone, the diagonal of the empirical Fisher information, at the price of a pass for each.

    Raises:
        ValueError: there is no batch, or a gradient is not finite; the message names the tensor.
    """
    names = dict.fromkeys(one.tensor for one in candidates(backbone))
    weights = {name: backbone.get_parameter(name) for name in names}
    wide = {name: torch.promote_types(weight.dtype, torch.float32) for name, weight in weights.items()}
    scores = {name: torch.zeros_like(weight, dtype=wide[name]) for name, weight in weights.items()}
    samples = 0
    with _measured([backbone] if head is None else [backbone, head], weights, scores):
        for number, batch in enumerate(tqdm(batches, desc="sensitivity", unit="batch", delay=2, leave=False)):
            count = len(next(iter(batch.values())))
            samples += count
            singly = reduction == "sample"
            parts = (_sample(batch, one) for one in range(count)) if singly else [batch]
            for part in parts:
                value = loss(part)
                value.backward()  # the hooks take the gradients away
            _refuse_infinite(scores, f"batch {number}", float(value.detach()))
    if not samples:
        raise ValueError("sensitivity needs at least one batch, there is none; give samples with labels")
    return Sensitivity(scores=scores, samples=samples, reduction=reduction)


def _sample(batch: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    return {name: value[number : number + 1] for name, value in batch.items()}


def _refuse_infinite(scores: Mapping[str, Tensor], where: str, loss: float) -> None:
    largest = torch.stack([score.amax() for score in scores.values()])  # NaN if there is one
    wrong = [name for name, fine in zip(scores, largest.isfinite().tolist(), strict=True) if not fine]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        cause = "" if math.isfinite(loss) else f", the loss is {loss}"
        raise ValueError(
            f"the squared gradient of {wrong[0]}{more} is not finite at {where}{cause}; look for values that are not "
            "finite in the samples and in the weights, and measure in float32"
        )


@contextmanager
def _measured(
    modules: Iterable[nn.Module], weights: Mapping[str, nn.Parameter], scores: Mapping[str, Tensor]
) -> Iterator[None]:
    """Within, exactly these weights have gradients, and each goes into the scores."""
    every = dict.fromkeys(inner for module in modules for inner in module.modules())
    parameters = dict.fromkeys(parameter for module in every for parameter in module.parameters(recurse=False))
    modes = {module: module.training for module in every}
    before = {parameter: (parameter.requires_grad, parameter.grad) for parameter in parameters}
    hooks = []
    try:
        for module in every:
            module.training = False
        for parameter in parameters:
            parameter.requires_grad = False
            parameter.grad = None
        for name, weight in weights.items():
            weight.requires_grad_()
            hooks.append(weight.register_post_accumulate_grad_hook(_squared_into(scores[name])))
        with torch.enable_grad():
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, (trains, gradient) in before.items():
            parameter.requires_grad = trains
            parameter.grad = gradient
        for module, mode in modes.items():
            module.training = mode


def _squared_into(score: Tensor) -> Callable[[Tensor], None]:
    def take(weight: Tensor) -> None:
        if weight.grad is not None:
            gradient = weight.grad.to(score.dtype)
            weight.grad = None
            score.addcmul_(gradient, gradient)

    return take

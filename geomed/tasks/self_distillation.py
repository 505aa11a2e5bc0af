"""What a student loses where it disagrees with its teacher about prototypes."""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003  (annotations are evaluated by the shape checker in the tests)
from typing import Any

import torch
from jaxtyping import Bool, Float, Int  # noqa: TC002  (likewise)
from torch import Tensor


def image_loss(
    wide: Sequence[Float[Tensor, "b k"]],
    small: Sequence[Float[Tensor, "b k"]],
    targets: Float[Tensor, "g b k"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Mean cross-entropy of all pairs of a teacher's global crop and another crop of the student's.

    Caron et al., ICCV 2021, section 3.1, equation 3; the mean is over pairs and images, as in DINOv2's code.

    Args:
        wide: the student's logits of each global crop.
        small: of each local crop; there may be none.
        targets: the teacher's probabilities of the global crops.
        temperature: the student's.
    """
    crops = range(len(targets))
    pairs = len(targets) * (len(targets) - 1 + len(small))
    # A cross-entropy is linear in its target: the targets of one crop are added up, and each crop is read once.
    others = [targets[[other for other in crops if other != crop]].sum(0) for crop in crops]
    terms = [cross_entropy(logits, target, temperature) for logits, target in zip(wide, others, strict=True)]
    if small:
        everywhere = targets.sum(0)
        terms += [cross_entropy(logits, everywhere, temperature) for logits in small]
    return torch.stack(terms).mean(1).sum() / pairs


def patch_loss(
    logits: Float[Tensor, "m k"], targets: Float[Tensor, "m k"], weights: Float[Tensor, " m"], temperature: float
) -> Float[Tensor, ""]:
    """Cross-entropy of the hidden patches (Zhou et al., ICLR 2022, section 3.2, equation 2).

    Args:
        logits: the student's.
        targets: the teacher's probabilities.
        weights: those of `patch_weights`.
        temperature: the student's.
    """
    return (cross_entropy(logits, targets, temperature) * weights).sum()


def patch_weights(mask: Bool[Tensor, "n h w"], hidden: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
    """What makes a sum over hidden patches the mean over those of a crop, and then over all crops.

    A crop in which nothing is hidden counts as zero, as in DINOv2's code.

    Args:
        mask: which patches of which crop are hidden.
        hidden: their numbers among all patches of all crops.
    """
    return (mask.sum((1, 2)) * len(mask)).reciprocal()[hidden // mask[0].numel()]


def cross_entropy(
    logits: Float[Tensor, "n k"], targets: Float[Tensor, "n k"], temperature: float
) -> Float[Tensor, " n"]:
    """-sum_k target_k log softmax_k(logits / temperature) of each row, in float32 or better.

    Nothing of the logits' size is kept beside logits and targets, which with 65536 prototypes are what memory goes to.
    The targets need not sum to 1 and get no gradient.
    """
    return _CrossEntropy.apply(logits, targets, temperature)


class _CrossEntropy(torch.autograd.Function):
    """Some rows at a time: the sum of target * (logsumexp(x) - x), with x = logits / temperature."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  (torch types it so)
        logits: Tensor,
        targets: Tensor,
        temperature: float,
    ) -> Tensor:
        """The loss of each row."""
        dtype = torch.promote_types(logits.dtype, torch.float32)
        level = logits.new_empty(len(logits), dtype=dtype)
        mass, losses = torch.empty_like(level), torch.empty_like(level)
        for part in _parts(logits):
            x, target = logits[part].to(dtype) / temperature, targets[part].to(dtype)
            level[part], mass[part] = x.logsumexp(-1), target.sum(-1)
            losses[part] = x.sub_(level[part, None]).mul_(target).sum(-1).neg_()
        ctx.save_for_backward(logits, targets, level, mass)
        ctx.temperature = temperature
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401  (likewise)
        """(mass * softmax(x) - target) / temperature."""
        logits, targets, level, mass = ctx.saved_tensors
        result = torch.empty_like(logits)
        scale = (grad / ctx.temperature)[:, None]
        for part in _parts(logits):
            x = (logits[part].to(level.dtype) / ctx.temperature).sub_(level[part, None]).exp_()
            result[part] = x.mul_(mass[part, None]).sub_(targets[part]).mul_(scale[part])
        return result, None, None


def _parts(logits: Tensor, numbers: int = 2**24) -> list[slice]:
    """Rows together, so many numbers at a time."""
    rows = max(1, numbers // logits.shape[1])
    return [slice(start, start + rows) for start in range(0, len(logits), rows)]

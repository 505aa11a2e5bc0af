"""A teacher that follows a student, of which it keeps only what trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, distributed, nn
from torch.func import functional_call

from geomed.adapters.adapter import Adapted
from geomed.adapters.lora import LowRankConv2d, LowRankLinear, LowRankSlices

if TYPE_CHECKING:
    from collections.abc import Iterator

Average = Literal["factors", "merged"]
"""What a teacher averages of a low-rank update B A: the factors B and A, or the weight W + B A that they make."""

_LowRank = LowRankConv2d | LowRankLinear | LowRankSlices


class Teacher(nn.Module):
    """The exponential moving average of a network (Tarvainen and Valpola, NeurIPS 2017), without a second network.

    It keeps the average, in float32, of what trains in the student, and runs the student's own modules with these
    tensors in place of theirs: what is frozen lies in memory once. An average of the factors of a low-rank update is
    not the average of their product; ``merged`` keeps that, at the price of one whole matrix for each.

    Where the student computes in float32 the teacher's tensors are the averages themselves.
    """

    def __init__(self, student: nn.Module, *, average: Average = "factors") -> None:
        """Start as the student is.

        Args:
            student: adapters are attached, and what is frozen stays so.
            average: of low-rank updates; everything else is averaged as it is.

        Raises:
            ValueError: nothing trains in the student, or ``merged`` is asked of updates upon updates.
        """
        super().__init__()
        if average not in get_args(Average):
            raise ValueError(f"a teacher averages {' or '.join(get_args(Average))}, not {average}; choose one")
        self.average = average
        self.names: tuple[str, ...] = ()
        found = self._of(student)
        if not found:
            raise ValueError("nothing trains in this network, so there is nothing for a teacher to follow")
        self.names = tuple(found)
        for name, tensor in found.items():
            self.register_buffer(_key(name), tensor.detach().float().clone())

    def forward(self, student: nn.Module, *args: Any, **options: Any) -> Any:  # noqa: ANN401  (any module's)
        """What the student's modules give with the teacher's tensors, without gradients, drop path or dropout.

        Raises:
            ValueError: the student is another network than that which was followed.
        """
        own = dict(student.named_parameters())
        tensors = {name: tensor.to(own[name].dtype) for name, tensor in self.tensors(student).items()}
        training = [module for module in student.modules() if module.training]
        student.eval()
        try:
            with torch.no_grad():
                return functional_call(student, tensors, args, options)
        finally:
            for module in training:
                module.training = True

    def tensors(self, student: nn.Module) -> dict[str, Tensor]:
        """The teacher's tensors by the student's names, float32; where updates are merged their factor B is zero.

        Raises:
            ValueError: a tensor is missing in the student, or of another shape there.
        """
        named = dict(student.named_parameters())
        kept = {name: self.get_buffer(_key(name)) for name in self.names}
        wrong = [name for name, tensor in kept.items() if name not in named or named[name].shape != tensor.shape]
        if wrong:
            there = tuple(named[wrong[0]].shape) if wrong[0] in named else "missing"
            raise ValueError(
                f"teacher and student have other shapes: {len(wrong)} of {len(kept)} tensors differ ({wrong[0]} is "
                f"{tuple(kept[wrong[0]].shape)} in the teacher and {there} in the student); make the teacher of this "
                "very network"
            )
        if self.average == "merged":
            for path, _ in _low_rank(student):
                kept[f"{path}.up"] = torch.zeros_like(named[f"{path}.up"], dtype=torch.float32)
        return kept

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float) -> None:
        """Follow the student by a small step: momentum * teacher + (1 - momentum) * student.

        Raises:
            ValueError: as `tensors`.
        """
        self.tensors(student)  # it compares the shapes
        found = self._of(student)
        ours = [self.get_buffer(_key(name)) for name in self.names]
        theirs = [found[name].detach().float() for name in self.names]
        torch._foreach_lerp_(ours, theirs, 1 - momentum)

    def start_alike(self) -> None:
        """Go on in all processes from the averages of the first, where there are several.

        From there on averages are as equal as the parameters, which follow from the same gradients everywhere. So DDP,
        which would send all buffers at every step, is told to leave these out (`averages`).
        """
        if distributed.is_available() and distributed.is_initialized():
            for buffer in self.buffers():
                distributed.broadcast(buffer, src=0)

    @property
    def bytes(self) -> int:
        """Memory of all that it keeps."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def _of(self, student: nn.Module) -> dict[str, Tensor]:
        """What is averaged, by the names that it has in the student."""
        found: dict[str, Tensor] = {name: p for name, p in student.named_parameters() if p.requires_grad}
        if self.average == "factors":
            return found
        for path, module in _low_rank(student):
            if isinstance(module.base, Adapted):
                raise ValueError(f"{path}: merged averages are of one update on a plain weight; take factors")  # noqa: TRY004  (the project raises ValueError for every broken rule)
            for factor in ("up", "down"):
                found.pop(f"{path}.{factor}")
            found[f"{path}.base.weight"] = module.base.get_parameter("weight") + module.update()
        return found


def _low_rank(student: nn.Module) -> Iterator[tuple[str, _LowRank]]:
    for path, module in student.named_modules():
        if isinstance(module, _LowRank) and module.up.requires_grad:
            yield path, module


def _key(name: str) -> str:
    """A buffer's name holds no dots."""
    return name.replace(".", ":")


def averages(module: nn.Module) -> list[str]:
    """The names of all teachers' tensors in a module."""
    teachers = ((path, inner) for path, inner in module.named_modules() if isinstance(inner, Teacher))
    return [f"{path}.{name}" for path, teacher in teachers for name, _ in teacher.named_buffers()]

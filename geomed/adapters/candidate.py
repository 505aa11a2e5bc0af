"""What a plan chooses from: the weights of a backbone's blocks and norms, matrix by matrix and vector by vector."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import nn

from geomed.adapters.adapter import adapted_modules

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A matrix or a vector that is chosen as one: a tensor, or the q, k or v of one that holds them all."""

    tensor: str
    """Its name as if nothing were attached, such as ``blocks.0.attention.attn.qkv.weight``."""

    kind: Literal["matrix", "vector"]
    """Weights of a Linear are matrices; biases and the weights of norms are vectors."""

    rows: tuple[int, int]
    """The first row, and that after the last one."""

    columns: int = 1
    """Width of a matrix, the Linear's input; 1 in a vector."""

    def __post_init__(self) -> None:
        """Refuse an empty one."""
        if not 0 <= self.rows[0] < self.rows[1] or self.columns < 1 or (self.kind == "vector" and self.columns != 1):
            raise ValueError(f"{self.tensor}: a {self.kind} of rows {self.rows} and {self.columns} columns is none")

    @property
    def height(self) -> int:
        """Rows of a matrix, the Linear's output; entries of a vector."""
        return self.rows[1] - self.rows[0]

    @property
    def size(self) -> int:
        """Entries."""
        return self.height * self.columns

    @property
    def module(self) -> str:
        """The path of the module that the tensor belongs to."""
        return self.tensor.rpartition(".")[0]

    @property
    def operation(self) -> str:
        """What its module does: q, k, v, proj, fc1, fc2, norm."""
        name = self.module.rpartition(".")[2]
        return "qkv"[self.rows[0] // self.height] if name == "qkv" else name

    @property
    def block(self) -> str:
        """The path of its block, ``temporal.blocks.0`` for example; empty outside of blocks."""
        found = re.match(r"(?:.*\.)?blocks\.\d+(?=\.)", self.tensor)
        return found[0] if found else ""

    def of(self, tensor: Tensor) -> Tensor:
        """Its rows of the tensor, or of anything that has the tensor's shape."""
        return tensor[self.rows[0] : self.rows[1]]

    def __str__(self) -> str:
        whole = self.module.rpartition(".")[2] != "qkv"
        return self.tensor if whole else f"{self.tensor}[{self.operation}]"


def candidates(backbone: nn.Module) -> tuple[Candidate, ...]:
    """All candidates of a plain backbone, in the order of its modules.

    These are the Linears of its blocks, weights and biases, and every LayerNorm. As in the reference code, patch
    embedding, class and register tokens, positions and heads are none; LayerScale, of which it knows nothing, is none.

    Raises:
        ValueError: something is attached to it, or it has no such weights.
    """
    if adapted_modules(backbone):
        raise ValueError(
            f"what to train is chosen on a plain backbone, and this {type(backbone).__name__} has adapters; detach or "
            "merge them first"
        )
    found = tuple(_found(backbone))
    if not found:
        raise ValueError(f"{type(backbone).__name__} has no Linear in blocks and no LayerNorm; give a backbone of them")
    return found


def _found(backbone: nn.Module) -> Iterator[Candidate]:
    for path, module in backbone.named_modules():
        if isinstance(module, nn.LayerNorm) and "patch_embed" not in path:
            for name, tensor in module.named_parameters(recurse=False):
                yield Candidate(tensor=f"{path}.{name}", kind="vector", rows=(0, tensor.numel()))
        elif isinstance(module, nn.Linear) and re.search(r"(^|\.)blocks\.\d+\.", path):
            slices = 3 if path.rpartition(".")[2] == "qkv" else 1
            step = module.out_features // slices
            every = [(first, first + step) for first in range(0, slices * step, step)]
            for rows in every:
                yield Candidate(tensor=f"{path}.weight", kind="matrix", rows=rows, columns=module.in_features)
            if module.bias is not None:
                for rows in every:
                    yield Candidate(tensor=f"{path}.bias", kind="vector", rows=rows)

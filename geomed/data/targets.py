"""What is to be learned of a scan, and how the cells of a table say it."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from geomed.data.area import Legend, code_text
from geomed.pixels import IGNORE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

Labels = tuple[int, ...]
"""What a scan shows: the index of its class; or, of several findings, for each 1, 0, or IGNORE where nobody knows."""

_WHOLE = re.compile(r"-?\d+\.0+")


class UnlistedError(ValueError):
    """A cell that the legend does not know; the table tells which."""


class Target(ABC):
    """Cells → labels; implementations are frozen keyword-only dataclasses."""

    ordered: bool = False
    """Whether the classes are grades, in the order of their indices."""

    several: bool = False
    """Whether a scan may show several classes, or none."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Class names in index order."""

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads."""

    @abstractmethod
    def encode(self, cells: Sequence[str]) -> Labels | None:
        """The labels of a row; None: the legend says that this one does not count.

        Raises:
            UnlistedError: a cell is empty, or the legend does not know it.
        """

    def shown(self, labels: Labels) -> tuple[int, ...]:
        """Indices of the classes that a scan shows."""
        return tuple(i for i, label in enumerate(labels) if label == 1) if self.several else labels

    def tensor(self, labels: Labels) -> Tensor:
        """``label`` of a sample: int64 [], or float32 [K] of findings."""
        return torch.tensor(labels, dtype=torch.float32) if self.several else torch.tensor(labels[0])


@dataclass(frozen=True, kw_only=True)
class OneOf(Target):
    """One class for each scan: binary or multi-class."""

    legend: Legend
    """Class name → what stands in the column; what it says to ignore is left out, which is told."""

    column: str = "label"
    """The column."""

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self.legend.names

    @property
    def columns(self) -> tuple[str, ...]:
        """The one column."""
        return (self.column,)

    def encode(self, cells: Sequence[str]) -> Labels | None:
        """The class.

        Raises:
            UnlistedError: the cell is empty, or the legend does not know it.
        """
        text = _text(cells[0])
        if text not in self._table:
            raise UnlistedError("is empty" if not text else "is not in the legend")
        label = self._table[text]
        return None if label == IGNORE else (label,)

    @cached_property
    def _table(self) -> dict[str, int]:
        return self.legend.table(self.names)


@dataclass(frozen=True, kw_only=True)
class Grade(OneOf):
    """One grade for each scan: ordinal, from the lowest to the highest."""

    ordered = True


@dataclass(frozen=True, kw_only=True)
class Findings(Target):
    """Any number of findings for each scan: multi-label, one column for each."""

    findings: tuple[str, ...]
    """The columns, which name the classes."""

    yes: tuple[int | str, ...] = (1,)
    """What stands in a column where the finding is there."""

    no: tuple[int | str, ...] = (0,)
    """What stands there where it is not."""

    unknown: tuple[int | str, ...] = ()
    """What stands there where nobody knows; "" for an empty cell. The label is IGNORE (255) then."""

    several = True

    def __post_init__(self) -> None:
        """Refuse no findings, and a code that says two things."""
        if not self.findings or len(set(self.findings)) < len(self.findings):
            raise ValueError(f"findings must be named, each once, not {self.findings}; correct them")
        doubled = [
            code for code, count in Counter(map(code_text, (*self.yes, *self.no, *self.unknown))).items() if count > 1
        ]
        if doubled:
            raise ValueError(f"every code says one thing, {', '.join(doubled)} stands twice; leave one")

    @property
    def names(self) -> tuple[str, ...]:
        """The findings."""
        return self.findings

    @property
    def columns(self) -> tuple[str, ...]:
        """A column for each."""
        return self.findings

    def encode(self, cells: Sequence[str]) -> Labels:
        """1, 0 or IGNORE for each finding.

        Raises:
            UnlistedError: a cell is empty or none of the codes.
        """
        texts = [_text(cell) for cell in cells]
        for text in texts:
            if text not in self._table:
                raise UnlistedError("is empty" if not text else "is none of yes, no and unknown")
        return tuple(self._table[text] for text in texts)

    @cached_property
    def _table(self) -> dict[str, int]:
        said = ((self.yes, 1), (self.no, 0), (self.unknown, IGNORE))
        return {code_text(code): value for codes, value in said for code in codes}


def _text(cell: str) -> str:
    """A cell as it is compared: a column of whole numbers with gaps comes out of many programs as 1.0."""
    text = cell.strip()
    return text.partition(".")[0] if _WHOLE.fullmatch(text) else text

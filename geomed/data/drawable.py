"""Data sets whose samples are drawn anew each time instead of being listed once."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Drawable(Dataset[dict[str, Tensor]], ABC):
    """Samples of which there are too many to list, as all windows of a raster: each is drawn by a generator.

    Whoever trains gives a generator of its own seed to each draw, so that no window need ever come twice. Taken as a
    plain data set (``samples[index]``), an index is its own seed, and the samples are the same each time.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Draws that make an epoch."""

    @abstractmethod
    def draw(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        """A sample as ``geomed.data.source.Source`` describes it.

        Args:
            index: number of the draw in its epoch, from 0.
            generator: what all that is random is taken from.

        Raises:
            ValueError: a file cannot be read any more.
        """

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """The sample that this index draws as a seed.

        Raises:
            ValueError: as ``draw``.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} samples, none of them is {index}")  # ends a plain loop
        return self.draw(index, torch.Generator().manual_seed(index))

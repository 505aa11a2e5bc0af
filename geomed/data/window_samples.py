"""Windows of several areas as a map-style data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from geomed.pixels import IGNORE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geomed.data.imagery import Imagery
    from geomed.data.labels import Fields, Truth
    from geomed.windows import Window


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """One area with its images and its truth."""

    imagery: Imagery
    """The images."""

    truth: Truth | None
    """The labels, None where there are none."""

    fields: Fields | None = None
    """Outlines of fields, where only some of them count."""

    among: frozenset[int] | None = None
    """The fields that count; None: all."""

    def labels(self, window: Window) -> NDArray[np.int64] | None:
        """Class indices [H, W], IGNORE outside the fields that count and where the images hold nothing."""
        if self.truth is None:
            return None
        labels = self.truth.read(self.imagery.grid, window)
        if not (labels != IGNORE).any():
            return labels
        if self.fields is not None and self.among is not None:
            labels[self.fields.ids(self.imagery.grid, window, among=self.among) < 0] = IGNORE
        observed = self.imagery.observed(window)
        if observed is not None:
            labels[~observed] = IGNORE
        return labels


@dataclass(frozen=True, kw_only=True)
class Spot:
    """One sample: where it lies."""

    area: int
    """Index of the area."""

    read: Window
    """The pixels of the sample."""

    keep: Window
    """Those of them that a map takes from it."""

    labelled: Window
    """Those of them whose labels count."""


class WindowSamples(Dataset[dict[str, Tensor]]):
    """Samples as ``geomed.data.source.Source`` describes them; files are opened when they are read."""

    def __init__(self, areas: tuple[Mapped, ...], spots: tuple[Spot, ...], *, with_labels: bool, summary: str) -> None:
        """Hold what to read.

        Args:
            areas: all areas of the source.
            spots: where the samples lie.
            with_labels: whether samples hold labels.
            summary: one line about this part.
        """
        self.areas, self.spots, self.with_labels, self.summary = areas, spots, with_labels, summary

    def __len__(self) -> int:
        return len(self.spots)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One sample.

        Raises:
            ValueError: a file is truncated or damaged; the message names it.
        """
        spot = self.spots[index]
        area = self.areas[spot.area]
        sample = {name: torch.from_numpy(array) for name, array in area.imagery.read(spot.read).items()}
        sample |= {"scene": torch.tensor(spot.area), "read": _numbers(spot.read), "keep": _numbers(spot.keep)}
        if self.with_labels and (labels := area.labels(spot.read)) is not None:
            counted = np.full_like(labels, IGNORE)
            rows, columns = spot.labelled.within(spot.read).slices
            counted[rows, columns] = labels[rows, columns]
            sample["labels"] = torch.from_numpy(counted)
        return sample


def _numbers(window: Window) -> Tensor:
    return torch.tensor([window.row, window.column, window.height, window.width])

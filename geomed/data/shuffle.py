"""Order and augmentation of training samples, the same whatever the count of workers."""

from __future__ import annotations

from collections.abc import Sized
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from geomed.data.transforms import Augment, apply

if TYPE_CHECKING:
    from collections.abc import Iterator


def count(dataset: Dataset[dict[str, Tensor]]) -> int:
    """Samples of a map-style data set.

    Raises:
        ValueError: it is a stream without a length.
    """
    if not isinstance(dataset, Sized):
        raise ValueError(f"a source must split into map-style data sets, {type(dataset).__name__} has no length")  # noqa: TRY004  (the project raises ValueError for every broken rule)
    return len(dataset)


class Shuffle(Sampler[tuple[int, int]]):
    """Each epoch a new order of the samples, and with each a seed of its own for what is random in it.

    The order is a function of seed and epoch, so a run that is resumed goes on as it would have. Lightning sets the
    epoch; without it epochs are counted.
    """

    def __init__(self, dataset: Dataset[dict[str, Tensor]], seed: int, shares: Tensor | None = None) -> None:
        """Shuffle the samples of a data set.

        Args:
            dataset: the samples.
            seed: of the order.
            shares: how likely each sample is drawn, with replacement, as many as there are; None: each once.
        """
        self.length, self.seed, self.epoch, self.shares = count(dataset), seed, 0, shares

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        if self.shares is None:
            order = torch.randperm(self.length, generator=generator).tolist()
        else:
            order = torch.multinomial(self.shares, self.length, replacement=True, generator=generator).tolist()
        seeds = torch.randint(2**31, (self.length,), generator=generator).tolist()
        self.epoch += 1
        yield from zip(order, seeds, strict=True)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next."""
        self.epoch = epoch


class Shuffled(Dataset[dict[str, Tensor]]):
    """Samples called by ``Shuffle``: index and seed."""

    def __init__(self, dataset: Dataset[dict[str, Tensor]], augment: Augment | None) -> None:
        """Change the samples of a data set by what ``augment`` draws; None: leave them as they are."""
        self.dataset, self.augment = dataset, augment

    def __len__(self) -> int:
        return count(self.dataset)

    def __getitem__(self, called: tuple[int, int]) -> dict[str, Tensor]:
        """The sample of this index, changed as its seed draws."""
        index, seed = called
        sample = self.dataset[index]
        if self.augment is None:
            return sample
        return apply(sample, self.augment.draw(sample, torch.Generator().manual_seed(seed)))


class InMemory(Dataset[dict[str, Tensor]]):
    """Samples that are read once and then kept, for data sets that fit into memory."""

    def __init__(self, dataset: Dataset[dict[str, Tensor]]) -> None:
        """Keep what is read from a data set."""
        self.dataset = dataset
        self._kept: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return count(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """The sample, read the first time only; the dict is the caller's, its tensors must not be changed in place."""
        if index not in self._kept:
            self._kept[index] = self.dataset[index]
        return dict(self._kept[index])

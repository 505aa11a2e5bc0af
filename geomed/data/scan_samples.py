"""Scans of one part as a map-style data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from numpy.typing import NDArray

    class Store(Protocol):
        """Number of a scan → the scan [S, C, H, W]."""

        def __getitem__(self, index: int, /) -> NDArray[np.generic]: ...


@dataclass(frozen=True, kw_only=True)
class Unkept:
    """Scans that are decoded each time."""

    pixels: Callable[[int], NDArray[np.generic]]
    """Number of a scan → the scan; it pickles."""

    def __getitem__(self, index: int) -> NDArray[np.generic]:
        """The scan [S, C, H, W].

        Raises:
            ValueError: it cannot be read any more.
        """
        return self.pixels(index)


class ScanSamples(Dataset[dict[str, Tensor]]):
    """Samples as ``geomed.data.scan_source.ScanSource`` describes them."""

    def __init__(
        self,
        *,
        store: Store,
        indices: NDArray[np.int64],
        labels: Sequence[Tensor] | None,
        patients: NDArray[np.int64],
        volume: bool,
    ) -> None:
        """Hold what to read.

        Args:
            store: all scans of the source.
            indices: those of this part.
            labels: of this part, None where it has none.
            patients: of all scans of the source.
            volume: they have slices.
        """
        self.store, self.indices, self.volume = store, indices, volume
        self.labels = None if labels is None else torch.stack(list(labels)) if labels else torch.zeros(0)
        self.patients = torch.from_numpy(patients)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One sample.

        Raises:
            ValueError: a file cannot be read any more.
        """
        case = int(self.indices[index])
        kept = self.store[case]
        # a copy: the store may be a file that cannot be written to
        values = torch.from_numpy(kept.copy() if kept.dtype == np.uint8 else kept.astype(np.float32))
        sample = {"slices": values, "present": torch.ones(len(values), dtype=torch.bool)} if self.volume else {}
        if not self.volume:
            sample["values"] = values[0]
        sample |= {"case": torch.tensor(case), "patient": self.patients[case]}
        if self.labels is not None:
            sample["label"] = self.labels[index]
        return sample

"""A source of samples: what a data set must offer, what a sample looks like, and how samples become a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn.functional import pad

from geomed.pixels import IGNORE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from odc.geo.geobox import GeoBox
    from torch import Tensor
    from torch.utils.data import Dataset

Part = Literal["train", "val", "test", "predict"]
"""The four things that a source can be split into."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Where a map comes out."""

    name: str
    """A name that is unique within the source and fit for a file."""

    grid: GeoBox
    """Shape, transform and coordinate system of the map."""


class Source(ABC):
    """A data set; implementations are frozen keyword-only dataclasses.

    A sample is a plain dict of tensors (T dates, C bands, H x W pixels); one of a single image has no T and no days:

    - ``values`` float32 [T, C, H, W] or [C, H, W]: reflectance, or the unit that the source names; 0 where not valid,
      never NaN
    - ``days`` int64 [T]: whole days since 1970-01-01, ascending
    - ``valid`` bool [T, H, W] or [H, W]: True where there is a clear observation
    - ``labels`` int64 [H, W]: class index, ``IGNORE`` where unknown; absent where the area has no labels
    - ``scene`` int64 []: index into ``scenes()``
    - ``read``, ``keep`` int64 [4]: row, column, height, width in the scene's grid: the pixels of this sample, and those
      among them that a map takes from it

    Where a whole image has a label and no place in the world, as a medical scan, there is ``label`` and neither
    ``labels`` nor ``scene``, ``read``, ``keep``; see ``geomed.data.scan_source.ScanSource``.
    """

    bands: tuple[str, ...]
    """Names of the C bands in the order of ``values``."""

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""

    def prepare(self) -> None:  # noqa: B027  (most sources need nothing, so this is no duty)
        """Generate or verify what the source needs; called in one process, before any ``split``."""

    @abstractmethod
    def split(self, part: Part) -> Dataset[dict[str, Tensor]]:
        """The samples of one part: a map-style data set that pickles and opens its files lazily."""

    def scenes(self) -> tuple[Scene, ...]:
        """The scenes that ``scene`` of a sample counts through; none of a source that maps nothing."""
        return ()


def collate(samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Samples of any length and size → one batch, padded at the end of T or S, H and W to the largest among them.

    Padding is marked as such: ``valid`` and ``present`` False, ``labels`` IGNORE, the others 0.

    Raises:
        ValueError: some of the samples have labels and others do not.
    """
    if not samples:
        raise ValueError("a batch needs at least one sample, there are none; is the part empty?")
    keys = samples[0].keys()
    for sample in samples:
        if sample.keys() != keys:
            raise ValueError(
                "the samples of a batch must hold the same things, here "
                f"{', '.join(sorted(sample.keys() ^ keys))} is in some only; give every area labels or none"
            )
    length = "present" if "present" in keys else "days"  # of volumes, of series
    times = max(len(sample[length]) if length in sample else 0 for sample in samples)
    values = "slices" if "slices" in keys else "values"
    height = max(sample[values].shape[-2] for sample in samples)
    width = max(sample[values].shape[-1] for sample in samples)
    return {key: torch.stack([_padded(key, sample[key], times, height, width) for sample in samples]) for key in keys}


def _padded(key: str, tensor: Tensor, times: int, height: int, width: int) -> Tensor:
    if key in {"days", "present"}:
        return pad(tensor, (0, times - tensor.shape[0]))
    if key not in {"values", "slices", "valid", "labels"}:
        return tensor
    room = [0, width - tensor.shape[-1], 0, height - tensor.shape[-2]]
    if key == "labels":
        return pad(tensor, room, value=IGNORE)
    if not times:
        return pad(tensor, room)
    channels = [0, 0] if key in {"values", "slices"} else []
    return pad(tensor, [*room, *channels, 0, times - tensor.shape[0]])

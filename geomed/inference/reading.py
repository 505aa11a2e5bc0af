"""Pixels read ahead of the model, by threads: each only once where windows may share them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import pad

from geomed.windows import Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray
    from torch import Tensor

    from geomed.inference.model import Scene
    from geomed.inference.plan import Plan

_BLOCK = 512


@dataclass(kw_only=True)
class Meter:
    """Where the time went, in seconds, and how much was done."""

    waited: float = 0.0
    """For pixels to be read: the device stood idle."""

    computed: float = 0.0
    """In the model."""

    windows: int = 0
    """Windows given to the model."""

    skipped: int = 0
    """Windows without any observation, which it was spared."""

    pixels: int = 0
    """Pixels mapped."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some windows of one row of windows, on the device."""

    columns: tuple[int, ...]
    """Their numbers; those without any observation are left out."""

    first: int
    """The column of the raster where ``there`` begins."""

    there: Tensor
    """Where something was observed [H, W], in these windows and in those left out."""

    tensors: dict[str, Tensor]
    """What the model reads of them; nothing, if all are left out."""


class Reading(ABC):
    """Rows of windows of one scene, some way ahead of who asks for them, in order."""

    def __init__(
        self,
        scene: Scene,
        plan: Plan,
        rows: range,
        columns: tuple[int, int],
        *,
        batch_size: int,
        readers: int,
        device: torch.device,
        meter: Meter,
    ) -> None:
        """Begin to read.

        Args:
            scene: what to read.
            plan: of its shape.
            rows: rows of windows that will be asked for, one after the other.
            columns: their windows, [first, end).
            batch_size: windows in a batch, at most.
            readers: threads.
            device: where batches go.
            meter: where to count.
        """
        self.scene, self.plan, self.rows, self.columns = scene, plan, rows, columns
        self.readers, self.device, self.meter = readers, device, meter
        count = columns[1] - columns[0]
        parts = -(-count // batch_size)
        edges = [columns[0] + number * count // parts for number in range(parts + 1)]
        self._groups = [tuple(range(a, b)) for a, b in pairwise(edges)]

    @abstractmethod
    def batches(self, row: int) -> Iterator[Batch]:
        """The batches of a row of windows."""

    @abstractmethod
    def close(self) -> None:
        """Read no more."""

    def _result(self, future: Future[_Read]) -> _Read:
        began = time.perf_counter()
        try:
            return future.result()
        finally:
            self.meter.waited += time.perf_counter() - began

    def _counted(self, batch: Batch, windows: int) -> Batch:
        self.meter.windows += len(batch.columns)
        self.meter.skipped += windows - len(batch.columns)
        return batch


_Read = dict[str, "Tensor"]


class RowReading(Reading):
    """Of scenes whose pixels are the same in every window: a row of windows is a stretch of pixels.

    Each thread keeps to its columns. So it finds again what its file handle has decoded, and the rows that two rows of
    windows share are read once.
    """

    def __init__(self, *given: object, **options: object) -> None:
        """As of any reading."""
        super().__init__(*given, **options)  # type: ignore[arg-type]  # the same arguments
        starts, size = self.plan.columns.starts, self.plan.columns.size
        self._left = starts[self.columns[0]]
        self._width = starts[self.columns[1] - 1] + size - self._left
        blocks = -(-self._width // _BLOCK)
        parts = min(self.readers, blocks)
        edges = [min(blocks * number // parts * _BLOCK, self._width) for number in range(parts)] + [self._width]
        self._parts = list(pairwise(edges))
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix="read") for _ in self._parts]
        corner = self.scene.read(Window(self.plan.rows.starts[self.rows.start], self._left, 1, 1))
        self._kinds = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in corner.items()}
        self._coming: deque[tuple[_Read, list[Future[None]]]] = deque()
        self._last: tuple[int, _Read] | None = None
        self._rooms: dict[int, _Read] = {}
        self._next = self.rows.start

    def batches(self, row: int) -> Iterator[Batch]:
        """The batches of a row of windows."""
        while self._next < min(row + 2, self.rows.stop):
            self._begin(self._next)
            self._next += 1
        stretch, futures = self._coming.popleft()
        for future in futures:
            self._result(future)  # type: ignore[arg-type]  # only waited for
        here = {name: value.to(self.device, non_blocking=True) for name, value in stretch.items()}
        size = self.plan.columns.size
        for group in self._groups:
            offsets = [self.plan.columns.starts[column] - self._left for column in group]
            whole = slice(offsets[0], offsets[-1] + size)
            seen = stretch["valid"][:, whole]
            full = bool(seen.all())
            kept = [
                (column, at)
                for column, at in zip(group, offsets, strict=True)
                if full or bool(stretch["valid"][:, at : at + size].any())
            ]
            tensors = {
                name: torch.stack([value[..., at : at + size] for _, at in kept])
                for name, value in here.items()
                if kept
            }
            batch = Batch(
                columns=tuple(column for column, _ in kept),
                first=self._left + offsets[0],
                there=here["valid"][:, whole],
                tensors=tensors,
            )
            yield self._counted(batch, len(group))

    def _begin(self, row: int) -> None:
        """Have a row of windows read."""
        top, before = self.plan.rows.starts[row], self._last
        stretch = self._room(row)
        futures = [
            thread.submit(self._fill, stretch, before, top, part)
            for thread, part in zip(self._threads, self._parts, strict=True)
        ]
        self._last = top, stretch
        self._coming.append((stretch, futures))

    def _room(self, row: int) -> _Read:
        """Room for a row's pixels: that of the row before the last, which nobody reads any more.

        A GPU may still copy from that, so it gets memory of its own, which torch knows when to use again.
        """
        pinned = self.device.type == "cuda"
        if not pinned and len(self._rooms) == 2:
            return self._rooms[row % 2]
        room = {
            name: torch.empty((*kind.shape[:-2], self.plan.rows.size, self._width), dtype=kind.dtype, pin_memory=pinned)
            for name, kind in self._kinds.items()
        }
        if not pinned:
            self._rooms[row % 2] = room
        return room

    def _fill(self, stretch: _Read, before: tuple[int, _Read] | None, top: int, part: tuple[int, int]) -> None:
        """Fill a thread's columns: what the row before holds already, and then what is new."""
        size, columns = self.plan.rows.size, slice(*part)
        shared = 0 if before is None else max(0, before[0] + size - top)
        if before is not None and shared:
            for name, value in stretch.items():
                value[..., :shared, columns] = before[1][name][..., size - shared :, columns]
        if shared < size:
            window = Window(top + shared, self._left + part[0], size - shared, part[1] - part[0])
            for name, array in self.scene.read(window).items():
                stretch[name][..., shared:, columns] = torch.from_numpy(array)

    def close(self) -> None:
        """Read no more."""
        for thread in self._threads:
            thread.shutdown(cancel_futures=True)


class WindowReading(Reading):
    """Of scenes of which each window is read by itself, as series whose cloudy dates are left out."""

    def __init__(self, *given: object, **options: object) -> None:
        """As of any reading."""
        super().__init__(*given, **options)  # type: ignore[arg-type]  # the same arguments
        self._threads = ThreadPoolExecutor(self.readers, thread_name_prefix="read")
        self._wanted = ((row, group) for row in self.rows for group in self._groups)
        self._coming: deque[Future[_Read]] = deque()

    def batches(self, row: int) -> Iterator[Batch]:
        """The batches of a row of windows."""
        for group in self._groups:
            while len(self._coming) < self.readers + 2 and (one := next(self._wanted, None)) is not None:
                self._coming.append(self._threads.submit(self._read, *one))
            read = self._result(self._coming.popleft())
            kept = read.pop("kept").tolist()
            there = read.pop("there").to(self.device, non_blocking=True)
            batch = Batch(
                columns=tuple(group[each] for each in kept),
                first=self.plan.columns.starts[group[0]],
                there=there,
                tensors={name: value.to(self.device, non_blocking=True) for name, value in read.items()},
            )
            yield self._counted(batch, len(group))

    def _read(self, row: int, group: Sequence[int]) -> _Read:
        """A batch on the CPU, with ``kept``, the places in it of windows that hold something, and ``there``."""
        top, height, width = self.plan.rows.starts[row], self.plan.rows.size, self.plan.columns.size
        starts = [self.plan.columns.starts[column] for column in group]
        windows = [
            {name: _tensor(value) for name, value in self.scene.read(Window(top, at, height, width)).items()}
            for at in starts
        ]
        there = torch.zeros((height, starts[-1] + width - starts[0]), dtype=torch.bool)
        for at, one in zip(starts, windows, strict=True):
            there[:, at - starts[0] : at - starts[0] + width] |= one["valid"].any(0)
        kept = [each for each, one in enumerate(windows) if bool(one["valid"].any())]
        read = _together([windows[each] for each in kept]) if kept else {}
        if self.device.type == "cuda":
            read = {name: value.pin_memory() for name, value in read.items()}
        return read | {"there": there, "kept": torch.tensor(kept, dtype=torch.int64)}

    def close(self) -> None:
        """Read no more."""
        self._threads.shutdown(cancel_futures=True)


def _tensor(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _together(series: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Series of any number of dates as one batch; dates that were added are not valid."""
    longest = max(one["days"].shape[0] for one in series)
    room = [longest - one["days"].shape[0] for one in series]
    return {
        "values": torch.stack(
            [pad(one["values"], (0, 0, 0, 0, 0, 0, 0, more)) for one, more in zip(series, room, strict=True)]
        ),
        "valid": torch.stack(
            [pad(one["valid"], (0, 0, 0, 0, 0, more)) for one, more in zip(series, room, strict=True)]
        ),
        "days": torch.stack([pad(one["days"], (0, more)) for one, more in zip(series, room, strict=True)]),
    }

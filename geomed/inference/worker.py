"""One model at work: super-tiles of scenes in, their pieces as bytes out; the same on one machine and on many."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.nn.functional import pad

from geomed.inference.memory import refuse_too_large
from geomed.inference.outputs import Layers, layers_of
from geomed.inference.plan import Plan, Tiling
from geomed.inference.reading import Meter
from geomed.inference.stream import blend
from geomed.io.cog import encode_piece

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import Future

    from numpy.typing import NDArray
    from torch import Tensor

    from geomed.inference.model import MapModel, Scene
    from geomed.inference.plan import SuperTile


class SceneFile(Protocol):
    """A scene that is not opened yet; it pickles."""

    @property
    def name(self) -> str:
        """Unique, and fit for a file."""
        ...

    @property
    def identity(self) -> str:
        """Changes with its files."""
        ...

    def open(self) -> Scene:
        """Read the heads of its files.

        Raises:
            ValueError: they are not as they must be; the message names the file, the rule and the way out.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """How every scene is mapped: with the model, all that the bytes of a map depend on."""

    tiling: Tiling = Tiling()  # noqa: RUF009  (frozen)
    """How it is cut."""

    layers: Layers = Layers()  # noqa: RUF009  (frozen)
    """What is written."""

    batch_size: int = 16
    """Windows that go through the model at once."""

    flips: bool = False
    """Whether each window is seen in all its turned and mirrored forms, and their mean is taken."""

    also: Mapping[str, Any] = field(default_factory=dict)
    """What else they depend on, by name and fit for JSON: precision, threads, what is known of the images."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Super-tiles of one scene that are best computed by one worker, in order."""

    scene: SceneFile
    """The scene."""

    tiles: tuple[int, ...]
    """Their numbers in its plan."""


@dataclass(frozen=True, kw_only=True)
class Advance:
    """Some pixels more are mapped."""

    pixels: int
    """How many."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """A super-tile is mapped."""

    scene: str
    """The scene's name."""

    tile: int
    """Its number."""

    pieces: Mapping[str, bytes]
    """Layer → a GeoTIFF of its pixels."""

    seconds: float
    """Since the one before."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A scene cannot be mapped, or not to its end."""

    scene: str
    """The scene's name."""

    reason: str
    """One line."""


class Worker:
    """A model on a device."""

    def __init__(self, model: MapModel, job: Job, *, device: torch.device | str = "cpu", readers: int = 2) -> None:
        """Make it ready; ``readers`` is how many threads read."""
        self.model, self.job, self.device, self.readers = model, job, torch.device(device), readers
        self.meter = Meter()

    def map(self, task: Task) -> Iterator[Advance | Done | Failed]:
        """Map the super-tiles of a task.

        Raises:
            ValueError: the device has too little memory for a batch.
        """
        try:
            scene = task.scene.open()
            plan = Plan.of(tuple(scene.grid.shape), self.job.tiling)
            refuse_too_large(plan, self.model, batch_size=self.job.batch_size, readers=self.readers, device=self.device)
            yield from self._map(scene, task.scene.name, plan, [plan.tiles[number] for number in task.tiles])
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"{self.device} has too little memory for {self.job.batch_size} windows of {self.job.tiling.size} "
                "pixels at once; take a smaller --batch-size or --size"
            ) from error
        except ValueError as error:
            yield Failed(scene=task.scene.name, reason=" ".join(str(error).split()))

    def _map(self, scene: Scene, name: str, plan: Plan, tiles: list[SuperTile]) -> Iterator[Advance | Done]:
        classes, layers = len(self.model.classes), self.job.layers
        pieces: dict[str, NDArray[np.uint8]] = {}
        began = time.monotonic()
        waiting: deque[tuple[int, Future[dict[str, bytes]], float]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="encode") as pool:
            for blended in blend(
                scene,
                _logits(self.model, flips=self.job.flips),
                plan,
                tiles,
                batch_size=self.job.batch_size,
                device=self.device,
                readers=self.readers,
                meter=self.meter,
            ):
                keep = blended.tile.keep
                if blended.rows[0] == 0:
                    pieces = {
                        layer: np.empty((bands, keep.height, keep.width), dtype=np.uint8)
                        for layer, bands in layers.bands(classes).items()
                    }
                rows = slice(*blended.rows)
                for layer, values in layers_of(blended, layers, classes).items():
                    pieces[layer][:, rows] = values
                yield Advance(pixels=(rows.stop - rows.start) * keep.width)
                if rows.stop == keep.height:
                    now = time.monotonic()
                    waiting.append((blended.tile.number, pool.submit(_encoded, pieces), now - began))
                    began = now
                while waiting and (waiting[0][1].done() or len(waiting) > 2):
                    yield _done(name, *waiting.popleft())
            while waiting:
                yield _done(name, *waiting.popleft())


def _encoded(pieces: Mapping[str, NDArray[np.uint8]]) -> dict[str, bytes]:
    return {layer: encode_piece(values) for layer, values in pieces.items()}


def _done(scene: str, tile: int, future: Future[dict[str, bytes]], seconds: float) -> Done:
    return Done(scene=scene, tile=tile, pieces=future.result(), seconds=seconds)


def _logits(model: MapModel, *, flips: bool) -> Callable[[dict[str, Tensor]], Tensor]:
    """What the model says of windows of any size; if asked for, the mean over all their turned forms."""

    def fitted(batch: dict[str, Tensor]) -> Tensor:
        if model.fixed:
            batch = {name: _filled(value, model.window) if value.ndim > 2 else value for name, value in batch.items()}
        return model.run(batch)

    return (lambda batch: turned(fitted, batch)) if flips else fitted


def turned(run: Callable[[dict[str, Tensor]], Tensor], batch: dict[str, Tensor]) -> Tensor:
    """The mean over the eight turned and mirrored forms of square windows, over four of others, turned back."""
    square = batch["values"].shape[-1] == batch["values"].shape[-2]
    total: Tensor | None = None
    for quarter in range(0, 4, 1 if square else 2):
        for mirror in (False, True):
            seen = {
                name: _turn(value, quarter, mirror=mirror) if value.ndim > 2 else value for name, value in batch.items()
            }
            scores = run(seen)
            back = torch.rot90(scores.flip(-1) if mirror else scores, -quarter, (-2, -1))
            total = back if total is None else total + back
    if total is None:
        raise AssertionError
    return total / (8 if square else 4)


def _turn(value: Tensor, quarter: int, *, mirror: bool) -> Tensor:
    value = torch.rot90(value, quarter, (-2, -1))
    return value.flip(-1) if mirror else value


def _filled(value: Tensor, size: int) -> Tensor:
    """Filled up below and to the right, with what is not valid."""
    return pad(value, (0, size - value.shape[-1], 0, size - value.shape[-2]))

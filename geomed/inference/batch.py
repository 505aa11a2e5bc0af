"""Many scenes, one after the other: nothing that was finished is done again, and what fails, fails alone."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from filelock import FileLock

from geomed.inference.plan import Plan
from geomed.inference.worker import Advance, Done, Failed, Task, Worker
from geomed.io.cog import store_piece

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from geomed.inference.finish import Finish
    from geomed.inference.ledger import Ledger
    from geomed.inference.model import Scene
    from geomed.inference.worker import Job, SceneFile

_log = logging.getLogger(__name__)

WORK = ".work"
"""Where in the output directory the pieces of unfinished maps lie."""


class Engine(Protocol):
    """What computes super-tiles, in whatever order."""

    def map(self, tasks: Iterable[Task]) -> Iterator[Advance | Done | Failed]:
        """Map all tasks; what fails is told, not raised."""
        ...

    @property
    def tiles_together(self) -> int | None:
        """Super-tiles that one task should hold; None: as many as there are."""
        ...

    @property
    def idle(self) -> float | None:
        """Share of the time that the model waited for pixels, if known."""
        ...


class LocalEngine:
    """One worker in this process."""

    tiles_together = None

    def __init__(self, worker: Worker) -> None:
        """With this worker."""
        self.worker = worker
        self._seconds = 0.0

    def map(self, tasks: Iterable[Task]) -> Iterator[Advance | Done | Failed]:
        """Task after task."""
        for task in tasks:
            began = time.monotonic()
            yield from self.worker.map(task)
            self._seconds += time.monotonic() - began

    @property
    def idle(self) -> float | None:
        """Share of the time that the model waited for pixels."""
        return self.worker.meter.waited / self._seconds if self._seconds else None


@dataclass(kw_only=True)
class Summary:
    """How it went."""

    mapped: list[str] = field(default_factory=list)
    """Scenes whose maps were finished now."""

    before: list[str] = field(default_factory=list)
    """Those finished in an earlier run."""

    waiting: list[str] = field(default_factory=list)
    """Those of which other shards have not done their part."""

    failed: dict[str, str] = field(default_factory=dict)
    """Scene → why."""

    pixels: int = 0
    """Mapped now."""

    seconds: float = 0.0
    """It took."""

    idle: float | None = None
    """Share of the time that the model waited for pixels."""


@dataclass(kw_only=True)
class _Open:
    """A scene on its way."""

    file: SceneFile
    scene: Scene
    plan: Plan
    folder: Path
    left: set[int]
    """Super-tiles of this shard that are not stored yet."""

    def piece(self, tile: int, layer: str) -> Path:
        """Where a layer of a super-tile is stored."""
        return _piece(self.folder, tile, layer)

    def pixels_left(self) -> int:
        """In those super-tiles."""
        return sum(self.plan.tiles[tile].keep.height * self.plan.tiles[tile].keep.width for tile in self.left)


def map_scenes(
    files: Sequence[SceneFile],
    engine: Engine,
    job: Job,
    ledger: Ledger,
    finish: Finish,
    *,
    retry_failed: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Summary:
    """Map scenes into the ledger's directory.

    Args:
        files: what to map; in the same order in every shard.
        engine: what computes.
        job: how.
        ledger: what is done already, and where the rest is noted.
        finish: what is made of the pieces of a scene.
        retry_failed: try again what failed before.
        progress: told (pixels done, pixels to do) now and then.

    Raises:
        OSError: the output directory cannot be written; what was stored before stays.
        ValueError: the device is too small for a batch.
    """
    began = time.monotonic()
    run = _Run(job, ledger, finish, list(job.layers.bands(finish.classes)))
    _refuse_one_name_twice([file.name for file in files], run.layers)
    for index, file in enumerate(files):
        run.open(index, file, retry_failed=retry_failed)
    for note, names in _notes(run.opened.values()).items():
        _log.info("%s: %s", names, note)
    total = sum(one.pixels_left() for one in run.opened.values())
    with ThreadPoolExecutor(1, thread_name_prefix="keep") as keeper:
        kept = [keeper.submit(run.complete, one) for one in run.opened.values() if not one.left]
        try:
            for told in engine.map(_tasks(run.opened.values(), engine.tiles_together)):
                if isinstance(told, Advance):
                    run.summary.pixels += told.pixels
                    progress(run.summary.pixels, total)
                elif isinstance(told, Failed):
                    run.fail(run.opened[told.scene].file, told.reason)
                else:
                    kept.append(keeper.submit(run.keep, told))
                while kept and (kept[0].done() or len(kept) > 4):
                    kept.pop(0).result()
        finally:
            for future in kept:
                future.result()
    with suppress(OSError):  # other shards may have pieces there
        (ledger.out / WORK).rmdir()
    run.summary.seconds, run.summary.idle = time.monotonic() - began, engine.idle
    return run.summary


class _Run:
    """What all scenes of one call share."""

    def __init__(self, job: Job, ledger: Ledger, finish: Finish, layers: Sequence[str]) -> None:
        self.job, self.ledger, self.finish, self.layers = job, ledger, finish, layers
        self.summary = Summary()
        self.opened: dict[str, _Open] = {}

    def open(self, index: int, file: SceneFile, *, retry_failed: bool) -> None:
        """Look what is left to do of a scene."""
        if self.finish.finished(file):
            self.summary.before.append(file.name)
            return
        reason = self.ledger.failed(file.name, file.identity)
        if reason is not None and not retry_failed:
            self.summary.failed[file.name] = f"{reason} (it failed before; --retry-failed tries again)"
            return
        try:
            scene = file.open()
            plan = Plan.of(tuple(scene.grid.shape), self.job.tiling)
        except ValueError as error:
            self.fail(file, " ".join(str(error).split()))
            return
        self.ledger.pardon(file.name)
        folder = self.ledger.out / WORK / f"{file.name}-{file.identity[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        own = self.ledger.shard.own(index, len(plan.tiles))
        noted = self.ledger.finished(file.name, file.identity)
        whole = {tile for tile, files in noted.items() if _stands(folder, files, tile, self.layers)}
        self.opened[file.name] = _Open(file=file, scene=scene, plan=plan, folder=folder, left=set(own) - whole)

    def fail(self, file: SceneFile, reason: str) -> None:
        """Note that a scene cannot be mapped."""
        self.summary.failed[file.name] = reason
        self.ledger.fail(file.name, file.identity, reason)

    def keep(self, done: Done) -> None:
        """Store a super-tile, and finish its scene if it was the last."""
        one, told = self.opened[done.scene], dict[str, str]()
        for layer, data in done.pieces.items():
            path = one.piece(done.tile, layer)
            store_piece(path, data)
            told[path.name] = hashlib.sha256(data).hexdigest()
        self.ledger.finish(done.scene, one.file.identity, done.tile, told, done.seconds)
        one.left.discard(done.tile)
        if not one.left:
            self.complete(one)

    def complete(self, one: _Open) -> None:
        """Make the maps of a scene, once the other shards have done their part."""
        there = all(one.piece(tile.number, layer).is_file() for tile in one.plan.tiles for layer in self.layers)
        if not there and not self.finish.finished(one.file):
            self.summary.waiting.append(one.file.name)
            return
        with FileLock(self.ledger.out / ".lock-finish"):  # another shard may have seen that all is there, too
            if not self.finish.finished(one.file):
                self.finish.scene(one.scene, one.file, one.plan, one.piece)
            shutil.rmtree(one.folder, ignore_errors=True)
        self.summary.mapped.append(one.file.name)


def _notes(opened: Iterable[_Open]) -> dict[str, str]:
    """What is to be known of the scenes: note → of which."""
    found: dict[str, list[str]] = {}
    for one in opened:
        for note in one.scene.notes:
            found.setdefault(note, []).append(one.file.name)
    return {note: names[0] if len(names) == 1 else f"{len(names)} scenes" for note, names in found.items()}


def _refuse_one_name_twice(names: Sequence[str], layers: Sequence[str]) -> None:
    """No file may stand for two things."""
    made = Counter([*names, *(f"{name}_{layer}" for name in names for layer in (*layers[1:], "fields"))])
    twice = [name for name, count in made.items() if count > 1]
    if twice:
        raise ValueError(
            f"two outputs would have the name {twice[0]}; rename a scene, or map them into two directories"
        )


def _stands(folder: Path, files: dict[str, str], tile: int, layers: Sequence[str]) -> bool:
    """Whether the files of a super-tile are as they were written."""
    paths = [_piece(folder, tile, layer) for layer in layers]
    return all(
        path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == files.get(path.name) for path in paths
    )


def _tasks(opened: Iterable[_Open], together: int | None) -> Iterator[Task]:
    """What is left, in runs of neighbours."""
    for one in opened:
        numbers = sorted(one.left)
        step = together or max(len(numbers), 1)
        for first in range(0, len(numbers), step):
            yield Task(scene=one.file, tiles=tuple(numbers[first : first + step]))


def _piece(folder: Path, tile: int, layer: str) -> Path:
    return folder / f"{tile:06d}.{layer}.tif"

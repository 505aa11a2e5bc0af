"""Super-tiles on a Ray cluster: one model for each GPU, or for so many cores, on whatever machines there are.

Ray only hands out the work. What is done is noted by the one process that asked for it, which is also the only one that
writes, so that workers may die, be killed or come back at any moment.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from typing import TYPE_CHECKING, Any

import torch

from geomed.inference.worker import Advance, Done, Failed, Task, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from geomed.inference.model import MapModel
    from geomed.inference.worker import Job

_log = logging.getLogger(__name__)

TOGETHER = 4
"""Super-tiles in one task: enough that what neighbours share is seldom computed twice, few enough to lose little."""

AHEAD = 2
"""Tasks that a worker has at a time, one of them waiting."""

TRIES = 3
"""How often a task is given out before its workers' deaths are taken for its fault."""


class _Replica:
    """A worker in a process of its own."""

    def __init__(
        self, load: Callable[[torch.device], MapModel], job: Job, device: str, threads: int, fingerprint: str
    ) -> None:
        os.environ.setdefault("GDAL_CACHEMAX", "256")  # megabytes; its own choice is a share of the machine
        torch.set_num_threads(threads)
        where = torch.device(device)
        model = load(where)
        if model.fingerprint != fingerprint:
            raise ValueError(
                f"a worker has another model, fingerprint {model.fingerprint[:12]} and not {fingerprint[:12]}; "
                "give all machines the same file"
            )
        self._worker = Worker(model, job, device=where)

    def map(self, task: Task) -> tuple[list[Advance | Done | Failed], float]:
        """All that a task gives, and the share of its time that the model waited."""
        meter = self._worker.meter
        meter.waited = meter.computed = 0.0
        told = list(self._worker.map(task))
        return told, meter.waited / max(meter.waited + meter.computed, 1e-9)


class RayEngine:
    """Replicas of a model on the workers of a Ray cluster."""

    tiles_together = TOGETHER

    def __init__(
        self,
        load: Callable[[torch.device], MapModel],
        job: Job,
        *,
        fingerprint: str,
        device: str = "cpu",
        cores: int = 1,
        workers: int | None = None,
    ) -> None:
        """Connect to the cluster that ``RAY_ADDRESS`` names, or start one on this machine.

        Args:
            load: makes the model on a device; it is sent to the workers, which must reach the same files.
            job: how to map.
            fingerprint: of the model that is expected.
            device: ``cuda`` gives each worker a GPU.
            cores: of each worker, and the threads of its model.
            workers: how many; None: as many as the cluster has room for now.

        Raises:
            ValueError: Ray is not installed, or the cluster has no room for one worker.
        """
        try:
            import ray  # late: an extra, and heavy
        except ImportError as error:
            raise ValueError('--engine ray needs Ray: pip install "geomed[ray]"') from error
        self._ray = ray
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        there = ray.cluster_resources()
        gpus = 1 if device == "cuda" else 0
        room = int(min(there.get("CPU", 0) // cores, there.get("GPU", 0) if gpus else float("inf")))
        if room < 1 or (workers is not None and not 1 <= workers <= room):
            raise ValueError(
                f"the cluster has {there.get('CPU', 0):g} cores and {there.get('GPU', 0):g} GPUs: room for {room} "
                f"workers of {cores} cores{' and a GPU' if gpus else ''}, not for {workers or 1}; change --workers or "
                "--threads"
            )
        self.count = workers or room
        self._new: Callable[[], Any] = lambda: (
            ray.remote(_Replica).options(num_cpus=cores, num_gpus=gpus).remote(load, job, device, cores, fingerprint)
        )
        self._idle: list[float] = []

    @property
    def idle(self) -> float | None:
        """Share of the time that the models waited for pixels."""
        return sum(self._idle) / len(self._idle) if self._idle else None

    def map(self, tasks: Iterable[Task]) -> Iterator[Advance | Done | Failed]:
        """Map tasks on all workers; what a dead one had is given to another.

        Raises:
            ValueError: a task has killed several workers, or a device is too small for a batch.
        """
        ray = self._ray
        coming = iter(tasks)
        again: deque[tuple[Task, int]] = deque()
        busy: dict[Any, tuple[Any, Task, int]] = {}
        replicas = [self._new() for _ in range(self.count)]
        try:
            while True:
                for replica in replicas:
                    while sum(one is replica for one, _, _ in busy.values()) < AHEAD:
                        task, tried = again.popleft() if again else (next(coming, None), 0)
                        if task is None:
                            break
                        busy[replica.map.remote(task)] = (replica, task, tried + 1)
                if not busy:
                    return
                (ready, *_), _ = ray.wait(list(busy), num_returns=1)
                replica, task, tried = busy.pop(ready)
                try:
                    told, waited = ray.get(ready)
                except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
                    _refuse_deadly(task, tried, error)
                    again.append((task, tried))
                    replicas[:] = [self._new() if one is replica else one for one in replicas]
                else:
                    self._idle.append(waited)
                    yield from told
        finally:
            for replica in replicas:
                ray.kill(replica)


def _refuse_deadly(task: Task, tried: int, error: Exception) -> None:
    """Give up on a task that workers die of.

    Raises:
        ValueError: several did.
    """
    if tried >= TRIES:
        raise ValueError(
            f"scene {task.scene.name}: {tried} workers died while mapping its super-tiles {task.tiles} "
            f"({type(error).__name__}); they may lack memory: take a smaller --batch-size or --columns"
        ) from error
    _log.warning("a worker died; its super-tiles of %s go to another", task.scene.name)

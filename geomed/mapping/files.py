"""Files in, maps out: `geomed map` from Python."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from geomed.inference.batch import LocalEngine, map_scenes
from geomed.inference.finish import Finish
from geomed.inference.ledger import Ledger, Shard, fingerprint_of
from geomed.inference.worker import Job, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from geomed.inference.batch import Engine, Summary
    from geomed.inference.model import MapModel
    from geomed.inference.worker import SceneFile


@dataclass(frozen=True, kw_only=True)
class Fields:
    """What of a map becomes polygons."""

    background: tuple[str, ...] = ()
    """Classes that are no fields."""

    min_area: float = 0.0
    """Smaller fields are left out, in m²."""


def map_files(
    model: MapModel,
    files: Sequence[SceneFile],
    out: str | Path,
    *,
    job: Job = Job(),  # noqa: B008  (frozen)
    engine: Engine | None = None,
    fields: Fields | None = None,
    shard: Shard = Shard(),  # noqa: B008  (likewise)
    retry_failed: bool = False,
) -> Summary:
    """Map scenes into a directory; what it holds of the same run already is kept.

    Args:
        model: what maps; any callable on tensors with its facts.
        files: what is mapped, as `find_scenes` finds it.
        out: the directory.
        job: how; windows should have the size that the model was trained on.
        engine: where; None: on this machine's CPU.
        fields: write polygons, too.
        shard: which part of the work.
        retry_failed: try again what failed before.

    Returns:
        What was mapped, and what failed and why: one scene's fault stops no other.

    Raises:
        ValueError: the directory holds maps of another run, or another process is at work in it.
        OSError: it cannot be written; what was finished stays.
    """
    os.environ.setdefault("GDAL_CACHEMAX", "256")  # megabytes; its own choice is a share of the machine
    told = _told(model, job, fields)
    finish = Finish(
        model=model,
        job=job,
        fingerprint=fingerprint_of(told),
        out=Path(out),
        fields=fields is not None,
        background=() if fields is None else fields.background,
        min_area=0.0 if fields is None else fields.min_area,
    )
    with Ledger(Path(out), told, shard) as ledger, _spoken(), _Bar() as bar:
        return map_scenes(
            files,
            engine or LocalEngine(Worker(model, job)),
            job,
            ledger,
            finish,
            retry_failed=retry_failed,
            progress=bar,
        )


def _told(model: MapModel, job: Job, fields: Fields | None) -> dict[str, Any]:
    """All that the bytes of a map depend on besides its scene."""
    tiling = job.tiling
    return {
        "model": model.fingerprint,
        "classes": list(model.classes),
        "size": tiling.size,
        "overlap": tiling.overlap,
        "margin": tiling.context,
        "blend": tiling.blend,
        "rows": tiling.rows,
        "columns": tiling.columns,
        "batch size": job.batch_size,
        "flips": job.flips,
        "confidence": job.layers.confidence,
        "probabilities": job.layers.probabilities,
        "fields": None if fields is None else {"background": list(fields.background), "least area": fields.min_area},
        **job.also,
    }


class _Bar:
    """Megapixels per second and the time left, on a terminal or, more rarely, in a log."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> Callable[[int, int], None]:
        return self._show

    def _show(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = tqdm(
                total=total / 1e6,
                unit="MP",
                delay=2,
                mininterval=0.2 if sys.stderr.isatty() else 30,
                bar_format="{percentage:3.0f}% {bar} {n:.1f} of {total:.1f} MP, {rate_noinv_fmt}, {remaining} left",
            )
        self._bar.update(done / 1e6 - self._bar.n)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


@contextmanager
def _spoken() -> Iterator[None]:
    """What the project's modules log is said."""
    log, told = logging.getLogger("geomed"), logging.StreamHandler(sys.stdout)
    told.setFormatter(logging.Formatter("%(message)s"))
    before = log.level, log.propagate
    log.addHandler(told)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(told)
        log.level, log.propagate = before

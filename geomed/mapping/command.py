"""The command `geomed map`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from geomed.data.area import Masks
from geomed.data.mapped_scenes import Settings, find_scenes
from geomed.inference.batch import LocalEngine
from geomed.inference.ledger import Shard, begun_with
from geomed.inference.outputs import Layers
from geomed.inference.plan import Tiling
from geomed.inference.ray_engine import RayEngine
from geomed.inference.worker import Job, Worker
from geomed.mapping.files import Fields, map_files
from geomed.mapping.models import load_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

    from geomed.inference.batch import Engine, Summary
    from geomed.inference.model import MapModel
    from geomed.mapping.facts import Trained

ABOUT = """\
Map scenes of any size with a trained model: one georeferenced map of classes for each, a Cloud Optimised GeoTIFF with
colours and names, with a STAC item and a picture beside it. Windows overlap and fade into each other; memory grows with
the width of a scene, not with its area. What is finished is kept: after an interruption of any kind the same command
goes on, and the maps are the same to the byte.
"""

SEEN_AT_ONCE = {"cpu": 2**18, "cuda": 2**21}
"""Pixels of a batch, unless told otherwise. On a CPU more only cost memory."""


def main(arguments: Sequence[str]) -> int:
    """Run `geomed map`; returns the exit code: 0 all mapped, 3 some scenes failed (bad usage raises ValueError)."""
    given = _parser().parse_args(arguments)
    if not (given.input or given.list or given.stac):
        raise ValueError("name what to map: --input 'scenes/*.tif', --list tiles.txt or --stac items.json")
    signal.signal(signal.SIGTERM, _stop)
    device = _device(given.device)
    threads = _threads(given)
    torch.set_num_threads(threads)
    precision = given.precision or ("bf16" if device.type == "cuda" else "32")
    trained = load_model(given.model, device=device, precision=precision)
    model = trained.model
    settings = _settings(given, trained)
    also = {"precision": precision, "threads": threads, "images": repr(settings)}
    job = replace(_job(given, model, device), also=also)
    files = find_scenes(given.input, given.list, given.stac, settings)
    print(
        f"model: {model.about.get('architecture', 'network')}, {len(model.classes)} classes, on {device} ({precision})"
    )
    print(f"scenes: {len(files)}; windows of {job.tiling.size} pixels, overlap {job.tiling.overlap}; into {given.out}")
    engine: Engine
    if given.engine == "ray":
        engine = RayEngine(
            partial(_model, given.model, precision),
            job,
            fingerprint=model.fingerprint,
            device=device.type,
            cores=threads,
            workers=given.workers,
        )
    else:
        engine = LocalEngine(Worker(model, job, device=device, readers=given.readers or _readers(device)))
    fields = Fields(background=tuple(given.background), min_area=given.min_area) if given.fields else None
    summary = map_files(
        model,
        files,
        given.out,
        job=job,
        engine=engine,
        fields=fields,
        shard=Shard.parse(given.shard),
        retry_failed=given.retry_failed,
    )
    _print(summary, given.out)
    return 3 if summary.failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="geomed map", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_argument_group("what")
    what.add_argument(
        "--model", required=True, help="a run's folder (runs/NAME), a checkpoint in one, or an exported file"
    )
    what.add_argument(
        "--input",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="images, such as 'scenes/*.tif', or 'scenes/*_{band}.tif' where each band has its file; for a model of "
        "series, folders with a file for each date",
    )
    what.add_argument("--list", type=Path, metavar="FILE", help="a text file with a path or pattern on each line")
    what.add_argument("--stac", type=Path, metavar="FILE", help="STAC items (JSON)")
    what.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the maps go")
    how = parser.add_argument_group("how")
    how.add_argument("--size", type=int, help="side of a window in pixels (default: as in training)")
    how.add_argument(
        "--overlap", type=int, help="pixels that neighbouring windows share (default: a quarter of --size)"
    )
    how.add_argument("--margin", type=int, help="of them, context only at each side (default: a quarter of --overlap)")
    how.add_argument("--blend", choices=("cosine", "linear", "none"), default="cosine", help="(default: %(default)s)")
    how.add_argument(
        "--flips", action="store_true", help="mean over all turned and mirrored forms: eight times the work"
    )
    how.add_argument("--confidence", action="store_true", help="write confidence and entropy too")
    how.add_argument("--probabilities", action="store_true", help="write the probability of each class too")
    how.add_argument(
        "--fields", action="store_true", help="write the fields of each class as polygons too (GeoParquet)"
    )
    how.add_argument(
        "--background", nargs="+", default=[], metavar="CLASS", help="with --fields: classes that are no fields"
    )
    how.add_argument(
        "--min-area", type=float, default=0.0, metavar="M2", help="with --fields: smaller ones are left out"
    )
    images = parser.add_argument_group("images, where the model's training or the files do not say it")
    images.add_argument("--scale", type=float, help="value of one step of the stored numbers")
    images.add_argument("--offset", type=float, help="value of the number 0")
    images.add_argument("--nodata", type=float, help='number that means "no observation"')
    images.add_argument("--band-names", nargs="+", metavar="NAME", help="of files that do not describe their bands")
    images.add_argument(
        "--scl", metavar="PATTERN", help="of series: scene classification, such as '{stem}_SCL.tif', or none"
    )
    images.add_argument("--bad", metavar="PATTERN", help="of series: cloud mask whose 0 is good, or none")
    images.add_argument("--clear", type=int, nargs="+", metavar="CODE", help="of series: its classes that are clear")
    images.add_argument(
        "--min-clear", type=float, help="of series: share of a window that must be clear for a date to count"
    )
    images.add_argument(
        "--season", nargs=2, metavar=("FIRST", "LAST"), help="of series: first and last day, YYYY-MM-DD"
    )
    images.add_argument(
        "--reproject", action="store_true", help="bring dates and bands of other grids onto the first's"
    )
    where = parser.add_argument_group("where and how fast")
    where.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    where.add_argument("--precision", choices=("32", "bf16", "fp16"), help="(default: bf16 on a GPU, else 32)")
    where.add_argument("--batch-size", type=int, help="windows at once (default: of 2^18 pixels in all, on a GPU 2^21)")
    where.add_argument(
        "--threads",
        type=int,
        help="of the model on a CPU, with ray the cores of each worker; the last bits of its numbers depend on them "
        "(default: those that the maps in --out were begun with, else as many as there are cores, with ray 1)",
    )
    where.add_argument("--readers", type=int, help="threads that read (default: 2, with a GPU 8)")
    where.add_argument("--rows", type=int, default=1024, help="about the rows of a super-tile (default: %(default)s)")
    where.add_argument("--columns", type=int, default=16384, help="about its most columns (default: %(default)s)")
    where.add_argument(
        "--shard", default="1/1", metavar="I/N", help="do part I of N; the last to end finishes each map"
    )
    where.add_argument("--engine", choices=("local", "ray"), default="local", help="(default: %(default)s)")
    where.add_argument("--workers", type=int, help="with ray: models at work (default: all that there is room for)")
    where.add_argument("--retry-failed", action="store_true", help="try again what failed in an earlier run")
    return parser


def _model(path: str, precision: str, device: torch.device) -> MapModel:
    return load_model(path, device=device, precision=precision).model


def _device(name: str) -> torch.device:
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise ValueError(f"--device is auto, cpu, cuda or cuda:N, not {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: there is no GPU that torch can use; take --device cpu")
    return device


def _threads(given: argparse.Namespace) -> int:
    """Of the model: sums of products in other portions differ in their last bits, and so might a map."""
    if given.threads is not None:
        if given.threads < 1:
            raise ValueError(f"--threads must be at least 1, not {given.threads}")
        return given.threads
    before = begun_with(given.out).get("threads")
    if isinstance(before, int):
        return before
    return 1 if given.engine == "ray" else torch.get_num_threads()


def _readers(device: torch.device) -> int:
    return min(8, os.cpu_count() or 1) if device.type == "cuda" else 2


def _job(given: argparse.Namespace, model: MapModel, device: torch.device) -> Job:
    size = given.size or model.window
    if model.fixed and size != model.window:
        raise ValueError(
            f"this exported model reads windows of {model.window} pixels only, not {size}; leave --size out"
        )
    if given.batch_size is not None and given.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, not {given.batch_size}")
    most = 64 if model.series else 256
    return Job(
        tiling=Tiling(
            size=size,
            overlap=size // 4 if given.overlap is None else given.overlap,
            margin=given.margin,
            blend=given.blend,
            rows=given.rows,
            columns=given.columns,
        ),
        layers=Layers(confidence=given.confidence, probabilities=given.probabilities),
        batch_size=given.batch_size or max(1, min(most, SEEN_AT_ONCE.get(device.type, 2**18) // size**2)),
        flips=given.flips,
    )


def _settings(given: argparse.Namespace, trained: Trained) -> Settings:
    """What is known of the images: said here, or in training."""
    model, masks = trained.model, trained.masks or Masks()
    if given.scl is not None:
        masks = replace(masks, scl=None if given.scl == "none" else given.scl)
    if given.bad is not None:
        masks = replace(masks, bad=None if given.bad == "none" else given.bad)
    if given.clear is not None:
        masks = replace(masks, clear=tuple(given.clear))
    return Settings(
        bands=model.bands,
        series=model.series,
        scale=given.scale,
        offset=given.offset,
        nodata=given.nodata,
        trained=model.units,
        band_names=tuple(given.band_names) if given.band_names else trained.band_names,
        masks=masks,
        min_clear=given.min_clear if given.min_clear is not None else trained.min_clear or 0.1,
        season=tuple(given.season) if given.season else None,
        reproject=given.reproject,
    )


def _print(summary: Summary, out: Path) -> None:
    """One summary at the end."""
    speed = summary.pixels / 1e6 / max(summary.seconds, 1e-9)
    idle = "" if summary.idle is None else f"; the model waited {summary.idle:.0%} of the time"
    print(
        f"mapped {len(summary.mapped)} scenes into {out}, {summary.pixels / 1e6:.2f} MP in {summary.seconds:.1f} s, "
        f"{speed:.2f} MP/s{idle}"
    )
    if summary.before:
        print(f"{len(summary.before)} were mapped before")
    if summary.waiting:
        print(f"{len(summary.waiting)} wait for other shards: {_some(summary.waiting)}")
    for name, reason in sorted(summary.failed.items()):
        print(f"geomed: {name} failed: {reason}", file=sys.stderr)
    if summary.failed:
        print(
            f"geomed: {len(summary.failed)} scenes failed; mend them and run the same command again, with "
            "--retry-failed where the files are unchanged",
            file=sys.stderr,
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _stop(number: int, _frame: FrameType | None) -> None:
    """What SIGTERM does: what was finished is kept."""
    print("geomed: stopped; the same command goes on", file=sys.stderr)
    raise SystemExit(128 + number)

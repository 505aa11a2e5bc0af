"""Mapping large scenes tile by tile: speed, memory and seams of geomed and its peers.

    python benchmarks/tiles.py --data DIR [--quick] [--sizes ...] [--models ...] [--harness ...] [--repeats 3]

Scenes are made up (tile_scenes.py), 10 bands in uint16, 20 classes; who maps them how stands in tile_harnesses.py.
The same module with the same random weights, windows of 256 pixels that overlap by 64, at most 16 at once (series: 48
and 12), the same threads of torch, the same cache of GDAL. Every measurement is a process of its own; harnesses take
turns, repeat after repeat.

Measured from the file to the finished map; imports and the model are ready when the clock starts. After every run the
model alone is run on batches of the same shapes and number, in a process of its own too (of each shape REPLAYED at
most are timed, and the others taken to last as long): what a run costs beyond that is the harness. Peak memory is the
process's highest resident set, of which ``before_mib`` was there before the clock started.

``seams`` is geomed.evaluation.seams of the written map along the lines where the harness's own windows begin or cease
to count, ``seams_elsewhere`` the same of lines some way beside them, for each of ASIDE: what is found without any
seam. ``errors``: largest difference of probabilities from those of one forward pass over the whole scene, of a network
that sees five pixels far, and the share of pixels with another class; in the inside, 16 pixels away from the sides,
and everywhere.

A harness that would need more memory than is free is not run and told so; what it would need is extrapolated linearly
from smaller scenes. Peers that are not installed are skipped.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import torch
from rasterio.windows import Window
from tile_harnesses import DAYS, HARNESSES, SERIES, Case, Counted, whole  # the files beside this one
from tile_scenes import BANDS, BLOCK, scene
from torch import Tensor
from tqdm import tqdm
from tsvit import processor  # likewise

from geomed import __version__
from geomed.evaluation.seams import Seams

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RESULTS = Path(__file__).parent / "results" / "tiles.json"
SIZES = {"pointwise": (2048, 4096, 10980), "vit": (2048, 4096), "tsvit": (1024,)}
QUICK = {"pointwise": (1024,), "vit": (512,), "tsvit": (128,)}
LARGEST_WHOLE = 2048
REPLAYED = 48
PROBES = (1024, 2048)
ASIDE = (23, 37, 53, 71, 83)
RIM = 16


def run(case: Case, harness: str, out: Path) -> dict[str, Any]:
    """In this process: map a scene and tell what it took."""
    chosen = HARNESSES[harness]
    chosen.prepare()
    model = _ready(case)
    before, began = _status("VmRSS"), _clock()
    told = chosen.run(model, case, out)
    _wait(case.device)
    wall, cpu = (end - start for end, start in zip(_clock(), began, strict=True))
    found: dict[str, Any] = {
        "wall_s": wall,
        "cpu_s": cpu,
        "before_mib": before / 1024,
        "peak_mib": _status("VmHWM") / 1024,
        "idle": told.idle,
        "shapes": [[list(shape), count] for shape, count in model.shapes.items()],
        **{f"{phase}_s": seconds for phase, seconds in told.phases.items()},
    }
    if case.device.startswith("cuda"):
        found["peak_device_mib"] = torch.cuda.max_memory_reserved() / 2**20
    return found


def alone(case: Case, shapes: Iterable[tuple[list[int], int]]) -> dict[str, float]:
    """In this process: the model on so many batches of each shape."""
    model = _ready(case)
    wall = cpu = 0.0
    with torch.inference_mode():
        for shape, count in shapes:
            inputs = _batch(case, shape)
            model(*inputs)
            _wait(case.device)
            timed = min(count, REPLAYED)
            began = _clock()
            for _ in range(timed):
                model(*inputs)
            _wait(case.device)
            took = [(end - start) * count / timed for end, start in zip(_clock(), began, strict=True)]
            wall, cpu = wall + took[0], cpu + took[1]
    return {"model_wall_s": wall, "model_cpu_s": cpu}


def error(case: Case, harness: str) -> dict[str, float]:
    """In this process: how far the blended probabilities are from those of one forward pass over everything."""
    chosen = HARNESSES[harness]
    chosen.prepare()
    model = _ready(case)
    found = chosen.scores(model, case)
    with torch.inference_mode():
        expected = torch.softmax(model(whole(case.scenes[0]).to(case.device))[0].cpu(), 0)
    told = {}
    for where, part in (("inside", slice(RIM, -RIM)), ("everywhere", slice(None))):
        here, there = found[:, part, part], expected[:, part, part]
        told[f"largest_{where}"] = float((here - there).abs().max())
        told[f"other_class_{where}"] = float((here.argmax(0) != there.argmax(0)).double().mean())
    return told


def _ready(case: Case) -> Counted:
    """The model, after it has seen a batch."""
    torch.set_num_threads(case.threads)
    model = Counted(case.model, case.device)
    dates = (len(case.scenes),) if case.model in SERIES else ()
    with torch.inference_mode():
        model(*_batch(case, (case.batch, *dates, len(BANDS), case.size, case.size)))
    _wait(case.device)
    model.shapes.clear()
    if case.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    return model


def _batch(case: Case, shape: Sequence[int]) -> list[Tensor]:
    """What the model reads, at random."""
    inputs = [torch.rand(*shape, device=case.device)]
    if case.model in SERIES:
        inputs.append(torch.ones(shape[0], shape[1], *shape[3:], dtype=torch.bool, device=case.device))
        inputs.append(torch.tensor(DAYS[: shape[1]], device=case.device).expand(shape[0], -1))
    return inputs


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _clock() -> tuple[float, float]:
    """Wall and CPU seconds, of user and system, of all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), used.ru_utime + used.ru_stime


def _status(entry: str) -> int:
    # not ru_maxrss, which a process inherits from the one that started it
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {entry}; peak memory is measured on Linux")


class Bench:
    """Runs measurements in processes of their own, one at a time."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        """Maps lie in ``folder``."""
        self._given, self._folder = given, folder
        self._peaks: dict[tuple[str, str], dict[int, float]] = {}

    def case(self, model: str, side: int) -> Case:
        """A scene of this size for this model, made if need be."""
        dates: list[int | None] = list(range(len(DAYS))) if model in SERIES else [None]
        return Case(
            scenes=tuple(str(scene(self._given.data, side, date)) for date in dates),
            side=side,
            model=model,
            batch=self._given.batch,
            threads=self._given.threads,
            device=self._given.device,
            size=48 if model in SERIES else 256,
            overlap=12 if model in SERIES else 64,
        )

    def child(self, kind: str, case: Case, **more: object) -> dict[str, Any]:
        """What a process of its own prints; ``failed`` and why if it does not."""
        for path in case.scenes:  # all read from the page cache
            with Path(path).open("rb") as file:
                while file.read(2**24):
                    pass
        threads = str(case.threads)
        limits = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "GDAL_CACHEMAX": str(self._given.gdal_cache)}
        asked = json.dumps({"kind": kind, "case": asdict(case), **more})
        try:
            done = subprocess.run(  # noqa: S603  (this very script)
                [sys.executable, "-W", "ignore", __file__, "--child", asked],
                env={**os.environ, **limits},
                capture_output=True,
                text=True,
                check=False,
                timeout=self._given.limit,
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"more than {self._given.limit} s"}
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
            return {"failed": "killed, perhaps for memory" if done.returncode < 0 else last}
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return told

    def measure(self, case: Case, harness: str) -> dict[str, Any]:
        """One run and the model alone."""
        out = self.map_of(harness)
        out.unlink(missing_ok=True)
        found = self.child("run", case, harness=harness, out=str(out))
        if "failed" not in found:
            self._peaks.setdefault((case.model, harness), {})[case.side] = found["peak_mib"]
            found |= self.child("alone", case, shapes=found["shapes"])
        return found

    def map_of(self, harness: str) -> Path:
        """Where the harness's latest map lies."""
        return self._folder / f"{harness.replace(', ', '_').replace(' ', '_')}.tif"

    def too_much(self, case: Case, harness: str) -> str | None:
        """Why the scene is too large for this harness, extrapolated from smaller ones."""
        if case.side <= max(PROBES):
            return None
        known = self._peaks.setdefault((case.model, harness), {})
        for side in PROBES:
            if len([one for one in known if one < case.side]) < 2 and side not in known:
                self.measure(self.case("pointwise" if case.model == "vit" else case.model, side), harness)
                borrowed = self._peaks.get(("pointwise", harness), {}).get(side)
                if borrowed is not None:
                    known.setdefault(side, borrowed)
        smaller = {side: peak for side, peak in known.items() if side < case.side}
        if len(smaller) < 2:
            return None
        slope, start = np.polyfit([side**2 for side in smaller], list(smaller.values()), 1)
        needed, free = (slope * case.side**2 + start) / 1024, _free_gib()
        if needed < 0.9 * free:
            return None
        return f"would need about {needed:.0f} GiB, extrapolated linearly; {free:.0f} GiB are free"


def _free_gib() -> float:
    """Memory that can be had."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20


def compare(bench: Bench, model: str, side: int, names: Sequence[str], repeats: int) -> list[dict[str, Any]]:
    """All harnesses on one scene, in turn; a row for each."""
    case = bench.case(model, side)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        reason = "it maps no series" if model in SERIES and not HARNESSES[name].series else bench.too_much(case, name)
        rows[name] = {"model": model, "side": side, "harness": name} | ({"not_run": reason} if reason else {})
    for repeat in range(repeats):
        for name in tqdm(names, desc=f"{model}, {side} x {side}, {repeat + 1} of {repeats}"):
            if "not_run" in rows[name]:
                continue
            found = bench.measure(case, name)
            if "failed" in found:
                rows[name]["not_run"] = f"failed: {found['failed']}"
                continue
            runs[name].append(found)
            if repeat == 0:
                rows[name] |= seams(bench.map_of(name), case, HARNESSES[name].borders(case))
    first = next((name for name in names if runs[name]), None)
    for name in names:
        if runs[name] and "not_run" not in rows[name]:
            rows[name] |= summary(runs[name], case)
            rows[name]["as_" + first.replace(", ", "_")] = agreement(bench.map_of(first), bench.map_of(name))
    return list(rows.values())


def summary(runs: list[dict[str, Any]], case: Case) -> dict[str, Any]:
    """Medians, and of the clocks lowest and highest too."""
    pixels = case.side**2 / 1e6
    for one in runs:
        one["mp_s"] = pixels / one["wall_s"]
        one["outside_cpu_s_per_mp"] = (one["cpu_s"] - one["model_cpu_s"]) / pixels
        one["of_model_only"] = one["model_wall_s"] / one["wall_s"]
    clocks = ("wall_s", "cpu_s", "mp_s", "outside_cpu_s_per_mp", "of_model_only")
    row: dict[str, Any] = {name: spread(one[name] for one in runs) for name in clocks}
    plain = ("model_wall_s", "model_cpu_s", "read_s", "write_s", "idle", "before_mib", "peak_mib", "peak_device_mib")
    for name in plain:
        values = [one[name] for one in runs if one.get(name) is not None]
        if values:
            row[name] = round(statistics.median(values), 4)
    row["windows"] = sum(shape[0] * count for shape, count in runs[0]["shapes"])
    row["batches"] = sum(count for _, count in runs[0]["shapes"])
    return row


def spread(values: Iterable[float]) -> dict[str, float]:
    """Lowest, median, highest."""
    values = list(values)
    found = zip(("lowest", "median", "highest"), (min(values), statistics.median(values), max(values)), strict=True)
    return {name: round(value, 4) for name, value in found}


def seams(path: Path, case: Case, borders: list[int]) -> dict[str, Any]:
    """Seam scores of a map; refuses one of another shape."""
    lines = [borders, *(_shifted(borders, by, case.side) for by in ASIDE)]
    with rasterio.open(path) as file:
        if file.shape != (case.side, case.side) or file.dtypes != ("uint8",):
            raise ValueError(f"{path.name} is {file.shape} of {file.dtypes}, not {case.side} x {case.side} of uint8")
        found = [Seams(file.shape, each, each) for each in lines]
        for values in _strips(file):
            for each in found:
                each.add(values)
    scores = [each.score() for each in found]
    return {"seams": round(scores[0], 4), "seams_elsewhere": spread(scores[1:])}


def _shifted(borders: list[int], by: int, side: int) -> list[int]:
    return sorted({(line + by) % side for line in borders} - {0, *borders})


def agreement(one: Path, other: Path) -> float:
    """Share of pixels with the same class."""
    with rasterio.open(one) as first, rasterio.open(other) as second:
        same = sum(int((a == b).sum()) for a, b in zip(_strips(first), _strips(second), strict=True))
        return round(same / (first.height * first.width), 6)


def _strips(file: rasterio.DatasetReader) -> Iterable[np.ndarray]:
    for row in range(0, file.height, BLOCK):
        yield file.read(1, window=Window(0, row, file.width, min(BLOCK, file.height - row)))


def table(rows: list[dict[str, Any]]) -> str:
    """What a person reads first."""
    heads = ("MP/s", "of model", "CPU s/MP outside", "peak MiB", "seams", "idle")
    lines = [f"{'':<28}" + "".join(f"{head:>18}" for head in heads)]
    for row in rows:
        if "not_run" in row:
            lines.append(f"{row['harness']:<28}  {row['not_run']}")
            continue
        values = [row[name]["median"] for name in ("mp_s", "of_model_only", "outside_cpu_s_per_mp")]
        values += [row["peak_mib"], row["seams"], row.get("idle")]
        lines.append(
            f"{row['harness']:<28}" + "".join(f"{'–' if value is None else f'{value:.3f}':>18}" for value in values)
        )
    return "\n".join(lines)


def versions(names: Iterable[str]) -> dict[str, str]:
    """Of all that was measured."""
    found = {HARNESSES[name].package: HARNESSES[name].version() for name in names}
    return {
        **found,
        "geomed": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "rasterio": rasterio.__version__,
        "gdal": rasterio.__gdal_version__,
        "python": platform.python_version(),
    }


def main() -> None:
    """Measure everything and write results/tiles.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="where scenes lie and are made (the largest is 1.2 GB)")
    parser.add_argument("--sizes", nargs="+", type=int, help="sides of scenes; default: a few for each model")
    parser.add_argument("--models", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--harness", nargs="+", default=list(HARNESSES), choices=list(HARNESSES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--batch", type=int, default=16, help="windows at once")
    parser.add_argument("--gdal-cache", type=int, default=256, help="MiB")
    parser.add_argument("--limit", type=int, default=7200, help="seconds that one process may take")
    parser.add_argument("--quick", action="store_true", help="small scenes, one repeat: to see whether all works")
    parser.add_argument("--no-errors", action="store_true", help="leave the comparison with a whole forward pass out")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", help=argparse.SUPPRESS)  # a process of its own
    given = parser.parse_args()
    if given.child:
        print(json.dumps(_child(json.loads(given.child))))
        return
    if given.data is None:
        parser.error("--data DIR is needed: where scenes lie and are made")
    if given.sizes and min(given.sizes) < 512:
        parser.error(f"--sizes are at least 512, two windows side by side, not {min(given.sizes)}")
    skipped = {name: reason for name in given.harness if (reason := _skipped(name, given.device)) is not None}
    names = [name for name in given.harness if name not in skipped]
    for name, reason in skipped.items():
        print(f"{name}: {reason}", file=sys.stderr)
    places = {"--data", "--out", str(given.data), str(given.out)}
    shown = [argument for argument in sys.argv[1:] if argument not in places]
    report: dict[str, Any] = {
        "command": " ".join(["python benchmarks/tiles.py --data DIR", *shown]),
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads_used": given.threads,
            "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
            "free_gib": round(_free_gib(), 1),
            "load": os.getloadavg(),
            "device": torch.cuda.get_device_name() if given.device.startswith("cuda") else "cpu",
        },
        "versions": versions(names),
        "settings": {"batch": given.batch, "gdal_cache_mib": given.gdal_cache, "repeats": given.repeats},
        "skipped": skipped,
        "rows": [],
        "errors": {},
    }
    repeats = 1 if given.quick else given.repeats
    with tempfile.TemporaryDirectory(dir=_made(given.data)) as folder:
        bench = Bench(given, Path(folder))
        for model in given.models:
            usual = (QUICK if given.quick else SIZES)[model]
            for side in sorted(given.sizes if given.sizes and model not in SERIES else usual):
                rows = compare(bench, model, side, names, repeats)
                print(f"{model}, {side} x {side}\n{table(rows)}", flush=True)
                report["rows"] += rows
                _write(given.out, report)
        if not given.no_errors:
            side = QUICK["vit"][0] if given.quick else LARGEST_WHOLE
            case = bench.case("convolutions", side)
            for name in names:
                report["errors"][name] = bench.child("error", case, harness=name)
                print(f"error, {name}: {report['errors'][name]}", flush=True)
    _write(given.out, report)


def _child(asked: dict[str, Any]) -> dict[str, Any]:
    case = Case(**(asked["case"] | {"scenes": tuple(asked["case"]["scenes"])}))
    if asked["kind"] == "run":
        return run(case, asked["harness"], Path(asked["out"]))
    if asked["kind"] == "alone":
        return alone(case, asked["shapes"])
    return error(case, asked["harness"])


def _skipped(name: str, device: str) -> str | None:
    if name == "monai, all on the device" and device == "cpu":
        return "the same as monai where there is no device: skipped"
    return HARNESSES[name].missing()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(path: Path, report: dict[str, Any]) -> None:
    _made(path.parent)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

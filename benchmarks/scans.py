"""Reading scans: start-up, pictures, DICOM, NIfTI and cached epochs, of geomed, MONAI and the bare libraries.

    python benchmarks/scans.py [--repeats 7] [--images 500] [--series FOLDER]

All files are made up: a JPEG of 2048 x 1536 with the noise of a camera, a CT of 64 slices of 512 x 512 in int16, a
NIfTI of 64 x 256 x 256, and a folder of JPEGs of 512 x 512. Readers take turns, round after round, in one process and
on one thread; what is quick is read several times in its turn. Milliseconds are of the process's CPU and of the clock
(lowest, median, highest); start-up is of processes of their own. Files come from the page cache.

``differs`` is what lies between a reader's values and the first one's: the largest difference, of pictures the mean,
for everybody shrinks them in another way; ``type`` is what it gives. geomed's DICOM checks geometry, gaps, duplicates,
mixed series and units; the bare loop of pydicom sorts by position and rescales, and checks nothing.

``scan_answers.py`` asks geomed and MONAI about nine series of DICOM, of which three are no volume.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import json
import logging
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import monai.transforms as mt
import nibabel
import numpy as np
import pydicom
import torch
from monai.data import CacheDataset, PersistentDataset
from monai.data import DataLoader as MonaiLoader
from monai.data import Dataset as MonaiDataset
from PIL import Image
from scan_answers import answers
from scan_answers import table as answers_table
from tqdm import tqdm
from tsvit import processor  # the file beside this one

from geomed import __version__
from geomed.data.datamodule import DataModule
from geomed.data.duplicates import Duplicates
from geomed.data.folder_of_classes import FolderOfClasses
from geomed.data.rendition import Rendition
from geomed.data.scan_cache import ScanCache
from geomed.data.scan_files import Reading
from geomed.evaluation.patient_splits import AllIn
from geomed.io.dicom import read_dicom, read_series
from geomed.io.nifti import read_nifti
from geomed.io.picture import read_picture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from fakes_scans import slice_of, written  # the made-up slices of the tests

RESULTS = Path(__file__).parent / "results" / "scans.json"
SIZE, BATCH = 224, 32
SLICES, SIDE = 64, 512
TURN_S = 0.1  # what is quicker is repeated within a turn
START_UP = {
    "python": "pass",
    "geomed --help": None,
    "import geomed": "import geomed",
    "geomed's readers": "import geomed.io.picture, geomed.io.dicom, geomed.io.nifti",
    "geomed, one DICOM": "from geomed.io.dicom import read_dicom; read_dicom({path!r})",
    "import monai": "import monai",
    "monai, one DICOM": "from monai.transforms import LoadImage; LoadImage(reader='PydicomReader')({path!r})",
}


@dataclass(frozen=True)
class Files:
    """What is read."""

    picture: Path
    """A JPEG of 2048 x 1536."""

    series: Path
    """A folder of 64 slices of 512 x 512, in no order."""

    nifti: Path
    """256 x 256 x 64 in int16."""

    zipped: Path
    """The same, gzipped."""

    @property
    def slice(self) -> Path:
        """One DICOM file."""
        return min(self.series.iterdir())


def made(folder: Path) -> Files:
    """Files with the noise of a detector: what is smooth compresses and decodes too well."""
    random = np.random.default_rng(0)
    photograph(folder / "photograph.jpg", (1536, 2048), random)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    body = np.where(np.hypot(x * 1.2, y) < 0.42, 40, -1000)
    items = []
    for number in random.permutation(SLICES):
        values = (
            body + 200 * np.exp(-((x - 0.004 * number + 0.1) ** 2 + y**2) / 0.005) + random.normal(0, 20, body.shape)
        )
        items.append(slice_of(float(number) * 2.5, np.rint(values + 1024).clip(0).astype(np.int16), number=int(number)))
    written(folder / "series", items)
    volume = np.rint(random.normal(0, 30, (256, 256, SLICES)) + 300 * (random.random((256, 256, 1)) > 0.5))
    image = nibabel.Nifti1Image(volume.astype(np.int16), np.diag([0.8, 0.8, 2.5, 1]))
    for name in ("volume.nii", "volume.nii.gz"):
        nibabel.save(image, folder / name)
    return Files(folder / "photograph.jpg", folder / "series", folder / "volume.nii", folder / "volume.nii.gz")


def photograph(path: Path, shape: tuple[int, int], random: np.random.Generator) -> None:
    """A JPEG with large and small structures, and noise."""
    layers = [
        np.asarray(
            Image.fromarray(random.integers(0, 255, (cells, cells, 3), np.uint8)).resize(shape[::-1]), np.float32
        )
        for cells in (6, 40)
    ]
    values = 0.6 * layers[0] + 0.25 * layers[1] + 20 + random.normal(0, 4, (*shape, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def readers(files: Files) -> dict[str, dict[str, Callable[[], NDArray[np.generic]]]]:
    """Case → reader → what it gives, in the type that it has by default."""
    load = mt.LoadImage(image_only=True)
    load_dicom = mt.LoadImage(image_only=True, reader="PydicomReader")
    channel, resize, reading = mt.EnsureChannelFirst(), mt.Resize((SIZE, SIZE)), Reading()
    rendition = Rendition(size=SIZE, colour=True, keep_aspect=False)

    def thumbnail() -> NDArray[np.generic]:
        with Image.open(files.picture) as picture:
            small = picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        return np.asarray(small).transpose(2, 0, 1)

    def bare_slice() -> NDArray[np.generic]:
        return _rescaled(pydicom.dcmread(files.slice))

    def bare_series() -> NDArray[np.generic]:
        items = sorted((pydicom.dcmread(path) for path in files.series.iterdir()), key=_height)
        return np.stack([_rescaled(item) for item in items])

    return {
        "JPEG 2048 x 1536 to 224 x 224": {
            "geomed": lambda: read_picture(files.picture, size=(SIZE, SIZE)).values.transpose(2, 0, 1),
            "geomed, as a data set does at first sight": lambda: rendition.render(
                reading.read(files.picture, named="one")
            ).values[0],
            "Pillow": thumbnail,
            "monai: LoadImage, Resize": lambda: resize(channel(load(files.picture))).numpy().transpose(0, 2, 1),
            "monai: LoadImage alone": lambda: load(files.picture).numpy(),
        },
        "DICOM, one of 512 x 512": {
            "geomed": lambda: read_dicom(files.slice).values,
            "pydicom": bare_slice,
            "monai: LoadImage": lambda: load_dicom(files.slice).numpy().T,
        },
        "DICOM, 64 x 512 x 512": {
            "geomed": lambda: read_series(files.series).values,
            "pydicom": bare_series,
            "monai: LoadImage": lambda: load_dicom(files.series).numpy().transpose(2, 1, 0),
        },
        "NIfTI .nii, 64 x 256 x 256": _nifti(files.nifti, load),
        "NIfTI .nii.gz, 64 x 256 x 256": _nifti(files.zipped, load),
    }


def _height(item: pydicom.Dataset) -> float:
    return float(item.ImagePositionPatient[2])


def _rescaled(item: pydicom.Dataset) -> NDArray[np.generic]:
    # numbers of Python: those of DICOM would make float64 of it
    return item.pixel_array.astype(np.float32) * float(item.RescaleSlope) + float(item.RescaleIntercept)


def _nifti(path: Path, load: mt.LoadImage) -> dict[str, Callable[[], NDArray[np.generic]]]:
    return {
        "geomed": lambda: read_nifti(path).values,
        "nibabel": lambda: nibabel.load(path).get_fdata(dtype=np.float32).transpose(2, 1, 0),
        "monai: LoadImage": lambda: load(path).numpy().transpose(2, 1, 0),
    }


def compare(ways: Mapping[str, Callable[[], Any]], repeats: int, *, check: bool = True) -> dict[str, dict[str, Any]]:
    """All ways in turn, each first in some round; a row for each."""
    rows: dict[str, dict[str, Any]] = {name: {} for name in ways}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    counts, first = {}, None
    for name, way in ways.items():
        way()
        began = time.perf_counter()
        found = way()
        counts[name] = max(1, round(TURN_S / (time.perf_counter() - began)))
        if check:
            first = found if first is None else first
            rows[name] |= {"differs": _differs(first, found), "type": found.dtype.name}
    order = list(ways)
    for _ in range(repeats):
        for name in order:
            began = _clock()
            for _ in range(counts[name]):
                ways[name]()
            times[name].append(tuple(1000 * (b - a) / counts[name] for a, b in zip(began, _clock(), strict=True)))
        order = [*order[1:], order[0]]
    for name, row in rows.items():
        row["cpu_ms"], row["wall_ms"] = (spread(one[i] for one in times[name]) for i in (1, 0))
    base = rows[next(iter(ways))]["cpu_ms"]["median"]
    for row in rows.values():
        row["over_first"] = round(row["cpu_ms"]["median"] / base, 2)
    return rows


def _differs(one: NDArray[np.generic], other: NDArray[np.generic]) -> float | None:
    if one.shape != other.shape:
        return None
    difference = np.abs(one.astype(np.float64) - other.astype(np.float64))
    return round(float(difference.mean() if one.shape[-2:] == (SIZE, SIZE) else difference.max()), 4)


def _clock() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def spread(values: Iterable[float]) -> dict[str, float]:
    """Lowest, median, highest."""
    values = list(values)
    found = zip(("lowest", "median", "highest"), (min(values), statistics.median(values), max(values)), strict=True)
    return {name: round(value, 4) for name, value in found}


def start_up(path: Path, repeats: int) -> dict[str, dict[str, Any]]:
    """Seconds from the start of a process to its end."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in START_UP}
    for number in tqdm(range(repeats + 1), desc="start-up"):
        for name, code in START_UP.items():
            tail = ["-m", "geomed.cli", "--help"] if code is None else ["-c", code.format(path=str(path))]
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            began = time.perf_counter()
            subprocess.run([sys.executable, "-W", "ignore", *tail], check=True, capture_output=True)  # noqa: S603
            wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
            if number:  # the first fills the page cache
                times[name].append((wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    return {
        name: {"cpu_s": spread(one[1] for one in found), "wall_s": spread(one[0] for one in found)}
        for name, found in times.items()
    }


def epochs(folder: Path, images: int, repeats: int) -> dict[str, dict[str, Any]]:
    """Batches of one epoch, in order, from JPEGs and from caches; and what it takes to fill these."""
    random = np.random.default_rng(1)
    for number in tqdm(range(images), desc="pictures"):
        photograph(folder / "pictures" / "ab"[number % 2] / f"{number:04d}.jpg", (512, 512), random)
    items = [{"image": str(path)} for path in sorted((folder / "pictures").rglob("*.jpg"))]
    # the deterministic part of a usual MONAI pipeline; plain tensors, which are its quicker ones
    steps = mt.Compose(
        [
            mt.LoadImaged("image", image_only=True, ensure_channel_first=True),
            mt.Resized("image", (SIZE, SIZE)),
            mt.EnsureTyped("image", track_meta=False),
        ]
    )
    filling: dict[str, float] = {}

    def timed(name: str, fill: Callable[[], Any]) -> Any:  # noqa: ANN401  (whatever is filled)
        began = time.process_time()
        found = fill()
        filling[name] = round(time.process_time() - began, 3)
        return found

    def ours(*, cached: bool) -> DataModule:
        source = FolderOfClasses(
            folder=str(folder / "pictures"),
            patients="none",
            by=AllIn(part="test"),
            rendition=Rendition(size=SIZE, colour=True),
            cache=ScanCache(folder=str(folder / "cache"), workers=1) if cached else None,
            duplicates=Duplicates(),
        )
        data = DataModule(source, batch_size=BATCH)
        data.prepare_data()
        data.setup("test")
        return data

    decoded = timed("geomed, decoding: checks", lambda: ours(cached=False))
    cached = timed("geomed, cached: checks and decoding", lambda: ours(cached=True))
    timed("geomed, cached: a second run", lambda: ours(cached=True))
    in_memory = timed(
        "monai, CacheDataset", lambda: CacheDataset(items, steps, cache_rate=1.0, num_workers=1, progress=False)
    )
    on_disk = PersistentDataset(items, steps, cache_dir=folder / "persistent")
    timed("monai, PersistentDataset", lambda: [on_disk[index] for index in range(len(on_disk))])
    ways = {
        "geomed, cached": lambda: [batch["values"].shape for batch in cached.test_dataloader()],
        "geomed, decoding": lambda: [batch["values"].shape for batch in decoded.test_dataloader()],
    }
    theirs = {
        "monai, CacheDataset": in_memory,
        "monai, PersistentDataset": on_disk,
        "monai, decoding": MonaiDataset(items, steps),
    }
    for name, data in theirs.items():
        loader = MonaiLoader(data, batch_size=BATCH, num_workers=0)
        ways[name] = lambda loader=loader: [batch["image"].shape for batch in loader]
    rows = compare(ways, repeats, check=False)
    return {"images": images, "size": SIZE, "batch": BATCH, "epoch": rows, "filling_cpu_s": filling}


def aims(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was promised, and what came out; ratios are of CPU medians."""

    def ratio(rows: Mapping[str, Any], slower: str, quicker: str) -> float:
        return round(rows[slower]["cpu_ms"]["median"] / rows[quicker]["cpu_ms"]["median"], 2)

    jpeg = report["reading"]["JPEG 2048 x 1536 to 224 x 224"]
    series, epoch = report["reading"]["DICOM, 64 x 512 x 512"], report["cached"]["epoch"]
    rows = [
        ("JPEG to 224 x 224, over MONAI's LoadImage and Resize", 5, ratio(jpeg, "monai: LoadImage, Resize", "geomed")),
        ("JPEG to 224 x 224, over MONAI's LoadImage alone", 5, ratio(jpeg, "monai: LoadImage alone", "geomed")),
        ("DICOM series with all checks, over MONAI's LoadImage", 2, ratio(series, "monai: LoadImage", "geomed")),
        ("cached epoch, over decoding it", 10, ratio(epoch, "geomed, decoding", "geomed, cached")),
    ]
    found = [{"aim": name, "at_least": least, "found": value, "met": value >= least} for name, least, value in rows]
    wall = report["start_up"]["geomed --help"]["wall_s"]["median"]
    return [*found, {"aim": "geomed --help, seconds", "below": 1, "found": wall, "met": wall < 1}]


def table(name: str, rows: Mapping[str, Any]) -> str:
    """What a person reads first."""
    lines = [f"{name:<46}{'CPU ms':>10}{'wall ms':>10}{'÷ first':>10}{'differs':>10}"]
    for reader, row in rows.items():
        differs = row.get("differs")
        lines.append(
            f"  {reader:<44}{row['cpu_ms']['median']:>10.2f}{row['wall_ms']['median']:>10.2f}{row['over_first']:>10.2f}"
            f"{'–' if differs is None else differs:>10}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure everything and write results/scans.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--images", type=int, default=500, help="of the cached epoch")
    parser.add_argument("--series", type=Path, help="a real DICOM series to read besides")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)  # MONAI's about nvImageCodec, at every LoadImage
    packages = ("monai", "pydicom", "nibabel", "pillow", "torch", "torchvision", "numpy")
    report: dict[str, Any] = {
        "command": f"python benchmarks/scans.py --repeats {given.repeats} --images {given.images}"
        + (" --series FOLDER" if given.series else ""),
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "threads_used": 1, "load": os.getloadavg()},
        "versions": {
            "geomed": __version__,
            **{name: importlib.metadata.version(name) for name in packages},
            "python": platform.python_version(),
        },
        "settings": {"repeats": given.repeats, "turn_s": TURN_S},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CONFIG_HOME"] = str(folder / "settings")  # a key of case ids of its own
        files = made(folder)
        report["files"] = {"jpeg_bytes": files.picture.stat().st_size, "series_bytes": _bytes(files.series)}
        report["nine_cases"] = answers(folder / "cases")
        print(answers_table(report["nine_cases"]), flush=True)
        report["start_up"] = start_up(files.slice, given.repeats)
        for what, row in report["start_up"].items():
            print(f"{what:<46}{row['cpu_s']['median']:>8.2f} s CPU{row['wall_s']['median']:>8.2f} s", flush=True)
        report["reading"] = {}
        for case, ways in readers(files).items():
            report["reading"][case] = compare(ways, given.repeats)
            print(table(case, report["reading"][case]), flush=True)
        if given.series:
            load = mt.LoadImage(image_only=True, reader="PydicomReader")
            real = {
                "geomed": lambda: read_series(given.series).values,
                "monai: LoadImage": lambda: load(given.series).numpy().transpose(2, 1, 0),
            }
            report["reading"]["DICOM, a real series"] = compare(real, given.repeats)
            print(table("DICOM, a real series", report["reading"]["DICOM, a real series"]), flush=True)
        report["cached"] = epochs(folder, given.images, given.repeats)
        print(table(f"epoch of {given.images} images", report["cached"]["epoch"]))
        print(f"filling, CPU s: {report['cached']['filling_cpu_s']}")
    report["aims"] = aims(report)
    for aim in report["aims"]:
        print(f"{'met' if aim['met'] else 'MISSED':<8}{aim['aim']}: {aim['found']}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


if __name__ == "__main__":
    main()

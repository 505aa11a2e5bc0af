"""Single dates of made-up farmland as another sensor sees them: domains that differ in bands, pixels and season."""

from __future__ import annotations

import calendar
import datetime as dt
import hashlib
import json
import logging
import shutil
import zlib
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from rasterio.transform import Affine
from tqdm import tqdm

from geomed.bands import PASTIS_BANDS
from geomed.data.area import CLEAR, Labels, Legend
from geomed.data.every_date import EveryDate
from geomed.data.image import Image, ImageFiles
from geomed.data.labels import Truth, open_truth
from geomed.data.parts import Parts, refuse_windows
from geomed.data.simulated_season import SimulatedSeason
from geomed.data.simulation.farmland import generator
from geomed.data.simulation.sensor import PLAIN, Sensor
from geomed.data.source import Part, Scene, Source
from geomed.evaluation.splits import ByArea, ByBlocks, Split

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from geomed.data.simulation.region import Region, Year
    from geomed.data.window_samples import WindowSamples

VERSION = 1
"""Raised whenever the same fields give other files: what an older version wrote is then left where it is."""

RECORD = "dates.json"
"""The file that makes a folder complete: written last, with the dates, the parameters and their fingerprint."""

STEP, NODATA = 1e-4, -32768
"""Reflectance of one step of the stored numbers, as in the season's files, and the number of what was not seen. Haze,
offsets and noise leave 0 to 1, hence signed."""

CLEAR_ENOUGH = 0.5
"""Share of an area that a date must show."""

BUFFER, FRACTIONS = 2, (0.5, 0.2, 0.3)
"""Fewest unused pixels between the blocks of the usual split, and the shares of train, val and test."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SimulatedDates(Source):
    """Single clear images of simulated seasons, as any sensor might see them.

    Two of these sources with different sensors, months, regions or years are two domains, to study how a backbone that
    was pre-trained on one fares on the other. ``prepare`` simulates the seasons, chooses dates and writes
    ``<root>/<area>-<sensor>-<fingerprint>``: a GeoTIFF for each date (int16, reflectance * 10 000, -32 768 where not
    seen, bands by name) and ``fields.gpkg``. Different fields give different folders; seasons are shared.

    What was not seen is what the season's scene classification calls neither plants, soil, water nor unclassified: it
    misses thin edges of clouds, as it does in real archives. A pixel counts as seen if all pixels of 10 m in it are.
    """

    season: SimulatedSeason = SimulatedSeason()  # noqa: RUF009  (frozen)
    """Which regions, years, size, shift and bands, and where the series lie. Its split, window, and few fields do not
    matter here."""

    root: str = "data/simulated_dates"
    """Folder of the images; made if absent."""

    sensor: Sensor | None = None
    """Who looks; None: ``PLAIN``, Sentinel-2 as it is. A config may name a constant, as
    ``geomed.data.simulation.sensor.OTHER``."""

    months: tuple[int, int] = (4, 9)
    """First and last month, both included, 1 to 12."""

    dates: int = 6
    """Dates of each area at most: the months are divided into so many equal spans, and each gives its clearest date,
    if at least half of the area is clear on it."""

    bands: tuple[str, ...] = PASTIS_BANDS
    """Bands of the samples: any of the season's."""

    window: int = 32
    """Side of a window in the sensor's pixels."""

    by: Split | None = None
    """What to learn from, to choose with and to report on. Its areas are named ``<region>-<year>``, its blocks count in
    the sensor's pixels, and all dates of an area are divided alike: no pixel is learned from on one date and tested on
    another. None: blocks of every area, one window wide, wider at its border; half for train, a fifth for val, the
    others for test."""

    fields_per_class: int | None = None
    """Labelled fields of each class that the train part keeps, on all dates; None: all."""

    seed: int = 0
    """Which fields those are. Land, sky, noise and the usual split follow from the season's seed."""

    def __post_init__(self) -> None:
        """Refuse what no file needs to be read for."""
        refuse_windows(self.window, 0, self.fields_per_class)
        first, last = self.months
        if not 1 <= first <= last <= 12:
            raise ValueError(
                f"months must be the first and the last of one year, 1 <= first <= last <= 12, not {first} and {last}; "
                "swap or correct them"
            )
        if self.dates < 1:
            raise ValueError(f"dates must be at least 1, not {self.dates}; correct it")
        unknown = [band for band in self.bands if band not in self.season.bands]
        if unknown or not self.bands or len(set(self.bands)) < len(self.bands):
            raise ValueError(
                f"bands must be some of the season's ({', '.join(self.season.bands)}), each once, not "
                f"{', '.join(self.bands) or 'none'}; choose among these or give the season more"
            )
        if self.season.size % self._sensor.pixels:
            raise ValueError(
                f"a pixel of {self._sensor.name} covers {self._sensor.pixels} x {self._sensor.pixels} pixels of 10 m, "
                f"which do not divide an area of {self.season.size}; take a size that is a multiple"
            )
        self._by()  # refuses a window that is too large

    @property
    def classes(self) -> tuple[str, ...]:
        """The crops; their order is the class index, whatever grows in the regions."""
        return self.season.classes

    def folder(self, area: str) -> Path:
        """Where an area's dates lie: YYYYMMDD.tif, fields.gpkg, dates.json.

        Raises:
            ValueError: the season has no such area.
        """
        for region, year in self._areas():
            if _name(region, year) == area:
                fingerprint = _fingerprint(self._parameters(region, year))
                return Path(self.root) / f"{area}-{self._sensor.name}-{fingerprint[:12]}"
        names = ", ".join(_name(region, year) for region, year in self._areas())
        raise ValueError(f"no area is called {area}, there are {names}; name one of these")

    def prepare(self) -> None:
        """Write the dates of every area that are not there yet, simulating its season if need be; check the split.

        An area is written beside its place and moved there when it is complete, so that an interrupted run leaves no
        half of one. Only one process may do this at a time.

        Raises:
            ValueError: no date of an area is clear enough, a folder that this class did not write stands in an area's
                place, or the split does not fit.
        """
        for region, year in self._areas():
            name, parameters = _name(region, year), self._parameters(region, year)
            if _complete(self.folder(name), parameters):
                continue
            with tqdm(desc=f"simulating {name}", unit="image", delay=2, leave=False) as bar:
                self._season_of(region, year).prepare(lambda _, done, total, bar=bar: _show(bar, done, total))
                self._observe(region, year, parameters, bar)
        vars(self).pop("_parts", None)  # it may have looked at the files that were there before
        self._parts.prepare()

    def split(self, part: Part) -> WindowSamples:
        """The samples of one part, read from the files; call ``prepare`` first.

        Raises:
            ValueError: there are no files, or the train part has no window with a label.
        """
        return self._parts.split(part)

    def scenes(self) -> tuple[Scene, ...]:
        """One scene for each date of each area, named ``<area>-YYYYMMDD``; call ``prepare`` first."""
        return self._parts.scenes()

    @property
    def _sensor(self) -> Sensor:
        return PLAIN if self.sensor is None else self.sensor

    def _areas(self) -> tuple[tuple[Region, Year], ...]:
        return tuple((region, year) for region in self.season.regions for year in self.season.years)

    def _season_of(self, region: Region, year: Year) -> SimulatedSeason:
        """The season of one area, so that none is simulated in vain; a split is needed, and this one fits."""
        by = ByArea(train=(_name(region, year),))
        return replace(self.season, regions=(region,), years=(year,), by=by)

    def _parameters(self, region: Region, year: Year) -> dict[str, Any]:
        """All that decides what the files of one area hold."""
        parameters = {
            "version": VERSION,
            "season": self.season._parameters(region, year),  # noqa: SLF001  (its files are what is looked at)
            "sensor": asdict(self._sensor),
            "months": self.months,
            "dates": self.dates,
        }
        plain: dict[str, Any] = json.loads(json.dumps(parameters))  # tuples become lists, as in the file
        return plain

    def _observe(self, region: Region, year: Year, parameters: dict[str, Any], bar: tqdm[Any]) -> None:
        """Choose the dates of one area and write them."""
        name = _name(region, year)
        season, folder = self.season.folder(name), self.folder(name)
        chosen = self._chosen(season, year, name)
        aside, old = (folder.with_name(f".{folder.name}.{ending}") for ending in ("part", "old"))
        for left in (aside, old):  # by an interrupted run
            shutil.rmtree(left, ignore_errors=not left.exists())
        aside.mkdir(parents=True)
        bar.total = (bar.total or 0) + len(chosen)
        for day in chosen:
            noise = zlib.crc32(self._sensor.name.encode())
            rng = generator(self.season.seed, region, year.year, 3, day.timetuple().tm_yday, noise)
            _write_date(season / "images" / f"S2_{day:%Y%m%d}.tif", aside / f"{day:%Y%m%d}.tif", self._sensor, rng)
            bar.update()
        shutil.copyfile(season / "fields.gpkg", aside / "fields.gpkg")
        days = [f"{day:%Y%m%d}" for day in chosen]
        record = {"fingerprint": _fingerprint(parameters), "dates": days, "parameters": parameters}
        (aside / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old, ignore_errors=not old.exists())
        _log.info("%s seen by %s: %s", name, self._sensor.name, ", ".join(days))

    def _chosen(self, season: Path, year: Year, name: str) -> tuple[dt.date, ...]:
        """The clearest date of each span of the months."""
        first = dt.date(year.year, self.months[0], 1)
        last = dt.date(year.year, self.months[1], calendar.monthrange(year.year, self.months[1])[1])
        seen = {}
        for path in sorted((season / "images").glob("S2_*_SCL.tif")):
            day = dt.date.fromisoformat(path.stem.split("_")[1])
            if first <= day <= last:
                seen[day] = float(_clear(path).mean())
        chosen = clearest(seen, first=first, last=last, count=self.dates)
        if not chosen:
            raise ValueError(
                f"{name}: none of the {len(seen)} images from {first} to {last} shows {CLEAR_ENOUGH:.0%} of the area "
                "clear; take other months, or a year that is less cloudy"
            )
        return chosen

    def _by(self) -> Split:
        """The split of areas."""
        if self.by is not None:
            return self.by
        side = self.season.size // self._sensor.pixels
        for size in range(self.window + BUFFER, side // 2 + 2):
            buffer, rest = size - self.window, side % size or size  # an inner block is one window
            if side > size and rest >= self.window + buffer // 2:  # nor is one at the border narrower
                return ByBlocks(size=size, buffer=buffer, fractions=FRACTIONS, seed=self.season.seed)
        raise ValueError(
            f"the usual split needs two windows along each side and {BUFFER} pixels between them, {side} pixels of "
            f"{self._sensor.name} are too few for windows of {self.window}; take a larger size, a smaller window, or "
            "say by"
        )

    @cached_property
    def _parts(self) -> Parts:
        opened, truths, places = list[ImageFiles](), list[Truth | None](), list[str]()
        legend = Legend(classes={name: [name] for name in self.classes})
        for region, year in self._areas():
            name = _name(region, year)
            folder = self.folder(name)
            labels = Labels(path=str(folder / "fields.gpkg"), column="crop")
            if not (folder / RECORD).is_file():
                raise ValueError(f"{folder} holds no dates of {name}; call prepare() first")
            images = [
                ImageFiles.open(
                    Image(
                        name=f"{name}-{day}",
                        path=str(folder / f"{day}.tif"),
                        scale=STEP,
                        offset=0.0,
                        labels=labels,
                        year=year.year,
                    ),
                    self.bands,
                )
                for day in _record(folder)["dates"]
            ]
            truth = open_truth(labels, legend, images[0].grid, f"area {name}")
            opened += images
            truths += [truth] * len(images)  # one and the same: a field is drawn once, for all its dates
            places += [name] * len(images)
        return Parts(
            images=tuple(opened),
            truths=tuple(truths),
            classes=self.classes,
            by=EveryDate(by=self._by(), places=tuple(places)),
            window=self.window,
            margin=0,
            fields_per_class=self.fields_per_class,
            seed=self.seed,
            whole_polygons=True,
            needs="an observation",
            check="and whether the dates are clear",
        )


def clearest(seen: Mapping[dt.date, float], *, first: dt.date, last: dt.date, count: int) -> tuple[dt.date, ...]:
    """The clearest date of each of ``count`` equal spans of time, the earlier one of two; none where all are cloudy.

    Args:
        seen: date → share of the area that it shows, all between ``first`` and ``last``.
        first: first day, included.
        last: last day, included.
        count: how many spans.
    """
    best: dict[int, dt.date] = {}
    for day, share in sorted(seen.items()):
        span = (day - first).days * count // ((last - first).days + 1)
        if share >= CLEAR_ENOUGH and (span not in best or share > seen[best[span]]):
            best[span] = day
    return tuple(sorted(best.values()))


def _write_date(source: Path, target: Path, sensor: Sensor, rng: np.random.Generator) -> None:
    """One image of the season as the sensor sees it."""
    with rasterio.open(source) as file:
        numbers, bands, profile = file.read(), file.descriptions, file.profile
    valid = (numbers != 0).all(axis=0) & _clear(source.with_name(f"{source.stem}_SCL.tif"))
    values, valid = sensor.observe((numbers * STEP).astype(np.float32), valid, bands=bands, rng=rng)
    stored = np.where(valid, np.clip(np.rint(values / STEP), NODATA + 1, -NODATA - 1), NODATA).astype(np.int16)
    transform = profile["transform"] @ Affine.scale(sensor.pixels)
    size = {"height": valid.shape[0], "width": valid.shape[1], "transform": transform}
    with rasterio.open(target, "w", **{**profile, **size, "dtype": "int16", "nodata": NODATA}) as file:
        file.write(stored)
        file.descriptions = bands
        file.scales = (STEP,) * len(bands)


def _clear(path: Path) -> NDArray[np.bool_]:
    """Where [rows, columns] a scene classification sees the ground."""
    with rasterio.open(path) as file:
        return np.isin(file.read(1), CLEAR)


def _show(bar: tqdm[Any], done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def _name(region: Region, year: Year) -> str:
    return f"{region.name}-{year.year}"


def _fingerprint(parameters: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()


def _record(folder: Path) -> dict[str, Any]:
    """What the folder says of itself.

    Raises:
        ValueError: nothing, or nothing that can be read.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return {"fingerprint": record["fingerprint"], "dates": [str(day) for day in record["dates"]]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} exists, but its {RECORD} does not say which dates were simulated ({error}); move it away, "
            "or give another root"
        ) from error


def _complete(folder: Path, parameters: dict[str, Any]) -> bool:
    """Whether the folder holds all that these parameters give."""
    if not folder.exists():
        return False
    record = _record(folder)
    files: Iterator[Path] = (folder / name for name in ("fields.gpkg", *(f"{day}.tif" for day in record["dates"])))
    return bool(record["fingerprint"] == _fingerprint(parameters) and all(file.is_file() for file in files))

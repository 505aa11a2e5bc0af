"""Seasons of farmland that nobody has to download: simulated, written as GeoTIFFs, read like real ones."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomed.bands import PASTIS_BANDS
from geomed.data.area import Area, Labels, Legend
from geomed.data.sentinel2_series import Sentinel2Series
from geomed.data.simulation.canopy import LEVEL2A
from geomed.data.simulation.farmland import farmland, shifted
from geomed.data.simulation.phenology import CROPS
from geomed.data.simulation.region import EARLIER, LATER, NORTH, SOUTH, Region, Year
from geomed.data.simulation.series import write_series
from geomed.data.source import Part, Scene, Source
from geomed.evaluation.splits import ByArea, Split

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch.utils.data import Dataset

VERSION = 1
"""Raised whenever the same fields give other files: what an older version wrote is then made anew."""

SMALLEST = 64
"""Rows and columns of the smallest area that holds a handful of fields."""

RECORD = "simulation.json"
"""The file that makes a folder complete: written last, with the parameters and their fingerprint."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SimulatedSeason(Source):
    """Sentinel-2 seasons of made-up farmland, one area for each region and year, named ``<region>-<year>``.

    Leaf area follows a double logistic for each crop (Beck et al. 2006), canopies and soils are mixed band by band,
    fields are polygons, images come at irregular dates under clouds that the scene classification does not always
    see. Regions and years differ in timing, vigour, soil, shares of crops and clouds. ``prepare`` writes the files;
    they are then read by ``Sentinel2Series`` like anybody's. Two years of a region show the same fields in rotation.
    """

    root: str = "data/simulated_season"
    """Folder of the areas; made if absent."""

    regions: tuple[Region, ...] = (NORTH, SOUTH)
    """Where."""

    years: tuple[Year, ...] = (EARLIER, LATER)
    """When; every region is simulated in every year."""

    size: int = 256
    """Rows and columns of an area in pixels of 10 m, 64 or more."""

    bands: tuple[str, ...] = PASTIS_BANDS
    """Bands of the files and of the samples: any of a Level-2A product."""

    by: Split | None = None
    """What to learn from, to choose with and to report on; None: the first region's first year, its last year, and the
    last region's last year."""

    window: int = 24
    """Side of a window in pixels."""

    fields_per_class: int | None = None
    """Labelled fields of each class that the train part keeps; None: all."""

    shift: float = 1.0
    """Factor on everything in which regions and years differ by design, except field size and clouds: 0 to 3."""

    seed: int = 0
    """Everything random follows from it: parcels, crops, clouds, noise, and the choice of ``fields_per_class``."""

    def __post_init__(self) -> None:
        """Refuse what cannot be simulated."""
        if self.size < SMALLEST:
            raise ValueError(f"size must be at least {SMALLEST} pixels, not {self.size}: smaller areas hold no fields")
        if not (math.isfinite(self.shift) and 0.0 <= self.shift <= 3.0):
            raise ValueError(f"shift must lie between 0 (no domain shift) and 3, not {self.shift}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, not {self.seed}")
        unknown = [band for band in self.bands if band not in LEVEL2A]
        if unknown or not self.bands:
            raise ValueError(
                f"bands: {', '.join(unknown) or 'none'} cannot be simulated; choose among {', '.join(LEVEL2A)}"
            )
        for what, names in (
            ("bands", list(self.bands)),
            ("regions", [region.name for region in self.regions]),
            ("years", [year.year for year in self.years]),
        ):
            if not names or len(set(names)) < len(names):
                raise ValueError(f"{what} must be at least one and differ, not {', '.join(map(str, names)) or 'none'}")
        for region, year in self._areas():
            shifted(region, year, self.shift)  # refuses a shift that drives a calendar or a soil out of its bounds

    @property
    def classes(self) -> tuple[str, ...]:
        """The crops; their order is the class index, whatever grows in the regions."""
        return tuple(crop.name for crop in CROPS)

    def folder(self, area: str) -> Path:
        """Where an area lies: images/, fields.gpkg, simulation.json, truth.tif (uint8 class of every pixel)."""
        return Path(self.root) / area

    def prepare(self, progress: Callable[[str, int, int], None] | None = None) -> None:
        """Simulate every area that is not there yet or was made with other parameters.

        An area is written beside its place and moved there when it is complete, so that an interrupted run leaves no
        half of one. Only one process may do this at a time.

        Args:
            progress: called with (area, images written, images in all) after each image.

        Raises:
            ValueError: a folder that this class did not write stands in an area's place.
        """
        for region, year in self._areas():
            name, parameters = _name(region, year), self._parameters(region, year)
            if _complete(self.folder(name), parameters):
                continue
            report = None if progress is None else _reporter(progress, name)
            images = self._simulate(region, year, parameters, report)
            logger.info("simulated %s: %d images of %d x %d pixels", name, images, self.size, self.size)
        vars(self).pop("_series", None)  # it may have looked at the files that were there before
        self._series.prepare()

    def split(self, part: Part) -> Dataset[dict[str, Tensor]]:
        """The samples of one part, read from the files; call ``prepare`` first."""
        return self._series.split(part)

    def scenes(self) -> tuple[Scene, ...]:
        """One scene for each area."""
        return self._series.scenes()

    def _areas(self) -> tuple[tuple[Region, Year], ...]:
        return tuple((region, year) for region in self.regions for year in self.years)

    def _parameters(self, region: Region, year: Year) -> dict[str, Any]:
        """All that decides what the files of one area hold."""
        plain = {"region": asdict(region), "year": asdict(year), "size": self.size, "bands": self.bands}
        parameters = {"version": VERSION, **plain, "shift": self.shift, "seed": self.seed}
        plain_json: dict[str, Any] = json.loads(
            json.dumps(parameters)
        )  # tuples become lists, as they come back from the file
        return plain_json

    def _simulate(
        self, region: Region, year: Year, parameters: dict[str, Any], report: Callable[[int, int], None] | None
    ) -> int:
        folder = self.folder(_name(region, year))
        aside, old = (folder.with_name(f".{folder.name}.{ending}") for ending in ("part", "old"))
        for left in (aside, old):  # by an interrupted run
            shutil.rmtree(left, ignore_errors=not left.exists())
        aside.mkdir(parents=True)
        land = farmland(*shifted(region, year, self.shift), size=self.size, seed=self.seed)
        images = write_series(land, aside, bands=self.bands, seed=self.seed, progress=report)
        record = {"fingerprint": _fingerprint(parameters), "images": images, "parameters": parameters}
        (aside / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old, ignore_errors=not old.exists())
        return images

    @property
    def _by(self) -> Split:
        if self.by is not None:
            return self.by
        first, last = self.regions[0], self.regions[-1]
        train, test = _name(first, self.years[0]), _name(last, self.years[-1])
        between = _name(first, self.years[-1])
        return ByArea(train=(train,), val=() if between in {train, test} else (between,), test=(test,))

    @cached_property
    def _series(self) -> Sentinel2Series:
        areas = tuple(
            Area(
                name=_name(region, year),
                images=str(self.folder(_name(region, year)) / "images"),
                labels=Labels(path=str(self.folder(_name(region, year)) / "fields.gpkg"), column="crop"),
                year=year.year,
            )
            for region, year in self._areas()
        )
        return Sentinel2Series(
            areas=areas,
            legend=Legend(classes={name: [name] for name in self.classes}),
            by=self._by,
            bands=self.bands,
            window=self.window,
            fields_per_class=self.fields_per_class,
            seed=self.seed,
        )


def _name(region: Region, year: Year) -> str:
    return f"{region.name}-{year.year}"


def _reporter(progress: Callable[[str, int, int], None], name: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(name, done, total)


def _fingerprint(parameters: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()


def _complete(folder: Path, parameters: dict[str, Any]) -> bool:
    """Whether the folder holds all that these parameters give."""
    if not folder.exists():
        return False
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        fingerprint, images = record["fingerprint"], record["images"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} exists, but its {RECORD} does not say that it was simulated ({error}); move it away, "
            "or give another root"
        ) from error
    files = [folder / "fields.gpkg", folder / "truth.tif"]
    whole = all(file.exists() for file in files) and len(list((folder / "images").glob("*.tif"))) == 2 * images
    return bool(whole and fingerprint == _fingerprint(parameters))

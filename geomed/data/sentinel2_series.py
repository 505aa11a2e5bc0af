"""Sentinel-2 series of several areas and years, read from GeoTIFFs window by window."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property

from geomed.bands import PASTIS_BANDS, band_name
from geomed.data.area import Area, Legend  # noqa: TC001  (jsonargparse resolves the fields' types)
from geomed.data.labels import open_truth
from geomed.data.parts import Parts, refuse_windows
from geomed.data.raster_source import RasterSource
from geomed.data.series import Series
from geomed.evaluation.splits import Split  # noqa: TC001  (likewise)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sentinel2Series(RasterSource):
    """Series of GeoTIFFs with labels from a raster or from polygons.

    Images: a folder with one multi-band GeoTIFF for each date (the date in its name, or in a table ``dates.csv`` with
    the columns file,date beside the images), or one GeoTIFF with all bands of all dates (described as
    ``2018-04-21 B04``, or listed in a table of the same name ending in .csv with the columns index,date,band). Bands
    go by the names in the band descriptions.

    Masks: the scene classification and, where there is one, a cloud mask; nodata and NaN. What a mask of another
    pixel size says of a pixel is looked up under it; a pixel is clear only if all of it is. Several products of one
    day are merged, see ``Series``.

    Parts: windows lie inside the blocks of their part, so that training never reads a pixel of the test. In train a
    window without a clear date or without a label is left out, and said. In val and test a window without a label is
    left out, and every pixel counts once; predict covers whole areas, and no window of it is ever left out.

    With ``resolution`` everything is brought to one pixel size: images are averaged, masks and labels keep what all
    of a pixel agrees in. Without it a label raster of another pixel size is brought to the images' grid by the same
    rule.
    """

    areas: tuple[Area, ...]
    """The places and seasons."""

    legend: Legend
    """Which label codes make which class."""

    by: Split
    """What to learn from, to choose with, to report on and to map."""

    bands: tuple[str, ...] = PASTIS_BANDS
    """Bands to read, by name."""

    window: int = 24
    """Side of a window in pixels."""

    margin: int = 0
    """Pixels at each inner side of a val, test or predict window that are context only."""

    resolution: float | None = None
    """Pixel size to bring everything to, in the unit of the coordinate system; None: that of the images."""

    min_clear: float = 0.1
    """A date is left out of a window of which a smaller share than this is clear."""

    fields_per_class: int | None = None
    """Labelled fields of each class that the train part keeps: polygons, or connected regions of a label raster;
    None: all."""

    seed: int = 0
    """Which fields those are."""

    def __post_init__(self) -> None:
        """Refuse what no file needs to be read for."""
        if not self.areas:
            raise ValueError("a source needs at least one area, areas is empty; name one")
        for band in self.bands:
            if band_name(band) != band:
                raise ValueError(f"bands go by the agency's names, not {band!r}; write {band_name(band)}")
        if not self.bands or len(set(self.bands)) < len(self.bands):
            raise ValueError(f"bands must be named, each once, not {self.bands}; correct them")
        refuse_windows(self.window, self.margin, self.fields_per_class)
        if not 0 <= self.min_clear <= 1:
            raise ValueError(f"min_clear is a share from 0 to 1, not {self.min_clear}; correct it")

    def prepare(self) -> None:
        """Check the heads of all files and whether one is truncated, all label codes, and the split.

        Raises:
            ValueError: one of them is not as it must be; the message names the file, the rule and the way out.
        """
        super().prepare()
        for series in self._series:
            if series.merged:
                _log.info(
                    "area %s: %d products of %d days, %d days with several merged by best scene class",
                    series.name,
                    sum(map(len, series.products)),
                    len(series.days),
                    series.merged,
                )
            doubts = series.doubts_about_units()
            if doubts is not None:
                _log.warning(doubts)

    @cached_property
    def _series(self) -> tuple[Series, ...]:
        return tuple(Series.open(area, self.bands, self.resolution, min_clear=self.min_clear) for area in self.areas)

    @cached_property
    def _parts(self) -> Parts:
        return Parts(
            images=self._series,
            truths=tuple(
                open_truth(area.labels, self.legend, series.grid, f"area {area.name}")
                for area, series in zip(self.areas, self._series, strict=True)
            ),
            classes=self.classes,
            by=self.by,
            window=self.window,
            margin=self.margin,
            fields_per_class=self.fields_per_class,
            seed=self.seed,
            needs="a clear date",
            check="the masks, and min_clear",
        )

"""Sentinel-2 series of several areas and years, read from GeoTIFFs window by window."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from geomed.bands import PASTIS_BANDS, band_name
from geomed.data.area import Area, Legend  # noqa: TC001  (jsonargparse resolves the fields' types)
from geomed.data.fields import choose_fields, classes_by_field
from geomed.data.labels import Truth, open_truth
from geomed.data.series import Series
from geomed.data.series_windows import Mapped, SeriesWindows, Spot
from geomed.data.source import Part, Scene, Source
from geomed.evaluation.splits import Division, Place, Share, Split, divide
from geomed.pixels import IGNORE
from geomed.windows import Window, cover

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sentinel2Series(Source):
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
        if self.margin < 0 or self.window <= 2 * self.margin:
            raise ValueError(
                f"twice the margin must be smaller than the window: 2 x {self.margin} against {self.window}; change one"
            )
        if not 0 <= self.min_clear <= 1:
            raise ValueError(f"min_clear is a share from 0 to 1, not {self.min_clear}; correct it")
        if self.fields_per_class is not None and self.fields_per_class < 1:
            raise ValueError(f"fields_per_class must be at least 1 or null, not {self.fields_per_class}; correct it")

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self.legend.names

    def scenes(self) -> tuple[Scene, ...]:
        """One for each area."""
        return tuple(Scene(name=one.area.name, grid=one.grid) for one in self._series)

    def prepare(self) -> None:
        """Check the heads of all files and whether one is truncated, all label codes, and the split.

        Raises:
            ValueError: one of them is not as it must be; the message names the file, the rule and the way out.
        """
        self._division  # noqa: B018  (computing it is the check)
        for series, truth in zip(self._series, self._truths, strict=True):
            if truth is not None:
                truth.check()
            if series.merged:
                _log.info(
                    "area %s: %d products of %d days, %d days with several merged by best scene class",
                    series.area.name,
                    sum(map(len, series.products)),
                    len(series.days),
                    series.merged,
                )
            doubts = series.doubts_about_units()
            if doubts is not None:
                _log.warning(doubts)

    def split(self, part: Part) -> SeriesWindows:
        """The samples of one part; one line about it is logged and stands in ``summary``.

        Raises:
            ValueError: the split does not fit the areas, an area of a part with labels has none, or the train part
                has no window left.
        """
        shares = self._division[part]
        if part == "predict":
            labelled = all(self._truths[share.area] is not None for share in shares)
            whole = tuple(self._spots(shares, self.margin))
            summary = f"predict: {len(whole)} windows of {self._named(shares) or 'no area'}"
            _log.info(summary)
            return SeriesWindows(self._mapped, whole, min_clear=self.min_clear, with_labels=labelled, summary=summary)
        for share in shares:
            if self._truths[share.area] is None:
                raise ValueError(
                    f"area {self.areas[share.area].name} has no labels, so it cannot be in {part}; "
                    "give it labels or leave it to predict"
                )
        training = part == "train"
        mapped = self._with_few_fields(shares) if training and self.fields_per_class is not None else self._mapped
        candidates = list(self._spots(shares, 0 if training else self.margin))
        spots, counts, dark = list[Spot](), Counter[int](), 0
        for spot in candidates:
            labels = mapped[spot.area].labels(spot.read)
            if labels is None or not (labels[spot.labelled.within(spot.read).slices] != IGNORE).any():
                continue
            if training and not mapped[spot.area].series.ever_clear(spot.read, min_clear=self.min_clear):
                dark += 1
                continue
            if training:
                spot = replace(spot, labelled=spot.read)  # noqa: PLW2901  (the overlap at a border may teach twice)
            counts.update(Counter(labels[spot.keep.within(spot.read).slices].ravel().tolist()))
            spots.append(spot)
        summary = self._summary(part, shares, counts, len(spots), len(candidates) - len(spots) - dark, dark)
        _log.info(summary)
        if training and not spots:
            raise ValueError(
                f"train has no window with a label and a clear date, of {len(candidates)} windows of "
                f"{self._named(shares) or 'no area'}; check that labels and images overlap, the masks, and min_clear"
            )
        return SeriesWindows(mapped, tuple(spots), min_clear=self.min_clear, with_labels=True, summary=summary)

    @cached_property
    def _series(self) -> tuple[Series, ...]:
        return tuple(Series.open(area, self.bands, self.resolution) for area in self.areas)

    @cached_property
    def _truths(self) -> tuple[Truth | None, ...]:
        return tuple(open_truth(one.area, self.legend, one.grid) for one in self._series)

    @cached_property
    def _mapped(self) -> tuple[Mapped, ...]:
        return tuple(Mapped(series=s, truth=t) for s, t in zip(self._series, self._truths, strict=True))

    @cached_property
    def _division(self) -> Division:
        places = [Place(name=one.area.name, year=one.year, grid=one.grid) for one in self._series]
        return divide(self.by, places)

    def _spots(self, shares: Sequence[Share], margin: int) -> Iterator[Spot]:
        for share in shares:
            for block in share.blocks:
                for read, keep in cover((block.height, block.width), size=self.window, margin=margin):
                    here, kept = _shifted(read, block), _shifted(keep, block)
                    yield Spot(area=share.area, read=here, keep=kept, labelled=kept)

    def _with_few_fields(self, shares: Sequence[Share]) -> tuple[Mapped, ...]:
        """The areas with only some of their fields, drawn among those that own a pixel of the part."""
        fields = {share.area: truth.fields() for share in shares if (truth := self._truths[share.area]) is not None}
        present: dict[int, dict[int, int]] = {}
        for area, outlines in fields.items():
            mapped = self._mapped[area]
            windows = (
                (outlines.ids(mapped.series.grid, spot.read), labels)
                for spot in self._spots([share for share in shares if share.area == area], 0)
                if (labels := mapped.labels(spot.read)) is not None
            )
            present[area] = classes_by_field(outlines, windows)
        few = choose_fields(present, self.fields_per_class or 0, seed=self.seed)
        return tuple(
            replace(mapped, fields=fields[area], among=few[area]) if area in few else mapped
            for area, mapped in enumerate(self._mapped)
        )

    def _named(self, shares: Sequence[Share]) -> str:
        return ", ".join(dict.fromkeys(self.areas[share.area].name for share in shares))

    def _summary(
        self, part: str, shares: Sequence[Share], counts: Counter[int], windows: int, unlabelled: int, dark: int
    ) -> str:
        pixels = ", ".join(f"{name} {counts[index]}" for index, name in enumerate(self.classes))
        left = [f"{unlabelled} without a label"] if unlabelled else []
        left += [f"{dark} without a clear date"] if dark else []
        out = f" (left out: {', '.join(left)})" if left else ""
        return f"{part}: {windows} windows of {self._named(shares) or 'no area'}{out}; labelled pixels: {pixels}"


def _shifted(window: Window, block: Window) -> Window:
    return Window(window.row + block.row, window.column + block.column, window.height, window.width)

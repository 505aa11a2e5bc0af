"""Labelled areas cut into windows, part by part: what a source of rasters does once its files are found."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from geomed.data.fields import choose_fields, classes_by_field
from geomed.data.labels import PolygonTruth
from geomed.data.source import Part, Scene
from geomed.data.window_samples import Mapped, Spot, WindowSamples
from geomed.evaluation.splits import PARTS, Division, Place, Share, Split, divide
from geomed.pixels import IGNORE
from geomed.windows import Window, cover

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from geomed.data.imagery import Imagery
    from geomed.data.labels import Truth

_log = logging.getLogger(__name__)


def refuse_windows(window: int, margin: int, fields_per_class: int | None) -> None:
    """Refuse sizes and counts that make no sense, before any file is read.

    Raises:
        ValueError: the margins leave nothing of a window, or no field is to be kept.
    """
    if margin < 0 or window <= 2 * margin:
        raise ValueError(f"twice the margin must be smaller than the window: 2 x {margin} against {window}; change one")
    if fields_per_class is not None and fields_per_class < 1:
        raise ValueError(f"fields_per_class must be at least 1 or null, not {fields_per_class}; correct it")


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The windows of train, val, test and predict.

    Windows lie inside the blocks of their part, so that training never reads a pixel of the test. In train a window
    that training cannot use, or without a label, is left out, and said. In val and test a window without a label is
    left out, and every pixel counts once; predict covers whole areas, and no window of it is ever left out.
    """

    images: tuple[Imagery, ...]
    """The areas."""

    truths: tuple[Truth | None, ...]
    """The labels of each, None where it has none."""

    classes: tuple[str, ...]
    """Class names in index order."""

    by: Split
    """What to learn from, to choose with, to report on and to map."""

    window: int
    """Side of a window in pixels."""

    margin: int
    """Pixels at each inner side of a val, test or predict window that are context only."""

    fields_per_class: int | None
    """Labelled fields of each class that the train part keeps; None: all."""

    seed: int
    """Which fields those are."""

    whole_polygons: bool = False
    """A polygon that reaches into several parts counts only in the one that holds most of it."""

    needs: str
    """What makes a window usable, as "a clear date"."""

    check: str
    """What to check where no window is usable, as "the masks"."""

    def scenes(self) -> tuple[Scene, ...]:
        """One for each area."""
        return tuple(Scene(name=one.name, grid=one.grid) for one in self.images)

    def prepare(self) -> None:
        """Check the split and all label codes.

        Raises:
            ValueError: one of them is not as it must be.
        """
        self._division  # noqa: B018  (computing it is the check)
        for truth in self.truths:
            if truth is not None:
                truth.check()

    def split(self, part: Part) -> WindowSamples:
        """The samples of one part; one line about it is logged and stands in ``summary``.

        Raises:
            ValueError: the split does not fit the areas, an area of a part with labels has none, or the train part
                has no window left.
        """
        shares = self._division[part]
        if part == "predict":
            labelled = all(self.truths[share.area] is not None for share in shares)
            whole = tuple(self._spots(shares, self.margin))
            summary = f"predict: {len(whole)} windows of {self._named(shares) or 'no area'}"
            _log.info(summary)
            return WindowSamples(self._mapped, whole, with_labels=labelled, summary=summary)
        for share in shares:
            if self.truths[share.area] is None:
                raise ValueError(
                    f"area {self.images[share.area].name} has no labels, so it cannot be in {part}; "
                    "give it labels or leave it to predict"
                )
        training = part == "train"
        mapped = self._mapped_in(part, shares)
        candidates = list(self._spots(shares, 0 if training else self.margin))
        spots, counts, useless = list[Spot](), Counter[int](), 0
        for spot in candidates:
            labels = mapped[spot.area].labels(spot.read)
            if labels is None or not (labels[spot.labelled.within(spot.read).slices] != IGNORE).any():
                continue
            if training and not mapped[spot.area].imagery.usable(spot.read):
                useless += 1
                continue
            if training:
                spot = replace(spot, labelled=spot.read)  # noqa: PLW2901  (the overlap at a border may teach twice)
            counts.update(Counter(labels[spot.keep.within(spot.read).slices].ravel().tolist()))
            spots.append(spot)
        summary = self._summary(part, shares, counts, len(spots), len(candidates) - len(spots) - useless, useless)
        _log.info(summary)
        if training and not spots:
            raise ValueError(
                f"train has no window with a label and {self.needs}, of {len(candidates)} windows of "
                f"{self._named(shares) or 'no area'}; check that labels and images overlap, {self.check}"
            )
        return WindowSamples(mapped, tuple(spots), with_labels=True, summary=summary)

    @cached_property
    def _mapped(self) -> tuple[Mapped, ...]:
        return tuple(Mapped(imagery=i, truth=t) for i, t in zip(self.images, self.truths, strict=True))

    @cached_property
    def _division(self) -> Division:
        return divide(self.by, [Place(name=one.name, year=one.year, grid=one.grid) for one in self.images])

    def _spots(self, shares: Sequence[Share], margin: int) -> Iterator[Spot]:
        for share in shares:
            for block in share.blocks:
                for read, keep in cover((block.height, block.width), size=self.window, margin=margin):
                    here, kept = _shifted(read, block), _shifted(keep, block)
                    yield Spot(area=share.area, read=here, keep=kept, labelled=kept)

    def _mapped_in(self, part: Part, shares: Sequence[Share]) -> tuple[Mapped, ...]:
        """The areas with the fields that count in a part."""
        mapped = self._mapped
        if self.whole_polygons:
            mapped = tuple(
                replace(one, fields=one.truth.polygons, among=frozenset(f for f, p in owners.items() if p == part))
                if isinstance(one.truth, PolygonTruth)
                else one
                for one, owners in zip(mapped, self._owners, strict=True)
            )
        few = part == "train" and self.fields_per_class is not None
        return self._with_few_fields(mapped, shares) if few else mapped

    @cached_property
    def _owners(self) -> tuple[dict[int, str], ...]:
        """For each area, polygon → the part that holds most of its pixels."""
        owners = []
        for area, mapped in enumerate(self._mapped):
            held: dict[int, Counter[str]] = {}
            if isinstance(mapped.truth, PolygonTruth):
                for part in PARTS:
                    for spot in self._spots([share for share in self._division[part] if share.area == area], 0):
                        ids = mapped.truth.polygons.ids(mapped.imagery.grid, spot.keep)
                        for field, count in zip(*np.unique(ids[ids >= 0], return_counts=True), strict=True):
                            held.setdefault(int(field), Counter())[part] += int(count)
                several = sum(len(parts) > 1 for parts in held.values())
                if several:
                    _log.info(
                        "area %s: %d of %d polygons reach into several parts and count in the one that holds most",
                        mapped.imagery.name,
                        several,
                        len(held),
                    )
            owners.append({field: parts.most_common(1)[0][0] for field, parts in held.items()})
        return tuple(owners)

    def _with_few_fields(self, areas: tuple[Mapped, ...], shares: Sequence[Share]) -> tuple[Mapped, ...]:
        """The areas with only some of their fields, drawn among those that own a pixel of the part.

        Areas that share one truth object are dates of one place: a field is drawn once, and counts on all of them.
        """
        fields = {share.area: truth.fields() for share in shares if (truth := self.truths[share.area]) is not None}
        first = [next(n for n, other in enumerate(self.truths) if other is truth) for truth in self.truths]
        present: dict[int, dict[int, int]] = {}
        for area, outlines in fields.items():
            mapped = areas[area]
            windows = (
                (outlines.ids(mapped.imagery.grid, spot.read, among=mapped.among), labels)
                for spot in self._spots([share for share in shares if share.area == area], 0)
                if (labels := mapped.labels(spot.read)) is not None
            )
            present.setdefault(first[area], {}).update(classes_by_field(outlines, windows))
        few = choose_fields(present, self.fields_per_class or 0, seed=self.seed)
        return tuple(
            replace(mapped, fields=fields[area], among=few[first[area]]) if area in fields else mapped
            for area, mapped in enumerate(areas)
        )

    def _named(self, shares: Sequence[Share]) -> str:
        return ", ".join(dict.fromkeys(self.images[share.area].name for share in shares))

    def _summary(
        self, part: str, shares: Sequence[Share], counts: Counter[int], windows: int, unlabelled: int, useless: int
    ) -> str:
        pixels = ", ".join(f"{name} {counts[index]}" for index, name in enumerate(self.classes))
        left = [f"{unlabelled} without a label"] if unlabelled else []
        left += [f"{useless} without {self.needs}"] if useless else []
        out = f" (left out: {', '.join(left)})" if left else ""
        return f"{part}: {windows} windows of {self._named(shares) or 'no area'}{out}; labelled pixels: {pixels}"


def _shifted(window: Window, block: Window) -> Window:
    return Window(window.row + block.row, window.column + block.column, window.height, window.width)

"""Splits of space and time as objects, and the refusal of splits whose sides touch."""

from __future__ import annotations

import itertools
import random
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from shapely import STRtree
from shapely.geometry import Polygon, box

from geomed.io.footprint import corners
from geomed.windows import Window, cover

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from odc.geo.geobox import GeoBox

PARTS = ("train", "val", "test")
"""The parts with labels, which may not touch each other."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a split needs to know of an area."""

    name: str
    """The area's name, unique."""

    year: int
    """The year that its labels belong to."""

    grid: GeoBox
    """Its pixels in the world."""

    @property
    def whole(self) -> Window:
        """All its pixels."""
        return Window(0, 0, self.grid.shape.y, self.grid.shape.x)


@dataclass(frozen=True, kw_only=True)
class Share:
    """The pixels of one area that belong to one part."""

    area: int
    """Index of the area among the places."""

    blocks: tuple[Window, ...]
    """Rectangles that do not overlap. Windows are placed inside them: a pixel of another part is not even read."""


Division = dict[str, tuple[Share, ...]]
"""train, val, test and predict, each with its shares."""


class Split(ABC):
    """A rule that gives every part its pixels; implementations are frozen keyword-only dataclasses."""

    @abstractmethod
    def divide(self, places: Sequence[Place]) -> Division:
        """The shares of every part, not yet checked: call ``divide`` of this module, which refuses touching sides."""

    @abstractmethod
    def gap(self) -> int:
        """Least count of pixels between two parts inside one area."""


@dataclass(frozen=True, kw_only=True)
class ByArea(Split):
    """Whole areas, by name."""

    train: tuple[str, ...] = ()
    """Areas to learn from."""

    val: tuple[str, ...] = ()
    """Areas to choose with."""

    test: tuple[str, ...] = ()
    """Areas to report on."""

    predict: tuple[str, ...] | None = None
    """Areas to map; None: the test areas."""

    def divide(self, places: Sequence[Place]) -> Division:
        """Each named area goes to its part as a whole.

        Raises:
            ValueError: there is no area of such a name.
        """
        named = {"train": self.train, "val": self.val, "test": self.test, "predict": self.predict}
        if self.predict is None:
            named["predict"] = self.test
        return {part: _whole(places, names or ()) for part, names in named.items()}

    def gap(self) -> int:
        """Two areas may be as close as they are without touching."""
        return 1


@dataclass(frozen=True, kw_only=True)
class ByYear(Split):
    """Whole areas, by the year of their labels: the same place may stand in two parts with two years."""

    train: tuple[int, ...] = ()
    """Years to learn from."""

    val: tuple[int, ...] = ()
    """Years to choose with."""

    test: tuple[int, ...] = ()
    """Years to report on, and to map."""

    def divide(self, places: Sequence[Place]) -> Division:
        """Each area goes to the part that names its year.

        Raises:
            ValueError: no area has such a year.
        """
        present = {place.year for place in places}
        division: Division = {}
        for part, years in (("train", self.train), ("val", self.val), ("test", self.test)):
            missing = [str(year) for year in years if year not in present]
            if missing:
                raise ValueError(
                    f"{part}: no area has the year {', '.join(missing)}, there are "
                    f"{', '.join(map(str, sorted(present)))}; name one of these or give the area its year"
                )
            division[part] = _whole(places, [place.name for place in places if place.year in years])
        return {**division, "predict": division["test"]}

    def gap(self) -> int:
        """Two areas may be as close as they are without touching."""
        return 1


@dataclass(frozen=True, kw_only=True)
class ByBlocks(Split):
    """Square blocks of each area, shuffled among the parts, with a strip of unused pixels between them.

    Neighbouring pixels are alike, so a random split of pixels or windows lets a model be tested on what it has seen;
    blocks with a buffer as wide as that likeness keep the sides apart (Roberts et al. 2017, Ecography 40, 913-929).
    Areas of the same shape are divided in the same way, so a place keeps its parts from year to year.
    """

    size: int
    """Side of a block in pixels, its half of the buffer included."""

    buffer: int = 2
    """Pixels left unused between two blocks; at least 1."""

    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2)
    """Share of the blocks that goes to train, val and test; the rest stays unused."""

    seed: int = 0
    """Which blocks go where."""

    areas: tuple[str, ...] | None = None
    """Areas to divide; None: all. The other areas are in no part."""

    def __post_init__(self) -> None:
        """Refuse blocks that vanish in their buffer and fractions that are none."""
        if self.buffer < 1 or self.size <= self.buffer:
            raise ValueError(
                f"blocks need 1 <= buffer < size in pixels, not buffer {self.buffer} and size {self.size}; "
                "take larger blocks or a narrower buffer"
            )
        if min(self.fractions) < 0 or not 0 < sum(self.fractions) <= 1 + 1e-9:
            raise ValueError(f"fractions must be at least 0 and sum to at most 1, not {self.fractions}; correct them")

    def divide(self, places: Sequence[Place]) -> Division:
        """Blocks of every area; a part of which the fraction is above 0 gets at least one.

        Raises:
            ValueError: an area has fewer blocks than there are parts, or there is no area of such a name.
        """
        names = [place.name for place in places] if self.areas is None else self.areas
        predict = _whole(places, names)
        shares: dict[str, list[Share]] = {part: [] for part in PARTS}
        for share in predict:
            place = places[share.area]
            blocks = list(self._blocks(place.whole))
            random.Random(self.seed).shuffle(blocks)  # noqa: S311  (a split, not a secret)
            for part, count in zip(PARTS, self._counts(len(blocks), place.name), strict=True):
                taken, blocks = blocks[:count], blocks[count:]
                if taken:
                    shares[part].append(
                        Share(area=share.area, blocks=tuple(sorted(taken, key=lambda b: (b.row, b.column))))
                    )
        return {**{part: tuple(found) for part, found in shares.items()}, "predict": predict}

    def gap(self) -> int:
        """The buffer."""
        return self.buffer

    def _blocks(self, whole: Window) -> Iterator[Window]:
        """Blocks without their half of the buffer, which the border of the area does not need."""
        before, after = self.buffer // 2, self.buffer - self.buffer // 2
        for _, block in cover((whole.height, whole.width), size=self.size):
            top = before if block.row else 0
            left = before if block.column else 0
            bottom = after if block.row + block.height < whole.height else 0
            right = after if block.column + block.width < whole.width else 0
            height, width = block.height - top - bottom, block.width - left - right
            if height > 0 and width > 0:
                yield Window(block.row + top, block.column + left, height, width)

    def _counts(self, blocks: int, name: str) -> list[int]:
        """Blocks of each part: rounded down, at least one, what is left over to the largest loss."""
        wanted = [fraction * blocks for fraction in self.fractions]
        counts = [max(int(count + 1e-9), 1) if count > 0 else 0 for count in wanted]
        if sum(counts) > blocks:
            raise ValueError(
                f"area {name} has {blocks} blocks of {self.size} pixels, too few for {sum(map(bool, wanted))} parts; "
                "take smaller blocks or another split"
            )
        spare = min(round(sum(wanted)), blocks) - sum(counts)
        for index in sorted(range(len(wanted)), key=lambda i: counts[i] - wanted[i])[: max(spare, 0)]:
            counts[index] += 1
        return counts


@dataclass(frozen=True, kw_only=True)
class Together(Split):
    """Several splits at once: learn from whole areas and from a few blocks of another, test on its other blocks."""

    splits: tuple[Split, ...]
    """Their parts are joined; the whole is then checked as one."""

    def divide(self, places: Sequence[Place]) -> Division:
        """The shares of all of them."""
        divisions = [split.divide(places) for split in self.splits]
        joined = {part: tuple(s for one in divisions for s in one[part]) for part in PARTS}
        predict = {share.area: share for one in divisions for share in one["predict"]}
        return {**joined, "predict": tuple(predict.values())}

    def gap(self) -> int:
        """The widest of their gaps."""
        return max((split.gap() for split in self.splits), default=1)


def divide(split: Split, places: Sequence[Place]) -> Division:
    """The shares of every part: train, val, test, and predict, which may be anywhere.

    Windows are to be placed inside the blocks of a share, so that one part never reads a pixel of another.

    Raises:
        ValueError: the sides of two parts touch, an area is named twice, or the split does not fit the places.
    """
    doubled = [name for name, count in Counter(place.name for place in places).items() if count > 1]
    if doubled:
        raise ValueError(f"area names must be unique, {', '.join(doubled)} stands twice; rename one")
    division = split.divide(places)
    refuse_touching(division, places, gap=split.gap())
    return division


def refuse_touching(division: Mapping[str, Sequence[Share]], places: Sequence[Place], *, gap: int = 1) -> None:
    """Make sure that no two of train, val and test share or border on ground of one year.

    Args:
        division: the shares of every part.
        places: the areas that the shares count through.
        gap: least count of pixels between two parts inside one area, at least 1.

    Raises:
        ValueError: two parts hold the same area, blocks closer than ``gap``, or areas of one year that touch in space.
    """
    for one, other in itertools.combinations(PARTS, 2):
        for a, b in itertools.product(division[one], division[other]):
            names = places[a.area].name, places[b.area].name
            if a.area == b.area:
                for x, y in _closer(a.blocks, b.blocks, gap):
                    between = _between(x, y)
                    how = "overlap" if between < 0 else f"are {between} pixels apart, at least {gap} are needed"
                    raise ValueError(
                        f"{one} and {other} touch in area {names[0]}: {_named(x)} and {_named(y)} {how}; "
                        "give the area to one part or split it by blocks"
                    )
            elif places[a.area].year == places[b.area].year and _meet(places, a, b):
                raise ValueError(
                    f"{one} and {other} touch: areas {names[0]} and {names[1]} share ground in {places[a.area].year}; "
                    "put both into one part or cut one of them"
                )


def _whole(places: Sequence[Place], names: Sequence[str]) -> tuple[Share, ...]:
    index = {place.name: number for number, place in enumerate(places)}
    missing = [name for name in names if name not in index]
    if missing:
        raise ValueError(f"no area is called {', '.join(missing)}, there are {', '.join(index)}; name one of these")
    return tuple(Share(area=index[name], blocks=(places[index[name]].whole,)) for name in dict.fromkeys(names))


def _closer(first: Sequence[Window], second: Sequence[Window], gap: int) -> list[tuple[Window, Window]]:
    """Pairs of rectangles with fewer unused pixels than ``gap`` between them; a scene may have tens of thousands."""
    if not first or not second:
        return []
    near = STRtree([_square(b, 0) for b in second]).query([_square(a, gap - 0.5) for a in first])
    return [(first[i], second[j]) for i, j in sorted(near.T.tolist())]


def _square(window: Window, grown: float) -> Polygon:
    bottom, right = window.row + window.height, window.column + window.width
    return box(window.column - grown, window.row - grown, right + grown, bottom + grown)


def _between(a: Window, b: Window) -> int:
    """Unused pixels between two rectangles, along the axis that separates them further; -1 if they overlap."""
    rows = max(a.row - b.row - b.height, b.row - a.row - a.height)
    columns = max(a.column - b.column - b.width, b.column - a.column - a.width)
    return max(rows, columns, -1)


def _named(window: Window) -> str:
    return f"rows {window.row}-{window.row + window.height - 1}, columns {window.column}-" + str(
        window.column + window.width - 1
    )


def _meet(places: Sequence[Place], a: Share, b: Share) -> bool:
    """Whether blocks of two areas share ground or border on each other, as far as their grids can tell.

    In two coordinate systems both are asked: another continent, or the globe, may not fit into one of them.
    """
    first, second = places[a.area].grid, places[b.area].grid
    if (first.crs is None) != (second.crs is None) or (first.crs is None and first.affine.is_identity):
        return False  # pixels without a place in the world cannot be compared
    return _meet_in(second, places, a, b) or (first.crs != second.crs and _meet_in(first, places, a, b))


def _meet_in(target: GeoBox, places: Sequence[Place], a: Share, b: Share) -> bool:
    first, second = places[a.area], places[b.area]
    if not _outline(first.grid, first.whole, target).intersects(_outline(second.grid, second.whole, target)):
        return False
    there = STRtree([_outline(second.grid, block, target) for block in b.blocks])
    return any(len(there.query(_outline(first.grid, block, target), "intersects")) for block in a.blocks)


def _outline(grid: GeoBox, window: Window, target: GeoBox) -> Polygon:
    """Ground of a window in the coordinates of ``target``, grown by a millionth of a pixel so that borders meet.

    Empty where the target's projection cannot show it.
    """
    ground = Polygon(corners(grid, window))
    if grid.crs != target.crs:
        # straight edges bend in another projection, so they are followed in 16 steps
        steps = ground.segmentize(ground.length / 64).exterior.coords
        xs, ys = grid.crs.transformer_to_crs(target.crs)([x for x, _ in steps], [y for _, y in steps])
        if not np.isfinite([xs, ys]).all():
            return Polygon()
        ground = Polygon(zip(xs, ys, strict=True))
    return ground.buffer(1e-6 * abs(target.affine.determinant) ** 0.5)

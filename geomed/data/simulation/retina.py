"""Photographs of made-up retinas: disc, vessels, lesions, and what harmlessly resembles them, drawn into arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from geomed.data.simulation.cohort import Site

HAEMORRHAGES = (0.0, 4.0, 9.0, 16.0, 26.0)
"""Mean count of red lesions for each grade."""

EXUDATES = (0.0, 0.0, 3.0, 7.0, 12.0)
"""Mean count of bright lesions for each grade."""

_FINER = 3  # masks are drawn so many times larger: the vessels are thinner than a pixel
_FUNDUS = np.array([0.74, 0.36, 0.16])  # colour of healthy retina
_DISC = np.array([0.98, 0.82, 0.52])
_EXUDATE = np.array([0.97, 0.86, 0.42])
_DRUSE = np.array([0.90, 0.62, 0.32])
_PIGMENT = np.array([0.36, 0.20, 0.11])
_BLOOD = np.array([0.36, 0.05, 0.04])
_VESSEL = np.array([0.50, 0.12, 0.08])


@dataclass(frozen=True, kw_only=True)
class Spots:
    """Spots of one kind; the centre of the retina is (0, 0), its rim has the radius 1."""

    places: NDArray[np.float64]
    """Right and down, [n, 2]."""

    radii: NDArray[np.float64]
    """[n]."""


@dataclass(frozen=True, kw_only=True)
class Eye:
    """All that is the same in every photograph of an eye, drawn as a right one."""

    vessels: tuple[tuple[NDArray[np.float64], float], ...]
    """Lines [n, 2] and their widths."""

    spots: tuple[tuple[Spots, NDArray[np.float64]], ...]
    """Spots and their colour, the lowest first."""

    disc: tuple[float, float, float]
    """Of the optic disc: right, down, radius."""

    shade: NDArray[np.float64]
    """Factors [3] on the colour of the retina: how much pigment the person has."""

    mottle: NDArray[np.float64]
    """Uneven brightness of the retina, coarse, [7, 7] about 0."""


def grow_eye(grade: int, age: float, shade: NDArray[np.float64], rng: np.random.Generator) -> Eye:
    """An eye with lesions of a grade.

    Besides lesions it has pigmented spots, which are dark too, and, the more the older, drusen, which are bright too:
    neither says anything of the grade.

    Args:
        grade: 0 to 4; the counts of lesions are Poisson's, so that neighbouring grades overlap.
        age: in years.
        shade: of the person, [3].
        rng: what is drawn from.
    """
    disc = (0.52 + 0.06 * rng.normal(), 0.06 * rng.normal(), 0.155 + 0.012 * rng.normal())
    worse = rng.lognormal(0.0, 0.2)
    haemorrhages, exudates = (rng.poisson(table[grade] * worse) for table in (HAEMORRHAGES, EXUDATES))
    pigmented = rng.poisson(rng.gamma(1.0, 7.0))
    drusen = rng.poisson(rng.gamma(1.0, 1.0 + max(age - 40.0, 0.0) / 4.0))
    return Eye(
        vessels=tuple(_tree(disc, rng)),
        spots=(
            (_scattered(pigmented, (0.04, 0.10), disc, rng), _PIGMENT),
            (_scattered(drusen, (0.02, 0.05), disc, rng), _DRUSE),
            (_scattered(exudates, (0.025, 0.055), disc, rng), _EXUDATE),
            (_scattered(haemorrhages, (0.03, 0.07), disc, rng), _BLOOD),
        ),
        disc=disc,
        shade=shade,
        mottle=rng.normal(0.0, 0.15, (7, 7)),
    )


def photograph(eye: Eye, site: Site, *, left: bool, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One photograph [size, size, 3]: the gaze wanders, the lamp is never quite centred, the site does the rest.

    Args:
        eye: whose.
        site: its camera and lamp.
        left: mirror it.
        size: side in pixels.
        rng: what is drawn from.
    """
    turn, zoom = rng.normal(0.0, 0.10), rng.uniform(0.92, 1.08)
    gaze = rng.normal(0.0, 0.06, 2)
    cosine, sine = np.cos(turn) * zoom, np.sin(turn) * zoom
    move = np.array([[cosine, sine], [-sine, cosine]])
    if left:
        move[:, 0] *= -1
    pencil = _Pencil(size, move, gaze)
    y, x = np.mgrid[0:size, 0:size] / (size - 1) * 2 - 1
    coarse = Image.fromarray(eye.mottle.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
    mottle = np.asarray(coarse, dtype=np.float64)
    picture = (_FUNDUS * eye.shade)[None, None] * (1 + (mottle[:, ::-1] if left else mottle))[..., None]
    picture = _over(picture, pencil.discs([eye.disc]), _DISC, 0.9)
    picture = _over(picture, pencil.lines(eye.vessels), _VESSEL * eye.shade, 0.85)
    for spots, colour in eye.spots:
        drawn = [(*place, radius) for place, radius in zip(spots.places, spots.radii, strict=True)]
        picture = _over(picture, pencil.discs(drawn), colour, 0.8)
    lamp = rng.normal(0.0, 0.22, 2) * (1 + site.unevenness)
    fall = 1 - (0.22 + 0.3 * site.unevenness) * ((x - lamp[0]) ** 2 + (y - lamp[1]) ** 2)
    exposure = rng.lognormal(0.0, 0.14)
    white = np.array(site.tint) * rng.lognormal(0.0, 0.05, 3)
    picture = picture * (np.clip(fall, 0.1, None) * exposure)[..., None] * white
    picture = 0.32 + (picture - 0.32) * site.contrast * rng.lognormal(0.0, 0.10)
    rim = np.clip((0.97 - np.hypot(x, y)) * size / 2, 0, 1)[..., None]
    picture = np.clip(picture, 0, 1) * rim
    exact = Image.fromarray((picture * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(site.blur * size / 100))
    grain = rng.normal(0.0, site.noise * 255, (size, size, 3)) * rim
    return np.clip(np.rint(np.asarray(exact, dtype=np.float64) + grain), 0, 255).astype(np.uint8)


class _Pencil:
    """Draws lines and spots of a turned, shifted, perhaps mirrored retina as coverage of pixels."""

    def __init__(self, size: int, move: NDArray[np.float64], gaze: NDArray[np.float64]) -> None:
        """``move`` [2, 2] and ``gaze`` [2] take places of the retina to places of the picture."""
        self.size, self.move, self.gaze = size, move, gaze
        self.scale = np.sqrt(abs(np.linalg.det(move))) * size * _FINER / 2

    def _at(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        return (places @ self.move.T + self.gaze + 1) * (self.size * _FINER / 2)

    def lines(self, lines: Sequence[tuple[NDArray[np.float64], float]]) -> NDArray[np.float64]:
        """Lines with their widths → [size, size]."""
        sheet, draw = self._sheet()
        for places, width in lines:
            draw.line([tuple(at) for at in self._at(places)], fill=255, width=max(round(width * self.scale), 1))
        return self._covered(sheet)

    def discs(self, discs: Sequence[tuple[float, float, float]]) -> NDArray[np.float64]:
        """Right, down and radius of each → [size, size]."""
        sheet, draw = self._sheet()
        for right, down, radius in discs:
            x, y = self._at(np.array([right, down]))
            reach = radius * self.scale
            draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=255)
        return self._covered(sheet)

    def _sheet(self) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        sheet = Image.new("L", (self.size * _FINER, self.size * _FINER))
        return sheet, ImageDraw.Draw(sheet)

    def _covered(self, sheet: Image.Image) -> NDArray[np.float64]:
        return np.asarray(sheet.reduce(_FINER), dtype=np.float64) / 255


def _over(
    picture: NDArray[np.float64], covered: NDArray[np.float64], colour: NDArray[np.float64], strength: float
) -> NDArray[np.float64]:
    share = (covered * strength)[..., None]
    return picture * (1 - share) + colour * share


def _scattered(
    count: int, radii: tuple[float, float], disc: tuple[float, float, float], rng: np.random.Generator
) -> Spots:
    """Spots evenly over the retina, except on the optic disc."""
    radius, angle = 0.88 * np.sqrt(rng.random(4 * count + 8)), rng.uniform(0, 2 * np.pi, 4 * count + 8)
    places = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    free = np.hypot(places[:, 0] - disc[0], places[:, 1] - disc[1]) > disc[2] * 1.4
    return Spots(places=places[free][:count], radii=rng.uniform(*radii, min(count, int(free.sum()))))


def _tree(disc: tuple[float, float, float], rng: np.random.Generator) -> list[tuple[NDArray[np.float64], float]]:
    """Vessels: four arcades from the optic disc, which bend around the centre, and their branches."""
    grown: list[tuple[NDArray[np.float64], float]] = []
    ways = [(start, bend) for start, bend in ((2.1, 0.9), (-2.1, -0.9), (0.9, -0.5), (-0.9, 0.5)) for _ in range(2)]
    waiting = [
        (np.array(disc[:2]), start + rng.normal(0, 0.25), bend + rng.normal(0, 0.3), rng.uniform(0.03, 0.045), 0)
        for start, bend in ways
    ]
    while waiting:
        place, angle, bend, width, order = waiting.pop()
        steps = rng.integers(9, 15) - 3 * order
        angles = angle + bend * 0.13 * np.arange(steps) + rng.normal(0, 0.12, steps).cumsum()
        strides = 0.12 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        line = np.concatenate([place[None], place + strides.cumsum(axis=0)])
        grown.append((line, width))
        if order < 2:
            for fork in rng.choice(np.arange(2, steps), size=2, replace=False):
                side = rng.choice((-1, 1))
                waiting.append(
                    (line[fork], angles[fork] + side * rng.uniform(0.4, 0.9), -bend, width * 0.65, order + 1)
                )
    return grown

"""Made-up patients of several sites: who they are, how ill each eye is, and how each site takes its photographs."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from geomed.data.simulation.retina import grow_eye, photograph

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

GRADES = ("none", "mild", "moderate", "severe", "proliferative")
"""What the grades 0 to 4 are called, as in the International Clinical Diabetic Retinopathy scale (Wilkinson et al.
2003)."""

REFERABLE = 2
"""The lowest grade that a patient is referred with."""

_BORDERS = (0.25, 0.75, 1.35, 1.95)  # of severity; at severity 0 +- 1.05 about 40, 24, 10 and 3 % lie above them


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where patients are photographed, and how."""

    name: str
    """Part of the patients' names and of the files'; letters, digits, - and _."""

    patients: int = 100
    """How many."""

    severity: float = 0.0
    """How much more ill its patients are than those of a screening programme; 0.5 about doubles the referable ones."""

    contrast: float = 1.0
    """Factor on the contrast."""

    blur: float = 0.4
    """Standard deviation of the blur in percent of the picture's side."""

    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Factors on red, green and blue."""

    unevenness: float = 0.0
    """How much the light falls off, from 0 to 1."""

    noise: float = 0.015
    """Standard deviation of the grain; white is 1."""

    def __post_init__(self) -> None:
        """Refuse what is no site."""
        if not self.name or not all(letter.isalnum() or letter in "-_" for letter in self.name):
            raise ValueError(f"a site's name becomes part of files: letters, digits, - and _ only, not {self.name!r}")
        if self.patients < 1:
            raise ValueError(f"a site needs at least 1 patient, not {self.patients}; leave it out or give it some")
        for what, value, low, high in (
            ("severity", self.severity, -2.0, 2.0),
            ("contrast", self.contrast, 0.2, 2.0),
            ("blur", self.blur, 0.0, 5.0),
            ("unevenness", self.unevenness, 0.0, 1.0),
            ("noise", self.noise, 0.0, 0.2),
            *(("tint", one, 0.3, 2.0) for one in self.tint),
        ):
            if not low <= value <= high:
                raise ValueError(f"{what} of a site lies between {low} and {high}, not {value}; correct it")


SCREENING = Site(name="screening", patients=160)
"""Healthy people mostly, a good camera."""

MOBILE = Site(name="mobile", patients=80, contrast=0.78, blur=0.9, tint=(0.92, 1.12, 0.9), unevenness=0.6, noise=0.03)
"""A handheld camera: blurred, flat, greenish, badly lit."""

HOSPITAL = Site(name="hospital", patients=80, severity=0.6, contrast=1.12, tint=(1.02, 0.86, 1.25), unevenness=0.15)
"""More of the ill, another camera: crisp and cold."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Photograph:
    """One picture and its row of the table."""

    patient: str
    """Whose."""

    eye: str
    """Which: left or right."""

    number: int
    """Of this eye's pictures, from 1."""

    site: str
    """Where."""

    sex: str
    """F or M."""

    age: int
    """In years."""

    grade: int
    """0 to 4, as it was read."""

    pixels: NDArray[np.uint8]
    """[size, size, 3]."""

    @property
    def file(self) -> str:
        """What it is called."""
        return f"{self.patient}-{self.eye}-{self.number}.png"


def photographs(site: Site, *, size: int, disagreement: float, seed: int) -> Iterator[Photograph]:
    """All photographs of a site; a patient has 1 to 4, which show the same eyes and the same lesions.

    A patient's eyes are similarly ill; with age severity rises a little, and in men a very little.

    Args:
        site: where.
        size: side in pixels.
        disagreement: share of the eyes whose grade is read one too high or too low.
        seed: everything follows from it and the site's name, whatever other sites there are.
    """
    for number in range(site.patients):
        rng = np.random.default_rng([seed, zlib.crc32(site.name.encode()), number])
        sex, age = ("F", "M")[rng.integers(2)], int(np.clip(rng.normal(58, 13), 18, 90))
        severity = site.severity + rng.normal(0, 0.95) + 0.015 * (age - 58) + 0.1 * (sex == "M") - 0.05
        shade = np.array([1.0, 1.0, 1.0]) * rng.lognormal(0, 0.12) * rng.lognormal(0, 0.06, 3)
        eyes = {}
        for side in ("right", "left"):
            true = int(np.digitize(severity + rng.normal(0, 0.3), _BORDERS))
            step = (-1, 1)[rng.integers(2)] if rng.random() < disagreement else 0
            eyes[side] = (grow_eye(true, age, shade, rng), int(np.clip(true + step, 0, len(GRADES) - 1)))
        taken = dict.fromkeys(eyes, 0)
        for side in rng.permutation(["right", "left", "right", "left"])[: rng.integers(1, 5)].tolist():
            taken[side] += 1
            eye, read = eyes[side]
            yield Photograph(
                patient=f"{site.name}-{number + 1:04d}",
                eye=side,
                number=taken[side],
                site=site.name,
                sex=sex,
                age=age,
                grade=read,
                pixels=photograph(eye, site, left=side == "left", size=size, rng=rng),
            )

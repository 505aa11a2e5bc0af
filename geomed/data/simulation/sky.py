"""What stands between the ground and the satellite: overpasses, clouds, their shadows, and what a mask sees."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from geomed.bands import SENTINEL2
from geomed.data.simulation.canopy import LEVEL2A

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

REVISIT = 5
"""Days between two passes on one orbit, Sentinel-2A and 2B together."""

ORBIT_GAP = 3
"""Days from the pass on one orbit to that on its neighbour, where their swaths overlap."""

SEASON = (40, 315)
"""First and last day of the year that is simulated: before and after, little grows and little is clear."""

CLOUDIEST = 0.5
"""Scenes above this cloud cover of the area are not in the archive, as most catalogue searches are made."""

LOST = 0.12
"""Share of the other passes that are missing all the same (ground segment, processing)."""

PIXEL = 10.0
"""Side of a pixel in metres."""

FARTHEST = 60.0
"""Farthest a shadow falls from its cloud, in pixels: higher clouds of a low sun are left out."""

CLOUD_COLOUR = (0.62, 0.60, 0.58, 0.58, 0.60, 0.62, 0.63, 0.64, 0.65, 0.60, 0.45, 0.33)
"""Reflectance of an opaque cloud in the bands of a Level-2A product: white, darker where ice and water absorb."""

MISSED = 0.22
"""Opacity below which the classification takes a cloud edge for ground, as Sen2Cor does."""

SCL_NODATA, SCL_SHADOW, SCL_VEGETATION, SCL_BARE, SCL_MEDIUM, SCL_HIGH, SCL_CIRRUS = 0, 3, 4, 5, 8, 9, 10
"""Classes of the scene classification (Sentinel-2 Level-2A product definition)."""


@dataclass(frozen=True, kw_only=True)
class Overpass:
    """One image that the archive holds."""

    date: dt.date
    """Day of acquisition (UTC)."""

    cover: float
    """Share of the area under cloud."""

    neighbour: bool
    """True for the orbit that sees the area at the edge of its swath."""


@dataclass(frozen=True, kw_only=True)
class Sky:
    """What one image has above the ground; arrays [rows, columns]."""

    opacity: NDArray[np.float64]
    """Share of the light that comes from the cloud, 0 to 1."""

    shadow: NDArray[np.float64]
    """Share of the direct sunlight that a cloud takes from the ground, 0 to 1."""

    cirrus: NDArray[np.float64]
    """Reflectance that thin ice cloud adds."""

    missing: NDArray[np.bool_]
    """Outside the swath."""

    def over(self, ground: NDArray[np.float64], bands: Sequence[str]) -> NDArray[np.float64]:
        """What the sensor reports, [rows, columns, bands], for the ground's reflectance of that shape."""
        cloud = np.array([CLOUD_COLOUR[LEVEL2A.index(band)] for band in bands])
        wavelength = np.array([SENTINEL2[band].wavelength for band in bands])
        skylight = np.clip(0.30 * (490.0 / wavelength) ** 1.5, 0.05, 0.35)  # blue sky still lights the shadow
        lit = ground * (1.0 - self.shadow[..., None] * (1.0 - skylight))
        thick = self.opacity[..., None]
        hazy = lit * (1.0 - thick) + thick * (0.8 + 0.4 * thick) * cloud
        return np.asarray(hazy + self.cirrus[..., None] * np.where(wavelength < 1300, 1.0, 0.5))

    def classify(self, ndvi: NDArray[np.float64]) -> NDArray[np.uint8]:
        """The scene classification [rows, columns]: found on 20 m cells, and blind to thin edges of clouds."""
        classes = np.where(ndvi > 0.3, SCL_VEGETATION, SCL_BARE)
        classes[self.cirrus > 0.02] = SCL_CIRRUS
        classes[self.shadow > 0.45] = SCL_SHADOW
        classes[self.opacity > MISSED] = SCL_MEDIUM
        classes[self.opacity > 0.6] = SCL_HIGH
        coarse = classes[::2, ::2].repeat(2, axis=0).repeat(2, axis=1)[: classes.shape[0], : classes.shape[1]]
        return np.where(self.missing, SCL_NODATA, coarse).astype(np.uint8)


def overpasses(rng: np.random.Generator, *, year: int, orbit: int, cloudiness: float) -> tuple[Overpass, ...]:
    """The images of one season: two orbits, thinned by clouds and losses, in order of date.

    Args:
        rng: source of randomness.
        year: calendar year.
        orbit: day within the five-day cycle on which the main orbit passes, 0 to 4.
        cloudiness: mean cloud cover of a pass, above 0 and below 1.
    """
    kept = []
    for day in range(SEASON[0], SEASON[1] + 1):
        phase = day % REVISIT
        if phase not in {orbit % REVISIT, (orbit + ORBIT_GAP) % REVISIT}:
            continue
        cover = float(rng.beta(0.8 * cloudiness, 0.8 * (1.0 - cloudiness)))  # clear or overcast, seldom between
        if rng.random() >= LOST and cover <= CLOUDIEST:
            date = dt.date(year, 1, 1) + dt.timedelta(days=day - 1)
            kept.append(Overpass(date=date, cover=cover, neighbour=phase != orbit % REVISIT))
    return tuple(kept)


def sky_above(rng: np.random.Generator, overpass: Overpass, *, size: int, latitude: float) -> Sky:
    """Clouds of the wanted cover over a square of ``size`` pixels; shadows fall away from the morning sun."""
    day = overpass.date.timetuple().tm_yday
    declination = -23.4 * math.cos(2.0 * math.pi * (day + 10) / 365.0)
    zenith = math.radians(min(latitude - declination + 4.0, 75.0))  # 10:30 is a little lower than noon
    reach = min(rng.uniform(400.0, 1500.0) * math.tan(zenith) / PIXEL, FARTHEST)
    azimuth = math.radians(rng.uniform(150.0, 165.0))
    rows, columns = round(reach * math.cos(azimuth)), round(-reach * math.sin(azimuth))  # north and west: negative
    margin = max(abs(rows), abs(columns))
    field = rough_field(rng, size + 2 * margin, exponent=3.2)
    inner = field[margin : margin + size, margin : margin + size]
    if overpass.cover < 0.01:
        opacity = np.zeros_like(field)
    else:
        threshold = float(np.quantile(inner, 1.0 - overpass.cover))
        opacity = np.clip((field - threshold) / 0.35 + 0.1, 0.0, 1.0)
    shaded = np.roll(opacity, (rows, columns), axis=(0, 1))  # what wraps stays in the margin
    cirrus = np.zeros((size, size))
    if rng.random() < 0.12:
        cirrus = 0.05 * np.clip(rough_field(rng, size, exponent=4.0), 0.0, 2.0)
    missing = np.zeros((size, size), dtype=bool)
    if overpass.neighbour and rng.random() < 0.25:
        south, east = np.indices((size, size)) / size
        missing = east + 0.21 * south > rng.uniform(0.55, 1.05)  # orbits run from north-north-east to south-south-west
    crop = slice(margin, margin + size)
    shadow = np.clip(shaded[crop, crop] * 1.2, 0.0, 1.0) * (1.0 - opacity[crop, crop])
    return Sky(opacity=opacity[crop, crop], shadow=shadow, cirrus=cirrus, missing=missing)


def rough_field(rng: np.random.Generator, size: int, *, exponent: float) -> NDArray[np.float64]:
    """A random surface [size, size] of mean 0 and variance 1 whose power falls as frequency ** -exponent.

    Clouds have exponents near 3, smooth soil patterns near 4. The surface is cut from a larger one, since one made from
    frequencies repeats itself.
    """
    side = size + size // 4
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) * frequency ** (-exponent / 2.0)
    spectrum[0, 0] = 0.0
    field = np.fft.irfft2(spectrum, s=(side, side))[:size, :size]
    return np.asarray((field - field.mean()) / max(float(field.std()), 1e-12))

"""What a canopy over a soil reflects, band by band."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from geomed.bands import SENTINEL2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from geomed.data.simulation.phenology import Canopy

LEVEL2A = tuple(name for name in SENTINEL2 if name != "B10")
"""The bands of a surface reflectance product: B10 sees only the atmosphere and is not delivered."""

GREEN = (0.020, 0.024, 0.055, 0.024, 0.095, 0.290, 0.400, 0.430, 0.450, 0.450, 0.180, 0.075)
"""Reflectance of a deep green cereal canopy in the bands of ``LEVEL2A``: chlorophyll takes blue and red and leaves a
green bump, the red edge climbs from B05 to B07, cells scatter in the near infrared, leaf water absorbs in B11 and B12.
Typical values of the textbook spectrum (Jones & Vaughan 2010, ch. 3) and of May wheat in Sentinel-2 products."""

DRY = (0.060, 0.080, 0.125, 0.175, 0.205, 0.235, 0.255, 0.275, 0.295, 0.305, 0.340, 0.260)
"""Ripe straw: no chlorophyll and no water, so it rises steadily; cellulose absorbs near 2100 nm."""

FLOWER = (0.030, 0.040, 0.150, 0.125, 0.210, 0.360, 0.440, 0.470, 0.490, 0.490, 0.220, 0.100)
"""A rapeseed canopy in full bloom: carotenoids take blue only, so green and red rise together (yellow)."""

SOIL = (0.095, 0.115, 0.155, 0.195, 0.215, 0.235, 0.250, 0.262, 0.275, 0.285, 0.355, 0.310)
"""A dry loam: rises with wavelength, clay absorbs at 2200 nm (Stoner & Baumgardner 1981)."""

SEALED = (0.100, 0.110, 0.125, 0.135, 0.140, 0.147, 0.155, 0.165, 0.170, 0.175, 0.195, 0.180)
"""Asphalt, gravel and roofs together: grey."""

EXTINCTION = 0.5
"""Share of ground hidden by one unit of leaf area: a spherical leaf angle distribution seen from above (Ross 1981)."""

STACKING = 0.45
"""How fast further leaf layers add near-infrared and take short-wave infrared light, per unit of leaf area."""

WET_SOIL = 0.55
"""Reflectance of a wet soil relative to the dry one (Lobell & Asner 2002: about half)."""


@dataclass(frozen=True, kw_only=True)
class Soil:
    """The colour of a region's soils."""

    brightness: float = 0.85
    """Factor on the reflectance of a dry loam."""

    redness: float = 0.0
    """Power of (wavelength / 665 nm) in the visible and near infrared: above 0 redder, below 0 greyer."""

    def __post_init__(self) -> None:
        """Refuse soils that are black, white or coloured like none."""
        if not 0.3 <= self.brightness <= 1.5:
            raise ValueError(f"brightness is a factor between 0.3 and 1.5, not {self.brightness}; 1 is a pale loam")
        if not -1.0 <= self.redness <= 1.0:
            raise ValueError(f"redness is a power between -1 and 1, not {self.redness}; 0 is the plain loam")


def _columns(values: tuple[float, ...], bands: Sequence[str]) -> NDArray[np.float64]:
    return np.array([values[LEVEL2A.index(band)] for band in bands])


def sealed_reflectance(bands: Sequence[str]) -> NDArray[np.float64]:
    """Reflectance [bands] of roads and roofs."""
    return _columns(SEALED, bands)


def soil_reflectance(
    soil: Soil, *, brightness: NDArray[np.float64], wetness: float, bands: Sequence[str]
) -> NDArray[np.float64]:
    """Reflectance [fields, bands] of bare ground.

    Args:
        soil: the region's colour.
        brightness: factor of each field, [fields].
        wetness: 0 dry to 1 wet, the same for all fields of an area.
        bands: names from ``LEVEL2A``.
    """
    wavelength = np.minimum([SENTINEL2[band].wavelength for band in bands], 1000.0)
    colour = soil.brightness * (wavelength / 665.0) ** soil.redness * _columns(SOIL, bands)
    wet = 1.0 - wetness * (1.0 - WET_SOIL)
    return np.clip(brightness[:, None] * wet * colour, 0.0, 0.6)


def canopy_reflectance(
    canopy: Canopy,
    ground: NDArray[np.float64],
    *,
    infrared: NDArray[np.float64],
    leaf: NDArray[np.float64],
    bands: Sequence[str],
) -> NDArray[np.float64]:
    """Reflectance [fields, bands] of a canopy above its ground.

    Cover is mixed linearly, fCover = 1 - exp(-k LAI) (Beer's law for leaves). Within the cover, more leaf layers raise
    the near infrared towards its plateau (multiple scattering) and lower the short-wave infrared (leaf water).

    Args:
        canopy: leaf areas, [fields] each.
        ground: reflectance of the ground, [fields, bands].
        infrared: near-infrared plateau relative to a cereal, [fields].
        leaf: factor of each field on the visible light its leaves reflect (nitrogen: pale above 1), [fields].
        bands: names from ``LEVEL2A``.
    """
    wavelength = np.array([SENTINEL2[band].wavelength for band in bands])
    near, shortwave = (wavelength > 730) & (wavelength < 1300), wavelength > 1300
    total = canopy.green + canopy.dry
    cover = (1.0 - np.exp(-EXTINCTION * total))[:, None]
    greenness = (canopy.green / np.maximum(total, 1e-6))[:, None]
    few_layers = np.exp(-STACKING * canopy.green)[:, None]
    bloom = canopy.bloom[:, None]
    green = (1.0 - bloom) * _columns(GREEN, bands) + bloom * _columns(FLOWER, bands)
    green = green * np.where(wavelength < 730, leaf[:, None], 1.0)
    green = green * np.where(near, infrared[:, None] * (1.0 - 0.45 * few_layers), 1.0)
    green = green * np.where(shortwave, 1.0 + 0.8 * few_layers, 1.0)
    vegetation = greenness * green + (1.0 - greenness) * _columns(DRY, bands)
    return cover * vegetation + (1.0 - cover) * ground

"""How the leaf area of a crop develops through a year."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

STUBBLE_DAYS = 25.0
"""Time constant with which stubble disappears after harvest (decay, then tillage)."""

STUBBLE_SHARE = 0.35
"""Share of the standing dry matter that harvest leaves on the field."""

REGROWTH_DAYS = 18.0
"""Time constant with which grass grows back after a cut: a full sward again after six to seven weeks."""

AFTERMATH_SHARE = 0.35
"""Share of the leaf area that mowing leaves."""

CATCH_CROP = (35.0, 10.0, 1.8)
"""A catch crop sown after harvest: days from harvest to fastest growth, time constant in days, leaf area index."""


@dataclass(frozen=True, kw_only=True)
class Canopy:
    """The state of many stands on one day; arrays of one shape."""

    green: NDArray[np.float64]
    """Green leaf area index, m² of leaf per m² of ground."""

    dry: NDArray[np.float64]
    """Area index of standing dry matter: ripe straw, stubble."""

    bloom: NDArray[np.float64]
    """Share of the visible canopy that is flower, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Crop:
    """One kind of cover and its calendar.

    The green leaf area index follows the double logistic of Beck et al. 2006 (Remote Sens. Environ. 100) that
    Zhang et al. 2003 (the same, 84) introduced for one limb: a rise and a fall, each with an inflexion and a rate.
    Harvest and mowing, which no logistic knows, are steps on top. All days are days of the year in a normal year of
    maritime north-western Europe (about 51° N); regions and years shift them.
    """

    name: str
    """What stands in the label column."""

    rise: float
    """Day on which leaf area grows fastest."""

    fall: float
    """Day on which leaf area fades fastest."""

    rise_days: float
    """Time constant of the rise (1 / rate)."""

    fall_days: float
    """Time constant of the fall (1 / rate)."""

    peak: float
    """Green leaf area index at full cover."""

    winter: float = 0.0
    """Green leaf area index before the rise: 0 for crops sown in spring."""

    harvest: float = 400.0
    """Day on which the stand is removed; beyond the year for permanent cover."""

    straw: float = 0.0
    """Share of the lost green leaf area that stays as dry matter until harvest."""

    bloom: float | None = None
    """Day of full bloom, None where no flower colours the canopy."""

    bloom_days: float = 9.0
    """Half width of the bloom (standard deviation)."""

    flowers: float = 0.0
    """Share of the canopy that is flower at full bloom."""

    cuts: tuple[float, ...] = ()
    """Days of mowing, ascending."""

    infrared: float = 1.0
    """Near-infrared plateau relative to a cereal: flat-leaved crops reflect more, woods shade themselves."""

    spread: float = 4.5
    """Standard deviation of the calendar from farmer to farmer, in days."""

    def on(
        self,
        day: NDArray[np.float64],
        *,
        length: float = 1.0,
        vigour: NDArray[np.float64] | float = 1.0,
        catch: NDArray[np.float64] | float = 0.0,
    ) -> Canopy:
        """The canopy on a day of the crop's own calendar.

        Args:
            day: day of the year, already shifted by region, year and field; any shape.
            length: the season from the rise on is this many times as long.
            vigour: factor on the leaf area, the shape of ``day`` or a number.
            catch: 1 where a catch crop follows the harvest, else 0.
        """
        day = np.where(day > self.rise, self.rise + (day - self.rise) / length, day)
        grown = _logistic((day - self.rise) / self.rise_days)
        faded = _logistic((day - self.fall) / self.fall_days)
        green = self.winter * (1.0 - faded) + (self.peak - self.winter) * np.maximum(grown - faded, 0.0)
        for cut in self.cuts:
            since = np.maximum(day - cut, 0.0) / REGROWTH_DAYS
            green = green * np.where(day < cut, 1.0, 1.0 - (1.0 - AFTERMATH_SHARE) * np.exp(-since))
        dry = self.straw * self.peak * grown * faded
        standing = 1.0 - _logistic((day - self.harvest) / 1.0)
        left = STUBBLE_SHARE * np.exp(-np.maximum(day - self.harvest, 0.0) / STUBBLE_DAYS)
        delay, constant, cover = CATCH_CROP
        green = green * standing + catch * cover * _logistic((day - self.harvest - delay) / constant)
        dry = dry * (standing + (1.0 - standing) * left)
        bloom = np.zeros_like(green)
        if self.bloom is not None:
            bloom = self.flowers * np.exp(-0.5 * ((day - self.bloom) / self.bloom_days) ** 2)
        return Canopy(green=green * vigour, dry=dry * vigour, bloom=bloom)


def _logistic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1.0 / (1.0 + np.exp(-np.clip(x, -60.0, 60.0)))  # beyond 60 it is 0 or 1 in float64; exp must not overflow


CROPS = (
    Crop(
        name="winter wheat", rise=98, fall=186, rise_days=13, fall_days=7, peak=5.5, winter=0.7, harvest=212, straw=0.6
    ),
    Crop(
        name="winter barley", rise=90, fall=167, rise_days=12, fall_days=6, peak=5.0, winter=1.0, harvest=190, straw=0.6
    ),
    Crop(
        name="rapeseed", rise=86, fall=181, rise_days=11, fall_days=8, peak=4.8, winter=1.3, harvest=203, straw=0.5,
        bloom=120, bloom_days=9, flowers=0.75, infrared=1.08,
    ),
    Crop(
        name="maize", rise=172, fall=256, rise_days=8, fall_days=9, peak=4.8, harvest=275, straw=0.35, infrared=0.97,
    ),
    Crop(
        name="sugar beet", rise=160, fall=305, rise_days=8, fall_days=16, peak=4.8, harvest=296, infrared=1.1,
    ),
    Crop(
        name="potato", rise=162, fall=238, rise_days=7, fall_days=8, peak=4.5, harvest=264, straw=0.1, infrared=1.06,
    ),
    Crop(
        name="sunflower", rise=155, fall=224, rise_days=8, fall_days=8, peak=3.8, harvest=255, straw=0.35, bloom=197,
        bloom_days=8, flowers=0.25, infrared=1.03,
    ),
    Crop(
        name="grassland", rise=88, fall=318, rise_days=14, fall_days=18, peak=4.2, winter=1.6, cuts=(142, 190, 244),
        infrared=0.98, spread=11.0,
    ),
)  # fmt: skip
"""The crops with a label, in class order. Calendars follow the usual crop calendars of Belgium and northern France
(wheat ripens in July, barley three weeks before it, maize is cut in early October, beet stays green until it is
lifted); leaf area indices are the usual 4 to 6 of well-fed crops."""

WOOD = Crop(name="wood", rise=112, fall=302, rise_days=7, fall_days=10, peak=5.0, winter=0.6, infrared=0.78, spread=3.0)
"""Deciduous wood: never labelled."""

VERGE = Crop(name="verge", rise=95, fall=300, rise_days=15, fall_days=25, peak=2.4, winter=1.0, infrared=0.95)
"""The unmown strip between two fields: never labelled."""

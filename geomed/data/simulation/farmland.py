"""One region in one year: which crop stands on which field, and what it reflects on a day."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from geomed.data.simulation.canopy import (
    Soil,
    canopy_reflectance,
    sealed_reflectance,
    soil_reflectance,
)
from geomed.data.simulation.parcels import Parcels, cut_parcels
from geomed.data.simulation.phenology import CROPS, VERGE, WOOD, Canopy
from geomed.data.simulation.region import Calendar, Region, Year
from geomed.data.simulation.sky import PIXEL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

COVERS = (*CROPS, WOOD, VERGE)
"""Everything that grows; a field's kind is an index here, or ``SEALED``."""

SEALED = len(COVERS)
"""Kind of a yard or a village."""

WOODED, BUILT = 0.06, 0.03
"""Shares of the parcels that are no fields."""

CATCH_SHARE = 0.35
"""Share of the fields where a catch crop follows the harvest."""

RAIN = 0.3
"""Chance of a wetting rain on a day."""

DRYING_DAYS = 4.0
"""Time constant with which the soil surface dries."""


def generator(seed: int, region: Region, *further: int) -> np.random.Generator:
    """The randomness of one region (with a year and an image, if given), whatever else is simulated."""
    return np.random.default_rng([seed, zlib.crc32(region.name.encode()), *further])


def shifted(region: Region, year: Year, shift: float) -> tuple[Region, Year]:
    """The same place and year with every domain shift scaled: 0 removes it, 1 keeps it, 2 doubles it.

    Timing, season length, vigour and soil are scaled about the plain values, shares by powers. Field size, clouds and
    chance stay.
    """
    calendar, soil, plain = region.calendar, region.soil, Soil()
    return (
        replace(
            region,
            calendar=Calendar(
                delay=shift * calendar.delay,
                delays={name: shift * days for name, days in calendar.delays.items()},
                length=1.0 + shift * (calendar.length - 1.0),
                vigour=1.0 + shift * (calendar.vigour - 1.0),
            ),
            soil=Soil(
                brightness=plain.brightness + shift * (soil.brightness - plain.brightness),
                redness=plain.redness + shift * (soil.redness - plain.redness),
            ),
            shares={name: share**shift for name, share in region.shares.items()},
        ),
        replace(year, delay=shift * year.delay),
    )


@dataclass(frozen=True, kw_only=True)
class Farmland:
    """The parcels of one region in one year with what each farmer and each soil adds; arrays are [parcels]."""

    region: Region
    """Where."""

    year: Year
    """When."""

    size: int
    """Rows and columns, in pixels of 10 m."""

    parcels: Parcels
    """The polygons."""

    kind: NDArray[np.int64]
    """What stands on each parcel: an index into ``COVERS``, or ``SEALED``."""

    delay: NDArray[np.float64]
    """Days by which each farmer is later than the region."""

    vigour: NDArray[np.float64]
    """Factor on each stand's leaf area."""

    leaf: NDArray[np.float64]
    """Factor on the visible light that each stand's leaves reflect."""

    infrared: NDArray[np.float64]
    """Near-infrared plateau of each stand relative to a cereal."""

    brightness: NDArray[np.float64]
    """Factor on the reflectance of each field's soil."""

    catch: NDArray[np.float64]
    """1 where a catch crop follows the harvest, else 0."""

    wetness: NDArray[np.float64]
    """Wetness of the soil surface on each day of the year, 0 to 1, [366]."""

    def reflectance(
        self, day: int, bands: Sequence[str], *, vigour: float = 1.0, brightness: float = 1.0
    ) -> NDArray[np.float64]:
        """Reflectance [parcels, bands] on a day of the year; the factors are common to all parcels."""
        count, calendar = len(self.kind), self.region.calendar
        green, dry, bloom = np.zeros(count), np.zeros(count), np.zeros(count)
        for index, cover in enumerate(COVERS):
            here = self.kind == index
            late = calendar.delay + calendar.delays.get(cover.name, 0.0) + self.year.delay + self.delay[here]
            stand = cover.on(
                day - late,
                length=calendar.length,
                vigour=calendar.vigour * vigour * self.vigour[here],
                catch=self.catch[here],
            )
            green[here], dry[here], bloom[here] = stand.green, stand.dry, stand.bloom
        ground = soil_reflectance(
            self.region.soil,
            brightness=brightness * self.brightness,
            wetness=float(self.wetness[day - 1]),
            bands=bands,
        )
        ground[self.kind == SEALED] = brightness * sealed_reflectance(bands)
        canopy = Canopy(green=green, dry=dry, bloom=bloom)
        return canopy_reflectance(canopy, ground, infrared=self.infrared, leaf=self.leaf, bands=bands)


def farmland(region: Region, year: Year, *, size: int, seed: int) -> Farmland:
    """Draw the parcels of a region and its crops in a year.

    Parcels, woods, soils and permanent grassland belong to the place, crops and their stands to the year: two years of
    one region show the same fields in rotation. The last two parcels are the verges and the tracks, which have no
    polygon in ``parcels.fields``.

    Raises:
        ValueError: the area is too small to hold a field.
    """
    place, season = generator(seed, region), generator(seed, region, year.year)
    west, north = region.corner
    bounds = (west, north - size * PIXEL, west + size * PIXEL, north)
    parcels = cut_parcels(place, bounds, hectares=region.hectares, skew=place.uniform(-25.0, 25.0))
    fields = len(parcels.fields)
    if fields == 0:
        raise ValueError(
            f"region {region.name}: {size} pixels of 10 m hold no field; make the area larger or its fields smaller"
        )
    kind = np.append(_rotation(place, season, region, fields), [COVERS.index(VERGE), SEALED])
    count = len(kind)
    brightness = np.exp(place.normal(0.0, 0.13, count))
    spread = np.array([cover.spread for cover in COVERS] + [0.0])[kind]
    infrared = np.array([cover.infrared for cover in COVERS] + [1.0])[kind]
    rain = season.random(366) < RAIN
    wetness = np.zeros(366)
    for day in range(1, 366):
        wetness[day] = 1.0 if rain[day] else wetness[day - 1] * np.exp(-1.0 / DRYING_DAYS)
    return Farmland(
        region=region,
        year=year,
        size=size,
        parcels=parcels,
        kind=kind,
        delay=spread * np.clip(season.standard_normal(count), -2.5, 2.5),
        vigour=np.exp(season.normal(0.0, 0.14, count)),
        leaf=np.exp(season.normal(0.0, 0.10, count)),
        infrared=infrared * np.exp(season.normal(0.0, 0.06, count)),
        brightness=brightness,
        catch=(season.random(count) < CATCH_SHARE).astype(float),
        wetness=wetness,
    )


def _rotation(
    place: np.random.Generator, season: np.random.Generator, region: Region, fields: int
) -> NDArray[np.int64]:
    """A kind for each field: woods, villages and grassland stay where they are, the rest is drawn anew each year."""
    kind = np.full(fields, -1)
    order = place.permutation(fields)
    wooded, built = round(WOODED * fields), round(BUILT * fields)
    kind[order[:wooded]] = COVERS.index(WOOD)
    kind[order[wooded : wooded + built]] = SEALED
    farmed = order[wooded + built :]
    names = [crop.name for crop in CROPS]
    total = sum(region.shares.values())
    wanted = np.array([region.shares.get(name, 0.0) / total for name in names]) * len(farmed)
    counts = np.floor(wanted).astype(int)
    for index in np.argsort(counts - wanted, kind="stable")[: len(farmed) - counts.sum()]:
        counts[index] += 1
    grass = names.index("grassland")
    kind[farmed[: counts[grass]]] = grass
    counts[grass], arable = 0, farmed[counts[grass] :]
    kind[arable] = season.permutation(np.repeat(np.arange(len(names)), counts))
    return kind

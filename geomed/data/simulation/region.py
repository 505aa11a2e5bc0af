"""Where and when: what a region and a year change in the calendar, the soil and the sky."""

from __future__ import annotations

import math
from collections.abc import Mapping  # noqa: TC003  (jsonargparse reads the annotations)
from dataclasses import dataclass, field

from geomed.data.simulation.canopy import Soil
from geomed.data.simulation.phenology import CROPS

NAMES = tuple(crop.name for crop in CROPS)


@dataclass(frozen=True, kw_only=True)
class Calendar:
    """How a region's season differs from maritime north-western Europe."""

    delay: float = 0.0
    """Days by which everything is later; below 0 earlier."""

    delays: Mapping[str, float] = field(default_factory=dict)
    """Further days for single crops, by name."""

    length: float = 1.0
    """Growth from rise to harvest takes this many times as long."""

    vigour: float = 1.0
    """Factor on the leaf area: drought and poor soils are below 1."""

    def __post_init__(self) -> None:
        """Refuse crops that do not exist and seasons that do not last."""
        unknown = sorted(set(self.delays) - set(NAMES))
        if unknown:
            raise ValueError(f"delays: no crop is called {', '.join(unknown)}; the crops are {', '.join(NAMES)}")
        for name, days in {"delay": self.delay, **self.delays}.items():
            _refuse_delay(name, days)
        for name, value in (("length", self.length), ("vigour", self.vigour)):
            if not 0.2 <= value <= 5.0:
                raise ValueError(f"{name} is a factor between 0.2 and 5, not {value}; 1 changes nothing")


@dataclass(frozen=True, kw_only=True)
class Region:
    """A square of farmland and its ways."""

    name: str
    """Part of the areas' names and folders; letters, digits, - and _."""

    epsg: int
    """Projection of the images: a UTM zone."""

    corner: tuple[float, float]
    """Easting and northing of the upper left corner, in metres."""

    latitude: float
    """Degrees north: how long the shadows are."""

    calendar: Calendar = field(default_factory=Calendar)
    """Timing and vigour of the crops."""

    soil: Soil = field(default_factory=Soil)
    """Colour of the ground."""

    shares: Mapping[str, float]
    """Share of the fields under each crop, by name; scaled to sum 1."""

    hectares: float = 2.6
    """Mean size of a field."""

    def __post_init__(self) -> None:
        """Refuse shares of crops that do not exist, and names that are no folders."""
        if not self.name or not all(letter.isalnum() or letter in "-_" for letter in self.name):
            raise ValueError(f"a region's name becomes a folder: letters, digits, - and _ only, not {self.name!r}")
        unknown = sorted(set(self.shares) - set(NAMES))
        if unknown:
            raise ValueError(f"shares: no crop is called {', '.join(unknown)}; the crops are {', '.join(NAMES)}")
        if not self.shares or not all(0 < share < math.inf for share in self.shares.values()):
            raise ValueError(f"shares must be above 0, at least one; not {dict(self.shares)}; leave absent crops out")
        if not (32601 <= self.epsg <= 32660 and 25.0 <= self.latitude <= 70.0):
            raise ValueError(
                f"a region lies in a northern UTM zone (EPSG 32601 to 32660) at 25 to 70 degrees north, as its crops' "
                f"calendars do; not EPSG {self.epsg} at {self.latitude} degrees"
            )
        if not 0.3 <= self.hectares <= 100.0:
            raise ValueError(f"fields measure 0.3 to 100 hectares, not {self.hectares}")


@dataclass(frozen=True, kw_only=True)
class Year:
    """One season's weather."""

    year: int
    """Calendar year."""

    delay: float = 0.0
    """Days by which a cold spring holds everything back; below 0 a warm one."""

    cloudiness: float = 0.62
    """Mean cloud cover of a pass, 0.05 to 0.95."""

    def __post_init__(self) -> None:
        """Refuse weather that leaves no image or no cloud, and years no satellite saw."""
        _refuse_delay("delay", self.delay)
        if not 0.05 <= self.cloudiness <= 0.95:
            raise ValueError(f"cloudiness must lie between 0.05 and 0.95, not {self.cloudiness}")
        if not 1970 <= self.year <= 9998:
            raise ValueError(f"a year from 1970 on is wanted, not {self.year}")


def _refuse_delay(name: str, days: float) -> None:
    if not abs(days) <= 120:  # also true for NaN
        raise ValueError(f"{name} is a count of days between -120 and 120, not {days}; a season is no longer than that")


NORTH = Region(
    name="north",
    epsg=32631,
    corner=(560_000.0, 5_640_000.0),
    latitude=50.8,
    shares={
        "winter wheat": 0.19, "winter barley": 0.10, "rapeseed": 0.10, "maize": 0.14, "sugar beet": 0.13,
        "potato": 0.13, "sunflower": 0.08, "grassland": 0.13,
    },
)  # fmt: skip
"""Maritime loam country: the calendar that the crops are written in."""

SOUTH = Region(
    name="south",
    epsg=32634,
    corner=(430_000.0, 5_080_000.0),
    latitude=45.9,
    calendar=Calendar(
        delay=-9.0,
        delays={"maize": 3.0, "sugar beet": -6.0, "potato": 4.0, "sunflower": -2.0},
        length=0.98,
        vigour=0.92,
    ),
    soil=Soil(brightness=0.72, redness=0.25),
    shares={
        "winter wheat": 0.17, "winter barley": 0.10, "rapeseed": 0.11, "maize": 0.19, "sugar beet": 0.10,
        "potato": 0.09, "sunflower": 0.14, "grassland": 0.10,
    },
    hectares=3.2,
)  # fmt: skip
"""Continental lowland, darker soils: harvest begins three to four weeks earlier, dry summers end beet early, and potato
and sunflower are drilled late for their climate."""

EARLIER = Year(year=2021)
"""A normal year."""

LATER = Year(year=2022, delay=-8.0, cloudiness=0.55)
"""A warm, early year with clearer skies."""

"""What a user says about the files of one area: images, their units, cloud masks and labels."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from geomed.pixels import IGNORE

CLEAR = (4, 5, 6, 7)
"""Scene classes of a clear surface: vegetation, bare soil, water, unclassified (Sen2Cor's SCL, ESA 2021)."""


@dataclass(frozen=True, kw_only=True)
class Reflectance:
    """How stored numbers become surface reflectance: ``scale * number + offset``. Never guessed."""

    scale: float = 1e-4
    """Reflectance of one digital number; 1 where the files hold reflectance already."""

    offset: float = 0.0
    """Reflectance of number 0; -0.1 for products of processing baseline 04.00 and later (from 25 January 2022)."""

    nodata: float | None = None
    """Number that means "no observation" besides what the file declares."""


@dataclass(frozen=True, kw_only=True)
class Masks:
    """Where an image can be trusted."""

    scl: str | None = "{stem}_SCL.tif"
    """Scene classification: a file beside the image, ``{stem}`` being the image's name without its ending; or, without
    ``{stem}``, the name of a band of the image itself; None: there is none."""

    clear: tuple[int, ...] = CLEAR
    """Scene classes that count as a clear observation."""

    bad: str | None = None
    """Cloud mask in which 0 is good and anything else is bad, named like ``scl``; None: there is none."""


@dataclass(frozen=True, kw_only=True)
class Legend:
    """Which codes of a label file make which class."""

    classes: dict[str, list[int | str]]
    """Class name → its codes; the order of the names is the order of the class indices."""

    ignore: list[int | str] = field(default_factory=list)
    """Codes that mean "not known": they become IGNORE."""

    def __post_init__(self) -> None:
        """Refuse a table that is empty, too long for a byte, or gives a code twice."""
        if not 0 < len(self.classes) < IGNORE:
            raise ValueError(f"a legend needs 1 to {IGNORE - 1} classes, this one has {len(self.classes)}; correct it")
        codes = [code_text(code) for listed in (*self.classes.values(), self.ignore) for code in listed]
        doubled = [code for code, count in Counter(codes).items() if count > 1]
        if doubled:
            raise ValueError(f"every code belongs to one class, {', '.join(doubled)} stands twice; leave one")

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in index order."""
        return tuple(self.classes)

    def table(self, names: tuple[str, ...]) -> dict[str, int]:
        """Code as text → class index by ``names``, or IGNORE."""
        table = {code_text(code): names.index(name) for name, codes in self.classes.items() for code in codes}
        return {**table, **{code_text(code): IGNORE for code in self.ignore}}


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Where the truth of an area lies: a raster, or polygons with a column."""

    path: str
    """GeoTIFF with class codes, or a vector file (GeoPackage, GeoJSON) with polygons."""

    band: int | str = 1
    """Of a raster: the band with the codes, by number from 1 or by its description."""

    column: str = "crop"
    """Of a vector file: the column with the codes."""

    layer: str | None = None
    """Of a vector file: the layer; None: the only one."""

    legend: Legend | None = None
    """The codes of this file where they differ from the source's; its class names must be among the source's."""


@dataclass(frozen=True, kw_only=True)
class Area:
    """One place in one season."""

    name: str
    """Unique; it names the map."""

    images: str
    """A folder with one multi-band GeoTIFF (or VRT, JPEG 2000) for each date, or one file with all bands of all dates;
    a relative path counts from where the program is started."""

    labels: Labels | None = None
    """The truth; None: this area can only be predicted."""

    season: tuple[str, str] | None = None
    """First and last day to use, both included, as YYYY-MM-DD; None: all dates."""

    year: int | None = None
    """The year that the labels belong to; None: that of the season's end, else the one with most dates."""

    reflectance: Reflectance = Reflectance()
    """How the stored numbers become reflectance."""

    masks: Masks = Masks()
    """Where the images can be trusted."""

    band_names: tuple[str, ...] | None = None
    """Names of the files' bands in their order (of a stack with their dates, as ``2018-04-21 B04``), only for files
    that do not describe their bands themselves."""


def code_text(code: object) -> str:
    """A code as it is compared: 9, 9.0 and "9" are the same."""
    if isinstance(code, float) and code.is_integer():
        return str(int(code))
    return str(code).strip()

"""Bands by name: wavelength, ground sampling and usual statistics. Names become indices once, at construction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, kw_only=True)
class Band:
    """One spectral band of a sensor."""

    name: str
    """The agency's name, zero-padded: B02, B8A."""

    common: str
    """The STAC common name: blue, nir08."""

    wavelength: float
    """Central wavelength in nanometres."""

    metres: int
    """Ground sampling distance."""

    mean: float | None = None
    """Mean surface reflectance over a large sample, None where none is known."""

    std: float | None = None
    """Standard deviation of surface reflectance over the same sample, clouds included."""


def _table(*bands: Band) -> dict[str, Band]:
    return {band.name: band for band in bands}


SENTINEL2: Mapping[str, Band] = _table(
    Band(name="B01", common="coastal", wavelength=442.7, metres=60),
    Band(name="B02", common="blue", wavelength=492.4, metres=10, mean=0.116594, std=0.194262),
    Band(name="B03", common="green", wavelength=559.8, metres=10, mean=0.137565, std=0.188192),
    Band(name="B04", common="red", wavelength=664.6, metres=10, mean=0.142922, std=0.195938),
    Band(name="B05", common="rededge1", wavelength=704.1, metres=20, mean=0.176480, std=0.186722),
    Band(name="B06", common="rededge2", wavelength=740.5, metres=20, mean=0.271927, std=0.175459),
    Band(name="B07", common="rededge3", wavelength=782.8, metres=20, mean=0.306361, std=0.176940),
    Band(name="B08", common="nir", wavelength=832.8, metres=10, mean=0.320590, std=0.178486),
    Band(name="B8A", common="nir08", wavelength=864.7, metres=20, mean=0.331911, std=0.176771),
    Band(name="B09", common="nir09", wavelength=945.1, metres=60),
    Band(name="B10", common="cirrus", wavelength=1373.5, metres=60),
    Band(name="B11", common="swir16", wavelength=1613.7, metres=20, mean=0.242290, std=0.145896),
    Band(name="B12", common="swir22", wavelength=2202.4, metres=20, mean=0.163937, std=0.129928),
)
"""Sentinel-2A MSI: wavelengths by ESA's spectral response functions; statistics of PASTIS (fold 1, all dates and
clouds), as the released TSViT checkpoints use them, in reflectance."""

PASTIS_BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
"""The ten bands of PASTIS and of the released TSViT checkpoints, in their order."""


def band_name(name: str) -> str:
    """Bring an alias to the agency's name: B2, b02, blue → B02; nir08 → B8A.

    Raises:
        ValueError: no Sentinel-2 band has this name.
    """
    wanted = name.strip()
    for band in SENTINEL2.values():
        short = band.name.replace("B0", "B")
        if wanted.lower() in {band.common, band.name.lower(), short.lower()}:
            return band.name
    raise ValueError(f"no Sentinel-2 band is called {name!r}; the names are {', '.join(SENTINEL2)}")


def band_indices(wanted: Sequence[str], present: Sequence[str], *, where: str) -> list[int]:
    """Positions of the wanted bands among those present, both by name.

    Raises:
        ValueError: a band is missing, or a name stands twice; ``where`` says in which file.
    """
    names = list(present)
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"{where}: band names must be unique, {', '.join(doubled)} stands twice; rename the bands")
    missing = [name for name in wanted if name not in names]
    if missing:
        raise ValueError(
            f"{where}: band {', '.join(missing)} is missing, there are {', '.join(names) or 'no named bands'}; "
            "choose among these or name the bands in the file's band descriptions"
        )
    return [names.index(name) for name in wanted]

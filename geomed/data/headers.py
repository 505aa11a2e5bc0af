"""What the head of a raster says: names of its bands, its grid, its units; and whether that is what the user says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from geomed.bands import band_indices, band_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from odc.geo.geobox import GeoBox

    from geomed.io.geotiff import GeoTiff
    from geomed.io.resampled import Raster


def agency_name(name: str) -> str:
    """B4 and red → B04; what is no Sentinel-2 band, as SCL, keeps its name."""
    try:
        return band_name(name)
    except ValueError:
        return name.strip()


def band_texts(raster: GeoTiff, named: tuple[str, ...] | None, owner: str) -> tuple[str, ...]:
    """What the bands of a file are called, by the file or, if it says nothing, by the user.

    Args:
        raster: the file.
        named: the user's ``band_names``.
        owner: whose they are, as ``area north``.

    Raises:
        ValueError: both say something, or neither, or there are more or fewer names than bands.
    """
    described = any(raster.bands)
    if named is not None and described:
        raise ValueError(
            f"{raster.path}: the file describes its bands ({', '.join(raster.bands)}), which must not be overruled; "
            f"leave band_names of {owner} out"
        )
    if named is None and not described:
        raise ValueError(
            f"{raster.path}: bands are read by name, and the file describes none of its {len(raster.bands)}; "
            f"give {owner} band_names in the order of the file"
        )
    names = raster.bands if named is None else named
    if len(names) != len(raster.bands):
        raise ValueError(
            f"{raster.path}: the file has {len(raster.bands)} bands and band_names of {owner} {len(names)}; "
            "name each band once"
        )
    return names


def positions(bands: Sequence[str], names: Sequence[str], raster: GeoTiff, when: str = "") -> tuple[int, ...]:
    """Where the wanted bands are among the names of a file's bands, from 1.

    Raises:
        ValueError: a band is missing, or a name stands twice.
    """
    named = [name for name in names if name]
    band_indices(bands, named, where=f"{raster.path}{when}")  # refuses with the names that there are
    return tuple(names.index(band) + 1 for band in bands)


def with_alpha_of_names(raster: GeoTiff, names: Sequence[str]) -> GeoTiff:
    """The file, without an alpha band where its name says that it is none, as the near infrared after red, green, blue.

    Args:
        raster: the file.
        names: what all of its bands are called.
    """
    if raster.alpha is None or names[raster.alpha - 1].strip().lower() in {"", "alpha"}:
        return raster
    return replace(raster, alpha=None)


def same_grid(grid: GeoBox, other: GeoBox) -> bool:
    """One coordinate system, one resolution, one extent."""
    return _difference(grid, other) is None


def refuse_other_grid(raster: Raster, first: Raster, *, what: str, way_out: str) -> None:
    """One coordinate system, one resolution, one extent.

    Raises:
        ValueError: the two files differ in one of them; ``what`` must have one, and ``way_out`` says what to do.
    """
    found = _difference(raster.grid, first.grid)
    if found is not None:
        rule, here, there = found
        raise ValueError(
            f"{raster.path}: {what} must have one {rule}: {here} against {there} of {first.path.name}; {way_out}"
        )


def _difference(grid: GeoBox, other: GeoBox) -> tuple[str, str, str] | None:
    """(what differs, of the one, of the other)."""
    if grid.crs != other.crs:
        return "coordinate system", str(grid.crs), str(other.crs)
    if not grid.affine.almost_equals(other.affine, 1e-6 * abs(other.affine.determinant) ** 0.5):
        return "transform", str(grid.affine.to_gdal()), str(other.affine.to_gdal())
    if grid.shape != other.shape:
        return "shape", str(grid.shape.yx), str(other.shape.yx)
    return None


def refuse_other_units(raster: Raster, band: int, *, scale: float, offset: float, owner: str) -> None:
    """What a file declares of a band (from 1) must be what the user says of it.

    Raises:
        ValueError: it is not.
    """
    declared = raster.scales[band - 1], raster.offsets[band - 1]
    if declared == (1.0, 0.0):
        return
    if abs(declared[0] - scale) > 1e-9 or abs(declared[1] - offset) > 1e-9:
        raise ValueError(
            f"{raster.path}: the file declares scale {declared[0]:g} and offset {declared[1]:g}, {owner} names "
            f"scale {scale:g} and offset {offset:g}; correct the latter"
        )

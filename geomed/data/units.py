"""From stored numbers to values in a unit, with what is no observation left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from geomed.io.resampled import Raster

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import ArrayLike, NDArray

    from geomed.windows import Window

Files: TypeAlias = tuple[tuple[Raster, tuple[int, ...]], ...]
"""Files with the bands wanted of each, from 1; in order they give the wanted bands."""


@dataclass(frozen=True, kw_only=True)
class Units:
    """How stored numbers become values: ``scale * number + offset``."""

    scale: float | tuple[float, ...]
    """Value of one step, of all bands or of each."""

    offset: float | tuple[float, ...]
    """Value of number 0, likewise."""

    nodata: float | None = None
    """Number that means "no observation" besides what a file declares."""


def stored(files: Files, window: Window, nodata: float | None) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """Numbers as stored [C, H, W] of a window and where [H, W] all of them are observations.

    Args:
        files: where the bands are.
        window: the pixels wanted.
        nodata: number that means "no observation" besides what the files declare.

    Raises:
        ValueError: a file is truncated or damaged.
    """
    if len(files) == 1:
        ((raster, bands),) = files
        numbers = raster.read(window, bands)
        return numbers, _there(raster, bands, window, numbers, nodata)
    kind = np.result_type(*(np.dtype(raster.dtype) for raster, _ in files))
    numbers = np.empty((sum(len(bands) for _, bands in files), window.height, window.width), dtype=kind)
    there = np.ones(numbers.shape[1:], dtype=np.bool_)
    first = 0
    for raster, bands in files:
        part = numbers[first : first + len(bands)]
        if np.dtype(raster.dtype) == kind:
            raster.read(window, bands, out=part)
        else:
            part[:] = raster.read(window, bands)
        there &= _there(raster, bands, window, part, nodata)
        first += len(bands)
    return numbers, there


def _there(
    raster: Raster, bands: tuple[int, ...], window: Window, numbers: NDArray[np.generic], nodata: float | None
) -> NDArray[np.bool_]:
    there = observed(numbers, (raster.nodata, nodata))
    mask = raster.mask(window, bands)
    return there if mask is None else there & mask


def observed(numbers: NDArray[np.generic], nodata: Iterable[float | None]) -> NDArray[np.bool_]:
    """Where [H, W] every band of [C, H, W] holds a finite number that does not mean "no observation"."""
    whole = not np.issubdtype(numbers.dtype, np.inexact)
    there = np.ones(numbers.shape[1:], dtype=np.bool_)
    part = np.empty_like(there)
    meant = [one for one in (_as_stored(number, numbers.dtype) for number in {*nodata} - {None}) if one is not None]
    for band in numbers:
        if not whole:
            there &= np.isfinite(band, out=part)
        for number in meant:
            there &= np.not_equal(band, number, out=part)
    return there


def _as_stored(number: float | None, dtype: np.dtype[Any]) -> np.generic | float | None:
    """A number as a file of this type holds it, which is compared several times as fast; None: it cannot hold it."""
    if number is None or np.isnan(number):
        return None
    if not np.issubdtype(dtype, np.integer):
        return number if abs(number) <= float(np.finfo(dtype).max) else None
    limits = np.iinfo(dtype)
    if not limits.min <= number <= limits.max or number != int(number):
        return None
    return dtype.type(int(number))


def in_units(
    numbers: NDArray[np.generic], there: NDArray[np.bool_], *, scale: ArrayLike, offset: ArrayLike
) -> NDArray[np.float32]:
    """``scale * number + offset`` [C, H, W], 0 where nothing was observed.

    Args:
        numbers: as stored, [C, H, W].
        there: where they are observations, [H, W].
        scale: one, or one for each band.
        offset: likewise.
    """
    factor, summand = (np.asarray(value, dtype=np.float32).reshape(-1, 1, 1) for value in (scale, offset))
    whole = not np.issubdtype(numbers.dtype, np.inexact)
    everywhere = bool(there.all())
    if not whole and not everywhere:
        numbers = np.where(there, numbers, 0)  # a nodata of -1.8e308 would overflow
    values = np.empty(np.broadcast_shapes(numbers.shape, factor.shape), dtype=np.float32)
    np.multiply(numbers, factor, out=values, dtype=np.float32, casting="same_kind")
    if summand.any() or not (whole and (factor > 0).all()):  # else 0 would be added to what is no -0.0
        values += summand
    if not everywhere:
        values[:, ~there] = 0
    return values

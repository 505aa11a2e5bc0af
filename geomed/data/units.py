"""From stored numbers to values in a unit, with what is no observation left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import ArrayLike, NDArray


def observed(numbers: NDArray[np.generic], nodata: Iterable[float | None]) -> NDArray[np.bool_]:
    """Where [H, W] every band of [C, H, W] holds a finite number that does not mean "no observation"."""
    there: NDArray[np.bool_] = np.isfinite(numbers).all(axis=0)
    for number in nodata:
        if number is not None:
            there &= (numbers != number).all(axis=0)
    return there


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
    known = np.where(there, numbers, 0).astype(np.float32)  # a nodata of -1.8e308 would overflow
    values: NDArray[np.float32] = known * factor + summand
    values[:, ~there] = 0
    return values

"""What the project asks of a file that holds pixels, whatever its format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from geomed.windows import Window


@runtime_checkable
class Reader(Protocol):
    """Pixels that can be read window by window."""

    @property
    def grid(self) -> GeoBox:
        """Shape, transform and coordinate system."""
        ...

    @property
    def bands(self) -> tuple[str, ...]:
        """Description of each band, "" where there is none."""
        ...

    def read(self, window: Window, bands: Sequence[int] | None = None) -> NDArray[np.generic]:
        """Stored numbers [bands, rows, columns]; bands count from 1, None: all."""
        ...


@runtime_checkable
class Writer(Protocol):
    """Pixels that can be written window by window, in any order."""

    def write(self, window: Window, values: NDArray[np.integer]) -> None:
        """Write the values [rows, columns] of one window."""
        ...

    def close(self) -> None:
        """Finish the file: before this, nothing stands under its name."""
        ...

"""What windows ask of the images of one area, be they a series or a single image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from geomed.windows import Window


class Imagery(Protocol):
    """The images of one area, read window by window; it pickles and opens its files when they are read."""

    @property
    def name(self) -> str:
        """The area's name, unique."""
        ...

    @property
    def year(self) -> int:
        """The year that its labels belong to."""
        ...

    @property
    def grid(self) -> GeoBox:
        """What windows count in."""
        ...

    def read(self, window: Window) -> dict[str, NDArray[np.generic]]:
        """``values``, ``valid`` and, of a series, ``days``, as ``geomed.data.source.Source`` describes them."""
        ...

    def usable(self, window: Window) -> bool:
        """Whether training can learn from a window."""
        ...

    def observed(self, window: Window) -> NDArray[np.bool_] | None:
        """The pixels [H, W] whose labels count; None: all."""
        ...

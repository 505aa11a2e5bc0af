"""Values of interest: from units to brightness, by a window or a table, only where somebody asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    from geomed.io.scan import Scan

WINDOWS = MappingProxyType(
    {
        "abdomen": (60.0, 400.0),
        "angiography": (300.0, 600.0),
        "bone": (400.0, 1800.0),
        "brain": (40.0, 80.0),
        "liver": (30.0, 150.0),
        "lung": (-600.0, 1500.0),
        "mediastinum": (50.0, 350.0),
        "soft tissue": (50.0, 400.0),
        "stroke": (40.0, 40.0),
        "subdural": (75.0, 215.0),
    }
)
"""Usual windows of CT: name → (centre, width) in HU."""


@dataclass(frozen=True, kw_only=True)
class Voi:
    """A window. Source: DICOM PS3.3 section C.11.2.1.2."""

    centre: float
    """In the unit of the values."""

    width: float
    """From black to white, in the unit of the values."""

    function: Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"] = "LINEAR_EXACT"
    """LINEAR, DICOM's default, is half a unit off centre and one narrower than what its numbers say."""

    name: str = ""
    """What the file calls it, where that is a usual word."""

    def __post_init__(self) -> None:
        """Refuse windows that DICOM does not define."""
        least = 1.0 if self.function == "LINEAR" else 0.0
        if not np.isfinite(self.centre) or not np.isfinite(self.width) or self.width < least or self.width == 0:
            raise ValueError(
                f"a window of {self.function} has a finite centre and a width of {least:g} or more, not "
                f"({self.centre}, {self.width}); correct it"
            )

    def brightness(self, values: NDArray[np.generic]) -> NDArray[np.float32]:
        """Values → 0 to 1."""
        x = np.asarray(values, dtype=np.float32)
        if self.function == "SIGMOID":
            # beyond 80 the exponential leaves float32, and 1 / (1 + e^80) is 0 to it anyway
            return 1 / (1 + np.exp(np.clip(-4 * (x - self.centre) / self.width, -80, 80)))
        if self.function == "LINEAR" and self.width == 1:
            return (x > self.centre - 0.5).astype(np.float32)
        centre, width = (self.centre - 0.5, self.width - 1) if self.function == "LINEAR" else (self.centre, self.width)
        bright: NDArray[np.float32] = x - np.float32(centre - width / 2)
        bright /= np.float32(width)
        return np.clip(bright, 0, 1, out=bright)


@dataclass(frozen=True, kw_only=True, eq=False)
class VoiTable:
    """A table from values to brightness. Source: DICOM PS3.3 section C.11.2.1.1."""

    first: float
    """Value of the first entry; below it counts as it."""

    entries: NDArray[np.uint16]
    """Brightness of that value, of the next whole number, and so on; beyond the last counts as it."""

    bits: int
    """White is 2 to the power of it, less one."""

    name: str = ""
    """What the file calls it, where that is a usual word."""

    def brightness(self, values: NDArray[np.generic]) -> NDArray[np.float32]:
        """Values → 0 to 1."""
        index = np.clip(np.rint(np.asarray(values, dtype=np.float64) - self.first), 0, len(self.entries) - 1)
        return (self.entries / np.float32(2**self.bits - 1)).astype(np.float32)[index.astype(np.intp)]


def window(
    scan: Scan, which: str | tuple[float, float] | Voi | VoiTable, *, dtype: DTypeLike = np.float32
) -> NDArray[np.generic]:
    """Brightness of a scan, in the shape of its values: 0 to 1, or 0 to 255 as uint8.

    Args:
        scan: a grey one; colours have no window.
        which: a name of ``WINDOWS``, for HU; "file", the first that the file proposes, or "file: NAME"; "full", from
            the lowest to the highest value; "robust", from the 0.5th to the 99.5th percentile; or (centre, width), or
            one made elsewhere. What is padded has no part in "full" and "robust".
        dtype: float32 or uint8.

    Raises:
        ValueError: the scan has no such window, or none of its unit.
    """
    if np.dtype(dtype) not in {np.dtype(np.float32), np.dtype(np.uint8)}:
        raise ValueError(f"brightness is float32 or uint8, not {np.dtype(dtype)}; convert it afterwards")
    if scan.unit == "RGB":
        raise ValueError("colours have no window; give the values as they are")
    chosen, mirror = _chosen(scan, which)

    def brightness(values: NDArray[np.generic]) -> NDArray[np.generic]:
        # a window of the file was meant for the values before they were mirrored
        bright = (
            chosen.brightness(values)
            if mirror is None
            else 1 - chosen.brightness(np.subtract(mirror, values, dtype=np.float64))
        )
        return bright if np.dtype(dtype) == np.float32 else np.rint(bright * 255).astype(np.uint8)

    if scan.values.dtype.kind in "iu" and scan.values.dtype.itemsize <= 2 and scan.values.size > 1 << 16:
        # looking up is several times as fast as computing, and every number of this type is in the table
        numbers = np.arange(1 << 8 * scan.values.dtype.itemsize, dtype=np.uint16)
        unsigned = scan.values.view(f"u{scan.values.dtype.itemsize}")
        return brightness(numbers.astype(unsigned.dtype).view(scan.values.dtype))[unsigned]
    return brightness(scan.values)


def _chosen(scan: Scan, which: str | tuple[float, float] | Voi | VoiTable) -> tuple[Voi | VoiTable, float | None]:
    """The window, and what the values must be mirrored at before it is used."""
    if isinstance(which, Voi | VoiTable):
        return which, None
    if not isinstance(which, str):
        return Voi(centre=which[0], width=which[1]), None
    if which == "file" or which.startswith("file:"):
        name = which.partition(":")[2].strip()
        for proposed in scan.windows:
            if not name or proposed.name == name:
                return proposed, scan.mirror
        known = ", ".join(f'"file: {one.name}"' for one in scan.windows if one.name)
        raise ValueError(
            f"{which!r}: the file proposes {len(scan.windows)} windows for all of its slices"
            f"{' (' + known + ')' if known else ''}; take one of these, (centre, width), 'full' or 'robust'"
        )
    if which in {"full", "robust"}:
        kept = scan.values if scan.padded is None else scan.values[~scan.padded]
        low, high = np.percentile(kept.astype(np.float32, copy=False), (0, 100) if which == "full" else (0.5, 99.5))
        if not low < high:
            raise ValueError(f"{which!r}: all values are about {low:g}; such a scan shows nothing, leave it out")
        return Voi(centre=float(low + high) / 2, width=float(high - low)), None
    if which not in WINDOWS:
        raise ValueError(
            f"there is no window {which!r}; take one of {', '.join(WINDOWS)}, file, full, robust or (centre, width)"
        )
    if scan.unit != "HU":
        raise ValueError(f"the window {which!r} is one of HU and the values are {scan.unit}; give (centre, width)")
    return Voi(centre=WINDOWS[which][0], width=WINDOWS[which][1]), None

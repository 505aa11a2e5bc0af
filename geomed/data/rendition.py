"""From a scan as it was read to an array of one size: what happens to it before a network may see it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from geomed.data.duplicates import fingerprint
from geomed.data.scan_cache import FACTS, Rendered
from geomed.io.voi import window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geomed.io.scan import Scan

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, section 2.5.1


@dataclass(frozen=True, kw_only=True)
class Rendition:
    """The same steps for every scan: choose slices, apply a window, resize. Nothing in it is random."""

    size: int = 224
    """Side of the square image in pixels."""

    window: str | tuple[float, float] | None = None
    """How units become brightness: the name of a usual window of HU ("lung"), "file" for the one that the file
    proposes, "full" or "robust" for the range of each scan, or (centre, width). None: the scans are 8-bit pictures
    already, and others are refused."""

    slices: int | None = None
    """Of a volume: so many, at equal distances; of a volume that has fewer, all. None: all."""

    colour: bool = False
    """Three channels, red, green and blue; a grey scan has the same in all of them. Otherwise one channel, and colours
    are refused unless ``luma`` is set."""

    luma: bool = False
    """Colours become grey."""

    keep_aspect: bool = True
    """The longer side becomes ``size`` and the other is filled with black; otherwise both are stretched to it."""

    depth: Literal[8, 16] = 8
    """Bits that are kept. 16: no window, the values stay in their unit, rounded to whole numbers; samples are then
    float32 in that unit."""

    def __post_init__(self) -> None:
        """Refuse sizes that are none and steps that contradict each other."""
        if self.size < 1 or (self.slices is not None and self.slices < 1):
            raise ValueError(f"size and slices must be at least 1, not {self.size} and {self.slices}; correct them")
        if self.colour and self.luma:
            raise ValueError("colour keeps colours and luma takes them away; set one of them")
        if self.depth == 16 and (self.window is not None or self.colour):
            raise ValueError("16 bits keep the unit of grey scans: leave out window and colour, or take depth 8")

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the channels."""
        return ("red", "green", "blue") if self.colour else ("grey",)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of what is kept."""
        return np.dtype(np.uint8 if self.depth == 8 else np.int16)

    def recipe(self) -> dict[str, object]:
        """All of it in JSON's types."""
        return {**asdict(self), "window": list(self.window) if isinstance(self.window, tuple) else self.window}

    def render(self, scan: Scan) -> Rendered:
        """The scan [S, C, size, size] and what is known of it.

        Raises:
            ValueError: it is not such a scan; the message is about this one and does not name it.
        """
        values, colour, volume = scan.values, scan.unit == "RGB", len(scan.shape) == 3
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            wrong = int(values.size - np.isfinite(values).sum())
            raise ValueError(f"{wrong} of {values.size} values are not finite numbers; mend it or take it out")
        facts = np.zeros((), dtype=FACTS)
        facts["print"] = fingerprint(values, colour=colour)
        facts["bits"], facts["unit"] = scan.bits, scan.unit.encode()[:16]
        facts["orientation"] = (scan.orientation or "").encode()
        facts["colour"], facts["volume"], facts["flat"] = colour, volume, not facts["print"]["thumbnail"].any()
        return Rendered(values=self.pixels(scan), facts=facts[()])

    def pixels(self, scan: Scan) -> NDArray[np.generic]:
        """The scan [S, C, size, size].

        Raises:
            ValueError: it is not such a scan; the message is about this one and does not name it.
        """
        bright, volume = self._bright(scan), len(scan.shape) == 3
        planes = _planes(bright, colour=bright.ndim > len(scan.shape), volume=volume)
        resized = self._resized(planes[self._chosen(len(planes))] if volume else planes)
        return resized.repeat(3, axis=1) if self.colour and scan.unit != "RGB" else resized

    def _chosen(self, count: int) -> slice | NDArray[np.int64]:
        """The middle slices of equal parts of a volume."""
        if self.slices is None or count <= self.slices:
            return slice(None)
        return ((np.arange(self.slices) + 0.5) * count / self.slices).astype(np.int64)

    def _bright(self, scan: Scan) -> NDArray[np.generic]:
        """Brightness as uint8, with a last axis of colours where they are kept; of 16 bits, values in their unit."""
        values = scan.values
        if scan.unit == "RGB":
            if not (self.colour or self.luma):
                raise ValueError("it has colours and the set is grey; set `colour`, or `luma` to make it grey")
            if self.depth == 16:
                raise ValueError("it has colours, of which 8 bits are kept; set depth to 8")
            if values.dtype != np.uint8:
                scaled = values.astype(np.float32) * (255 / (2**scan.bits - 1))
                values = np.rint(scaled).clip(0, 255).astype(np.uint8)
            return values if self.colour else np.rint(values.astype(np.float32) @ _LUMA).clip(0, 255).astype(np.uint8)
        if self.depth == 16:
            return values.astype(np.float32)
        if self.window is not None:
            return window(scan, self.window, dtype=np.uint8)
        if values.dtype != np.uint8:
            raise ValueError(
                f"it holds {scan.bits}-bit values ({scan.unit}), which are no brightness yet; name a `window`"
            )
        return values

    def _resized(self, planes: NDArray[np.generic]) -> NDArray[np.generic]:
        """[S, C, size, size], antialiased."""
        from PIL import Image

        height, width = planes.shape[-2:]
        longer = max(height, width)
        high, wide = (self.size, self.size)
        if self.keep_aspect:
            high, wide = max(round(self.size * height / longer), 1), max(round(self.size * width / longer), 1)
        if (height, width) != (high, wide):
            colours = planes.shape[1] == 3
            flat = np.moveaxis(planes, 1, -1) if colours else planes.reshape(-1, height, width)
            resized = [
                np.asarray(Image.fromarray(np.ascontiguousarray(one)).resize((wide, high), Image.Resampling.BILINEAR))
                for one in flat
            ]
            stacked = np.stack(resized)
            planes = np.moveaxis(stacked, -1, 1) if colours else stacked[:, None]
        if self.depth == 16:
            planes = _whole(planes)
        if (high, wide) == (self.size, self.size):
            return planes
        filled = np.full(
            (*planes.shape[:2], self.size, self.size), planes.min() if self.depth == 16 else 0, planes.dtype
        )
        top, left = (self.size - high) // 2, (self.size - wide) // 2
        filled[:, :, top : top + high, left : left + wide] = planes
        return filled


def _planes(values: NDArray[np.generic], *, colour: bool, volume: bool) -> NDArray[np.generic]:
    """[S, C, H, W] of [H, W] or [S, H, W], with or without a last axis of colours."""
    slices = values if volume else values[None]
    return np.moveaxis(slices, -1, 1) if colour else slices[:, None]


def _whole(values: NDArray[np.generic]) -> NDArray[np.int16]:
    """Rounded to int16.

    Raises:
        ValueError: that would cut values off, or leave only a few of them.
    """
    low, high = float(values.min()), float(values.max())
    limits = np.iinfo(np.int16)
    if low < limits.min or high > limits.max or 0 < high - low < 64:
        raise ValueError(
            f"its values go from {low:g} to {high:g}, which whole numbers of 16 bits do not hold well; take depth 8 "
            "and a window"
        )
    return np.rint(values).astype(np.int16)

"""From stored pixels to values in their unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from geomed.io.dicom_decoding import decoded
from geomed.io.scan import UnreadableScanError, refuse_large

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from geomed.io.dicom_header import Header, Pick


@dataclass(frozen=True, kw_only=True)
class Values:
    """What a scan is made of."""

    values: NDArray[np.generic]
    """[slices, rows, columns], with a last axis of 3 for colours."""

    unit: str
    """Of them."""

    mirror: float | None
    """They are ``mirror - stored``; None: they are not mirrored."""

    padded: NDArray[np.bool_] | None
    """Where there is no observation."""


def read_values(picks: Sequence[Pick]) -> Values:
    """Read frames that are alike, in the order in which they are given.

    Raises:
        UnreadableScanError: their units are not known or differ, or they are damaged or cannot be decoded here.
    """
    header = picks[0][0]
    unit = "RGB" if header.colours else _unit(picks)
    rescales = [one.frames[number].rescale or (1.0, 0.0) for one, number in picks]
    dtype = _dtype(header, rescales) if not header.colours else np.dtype(f"u{header.allocated // 8}")
    refuse_large((len(picks), *header.size, 3 if header.colours else 1), max(dtype.itemsize, header.allocated // 8))
    if header.colours:
        coloured: dict[int, NDArray[np.generic]] = dict(decoded(picks))
        values = np.stack([coloured[place] for place in range(len(picks))])
        return Values(values=values, unit=unit, mirror=None, padded=None)
    mirrored = header.photometric == "MONOCHROME1" and unit == "grey"
    if mirrored and len(set(rescales)) > 1:
        raise UnreadableScanError(
            "its slices are MONOCHROME1 with several rescales, so they have no common white; invert them"
        )
    try:
        values, padded = _scaled(picks, dtype, rescales, mirrored=mirrored)
    except OverflowError:  # 16 bits less 1024 fit into 16 bits in nearly all CTs, and this is another one
        values, padded = _scaled(picks, np.dtype(np.float32), rescales, mirrored=mirrored)
    mirror = None
    if mirrored:
        white = -1 if header.signed else 2**header.stored - 1
        slope, intercept = rescales[0]
        mirror = float(2**header.table.bits - 1 if header.table else slope * white + 2 * intercept)
    return Values(values=values, unit=unit, mirror=mirror, padded=padded)


def _unit(picks: Sequence[Pick]) -> str:
    """The unit after the rescale, the same for all."""
    header = picks[0][0]
    said = [header.frames[number].rescale is not None for header, number in picks]
    hounsfield = any(one.hounsfield for one, _ in picks)
    if any(one.table is not None for one, _ in picks):
        if any(said) or len({one.path for one, _ in picks}) > 1:
            raise UnreadableScanError(
                "it has a table of units besides a rescale, or in several files; convert it before"
            )
        if hounsfield and header.table_type != "HU":
            raise UnreadableScanError("it is a CT whose table of units does not lead to HU; export it anew")
        return "HU" if hounsfield else "grey"
    if not all(said) and (hounsfield or any(said)):
        raise UnreadableScanError(
            f"{len(said) - sum(said)} of {len(said)} slices have no rescale"
            f"{', so this CT is not in HU' if hounsfield else ' and the others have one'}; export it anew"
        )
    words = {header.frames[number].rescale_type for header, number in picks}
    if len(words) > 1 or "?" in words:
        raise UnreadableScanError(
            "its rescale leads to several units, or to one that DICOM does not define; export it anew"
        )
    word = words.pop()
    if hounsfield:
        if word == "US":
            raise UnreadableScanError(
                "it is a CT whose rescale leads to an unspecified unit, not to HU; export it anew"
            )
        return word or "HU"
    if word == "HU":  # only a CT has them, and others write it by mistake
        return "grey"
    return header.units or ("grey" if word == "US" else word) or "grey"


def _dtype(header: Header, rescales: Sequence[tuple[float, float]]) -> np.dtype[np.generic]:
    """A type that holds all values exactly where they are whole; int16 if it is likely to."""
    if header.floating:
        return np.dtype(f"f{header.allocated // 8}")
    if header.table is not None:
        return np.dtype(np.uint16)
    if header.allocated > 16:
        return np.dtype(np.float64)
    shifts = [intercept for _, intercept in rescales]
    if any(slope != 1 or shift != int(shift) for (slope, _), shift in zip(rescales, shifts, strict=True)):
        return np.dtype(np.float32)
    low, high = _promised(header, int(min(shifts)), int(max(shifts)))
    if header.allocated == 8 and low >= 0 and high < 1 << 8:
        return np.dtype(np.uint8)
    return np.dtype(np.uint16) if low >= 0 and 1 << 15 <= high < 1 << 16 else np.dtype(np.int16)


def _promised(header: Header, least: int, most: int) -> tuple[int, int]:
    """Lowest and highest value that the stored bits can give, after intercepts from ``least`` to ``most``."""
    low = -(1 << header.stored - 1) if header.signed else 0
    return low + least, low + (1 << header.stored) - 1 + most


def _scaled(
    picks: Sequence[Pick], dtype: np.dtype[np.generic], rescales: Sequence[tuple[float, float]], *, mirrored: bool
) -> tuple[NDArray[np.generic], NDArray[np.bool_] | None]:
    """(values [slices, rows, columns], where they are padding) of grey frames."""
    header = picks[0][0]
    out = np.empty((len(picks), *header.size), dtype=dtype)
    padded: NDArray[np.bool_] | None = None
    native = all(bool(one.order) and one.length is not None and not one.floating for one, _ in picks)
    frames = _native(picks, out) if native else decoded(picks)
    for place, stored in frames:
        one = picks[place][0]
        if one.padding is not None and not header.floating:
            low, high = one.padding
            mask = stored == low if low == high else np.greater_equal(stored, low) & np.less_equal(stored, high)
            if mask.any():
                padded = np.zeros(out.shape, dtype=np.bool_) if padded is None else padded
                padded[place] = mask
        _rescale(one, stored, out[place], rescales[place], mirrored=mirrored)
    if header.floating and not np.isfinite(out).all():
        raise UnreadableScanError(
            f"{int((~np.isfinite(out)).sum())} of {out.size} values are not finite; mend it before"
        )
    if padded is not None:
        if padded.all():
            raise UnreadableScanError("all of its pixels are padding, there is no observation; leave it out")
        lowest = min(values[~mask].min() for values, mask in zip(out, padded, strict=True) if not mask.all())
        for values, mask in zip(out, padded, strict=True):
            values[mask] = lowest
    return out, padded


def _rescale(
    header: Header,
    stored: NDArray[np.generic],
    out: NDArray[np.generic],
    rescale: tuple[float, float],
    *,
    mirrored: bool,
) -> None:
    """Stored numbers → values; ``stored`` may lie in the memory of ``out``."""
    if header.floating:
        out[:] = stored
        return
    spare = header.allocated - header.stored
    if spare:  # what stands above the stored bits is not said: shifting it out extends the sign as well
        np.left_shift(stored, spare, out=stored)
        np.right_shift(stored, spare, out=stored)
    if header.table is not None:
        index = np.clip(stored.astype(np.int64) - int(header.table.first), 0, len(header.table.entries) - 1)
        out[:] = header.table.entries[index]
        if mirrored:
            np.subtract(2**header.table.bits - 1, out, out=out)
        return
    if mirrored:
        np.invert(stored, out=stored) if header.signed else np.subtract(2**header.stored - 1, stored, out=stored)
    slope, intercept = rescale
    if out.dtype == np.int16:
        low, high = _promised(header, int(intercept), int(intercept))
        if (low < -(1 << 15) and int(stored.min()) + int(intercept) < -(1 << 15)) or (
            high >= 1 << 15 and int(stored.max()) + int(intercept) >= 1 << 15
        ):
            raise OverflowError
    if out.dtype.kind == "f":
        np.multiply(stored, out.dtype.type(slope), out=out, casting="unsafe")
        out += out.dtype.type(intercept)
    elif out.dtype.itemsize == stored.dtype.itemsize == 2:  # modulo 2^16 the sign has no part in it
        np.add(stored.view(np.uint16), np.uint16(int(intercept) % (1 << 16)), out=out.view(np.uint16))
    else:
        np.add(stored, out.dtype.type(intercept), out=out, casting="unsafe")


def _native(picks: Sequence[Pick], out: NDArray[np.generic]) -> Iterator[tuple[int, NDArray[np.generic]]]:
    """(place, stored numbers) of uncompressed frames, read where they are to be."""
    header = picks[0][0]
    kind = np.dtype(f"{'i' if header.signed else 'u'}{header.allocated // 8}")
    size = header.size[0] * header.size[1] * kind.itemsize
    spare = None if out.dtype.itemsize == kind.itemsize else np.empty(header.size, dtype=kind)
    for place, (one, number) in enumerate(picks):
        stored = out[place].view(kind) if spare is None else spare
        with one.path.open("rb", buffering=0) as file:
            file.seek(one.offset + number * size)
            if file.readinto(memoryview(stored.data).cast("B")) != size:
                raise UnreadableScanError("it became shorter while it was read; fetch it anew")
        if one.order == ">" and kind.itemsize > 1:
            stored.byteswap(inplace=True)
        yield place, stored

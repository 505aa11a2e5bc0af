"""Decoding pixels that are compressed or coloured, through pydicom and what is installed beside it."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from geomed.io.scan import UnreadableScanError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from geomed.io.dicom_header import Header, Pick

_LIBJPEG, _OPENJPEG = "pylibjpeg and pylibjpeg-libjpeg", "pylibjpeg and pylibjpeg-openjpeg"
_SYNTAXES = {  # transfer syntax after 1.2.840.10008.1.2. → (what it is, what decodes it)
    "4.50": ("JPEG", _LIBJPEG),
    "4.51": ("JPEG of 12 bits", _LIBJPEG),
    "4.57": ("lossless JPEG", _LIBJPEG),
    "4.70": ("lossless JPEG", _LIBJPEG),
    "4.80": ("JPEG-LS", "pyjpegls"),
    "4.81": ("JPEG-LS", "pyjpegls"),
    "4.90": ("JPEG 2000", _OPENJPEG),
    "4.91": ("JPEG 2000", _OPENJPEG),
    "4.201": ("high-throughput JPEG 2000", _OPENJPEG),
    "4.202": ("high-throughput JPEG 2000", _OPENJPEG),
    "4.203": ("high-throughput JPEG 2000", _OPENJPEG),
    "5": ("run lengths", ""),
}
_PLAIN = frozenset({"1.2.840.10008.1.2", *(f"1.2.840.10008.1.2.{end}" for end in ("1", "2", "1.99"))})


_PIXELS = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "ExtendedOffsetTable"),
    *("ExtendedOffsetTableLengths", "PixelData", "FloatPixelData", "DoubleFloatPixelData"),
    *(
        f"{kind}{colour}PaletteColorLookupTable{end}"
        for colour in ("Red", "Green", "Blue")
        for kind, end in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
    ),
)


def decoded(picks: Sequence[Pick]) -> Iterator[tuple[int, NDArray[np.generic]]]:
    """(place in ``picks``, frame) of each of them, as stored or as RGB, in the order of the files.

    Raises:
        UnreadableScanError: the pixels are damaged, or nothing installed decodes them.
    """
    places = sorted(range(len(picks)), key=lambda place: (str(picks[place][0].path), picks[place][1]))
    for _, group in groupby(places, key=lambda place: str(picks[place][0].path)):
        some = list(group)
        yield from zip(some, _decode(picks[some[0]][0], [picks[place][1] for place in some]), strict=True)


def _decode(header: Header, numbers: list[int]) -> list[NDArray[np.generic]]:
    """Frames of one file."""
    from pydicom import dcmread
    from pydicom.pixels.decoders.base import get_decoder

    kind, package = _SYNTAXES.get(header.syntax.removeprefix("1.2.840.10008.1.2."), ("", ""))
    if not kind and header.syntax not in _PLAIN:
        raise UnreadableScanError(
            "its pixels are stored as a film or in another way that is not read; convert it before"
        )
    decoder = get_decoder(header.syntax)
    if not decoder.is_available:
        raise UnreadableScanError(
            f"its pixels are compressed ({kind}), and nothing here decodes that: install {package}"
        )
    item = dcmread(header.path, specific_tags=list(_PIXELS))
    indices = None if numbers == list(range(len(header.frames))) else numbers  # all of them are found much faster
    try:
        frames = [_native_order(frame) for frame, _ in decoder.iter_array(item, indices=indices)]
    except Exception as error:  # noqa: BLE001  (as many kinds as there are decoders)
        how = f" ({kind})" if kind else ""
        ask = (
            f"it is damaged, or needs another decoder: install {package}" if package else "it is damaged: fetch it anew"
        )
        raise UnreadableScanError(f"decoding its pixels{how} ended in {type(error).__name__}: {ask}") from None
    if header.photometric == "PALETTE COLOR":
        frames = [_coloured(frame, item, header.order or "<") for frame in frames]
    for frame in frames:
        if frame.shape[:2] != header.size or frame.shape[2:] != ((3,) if header.colours else ()):
            raise UnreadableScanError("a frame has another size than its header promises; fetch it anew")
    return frames


def _native_order(frame: NDArray[np.generic]) -> NDArray[np.generic]:
    """In this machine's order of bytes, and writable."""
    return np.require(frame, dtype=frame.dtype.newbyteorder("="), requirements=["C", "W"])


def _coloured(frame: NDArray[np.generic], item: Dataset, order: str) -> NDArray[np.generic]:
    """Stored numbers → RGB of 8 bits through a palette. Source: DICOM PS3.3 section C.7.6.3.1.5 and 6."""
    from pydicom.pixels.processing import apply_color_lut

    if "RedPaletteColorLookupTableData" not in item:  # in segments
        colours = apply_color_lut(frame, item)[..., :3]
        return colours if colours.dtype == np.uint8 else (colours >> 8).astype(np.uint8)
    count, first, _ = (int(number) for number in item.RedPaletteColorLookupTableDescriptor)
    count = count or 1 << 16
    raw = [item[f"{colour}PaletteColorLookupTableData"].value for colour in ("Red", "Green", "Blue")]
    width = 1 if len(raw[0]) < 2 * count else 2
    tables = np.stack([np.frombuffer(one, dtype=f"{order}u{width}", count=count) for one in raw], axis=-1)
    if tables.max() > 255:  # some files hold 8 bits in words of 16
        tables = tables >> 8
    return tables.astype(np.uint8)[np.clip(frame.astype(np.int64) - first, 0, count - 1)]

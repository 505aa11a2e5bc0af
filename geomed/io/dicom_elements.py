"""Elements of a DICOM data set as numbers, words, windows and tables, without quoting what stands in them."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from geomed.io.scan import UnreadableScanError
from geomed.io.voi import Voi, VoiTable

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag

_WINDOW_NAMES = frozenset(
    {
        *("ABDOMEN", "ALGO1", "ALGO2", "BONE", "BRAIN", "CONTRAST", "HARDER", "LIVER", "LUNG", "MEDIASTINUM", "NORMAL"),
        *("SOFT TISSUE", "SOFTER", "STANDARD", "WINDOW", "WINDOW1", "WINDOW2", "WINDOW3"),
    }
)


_BINARY = frozenset(
    {
        *("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
        *("PixelPaddingValue", "PixelPaddingRangeLimit", "LUTDescriptor"),
    }
)
"""Elements of whole numbers of 16 bits; the others are letters, numbers among them."""


@cache
def tag_of(keyword: str) -> BaseTag:
    """Group and element."""
    from pydicom.tag import Tag

    return Tag(keyword)


def values_of(item: Dataset, keyword: str) -> list[Any]:
    """What an element holds: nothing, one or several.

    The bytes are read here: pydicom's own conversion takes as long again as all the rest of a header.
    """
    element = item.get_item(tag_of(keyword))
    value = None if element is None else element.value
    if value is None or (isinstance(value, str) and not value):
        return []
    if not isinstance(value, bytes):  # pydicom has converted it
        return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if keyword in _BINARY:
        kind = "h" if element.VR == "SS" else "H"
        order = "<" if getattr(element, "is_little_endian", True) else ">"
        return list(struct.unpack(f"{order}{len(value) // 2}{kind}", value[: len(value) // 2 * 2]))
    words = value.decode("latin-1").strip(" \0")
    return words.split("\\") if words else []


def numbers_of(item: Dataset, keyword: str, count: int | None = None) -> tuple[float, ...]:
    """Finite numbers, none where the file says nothing."""
    numbers = tuple(float(one) for one in values_of(item, keyword))
    if numbers and count is not None and len(numbers) != count:
        raise UnreadableScanError(f"{keyword} has {len(numbers)} numbers, not {count}; correct the file")
    if not all(map(math.isfinite, numbers)):
        raise UnreadableScanError(f"{keyword} is not finite; correct the file")
    return numbers


def count_of(item: Dataset, keyword: str, default: int | None = None) -> int:
    """One whole number."""
    numbers = numbers_of(item, keyword, 1)
    if not numbers and default is None:
        raise UnreadableScanError(
            f"it says no {keyword}, so its pixels cannot be read; it is no image, or fetch it anew"
        )
    return int(numbers[0]) if numbers or default is None else default


def word_of(item: Dataset, keyword: str) -> str:
    """One code."""
    values = values_of(item, keyword)
    return str(values[0]).strip() if values else ""


def sequence_of(item: Dataset, keyword: str) -> Sequence[Dataset]:
    """The data sets inside another one."""
    return item.get(keyword) or () if tag_of(keyword) in item else ()


def one_of(word: str, known: frozenset[str]) -> str:
    """The word if it is known, else none."""
    return word if word in known else ""


def windows_of(item: Dataset) -> tuple[Voi, ...]:
    """Windows that the file proposes; those that DICOM does not define are not there."""
    centres, widths = numbers_of(item, "WindowCenter"), numbers_of(item, "WindowWidth")
    if not centres or len(centres) != len(widths):
        return ()
    names = values_of(item, "WindowCenterWidthExplanation")
    function = word_of(item, "VOILUTFunction") or "LINEAR"
    if function not in {"LINEAR", "LINEAR_EXACT", "SIGMOID"}:
        return ()
    found = []
    for number, (centre, width) in enumerate(zip(centres, widths, strict=True)):
        if width >= (1 if function == "LINEAR" else 1e-9):
            name = _window_name(names[number]) if number < len(names) else ""
            found.append(Voi(centre=centre, width=width, function=function, name=name))  # type: ignore[arg-type]  # above
    return tuple(found)


def _window_name(words: object) -> str:
    """A usual name; what else stands there is free text and stays there."""
    return one_of(str(words).strip().upper(), _WINDOW_NAMES)


def tables_of(item: Dataset, sequence: str, *, signed: bool) -> tuple[VoiTable, ...]:
    """Look-up tables. Source: DICOM PS3.3 section C.11.1.1 on the three numbers that describe one."""
    found = []
    for one in sequence_of(item, sequence):
        count, first, bits = (int(n) for n in numbers_of(one, "LUTDescriptor", 3))
        count = count % (1 << 16) or 1 << 16
        if signed and first >= 1 << 15:
            first -= 1 << 16
        data = one.get("LUTData")
        if isinstance(data, bytes):
            entries = np.frombuffer(data, dtype="u1" if len(data) < 2 * count else "<u2").astype(np.int64)
        else:
            entries = np.array([] if data is None else data, dtype=np.int64).reshape(-1)
        if not 8 <= bits <= 16 or len(entries) < count:
            raise UnreadableScanError(
                f"a table promises {count} entries of {bits} bits and has {len(entries)}; fetch it anew"
            )
        found.append(
            VoiTable(
                first=first,
                entries=(entries[:count] & 0xFFFF).astype(np.uint16),
                bits=bits,
                name=_window_name(word_of(one, "LUTExplanation")),
            )
        )
    return tuple(found)

"""How long a TIFF must be, by what its directories say: the cheap way to find a broken download."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_ORDERS = {b"II": "<", b"MM": ">"}
_WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_UNSIGNED = {3: "u2", 4: "u4", 16: "u8"}
_BLOCKS = ((273, 279), (324, 325))  # offsets and byte counts of strips, of tiles


def needed_bytes(path: Path) -> int | None:
    """Bytes up to the end of the last block or table of a TIFF or BigTIFF; None: it is no TIFF.

    Source: TIFF 6.0 (Adobe, 1992), section 2; BigTIFF as in libtiff.

    Raises:
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        order = _ORDERS.get(head[:2])
        if (
            order is None
            or len(head) < 16
            or head[2:4] not in {struct.pack(order + "H", 42), struct.pack(order + "H", 43)}
        ):
            return None
        big = head[2:4] == struct.pack(order + "H", 43)
        (offset,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
        end, seen = 0, set[int]()
        while offset and offset not in seen:
            seen.add(offset)
            needed, following = _directory(file, offset, order, big=big)
            end = max(end, needed)
            if end > size:
                break
            offset = following
    return end


def _directory(file: BinaryIO, start: int, order: str, *, big: bool) -> tuple[int, int]:
    """(end of all that a directory points to, offset of the next one)."""
    counter, entry, pointer = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    entry, width = order + entry, struct.calcsize(order + entry)
    room = struct.calcsize(order + pointer)
    file.seek(start)
    counted = file.read(struct.calcsize(counter))
    if len(counted) < struct.calcsize(counter):
        return start + struct.calcsize(counter), 0
    (count,) = struct.unpack(order + counter, counted)
    end = start + len(counted) + count * width + room
    table = file.read(count * width + room)
    if len(table) < count * width + room:
        return end, 0
    numbers: dict[int, NDArray[np.unsignedinteger]] = {}
    for tag, kind, length, value in struct.iter_unpack(entry, table[: count * width]):
        needed = _WIDTHS.get(kind, 0) * length
        raw = value[:needed]
        if needed > room:
            (offset,) = struct.unpack(order + pointer, value)
            end = max(end, offset + needed)
            raw = b""
            if any(tag in pair for pair in _BLOCKS):
                file.seek(offset)
                raw = file.read(needed)
        if any(tag in pair for pair in _BLOCKS) and kind in _UNSIGNED and len(raw) == needed:
            numbers[tag] = np.frombuffer(raw, dtype=np.dtype(order + _UNSIGNED[kind]))
    for offsets, counts in _BLOCKS:
        if offsets in numbers and counts in numbers and numbers[offsets].size == numbers[counts].size > 0:
            ends = numbers[offsets].astype(np.uint64) + numbers[counts].astype(np.uint64)
            end = max(end, int(ends.max()))
    return end, struct.unpack(order + pointer, table[count * width :])[0]

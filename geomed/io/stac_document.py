"""What all STAC items have in common: identifier, place, time, files, and classes by their names and colours."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pystac
from pystac.extensions.file import FileExtension
from shapely.geometry import mapping

from geomed.io.geotiff import NODATA

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import shapely

    from geomed.palette import Colour

_SOMETIME = (datetime(1900, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
"""Of what has no known date. STAC demands a date or an interval, and only one that excludes nothing is true; mlm's best
practices take these bounds."""


def refuse_wrong(name: str, classes: Sequence[str], colours: Sequence[Colour]) -> None:
    """Refuse an item without a name, and classes without colours."""
    if not name:
        raise ValueError("an item must have an identifier, this name is empty; name it")
    if len(classes) != len(colours) or not 0 < len(classes) <= NODATA:
        raise ValueError(
            f"{name}: 1 to {NODATA} classes need as many colours, not {len(classes)} and {len(colours)}; "
            "give each class one"
        )


def document(
    name: str, place: tuple[shapely.Geometry, Sequence[float]] | None, start: datetime | None, end: datetime | None
) -> pystac.Item:
    """An item of a place and a time."""
    first, last = _SOMETIME if start is None else (utc(start), utc(end or start))
    return pystac.Item(
        id=name,
        geometry=None if place is None else mapping(place[0]),
        bbox=None if place is None else list(place[1]),
        datetime=first if first == last else None,
        start_datetime=None if first == last else first,
        end_datetime=None if first == last else last,
        properties={},
    )


def class_objects(
    names: Sequence[str], colours: Sequence[Colour], counts: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Class objects; with counts (of the classes, and of all pixels) also that of unknown pixels."""
    slugs = _slugs([*names, "nodata"])
    classes: list[dict[str, Any]] = [
        {
            "value": value,
            "name": slug,
            "title": name,
            "description": name,
            "color_hint": "{:02X}{:02X}{:02X}".format(*colour),
        }
        for value, (name, slug, colour) in enumerate(zip(names, slugs, colours, strict=False))
    ]
    if counts is not None:
        classes.append({"value": NODATA, "name": slugs[-1], "title": "unknown", "nodata": True})
        total = counts[-1]
        for told, count in zip(classes, (*counts[:-1], total - sum(counts[:-1])), strict=True):
            told |= {"count": count, "percentage": round(100 * count / total, 6)}
    return classes


def _slugs(names: Sequence[str]) -> list[str]:
    """Names of letters, digits, - and _ only, no two the same."""
    slugs: list[str] = []
    for number, name in enumerate(names):
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        slug = re.sub(r"[^0-9A-Za-z-]+", "_", plain).strip("_") or f"class_{number}"
        while slug in slugs:
            slug = f"{slug}_{number}"
        slugs.append(slug)
    return slugs


def utc(moment: datetime) -> datetime:
    """A moment in UTC, which is meant where no zone is named."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def href(file: Path, folder: Path) -> str:
    """Address of a file as seen from an item in ``folder``: what a URI may not hold is escaped (RFC 3986, 2.1)."""
    return "./" + quote(os.fsencode(os.path.relpath(file, folder).replace(os.sep, "/")), safe="/~")


def add(document: pystac.Item, key: str, file: Path, asset: pystac.Asset) -> None:
    """Add an asset with the size and the SHA-256 of its file, as a multihash (0x12: SHA-256, 0x20: 32 bytes)."""
    document.add_asset(key, asset)
    with file.open("rb") as content:
        checksum = "1220" + hashlib.file_digest(content, "sha256").hexdigest()
    FileExtension.ext(asset, add_if_missing=True).apply(size=file.stat().st_size, checksum=checksum)


def write(path: Path, document: pystac.Item) -> None:
    """Write an item beside its place, then give it its name."""
    document.stac_extensions.sort()
    content = document.to_dict(include_self_link=False, transform_hrefs=False)
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    # a name that is no text (from a file system of another encoding) is escaped, as JSON allows
    part.write_text(text + "\n", encoding="utf-8", errors="backslashreplace", newline="\n")
    part.replace(path)

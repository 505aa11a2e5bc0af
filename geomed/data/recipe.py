"""What the recipes in ``datasets/`` share: digests of pixels, their comparison, and links to files that stay."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from geomed.io.geotiff import GeoTiff

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


def pixels_digest(files: Iterable[Path]) -> str:
    """SHA-256 of names, types, shapes and decoded pixels of rasters, by name.

    GeoTIFFs written by another GDAL differ in their bytes, not in their pixels.

    Raises:
        ValueError: a file is missing or damaged.
    """
    total = hashlib.sha256()
    for path in sorted(files):
        raster = GeoTiff.open(path)
        values = raster.read(raster.whole)
        total.update(f"{path.name} {values.dtype.name} {values.shape}\n".encode())
        total.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    return total.hexdigest()


def refuse_other_digests(found: Mapping[str, str], sums: Path) -> None:
    """Compare digests with those of a file of lines ``digest  name``.

    Raises:
        ValueError: one differs, or the file does not know it.
    """
    expected = {name: digest for digest, name in (line.split(maxsplit=1) for line in sums.read_text().splitlines())}
    for name, digest in found.items():
        if expected.get(name) != digest:
            raise ValueError(f"{name}: its content has the digest {digest}, not {expected.get(name)}; copy it again")


def link(at: Path, target: Path) -> None:
    """Put a symbolic link in place of an older one.

    Raises:
        ValueError: something that is no link stands there.
    """
    at.parent.mkdir(parents=True, exist_ok=True)
    if at.is_symlink():
        at.unlink()
    if at.exists():
        raise ValueError(f"{at} is there already and no link; remove it or choose another --out")
    at.symlink_to(target.resolve(), target_is_directory=target.is_dir())

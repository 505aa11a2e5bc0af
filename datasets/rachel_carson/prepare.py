"""Check the scene of the Rachel Carson Reserve and its polygons, and link them.

python datasets/rachel_carson/prepare.py --source FOLDER --out data/rachel_carson
"""

import argparse
import hashlib
import sys
from pathlib import Path

import geopandas
from pyogrio.errors import DataSourceError

from geomed.data.recipe import link, pixels_digest, refuse_other_digests

SCENE = tuple(f"2018-10-13_S2B_L1C_B{number:02d}.tif" for number in range(1, 9))
POLYGONS = "landcover_polygons.gpkg"
SUMS = Path(__file__).with_name("SHA256SUMS")


def polygons_digest(path: Path) -> str:
    """SHA-256 of the coordinate system, classes and outlines of the polygons: a GeoPackage holds the time it was made.

    Raises:
        ValueError: the file is missing or no vector file.
    """
    try:
        frame = geopandas.read_file(path)
    except (DataSourceError, OSError) as error:
        raise ValueError(f"{path}: it cannot be read ({error}); give --source the folder that holds it") from error
    total = hashlib.sha256(f"{frame.crs.to_epsg()}\n".encode())
    for name, outline in zip(frame["Classname"], frame.geometry, strict=True):
        total.update(f"{name}\n".encode() + outline.wkb)
    return total.hexdigest()


def main() -> None:
    """Compare the digests, then link the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help=f"folder that holds {SCENE[0]} … and {POLYGONS}")
    parser.add_argument("--out", type=Path, default=Path("data/rachel_carson"), help="where links are made")
    arguments = parser.parse_args()
    try:
        found = {name: pixels_digest([arguments.source / name]) for name in SCENE}
        found[POLYGONS] = polygons_digest(arguments.source / POLYGONS)
        refuse_other_digests(found, SUMS)
        for name in (*SCENE, POLYGONS):
            link(arguments.out / name, arguments.source / name)
            print(f"{arguments.out / name}: as expected")
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

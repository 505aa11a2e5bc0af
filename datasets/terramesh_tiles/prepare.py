"""Check the three TerraMesh tiles and link them.

python datasets/terramesh_tiles/prepare.py --source FOLDER --out data/terramesh_tiles
"""

import argparse
import sys
from pathlib import Path

from geomed.data.recipe import link, pixels_digest, refuse_other_digests

TILES = ("282D_485L_3_3", "38D_378R_2_3", "637U_59R_1_3")
FILES = ("S2L1C.tif", "S2L2A.tif", "LULC.tif")
SUMS = Path(__file__).with_name("SHA256SUMS")


def main() -> None:
    """Compare the digests, then link the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help=f"folder that holds {', '.join(TILES)}")
    parser.add_argument("--out", type=Path, default=Path("data/terramesh_tiles"), help="where links are made")
    arguments = parser.parse_args()
    try:
        found = {f"{t}/{f}": pixels_digest([arguments.source / t / f]) for t in TILES for f in FILES}
        refuse_other_digests(found, SUMS)
        for tile in TILES:
            link(arguments.out / tile, arguments.source / tile)
            print(f"{arguments.out / tile} → {arguments.source / tile}: as expected")
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

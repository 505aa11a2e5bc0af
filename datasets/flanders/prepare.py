"""Check the two Flanders series and link them.

python datasets/flanders/prepare.py --source FOLDER --out data/flanders
"""

import argparse
import sys
from pathlib import Path

from geomed.data.recipe import link, pixels_digest, refuse_other_digests

FOLDERS = ("flanders_2018", "flanders_2019_b")
SUMS = Path(__file__).with_name("SHA256SUMS")


def digests(source: Path) -> dict[str, str]:
    """Digest of the images, scene classifications and labels of each folder."""
    found = {}
    for name in FOLDERS:
        masks = set((source / name / "images").glob("*_SCL.tif"))
        images = set((source / name / "images").glob("*.tif")) - masks
        if not images:
            raise ValueError(f"{source / name / 'images'} holds no GeoTIFF; give --source the folder that holds {name}")
        found[f"{name}/images"] = pixels_digest(images)
        found[f"{name}/scl"] = pixels_digest(masks)
        found[f"{name}/labels"] = pixels_digest([source / name / "labels.tif"])
    return found


def main() -> None:
    """Compare the digests, then link the folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--source", type=Path, required=True, help="folder that holds flanders_2018 and flanders_2019_b"
    )
    parser.add_argument("--out", type=Path, default=Path("data/flanders"), help="where links to them are made")
    arguments = parser.parse_args()
    try:
        refuse_other_digests(digests(arguments.source), SUMS)
        for name in FOLDERS:
            link(arguments.out / name, arguments.source / name)
            print(f"{arguments.out / name} → {arguments.source / name}: as expected")
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

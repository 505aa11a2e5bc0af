"""Cut the cells of the BCCD blood smears out along their boxes, and list them with the smear that each came from.

python datasets/blood_cells/prepare.py --source FOLDER --out data/blood_cells
"""

import argparse
import csv
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from PIL import Image

from geomed.data.recipe import pixels_digest, refuse_other_digests

SUMS = Path(__file__).with_name("SHA256SUMS")
LEAST = 4
"""Sides of a box in pixels; two boxes of the whole set are smaller, drawn by accident."""


def boxes(annotation: Path) -> list[tuple[str, tuple[int, int, int, int]]]:
    """Name, and left, top, right and bottom, of each cell.

    Raises:
        ValueError: the file is no annotation.
    """
    try:
        root = ET.parse(annotation).getroot()  # noqa: S314  (the digests of what is cut out are compared)
        return [
            (cell.findtext("name", ""), tuple(int(cell.findtext(f"bndbox/{side}", "")) for side in SIDES))  # type: ignore[misc]
            for cell in root.iter("object")
        ]
    except (ET.ParseError, ValueError) as error:
        raise ValueError(f"{annotation.name}: it is no annotation of boxes ({error}); copy it again") from error


SIDES = ("xmin", "ymin", "xmax", "ymax")


def main() -> None:
    """Cut, list, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="the folder with images/ and annotations/")
    parser.add_argument("--out", type=Path, default=Path("data/blood_cells"), help="where crops and table are written")
    given = parser.parse_args()
    try:
        count = cut(given.source, given.out)
        refuse_other_digests({"crops": pixels_digest((given.out / "crops").glob("*.png"))}, SUMS)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{count} cells in {given.out}")


def cut(source: Path, out: Path) -> int:
    """Write crops and table, and count them.

    Raises:
        ValueError: there is no annotation, or no image to one.
    """
    (out / "crops").mkdir(parents=True, exist_ok=True)
    rows = []
    for annotation in sorted((source / "annotations").glob("*.xml")):
        path = source / "images" / f"{annotation.stem}.jpg"
        if not path.is_file():
            raise ValueError(f"{path.name}: the image of an annotation is missing; copy the folder again")
        with Image.open(path) as smear:
            for number, (name, (left, top, right, bottom)) in enumerate(boxes(annotation)):
                if min(right - left, bottom - top) < LEAST:
                    continue
                crop = f"crops/{annotation.stem}_{number:02d}.png"
                smear.crop((left, top, right, bottom)).convert("RGB").save(out / crop)
                rows.append({"path": crop, "cell": name, "smear": annotation.stem})
    if not rows:
        raise ValueError(f"{source}: there are no annotations in it; give the folder with images/ and annotations/")
    with (out / "cells.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["path", "cell", "smear"])
        table.writeheader()
        table.writerows(rows)
    return len(rows)


if __name__ == "__main__":
    main()

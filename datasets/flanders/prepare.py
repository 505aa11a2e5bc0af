"""Check the two Flanders series and link them.

python datasets/flanders/prepare.py --source FOLDER --out data/flanders
"""

import argparse
import hashlib
import sys
from pathlib import Path

from geomed.io.geotiff import GeoTiff

FOLDERS = ("flanders_2018", "flanders_2019_b")
SUMS = Path(__file__).with_name("SHA256SUMS")


def digest(files: list[Path]) -> str:
    """SHA-256 of names, types, shapes and decoded pixels of rasters, by name."""
    total = hashlib.sha256()
    for path in sorted(files):
        raster = GeoTiff.open(path)
        values = raster.read(raster.whole)
        total.update(f"{path.name} {values.dtype.name} {values.shape}\n".encode())
        total.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    return total.hexdigest()


def digests(source: Path) -> dict[str, str]:
    """Digest of the images, scene classifications and labels of each folder."""
    found = {}
    for name in FOLDERS:
        masks = set((source / name / "images").glob("*_SCL.tif"))
        images = set((source / name / "images").glob("*.tif")) - masks
        if not images:
            raise ValueError(f"{source / name / 'images'} holds no GeoTIFF; give --source the folder that holds {name}")
        found[f"{name}/images"] = digest(list(images))
        found[f"{name}/scl"] = digest(list(masks))
        found[f"{name}/labels"] = digest([source / name / "labels.tif"])
    return found


def main() -> None:
    """Compare the digests, then link the folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--source", type=Path, required=True, help="folder that holds flanders_2018 and flanders_2019_b"
    )
    parser.add_argument("--out", type=Path, default=Path("data/flanders"), help="where links to them are made")
    arguments = parser.parse_args()
    expected = dict(reversed(line.split()) for line in SUMS.read_text().splitlines())
    try:
        for name, found in digests(arguments.source).items():
            if expected[name] != found:
                raise ValueError(f"{name}: its pixels have the digest {found}, not {expected[name]}; copy it again")  # noqa: TRY301  (one way out for all errors)
            print(f"{name}: as expected")
    except ValueError as error:
        sys.exit(f"error: {error}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in FOLDERS:
        link = arguments.out / name
        if link.is_symlink():
            link.unlink()
        if link.exists():
            sys.exit(f"error: {link} is there already and no link; remove it or choose another --out")
        link.symlink_to((arguments.source / name).resolve(), target_is_directory=True)
        print(f"{link} → {arguments.source / name}")


if __name__ == "__main__":
    main()

"""Check images of BUSI, breast ultrasound, and link them, but for two that contradict each other.

python datasets/busi/prepare.py --source FOLDER --out data/busi
"""

import argparse
import hashlib
import sys
from pathlib import Path

from geomed.data.recipe import link, refuse_other_digests
from geomed.io.picture import read_picture

SUMS = Path(__file__).with_name("SHA256SUMS")
CONTRADICTORY = ("benign/benign_433.png", "malignant/malignant_145.png")
"""The same pixels with two labels: one of them is wrong, nobody says which."""


def listed() -> list[str]:
    """The images of which the recipe knows a digest: ``CLASS/CLASS_NUMBER.png``."""
    return [line.split(maxsplit=1)[1] for line in SUMS.read_text(encoding="ascii").splitlines()]


def find(folder: Path, name: str) -> Path:
    """An image by our name or by the published one, ``benign (1).png``.

    Raises:
        ValueError: there is neither.
    """
    label, _, number = Path(name).stem.rpartition("_")
    published = folder / label / f"{label} ({int(number)}).png"
    found = next((path for path in (folder / name, published) if path.is_file()), None)
    if found is None:
        raise ValueError(
            f"{name}: it is not there, nor {published.name}; give --source the folder of benign/ and others"
        )
    return found


def digest(path: Path) -> str:
    """SHA-256 of shape and decoded pixels: a PNG that was written again has other bytes."""
    values = read_picture(path).values
    return hashlib.sha256(f"{values.dtype.name} {values.shape}\n".encode() + values.tobytes()).hexdigest()


def main() -> None:
    """Compare the digests, then link the images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder that holds benign/, malignant/ and normal/")
    parser.add_argument("--out", type=Path, default=Path("data/busi"), help="where links are made")
    arguments = parser.parse_args()
    try:
        paths = {name: find(arguments.source, name) for name in listed()}
        refuse_other_digests({name: digest(path) for name, path in paths.items()}, SUMS)
        for name, path in paths.items():
            if name not in CONTRADICTORY:
                link(arguments.out / name, path)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{arguments.out}: {len(paths) - len(CONTRADICTORY)} images as expected; {len(CONTRADICTORY)} left out")


if __name__ == "__main__":
    main()

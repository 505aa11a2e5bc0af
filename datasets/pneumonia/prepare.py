"""Check a published, reduced file of PneumoniaMNIST, and write it with a test part that was not learned from.

python datasets/pneumonia/prepare.py --source pneumoniamnist.npz --out data/pneumonia
"""

import argparse
import hashlib
import sys
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from geomed.data.recipe import refuse_other_digests

SUMS = Path(__file__).with_name("SHA256SUMS")
NAMES = ("train_images", "train_labels", "val_images", "val_labels")
VAL_SHARE, SEED = 0.15, 0


def read(path: Path) -> dict[str, NDArray[np.uint8]]:
    """Images and labels of the file's train and val; its test stays closed.

    Raises:
        ValueError: the file is missing, damaged or another one.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in NAMES}
    except (OSError, KeyError, BadZipFile, ValueError) as error:
        raise ValueError(f"{path.name}: it cannot be read ({type(error).__name__}); give --source the npz") from error
    refuse_other_digests({name: digest(values) for name, values in arrays.items()}, SUMS)
    return arrays


def digest(values: NDArray[np.generic]) -> str:
    """SHA-256 of type, shape and numbers."""
    head = f"{values.dtype.name} {values.shape}\n".encode()
    return hashlib.sha256(head + np.ascontiguousarray(values).tobytes()).hexdigest()


def held_out(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Of each class the same share, drawn once."""
    random, chosen = np.random.default_rng(SEED), np.zeros(len(labels), dtype=np.bool_)
    for label in (0, 1):
        own = np.flatnonzero(labels.ravel() == label)
        chosen[random.permutation(own)[: round(VAL_SHARE * len(own))]] = True
    return chosen


def once(images: NDArray[np.uint8], elsewhere: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which images are the first of their kind, and not ``elsewhere`` as well."""
    seen = {image.tobytes() for image in elsewhere}
    fresh = np.zeros(len(images), dtype=np.bool_)
    for index, image in enumerate(images):
        fresh[index] = image.tobytes() not in seen
        seen.add(image.tobytes())
    return fresh


def main() -> None:
    """Compare the digests, then write the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="the npz")
    parser.add_argument("--out", type=Path, default=Path("data/pneumonia"), help="where pneumoniamnist.npz is written")
    arguments = parser.parse_args()
    try:
        arrays = read(arguments.source)
    except ValueError as error:
        sys.exit(f"error: {error}")
    fresh = once(arrays["train_images"], arrays["val_images"])
    images, labels = arrays["train_images"][fresh], arrays["train_labels"][fresh]
    val = held_out(labels)
    parts = {
        "train": (images[~val], labels[~val]),
        "val": (images[val], labels[val]),
        "test": (arrays["val_images"], arrays["val_labels"]),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    named = {
        f"{part}_{what}": values
        for part, both in parts.items()
        for what, values in zip(("images", "labels"), both, strict=True)
    }
    np.savez(arguments.out / "pneumoniamnist.npz", **named)
    print(
        f"{int((~fresh).sum())} images of train left out: they repeat another one, or one of the test, pixel by pixel"
    )
    for part, (_, found) in parts.items():
        print(f"{part}: {len(found)} images, {int(found.sum())} of pneumonia")


if __name__ == "__main__":
    main()

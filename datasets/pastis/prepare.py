"""Download PASTIS-R and check it: python datasets/pastis/prepare.py --root data/pastis."""

import argparse
import sys

from geomed.data.pastis import Pastis


def main() -> None:
    """Download unless told to check only, then check the head of every array."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default="data/pastis", help="folder that holds, or is to hold, PASTIS-R")
    parser.add_argument("--check", action="store_true", help="do not download, only check what is there")
    arguments = parser.parse_args()
    if not arguments.check:
        from torchgeo.datasets import PASTIS  # slow to import, and not needed to check

        print("downloading unless it is there; unpacking and the checksum take a while", flush=True)
        PASTIS(arguments.root, download=True, checksum=True)
    source = Pastis(root=arguments.root)
    try:
        source.prepare()
    except ValueError as error:
        sys.exit(f"error: {error}")
    for part in ("train", "val", "test"):
        print(f"{part}: {len(source.split(part))} windows of {source.window} x {source.window} pixels")


if __name__ == "__main__":
    main()

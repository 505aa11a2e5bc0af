"""Simulate the areas into a folder: python datasets/simulated_season/prepare.py --root data/simulated_season."""

import argparse
import time

from geomed.data.simulated_season import SimulatedSeason


def main() -> None:
    """Write what is missing, and say what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default="data/simulated_season", help="folder of the areas")
    parser.add_argument("--size", type=int, default=256, help="rows and columns of an area in pixels of 10 m")
    parser.add_argument("--shift", type=float, default=1.0, help="factor on the differences of regions and years")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    began = time.monotonic()

    def progress(area: str, done: int, total: int) -> None:
        print(f"\r{area}: {done} of {total} images", end="\n" if done == total else "", flush=True)

    try:
        source = SimulatedSeason(root=given.root, size=given.size, shift=given.shift, seed=given.seed)
        source.prepare(progress)
    except ValueError as error:
        parser.error(str(error))
    print(
        f"{', '.join(scene.name for scene in source.scenes())} are in {given.root} ({time.monotonic() - began:.0f} s)"
    )


if __name__ == "__main__":
    main()

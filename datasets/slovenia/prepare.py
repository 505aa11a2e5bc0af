"""Write the Slovenian EOPatch as GeoTIFFs: one for each of its five dates, its cloud mask, and the land use.

python datasets/slovenia/prepare.py --source FOLDER --out data/slovenia
"""

import argparse
import hashlib
import sys
import zipfile
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_bounds

SUMS = Path(__file__).with_name("SHA256SUMS")
BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
KEYS = ("ref_scenes", "ref_date_index", "dates", "clm", "lulc", "ndvi", "bbox", "epsg")


def read(path: Path) -> dict[str, NDArray]:
    """The arrays that are needed.

    Raises:
        ValueError: the file is missing, damaged or another one.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {key: stored[key] for key in KEYS}
    except (OSError, KeyError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: it must be the patch with {', '.join(KEYS)} ({error}); give --source the folder that holds it"
        ) from error
    total = hashlib.sha256()
    for key in KEYS:
        array = found[key]
        total.update(f"{key} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.tobytes())
    expected = SUMS.read_text().split()[0]
    if total.hexdigest() != expected:
        raise ValueError(f"{path}: its arrays have the digest {total.hexdigest()}, not {expected}; copy it again")
    return found


def numbers(scene: NDArray[np.float32], ndvi: NDArray[np.float32], date: str) -> NDArray[np.uint16]:
    """Reflectance [H, W, 13] as digital numbers [13, H, W].

    Raises:
        ValueError: the scene is not of this date, or no multiple of 1/10 000.
    """
    red, near = scene[..., BANDS.index("B04")], scene[..., BANDS.index("B08")]
    if np.abs((near - red) / (near + red) - ndvi).max() > 1e-6:
        raise ValueError(f"{date}: the NDVI of the scene is not that of the date; the patch is another one")
    found = np.rint(scene * 10_000)
    if np.abs(scene * 10_000 - found).max() > 0.01 or found.min() < 1:
        raise ValueError(f"{date}: reflectance must be a positive multiple of 1/10 000; the patch is another one")
    return found.astype(np.uint16).transpose(2, 0, 1)


def main() -> None:
    """Check the arrays, then write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder that holds patch.npz")
    parser.add_argument("--out", type=Path, default=Path("data/slovenia"), help="where the GeoTIFFs are written")
    arguments = parser.parse_args()
    images = arguments.out / "images"
    try:
        patch = read(arguments.source / "patch.npz")
        height, width = patch["lulc"].shape
        place = {
            "driver": "GTiff",
            "height": height,
            "width": width,
            "crs": f"EPSG:{int(patch['epsg'])}",
            "transform": from_bounds(*patch["bbox"].tolist(), width, height),
            "compress": "deflate",
        }
        images.mkdir(parents=True, exist_ok=True)
        for scene, index in zip(patch["ref_scenes"], patch["ref_date_index"], strict=True):
            date = str(patch["dates"][index])[:10]
            values = numbers(scene, patch["ndvi"][index], date)
            stem = f"S2_{date.replace('-', '')}"
            with rasterio.open(images / f"{stem}.tif", "w", count=13, dtype="uint16", nodata=0, **place) as file:
                file.write(values)
                file.descriptions = BANDS
            cloud = patch["clm"][index]
            with rasterio.open(images / f"{stem}_CLM.tif", "w", count=1, dtype="uint8", **place) as file:
                file.write(cloud, 1)
                file.set_band_description(1, "CLM")
            print(f"{images / stem}.tif: {cloud.mean():.0%} of it masked as cloud")
        with rasterio.open(arguments.out / "labels.tif", "w", count=1, dtype="uint8", **place) as file:
            file.write(patch["lulc"].astype(np.uint8), 1)
            file.set_band_description(1, "LULC")
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{arguments.out / 'labels.tif'}: written")


if __name__ == "__main__":
    main()

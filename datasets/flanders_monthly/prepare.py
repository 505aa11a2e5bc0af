"""Write the monthly Belgian cube as GeoTIFFs: one for each month that was observed, and the pseudo-labels.

python datasets/flanders_monthly/prepare.py --source FOLDER --out data/flanders_monthly

NetCDF is read by rasterio; its wheels hold the driver, no other package is needed.
"""

import argparse
import datetime as dt
import hashlib
import sys
import warnings
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError

SUMS = Path(__file__).with_name("SHA256SUMS")
CUBE = "worldcereal_preprocessed_inputs.nc"
MODEL = "worldcereal_cropland_classification.nc"
BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B11", "B12")
MISSING = 65535


def check(source: Path) -> None:
    """Compare the files with their digests.

    Raises:
        ValueError: a file is missing or another one.
    """
    for line in SUMS.read_text().splitlines():
        expected, name = line.split()
        path = source / name
        if not path.is_file():
            raise ValueError(f"{path} is missing; give --source the folder that holds it")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != expected:
            raise ValueError(f"{path}: it has the digest {found}, not {expected}; copy it again")


def northing(path: Path) -> NDArray[np.float64]:
    """Northing of the centre of each row, in metres, as stored.

    Raises:
        ValueError: the rows do not run from north to south.
    """
    with rasterio.open(f"netcdf:{path}:y") as file:
        found = file.read().ravel()
    if not (np.diff(found) < 0).all():
        raise ValueError(f"{path}: rows must run from north to south, y starts with {found[:2]}; turn the file over")
    return found


def months(file: rasterio.DatasetReader) -> list[dt.date]:
    """The 15th of the month of each band."""
    days = [int(file.tags(band)["NETCDF_DIM_t"]) for band in file.indexes]  # days since 1990-01-01
    return [(dt.date(1990, 1, 1) + dt.timedelta(days=day)).replace(day=15) for day in days]


def main() -> None:
    """Check the files, then write the rasters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help=f"folder that holds {CUBE} and {MODEL}")
    parser.add_argument(
        "--out", type=Path, default=Path("data/flanders_monthly"), help="where the GeoTIFFs are written"
    )
    arguments = parser.parse_args()
    # the y axis and the model's file have no transform of their own: rows are compared instead
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    try:
        check(arguments.source)
        # without this option GDAL turns the model's file over, whose y axis is not marked as one
        with rasterio.Env(GDAL_NETCDF_BOTTOMUP="NO"):
            write(arguments.source, arguments.out)
    except (ValueError, RasterioError) as error:
        sys.exit(f"error: {error}")


def write(source: Path, out: Path) -> None:
    """Write the images and the pseudo-labels.

    Raises:
        ValueError: the rows of the two files differ.
    """
    cube = source / CUBE
    layers = []
    for band in BANDS:
        with rasterio.open(f"netcdf:{cube}:S2-L2A-{band}") as file:
            layers.append(file.read())
            dates, grid = months(file), {"crs": file.crs, "transform": file.transform}
    values = np.stack(layers, axis=1)
    rows = northing(cube)
    top = grid["transform"] @ (0.5, 0.5)
    if top[1] != rows[0] or not np.array_equal(rows, northing(source / MODEL)):
        raise ValueError(f"{source}: the rows of the cube and of the model's map must be the same; copy both again")
    place = {"driver": "GTiff", "height": len(rows), "width": values.shape[-1], "compress": "deflate", **grid}
    images = out / "images"
    images.mkdir(parents=True, exist_ok=True)
    for date, image in zip(dates, values, strict=True):
        if (image == MISSING).all():
            print(f"{date:%Y-%m}: no observation, left out")
            continue
        path = images / f"S2_{date:%Y%m%d}.tif"
        with rasterio.open(path, "w", count=len(BANDS), dtype="uint16", nodata=0, **place) as file:
            file.write(np.where(image == MISSING, 0, image).astype(np.uint16))
            file.descriptions = BANDS
        print(f"{path}: written")
    with rasterio.open(source / MODEL) as file:
        told = file.read([1, 2]).astype(np.uint8)
    with rasterio.open(out / "labels.tif", "w", count=2, dtype="uint8", **place) as file:
        file.write(told)
        file.descriptions = ("classification", "probability")
    print(f"{out / 'labels.tif'}: pseudo-labels written")


if __name__ == "__main__":
    main()

"""Tiny look-alikes of real archives, written where a test wants them."""

import json
import warnings

import geopandas
import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.errors import NotGeoreferencedWarning
from shapely.geometry import box

GRID = GeoBox((40, 48), Affine(10, 0, 500_000, 0, -10, 5_600_000), "EPSG:32631")
BANDS = ("B02", "B04", "B08")
DATES = ("2021-03-05", "2021-05-14", "2021-07-23")
VEGETATION, CLOUD = 4, 9


def write_raster(path, values, grid=GRID, *, bands=(), nodata=None, units=None):
    """A GeoTIFF of values [C, H, W]; ``units`` is (scale, offset) as the file declares it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # some look-alikes have no place in the world
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=values.shape[1],
            width=values.shape[2],
            count=len(values),
            dtype=values.dtype.name,
            nodata=nodata,
            crs=None if grid.crs is None else str(grid.crs),
            transform=grid.affine,
        ) as file:
            file.write(values)
            for number, band in enumerate(bands, start=1):
                file.set_band_description(number, band)
            if units is not None:
                file.scales, file.offsets = [units[0]] * len(values), [units[1]] * len(values)
    return path


def numbers(date_index, shape=(40, 48), bands=3):
    """Digital numbers that tell band, date, row and column apart: 1000 b + 100 t + row + column + 1."""
    rows, columns = np.indices(shape)
    first = 1000 * np.arange(bands)[:, None, None] + 100 * date_index
    return (first + rows + columns + 1).astype(np.uint16)


def write_series(folder, *, dates=DATES, bands=BANDS, grid=GRID, scl=None):
    """A folder with one image and one scene classification for each date; ``scl`` gives [T, H, W], else all clear."""
    shape = grid.shape.yx
    for index, date in enumerate(dates):
        name = f"S2_{date.replace('-', '')}"
        write_raster(folder / f"{name}.tif", numbers(index, shape, len(bands)), grid, bands=bands, nodata=0)
        classes = np.full(shape, VEGETATION) if scl is None else scl[index]
        write_raster(folder / f"{name}_SCL.tif", classes[None].astype(np.uint8), grid, bands=("SCL",), nodata=0)
    return folder


def halves(shape=(40, 48), codes=(10, 20)):
    """Codes [1, H, W]: the first in the left half, the second in the right half."""
    values = np.full((1, *shape), codes[0], dtype=np.int16)
    values[:, :, shape[1] // 2 :] = codes[1]
    return values


def write_polygons(path, boxes, codes, *, grid=GRID, crs=None, column="crop"):
    """Rectangles (row, column, height, width) in pixels of a grid, with a code each."""
    outlines = []
    for row, left, height, width in boxes:
        west, north = grid.affine @ (left, row)
        east, south = grid.affine @ (left + width, row + height)
        outlines.append(box(west, south, east, north))
    frame = geopandas.GeoDataFrame({column: codes}, geometry=outlines, crs=str(grid.crs))
    path.parent.mkdir(parents=True, exist_ok=True)
    (frame if crs is None else frame.to_crs(crs)).to_file(path)
    return path


def write_pastis(root, *, folds=(1, 2, 3, 4, 5), dates=(20180924, 20181019, 20190103)):
    """The layout of PASTIS-R with one patch in each fold: [T, 10, 128, 128] images, three layers of labels."""
    archive = root / "PASTIS-R"
    for name in ("DATA_S2", "ANNOTATIONS"):
        (archive / name).mkdir(parents=True)
    features = []
    for fold in folds:
        patch = 10_000 + fold
        images = np.stack([numbers(t, (128, 128), 10).astype(np.int16) for t in range(len(dates))]) + fold
        np.save(archive / "DATA_S2" / f"S2_{patch}.npy", images)
        labels = np.zeros((3, 128, 128), dtype=np.uint8)
        labels[0, :, :64], labels[0, 100:, 100:] = 3, 19
        np.save(archive / "ANNOTATIONS" / f"TARGET_{patch}.npy", labels)
        west, south = 500_000 + 5_000 * fold, 5_000_000
        outline = geopandas.GeoSeries([box(west, south, west + 1280, south + 1280)], crs="EPSG:32631")
        geometry = json.loads(outline.to_crs("EPSG:2154").to_json())["features"][0]["geometry"]
        listed = {str(number): date for number, date in enumerate(dates)}
        properties = {"ID_PATCH": patch, "Fold": fold, "TILE": "t31tfm", "dates-S2": listed}
        features.append({"type": "Feature", "properties": properties, "geometry": geometry})
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::2154"}}
    (archive / "metadata.geojson").write_text(
        json.dumps({"type": "FeatureCollection", "crs": crs, "features": features})
    )
    return root


def write_scene(folder, *, grid=GRID, bands=BANDS, each=False, values=None):
    """One date in one file of all bands, or, with ``each``, in a file for each; numbers as ``numbers`` gives them."""
    values = numbers(0, grid.shape.yx, len(bands)) if values is None else values
    if not each:
        return write_raster(folder / "scene.tif", values, grid, bands=bands)
    for band, plane in zip(bands, values, strict=True):
        write_raster(folder / f"scene_{band}.tif", plane[None], grid)
    return folder / "scene_{band}.tif"


def write_terramesh_tiles(root):
    """The layout of the TerraMesh tiles: 13 and 12 bands without names, another UTM zone each, LULC codes."""
    corners = {"282D_485L_3_3": (790_236, 7_198_039, 32722), "38D_378R_2_3": (617_301, 9_625_098, 32736)}
    for number, (tile, (east, north, zone)) in enumerate(corners.items()):
        grid = GeoBox((40, 48), Affine(10, 0, east, 0, -10, north), f"EPSG:{zone}")
        write_raster(root / tile / "S2L1C.tif", (numbers(0, bands=13) + 1000 * (1 - number)).astype(np.int16), grid)
        write_raster(root / tile / "S2L2A.tif", numbers(0, bands=12).astype(np.int16), grid)
        write_raster(root / tile / "LULC.tif", halves(codes=((1, 9), (4, 9))[number]).astype(np.uint8), grid)
    return root


def write_rachel_carson(root):
    """The layout of the Rachel Carson scene: eight 8-bit files in degrees, polygons in metres of UTM."""
    grid = GeoBox((60, 70), Affine(9e-5, 0, -76.6, 0, -7.4e-5, 34.7), "EPSG:4326")
    values = (numbers(0, (60, 70), 8) % 251).astype(np.uint8)
    for number, plane in enumerate(values, start=1):
        write_raster(root / f"2018-10-13_S2B_L1C_B{number:02d}.tif", plane[None], grid)
    boxes = [(row, column, 6, 6) for row in (2, 12, 22, 32, 42, 52) for column in (2, 14, 26, 38, 50, 62)]
    codes = ["Sand", "WetSand", "Herbaceous"] * 12
    write_polygons(root / "landcover_polygons.gpkg", boxes, codes, grid=grid, crs="EPSG:32618", column="Classname")
    return root

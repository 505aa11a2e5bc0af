r"""Map satellite images of any size with a trained model, or with any network of your own.

python apps/tile_inference.py --model runs/crops --images 'scenes/*.tif' --out out/maps
python apps/tile_inference.py --simulate --out out/simulated     # a made-up scene and a network by hand: runs anywhere
"""

import argparse
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin

import geomed

BANDS = ("B04", "B08")


def greenness(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """A network by hand: logits of "bare" and "green", by the vegetation index around each pixel."""
    red, infrared = torch.nn.functional.avg_pool2d(batch["values"], 5, stride=1, padding=2).unbind(1)
    index = (infrared - red) / (infrared + red).clamp_min(1e-6)
    return torch.stack((0.4 - index, index - 0.4), 1) * 20


def simulated(folder: Path, side: int = 1500) -> str:
    """A scene of round fields, one corner without observations."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, columns = np.indices((side, side))
    green = (np.sin(rows / 60) * np.cos(columns / 45) > 0.2).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 0.02, (2, side, side))
    values = np.stack((0.25 - 0.2 * green, 0.3 + 0.25 * green)) + noise
    numbers = (values * 10_000).clip(1, 65_535).astype(np.uint16)
    numbers[:, :200, :300] = 0
    place = {"crs": "EPSG:32631", "transform": from_origin(500_000, 5_600_000, 10, 10), "nodata": 0}
    size = {"height": side, "width": side, "count": 2, "dtype": "uint16"}
    with rasterio.open(folder / "fields.tif", "w", driver="GTiff", tiled=True, **place, **size) as file:
        file.write(numbers)
        file.descriptions = BANDS
    return str(folder / "fields.tif")


def main() -> None:
    """Map, and say where the maps are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a run's folder, a checkpoint or an exported file")
    parser.add_argument("--images", nargs="+", help="files or patterns")
    parser.add_argument("--scale", type=float, help="value of one step of the numbers, where training does not tell")
    parser.add_argument("--offset", type=float, help="value of the number 0, likewise")
    parser.add_argument("--out", type=Path, default=Path("out/maps"), help="folder for the maps (default: %(default)s)")
    parser.add_argument("--simulate", action="store_true", help="map a made-up scene with a network by hand")
    given = parser.parse_args()
    if not given.simulate and None in (given.model, given.images):
        parser.error("give --model and --images, or --simulate")
    if given.simulate:
        given.images, given.scale, given.offset = [simulated(given.out / "scenes")], 1e-4, 0.0
        classes = ("bare", "green vegetation")
        model = geomed.MapModel(
            run=greenness, bands=BANDS, classes=classes, series=False, fingerprint="greenness, version 1", window=128
        )
        known = geomed.MapSettings(bands=BANDS, scale=given.scale, offset=given.offset)
    else:
        trained = geomed.load_model(given.model, device=torch.device("cpu"))
        model = trained.model
        known = geomed.MapSettings(
            bands=model.bands,
            series=model.series,
            scale=given.scale,
            offset=given.offset,
            trained=model.units,
            band_names=trained.band_names,
        )
    tiling = geomed.Tiling(size=model.window, overlap=model.window // 4)
    job = geomed.MapJob(
        tiling=tiling, layers=geomed.Layers(confidence=True), batch_size=8, also={"images": repr(known)}
    )
    summary = geomed.map_files(model, geomed.find_scenes(given.images, None, None, known), given.out, job=job)
    for name in summary.mapped + summary.before:
        print(given.out / f"{name}.tif")
    for name, reason in summary.failed.items():
        print(f"{name} failed: {reason}")


if __name__ == "__main__":
    main()

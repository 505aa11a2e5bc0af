"""How hard the simulated areas are: a small network on the mean spectra of fields, within an area and across.

python datasets/simulated_season/separability.py --root data/simulated_season [--shift 1] [--seed 0]

Each field becomes its clear-sky mean in each band, interpolated in time to every 15th day (no phase is removed, so a
shift of the season counts). Within an area: four folds of fields. Across: all fields of the first area. Few: that many
fields of each class of the last area, tested on its other fields, mean of three draws. Prints macro F1 over classes.
"""

import argparse
import datetime as dt
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import torch
from rasterio.features import rasterize

from geomed.data.simulated_season import SimulatedSeason

GRID = np.arange(45, 316, 15)


def fields(folder: Path, classes: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Features [fields, days * bands] and classes [fields]."""
    frame = geopandas.read_file(folder / "fields.gpkg")
    files = sorted(path for path in (folder / "images").glob("*.tif") if not path.stem.endswith("_SCL"))
    days, means = [], []
    for path in files:
        with rasterio.open(path) as file, rasterio.open(path.with_name(f"{path.stem}_SCL.tif")) as mask:
            shapes = list(zip(frame.geometry, range(len(frame)), strict=True))
            field = rasterize(shapes, file.shape, fill=-1, transform=file.transform, dtype="int32")
            values, clear = file.read() / 1e4, np.isin(mask.read(1), [4, 5]) & (field >= 0)
        count = np.bincount(field[clear], minlength=len(frame))
        sums = [np.bincount(field[clear], band[clear], minlength=len(frame)) for band in values]
        mean = np.stack(sums, axis=1) / np.maximum(count, 1)[:, None]
        mean[count < 8] = np.nan
        date = dt.datetime.strptime(path.stem[3:], "%Y%m%d").replace(tzinfo=dt.UTC)
        days.append(date.timetuple().tm_yday)
        means.append(mean)
    known = np.array(means)
    filled = np.empty((len(frame), len(GRID), known.shape[2]), dtype=np.float32)
    for index in np.ndindex(len(frame), known.shape[2]):
        seen = ~np.isnan(known[:, index[0], index[1]])
        filled[index[0], :, index[1]] = np.interp(GRID, np.array(days)[seen], known[seen, index[0], index[1]])
    return filled.reshape(len(frame), -1), np.array([classes.index(crop) for crop in frame.crop])


def predict(x: np.ndarray, y: np.ndarray, target: np.ndarray, classes: int) -> np.ndarray:
    """Train 64 hidden units on x, y and classify the target."""
    torch.manual_seed(0)
    mean, std = x.mean(0), x.std(0) + 0.02
    train, test = (torch.from_numpy((part - mean) / std) for part in (x, target))
    hidden = torch.nn.Linear(x.shape[1], 64)
    net = torch.nn.Sequential(hidden, torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(64, classes))
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        logits = net(train + 0.1 * torch.randn_like(train))
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(y)).backward()
        optimiser.step()
    with torch.no_grad():
        return net.eval()(test).argmax(1).numpy()


def macro_f1(truth: np.ndarray, said: np.ndarray) -> float:
    """Mean F1 over the classes that are in the truth."""
    pairs = [((truth == k), (said == k)) for k in np.unique(truth)]
    return float(np.mean([2 * (t & s).sum() / (t.sum() + s.sum()) for t, s in pairs]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data/simulated_season", help="folder of the areas; simulated if absent")
    parser.add_argument("--shift", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    source = SimulatedSeason(root=given.root, shift=given.shift, seed=given.seed)
    source.prepare()
    names, classes = [scene.name for scene in source.scenes()], len(source.classes)
    areas = [fields(source.folder(name), source.classes) for name in names]
    for name, (x, y) in zip(names, areas, strict=True):
        fold, said = np.random.default_rng(0).permutation(len(y)) % 4, np.zeros_like(y)
        for k in range(4):
            said[fold == k] = predict(x[fold != k], y[fold != k], x[fold == k], classes)
        print(f"within {name}: {macro_f1(y, said):.2f}")
    for name, (x, y) in zip(names[1:], areas[1:], strict=True):
        print(f"{names[0]} to {name}: {macro_f1(y, predict(*areas[0], x, classes)):.2f}")
    x, y = areas[-1]
    for few in (2, 5, 10):
        scores = []
        for draw in range(3):
            order = np.random.default_rng(draw).permutation(len(y))
            chosen = np.concatenate([order[y[order] == k][:few] for k in range(classes)])
            rest = np.setdiff1d(order, chosen)
            scores.append(macro_f1(y[rest], predict(x[chosen], y[chosen], x[rest], classes)))
        print(f"{few} fields of each class of {names[-1]}: {np.mean(scores):.2f}")


if __name__ == "__main__":
    main()

"""What the demo's report shows besides numbers: pictures of the place, seasons of the crops, areas."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import torch

from geomed.bands import PASTIS_BANDS
from geomed.demo.experiment import batches
from geomed.evaluation.comparison import CropArea, CropSeasons, Season
from geomed.pixels import day_of_year
from geomed.windows import Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from geomed.data.datamodule import DataModule
    from geomed.tasks.segmentation import Segmentation

BLUE, GREEN, RED, NIR = (PASTIS_BANDS.index(band) for band in ("B02", "B03", "B04", "B08"))


def samples(data: DataModule) -> Iterator[dict[str, Tensor]]:
    """The windows of a whole area, one by one."""
    for batch in batches(data, "predict"):
        for number in range(len(batch["values"])):
            yield {name: value[number] for name, value in batch.items()}


def _places(sample: dict[str, Tensor]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where the kept pixels go in the scene, and where they lie in the window."""
    keep, read = (Window(*sample[name].tolist()) for name in ("keep", "read"))
    return keep.slices, keep.within(read).slices


def labels(data: DataModule, shape: tuple[int, int]) -> np.ndarray:
    """Truth of a whole area, [H, W] class indices, 255 where none."""
    plane = np.full(shape, 255, np.uint8)
    for sample in samples(data):
        there, here = _places(sample)
        plane[there] = sample["labels"][here].numpy()
    return plane


@torch.no_grad()
def mapped(task: Segmentation, data: DataModule, shape: tuple[int, int]) -> np.ndarray:
    """Map of a whole area, [H, W] class indices."""
    plane = np.full(shape, 255, np.uint8)
    for batch in batches(data, "predict"):
        told = task.eval().predict_step(batch, 0)
        for number in range(len(told["scene"])):
            there, here = _places({name: value[number] for name, value in told.items()})
            plane[there] = told["classes"][number][here].numpy()
    return plane


def true_colour(data: DataModule, shape: tuple[int, int]) -> np.ndarray:
    """The clearest summer date of each window, [H, W, 3] uint8, stretched for the eye."""
    plane = np.zeros((*shape, 3), np.float32)
    clear: dict[int, int] = defaultdict(int)
    windows = list(samples(data))
    for sample in windows:
        for day, valid in zip(sample["days"].tolist(), sample["valid"], strict=True):
            clear[day] += int(valid.sum())
    summer = {day: seen for day, seen in clear.items() if 135 <= int(day_of_year(torch.tensor(day))) <= 200} or clear
    for sample in windows:
        there, here = _places(sample)
        seen = [(summer.get(day, -1), place) for place, day in enumerate(sample["days"].tolist())]
        colours = sample["values"][max(seen)[1], [RED, GREEN, BLUE]].permute(1, 2, 0)
        plane[there] = colours[here].numpy()
    low, high = np.percentile(plane, (1, 99))
    return (np.clip((plane - low) / max(high - low, 1e-6), 0, 1) ** 0.8 * 255).astype(np.uint8)


def seasons(source: DataModule, target: DataModule, classes: Sequence[str]) -> tuple[CropSeasons, ...]:
    """NDVI through the season of each crop that grows in both regions."""
    first, second = (_curves(data, len(classes)) for data in (source, target))
    return tuple(
        CropSeasons(crop=name, source=first[index], target=second[index])
        for index, name in enumerate(classes)
        if index in first and index in second
    )


def _curves(data: DataModule, classes: int) -> dict[int, Season]:
    found: dict[tuple[int, int], list[np.ndarray]] = defaultdict(list)
    for sample in samples(data):
        values = sample["values"]
        ndvi = (values[:, NIR] - values[:, RED]) / (values[:, NIR] + values[:, RED]).clamp(min=1e-3)
        for number, day in enumerate(day_of_year(sample["days"]).tolist()):
            seen = sample["valid"][number]
            for index in range(classes):
                chosen = ndvi[number][seen & (sample["labels"] == index)].numpy()
                if chosen.size:
                    found[index, day].append(chosen)
    curves = {}
    for index in range(classes):
        days = sorted(day for crop, day in found if crop == index and sum(map(len, found[crop, day])) >= 50)
        if len(days) < 2:
            continue
        pooled = [np.concatenate(found[index, day]) for day in days]
        lower, upper = np.array([np.percentile(one, (25, 75)) for one in pooled]).T
        mean = np.array([one.mean() for one in pooled])
        curves[index] = Season(days=np.array(days), mean=mean, lower=lower, upper=upper)
    return curves


def areas(truth: np.ndarray, after: np.ndarray, classes: Sequence[str], metres: float) -> tuple[CropArea, ...]:
    """Hectares of each crop by the labels and by the map, over the labelled pixels."""
    hectare = metres**2 / 10_000
    known = truth < len(classes)
    return tuple(
        CropArea(
            crop=name,
            truth=float((truth[known] == index).sum() * hectare),
            mapped=float((after[known] == index).sum() * hectare),
        )
        for index, name in enumerate(classes)
    )

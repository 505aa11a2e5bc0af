"""Does adapting help, and which adapter: every method on a few domain shifts, several seeds, the same budget.

    python benchmarks/adapters_quality.py [--shifts simulated ...] [--methods ...] [--seeds 3] [--steps 150]

Each shift has a base, a small ViT on composites of six periods, trained on all labels of a source domain, and few
labels of a target domain, in three kinds of blocks:

- simulated seasons: from the well-labelled north in 2021 to the south in 2022 with two labelled fields of each crop;
- a real one, small: from a patch of Flanders in 2018 to a quarter of another in 2019 (after
  datasets/flanders/prepare.py).

Every method trains the same number of steps with the same batches of a seed, AdamW and a cosine; its learning rate is
the one of four with the best mean macro F1 on the validation blocks over the seeds; reported is macro F1 on the test
blocks at that rate, which nothing was chosen by. The head starts from the base's and always trains. ``ppt`` is
V-PEFT Bench's M exp(-log10(P / 1e7 + 1)) of the mean, P without the head.
"""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
import json
import math
import os
import platform
import statistics
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from methods import Batch, Method, Training, methods  # the file beside this one
from torch import Tensor, nn
from tqdm import tqdm
from tsvit import processor  # likewise

from geomed import __version__
from geomed.adapters.counts import trainable
from geomed.backbones.inputs import Inputs
from geomed.backbones.vit import ViT, ViTSize
from geomed.data.area import Area, Labels, Legend
from geomed.data.sentinel2_series import Sentinel2Series
from geomed.data.simulated_season import SimulatedSeason
from geomed.evaluation.segmentation_scores import SegmentationScores
from geomed.evaluation.splits import ByArea, ByBlocks, ByYear, Split
from geomed.heads.linear import Linear
from geomed.pixels import IGNORE, Pixels
from geomed.tasks.optimisation import Optimisation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from geomed.data.source import Part, Source

RESULTS = Path(__file__).parent / "results" / "adapters_quality.json"
LAND = Path("data/adapters_quality")
FLANDERS = Path("data/flanders")
BASE_STEPS = 600
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
RATES_FULL = (3e-4, 1e-3, 3e-3, 1e-2)  # whole networks take lower rates than few parameters
BANDS = ("B03", "B04", "B08", "B11")
PERIODS = (60, 105, 150, 195, 240, 285, 330)  # bounds in days of the year
WINDOW = 16
FIELDS = 2
BATCH = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Images of one part of one domain, in memory."""

    values: Tensor
    """[N, C, H, W]."""

    labels: Tensor
    """[N, H, W], 255 where nothing is known."""

    def batches(self, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """So many batches, turned and mirrored at random; the same for the same seed."""
        drawn = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            chosen = torch.randint(len(self.values), (BATCH,), generator=drawn)
            turns, mirror = (int(torch.randint(high, (), generator=drawn)) for high in (4, 2))
            values, labels = self.values[chosen], self.labels[chosen]
            if mirror:
                values, labels = values.flip(-1), labels.flip(-1)
            yield values.rot90(turns, (-2, -1)), labels.rot90(turns, (-2, -1))


@dataclass(frozen=True, kw_only=True, eq=False)
class Shift:
    """A base and a target domain."""

    classes: tuple[str, ...]
    """Names."""

    network: Callable[[], nn.ModuleDict]
    """A backbone and a head as the source domain left them."""

    parts: dict[str, Images]
    """train, val and test of the target."""


def logits(network: nn.ModuleDict, values: Tensor) -> Tensor:
    """[B, K, H, W]."""
    pixels = Pixels(values=values)
    return network["head"](network["backbone"](pixels, depths=network["head"].depths), pixels.size)


def train(network: nn.ModuleDict, images: Images, *, lr: float, steps: int, seed: int) -> None:
    """A budget of steps."""
    network.train()
    chosen = Optimisation(lr=lr).configure([p for p in network.parameters() if p.requires_grad], steps)
    optimizer, schedule = chosen["optimizer"], chosen["lr_scheduler"]["scheduler"]
    for values, labels in images.batches(steps, seed):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits(network, values), labels, ignore_index=IGNORE).backward()
        optimizer.step()
        schedule.step()


@torch.inference_mode()
def score(network: nn.ModuleDict, images: Images, classes: tuple[str, ...]) -> float:
    """Macro F1."""
    network.eval()
    confusion = torch.zeros(len(classes), len(classes), dtype=torch.long)
    for values, labels in zip(images.values.split(64), images.labels.split(64), strict=True):
        known = labels != IGNORE
        pairs = labels[known] * len(classes) + logits(network, values).argmax(1)[known]
        confusion += pairs.bincount(minlength=len(classes) ** 2).view_as(confusion)
    return SegmentationScores.from_confusion(confusion, classes).macro_f1


def composites(source: Source, part: Part, side: int) -> Images:
    """Series → medians of each period, gaps filled from the nearest period with a view; cut windows are filled up."""
    values, labels = [], []
    for sample in source.split(part):
        days = torch.tensor([dt.date.fromordinal(719_163 + int(day)).timetuple().tm_yday for day in sample["days"]])
        views = torch.where(sample["valid"][:, None], sample["values"], torch.nan)
        medians = [
            views[(days >= low) & (days < high)].nanmedian(0).values
            if bool(((days >= low) & (days < high)).any())
            else torch.full_like(views[0], torch.nan)
            for low, high in itertools.pairwise(PERIODS)
        ]
        rows, columns = (side - length for length in sample["labels"].shape)
        values.append(F.pad(_filled(torch.stack(medians)).flatten(0, 1)[None], (0, columns, 0, rows), "replicate")[0])
        labels.append(F.pad(sample["labels"], (0, columns, 0, rows), value=IGNORE))
    return Images(values=torch.stack(values), labels=torch.stack(labels))


def _filled(periods: Tensor) -> Tensor:
    """[P, C, H, W] without NaN: the nearest period with a view, the earlier of two; 0 where no period has one."""
    found = periods.clone()
    for distance in range(1, len(periods)):
        for shift in (distance, -distance):
            other = periods.roll(shift, 0)
            (other[:shift] if shift > 0 else other[shift:]).fill_(torch.nan)
            found = torch.where(found.isnan(), other, found)
    return found.nan_to_num(0.0)


SIZE = ViTSize(dim=64, depth=4, heads=4, patch=2)


def shift_between(base: Source, target: Source, size: ViTSize, *, side: int) -> Shift:
    """Train a small ViT with a linear head on all labels of one source; its target is another."""
    images = composites(base, "train", side)
    names = [f"{band}, period {period + 1}" for period in range(len(PERIODS) - 1) for band in base.bands]
    inputs = partial(Inputs, names, images.values.mean((0, 2, 3)).tolist(), images.values.std((0, 2, 3)).tolist())

    def fresh() -> nn.ModuleDict:
        backbone = ViT("vit_tiny_patch16_224", inputs=inputs(), image_size=side, size=size)
        return nn.ModuleDict({"backbone": backbone, "head": Linear(backbone.spec, len(base.classes))})

    torch.manual_seed(0)
    trained = fresh()
    train(trained, images, lr=2e-3, steps=BASE_STEPS, seed=0)
    state = trained.state_dict()

    def network() -> nn.ModuleDict:
        made = fresh()
        made.load_state_dict(state)
        return made

    parts: tuple[Part, ...] = ("train", "val", "test")
    return Shift(classes=base.classes, network=network, parts={part: composites(target, part, side) for part in parts})


def simulated() -> Shift:
    """From the north in 2021 to the south in 2022, with a few labelled fields."""
    settings = {"root": str(LAND), "bands": BANDS, "window": WINDOW}
    base = SimulatedSeason(**settings, by=ByArea(train=("north-2021",), test=("north-2022",)))
    base.prepare()
    by = ByBlocks(size=64, buffer=16, fractions=(0.375, 0.25, 0.375), areas=("south-2022",), seed=0)
    return shift_between(base, SimulatedSeason(**settings, by=by, fields_per_class=FIELDS), SIZE, side=WINDOW)


def flanders() -> Shift:
    """From a real patch of Flanders in 2018 to a quarter of another in 2019, by 20 m pixels."""

    def source(by: Split) -> Source:
        areas = tuple(
            Area(
                name=name,
                images=f"{FLANDERS}/{name}/images",
                labels=Labels(path=f"{FLANDERS}/{name}/labels.tif", band="CT"),
                season=(f"{year}-01-01", f"{year}-11-30"),
            )
            for name, year in (("flanders_2018", 2018), ("flanders_2019_b", 2019))
        )
        crops = {"grass": [9120], "maize": [1200], "potato": [5100], "cereals": [1110, 1120, 1500, 1510, 1910]}
        legend = Legend(classes=crops, ignore=[0, 9998, 2130, 7900])
        bands = ("B05", "B06", "B07", "B8A", "B11", "B12")
        return Sentinel2Series(bands=bands, resolution=20, window=8, areas=areas, legend=legend, by=by)

    by = ByBlocks(areas=("flanders_2019_b",), size=8, buffer=2, fractions=(0.25, 0.25, 0.5), seed=12)
    size = ViTSize(dim=64, depth=4, heads=4, patch=1)
    return shift_between(source(ByYear(train=(2018,), test=(2019,))), source(by), size, side=8)


SHIFTS: dict[str, Callable[[], Shift]] = {
    "simulated, another region and year": simulated,
    "flanders, another place and year": flanders,
}


def training(network: nn.ModuleDict, images: Images) -> Training:
    """For methods that look at gradients before they choose."""

    def loss(batch: Batch) -> Tensor:
        return F.cross_entropy(logits(network, batch["values"]), batch["labels"], ignore_index=IGNORE)

    def batches() -> Iterator[Batch]:
        for values, labels in images.batches(16, seed=0):
            yield {"values": values, "labels": labels}

    return Training(loss=loss, batches=batches, head=network["head"])


def run(shift: Shift, method: Method, *, lr: float, steps: int, seed: int) -> dict[str, float]:
    """One training."""
    torch.manual_seed(seed)
    network = shift.network()
    if method.name == SCRATCH:
        for module in network.modules():
            if isinstance(module, (nn.Linear, nn.LayerNorm, nn.Conv2d)):
                module.reset_parameters()
        nn.init.trunc_normal_(network["backbone"].stem.pos_embed, std=0.02)
    method.attach(network["backbone"], training(network, shift.parts["train"]))
    count = trainable(network["backbone"])
    began = time.process_time()
    train(network, shift.parts["train"], lr=lr, steps=steps, seed=seed)
    took = time.process_time() - began
    found = {part: score(network, shift.parts[part], shift.classes) for part in ("val", "test")}
    return {"lr": lr, "seed": seed, "parameters": count, "seconds": round(took, 2)} | found


SCRATCH = "From scratch"


def compare(name: str, chosen: list[Method], known: dict[str, Any], *, steps: int, seeds: int) -> dict[str, object]:
    """All methods on one shift; ``known`` runs are not made again."""
    shift = SHIFTS[name]()
    base = shift.network()
    rows: dict[str, dict[str, object]] = {}
    result: dict[str, object] = {
        "backbone_parameters": sum(p.numel() for p in base["backbone"].parameters()),
        "labelled_training_pixels": int((shift.parts["train"].labels != IGNORE).sum()),
        "test_pixels": int((shift.parts["test"].labels != IGNORE).sum()),
        "unadapted": {part: score(base, shift.parts[part], shift.classes) for part in ("val", "test")},
        "methods": rows,
    }
    for method in tqdm(chosen, desc=name):
        rates = RATES_FULL if method.everything else RATES
        before = {(one["lr"], one["seed"]): one for one in known.get(method.name, {}).get("runs", [])}
        runs = [
            before.get((lr, seed)) or run(shift, method, lr=lr, steps=steps, seed=seed)
            for lr in rates
            for seed in range(seeds)
        ]
        at = {lr: [one for one in runs if one["lr"] == lr] for lr in rates}
        best = max(rates, key=lambda lr: statistics.mean(one["val"] for one in at[lr]))
        tests = [one["test"] for one in at[best]]
        mean, count = statistics.mean(tests), at[best][0]["parameters"]
        rows[method.name] = {
            "parameters": count,
            "lr": best,
            "test_macro_f1_mean": mean,
            "test_macro_f1_sd": statistics.stdev(tests) if seeds > 1 else None,
            "ppt": mean * math.exp(-math.log10(count / 1e7 + 1)),
            "runs": runs,
        }
    return result


def table(name: str, result: dict[str, object]) -> str:
    """Best first."""
    unadapted = result["unadapted"]
    lines = [f"{name}: macro F1 on the test part; unadapted {unadapted['test']:.3f}"]
    rows = sorted(result["methods"].items(), key=lambda pair: -pair[1]["test_macro_f1_mean"])
    for method, row in rows:
        told = f"{row['test_macro_f1_mean']:.3f} +- {row['test_macro_f1_sd'] or 0:.3f}"
        lines.append(f"  {method:<28}{row['parameters']:>10,}  {told}  PPT {row['ppt']:.3f}  lr {row['lr']:g}")
    return "\n".join(lines)


def main() -> None:
    """Compare on every shift and write results/adapters_quality.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shifts", nargs="+", default=list(SHIFTS), choices=list(SHIFTS))
    parser.add_argument("--methods", nargs="+", help="names, default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--resume", action="store_true", help="keep the runs that --out holds already")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    every = [m for m in methods(SIZE.dim) if m.name != "One input vector"]
    every.append(Method(name=SCRATCH, everything=True))
    chosen = [method for method in every if given.methods is None or method.name in given.methods]
    report: dict[str, object] = {
        "command": f"python benchmarks/adapters_quality.py --seeds {given.seeds} --steps {given.steps}",
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "threads_used": 1, "accelerator": "none"},
        "versions": {"geomed": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "steps": given.steps,
        "batch": BATCH,
        "rates": {"adapters and head": RATES, "whole networks": RATES_FULL},
        "shifts": {},
    }
    before = json.loads(given.out.read_text()) if given.resume else {"steps": given.steps, "shifts": {}}
    if before["steps"] != given.steps:
        parser.error(f"{given.out} holds runs of {before['steps']} steps, not {given.steps}; leave out --resume")
    for name in given.shifts:
        known = before["shifts"].get(name, {}).get("methods", {})
        result = compare(name, chosen, known, steps=given.steps, seeds=given.seeds)
        report["shifts"][name] = result
        print(table(name, result), flush=True)
        given.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

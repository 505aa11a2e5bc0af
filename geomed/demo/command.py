"""The command `geomed demo`."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import platform
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from geomed.demo.experiment import FIELDS_PER_CLASS, METHODS, SOURCE, TARGET, Experiment, Outcome, batches, confusions
from geomed.demo.scenery import areas, labels, mapped, seasons, true_colour
from geomed.evaluation.comparison import Maps, Row
from geomed.evaluation.report import Report, write_report
from geomed.evaluation.segmentation_scores import SegmentationScores, bootstrap_macro_f1
from geomed.io.geotiff import write_map
from geomed.palette import palette

if TYPE_CHECKING:
    from collections.abc import Sequence

NOTES = (
    (
        "The land, its crops and its clouds are simulated: the page shows that the tools work, not what they reach in "
        "your region."
    ),
    (
        "One split and one seed. The interval resamples windows of the test blocks; it does not hold the spread "
        "between training runs."
    ),
    (
        "The best adapter is chosen on the validation blocks, which are labelled too and few: it need not be the best "
        "on the test blocks. Learning rates were set beforehand on land of another seed."
    ),
)


def main(arguments: Sequence[str]) -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="geomed demo", description=__doc__, epilog="geomed demo scans is about patients in place of land."
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for everything it writes (default: out)")
    parser.add_argument("--seed", type=int, default=0, help="of land, weights and order (default: 0)")
    parser.add_argument("--fast", action="store_true", help="a small area and few steps: only to see that it runs")
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", module=r"lightning\..*")  # advice about its own settings, for each of nine runs
    for name in ("lightning.pytorch", "lightning.fabric", "pyogrio"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)  # so small a model gains nothing from a second, and loses 16-fold where the cores are busy
    given.out.mkdir(parents=True, exist_ok=True)
    whole = Experiment(folder=given.out, seed=given.seed)
    small = Experiment(folder=given.out, seed=given.seed, epochs=(1, 1), size=192)
    _run(small if given.fast else whole, f"geomed demo --out {given.out.name}")
    return 0


def _run(experiment: Experiment, command: str) -> None:
    began = time.perf_counter()
    print("1  two regions, two years of Sentinel-2, simulated", flush=True)
    experiment.simulate()
    print(f"2  train TSViT on {SOURCE}", flush=True)
    base = experiment.pretrain()
    classes = base.task.classes
    home = SegmentationScores.from_confusion(np.sum(base.test, 0), classes)
    print(f"   {home.macro_f1:.1%} macro F1 in the same region a year later, after {base.seconds:.0f} s", flush=True)
    print(f"3  adapt it to {TARGET} with {FIELDS_PER_CLASS} labelled fields of each crop", flush=True)
    unadapted = _unadapted(experiment, base)
    _tell(unadapted, head=True)
    outcomes = []
    for method in METHODS:
        outcomes.append(experiment.adapt(method))
        _tell(_row(outcomes[-1], experiment.seed))
    rows = {outcome.method.name: _row(outcome, experiment.seed) for outcome in outcomes}
    adapters = [outcome for outcome in outcomes if outcome.method.adapters]
    best = max(adapters, key=lambda one: SegmentationScores.from_confusion(_val(one), classes).macro_f1)
    print(f"4  map {TARGET} with {best.method.name}, the best adapter on the validation blocks", flush=True)
    _write(experiment, command, base, unadapted, rows, best)
    folder = experiment.folder
    print(
        f"   {folder / 'map.tif'}\n   {folder / 'adapter.safetensors'}\n   {folder / 'metrics.json'}\n"
        f"   {folder / 'report.html'}   <- open this\ndone in {time.perf_counter() - began:.0f} s"
    )


def _val(outcome: Outcome) -> np.ndarray:
    if outcome.val is None:
        raise ValueError(f"{outcome.method.name} was not judged on validation blocks; choose among adapted models")
    return outcome.val


def _unadapted(experiment: Experiment, base: Outcome) -> Row:
    matrices = confusions(base.task, experiment.target(), "test")
    scores = SegmentationScores.from_confusion(np.sum(matrices, 0), base.task.classes)
    interval = bootstrap_macro_f1(matrices, seed=experiment.seed)
    return Row(
        name="Unadapted",
        trained_parameters=0,
        trained_share=0.0,
        macro_f1=scores.macro_f1,
        accuracy=scores.accuracy,
        iou=scores.macro_iou,
        interval=interval,
        note=f"trained on {SOURCE} only",
    )


def _row(outcome: Outcome, seed: int) -> Row:
    scores = SegmentationScores.from_confusion(np.sum(outcome.test, 0), outcome.task.classes)
    return Row(
        name=outcome.method.name,
        trained_parameters=outcome.trained,
        trained_share=outcome.trained / outcome.total,
        macro_f1=scores.macro_f1,
        accuracy=scores.accuracy,
        iou=scores.macro_iou,
        seconds=outcome.seconds,
        adapter_bytes=outcome.size,
        interval=bootstrap_macro_f1(outcome.test, seed=seed),
    )


def _tell(row: Row, *, head: bool = False) -> None:
    if head:
        print(f"   {'method':<17} {'trained':>9} {'share':>7} {'macro F1':>9} {'95 %':>14} {'time':>6} {'file':>9}")
    low, high = row.interval or (float("nan"), float("nan"))
    seconds = "" if row.seconds is None else f"{row.seconds:.0f} s"
    size = "" if row.adapter_bytes is None else f"{row.adapter_bytes / 1000:.1f} kB"
    share = f"{row.trained_share:.1%}"
    print(
        f"   {row.name:<17} {row.trained_parameters:>9,} {share:>7} {row.macro_f1:>9.1%} "
        f"{f'{low:.1%} – {high:.1%}':>14} {seconds:>6} {size:>9}",
        flush=True,
    )


def _write(
    experiment: Experiment, command: str, base: Outcome, unadapted: Row, rows: dict[str, Row], best: Outcome
) -> None:
    """Map, adapter, metrics and report."""
    classes, folder = base.task.classes, experiment.folder
    target, source = experiment.whole(TARGET), experiment.whole(SOURCE)
    batches(target, "predict")
    scene = next(one for one in target.source.scenes() if one.name == TARGET)
    shape = (scene.grid.shape.y, scene.grid.shape.x)
    metres = abs(scene.grid.affine.a)
    truth = labels(target, shape)
    before, after = mapped(base.task, target, shape), mapped(best.task, target, shape)
    write_map(folder / "map.tif", after, scene.grid, names=classes, colours=palette(classes))
    made = folder / "adapters" / f"{best.method.name.lower().replace(' ', '-')}.safetensors"
    (folder / "adapter.safetensors").write_bytes(made.read_bytes())
    full, scratch = rows["Full fine-tuning"], rows["From scratch"]
    methods = tuple(row for name, row in rows.items() if name not in {full.name, scratch.name})
    confusion_before = _target_confusion(experiment, base)
    metrics = {
        "seed": experiment.seed,
        "best": best.method.name,
        "rows": [_plain(row) for row in (unadapted, *rows.values())],
        "per_class": SegmentationScores.from_confusion(np.sum(best.test, 0), classes).to_dict(),
        "versions": versions(),
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    chosen = rows[best.method.name]
    report = Report(
        title=f"Crops of {TARGET}, from a model of {SOURCE}",
        summary=(
            f"A TSViT was trained on the labelled fields of {SOURCE} and adapted to {TARGET}, another region and year, "
            f"with {FIELDS_PER_CLASS} labelled fields of each crop. {best.method.name} reaches "
            f"{chosen.macro_f1:.1%} macro F1 on blocks that it never saw, where the unadapted model reaches "
            f"{unadapted.macro_f1:.1%} and full fine-tuning {full.macro_f1:.1%}."
        ),
        command=command,
        rows=methods,
        best=best.method.name,
        unadapted=unadapted,
        scratch=scratch,
        full=full,
        classes=classes,
        confusion_before=confusion_before,
        confusion_after=np.sum(best.test, 0),
        source=SOURCE,
        target=TARGET,
        maps=Maps(true_colour=true_colour(target, shape), truth=truth, before=before, after=after, metres=metres),
        seasons=seasons(source, target, classes),
        areas=areas(truth, after, classes, metres),
        facts=_facts(experiment, truth, len(classes)),
        versions=versions(),
        notes=NOTES,
        simulated=True,
    )
    write_report(folder / "report.html", report)


def _target_confusion(experiment: Experiment, base: Outcome) -> np.ndarray:
    total: np.ndarray = np.sum(confusions(base.task, experiment.target(), "test"), 0)
    return total


def _plain(row: Row) -> dict[str, object]:
    return {
        "name": row.name,
        "trained_parameters": row.trained_parameters,
        "trained_share": row.trained_share,
        "macro_f1": row.macro_f1,
        "interval_95": row.interval,
        "accuracy": row.accuracy,
        "macro_iou": row.iou,
        "seconds": row.seconds,
        "adapter_bytes": row.adapter_bytes,
    }


def _facts(experiment: Experiment, truth: np.ndarray, classes: int) -> dict[str, str]:
    target = experiment.target()
    target.setup("fit")
    dates = {int(day) for batch in batches(experiment.whole(TARGET), "predict") for day in batch["days"].unique()}
    few = target.parts["train"]
    labelled = sum(int((few[number]["labels"] < classes).sum()) for number in range(len(few)))  # type: ignore[arg-type]
    return {
        "Area": f"{truth.shape[0]} x {truth.shape[1]} pixels of 10 m",
        "Dates with a clear view": str(len(dates - {0})),
        "Labelled for adaptation": f"{FIELDS_PER_CLASS} fields of each crop, {labelled:,} pixels",
        "Labelled in all": f"{int((truth < classes).sum()):,} pixels",
    }


def versions() -> dict[str, str]:
    """Of what the demo ran with."""
    packages = ("geomed", "torch", "lightning", "rasterio", "numpy")
    found = {name: importlib.metadata.version(name) for name in packages if _installed(name)}
    return {
        "python": platform.python_version(),
        **found,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True

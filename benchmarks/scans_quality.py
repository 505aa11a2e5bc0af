"""Real sets of scans, from their configs: every method on the same split, several seeds, beside a small CNN.

    python benchmarks/scans_quality.py [--sets busi pneumonia blood_cells] [--seeds 3]

After the ``prepare.py`` of each set in ``datasets/``. Each run is ``geomed fit`` and ``geomed test`` of
``configs/SET_METHOD.yaml``; the seed is that of weights, order and augmentation, the split stays. Rates and epochs
stand in the configs and were not searched. The bases are the networks learned on busi (for pneumonia) and on pneumonia
(for the others), in the same run of this script.

``seeds`` holds what ``metrics.json`` of each run says, with 95 % intervals by bootstrap; no patients are known in any
of the sets, so that these are of images and too narrow. ``against_cnn``: the answers of all seeds are averaged
(logits), and the two averages compared on the same test images: difference of AUROC, paired bootstrap, permutation
test. Nothing is adjusted for the number of comparisons. A run that is there already is not repeated.
"""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tsvit import processor  # the file beside this one

from geomed import __version__
from geomed.cli import main as geomed
from geomed.evaluation.bootstrap import Bootstrap
from geomed.evaluation.paired_difference import compare
from geomed.evaluation.roc import AUROC
from geomed.evaluation.single_label import SingleLabel

if TYPE_CHECKING:
    from collections.abc import Sequence

RESULTS = Path(__file__).parent / "results" / "scans_quality.json"
RUNS = Path("runs")
SETS = ("busi", "pneumonia", "blood_cells")
METHODS = ("vit_scratch", "vit_full", "vit_lora", "vit_dvpt", "vit_probe", "cnn")
"""The first is the base of the other sets'."""

TOLD = ("AUROC", "balanced accuracy")
TIME = "time.json"


def run(config: str, seed: int) -> Path:
    """Fit and test unless that was done; the folder of the run."""
    folder = RUNS / (config if seed == 0 else f"{config}_seed{seed}")
    if (folder / TIME).is_file() and (folder / "metrics.json").is_file():
        return folder
    options = ["--config", f"configs/{config}.yaml", f"--seed_everything={seed}", f"--data.seed={seed}"]
    options += [f"--trainer.default_root_dir={folder}", "--trainer.enable_progress_bar=false"]
    began = time.process_time()
    if geomed(["fit", *options]):
        sys.exit(f"error: geomed fit of {config} failed")
    took = time.process_time() - began
    if geomed(["test", *options]):
        sys.exit(f"error: geomed test of {config} failed")
    (folder / TIME).write_text(json.dumps({"fit_cpu_s": round(took, 1)}))
    return folder


def row(folders: list[Path]) -> dict[str, Any]:
    """What the runs of one method say."""
    found = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    setup = json.loads((folders[0] / "evaluation" / "setup.json").read_text())
    seeds = [{name: one["overall"][name] for name in TOLD} | {"calibration": one["calibration"]} for one in found]
    values = {name: [one["overall"][name]["value"] for one in found] for name in TOLD}
    values |= {name: [one["calibration"][name] for one in found] for name in ("ece_before", "ece_after")}
    took = [json.loads((folder / TIME).read_text())["fit_cpu_s"] for folder in folders]
    return {
        "trained": setup["model"]["trained"],
        "parameters": setup["model"]["parameters"],
        "fit_cpu_s": statistics.median(took),
        "test_openings": [one["test_openings"] for one in found],
        **{
            name: {"mean": statistics.fmean(each), "sd": statistics.stdev(each) if len(each) > 1 else None}
            for name, each in values.items()
        },
        "seeds": seeds,
    }


def averaged(folders: list[Path]) -> SingleLabel:
    """The answers to the test images, logits averaged over runs."""
    tables = []
    for folder in folders:
        with (folder / "evaluation" / "cases.csv").open(encoding="utf-8") as file:
            tables.append([line for line in csv.DictReader(file) if line["part"] == "test"])
    classes = json.loads((folders[0] / "evaluation" / "setup.json").read_text())["classes"]
    logits = np.mean([[[float(line[f"logit_{name}"]) for name in classes] for line in one] for one in tables], axis=0)
    return SingleLabel.from_logits(
        logits,
        classes=classes,
        truth=np.array([int(line["truth"]) for line in tables[0]]),
        cases=[line["case"] for line in tables[0]],
        patients=None,
        part="test",
    )


def against(first: SingleLabel, second: SingleLabel) -> dict[str, Any]:
    """The second's AUROC over the first's, on the same images."""
    (found,) = compare(first, second, [AUROC()], bootstrap=Bootstrap(seed=0))
    return found.to_dict()


def main() -> None:
    """Run everything and write results/scans_quality.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {
        "command": f"python benchmarks/scans_quality.py --sets {' '.join(given.sets)} --seeds {given.seeds}",
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "threads_used": 1, "load": os.getloadavg()},
        "versions": {"geomed": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "sets": {},
    }
    for name in ("busi", "pneumonia"):  # the bases of both
        run(f"{name}_{METHODS[0]}", 0)
    for seed in range(given.seeds):
        for name in given.sets:
            for method in given.methods:
                run(f"{name}_{method}", seed)
            report["sets"][name] = summary(name, given.methods, seed + 1)
            print(table(name, report["sets"][name]["methods"]), flush=True)
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def summary(name: str, methods: Sequence[str], seeds: int) -> dict[str, Any]:
    """All methods on one set, of so many seeds."""
    folders = {method: [run(f"{name}_{method}", seed) for seed in range(seeds)] for method in methods}
    setup = json.loads((next(iter(folders.values()))[0] / "evaluation" / "setup.json").read_text())
    told = {
        "data": setup["data"],
        "split": setup["split"],
        "methods": {name: row(each) for name, each in folders.items()},
    }
    if "cnn" in folders:
        baseline = averaged(folders["cnn"])
        others = {method: averaged(each) for method, each in folders.items() if method != "cnn"}
        told["against_cnn"] = {method: against(baseline, each) for method, each in others.items()}
    return told


def table(name: str, rows: dict[str, dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds."""
    columns = (*TOLD, "ece_before", "ece_after")
    lines = [f"{name:<14}{'trained':>12}" + "".join(f"{column:>20}" for column in columns)]
    for method, found in rows.items():
        cells = [f"{found[one]['mean']:.3f} ± {found[one]['sd'] or 0:.3f}" for one in columns]
        lines.append(f"{method:<14}{found['trained']:>12,}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()

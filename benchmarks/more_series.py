"""Blocks of one patch learned from nothing: macro F1 of one config over several seeds, beside the majority class.

python benchmarks/more_series.py --config configs/slovenia_tsvit_scratch.yaml --out benchmarks/results/slovenia.json

The seeds change the first weights, the order and the augmentation; the blocks of train and test stay as the config
says.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import json
import os
import platform
import statistics
import time
from pathlib import Path

from real_series import geomed_command, processor  # the script beside this one

KEPT = ("macro_f1", "macro_iou", "accuracy", "kappa")


def main() -> None:
    """Run one config for all seeds and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error(f"--seeds must be at least 1, not {arguments.seeds}; give 3 for a spread")
    runs = []
    for seed in range(arguments.seeds):
        run, supports = _run(arguments.config, seed)
        runs.append(run)
        print(f"seed {seed}  macro F1 {run['macro_f1']:.3f}  fit {run['fit_seconds']:.0f} s", flush=True)
    baseline = _majority(supports)
    values = [run["macro_f1"] for run in runs]
    mean, spread = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None
    report = {
        "command": f"python benchmarks/more_series.py --config {arguments.config} --out {arguments.out}"
        f" --seeds {arguments.seeds}",
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "accelerator": "none",
        },
        "versions": {name: importlib.metadata.version(name) for name in ("geomed", "torch", "lightning", "rasterio")}
        | {"python": platform.python_version()},
        "test_pixels": supports,
        "results": {
            "from scratch": {"macro_f1_mean": mean, "macro_f1_sd": spread, "runs": runs},
            "majority class": baseline,
        },
    }
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    spread_text = "" if spread is None else f" +- {spread:.3f}"
    print(f"from scratch    {mean:.3f}{spread_text}")
    print(f"majority class  {baseline['macro_f1']:.3f}  ({baseline['class']})")


def _run(config: Path, seed: int) -> tuple[dict[str, object], dict[str, int]]:
    """Train and test with one seed in processes of their own: scores, and labelled test pixels by class."""
    folder = Path("runs/more_series") / f"{config.stem}-{seed}"
    options = ["--config", str(config), "--seed_everything", str(seed), "--data.seed", str(seed)]
    options += ["--trainer.default_root_dir", str(folder)]
    began = time.perf_counter()
    geomed_command("fit", options)
    seconds = time.perf_counter() - began
    geomed_command("test", [*options, "--ckpt_path", "last"])
    told = json.loads((folder / "metrics.json").read_text())
    f1 = {name: row["f1"] for name, row in told["per_class"].items()}
    run = {"seed": seed, **{key: told[key] for key in KEPT}, "f1": f1, "fit_seconds": seconds}
    return run, {name: row["support"] for name, row in told["per_class"].items()}


def _majority(supports: dict[str, int]) -> dict[str, object]:
    """Scores of the answer that is everywhere the most frequent class of the test part."""
    name = max(supports, key=lambda one: supports[one])
    accuracy = supports[name] / sum(supports.values())
    return {"class": name, "macro_f1": 2 * accuracy / (1 + accuracy) / len(supports), "accuracy": accuracy}


if __name__ == "__main__":
    main()

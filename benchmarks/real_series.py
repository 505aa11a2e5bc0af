"""Crops of a real patch, year and place apart from the one that was learned: macro F1 over several seeds.

python datasets/flanders/prepare.py --source FOLDER --out data/flanders
python benchmarks/real_series.py --seeds 3

Trains on one patch of Flanders (2018) and tests on another (2019): unadapted on the whole patch, then, on half of its
blocks, unadapted, adapted by LoRA and class tokens, fully fine-tuned, and trained from nothing on the other half.
Writes benchmarks/results/real_series.json.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

CASES = {
    "unadapted, whole patch": ("source", True),
    "unadapted": ("lora", False),
    "LoRA and class tokens": ("lora", True),
    "full fine-tuning": ("full", True),
    "from scratch": ("scratch", True),
}
RUNS = Path("runs/real_series")


def main() -> None:
    """Run all cases for all seeds and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    found: dict[str, list[dict[str, object]]] = {name: [] for name in CASES}
    for seed in seeds:
        for name, (config, fit) in CASES.items():
            found[name].append(_case(config, seed, fit=fit))
            print(f"seed {seed}  {name:<24} macro F1 {found[name][-1]['macro_f1']:.3f}", flush=True)
    summary = {}
    for name, runs in found.items():
        values = [float(run["macro_f1"]) for run in runs]
        spread = statistics.stdev(values) if len(values) > 1 else None
        summary[name] = {"macro_f1_mean": statistics.mean(values), "macro_f1_sd": spread, "runs": runs}
    report = {
        "command": f"python benchmarks/real_series.py --seeds {len(seeds)}",
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "accelerator": "none"},
        "versions": {name: importlib.metadata.version(name) for name in ("geomed", "torch", "lightning", "rasterio")}
        | {"python": platform.python_version()},
        "results": summary,
    }
    Path("benchmarks/results/real_series.json").write_text(json.dumps(report, indent=2) + "\n")
    for name, row in summary.items():
        print(f"{name:<24} {row['macro_f1_mean']:.3f} +- {row['macro_f1_sd'] or 0:.3f}")


def _case(config: str, seed: int, *, fit: bool) -> dict[str, object]:
    """Train and test one config with one seed in processes of their own."""
    folder = RUNS / f"{config}-{seed}" if fit else RUNS / f"unadapted-{seed}"
    options = ["--config", f"configs/flanders_tsvit_{config}.yaml", "--seed_everything", str(seed)]
    options += ["--trainer.default_root_dir", str(folder), "--data.seed", str(seed)]
    if config in {"lora", "full"}:
        options += ["--model.weights.path", str(RUNS / f"source-{seed}/checkpoints/last.ckpt")]
    began = time.perf_counter()
    if fit:
        geomed_command("fit", options)
    seconds = time.perf_counter() - began
    geomed_command("test", [*options, *(["--ckpt_path", "last"] if fit else [])])
    told = json.loads((folder / "metrics.json").read_text())
    kept = {key: told[key] for key in ("macro_f1", "macro_iou", "accuracy", "kappa")}
    return {"seed": seed, **kept, "f1": {n: c["f1"] for n, c in told["per_class"].items()}, "fit_seconds": seconds}


def geomed_command(command: str, options: list[str]) -> None:
    """Run a geomed command in a process of its own; its error ends this one."""
    done = subprocess.run(  # noqa: S603  (our own command line)
        [sys.executable, "-m", "geomed.cli", command, *options], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"geomed {command} {' '.join(options)} failed:\n{done.stderr[-2000:]}")


def processor() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()

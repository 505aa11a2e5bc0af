"""The command `geomed demo scans`: a model of one site, adapted to two others with few labelled patients."""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from geomed.data.simulated_cohort import SimulatedCohort
from geomed.demo.command import versions
from geomed.demo.scans_experiment import AWAY, HOME, METHODS, Amounts, Experiment, Outcome, referral
from geomed.evaluation.bootstrap import Bootstrap
from geomed.evaluation.calibration import CalibrationError
from geomed.evaluation.markup import write_page
from geomed.evaluation.roc import AUROC
from geomed.evaluation.temperature import Temperature
from geomed.report.command import report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geomed.data.datamodule import DataModule
    from geomed.evaluation.interval import Estimate
    from geomed.evaluation.single_label import SingleLabel

SMALL = Amounts(home=24, away=24, labelled=0.3, epochs=(1, 1), draws=100)
"""Only to see that it runs."""

NOTES = (
    "The patients are simulated: this shows that the tools work, not what they reach on yours.",
    "One split and one seed. Intervals resample test patients; they do not hold the spread between training runs.",
    "Learning rates were set beforehand on patients of another seed.",
)


def main(arguments: Sequence[str]) -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="geomed demo scans", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for everything it writes (default: out)")
    parser.add_argument("--seed", type=int, default=0, help="of patients, weights and order (default: 0)")
    parser.add_argument("--fast", action="store_true", help="few patients and steps: only to see that it runs")
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", module=r"lightning\..*")  # advice about its own settings, for each of six runs
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)  # so small a model gains nothing from a second
    given.out.mkdir(parents=True, exist_ok=True)
    _run(Experiment(folder=given.out, seed=given.seed, amounts=SMALL if given.fast else Amounts()))
    return 0


def _run(experiment: Experiment) -> None:
    began = time.perf_counter()
    home, away = experiment.home(), experiment.away()
    names = " and ".join(site.name for site in AWAY)
    print(f"1  retinas of {HOME.name}, {names}, simulated", flush=True)
    pictures = sum(map(_prepare, (home, away)))
    print(f"   {pictures} pictures, a patient has 1 to 4")
    print(f"2  train a small ViT to grade at {HOME.name}", flush=True)
    base, at_home, seconds = experiment.pretrain()
    unseen = Bootstrap(seed=experiment.seed, draws=experiment.amounts.draws)
    print(f"   AUROC of referral {_auroc(at_home, unseen).text()} in other patients there, after {seconds:.0f} s")
    counts = {part: len(away.source.split(part)) for part in ("train", "val", "test")}  # type: ignore[arg-type]
    people = {part: _patients(away, part) for part in counts}
    print(
        f"3  adapt it to {names}: learn from {people['train']} patients ({counts['train']} pictures), choose with "
        f"{people['val']}, report on {people['test']}",
        flush=True,
    )
    away.setup("test")
    before = referral(base, away, "test")
    print(f"   {'method':<17} {'trained':>9}  {'AUROC':<22} {'ECE raw':>8} {'scaled':>7} {'time':>6} {'file':>9}")
    print(f"   {'Unadapted':<17} {0:>9}  {_auroc(before, unseen).text():<22} {_ece(before):>8.3f}", flush=True)
    rows: list[dict[str, object]] = []
    outcomes: list[Outcome] = []
    for method in METHODS:
        outcomes.append(experiment.adapt(method, experiment.away()))
        rows.append(_row(outcomes[-1], unseen))
        _tell(outcomes[-1], rows[-1], _auroc(outcomes[-1].test, unseen))
    adapters = [outcome for outcome in outcomes if outcome.method.adapters]
    best = max(adapters, key=lambda one: AUROC().of(one.val))
    print(f"4  one page; {best.method.name} is the better adapter on the validation patients", flush=True)
    folder = experiment.folder
    (folder / "adapter.safetensors").write_bytes((best.run / "adapter.safetensors").read_bytes())
    metrics = {
        "seed": experiment.seed,
        "chosen": best.method.name,
        "home": _auroc(at_home, unseen).to_dict(),
        "unadapted": _auroc(before, unseen).to_dict() | {"ece": _ece(before)},
        "methods": rows,
        "notes": NOTES,
        "versions": versions(),
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    write_page(folder / "report.html", report([one.run for one in outcomes], draws=experiment.amounts.draws))
    print(_verdict(outcomes))
    print(
        f"   {folder / 'adapter.safetensors'}\n   {folder / 'metrics.json'}\n"
        f"   {folder / 'report.html'}   <- open this\ndone in {time.perf_counter() - began:.0f} s"
    )


def _prepare(data: DataModule) -> int:
    source = data.source
    if not isinstance(source, SimulatedCohort):
        raise ValueError("the demo reads a simulated cohort")  # noqa: TRY004  (a rule, not a type)
    with tqdm(desc="simulating", unit="picture", leave=False) as line:
        source.prepare(lambda _: line.update())
    return len(source.cases)


def _patients(data: DataModule, part: str) -> int:
    source = data.source
    if not isinstance(source, SimulatedCohort):
        raise ValueError("the demo reads a simulated cohort")  # noqa: TRY004  (likewise)
    return len({source.cases[index].patient for index in source.division.part(part)})


def _auroc(said: SingleLabel, bootstrap: Bootstrap) -> Estimate:
    return bootstrap.estimates(said, [AUROC()])[0]


def _ece(said: SingleLabel) -> float:
    return float(CalibrationError().of(said))


def _row(outcome: Outcome, bootstrap: Bootstrap) -> dict[str, object]:
    temperature = Temperature.fit(outcome.val)
    return {
        "name": outcome.method.name,
        "trained_parameters": outcome.trained,
        "auroc": _auroc(outcome.test, bootstrap).to_dict(),
        "ece": _ece(outcome.test),
        "temperature": temperature.value,
        "ece_scaled": float(CalibrationError().of(temperature.apply(outcome.test))),
        "seconds": outcome.seconds,
        "adapter_bytes": outcome.size,
    }


def _tell(outcome: Outcome, row: dict[str, object], auroc: Estimate) -> None:
    size = "" if outcome.size is None else f"{outcome.size / 1000:.1f} kB"
    time_taken = f"{outcome.seconds:.0f} s"
    print(
        f"   {outcome.method.name:<17} {outcome.trained:>9,}  {auroc.text():<22} {row['ece']:>8.3f} "
        f"{row['ece_scaled']:>7.3f} {time_taken:>6} {size:>9}",
        flush=True,
    )


def _verdict(outcomes: Sequence[Outcome]) -> str:
    """Which is first on the test patients, adapter or not."""
    reached = {one.method.name: float(AUROC().of(one.test)) for one in outcomes}
    first = max(reached, key=lambda name: reached[name])
    adapters = [one.method.name for one in outcomes if one.method.adapters]
    beaten = [name for name in adapters if reached[name] <= reached["Linear probe"]]
    told = f"   highest AUROC on the test patients: {first}"
    return told + (f"; {' and '.join(beaten)} did not beat the linear probe" if beaten else "")

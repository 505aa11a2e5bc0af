"""Time and memory of TSViT, beside the released code where a checkout of it is named.

    python benchmarks/tsvit.py [--reference PATH] [--rounds 7]

CPU: one thread, CPU time of the process, ours and the reference in turn after a warm-up, the same weights and inputs.
A training step is forward, mean cross-entropy, backward. Memory: each case in a process of its own, the peak resident
set of two training steps (VmHWM of Linux, which starts anew with each program) above what it is with the model and its
input ready. With ``lengths`` each series has 33 to 61 dates, drawn once, the longest cut to 60 as the released loader
does; the reference reads all padded to 60, ours is told which dates are valid.

With a CUDA device also images per second of training steps in bfloat16 autocast, eager and compiled.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import types
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geomed import __version__
from geomed.backbones.inputs import Inputs
from geomed.backbones.tsvit import TSViT, TSViTSize
from geomed.backbones.weights import from_released_tsvit, load_all
from geomed.bands import PASTIS_BANDS
from geomed.heads.class_tokens import ClassTokens
from geomed.pixels import Pixels

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path(__file__).parent / "results" / "tsvit.json"
SIDE = 24
NEW_YEAR = 11_322  # 2000-12-31 in days since 1970-01-01: day d of 2001 is NEW_YEAR + d


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    batch: int = 2
    """Series."""

    dates: int = 60
    """Dates of each, padding counted."""

    classes: int = 19
    """Class tokens."""

    dim: int = 128
    """Width of a token, in four heads."""

    lengths: bool = False
    """Whether the series have lengths of their own."""


CASES = {
    "pastis": Case(),
    "tsvit_s": Case(dim=64),
    "t16": Case(dates=16, classes=20),
    "lengths": Case(batch=4, lengths=True),
}

# The released code on one thread of another machine (Xeon at 2.5 GHz, CPU seconds; training step as MiB above import):
# for a first impression where no checkout is at hand.
KNOWN = {
    "pastis": {"forward_s": 1.07, "step_s": 2.62, "step_mib": 2_200 - 641},
    "tsvit_s": {"forward_s": 0.55, "step_s": 1.28, "step_mib": 1_733 - 641},
    "t16": {"forward_s": 0.54, "step_s": 1.38, "step_mib": 1_581 - 641},
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network and its input."""

    network: nn.Module
    """What trains."""

    logits: Callable[[], Tensor]
    """Forward, to [B, K, H, W]."""

    labels: Tensor
    """Classes [B, H, W]."""

    def forward(self) -> Tensor:
        """Without gradients."""
        with torch.no_grad():
            return self.logits()

    def step(self) -> None:
        """Forward, loss, backward."""
        self.network.zero_grad(set_to_none=True)
        F.cross_entropy(self.logits(), self.labels).backward()


def series(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values [B, T, C, H, W], days of the year [B, T], valid [B, T] and labels [B, H, W], always the same."""
    made = torch.Generator().manual_seed(0)
    values = torch.randn(case.batch, case.dates, 10, SIDE, SIDE, generator=made)
    days = torch.linspace(3, 350, case.dates).long().repeat(case.batch, 1)
    labels = torch.randint(case.classes, (case.batch, SIDE, SIDE), generator=made)
    valid = torch.ones(case.batch, case.dates, dtype=torch.bool)
    if case.lengths:
        lengths = torch.randint(33, 62, (case.batch, 1), generator=made).clamp(max=case.dates)
        valid = torch.arange(case.dates)[None] < lengths
    return torch.where(valid[..., None, None, None], values, 0), torch.where(valid, days, 0), valid, labels


def ours(case: Case, device: str, *, padding: bool = False) -> Subject:
    """This package's TSViT; ``padding`` makes it read padded dates, as the reference does."""
    size = TSViTSize(dim=case.dim, head_dim=case.dim // 4)
    backbone = TSViT(
        inputs=Inputs(PASTIS_BANDS, [0.0] * 10, [1.0] * 10), num_classes=case.classes, size=size, attend_padding=padding
    )
    model = nn.ModuleDict({"backbone": backbone, "head": ClassTokens(backbone.spec, order="reference")}).to(device)
    values, days, valid, labels = (each.to(device) for each in series(case))
    pixels = Pixels(values=values, days=days + NEW_YEAR, valid=valid if case.lengths else None)
    return Subject(
        network=model, logits=lambda: model["head"](model["backbone"](pixels), (SIDE, SIDE)), labels=labels.to(device)
    )


def reference(case: Case, device: str, checkout: Path) -> Subject:
    """The released TSViT of github.com/michaeltrs/DeepSatModels (measured at commit 782f736).

    Raises:
        ValueError: it is not there.
    """
    if not (checkout / "models" / "TSViT" / "TSViTdense.py").is_file():
        raise ValueError(f"{checkout}: --reference must name a checkout of DeepSatModels, with models/TSViT in it")
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
        for name in ("models", "models.TSViT"):  # their __init__ would import every model of that repository
            package = types.ModuleType(name)
            package.__path__ = [str(checkout / name.replace(".", "/"))]
            sys.modules[name] = package
    from models.TSViT.TSViTdense import TSViT as Released

    network = Released(
        {
            "img_res": SIDE, "patch_size": 2, "num_classes": case.classes, "num_channels": 11,
            "max_seq_len": case.dates, "dim": case.dim, "heads": 4, "dim_head": case.dim // 4, "temporal_depth": 4,
            "spatial_depth": 4, "dropout": 0.0, "emb_dropout": 0.0, "scale_dim": 4, "pool": "cls",
        }
    ).to(device)  # fmt: skip
    values, days, _, labels = series(case)
    day = ((days + 0.25) / 365.0001).float()[..., None, None, None].expand(*values.shape[:2], 1, SIDE, SIDE)
    x = torch.cat((values, day), 2).permute(0, 1, 3, 4, 2).contiguous().to(device)
    return Subject(network=network, logits=lambda: network(x), labels=labels.to(device))


def same_weights(own: Subject, released: Subject) -> None:
    """Give ours the reference's weights."""
    buffers = dict(own.network.named_buffers())
    load_all(own.network, {**from_released_tsvit(released.network.state_dict()), **buffers}, where="the reference")


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU time of this process, in all its threads."""
    start = time.process_time()
    function()
    return time.process_time() - start


def in_turn(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, object]:
    """Median CPU seconds of each, and how many times the reference's ours is, round by round."""
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            seconds[name].append(cpu_seconds(function))
    found: dict[str, object] = {f"{name}_s": round(statistics.median(each), 4) for name, each in seconds.items()}
    if "reference" in seconds:
        pairs = [theirs / own for own, theirs in zip(seconds["ours"], seconds["reference"], strict=True)]
        found["ratio_of_medians"] = round(
            statistics.median(seconds["reference"]) / statistics.median(seconds["ours"]), 3
        )
        found["pairs_lowest_median_highest"] = [round(f(pairs), 3) for f in (min, statistics.median, max)]
    return found


def difference(case: Case, checkout: Path) -> float:
    """Largest difference of the logits from the reference's, on the same weights and reading the same padding."""
    released, own = reference(case, "cpu", checkout), ours(case, "cpu", padding=True)
    same_weights(own, released)
    return float((own.forward() - released.forward()).abs().max())


def peak_mib() -> float:
    """Highest resident set of this process so far."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split(maxsplit=1)[0]) / 1024


def memory(subject: Subject) -> dict[str, float]:
    """MiB of two training steps, above what the process held before them."""
    before = peak_mib()
    subject.step()
    subject.step()
    return {"before_mib": round(before), "step_mib": round(peak_mib() - before)}


def memory_elsewhere(name: str, who: str, checkout: Path | None) -> dict[str, float]:
    """`memory` in a process of its own."""
    command = [sys.executable, __file__, "--memory", name, who]
    command += [] if checkout is None else ["--reference", str(checkout)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)  # noqa: S603  (ourselves)
    return json.loads(told.stdout.splitlines()[-1])


def on_cpu(name: str, checkout: Path | None, rounds: int) -> dict[str, object]:
    """One case."""
    case = CASES[name]
    subjects = {"ours": ours(case, "cpu")}
    found: dict[str, object] = {"case": asdict(case)}
    if case.lengths:
        found["dates_of_each"] = series(case)[2].sum(1).tolist()
    if checkout is not None:
        subjects["reference"] = reference(case, "cpu", checkout)
        same_weights(subjects["ours"], subjects["reference"])
        found["largest_difference"] = difference(case, checkout)
    found["parameters"] = {who: sum(p.numel() for p in each.network.parameters()) for who, each in subjects.items()}
    found["forward"] = in_turn({who: each.forward for who, each in subjects.items()}, rounds)
    found["step"] = in_turn({who: each.step for who, each in subjects.items()}, rounds)
    if sys.platform == "linux":
        sizes = {who: memory_elsewhere(name, who, checkout) for who in subjects}
        found["memory"] = {**sizes}
        if checkout is not None:
            found["memory_ratio"] = round(sizes["ours"]["step_mib"] / sizes["reference"]["step_mib"], 3)
    if name in KNOWN:
        found["reference_on_another_machine"] = KNOWN[name]
    return found


def images_per_second(subject: Subject, batch: int, steps: int = 10) -> dict[str, float]:
    """Training steps in bfloat16 autocast, after three to warm up."""

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            subject.step()

    for _ in range(3):
        step()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    rate = steps * batch / (time.perf_counter() - start)
    return {"images_per_second": round(rate, 1), "peak_mib": round(torch.cuda.max_memory_allocated() / 2**20)}


def on_gpu(checkout: Path | None) -> dict[str, object]:
    """PASTIS's configuration at batch 16 and at the largest power of two that fits."""

    def compiled(case: Case) -> Subject:
        plain = ours(case, "cuda")
        return Subject(network=plain.network, logits=torch.compile(plain.logits), labels=plain.labels)

    kinds: dict[str, Callable[[Case], Subject]] = {"ours": lambda case: ours(case, "cuda"), "ours_compiled": compiled}
    if checkout is not None:
        kinds["reference"] = lambda case: reference(case, "cuda", checkout)
    found: dict[str, object] = {"device": torch.cuda.get_device_name()}
    for name, kind in kinds.items():
        batch, rates = 16, {}
        while True:
            torch.cuda.empty_cache()
            try:
                rates[batch] = images_per_second(kind(Case(batch=batch)), batch)
            except torch.cuda.OutOfMemoryError:
                break
            batch *= 2
        found[name] = {size: rates[size] for size in rates if size in {16, max(rates)}}
    return found


def processor() -> str:
    """Its model, where Linux tells it."""
    if sys.platform != "linux":
        return platform.processor()
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Measure, print, and write benchmarks/results/tsvit.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="a checkout of github.com/michaeltrs/DeepSatModels")
    parser.add_argument("--rounds", type=int, default=7, help="times each is timed")
    parser.add_argument(
        "--memory", nargs=2, metavar=("CASE", "WHO"), help="only the memory of one case, in this process"
    )
    given = parser.parse_args()
    if given.rounds < 1:
        parser.error(f"--rounds must be positive, not {given.rounds}")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if given.memory:
        name, who = given.memory
        subject = ours(CASES[name], "cpu") if who == "ours" else reference(CASES[name], "cpu", given.reference)
        print(json.dumps(memory(subject)))
        return
    results: dict[str, object] = {
        "command": "python benchmarks/tsvit.py" + (" --reference PATH" if given.reference else "")
        + f" --rounds {given.rounds}",
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "threads_used": 1},
        "versions": {"geomed": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }  # fmt: skip
    for name in CASES:
        results[name] = on_cpu(name, given.reference, given.rounds)
        print(name, json.dumps(results[name], indent=2), flush=True)
    if torch.cuda.is_available():
        results["gpu"] = on_gpu(given.reference)
        print(json.dumps(results["gpu"], indent=2))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"written: {RESULTS.relative_to(Path.cwd()) if RESULTS.is_relative_to(Path.cwd()) else RESULTS.name}")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)

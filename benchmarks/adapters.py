"""What every adapter costs: parameters, training step, kept activations, peak memory, file, inference.

    python benchmarks/adapters.py [--models ...] [--methods ...] [--rounds 5] [--batch 2]

One backbone with random weights; each method is attached, measured and detached in turn, round after round, beside
three floors: the frozen backbone with a trained linear head, the same with a single trained vector at its input (what
any method pays whose gradients reach the first block), and full fine-tuning. One thread, CPU seconds of the process.
A step is forward, cross-entropy of a linear head on the mean patch token, backward; no optimiser.

Memory: in a process of its own, in which freed memory goes back at once. Kept: what is resident between forward and
backward over what was before; peak: the highest resident set of the whole step over the same. The file is an adapter
file without a head. ``ppt_factor`` is exp(-log10(P / 1e7 + 1)), with which V-PEFT Bench multiplies a score (scores:
adapters_quality.py).

With the package peft installed, its LoRA on timm's own model is measured in the same rounds. With a CUDA device, also
ViT-L/14 at 512 pixels in bfloat16 autocast: steps in milliseconds and peak memory of the device.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import datetime as dt
import gc
import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
import torch.nn.functional as F
from methods import Batch, Method, Training, methods  # the file beside this one
from torch import Tensor, nn
from tqdm import tqdm
from tsvit import processor  # likewise

from geomed import __version__
from geomed.adapters.adapter import adapted_modules, adapter_state, detach, merge
from geomed.adapters.files import save_adapter
from geomed.backbones.inputs import Inputs
from geomed.backbones.vit import ViT
from geomed.pixels import Pixels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

RESULTS = Path(__file__).parent / "results" / "adapters.json"
MODELS = {"vit_base_patch16_224": 224, "vit_small_patch14_reg4_dinov2": 224}
LARGE = ("vit_large_patch14_dinov2", 512)
CLASSES = 100
PEFT = {"peft: LoRA, fused qkv": ("qkv",), "peft: LoRA, all linears": ("qkv", "attn.proj", "fc1", "fc2")}
HEAD, VECTOR = "Frozen, linear head", "One input vector"


class Subject:
    """A backbone with a linear head, and images for it."""

    def __init__(self, model: str, size: int, batch: int, device: str = "cpu") -> None:
        """Random weights and random images, always the same."""
        torch.manual_seed(0)
        inputs = Inputs(("red", "green", "blue"), [0.5] * 3, [0.25] * 3)
        self.backbone: nn.Module = ViT(model, inputs=inputs, image_size=size - size % 14 if "14" in model else size)
        self.backbone.to(device).train()
        self.head = nn.Linear(self.backbone.spec.dim, CLASSES).to(device)
        side = size - size % self.backbone.spec.patch
        self.images = torch.rand(batch, 3, side, side, device=device)
        self.labels = torch.arange(batch, device=device) % CLASSES

    def features(self) -> Tensor:
        """The mean patch token [B, D]."""
        return self.backbone(Pixels(values=self.images))[0].patches().mean(1)

    def step(self) -> None:
        """Forward, loss, backward."""
        for parameter in (*self.backbone.parameters(), *self.head.parameters()):
            parameter.grad = None
        F.cross_entropy(self.head(self.features()).float(), self.labels).backward()

    def training(self) -> Training:
        """For methods that look at gradients before they choose."""

        def loss(batch: Batch) -> Tensor:
            tokens = self.backbone(Pixels(values=batch["values"]))[0]
            return F.cross_entropy(self.head(tokens.patches().mean(1)), batch["labels"])

        batch = {"values": self.images, "labels": self.labels}
        return Training(loss=loss, batches=lambda: [batch], head=self.head)

    def forward(self) -> None:
        """Without gradients, as in inference."""
        with torch.inference_mode():
            self.features()


class PeftSubject(Subject):
    """timm's own model with a LoRA of the package peft."""

    def __init__(self, like: Subject, model: str, targets: tuple[str, ...]) -> None:
        """The same weights, images and head as ``like``."""
        from peft import LoraConfig, inject_adapter_in_model

        torch.manual_seed(0)
        plain = timm.create_model(model, num_classes=0, global_pool="avg", img_size=like.images.shape[-1]).train()
        pattern = r"blocks\.\d+\.(?:attn|mlp)\.(?:" + "|".join(name.rpartition(".")[2] for name in targets) + ")"
        self.backbone = inject_adapter_in_model(LoraConfig(r=8, lora_alpha=8, target_modules=pattern), plain)
        self.head, self.images, self.labels = like.head, like.images, like.labels

    def features(self) -> Tensor:
        """The mean patch token [B, D]."""
        return self.backbone((self.images - 0.5) / 0.25)


def others(like: Subject, model: str) -> dict[str, Subject]:
    """The package peft on the same weights and images, where it is installed."""
    if importlib.util.find_spec("peft") is None:
        print("peft is not installed: its LoRA is left out", file=sys.stderr)
        return {}
    return {name: PeftSubject(like, model, targets) for name, targets in PEFT.items()}


def seconds(work: Callable[[], None]) -> float:
    """CPU seconds of the process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def trained(module: nn.Module) -> int:
    """Parameters that train."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def spread(values: Iterable[float]) -> dict[str, float]:
    """Lowest, median, highest."""
    values = list(values)
    found = zip(("lowest", "median", "highest"), (min(values), statistics.median(values), max(values)), strict=True)
    return {name: round(value, 4) for name, value in found}


def facts(subject: Subject, method: Method) -> dict[str, object]:
    """What does not depend on the clock."""
    attached = method.attach(subject.backbone, subject.training())
    count = trained(subject.backbone)
    row: dict[str, object] = {
        "parameters": count,
        "share": count / sum(p.numel() for p in subject.backbone.parameters() if p.requires_grad == method.everything),
        "ppt_factor": round(math.exp(-math.log10(count / 1e7 + 1)), 4),
    }
    if adapter_state(subject.backbone):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.safetensors"
            row["file_bytes"] = save_adapter(path, subject.backbone, attached)
        row["mergeable"] = all(module.mergeable for module in adapted_modules(subject.backbone))
    detach(subject.backbone)
    return row


def measure(model: str, size: int, *, methods: list[Method], batch: int, rounds: int) -> dict[str, object]:
    """All methods on one backbone, in turn."""
    subject = Subject(model, size, batch)
    rows = {method.name: facts(subject, method) for method in tqdm(methods, desc=f"{model}: facts")}
    steps: dict[str, list[float]] = {method.name: [] for method in methods}
    forwards: dict[str, list[float]] = {name: [] for name in steps}
    merged: dict[str, list[float]] = {name: [] for name in steps}
    rivals = others(subject, model)
    for name, rival in rivals.items():
        rows[name] = {"parameters": trained(rival.backbone)}
        steps[name], forwards[name] = [], []
    subject.step()
    for _ in tqdm(range(rounds), desc=f"{model}: rounds"):
        for method in methods:
            method.attach(subject.backbone, subject.training())
            steps[method.name].append(seconds(subject.step))
            forwards[method.name].append(seconds(subject.forward))
            detach(subject.backbone)
        for name, rival in rivals.items():
            steps[name].append(seconds(rival.step))
            forwards[name].append(seconds(rival.forward))
    plain = copy.deepcopy(subject)
    plain.backbone.eval()
    for method in tqdm([method for method in methods if rows[method.name].get("mergeable")], desc=f"{model}: merged"):
        method.attach(subject.backbone, subject.training())
        twin = copy.deepcopy(subject)
        merge(twin.backbone)
        twin.backbone.eval()
        detach(subject.backbone)
        twin.forward()
        merged[method.name] = [seconds(twin.forward) / seconds(plain.forward) for _ in range(rounds)]
    for name, row in rows.items():
        row["step_s"] = spread(steps[name])
        row["step_over_vector"] = spread(a / b for a, b in zip(steps[name], steps[VECTOR], strict=True))
        row["step_over_head"] = spread(a / b for a, b in zip(steps[name], steps[HEAD], strict=True))
        row["forward_over_frozen"] = spread(a / b for a, b in zip(forwards[name], forwards[HEAD], strict=True))
        if merged.get(name):
            row["merged_forward_over_frozen"] = spread(merged[name])
    return {"model": model, "size": size, "batch": batch, "rounds": rounds, "methods": rows}


def memory(model: str, size: int, batch: int, methods: list[Method]) -> dict[str, dict[str, float]]:
    """In this process: MiB kept between forward and backward, and at the highest, over what was there before."""
    subject = Subject(model, size, batch)
    found = {}
    for method in methods:
        method.attach(subject.backbone, subject.training())
        found[method.name] = _of_a_step(subject)
        detach(subject.backbone)
    for name, other in others(subject, model).items():
        found[name] = _of_a_step(other)
    return found


def _of_a_step(subject: Subject) -> dict[str, float]:
    libc = ctypes.CDLL("libc.so.6")
    subject.step()
    for parameter in (*subject.backbone.parameters(), *subject.head.parameters()):
        parameter.grad = None
    gc.collect()
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    loss = F.cross_entropy(subject.head(subject.features()), subject.labels)
    gc.collect()
    libc.malloc_trim(0)
    kept = _status("VmRSS") - before
    loss.backward()
    return {"kept_mib": round(kept / 1024, 1), "peak_mib": round((_status("VmHWM") - before) / 1024, 1)}


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {field}; peak memory is measured on Linux")


def on_gpu(methods: list[Method], rounds: int) -> dict[str, object]:
    """ViT-L at 512 pixels, bfloat16 autocast: milliseconds of a step, and MiB."""
    model, size = LARGE
    subject = Subject(model, size, 8, "cuda")
    rows: dict[str, dict[str, object]] = {}
    times: dict[str, list[float]] = {method.name: [] for method in methods}
    for number in range(rounds + 1):
        for method in methods:
            method.attach(subject.backbone, subject.training())
            with torch.autocast("cuda", torch.bfloat16):
                subject.step()
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_allocated()
                began = time.perf_counter()
                subject.step()
                torch.cuda.synchronize()
            if number:
                times[method.name].append(1000 * (time.perf_counter() - began))
            peak = (torch.cuda.max_memory_allocated() - held) / 2**20
            rows[method.name] = {"parameters": trained(subject.backbone), "peak_mib": round(peak, 1)}
            detach(subject.backbone)
    for name, row in rows.items():
        row["step_ms"] = spread(times[name])
        row["step_over_vector"] = spread(a / b for a, b in zip(times[name], times[VECTOR], strict=True))
    return {"model": model, "size": size, "batch": 8, "device": torch.cuda.get_device_name(), "methods": rows}


def table(result: dict[str, object]) -> str:
    """What a person reads first."""
    lines = [f"{result['model']}, {result['size']} pixels, batch {result['batch']}"]
    lines.append(f"{'method':<28}{'parameters':>12}{'step/vector':>12}{'kept MiB':>10}{'peak MiB':>10}{'merged':>8}")
    rows: dict[str, Any] = result["methods"]  # type: ignore[assignment]
    for name, row in rows.items():
        fused = row.get("merged_forward_over_frozen", {}).get("median")
        lines.append(
            f"{name:<28}{row['parameters']:>12,}{row['step_over_vector']['median']:>12.2f}{row['kept_mib']:>10.1f}"
            f"{row.get('peak_mib') or '–':>10}{fused or '–':>8}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure everything and write results/adapters.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--methods", nargs="+", help="names, default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # the child process that measures memory
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    every = methods(768)
    chosen = [m for m in every if m.floor or given.methods is None or m.name in given.methods]
    if given.memory_of:
        print(json.dumps(memory(given.memory_of, MODELS[given.memory_of], given.batch, chosen)))
        return
    report: dict[str, object] = {
        "command": f"python benchmarks/adapters.py --rounds {given.rounds} --batch {given.batch}",
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "threads_used": 1, "load": os.getloadavg()},
        "versions": {
            "geomed": __version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "python": platform.python_version(),
        },
        "cpu": [],
    }
    for model in given.models:
        result = measure(model, MODELS[model], methods=chosen, batch=given.batch, rounds=given.rounds)
        arguments = ["--memory-of", model, "--batch", str(given.batch), "--methods", *(m.name for m in chosen)]
        child = subprocess.run(  # noqa: S603  (this very script)
            [sys.executable, __file__, *arguments],
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
            capture_output=True,
            text=True,
            check=True,
        )
        for name, found in json.loads(child.stdout.splitlines()[-1]).items():
            result["methods"][name] |= found  # type: ignore[index]
        print(table(result), flush=True)
        report["cpu"].append(result)  # type: ignore[attr-defined]
        given.out.write_text(json.dumps(report, indent=2) + "\n")
    if torch.cuda.is_available():
        report["gpu"] = on_gpu(chosen, given.rounds)
    given.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

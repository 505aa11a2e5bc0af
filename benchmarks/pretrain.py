"""What going on with a pre-training costs: ExPLoRA beside training everything, in the same run.

    python benchmarks/pretrain.py [--objectives mae dinov2] [--rounds 3] [--batch 8] [--prototypes 4096]

Aims, of a ViT-B/16 at 224 pixels: at least 1.3 times the images per second of full continued pre-training, at most 0.6
times its memory. Each row says of both whether it was met.

A step is forward, backward, AdamW, and the teacher's update where there is a teacher. Variants take turns, round after
round; figures are lowest, median and highest. On a CPU: one thread, float32, CPU seconds of the process, small batches
(DINOv2 a quarter of ``--batch``, for it reads 2 global crops of 224 and 8 local ones of 96 pixels of each image, and
``--prototypes`` instead of 65,536, which would measure the head). On a CUDA device also, and instead of nothing:
ViT-B/16 and ViT-L/16, bfloat16 autocast, 64 images, 65,536 prototypes, wall time.

- ``ExPLoRA``: rank 64, the last block and all norms, as published; beside it DINOv2's heads, or a decoder of MAE that
  starts anew and trains whole.
- ``ExPLoRA, decoder kept``: MAE as published, the decoder one of an earlier run, of which norms and updates of rank 8
  train.
- ``full``: everything trains.

Memory is of a process, or on a GPU of a learner, of its own: ``held_mib`` is what lies there between two steps, as
weights, moments and a teacher, ``peak_mib`` the most within a step, both over what was there before the network was.

Floating-point operations are those of matrix products. ``needed`` is counted layer by layer: 2 n i o forward for n
tokens through a Linear i -> o, as much again backward where the input wants a gradient, and again where the weight
trains; 4 n^2 d for attention, and twice that backward. ``executed`` is what torch.utils.flop_counter saw; more than
needed is waste, or attention whose backward pass computes its scores again. ``speed_limit`` is what the full variant
needs over what a variant needs: no code can be faster by more while matrix products take the time. MFU is needed /
(seconds * peak of the device), the peak dense bfloat16 as its maker states it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime as dt
import gc
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from adapters import seconds, spread, trained  # the file beside this one
from safetensors.torch import save_file
from timm.layers import Attention as TimmAttention
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from tsvit import processor  # likewise

from geomed import __version__
from geomed.adapters.adapter import adapter_state, attach, base_state, freeze_base
from geomed.adapters.explora import ExPLoRA
from geomed.adapters.files import save_adapter
from geomed.adapters.lora import LowRankSlices
from geomed.backbones.block import Attention
from geomed.backbones.inputs import Inputs
from geomed.backbones.vit import ViT
from geomed.pixels import Pixels
from geomed.tasks.dinov2 import DINOv2
from geomed.tasks.mae import MAE, TrainedDecoder
from geomed.tasks.objective import Objective, Views
from geomed.tasks.projection_head import Directions, Prototypes

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path(__file__).parent / "results" / "pretrain.json"
WIDE, SMALL, SMALLS = 224, 96, 8
SPEED, MEMORY = 1.3, 0.6  # the aims
FULL = "full"
VARIANTS = {"mae": ("ExPLoRA", "ExPLoRA, decoder kept", FULL), "dinov2": ("ExPLoRA", FULL)}
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}  # dense bfloat16
LARGE = ("vit_base_patch16_224", "vit_large_patch16_224")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is learned by what network on what."""

    model: str
    """timm's name."""

    objective: str
    """mae or dinov2."""

    batch: int
    """Images."""

    prototypes: int
    """Of DINOv2."""

    device: str = "cpu"
    """Where; on cuda in bfloat16."""


class Learner:
    """A network, an objective, an optimizer and a batch that never changes."""

    def __init__(self, case: Case, variant: str) -> None:
        """Random weights and random images, the same for every variant."""
        torch.manual_seed(0)
        inputs = Inputs(("red", "green", "blue"), [0.5] * 3, [0.25] * 3)
        self.case, self.adapters = case, () if variant == FULL else (ExPLoRA(),)
        self.backbone = ViT(case.model, inputs=inputs, image_size=WIDE)
        for adapter in self.adapters:
            attach(self.backbone, adapter)
        if self.adapters:
            freeze_base(self.backbone)
        self.objective = self._objective(kept=variant.endswith("kept"))
        self.backbone.to(case.device).train()
        self.objective.to(case.device).train()
        parameters = [p for p in (*self.backbone.parameters(), *self.objective.parameters()) if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-5)
        self.views = self._views()
        self.generator = torch.Generator().manual_seed(0)

    def _objective(self, *, kept: bool) -> Objective:
        if self.case.objective == "dinov2":
            objective: Objective = DINOv2(prototypes=Prototypes(count=self.case.prototypes))
            objective.bind(self.backbone)
            return objective
        if not kept:
            objective = MAE()
            objective.bind(self.backbone)
            return objective
        with tempfile.TemporaryDirectory() as folder:
            before = MAE()
            before.bind(self.backbone)
            path = Path(folder) / "objective.safetensors"
            save_file({name: value.contiguous() for name, value in before.kept().items()}, path)
            objective = MAE(trained_decoder=TrainedDecoder(path=str(path)))
            objective.bind(self.backbone)
        return objective

    def _views(self) -> Views:
        drawn = torch.Generator().manual_seed(0)

        def crop(size: int) -> Pixels:
            values = torch.rand(self.case.batch, 3, size, size, generator=drawn)
            return Pixels(values=values.to(self.case.device))

        if self.case.objective == "mae":
            return Views(wide=(crop(WIDE),))
        return Views(wide=(crop(WIDE), crop(WIDE)), small=tuple(crop(SMALL) for _ in range(SMALLS)))

    def loss(self) -> Tensor:
        """Of the batch."""
        half = torch.autocast("cuda", torch.bfloat16) if self.case.device == "cuda" else contextlib.nullcontext()
        with half:
            return self.objective(self.backbone, self.views, generator=self.generator, done=0.5).loss

    def step(self) -> None:
        """One of training."""
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimizer.step()
        self.objective.after_step(self.backbone, 0.5)

    def facts(self) -> dict[str, object]:
        """What does not depend on the clock."""
        parts = {"backbone": trained(self.backbone), "objective": trained(self.objective)}
        total = sum(value.numel() for value in base_state(self.backbone).values())
        found: dict[str, object] = {"trained": parts, "share_of_backbone": parts["backbone"] / total}
        needed = Needed()
        with needed.watching(self.backbone, self.objective), FlopCounterMode(display=False) as counter:
            self.loss().backward()
        found["flops_needed"] = {"forward": needed.forward, "backward": needed.backward}
        found["flops_executed"] = counter.get_total_flops()
        teacher = self.objective.get_submodule("teacher") if self.case.objective == "dinov2" else None
        if teacher is not None:
            found["teacher_bytes"] = {
                "kept": _bytes(dict(teacher.named_buffers())),
                "full_copy": _bytes(base_state(self.backbone)),
                "heads": _bytes(dict(self.objective.get_submodule("heads_teacher").named_buffers())),
            }
        found["file_bytes"] = self._files()
        return found

    def _files(self) -> dict[str, int]:
        """The file that is left, and a checkpoint to go on from: what trains, its moments, the objective."""
        self.step()  # moments exist after a step
        own = {name: p for name, p in self.backbone.named_parameters() if p.requires_grad}
        state = {"state": {**own, **self.objective.state_dict()}, "optimizer": self.optimizer.state_dict()}
        sizes = {"checkpoint": _saved(state), "backbone": _saved(dict(base_state(self.backbone)))}
        if adapter_state(self.backbone):
            with tempfile.TemporaryDirectory() as folder:
                sizes["adapter"] = save_adapter(Path(folder) / "a.safetensors", self.backbone, self.adapters)
        return sizes


class Needed:
    """Operations that matrix products need, forward and backward, layer by layer as they are called."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.forward = self.backward = 0

    @contextlib.contextmanager
    def watching(self, *roots: nn.Module) -> Any:  # noqa: ANN401  (a context manager)
        """Count within."""
        kinds: dict[type[nn.Module], Callable[..., None]] = {
            nn.Linear: self._linear,
            nn.Conv2d: self._linear,
            Directions: self._linear,
            LowRankSlices: self._low_rank,
            Attention: self._attention,
            TimmAttention: self._attention,
        }
        modules = [module for root in roots for module in root.modules()]
        counted = [(module, _kind(module, kinds)) for module in modules]
        hooks = [module.register_forward_hook(kinds[kind]) for module, kind in counted if kind is not None]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _add(self, flops: int, *gradients: bool) -> None:
        self.forward += flops
        self.backward += flops * sum(gradients)

    def _linear(self, module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        weight = module.weight
        flops = 2 * out.numel() * weight[0].numel()
        self._add(flops, out.requires_grad and given[0].requires_grad, out.requires_grad and weight.requires_grad)

    def _low_rank(self, module: LowRankSlices, given: tuple[Tensor, ...], out: Tensor) -> None:
        rows = out.numel() // out.shape[-1]
        down = 2 * rows * module.down.numel()
        up = 2 * rows * module.up.numel()  # the zeros between the slices are not needed
        self._add(down, out.requires_grad and given[0].requires_grad, out.requires_grad)
        self._add(up, out.requires_grad, out.requires_grad)

    def _attention(self, module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        batch, tokens, width = given[0].shape
        flops = 4 * batch * tokens**2 * width
        self._add(flops, out.requires_grad, out.requires_grad)


def _kind(module: nn.Module, kinds: dict[type[nn.Module], Any]) -> type[nn.Module] | None:
    return next((kind for kind in kinds if isinstance(module, kind)), None)


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


class _Counted(io.RawIOBase):
    """A file of which only the size is kept."""

    size = 0

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Any) -> int:  # noqa: ANN401  (any buffer)
        """Count."""
        self.size += len(data)
        return len(data)


def _saved(state: dict[str, Any]) -> int:
    counted = _Counted()
    torch.save(state, counted)
    return counted.size


def measure(case: Case, rounds: int, steps: int) -> dict[str, Any]:
    """All variants of one objective, in turn."""
    names = VARIANTS[case.objective]
    learners = {name: Learner(case, name) for name in names}
    rows: dict[str, dict[str, Any]] = {name: learners[name].facts() for name in tqdm(names, desc="facts")}
    clock = seconds if case.device == "cpu" else _wall
    times: dict[str, list[float]] = {name: [] for name in names}
    for learner in learners.values():
        clock(learner.step)
    for _ in tqdm(range(rounds), desc=f"{case.objective}: rounds"):
        for name, learner in learners.items():
            times[name].append(statistics.median(clock(learner.step) for _ in range(steps)))
    device = torch.cuda.get_device_name() if case.device == "cuda" else ""
    peak = next((value for kind, value in PEAKS.items() if kind in device), None)
    full = sum(rows[FULL]["flops_needed"].values())
    for name, row in rows.items():
        row["step_s"] = spread(times[name])
        row["images_per_s"] = spread(case.batch / one for one in times[name])
        row["speed_over_full"] = spread(b / a for a, b in zip(times[name], times[FULL], strict=True))
        needed = sum(row["flops_needed"].values())
        row["speed_limit"] = round(full / needed, 4)
        row["needed_tflops_per_s"] = round(needed / row["step_s"]["median"] / 1e12, 4)
        if peak is not None:
            row["mfu"] = round(needed / row["step_s"]["median"] / peak, 4)
    return {**vars(case), "rounds": rounds, "steps": steps, "variants": rows}


def _wall(work: Callable[[], None]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def memory(case: Case, variant: str) -> dict[str, float]:
    """In this process, or on the device that nothing else is on: MiB between two steps and at the highest."""
    if case.device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        learner = Learner(case, variant)
        learner.step()
        learner.optimizer.zero_grad(set_to_none=True)
        held = torch.cuda.memory_allocated() - before
        torch.cuda.reset_peak_memory_stats()
        learner.step()
        return {"held_mib": _mib(held), "peak_mib": _mib(torch.cuda.max_memory_allocated() - before)}
    tiny = Case(model="vit_tiny_patch16_224", objective=case.objective, batch=2, prototypes=64)
    Learner(tiny, variant).step()  # what libraries keep for themselves is there now
    before = _settled()
    learner = Learner(case, variant)
    learner.step()
    learner.optimizer.zero_grad(set_to_none=True)
    held = _settled() - before
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    learner.step()
    return {"held_mib": _mib(held), "peak_mib": _mib(_status("VmHWM") - before)}


def _settled() -> int:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _status("VmRSS")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {field}; memory is measured on Linux")


def _mib(count: float) -> float:
    return round(count / 2**20, 1)


def memory_apart(case: Case, variant: str) -> dict[str, float]:
    """The same in a process of its own, in which freed memory goes back at once."""
    arguments = ["--memory-of", variant, "--model", case.model, "--objectives", case.objective]
    arguments += ["--batch", str(case.batch), "--prototypes", str(case.prototypes)]
    child = subprocess.run(  # noqa: S603  (this very script)
        [sys.executable, __file__, *arguments],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        sys.exit(f"memory of {variant} could not be measured:\n{child.stderr[-2000:]}")
    return json.loads(child.stdout.splitlines()[-1])


def judge(rows: dict[str, dict[str, Any]]) -> None:
    """Hold every row against the aims."""
    for row in rows.values():
        row["memory_over_full"] = round(row["peak_mib"] / rows[FULL]["peak_mib"], 4)
        row["held_over_full"] = round(row["held_mib"] / rows[FULL]["held_mib"], 4)
    for name, row in rows.items():
        if name != FULL:
            speed = row["speed_over_full"]["median"] >= SPEED
            row["aims"] = {
                f"speed at least {SPEED} of full": "met" if speed else "missed",
                f"memory at most {MEMORY} of full": "met" if row["memory_over_full"] <= MEMORY else "missed",
            }


def table(result: dict[str, Any]) -> str:
    """What a person reads first."""
    lines = [f"{result['objective']}, {result['model']}, batch {result['batch']}, {result['device']}"]
    heads = {"trained": 12, "images/s": 10, "÷ full": 8, "at most": 9, "peak MiB": 10, "÷ full ": 8, "held MiB": 10}
    lines.append(f"{'variant':<26}" + "".join(f"{head:>{width}}" for head, width in heads.items()))
    for name, row in result["variants"].items():
        count = sum(row["trained"].values())
        lines.append(
            f"{name:<26}{count:>12,}{row['images_per_s']['median']:>10.2f}{row['speed_over_full']['median']:>8.2f}"
            f"{row['speed_limit']:>9.2f}"
            f"{row['peak_mib']:>10.0f}{row['memory_over_full']:>8.2f}{row['held_mib']:>10.0f}"
            f"  {', '.join(row.get('aims', {}).values())}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure everything and write results/pretrain.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--objectives", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="of each variant in a round; their median counts")
    parser.add_argument("--batch", type=int, default=8, help="images on the CPU; of DINOv2 a quarter, at least 2")
    parser.add_argument("--prototypes", type=int, default=4096, help="of DINOv2 on the CPU")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # the child process that measures memory
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if given.memory_of:
        (objective,) = given.objectives
        case = Case(model=given.model, objective=objective, batch=given.batch, prototypes=given.prototypes)
        print(json.dumps(memory(case, given.memory_of)))
        return
    report: dict[str, Any] = {
        "command": " ".join(["python benchmarks/pretrain.py", *sys.argv[1:]]),
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
    cases = [
        Case(model=given.model, objective=one, batch=_batch(one, given.batch), prototypes=given.prototypes)
        for one in given.objectives
    ]
    if torch.cuda.is_available():
        report["machine"]["accelerator"] = torch.cuda.get_device_name()
        report["gpu"] = []
        cases += [
            Case(model=model, objective=one, batch=64, prototypes=65_536, device="cuda")
            for model in LARGE
            for one in given.objectives
        ]
    for case in cases:
        result = measure(case, given.rounds, given.steps if case.device == "cpu" else 10 * given.steps)
        for name, row in result["variants"].items():
            row.update(memory(case, name) if case.device == "cuda" else memory_apart(case, name))
        judge(result["variants"])
        report["cpu" if case.device == "cpu" else "gpu"].append(result)
        print(table(result), flush=True)
        given.out.write_text(json.dumps(report, indent=2) + "\n")


def _batch(objective: str, batch: int) -> int:
    return batch if objective == "mae" else max(batch // 4, 2)


if __name__ == "__main__":
    main()

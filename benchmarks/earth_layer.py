"""One Earth-Adapter layer, ours and the released one.

    python benchmarks/earth_layer.py --reference PATH [--rounds 15]

The shape is that of ViT-L on 512 pixels: 2 images, a class token and 32 x 32 patch tokens, width 1024, a bottleneck of
16 and 64, one expert (``plain``) or three (``mixture``). What is timed is the layer alone, without the block that it
follows, on the same weights and inputs: forward without gradients, and forward with backward down to the input. CPU:
one thread, CPU seconds of the process, ours and the reference in turn. Kept: bytes of the tensors that autograd keeps
for the backward pass, without parameters; the input, 8,396,800 bytes, is among them.

PATH is a checkout of github.com/VisionXLab/Earth-Adapter (measured at commit 49a8ff8). With a CUDA device also
milliseconds there in bfloat16 autocast, under which the reference's transforms run in float32.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from tsvit import in_turn, processor  # the file beside this one

from geomed import __version__
from geomed.adapters.earth_adapter import EarthAdapter, EarthBlock, load_released_earth_adapter
from geomed.tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path(__file__).parent / "results" / "earth_layer.json"
MODULE = Path("earth_adapter") / "models" / "backbones" / "earth_adapter.py"
IMAGES, SIDE, WIDTH = 2, 32, 1024


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    bottleneck: int
    """Width of an expert."""

    mixture: bool
    """Three experts, or one."""


CASES = {
    f"{'mixture' if mixture else 'plain'}_{bottleneck}": Case(bottleneck=bottleneck, mixture=mixture)
    for mixture in (False, True)
    for bottleneck in (16, 64)
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A layer and its input."""

    layer: nn.Module
    """What trains."""

    run: Callable[[Tensor], Tensor]
    """Forward, [B, N, D] → [B, N, D]."""

    x: Tensor
    """Tokens, which want a gradient, as they do inside a network."""

    gradient: Tensor
    """What comes back to the output."""

    def forward(self) -> Tensor:
        """Without gradients."""
        with torch.no_grad():
            return self.run(self.x)

    def step(self) -> None:
        """Forward, backward."""
        self.layer.zero_grad(set_to_none=True)
        self.x.grad = None
        y = self.run(self.x)
        y.backward(self.gradient.to(y.dtype))

    def kept(self) -> int:
        """Bytes of the tensors kept for the backward pass, each storage once, without parameters."""
        own = {parameter.untyped_storage().data_ptr() for parameter in self.layer.parameters()}
        sizes: dict[int, int] = {}
        alive = []  # or a storage's place could be taken by the next

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
                alive.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.run(self.x)
        return sum(sizes.values())


def released(checkout: Path) -> type[nn.Module]:
    """The class of the released code.

    Raises:
        ValueError: it is not there.
    """
    path = checkout / MODULE
    if not path.is_file():
        raise ValueError(f"{checkout}: --reference must name a checkout of Earth-Adapter, with {MODULE} in it")
    spec = importlib.util.spec_from_file_location("released_earth_adapter", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python module; check the checkout")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.earth_adapter


def subjects(case: Case, checkout: Path, device: str = "cpu") -> dict[str, Subject]:
    """Ours and the released layer, on the same weights."""
    made = torch.Generator().manual_seed(0)
    shape = (IMAGES, 1 + SIDE * SIDE, WIDTH)
    given, gradient = (torch.randn(shape, generator=made).to(device) for _ in range(2))
    theirs = released(checkout)(dim=case.bottleneck, fft_layer=[0] if case.mixture else []).to(device)
    adapter = EarthAdapter(bottleneck=case.bottleneck)
    block = EarthBlock(nn.Identity(), adapter, given.new_zeros(WIDTH), mixture=case.mixture)
    load_released_earth_adapter(nn.ModuleDict({"blocks": nn.ModuleList([block])}), theirs.state_dict(), prefix="")
    runs: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]] = {
        "ours": (block, lambda x: block(Tokens(x, (SIDE, SIDE), 1)).data),
        "reference": (theirs, lambda x: theirs(x, 0, batch_first=True, has_cls_token=True)),
    }
    return {
        name: Subject(layer=layer, run=run, x=given.clone().requires_grad_(), gradient=gradient)
        for name, (layer, run) in runs.items()
    }


def on_cpu(case: Case, checkout: Path, rounds: int) -> dict[str, object]:
    """One case."""
    both = subjects(case, checkout)
    bytes_kept = {name: each.kept() for name, each in both.items()}
    return {
        "case": asdict(case),
        "largest_difference": float((both["ours"].forward() - both["reference"].forward()).abs().max()),
        "forward": in_turn({name: each.forward for name, each in both.items()}, rounds),
        "forward_and_backward": in_turn({name: each.step for name, each in both.items()}, rounds),
        "kept_bytes": bytes_kept,
        "kept_ratio": round(bytes_kept["ours"] / bytes_kept["reference"], 3),
    }


def milliseconds(work: Callable[[], object], steps: int = 20) -> float:
    """Of one call in bfloat16 autocast on a CUDA device: the median of seven times ``steps`` calls."""
    times = []
    with torch.autocast("cuda", torch.bfloat16):
        for _ in range(8):  # the first warms up
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(steps):
                work()
            torch.cuda.synchronize()
            times.append((time.perf_counter() - start) / steps * 1000)
    return round(statistics.median(times[1:]), 4)


def on_gpu(case: Case, checkout: Path) -> dict[str, object]:
    """One case: eager, and ours compiled."""
    both = subjects(case, checkout, "cuda")
    ours = both["ours"]
    fast = Subject(layer=ours.layer, run=torch.compile(ours.run), x=ours.x, gradient=ours.gradient)
    return {
        name: {"forward_ms": milliseconds(each.forward), "forward_and_backward_ms": milliseconds(each.step)}
        for name, each in {**both, "ours_compiled": fast}.items()
    }


def main() -> None:
    """Measure, print, and write benchmarks/results/earth_layer.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--reference", type=Path, required=True, help="a checkout of github.com/VisionXLab/Earth-Adapter"
    )
    parser.add_argument("--rounds", type=int, default=15, help="times each is timed")
    given = parser.parse_args()
    if given.rounds < 1:
        parser.error(f"--rounds must be positive, not {given.rounds}")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    results: dict[str, object] = {
        "command": f"python benchmarks/earth_layer.py --reference PATH --rounds {given.rounds}",
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "threads_used": 1},
        "load": [round(load, 2) for load in os.getloadavg()],
        "versions": {"geomed": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    for name, case in CASES.items():
        results[name] = on_cpu(case, given.reference, given.rounds)
        print(name, json.dumps(results[name], indent=2), flush=True)
    if torch.cuda.is_available():
        results["gpu"] = {"device": torch.cuda.get_device_name()} | {
            name: on_gpu(case, given.reference) for name, case in CASES.items()
        }
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

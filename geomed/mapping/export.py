"""The command `geomed export`: a trained network as one file that runs without its run."""

from __future__ import annotations

import argparse
import copy
import gc
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch
from timm.models.vision_transformer import VisionTransformer
from torch.export import Dim

from geomed.backbones.vit import ViT
from geomed.mapping.archive import NOTE
from geomed.mapping.model_files import NOTE as ONNX_NOTE
from geomed.mapping.model_files import need_onnx, open_onnx, open_pt2
from geomed.mapping.network import runner
from geomed.mapping.runs import open_run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from geomed.mapping.facts import Facts
    from geomed.mapping.network import Network
    from geomed.mapping.runs import Run

ABOUT = """\
Write a trained network into one file that geomed map takes as a model: with its adapters merged, its normalisation
inside, and its bands, classes and units beside. Windows have one size, batches and series any, unless told otherwise.
The file is read again and held against the run before it gets its name.
"""
LARGEST = 1e-3
"""Probabilities may differ from those of the run by so much."""

_MOST_ONNX = 2**31 - 2**20
_SHAPES = ((2, 3), (1, 2), (3, 5))
"""Batches and dates that a file is tried with."""


def main(arguments: Sequence[str]) -> int:
    """Run `geomed export`; returns the exit code."""
    given = _parser().parse_args(arguments)
    plan = Export(to=given.to, window=given.window, batch=given.batch, dates=given.dates)
    difference = export(given.model, given.out, plan)
    size = given.out.stat().st_size
    print(f"{given.out}: {size / 1e6:.1f} MB, probabilities differ from the run's by {difference:.1g} at most")
    return 0


@dataclass(frozen=True, kw_only=True)
class Export:
    """What an exported file is like."""

    to: Literal["torch-export", "onnx"]
    """Its kind."""

    window: int | None = None
    """Side of its windows in pixels; None: that of training."""

    batch: int | None = None
    """Samples that it computes at once; None: any number."""

    dates: int | None = None
    """Dates of its series, shorter ones are filled up; None: any number."""

    def __post_init__(self) -> None:
        """Refuse numbers that are none."""
        for name, value in (("window", self.window), ("batch", self.batch), ("dates", self.dates)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be positive, not {value}; correct it")

    @property
    def ending(self) -> str:
        """How its name ends."""
        return ".pt2" if self.to == "torch-export" else ".onnx"


def export(model: str | Path, out: Path, plan: Export) -> float:
    """Export a run, read the file again, and give the largest difference of a probability from the run's.

    Raises:
        ValueError: the run is none, cannot be exported, or the file does not answer as the run does; there is no file
            then.
    """
    if out.suffix != plan.ending:
        raise ValueError(f"--out must end in {plan.ending} for --to {plan.to}, not {out}")
    if plan.to == "onnx":
        need_onnx("--to onnx")
    run = open_run(Path(model))
    facts, network = run.facts, run.network
    if plan.dates is not None and not facts.series:
        raise ValueError(f"--dates is for models that read series, {model} reads single images; leave it out")
    window = facts.window if plan.window is None else plan.window
    if window % facts.patch:
        raise ValueError(
            f"a window of {window} pixels is no multiple of the patch of {facts.patch}; choose --window "
            f"{-(-window // facts.patch) * facts.patch}"
        )
    held = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    if plan.to == "onnx" and held > _MOST_ONNX:
        raise ValueError(
            f"the weights are {held / 2**30:.1f} GiB, one ONNX file holds 2; export with --to torch-export"
        )
    facts = replace(facts, window=window, about={**facts.about, "file": plan.to})
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.stem}.part{out.suffix}")
    print(f"{model}: exporting windows of {window} x {window} pixels to {plan.to}", flush=True)
    begun = time.monotonic()
    try:
        _write(network, facts, plan, part)
        print(f"{model}: exported in {time.monotonic() - begun:.0f} s, now comparing", flush=True)
        gc.collect()  # torch made a second class of each module's, by which a short name in a config is ambiguous
        difference = _difference(replace(run, facts=facts), plan, part)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return difference


def _write(network: Network, facts: Facts, plan: Export, part: Path) -> None:
    shape = (plan.batch or 2, plan.dates or 3)
    batch = _example(network, facts, *shape)
    axes = _axes(facts, plan)
    note = facts.dumped(batch=plan.batch, dates=plan.dates, inputs=list(batch))
    fitted = _fitted(network, facts.window)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of torch about its own making
            if plan.to == "torch-export":
                _save_program(torch.export.export(fitted, tuple(batch.values()), dynamic_shapes=axes), part, note)
            else:
                made = torch.onnx.export(
                    fitted,
                    tuple(batch.values()),
                    dynamo=True,
                    dynamic_shapes=axes,
                    input_names=list(batch),
                    output_names=["logits"],
                    verbose=False,
                )
                if made is None:
                    raise RuntimeError("no program came out")  # noqa: TRY301  (told below as any other failure)
                _save_onnx(made, part, note)
    except Exception as error:  # whatever the exporters raise: a model of anybody's goes through them
        line = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"{facts.about.get('architecture', 'the model')} cannot be exported to {plan.to} "
            f"({type(error).__name__}: {line}); map with the run itself, or try another --to, --batch or --dates"
        ) from error


def _axes(facts: Facts, plan: Export) -> tuple[dict[int, Any], ...]:
    """Which axes of values, valid and days take any length."""
    free: dict[int, Any] = {} if plan.batch else {0: Dim("batch", min=1, max=2**15)}
    if facts.series and not plan.dates:
        free[1] = Dim("dates", min=1, max=2**12)
    return tuple(dict(free) for _ in range(3 if facts.series else 2))


def _fitted(network: Network, window: int) -> Network:
    """Positions laid out for the window once, instead of stretching them for each batch."""
    fitted = copy.deepcopy(network)
    if isinstance(fitted.backbone, ViT) and isinstance(fitted.backbone.stem, VisionTransformer):
        fitted.backbone.stem.set_input_size((window, window))
    return fitted.eval().requires_grad_(requires_grad=False)


def _save_program(program: torch.export.ExportedProgram, part: Path, note: str) -> None:
    """Without pickles, notes about the machine that it was made on, and checks that half precision would fail."""
    program.example_inputs = None
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        for told in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom"):
            node.meta.pop(told, None)
        if node.target is torch.ops.aten._assert_tensor_metadata.default:  # noqa: SLF001  (an operator, so named)
            graph.erase_node(node)
    program.graph_module.recompile()
    torch.export.save(program, part, extra_files={NOTE: note})


def _save_onnx(made: torch.onnx.ONNXProgram, part: Path, note: str) -> None:
    """Likewise without notes about the machine that it was made on."""
    graph = made.model.graph
    for node in graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
    made.model.metadata_props[ONNX_NOTE] = note
    made.save(str(part), external_data=False)


def _example(network: Network, facts: Facts, count: int, dates: int) -> dict[str, Tensor]:
    """A batch of random pixels as a source gives them: some not valid, a date that is missing, zeros there."""
    generator = torch.Generator().manual_seed(0)
    inputs, side, bands = network.backbone.inputs, facts.window, len(facts.bands)
    shape = (count, dates) if facts.series else (count,)
    drawn = torch.randn(*shape, bands, side, side, generator=generator)
    values = inputs.mean.cpu()[:, None, None] + inputs.std.cpu()[:, None, None] * drawn
    valid = torch.rand(*shape, side, side, generator=generator) > 0.1
    if facts.series and dates > 1:
        valid[-1, -1] = False
    values = torch.where(valid.unsqueeze(-3), values, 0)
    batch = {"values": values, "valid": valid}
    if facts.series:
        days = torch.randint(17800, 18300, shape, generator=generator)
        batch["days"] = days.sort(1).values
    return batch


@torch.no_grad()
def _difference(run: Run, plan: Export, part: Path) -> float:
    """The largest difference of a probability, over batches of several shapes.

    Raises:
        ValueError: it is too large.
    """
    cpu = torch.device("cpu")
    opened = (
        open_pt2(part, device=cpu, precision="32") if plan.to == "torch-export" else open_onnx(part, precision="32")
    )
    own = runner(run.network, device=cpu, precision="32")
    largest = 0.0
    for count, dates in _SHAPES:
        dates_ = min(dates, plan.dates) if plan.dates else dates
        batch = _example(run.network, run.facts, count, dates_)
        gap = (opened.model.run(batch).softmax(1) - own(batch).softmax(1)).abs().max()
        largest = max(largest, float(gap.nan_to_num(float("inf"))))
    if largest > LARGEST:
        raise ValueError(
            f"the exported file's probabilities differ from the run's by {largest:.2g}, more than {LARGEST:g}; it was "
            "removed, map with the run itself"
        )
    return largest


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see geomed export --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="geomed export",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="RUN", help="a run's folder, such as runs/NAME, or a checkpoint in one")
    add("--to", required=True, choices=("torch-export", "onnx"), help="the kind of file")
    add("--out", required=True, type=Path, metavar="FILE", help="ends in .pt2 or .onnx")
    add("--window", type=int, metavar="N", help="side of the windows in pixels (default: that of training)")
    add("--dates", type=int, metavar="T", help="dates of a series, shorter ones are filled up (default: any)")
    add("--batch", type=_number_or_any, default=None, metavar="N|dynamic", help="samples at once (default: dynamic)")
    return parser


def _number_or_any(text: str) -> int | None:
    return None if text == "dynamic" else int(text)

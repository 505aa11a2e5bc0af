"""The command `geomed sensitivity`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from jsonargparse import ArgumentError
from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from torch.utils.data import DataLoader, Subset

import geomed.public  # noqa: F401  (so that configs may name every class shortly)
from geomed.adapters.allocation_rule import AllocationRule
from geomed.adapters.candidate import candidates
from geomed.adapters.plan import make_plan
from geomed.adapters.sensitivity import measure_sensitivity
from geomed.data.datamodule import DataModule
from geomed.data.shuffle import count
from geomed.data.source import collate
from geomed.sensitivity.picture import save_picture
from geomed.tasks.segmentation import Segmentation
from geomed.training_runs import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

ABOUT = """\
Measure how much the loss of a config depends on each weight of its backbone, and choose the weights to train within a
budget: sensitivity-aware parameter tuning (He et al., ICCV 2023). The config is that of geomed fit; its own adapter is
left out. Samples of the training part are read as they are, without augmentation, and in full precision. Writes the
plan, for adapter: {class_path: SPT, init_args: {plan: PLAN.json}}, and a picture of it beside it. A plan is for the
weights that it was made on: train with the same model.weights. Options of geomed fit may follow.
"""


def main(arguments: Sequence[str]) -> int:
    """Run `geomed sensitivity`; returns the exit code."""
    quiet()
    given, rest = _parser().parse_known_args(arguments)
    if given.out.suffix != ".json":
        raise ValueError(f"--out must end in .json, not {given.out}; the picture goes beside it as .png")
    if min(given.budget, given.samples) < 1:
        raise ValueError(f"--budget and --samples must be at least 1, not {given.budget} and {given.samples}")
    rule = AllocationRule(
        structure=given.structure,
        rank=given.rank,
        alpha=given.alpha,
        beta=given.beta,
        structured_only=given.structured_only,
    )
    task, loader, device = _built([word for path in given.config for word in ("--config", path)] + rest, given)
    for one in candidates(task.backbone):
        rule.cost(one)  # raises where the rank does not fit, before anything is measured
    task.to(device)
    sensitivity = measure_sensitivity(
        task.backbone,
        lambda batch: task.loss(task(batch).float(), batch["labels"]),
        _Moved(loader, device),
        head=task,
        reduction=given.reduction,
    )
    plan = make_plan(task.backbone, sensitivity, budget=given.budget, rule=rule)
    plan.save(given.out)
    picture = given.out.with_suffix(".png")
    save_picture(picture, plan)
    print(f"{plan.table()}\n\n{plan}\n{sensitivity.samples} samples\n{given.out}\n{picture}")
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see geomed sensitivity --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="geomed sensitivity",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", action="append", required=True, metavar="FILE.YAML", help="what geomed fit reads; may be repeated")
    add("--budget", type=number, required=True, help="parameters that may train, head not counted: 4e5, for example")
    add("--samples", type=number, default=512, help="training samples to measure on (default: 512)")
    add("--out", type=Path, default=Path("plan.json"), help="the plan (default: plan.json)")
    add("--structure", choices=("lora", "adapter"), default="lora", help="what trains whole matrices (default: lora)")
    add("--rank", type=int, default=8, help="its width (default: 8)")
    add("--alpha", type=float, default=10.0, help="weight of a sensitive entry in a matrix (default: 10)")
    add("--beta", type=float, default=5.0, help="weight of a sensitive entry in a vector (default: 5)")
    add("--structured-only", action="store_true", help="train no single entries")
    add("--reduction", choices=("batch", "sample"), default="batch", help="whose gradients to square (default: batch)")
    return parser


def number(text: str) -> int:
    """A whole number, which may be written as 4e5; argparse tells this function's name.

    Raises:
        ValueError: it is none.
    """
    value = float(text)
    if not value.is_integer():
        raise ValueError(f"must be a whole number, not {text}")
    return int(value)


def _built(
    words: list[str], given: argparse.Namespace
) -> tuple[Segmentation, DataLoader[dict[str, Tensor]], torch.device]:
    """The model of the config without its adapter, its training samples in batches, and where to compute."""

    class Config(LightningCLI):
        """Reads what `geomed fit` reads, and runs nothing."""

        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_method_arguments(Trainer, "fit", skip=set(self.subcommands()["fit"]))

        def instantiate_trainer(self, **_: Any) -> Trainer:  # noqa: ANN401  (Lightning's signature)
            chosen = self.config_init["trainer"]
            devices = chosen["devices"][:1] if isinstance(chosen["devices"], list) else 1
            return Trainer(
                accelerator=chosen["accelerator"],
                devices=devices,
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
            )

    try:
        config = Config(
            Segmentation,
            DataModule,
            args=[*words, "--model.adapter", "null"],
            run=False,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_callback=None,
            parser_kwargs={"prog": "geomed sensitivity", "exit_on_error": False},
        )
    except ArgumentError as error:
        raise ValueError(str(error)) from error
    if config.config.get("ckpt_path") is not None:
        raise ValueError(
            "sensitivity is measured at the weights that training starts with, not at a ckpt_path; name them as "
            "model.weights"
        )
    task, data = config.model, config.datamodule
    data.prepare_data()
    data.setup("fit")
    task.trainer = config.trainer
    config.trainer.datamodule = data  # type: ignore[attr-defined]  # Lightning sets it so itself
    task.setup("validate")  # holds bands and classes of the source against the model's
    part = data.parts["train"]
    order = torch.randperm(count(part), generator=torch.Generator().manual_seed(data.seed))[: given.samples]
    loader: DataLoader[dict[str, Tensor]] = DataLoader(
        Subset(part, order.tolist()),
        batch_size=data.batch_size,
        drop_last=len(order) > data.batch_size,  # the gradient of a smaller batch would count for more
        num_workers=data.workers,
        collate_fn=collate,
    )
    return task, loader, config.trainer.strategy.root_device


class _Moved:
    """Batches on a device."""

    def __init__(self, loader: DataLoader[dict[str, Tensor]], device: torch.device) -> None:
        self.loader, self.device = loader, device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in self.loader:
            yield {name: value.to(self.device) for name, value in batch.items()}

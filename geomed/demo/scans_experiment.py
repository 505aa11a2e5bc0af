"""The experiment of `geomed demo scans`: learn grades at one site, adapt to two others with few labelled patients."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import lightning
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from geomed.adapters.counts import trainable
from geomed.adapters.dvpt import DVPT
from geomed.adapters.files import save_adapter
from geomed.adapters.lora import LoRA
from geomed.backbones.cnn import Cnn
from geomed.backbones.inputs import Inputs
from geomed.backbones.vit import ViT, ViTSize
from geomed.data.case_ids import CaseIds
from geomed.data.datamodule import DataModule
from geomed.data.rendition import Rendition
from geomed.data.simulated_cohort import REFERRAL, SimulatedCohort
from geomed.data.simulation.cohort import HOSPITAL, MOBILE, REFERABLE, SCREENING
from geomed.data.source import collate
from geomed.demo.experiment import Bar
from geomed.evaluation.patient_splits import ByPatient
from geomed.evaluation.single_label import SingleLabel
from geomed.heads.pooled import Pooled
from geomed.tasks.classification import Classification
from geomed.tasks.optimisation import Optimisation
from geomed.tasks.task import BaseWeights

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from geomed.adapters.adapter import Adapter

HOME = replace(SCREENING, severity=0.4)
AWAY = (MOBILE, HOSPITAL)
SIZE = ViTSize(dim=64, depth=4, heads=4, patch=8, mlp_ratio=2)
SIDE = 64
MEAN, STD = (0.38, 0.19, 0.09), (0.22, 0.11, 0.06)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way of adapting the model."""

    name: str
    """As a person calls it."""

    lr: float
    """Highest learning rate."""

    adapters: tuple[Adapter, ...] = ()
    """What goes into the frozen backbone."""

    freeze: bool = False
    """Without adapters: train the head alone."""

    cnn: bool = False
    """A small convolutional network, from random weights, in place of the base."""

    @property
    def folder(self) -> str:
        """Its run's."""
        return self.name.lower().replace(" ", "-")


METHODS = (
    Method(name="Linear probe", freeze=True, lr=1e-2),
    Method(name="LoRA", adapters=(LoRA(rank=4, alpha=8),), lr=2e-3),
    Method(name="DVPT", adapters=(DVPT(count=8, bottleneck=8, every=2),), lr=2e-3),
    Method(name="Full fine-tuning", lr=2e-4),
    Method(name="Small CNN", cnn=True, lr=3e-3),
)


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """How much of everything."""

    home: int = 420
    """Patients at home."""

    away: int = 100
    """Patients at each of the other sites."""

    labelled: float = 0.18
    """Share of the patients away that is learned from; as many are chosen with."""

    epochs: tuple[int, int] = (18, 30)
    """Of the base and of every method."""

    draws: int = 1000
    """Of the bootstrap and the permutation test on the page."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """A method and what it reached."""

    method: Method
    """Which."""

    run: Path
    """The folder of its run."""

    trained: int
    """Parameters that were trained."""

    seconds: float
    """Time of training."""

    size: int | None
    """Bytes of the adapter's file, for methods that have one."""

    val: SingleLabel
    """What it says of the validation patients."""

    test: SingleLabel
    """And of the test patients."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Files of the demo, and how much it does."""

    folder: Path
    """Where everything goes."""

    seed: int = 0
    """Of patients, weights and order."""

    amounts: Amounts = Amounts()
    """How much of everything."""

    def home(self) -> DataModule:
        """The first site: grades."""
        by = ByPatient(fractions=(0.85, 0.0, 0.15), seed=self.seed)
        return self._data(
            SimulatedCohort(sites=(replace(HOME, patients=self.amounts.home),), by=by, **self._of("home"))
        )

    def away(self) -> DataModule:
        """The other sites: referral, of few labelled patients."""
        few = self.amounts.labelled
        by = ByPatient(fractions=(few, few, 1 - 2 * few), seed=self.seed)
        sites = tuple(replace(site, patients=self.amounts.away) for site in AWAY)
        return self._data(SimulatedCohort(sites=sites, labels=REFERRAL, by=by, **self._of("away")))

    def _of(self, name: str) -> dict[str, Any]:
        return {
            "root": str(self.folder / "cohort" / name),
            "size": SIDE,
            "rendition": Rendition(size=SIDE, colour=True),
            "ids": CaseIds(key_file=str(self.folder / "cohort" / "key")),
            "seed": self.seed,
        }

    def _data(self, source: SimulatedCohort) -> DataModule:
        return DataModule(source, batch_size=32, eval_batch_size=64, in_memory=True, seed=self.seed)

    @property
    def base(self) -> Path:
        """Weights of the base."""
        return self.folder / "base.safetensors"

    def pretrain(self) -> tuple[Classification, SingleLabel, float]:
        """Train the base at home and keep its weights; what it says of other patients there, and the time."""
        lightning.seed_everything(self.seed, verbose=False)
        data = self.home()
        task = Classification(
            backbone=_vit(),
            head=lambda spec: Pooled(spec, len(data.source.classes), tokens="mean"),
            optimisation=Optimisation(lr=2e-3, weight_decay=0.05),
        )
        trainer = self._trainer(self.folder / "runs" / "base", self.amounts.epochs[0], "Base")
        began = time.perf_counter()
        trainer.fit(task, datamodule=data)
        seconds = time.perf_counter() - began
        part = self.base.with_suffix(".part")
        save_file({name: value.contiguous() for name, value in task.state_dict().items()}, part)
        part.replace(self.base)
        data.setup("test")
        return task, referral(task, data, "test"), seconds

    def adapt(self, method: Method, data: DataModule) -> Outcome:
        """Adapt the base, or start anew, on the few labelled patients; score it once on the test patients."""
        lightning.seed_everything(self.seed, verbose=False)
        task = Classification(
            backbone=Cnn("test_resnet", inputs=_inputs()) if method.cnn else _vit(),
            head=lambda spec: Pooled(spec, len(data.source.classes), tokens="mean"),
            adapter=list(method.adapters) or None,
            freeze=method.freeze,
            weights=None if method.cnn else BaseWeights(path=str(self.base), head=False),
            optimisation=Optimisation(lr=method.lr, weight_decay=0.05),
        )
        run = self.folder / "runs" / method.folder
        trainer = self._trainer(run, self.amounts.epochs[1], method.name)
        began = time.perf_counter()
        trainer.fit(task, datamodule=data)
        seconds = time.perf_counter() - began
        size = None
        if task.adapters:
            facts = {"classes": list(task.classes), "bands": list(task.backbone.inputs.bands)}
            size = save_adapter(run / "adapter.safetensors", task.backbone, task.adapters, head=task.head, facts=facts)
        trained = trainable(task)
        trainer.test(task, datamodule=data, verbose=False)
        return Outcome(
            method=method,
            run=run,
            trained=trained,
            seconds=seconds,
            size=size,
            val=referral(task, data, "val"),
            test=referral(task, data, "test"),
        )

    def _trainer(self, run: Path, epochs: int, told: str) -> lightning.Trainer:
        return lightning.Trainer(
            accelerator="auto",
            devices=1,
            default_root_dir=run,
            max_epochs=epochs,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Bar(told)],
        )


@torch.no_grad()
def referral(task: Classification, data: DataModule, part: Literal["val", "test"]) -> SingleLabel:
    """What a network says of a part: moderate or worse? Grades are summed up.

    Raises:
        ValueError: the source has neither grades nor referrals.
    """
    source = data.source
    if not isinstance(source, SimulatedCohort):
        raise ValueError("the demo reads a simulated cohort")  # noqa: TRY004  (a rule, not a type)
    samples = data.parts[part]
    found = []
    for batch in DataLoader(samples, batch_size=64, collate_fn=collate):
        logits = task.eval()(batch).double().log_softmax(1)
        if logits.shape[1] > 2:
            logits = torch.stack((logits[:, :REFERABLE].logsumexp(1), logits[:, REFERABLE:].logsumexp(1)), 1)
        truth = batch["label"] >= (REFERABLE if len(source.classes) > 2 else 1)
        found.append((batch["case"], logits, truth.long()))
    cases, logits, truth = (torch.cat(each).cpu().numpy() for each in zip(*found, strict=True))
    return SingleLabel.from_logits(
        logits,
        classes=REFERRAL.names,
        truth=truth,
        cases=[source.case_id(case) for case in cases.tolist()],
        patients=[str(source.patient_id(case)) for case in cases.tolist()],
        part=part,
    )


def _inputs() -> Inputs:
    return Inputs(("red", "green", "blue"), MEAN, STD)


def _vit() -> ViT:
    return ViT("vit_tiny_patch16_224", inputs=_inputs(), image_size=SIDE, size=SIZE)

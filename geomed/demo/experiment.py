"""The experiment that the demo runs: train in one region and year, adapt to another with a few labelled fields."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import save_file
from tqdm import tqdm

from geomed.adapters.adaptformer import AdaptFormer
from geomed.adapters.bitfit import BitFit
from geomed.adapters.counts import trainable
from geomed.adapters.files import save_adapter
from geomed.adapters.lora import LoRA
from geomed.adapters.prompts import Prompts
from geomed.adapters.tune import Tune
from geomed.backbones.inputs import Inputs
from geomed.backbones.tsvit import TSViT, TSViTSize
from geomed.bands import PASTIS_BANDS
from geomed.data.datamodule import DataModule
from geomed.data.simulated_season import SimulatedSeason
from geomed.data.transforms import Augment
from geomed.evaluation.splits import ByArea, ByBlocks
from geomed.heads.class_tokens import ClassTokens
from geomed.tasks.optimisation import Optimisation
from geomed.tasks.segmentation import Segmentation
from geomed.tasks.task import BaseWeights

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from torch import Tensor

    from geomed.adapters.adapter import Adapter
    from geomed.data.source import Part

SOURCE, NEXT_YEAR, TARGET = "north-2021", "north-2022", "south-2022"
WINDOW = 12
BASE = "Source model"
FIELDS_PER_CLASS = 5
SIZE = TSViTSize(dim=48, heads=4, head_dim=12, temporal_depth=2, spatial_depth=1, mlp_ratio=2)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way of adapting the model."""

    name: str
    """As a person calls it."""

    lr: float
    """Highest learning rate."""

    adapters: tuple[Adapter, ...] = ()
    """What goes into the frozen backbone, in order."""

    freeze: bool = False
    """Without adapters: train the head alone."""

    scratch: bool = False
    """Start from random weights instead of the source model's."""


METHODS = (
    Method(name="LoRA", adapters=(LoRA(rank=2, alpha=4),), lr=1e-2),
    # with the class tokens, as the winter-wheat study does (arXiv 2310.01825)
    Method(
        name="AdaptFormer", adapters=(AdaptFormer(bottleneck=4, scale=1.0), Tune(targets=("class_tokens",))), lr=5e-3
    ),
    Method(name="Prompts", adapters=(Prompts(count=4),), lr=2e-2),
    Method(name="BitFit", adapters=(BitFit(),), lr=1e-2),
    Method(name="Head only", freeze=True, lr=1e-2),
    Method(name="Full fine-tuning", lr=1e-3),
    Method(name="From scratch", scratch=True, lr=2e-3),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """A method and what it reached."""

    method: Method
    """Which."""

    task: Segmentation
    """The trained network."""

    trained: int
    """Parameters that were trained."""

    total: int
    """Parameters of the whole network."""

    seconds: float
    """Time of training."""

    size: int | None
    """Bytes of the adapter's file, for methods that have one."""

    val: np.ndarray | None
    """[K, K] pixels of the validation blocks, rows are the truth; None for the source model."""

    test: list[np.ndarray]
    """[K, K] for each window of the test blocks."""


class Bar(Callback):
    """One line that grows while a network trains."""

    def __init__(self, told: str) -> None:
        """``told`` says what is trained."""
        self.told = told

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Open the line."""
        self.line = tqdm(total=int(trainer.estimated_stepping_batches), desc=self.told, unit="step", leave=False)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,  # noqa: ANN401  (Lightning's type)
        batch: Any,  # noqa: ANN401  (likewise)
        batch_idx: int,
    ) -> None:
        """One step more."""
        self.line.set_postfix(loss=f"{float(outputs['loss']):.3f}")
        self.line.update()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Close the line."""
        self.line.close()


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Where the demo's files go, and how long it trains."""

    folder: Path
    """Everything is written here."""

    epochs: tuple[int, int] = (8, 25)
    """Passes over the source region, and over the few fields of the target."""

    size: int = 256
    """Rows and columns of each simulated area, in pixels of 10 m."""

    seed: int = 0
    """Of the simulated land, of weights, order and augmentation."""

    def source(self) -> DataModule:
        """The region and year that are well labelled; the next year of the region tells how well it was learned."""
        by = ByArea(train=(SOURCE,), test=(NEXT_YEAR,))
        land = SimulatedSeason(root=self._land, size=self.size, by=by, window=WINDOW, seed=self.seed)
        return self._data(land, shift_days=15)

    def target(self) -> DataModule:
        """The other region and year, where a few fields of some blocks are labelled and the rest is the test."""
        by = ByBlocks(size=64, buffer=16, fractions=(0.375, 0.25, 0.375), areas=(TARGET,), seed=self.seed)
        few = SimulatedSeason(
            root=self._land, size=self.size, by=by, window=WINDOW, fields_per_class=FIELDS_PER_CLASS, seed=self.seed
        )
        return self._data(few, shift_days=5)

    def whole(self, area: str) -> DataModule:
        """All of one area, for maps and curves."""
        by = ByArea(test=(area,), predict=(area,))
        return self._data(SimulatedSeason(root=self._land, size=self.size, by=by, window=WINDOW, seed=self.seed))

    @property
    def _land(self) -> str:
        return str(self.folder / "land")

    @property
    def base(self) -> Path:
        """Weights of the source model."""
        return self.folder / "base.safetensors"

    def _data(self, source: SimulatedSeason, *, shift_days: int = 0) -> DataModule:
        augment = Augment(shift_days=shift_days)
        return DataModule(source, batch_size=8, eval_batch_size=32, augment=augment, in_memory=True, seed=self.seed)

    def simulate(self) -> None:
        """Write the four areas, if they are not there."""
        with tqdm(desc="simulating", unit="image", leave=False) as line:
            self.source().source.prepare(lambda *_: line.update())  # type: ignore[call-arg]  # SimulatedSeason's own

    def pretrain(self) -> Outcome:
        """Train on the source region and keep the weights."""
        outcome = self._train(Method(name=BASE, scratch=True, lr=2e-3), self.source(), self.epochs[0])
        state = {name: value for name, value in outcome.task.state_dict().items() if not name.startswith("confusion")}
        part = self.base.with_suffix(".part")
        save_file(state, part)
        part.replace(self.base)
        return outcome

    def adapt(self, method: Method) -> Outcome:
        """Adapt the source model, or start anew, on the few labelled fields of the target region."""
        return self._train(method, self.target(), self.epochs[1])

    def _train(self, method: Method, data: DataModule, epochs: int) -> Outcome:
        lightning.seed_everything(self.seed, verbose=False)
        task = Segmentation(
            backbone=TSViT(
                inputs=Inputs(PASTIS_BANDS), num_classes=len(data.source.classes), size=SIZE, patch=3, image_size=WINDOW
            ),
            head=ClassTokens,
            adapter=list(method.adapters) or None,
            freeze=method.freeze,
            weights=None if method.scratch else BaseWeights(path=str(self.base)),
            optimisation=Optimisation(lr=method.lr),
        )
        trainer = lightning.Trainer(
            accelerator="auto",
            devices=1,
            max_epochs=epochs,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Bar(method.name)],
        )
        began = time.perf_counter()
        trainer.fit(task, datamodule=data)
        seconds = time.perf_counter() - began
        trained = trainable(task)
        size = None
        if task.adapters:
            name = method.name.lower().replace(" ", "-")
            facts = {"classes": list(task.classes), "bands": list(PASTIS_BANDS)}
            path = self.folder / "adapters" / f"{name}.safetensors"
            size = save_adapter(path, task.backbone, task.adapters, head=task.head, facts=facts)
        return Outcome(
            method=method,
            task=task,
            trained=trained,
            total=sum(parameter.numel() for parameter in task.parameters()),
            seconds=seconds,
            size=size,
            val=None if method.name == BASE else np.sum(confusions(task, data, "val"), 0),
            test=confusions(task, data, "test"),
        )


@torch.no_grad()
def confusions(task: Segmentation, data: DataModule, part: Part) -> list[np.ndarray]:
    """[K, K] pixels for each window of a part, rows are the truth."""
    classes = len(data.source.classes)
    matrices = []
    for batch in batches(data, part):
        predicted = task.eval()(batch).argmax(1)
        for truth, guess in zip(batch["labels"], predicted, strict=True):
            known = truth < classes
            counts = torch.bincount(truth[known] * classes + guess[known], minlength=classes**2)
            matrices.append(counts.reshape(classes, classes).numpy())
    return matrices


def batches(data: DataModule, part: Part) -> list[dict[str, Tensor]]:
    """All batches of a part."""
    stage = {"val": "validate", "test": "test", "predict": "predict"}[part]
    data.setup(stage)
    loader = {"val": data.val_dataloader, "test": data.test_dataloader, "predict": data.predict_dataloader}[part]()
    return list(loader)

"""Segmentation of images and image series."""

from __future__ import annotations

import json
from collections.abc import Callable  # noqa: TC003  (jsonargparse reads the annotations)
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from geomed.adapters.adapter import Adapter  # noqa: TC001  (likewise)
from geomed.adapters.counts import trainable_table
from geomed.backbones.backbone import Backbone  # noqa: TC001  (likewise)
from geomed.evaluation.segmentation_scores import SegmentationScores
from geomed.heads.head import Head  # noqa: TC001  (likewise)
from geomed.pixels import IGNORE, Pixels
from geomed.tasks.losses import CrossEntropy, Loss
from geomed.tasks.optimisation import Optimisation, steps_of
from geomed.tasks.task import BaseWeights, adapt, load_base
from geomed.tokens import TokenSpec  # noqa: TC001  (likewise)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig


class Segmentation(lightning.LightningModule):
    """A backbone, a dense head and an adapter, trained on labelled pixels.

    A batch is a dict of tensors: ``values`` [B, T, C, H, W] with ``days`` [B, T] and ``valid`` [B, T, H, W], or, of
    single images, ``values`` [B, C, H, W] and ``valid`` [B, H, W]; and ``labels`` [B, H, W] with 255 where nothing is
    known.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        head: Callable[[TokenSpec], Head],
        adapter: Adapter | str | list[Adapter | str] | None = None,
        freeze: bool = False,
        weights: BaseWeights | None = None,
        loss: Loss = CrossEntropy(),  # noqa: B008  (has no state of its own before `bind`)
        optimisation: Optimisation = Optimisation(),  # noqa: B008  (frozen)
    ) -> None:
        """Build the network, load its base, attach the adapter.

        Args:
            backbone: pixels to tokens.
            head: tokens to logits; it always trains.
            adapter: what to train in the frozen backbone: one or several, in order; a path stands for an adapter file.
                None trains the whole backbone.
            freeze: with no adapter, train the head alone.
            weights: what to start from; None starts from the backbone's own weights.
            loss: what to minimise.
            optimisation: learning rate and its course.

        Raises:
            ValueError: weights or adapters that do not fit.
        """
        super().__init__()
        self.backbone = backbone
        self.head = head(backbone.spec)
        if weights is not None:
            load_base(self.backbone, self.head, weights)
        wanted = [] if adapter is None else adapter if isinstance(adapter, list) else [adapter]
        self.adapters = adapt(self.backbone, self.head, wanted)
        if freeze and not self.adapters:
            self.backbone.requires_grad_(requires_grad=False)
        self.loss = loss
        self.optimisation = optimisation
        self.classes: tuple[str, ...] = ()
        self.confusion = MulticlassConfusionMatrix(self.head.num_classes, ignore_index=IGNORE)

    def setup(self, stage: str) -> None:
        """Hold the source against the model: its bands and classes must be the model's.

        Raises:
            ValueError: they are not.
        """
        source = self.trainer.datamodule.source  # type: ignore[attr-defined]  # Lightning sets it
        if tuple(source.bands) != self.backbone.inputs.bands:
            raise ValueError(
                f"the source gives bands {', '.join(source.bands)}, the backbone reads "
                f"{', '.join(self.backbone.inputs.bands)}; make them the same, in the same order"
            )
        if len(source.classes) != self.head.num_classes:
            raise ValueError(
                f"the source has {len(source.classes)} classes ({', '.join(source.classes)}), the head answers for "
                f"{self.head.num_classes}; give the head or the backbone num_classes {len(source.classes)}"
            )
        self.classes = tuple(source.classes)
        self.loss.bind(self.classes)
        if stage == "fit":
            rank_zero_info("\n%s", trainable_table(self))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """A batch → logits [B, K, H, W]."""
        pixels = Pixels(values=batch["values"], days=batch.get("days"), valid=batch.get("valid"))
        return self.head(self.backbone(pixels, depths=self.head.depths), pixels.size)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One step's loss."""
        loss = self.loss(self(batch).float(), batch["labels"])
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["values"]))
        return loss

    def _judge(self, batch: dict[str, Tensor], part: str) -> None:
        logits = self(batch).float()
        count = len(batch["values"])
        self.log(f"{part}/loss", self.loss(logits, batch["labels"]), sync_dist=True, batch_size=count)
        self.confusion.update(logits.argmax(1), batch["labels"])

    def _scores(self, part: str) -> SegmentationScores:
        scores = SegmentationScores.from_confusion(self.confusion.compute().cpu().numpy(), self.classes)
        self.confusion.reset()
        told = {"macro_f1": scores.macro_f1, "macro_iou": scores.macro_iou, "accuracy": scores.accuracy}
        for name, value in told.items():
            self.log(f"{part}/{name}", value, prog_bar=name == "macro_f1", rank_zero_only=True)
        return scores

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Count right and wrong."""
        self._judge(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Say how well it went."""
        self._scores("val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Count right and wrong."""
        self._judge(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Say how well it went, class by class, and write ``metrics.json`` into the run's folder."""
        scores = self._scores("test")
        if self.trainer.is_global_zero:
            rank_zero_info("\n%s", scores.table())
            folder = Path(self.trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "metrics.json").write_text(json.dumps(scores.to_dict(), indent=2) + "\n")

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Classes [B, H, W] uint8, 255 where nothing was observed, with where they belong."""
        classes = self(batch).argmax(1).to(torch.uint8)
        if "valid" in batch:
            valid = batch["valid"]
            classes = torch.where(valid.any(1) if valid.ndim == 4 else valid, classes, IGNORE)
        return {"classes": classes, "scene": batch["scene"], "read": batch["read"], "keep": batch["keep"]}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW on what trains."""
        steps = steps_of(self.trainer)
        return self.optimisation.configure([p for p in self.parameters() if p.requires_grad], steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the classes beside the weights."""
        checkpoint["classes"] = list(self.classes)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other classes, or of another model, in one line.

        Raises:
            ValueError: it is.
        """
        theirs: Sequence[str] = checkpoint.get("classes", [])
        if self.classes and theirs and tuple(theirs) != self.classes:
            raise ValueError(
                f"the checkpoint knows the classes {', '.join(theirs)}, the source has {', '.join(self.classes)}; "
                "test on the classes that it was trained for, or start a new run from its weights"
            )
        own = self.state_dict()
        state = checkpoint["state_dict"]
        wrong = sorted(set(own) ^ set(state)) or [name for name in own if own[name].shape != state[name].shape]
        if wrong:
            raise ValueError(
                f"the checkpoint is of another model: {len(wrong)} tensors differ ({wrong[0]}); "
                "use the config that it was trained with"
            )

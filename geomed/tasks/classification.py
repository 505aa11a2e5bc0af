"""Classification of whole images and volumes: binary, multi-class, multi-label and ordinal."""

from __future__ import annotations

from collections.abc import Callable  # noqa: TC003  (jsonargparse reads the annotations)
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from geomed.adapters.adapter import Adapter  # noqa: TC001  (likewise)
from geomed.adapters.counts import trainable_table
from geomed.adapters.files import is_pretraining
from geomed.backbones.attention import attention_maps
from geomed.backbones.backbone import Backbone  # noqa: TC001  (likewise)
from geomed.evaluation.agreement import BalancedAccuracy, Kappa
from geomed.evaluation.labelled_cases import LabelledCases, kind
from geomed.evaluation.operating_point import Rule, Youden
from geomed.evaluation.roc import AUROC
from geomed.heads.head import Head  # noqa: TC001  (likewise)
from geomed.heads.pooled import PRESENT, ImageHead
from geomed.pixels import Pixels
from geomed.tasks.answers import Gathering, answers
from geomed.tasks.case_losses import BinaryCrossEntropy, CaseLoss, CategoricalCrossEntropy
from geomed.tasks.classification_record import ModelFacts, write_predictions, write_record
from geomed.tasks.optimisation import Optimisation, steps_of
from geomed.tasks.task import BaseWeights, adapt, load_base
from geomed.tokens import TokenSpec  # noqa: TC001  (likewise)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
    from numpy.typing import NDArray
    from torch.utils.data import Dataset

    from geomed.evaluation.predictions import Predictions

_TESTED = ("test", "val")
"""What the test loaders are of: temperature and operating point are chosen on val, in the same run."""


class Classification(lightning.LightningModule):
    """A backbone, a head of whole images and an adapter, trained on labelled cases.

    Whether one class holds for each case, grades, or any number of findings, the source says. A batch is a dict of
    tensors: ``values`` [B, C, H, W], or of volumes ``slices`` [B, S, C, H, W] with ``present`` [B, S]; ``case`` [B];
    and ``label`` [B], of findings [B, K] with 255 where nobody knows. uint8 brightness enters the backbone as 0 to 1.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        head: Callable[[TokenSpec], Head],
        adapter: Adapter | str | list[Adapter | str] | None = None,
        freeze: bool = False,
        weights: BaseWeights | None = None,
        loss: CaseLoss | None = None,
        optimisation: Optimisation = Optimisation(),  # noqa: B008  (frozen)
        operating_point: Rule = Youden(),  # noqa: B008  (likewise)
    ) -> None:
        """Build the network, load its base, attach the adapter.

        Args:
            backbone: pixels to tokens.
            head: tokens to logits; it always trains.
            adapter: what to train in the frozen backbone: one or several, in order; a path stands for an adapter file.
                None trains the whole backbone.
            freeze: with no adapter, train the head alone. Where nothing is augmented the backbone then reads each case
                once.
            weights: what to start from; None starts from the backbone's own weights.
            loss: what to minimise; None: cross-entropy, of findings the binary one.
            optimisation: learning rate and its course.
            operating_point: how the threshold is chosen on validation.

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
        self.loaded = weights is not None or any(isinstance(one, str) and not is_pretraining(one) for one in wanted)
        if freeze and not self.adapters:
            self.backbone.requires_grad_(requires_grad=False)
        self.frozen = not any(parameter.requires_grad for parameter in self.backbone.parameters())
        self.loss = loss
        self.optimisation, self.operating_point = optimisation, operating_point
        self.classes: tuple[str, ...] = ()
        self._gathered = {part: Gathering() for part in ("val", "test", "predict")}
        self._kept: dict[int, Tensor] = {}

    def on_train_epoch_start(self) -> None:
        """A frozen backbone stays as it is: no stochastic depth, and running statistics that do not run."""
        if self.frozen:
            self.backbone.eval()

    @property
    def source(self) -> LabelledCases:
        """Where the cases come from.

        Raises:
            ValueError: it is a source of something else.
        """
        source = self.trainer.datamodule.source  # type: ignore[attr-defined]  # Lightning sets it
        if not isinstance(source, LabelledCases):
            raise ValueError(  # noqa: TRY004  (the project raises ValueError for every broken rule)
                f"Classification learns labels of whole images, {type(source).__name__} gives none; take a ScanTable, "
                "FolderOfClasses or MedMnist, or Segmentation for maps"
            )
        return source

    def setup(self, stage: str) -> None:
        """Hold the source against the model: bands, classes, and what kind of labels there are.

        Raises:
            ValueError: they do not fit.
        """
        source = self.source
        source.refuse_key_inside(self._folder)
        bands = tuple(self.trainer.datamodule.source.bands)  # type: ignore[attr-defined]  # likewise
        if bands != self.backbone.inputs.bands:
            raise ValueError(
                f"the source gives the channels {', '.join(bands)}, the backbone reads "
                f"{', '.join(self.backbone.inputs.bands)}; make them the same, in the same order"
            )
        if len(source.classes) != self.head.num_classes:
            raise ValueError(
                f"the source has {len(source.classes)} classes ({', '.join(source.classes)}), the head answers for "
                f"{self.head.num_classes}; give the head num_classes {len(source.classes)}"
            )
        asked = kind(source)
        if self.head.ordered and asked != "ordinal":
            raise ValueError(
                f"{type(self.head).__name__} is for grades, these labels are {asked}; take Pooled, or let the source "
                "say that the classes are grades"
            )
        if self.loss is None:
            self.loss = BinaryCrossEntropy() if source.several else CategoricalCrossEntropy()
        if self.loss.several != source.several:
            right = "BinaryCrossEntropy" if source.several else "CategoricalCrossEntropy"
            raise ValueError(
                f"{type(self.loss).__name__} does not learn {asked} labels; take {right} or leave loss out"
            )
        self.classes = tuple(source.classes)
        self._kept.clear()
        if stage == "fit":
            self.loss.bind(self.classes, torch.from_numpy(source.truth("train")))
            rank_zero_info("\n%s", trainable_table(self))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """A batch → logits [B, K].

        Raises:
            ValueError: the head is one of maps, or of images where these are volumes.
        """
        if self._keeps and isinstance(self.head, ImageHead):
            return self.head.answer(self._vectors(batch), batch.get("present"))
        present = batch.get("present")
        values = _floats(batch["values"] if present is None else batch["slices"][present])
        pixels = Pixels(values=values)
        tokens = self.backbone(pixels, depths=self.head.depths)
        if present is not None:
            tokens = tuple(one.carry(PRESENT, present) for one in tokens)
        logits: Tensor = self.head(tokens, pixels.size)
        if logits.ndim != 2:
            raise ValueError(
                f"{type(self.head).__name__} answers for every pixel; take a head of whole images, such as Pooled"
            )
        return logits

    @property
    def _keeps(self) -> bool:
        """Whether what the head reads of a case is always the same."""
        if not self.frozen or self._trainer is None:
            return False
        return not self.training or self.trainer.datamodule.augment is None  # type: ignore[attr-defined]  # likewise

    def _vectors(self, batch: dict[str, Tensor]) -> Tensor:
        """What the head reads of the slices or images, computed once for each case."""
        keys = [int(case) for case in batch["case"]]
        new = [at for at, key in enumerate(keys) if key not in self._kept]
        if new:
            # outside of inference mode, whose tensors cannot be learned from afterwards
            with torch.inference_mode(mode=False), torch.no_grad():
                if "present" in batch:
                    present = batch["present"][new].clone()
                    values, lengths = batch["slices"][new][present], present.sum(1).tolist()
                else:
                    values, lengths = batch["values"][new], [1] * len(new)
                pixels = Pixels(values=_floats(values))
                tokens = self.backbone(pixels, depths=self.head.depths)
                vectors = self.head.embed(tokens)  # type: ignore[operator]  # forward has looked
                for at, part in zip(new, vectors.split(lengths), strict=True):
                    self._kept[keys[at]] = part.clone()
        return torch.cat([self._kept[key] for key in keys])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One step's loss."""
        loss = self._loss(self(batch), batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["case"]))
        return loss

    def _loss(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        loss: Tensor = self.loss(logits.float(), batch["label"])
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Collect what the network says."""
        logits = self(batch)
        if self.trainer.state.fn == "fit":
            self.log("val/loss", self._loss(logits, batch), sync_dist=True, batch_size=len(batch["case"]))
        self._gathered["val"].add(logits, batch)

    def on_validation_epoch_end(self) -> None:
        """Say how well it went."""
        tensors = self._all("val")
        if self.trainer.sanity_checking or tensors is None:
            return
        said = answers("val", tensors, self.source).predictions(self.source)
        told = {"auroc": _auroc(said), "balanced_accuracy": BalancedAccuracy().of(said)}
        if kind(self.source) == "ordinal":
            told["quadratic_kappa"] = Kappa(quadratic=True).of(said)
        for name, value in told.items():
            self.log(f"val/{name}", value, prog_bar=name != "balanced_accuracy", rank_zero_only=True)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collect what the network says of test and, for the choices that are made on it, of val."""
        self._gathered[_TESTED[dataloader_idx]].add(self(batch), batch)

    def on_test_epoch_end(self) -> None:
        """Choose on val, score test once, and write both into the run's folder."""
        gathered = {part: self._all(part) for part in _TESTED}
        if not self.trainer.is_global_zero:
            return
        told = {part: answers(part, found, self.source) for part, found in gathered.items() if found is not None}
        samples: Dataset[dict[str, Tensor]] = self.trainer.datamodule.parts["test"]  # type: ignore[attr-defined]  # likewise
        table, scores = write_record(
            self._folder,
            self.source,
            told,
            model=self.facts(),
            rule=self.operating_point,
            samples=samples,
            attention=self._attention if self.trainer.world_size == 1 else None,  # else all would have to run it
        )
        rank_zero_info("\n%s", table)
        for name, value in scores.items():
            self.log(f"test/{name}", value, rank_zero_only=True)

    def _attention(self, values: Tensor) -> NDArray[np.floating] | None:
        """How much attention each pixel of an image [C, H, W] gets for what the head reads, where that can be said."""
        if not isinstance(self.head, ImageHead):
            return None
        pixels = Pixels(values=_floats(values[None]).to(self.device))
        maps = attention_maps(self.backbone, pixels, asking="class" if self.head.reads_class else "mean")
        if maps is None:
            return None
        patch, (rows, columns) = self.backbone.spec.patch, pixels.size
        found: NDArray[np.floating] = maps[0].float().cpu().numpy().repeat(patch, 0).repeat(patch, 1)[:rows, :columns]
        return found

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Collect what the network says: logits [B, K] of the cases [B]."""
        said = {"case": batch["case"], "logits": self(batch)}
        self._gathered["predict"].add(said["logits"], said)
        return said

    def on_predict_epoch_end(self) -> None:
        """Write ``predictions.csv`` into the run's folder."""
        tensors = self._all("predict")
        if tensors is not None and self.trainer.is_global_zero:
            path = write_predictions(self._folder, self.source, answers("predict", tensors, self.source))
            rank_zero_info("predictions: %s in the run's folder", path.name)

    def _all(self, part: str) -> tuple[Tensor, ...] | None:
        """What all processes gathered of a part; forgotten here afterwards."""
        gathering = self._gathered[part]
        if not gathering:
            return None
        tensors = gathering.tensors()
        gathering.clear()
        if self.trainer.world_size == 1:
            return tensors
        device = [tensor.to(self.device) for tensor in tensors]
        gathered = [self.all_gather(tensor) for tensor in device]
        return tuple(tensor.flatten(0, 1).cpu() for tensor in gathered if isinstance(tensor, Tensor))

    @property
    def _folder(self) -> Path:
        return Path(self.trainer.default_root_dir)

    @property
    def baseline(self) -> str | None:
        """What kind of baseline this is: a linear probe, a small convolutional network, or none."""
        from geomed.backbones.cnn import Cnn  # late: only here

        if isinstance(self.backbone, Cnn):
            return "cnn"
        return "linear probe" if self.frozen and not self.adapters else None

    def facts(self) -> ModelFacts:
        """What a report says of the model."""
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in self.parameters()]
        return ModelFacts(
            backbone=self.backbone.name or type(self.backbone).__name__,
            adapter=" + ".join(type(adapter).__name__ for adapter in self.adapters) or None,
            trained=sum(size for size, trains in sizes if trains),
            parameters=sum(size for size, _ in sizes),
            baseline=self.baseline,
        )

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
        self._kept.clear()
        theirs: Sequence[str] = checkpoint.get("classes", [])
        if self.classes and theirs and tuple(theirs) != self.classes:
            raise ValueError(
                f"the checkpoint knows the classes {', '.join(theirs)}, the source has {', '.join(self.classes)}; "
                "test on the classes that it was trained for, or start a new run from its weights"
            )
        refuse_other_model(self.state_dict(), checkpoint["state_dict"])


def refuse_other_model(own: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Make sure that a checkpoint has the tensors of this model.

    Raises:
        ValueError: it has not.
    """
    wrong = sorted(set(own) ^ set(state)) or [name for name in own if own[name].shape != state[name].shape]
    if wrong:
        raise ValueError(
            f"the checkpoint is of another model: {len(wrong)} tensors differ ({wrong[0]}); "
            "use the config that it was trained with"
        )


def _floats(values: Tensor) -> Tensor:
    """Brightness from 0 to 1; a scan in its own unit as it is."""
    return values.float() / 255 if values.dtype == torch.uint8 else values


def _auroc(said: Predictions) -> float:
    """Mean AUROC of the classes that have cases and others beside them."""
    counts = said.targets.sum(0)
    there = tuple(said.classes[at] for at in said.scored if 0 < counts[at] < len(said.cases))
    return AUROC(classes=there).of(said) if there else float("nan")

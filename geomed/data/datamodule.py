"""The only LightningDataModule: any source, in batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lightning
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from geomed.data.shuffle import InMemory, Shuffle, Shuffled, count
from geomed.data.source import Part, Source, collate
from geomed.data.transforms import Augment
from geomed.evaluation.labelled_cases import LabelledCases

if TYPE_CHECKING:
    from torch import Tensor

_STAGES: dict[str, tuple[Part, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}


class DataModule(lightning.LightningDataModule):
    """Batches of a source.

    Training samples come in a new order each epoch and are augmented; both follow from ``seed`` and the epoch alone,
    whatever the count of workers. The other parts come in their order, unchanged. Of cases with labels the test comes
    with val behind it, on which a threshold and a temperature are chosen.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        workers: int = 0,
        augment: Augment | None = Augment(),  # noqa: B008  (frozen)
        in_memory: bool = False,
        balanced: bool = False,
        seed: int = 0,
    ) -> None:
        """Hold the source; nothing is read before ``prepare_data``.

        Args:
            source: where the samples come from.
            batch_size: samples of a training batch.
            eval_batch_size: samples of a val, test or predict batch; None: as in training.
            workers: processes that read; 0: this one.
            augment: what may change a training sample; None: nothing.
            in_memory: keep every sample once it is read (each worker keeps its own).
            balanced: draw training cases with replacement so that every class is as likely; for one label a case.
            seed: of order and augmentation.

        Raises:
            ValueError: a batch of nothing, or fewer than no workers.
        """
        super().__init__()
        eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        if min(batch_size, eval_batch_size) < 1 or workers < 0:
            raise ValueError(
                "batch sizes must be at least 1 and workers at least 0, not "
                f"{batch_size}, {eval_batch_size} and {workers}; correct them"
            )
        self.source, self.augment = source, augment
        self.batch_size, self.eval_batch_size, self.workers = batch_size, eval_batch_size, workers
        self.in_memory, self.balanced, self.seed = in_memory, balanced, seed
        self.parts: dict[Part, Dataset[dict[str, Tensor]]] = {}

    def prepare_data(self) -> None:
        """Let the source generate or verify what it needs, in one process.

        Raises:
            ValueError: something is not as it must be; the message names it.
        """
        self.source.prepare()

    def setup(self, stage: str) -> None:
        """Split the source as far as a stage needs it.

        Raises:
            ValueError: the split does not fit the data, or there is nothing to do in this stage.
        """
        wanted = _STAGES[stage]
        if stage == "test" and isinstance(self.source, LabelledCases) and self.source.division.part("val"):
            wanted = ("test", "val")
        for part in wanted:
            if part in self.parts:
                continue
            samples = self.source.split(part)
            if not count(samples) and not (stage == "fit" and part == "val"):
                raise ValueError(f"{part} has no samples; give it an area, a year or blocks in the split")
            self.parts[part] = InMemory(samples) if self.in_memory else samples

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Shuffled and augmented."""
        samples = self.parts["train"]
        order = Shuffle(samples, self.seed, self._shares() if self.balanced else None)
        return self._loader(Shuffled(samples, self.augment), self.batch_size, order)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]] | list[DataLoader[dict[str, Tensor]]]:
        """In order; no loader at all where the split has no val part."""
        return self._loader(self.parts["val"], self.eval_batch_size) if count(self.parts["val"]) else []

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]] | list[DataLoader[dict[str, Tensor]]]:
        """In order; of cases with labels test and, where there is one, val."""
        test = self._loader(self.parts["test"], self.eval_batch_size)
        if isinstance(self.source, LabelledCases) and "val" in self.parts and count(self.parts["val"]):
            return [test, self._loader(self.parts["val"], self.eval_batch_size)]
        return test

    def predict_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """In order."""
        return self._loader(self.parts["predict"], self.eval_batch_size)

    def _shares(self) -> Tensor:
        """How likely each training case is drawn: as much as all others of its class together as of another.

        Raises:
            ValueError: the samples have not one label each.
        """
        if not isinstance(self.source, LabelledCases) or self.source.several:
            raise ValueError(
                "balanced sampling is for cases of one class each; for findings take BinaryCrossEntropy with weights "
                "balanced, for maps weights of the loss"
            )
        labels = torch.from_numpy(self.source.truth("train"))
        return 1 / torch.bincount(labels).double()[labels]

    def _loader(
        self, samples: Dataset[dict[str, Tensor]], batch_size: int, sampler: Sampler[tuple[int, int]] | None = None
    ) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(
            samples,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
        )

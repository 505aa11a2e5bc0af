"""The LightningDataModule of pre-training: crops of any source's images, without their labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lightning
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from geomed.data.crops import Cropped, Crops, refuse_several
from geomed.data.drawable import Drawable
from geomed.data.shuffle import InMemory, Shuffle, count
from geomed.data.source import Source, collate

if TYPE_CHECKING:
    from torch import Tensor


class PretrainingData(lightning.LightningDataModule):
    """Crops of a source's training images.

    Order and crops follow from ``seed`` and the epoch alone, whatever the count of workers, and a run that is resumed
    goes on as it would have. What a ``monitor`` gives is for a look at the features while they are learned; that is its
    training part, too, so nothing that is chosen by it has seen a case that is later tested.
    """

    def __init__(
        self,
        source: Source,
        *,
        crops: Crops = Crops(),  # noqa: B008  (frozen)
        monitor: Source | None = None,
        batch_size: int = 64,
        workers: int = 0,
        in_memory: bool = False,
        seed: int = 0,
    ) -> None:
        """Hold the sources; nothing is read before ``prepare_data``.

        Args:
            source: where the images come from; its training part is taken, and labels are not read from it.
            crops: what a network sees of an image.
            monitor: a source with labels in the same bands, whose training part is given whole and in order after each
                epoch; None: nothing is.
            batch_size: images of a batch.
            workers: processes that read; 0: this one.
            in_memory: keep every image once it is read (each worker keeps its own).
            seed: of order and crops.

        Raises:
            ValueError: batches of fewer than two images, or fewer than no workers.
        """
        super().__init__()
        if batch_size < 2 or workers < 0:
            raise ValueError(
                "batch_size must be at least 2, since objectives compare the images of a batch, and workers at least "
                f"0, not {batch_size} and {workers}; correct them"
            )
        self.source, self.crops, self.monitor = source, crops, monitor
        self.batch_size, self.workers, self.in_memory, self.seed = batch_size, workers, in_memory, seed
        self.images: Dataset[dict[str, Tensor]] | None = None
        self.monitored: Dataset[dict[str, Tensor]] | None = None

    def prepare_data(self) -> None:
        """Let the sources generate or verify what they need, in one process.

        Raises:
            ValueError: something is not as it must be; the message names it.
        """
        if self.monitor is not None:
            self.monitor.prepare()
        self.source.prepare()

    def setup(self, stage: str) -> None:
        """Read the lists of images, and one image of each.

        Raises:
            ValueError: there are too few images, or they are series, volumes, of other bands; or a stage that
                pre-training does not have.
        """
        if stage not in {"fit", "validate"}:
            raise ValueError(f"pre-training has no {stage}; test what was learned with the labels of a task")
        if self.monitor is not None and self.monitored is None:
            self.monitored = self._watched(self.monitor)
        if stage == "fit" and self.images is None:
            self.images = self._images()

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Shuffled and cropped, without what is left over at the end of an epoch.

        Raises:
            ValueError: ``setup`` was not called.
        """
        if self.images is None:
            raise ValueError("there are no images yet; call setup('fit') first")
        order = Shuffle(self.images, self.seed)
        if self.trainer is not None:
            # Where processes share the images, Lightning 2.5 tells the epoch to its own wrapper of the sampler only.
            order.set_epoch(self.trainer.current_epoch)
        return DataLoader(
            Cropped(self.images, self.crops),
            batch_size=self.batch_size,
            sampler=order,
            drop_last=True,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=default_collate,
        )

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]] | list[DataLoader[dict[str, Tensor]]]:
        """The monitor's training part in order and whole; no loader at all where there is no monitor."""
        if self.monitored is None:
            return []
        return DataLoader(
            self.monitored,
            batch_size=self.batch_size,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
        )

    def _images(self) -> Dataset[dict[str, Tensor]]:
        images = self.source.split("train")
        found = count(images)
        if found < 2:
            raise ValueError(
                "pre-training needs at least 2 images, since it learns from how they differ, and the source's training "
                f"part has {found}; cut large images into tiles, or add more"
            )
        processes = 1 if self.trainer is None else self.trainer.world_size
        share = -(-found // processes)
        if share < self.batch_size:
            raise ValueError(
                f"a batch of {self.batch_size} is more than the {share} images that each of {processes} processes has, "
                f"so that an epoch would have no step; lower batch_size to {max(share, 2)} or less, or add images"
            )
        if self.in_memory and isinstance(images, Drawable):
            raise ValueError(
                "in_memory keeps images once they are read, these are drawn anew each time; leave it out, and let the "
                "source keep its files close"
            )
        images = InMemory(images) if self.in_memory else images
        Cropped(images, self.crops)[0, 0]  # an image that cannot be cropped is told now, not by a worker
        return images

    def _watched(self, monitor: Source) -> Dataset[dict[str, Tensor]]:
        if tuple(monitor.bands) != tuple(self.source.bands):
            raise ValueError(
                f"monitor has the bands {', '.join(monitor.bands)} and the source {', '.join(self.source.bands)}; one "
                "network reads both, so give both the same in the same order"
            )
        samples = monitor.split("train")
        if not count(samples):
            raise ValueError("the monitor's training part has no samples; give it an area or cases, or leave it out")
        samples = InMemory(samples) if self.in_memory else samples
        refuse_several(samples[0])
        return samples

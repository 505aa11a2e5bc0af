"""Writes predictions as georeferenced maps, scene by scene."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from geomed.io.geotiff import MapWriter
from geomed.palette import palette
from geomed.windows import Window

if TYPE_CHECKING:
    import lightning
    from torch import Tensor


class MapsCallback(Callback):
    """On ``predict``: one GeoTIFF of classes for each scene, in ``<run>/maps``, with colours and names."""

    def __init__(self, folder: str | None = None) -> None:
        """``folder`` takes the maps; None means ``maps`` in the run's folder."""
        self.folder = folder
        self._writers: dict[int, MapWriter] = {}

    def on_predict_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Refuse to share one file between processes.

        Raises:
            ValueError: more than one process predicts.
        """
        if trainer.world_size > 1:
            raise ValueError(f"maps are written by one process, not {trainer.world_size}; set --trainer.devices 1")

    def on_predict_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,  # noqa: ANN401  (Lightning's type)
        batch: Any,  # noqa: ANN401  (likewise)
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write each sample's kept pixels where they belong."""
        told: dict[str, Tensor] = {name: value.cpu() for name, value in outputs.items()}
        for sample in range(len(told["scene"])):
            writer = self._writer(trainer, int(told["scene"][sample]))
            read, keep = (Window(*told[name][sample].tolist()) for name in ("read", "keep"))
            writer.write(keep, told["classes"][sample][keep.within(read).slices].numpy())

    def _writer(self, trainer: lightning.Trainer, number: int) -> MapWriter:
        if number not in self._writers:
            source = trainer.datamodule.source  # type: ignore[attr-defined]  # Lightning sets it
            scene = source.scenes()[number]
            folder = Path(self.folder) if self.folder else Path(trainer.default_root_dir) / "maps"
            self._writers[number] = MapWriter(
                folder / f"{scene.name}.tif", scene.grid, names=source.classes, colours=palette(source.classes)
            )
        return self._writers[number]

    def on_predict_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Finish the maps and say where they are."""
        for writer in self._writers.values():
            writer.close()
            rank_zero_info("map: %s", writer.path)
        self._writers.clear()

    def on_exception(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        exception: BaseException,
    ) -> None:
        """Leave no half map behind."""
        for writer in self._writers.values():
            writer.discard()
        self._writers.clear()

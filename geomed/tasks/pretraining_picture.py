"""A picture of a pre-training: how it went, and what a masked autoencoder draws."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from geomed.tasks.mae import MAE
from geomed.tasks.pretraining import views_of

if TYPE_CHECKING:
    import lightning
    from matplotlib.figure import SubFigure
    from numpy.typing import NDArray
    from torch import Tensor

    from geomed.tasks.pretraining import Pretraining

PICTURE = "pretraining.png"
_IMAGES = 6
_PANELS = (("loss", ("train/loss",)), ("macro F1 on a few labels", ("monitor/knn", "monitor/linear")))
_HEALTH = ("health of the features", ("train/spread", "train/entropy"))
_COLOURS = ({"B04", "red"}, {"B03", "green"}, {"B02", "blue"})


class PretrainingPicture(Callback):
    """After ``fit``: ``<run>/pretraining.png``."""

    def __init__(self, *, images: bool = True) -> None:
        """``images``: show some of them too. Scans are pictures of people, which a run must not hand on."""
        self.images = images
        self.curves: dict[str, list[tuple[int, float]]] = {}
        self.batch: dict[str, Tensor] | None = None

    def state_dict(self) -> dict[str, object]:
        """The curves, so that a resumed run shows all of itself."""
        return {"curves": {name: list(points) for name, points in self.curves.items()}}

    def load_state_dict(self, state_dict: dict[str, dict[str, list[tuple[int, float]]]]) -> None:
        """Take them up."""
        self.curves = {name: [tuple(point) for point in points] for name, points in state_dict["curves"].items()}

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: dict[str, Tensor],
        batch_idx: int,
    ) -> None:
        """Note the figures that the log gets."""
        self.batch = {name: tensor[:_IMAGES] for name, tensor in batch.items()} if self.images else None
        if trainer.global_step % max(trainer.log_every_n_steps, 1) == 0:  # type: ignore[attr-defined]  # Lightning sets it
            self._note(trainer)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Pretraining) -> None:  # type: ignore[override]
        """Note what the monitor says before the first step."""
        for name, value in pl_module.before.items():
            if trainer.global_step == 0:
                self.curves[f"monitor/{name}"] = [(0, value)]

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Note what the monitor says."""
        self._note(trainer)

    def _note(self, trainer: lightning.Trainer) -> None:
        for name in (*_HEALTH[1], *(name for _, names in _PANELS for name in names)):
            value = trainer.callback_metrics.get(name)
            points = self.curves.setdefault(name, [])
            if value is not None and (not points or points[-1][1] != float(value)):  # else an old one
                points.append((trainer.global_step, float(value)))

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: Pretraining) -> None:  # type: ignore[override]
        """Draw it."""
        drawn = None
        if isinstance(pl_module.objective, MAE) and self.batch is not None and pl_module.device_mesh is None:
            drawn = _drawn(pl_module, pl_module.objective, self.batch)
        if trainer.is_global_zero:
            save_picture(Path(trainer.default_root_dir) / PICTURE, self.curves, drawn)


def save_picture(
    path: Path, curves: dict[str, list[tuple[int, float]]], drawn: tuple[NDArray[np.floating], ...] | None
) -> None:
    """Write curves, and rows of images below them.

    Args:
        path: the PNG.
        curves: by the name in the log, (step, value).
        drawn: images, what was seen of them, what was drawn: each [N, H, W, 3], from 0 to 1.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late: it loads for half a second
    from matplotlib.figure import Figure

    panels = [panel for panel in (*_PANELS, _HEALTH) if any(curves.get(name) for name in panel[1])]
    figure = Figure(figsize=(11, 3 if drawn is None else 7.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subfigures(2, 1, height_ratios=(3, 4.4)) if drawn is not None else (figure, None)
    for axes, (title, names) in zip(above.subplots(1, max(len(panels), 1), squeeze=False)[0], panels, strict=False):
        for name in names:
            if curves.get(name):
                axes.plot(*zip(*curves[name], strict=True), marker=".", markersize=4, label=name.rpartition("/")[2])
        if names is not _PANELS[0][1]:
            axes.set_ylim(0, 1)
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend(fontsize=8)
    if below is not None and drawn is not None:
        _rows(below, drawn)
    figure.savefig(path, metadata={"Software": "geomed"})


def _rows(figure: SubFigure, drawn: tuple[NDArray[np.floating], ...]) -> None:
    grid = figure.subplots(len(drawn), len(drawn[0]), squeeze=False)
    for row, images, title in zip(grid, drawn, ("images", "seen", "drawn"), strict=True):
        for axes, image in zip(row, images, strict=True):
            axes.imshow(image, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
        row[0].set_ylabel(title, fontsize=9)


def _drawn(task: Pretraining, objective: MAE, batch: dict[str, Tensor]) -> tuple[NDArray[np.floating], ...]:
    (pixels,) = views_of(batch).wide
    task.eval()
    seen, drawn = objective.pictures(task.backbone, pixels, torch.Generator().manual_seed(0))
    task.train()
    bands = task.backbone.inputs.bands
    found = [next((number for number, band in enumerate(bands) if band in colour), None) for colour in _COLOURS]
    chosen = [number for number in found if number is not None]
    if len(chosen) < 3:
        chosen = [0, len(bands) // 2, len(bands) - 1]
    images = [one[:, chosen].float().cpu().numpy() for one in (pixels.values, seen, drawn)]
    axes = (2, 3)
    low, high = (np.percentile(images[0], share, axis=axes, keepdims=True) for share in (2, 98))
    shown = [np.clip((one - low) / np.maximum(high - low, 1e-6), 0, 1) for one in images]
    return tuple(np.moveaxis(np.nan_to_num(one, nan=0.85), 1, -1) for one in shown)

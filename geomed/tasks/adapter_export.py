"""Writes the adapter of a run as a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from geomed.adapters.files import save_adapter

if TYPE_CHECKING:
    import lightning

    from geomed.tasks.segmentation import Segmentation


class AdapterExport(Callback):
    """After ``fit``: ``<run>/adapter.safetensors``, with the head, bound to the base weights by their hash."""

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: Segmentation) -> None:  # type: ignore[override]
        """Write it, if the run trained adapters."""
        if not pl_module.adapters:
            return
        path = Path(trainer.default_root_dir) / "adapter.safetensors"
        facts = {"classes": list(pl_module.classes), "bands": list(pl_module.backbone.inputs.bands)}
        size = save_adapter(path, pl_module.backbone, pl_module.adapters, head=pl_module.head, facts=facts)
        rank_zero_info("adapter: %s, %.1f kB", path, size / 1000)

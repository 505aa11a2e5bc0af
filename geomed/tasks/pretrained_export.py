"""Writes what a pre-training has learned as files that any later task starts from."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import save_file

from geomed.adapters.adapter import adapted_modules, adapter_state, base_state, merge
from geomed.adapters.files import PRETRAINING, save_adapter
from geomed.backbones.backbone import whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import lightning
    from torch import Tensor, nn

    from geomed.tasks.pretraining import Pretraining

ADAPTER, BACKBONE, OBJECTIVE = "adapter.safetensors", "backbone.safetensors", "objective.safetensors"


class PretrainedExport(Callback):
    """After ``fit``, in the run's folder:

    - ``adapter.safetensors``: what the adapters learned, small, bound to the base weights by their hash; a later task
      takes it as the first of its adapters, where it is folded into the base
    - ``backbone.safetensors``: the whole network, adapters folded in, where none trained or ``merged`` asks for it
    - ``objective.safetensors``: decoder or heads, for a pre-training that goes on from here

    Of an objective with a teacher the teacher is what is written.
    """  # noqa: D415  (a list follows)

    def __init__(self, *, merged: bool = False) -> None:
        """``merged`` writes the whole network too, where adapters trained."""
        self.merged = merged

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Refuse early what would fail at the end.

        Raises:
            ValueError: the whole network is asked for, and processes hold parts of it.
        """
        if self.merged and pl_module.device_mesh is not None:
            raise ValueError(
                "adapters are folded in where one process holds whole tensors; leave merged out under FSDP and load "
                f"{ADAPTER} in one process"
            )

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: Pretraining) -> None:  # type: ignore[override]
        """Write the files, but not after a trial of a few steps (``fast_dev_run``)."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning sets it
            return
        folder = Path(trainer.default_root_dir)
        backbone, result = pl_module.backbone, pl_module.objective.result(pl_module.backbone)
        own = set(adapter_state(backbone))
        facts = {PRETRAINING: type(pl_module.objective).__name__, "bands": list(backbone.inputs.bands)}
        if pl_module.adapters:
            with exchanged(backbone, result if set(result) <= own else {}):
                size = save_adapter(folder / ADAPTER, backbone, pl_module.adapters, facts=facts)
            rank_zero_info("adapter: %s, %.1f kB", folder / ADAPTER, size / 1000)
        if not pl_module.adapters or self.merged or not set(result) <= own:
            with exchanged(backbone, result):
                save_backbone(folder / BACKBONE, backbone, write=trainer.is_global_zero)
            rank_zero_info("backbone: %s", folder / BACKBONE)
        kept = {name: whole(value).contiguous() for name, value in pl_module.objective.kept().items()}
        if kept and trainer.is_global_zero:
            _save(kept, folder / OBJECTIVE)
        trainer.strategy.barrier()  # what comes next in another process may read these files


@contextmanager
def exchanged(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """A module with other values of some of its parameters, within."""
    named = dict(module.named_parameters())
    before = {name: named[name].detach().clone() for name in tensors}
    with torch.no_grad():
        for name, value in tensors.items():
            named[name].copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                named[name].copy_(value)


def save_backbone(path: Path, backbone: nn.Module, *, write: bool = True) -> None:
    """Write a backbone, its adapters folded in, under the names that it has where nothing is attached.

    Args:
        path: the file.
        backbone: stays as it is.
        write: False in all processes but the first; all have to ask where each holds a part.

    Raises:
        ValueError: an adapter cannot be folded in.
    """
    plain = backbone
    if adapted_modules(backbone):
        plain = copy.deepcopy(backbone)
        merge(plain)
    state = {f"backbone.{name}": whole(value).contiguous() for name, value in base_state(plain).items()}
    if write:
        _save(state, path)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_file(tensors, part)
    part.replace(path)

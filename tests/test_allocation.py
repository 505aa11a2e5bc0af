from __future__ import annotations

import lightning
import pytest
import torch
from torch import Tensor, nn

from geomed.adapters import SNELLA, Adapter, LoRA, attach
from geomed.tasks.allocation import SparsityAllocation


class Task(lightning.LightningModule):
    """Two Linears, of which only the first has anything to learn."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.ModuleDict({"fc1": nn.Linear(8, 16), "fc2": nn.Linear(8, 16)})
        attach(self.network, adapter)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self.network["fc1"](batch[0]) - 2).square().mean() + 1e-4 * self.network["fc2"](batch[0]).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.01)

    def kept(self) -> list[float]:
        return [float(self.network[name].kept[0]) for name in ("fc1", "fc2")]


class Watch(lightning.Callback):
    """Notes what survives after each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen.append(sum(pl_module.kept()) / 2)


def train(task: Task, folder, *, callbacks=(), path=None, **settings) -> lightning.Trainer:
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(40, 8)), batch_size=4)
    trainer = lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[SparsityAllocation(), *callbacks],
        **settings,
    )
    trainer.fit(task, data, ckpt_path=path)
    return trainer


pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*")


def test_survivors_become_fewer_along_the_schedule_and_go_where_they_matter(tmp_path):
    task, watch = Task(SNELLA(rank=4, initial=0.0, sparsity=0.75)), Watch()
    train(task, tmp_path, callbacks=[watch], max_epochs=4)
    expected = [0.25 + 0.75 * (1 - step / 40) ** 3 for step in range(1, 40)]
    assert watch.seen[:-1] == pytest.approx(expected, abs=0.02)  # of 256 numbers, some are lost to rounding
    assert watch.seen[-1] == watch.seen[-2]
    first, second = task.kept()
    assert first > second


def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    whole = Task(SNELLA(rank=4, sparsity=0.75))
    torch.manual_seed(1)
    train(whole, tmp_path, max_epochs=4)
    half = Task(SNELLA(rank=4, sparsity=0.75))
    torch.manual_seed(1)

    class Stop(lightning.Callback):
        def on_train_epoch_end(self, trainer, pl_module) -> None:
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "half.ckpt")
                trainer.should_stop = True

    train(half, tmp_path, callbacks=[Stop()], max_epochs=4)
    state = torch.load(tmp_path / "half.ckpt", weights_only=True)["callbacks"]["SparsityAllocation"]
    assert state["start"] == pytest.approx(0.99 * 256)
    assert set(state["means"]) == {f"network.{name}.{part}" for name in ("fc1", "fc2") for part in ("outs", "ins")}
    torch.manual_seed(1)
    rest = Task(SNELLA(rank=4, sparsity=0.75))
    torch.manual_seed(1)
    train(rest, tmp_path, path=tmp_path / "half.ckpt", max_epochs=4)
    assert rest.kept() == whole.kept()


def test_other_adapters_train_as_before(tmp_path):
    task = Task(LoRA(rank=2, targets=("fc1", "fc2")))
    trainer = train(task, tmp_path, max_epochs=1)
    assert trainer.callbacks[0].allocation is None
    assert trainer.callbacks[0].state_dict() == {}


def test_training_without_an_end_is_refused(tmp_path):
    with pytest.raises(ValueError, match="give max_epochs or max_steps"):
        train(Task(SNELLA(rank=4)), tmp_path, max_epochs=-1)

"""What adapters do in two processes, under DDP and FSDP2.

Processes start slowly: one pair of them tries every adapter and writes down how it went, and each test reads its line.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import traceback
from typing import TYPE_CHECKING

import pytest
import torch
from test_adapters import ADAPTERS, BACKBONES, adapter_for, disturb, features, pixels
from torch import Tensor, distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from geomed.adapters import Adapter, adapter_state, attach
from geomed.adapters.files import load_adapter, read_adapter, save_adapter
from geomed.adapters.sharding import shard
from geomed.backbones.backbone import whole

if TYPE_CHECKING:
    from pathlib import Path

    from geomed.pixels import Pixels

pytestmark = pytest.mark.slow

NETWORKS = ("tsvit", "vit")


class Loss(nn.Module):
    """A network with a loss behind it, as DDP wants it."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, given: Pixels) -> Tensor:
        return features(self.backbone, given).square().mean()


def made(network: str, name: str) -> tuple[nn.Module, Adapter]:
    """A small network, plain, and an adapter for it."""
    torch.manual_seed(0)
    backbone = BACKBONES[network]().double()
    if network == "vit":
        backbone.blocks = backbone.blocks[:3]
    return backbone, adapter_for(backbone, name)


def sample(given: Pixels, rank: int) -> Pixels:
    one = {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}
    return type(given)(**{name: None if value is None else value[rank : rank + 1] for name, value in one.items()})


def expected_gradients(backbone: nn.Module, given: Pixels) -> dict[str, Tensor]:
    """What one process finds that has both samples."""
    alone = copy.deepcopy(backbone)
    torch.stack([Loss(alone)(sample(given, rank)) for rank in range(2)]).mean().backward()
    return {name: p.grad for name, p in alone.named_parameters() if p.requires_grad}


def replicated(network: str, name: str, rank: int, folder: Path) -> None:
    """Two steps under DDP; every parameter must get a gradient, or the second one fails."""
    backbone, adapter = made(network, name)
    attach(backbone, adapter)
    disturb(backbone)
    given = pixels(backbone)
    expected = expected_gradients(backbone, given)
    loss = DistributedDataParallel(Loss(backbone), find_unused_parameters=False)
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=1e-3)
    for step in range(2):
        optimizer.zero_grad()
        loss(sample(given, rank)).backward()
        if step == 0:
            found = {n: p.grad.clone() for n, p in backbone.named_parameters() if p.requires_grad}
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        optimizer.step()
    size = save_adapter(folder / f"{network}-{name}-ddp", backbone, [adapter])
    assert (size > 0) == (rank == 0)


def sharded(network: str, name: str, rank: int, folder: Path) -> None:
    """A step under FSDP2; the file that it leaves works in one process."""
    fresh, adapter = made(network, name)
    backbone = copy.deepcopy(fresh)
    attach(backbone, adapter)
    disturb(backbone)
    given = pixels(backbone)
    expected = expected_gradients(backbone, given)
    names = set(adapter_state(backbone))
    shard(backbone, init_device_mesh("cpu", (2,)))
    assert all(isinstance(p, DTensor) for p in backbone.parameters() if not p.requires_grad)
    Loss(backbone)(sample(given, rank)).backward()
    found = {n: whole(p.grad) for n, p in backbone.named_parameters() if p.grad is not None}
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=1e-3).step()
    with torch.no_grad():
        outputs = features(backbone, given)
    path = folder / f"{network}-{name}-fsdp"
    size = save_adapter(path, backbone, [adapter])
    assert (size > 0) == (rank == 0)
    distributed.barrier()
    assert {n.removeprefix("backbone.") for n in read_adapter(path).tensors} == names
    load_adapter(path, fresh)
    with torch.no_grad():
        torch.testing.assert_close(features(fresh, given), outputs, rtol=0, atol=1e-12)


TRIALS = {"ddp": replicated, "fsdp": sharded}


def work(rank: int, folder: Path) -> None:
    """One of the two processes."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    went = {}
    for kind, trial in TRIALS.items():
        for network in NETWORKS:
            for name in ADAPTERS:
                (folder / f"now-{rank}").write_text(f"{kind} {network} {name}")
                try:
                    trial(network, name, rank, folder)
                except Exception:  # noqa: BLE001  (it is the test that fails)
                    went[f"{kind} {network} {name}"] = traceback.format_exc()
    (folder / f"went-{rank}.json").write_text(json.dumps(went))
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def went(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("distributed")
    try:
        multiprocessing.spawn(work, (folder,), nprocs=2)
    except multiprocessing.ProcessExitedException as error:
        pytest.fail(f"{error}, at {(folder / f'now-{error.error_index}').read_text()}")
    first, second = (json.loads((folder / f"went-{rank}.json").read_text()) for rank in range(2))
    return second | first


@pytest.mark.parametrize("name", sorted(ADAPTERS))
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", sorted(TRIALS))
def test_two_processes_train_as_one_does(went, kind, network, name):
    trouble = went.get(f"{kind} {network} {name}")
    assert trouble is None, trouble

"""A network and its adapters, shared out among processes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard

from geomed.adapters.adapter import Adapted, innermost
from geomed.backbones.block import Block, WholeBlock

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def shard(root: nn.Module, mesh: DeviceMesh) -> None:
    """Give each process a part of every tensor (FSDP2): block by block, then what is outside of blocks.

    Where several blocks share an adapter's module, `fully_shard` alone fails. The few parameters in it stay whole in
    each process here, start as the first process has them, and their gradients are averaged as DDP does. Attach and
    load adapters before this, make the optimizer after; `save_adapter` puts the parts together again.

    Args:
        root: a backbone, or a module with one inside.
        mesh: one axis of processes.
    """
    blocks = [
        child
        for module in root.modules()
        if not isinstance(module, Adapted)
        for child in module.children()
        if isinstance(innermost(child), (Block, WholeBlock))
    ]
    uses = Counter(parameter for block in blocks for parameter in block.parameters())
    common = [parameter for parameter, count in uses.items() if count > 1]
    for parameter in common:
        distributed.broadcast(parameter.data, group=mesh.get_group(), group_src=0)
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda tensor: _average(tensor, mesh))
    for block in blocks:
        fully_shard(block, mesh=mesh, ignored_params=set(common))
    fully_shard(root, mesh=mesh, ignored_params=set(common))


def _average(parameter: Tensor, mesh: DeviceMesh) -> None:
    if parameter.grad is not None:
        distributed.all_reduce(parameter.grad, group=mesh.get_group())
        parameter.grad /= mesh.size()

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geomed.adapters import VPT, LoRA, SideNetwork, adapted_modules, adapter_state, attach
from geomed.adapters.counts import trainable
from geomed.adapters.side_network import SideBlock
from geomed.backbones.inputs import Inputs
from geomed.backbones.tsvit import TSViT, TSViTSize
from geomed.backbones.vit import ViT, ViTSize
from geomed.pixels import Pixels
from geomed.tokens import Tokens


def rgb() -> Inputs:
    return Inputs(("red", "green", "blue"), [0.5] * 3, [0.2] * 3)


def vit(depth: int = 4) -> ViT:
    torch.manual_seed(0)
    size = ViTSize(dim=24, depth=depth, heads=3, patch=8)
    return ViT("vit_tiny_patch16_224", inputs=rgb(), image_size=16, size=size).double()


def images() -> Pixels:
    return Pixels(values=torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64))


def disturb(backbone: nn.Module) -> None:
    made = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=made, dtype=parameter.dtype))


def side_blocks(backbone: nn.Module) -> list[SideBlock]:
    return [module for module in adapted_modules(backbone) if isinstance(module, SideBlock)]


def as_published(backbone: ViT, beta: float, late: set[int]) -> Tensor:
    """Fu, Zhu and Wu's equations on the same blocks, one after the other, with a full h."""
    side = side_blocks(backbone)
    x = backbone.stem(backbone.inputs(images().values))
    h = torch.zeros_like(x)
    for number, block in enumerate(backbone.blocks):
        if number < len(side):
            h = h + x @ side[number].down.T @ side[number].up
        plain = block.base if number < len(side) else block
        x = plain(Tokens(x, (2, 3), 1)).data
        if number in late:
            answer = h * torch.sigmoid(beta * h)
            if side[number].mixer is not None:
                weight = side[number].mixer.weight
                grid = answer[:, 1:].transpose(1, 2).reshape(2, 24, 2, 3)
                grid = F.conv2d(grid, weight, padding=weight.shape[-1] // 2, groups=24)
                answer = torch.cat((answer[:, :1], grid.flatten(2).transpose(1, 2)), 1)
            x = x + answer
    return backbone.norm(x)


@pytest.mark.parametrize(
    ("adapter", "late"),
    [
        (SideNetwork(), {2, 3}),
        (SideNetwork(rank=3, beta=2.0, late=(1, -1)), {1, 3}),
        (SideNetwork(rank=1, beta=5.0, late=(0, 2), kernel=3), {0, 2}),
    ],
)
@pytest.mark.parametrize("stacked", [False, True], ids=["alone", "over LoRA"])
def test_outputs_and_gradients_equal_the_published_equations(adapter, late, stacked):
    backbone = vit()
    if stacked:
        attach(backbone, LoRA(rank=1))
    attach(backbone, adapter)
    disturb(backbone)
    found = []
    for run in (lambda: backbone(images())[0].data, lambda: as_published(backbone, adapter.beta, late)):
        backbone.zero_grad()
        out = run()
        out.sin().sum().backward()
        found.append((out.detach(), {n: p.grad.clone() for n, p in backbone.named_parameters() if p.requires_grad}))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)
    assert all(grad.abs().sum() > 0 for grad in found[0][1].values())


def test_no_gradient_flows_before_the_late_blocks():
    backbone = vit()
    attach(backbone, SideNetwork(late=(2, 3)))
    disturb(backbone)
    tokens = Tokens(backbone.stem(backbone.inputs(images().values)), (2, 3), 1)
    flows = []
    for block in backbone.blocks:
        inside = block.base(tokens)
        flows.append((tokens.data.requires_grad, inside.data.requires_grad))
        tokens = block(tokens)
    assert flows == [(False, False), (False, False), (False, False), (True, True)]
    assert tokens.data.requires_grad


def kept_numbers(backbone: nn.Module) -> int:
    """How many different numbers, those of parameters left out, wait for the backward pass."""
    own = {parameter.untyped_storage().data_ptr() for parameter in backbone.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            kept[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = backbone(images())[0].data
    assert out.requires_grad
    return sum(tensor.untyped_storage().nbytes() // tensor.itemsize for tensor in kept.values())


def test_of_the_early_blocks_only_their_inputs_are_kept():
    backbone = vit(depth=6)
    attach(backbone, SideNetwork(rank=1, late=(-1,)))
    tokens, width = 2 * 7, 24
    inputs = 6 * tokens * width
    last_norm = tokens * (width + 2)
    narrow = tokens * 6 + 6 * width  # A x of all blocks side by side, and all B
    assert inputs < kept_numbers(backbone) <= inputs + last_norm + narrow


@pytest.mark.parametrize("name", ["vit_base_patch16_224", "vit_small_patch16_224"])
def test_counts_are_the_published_ones(name):
    with torch.device("meta"):
        backbone = ViT(name, inputs=rgb())
    attach(backbone, SideNetwork())
    assert trainable(backbone) == {"vit_base_patch16_224": 36_864, "vit_small_patch16_224": 18_432}[name]


def test_blocks_after_the_last_late_one_are_left_alone():
    backbone = vit()
    attach(backbone, SideNetwork(late=(1,), kernel=3))
    assert [block.late for block in side_blocks(backbone)] == [False, True]
    assert trainable(backbone) == 2 * 2 * 2 * 24 + 9 * 24


def test_all_late_blocks_share_one_convolution():
    backbone = vit()
    attach(backbone, SideNetwork(kernel=5))
    assert len({id(block.mixer) for block in side_blocks(backbone) if block.late}) == 1
    assert sum(name.endswith("mixer.weight") for name in adapter_state(backbone)) == 1


@pytest.mark.parametrize(("depth", "late"), [(1, [0]), (2, [1]), (3, [1, 2]), (12, [6, 7, 8, 9, 10, 11])])
def test_the_later_half_is_late_unless_told(depth, late):
    backbone = vit(depth)
    attach(backbone, SideNetwork())
    assert [number for number, block in enumerate(side_blocks(backbone)) if block.late] == late


def test_dates_are_left_alone():
    size = TSViTSize(dim=16, heads=2, head_dim=8, temporal_depth=2, spatial_depth=2)
    backbone = TSViT(inputs=rgb(), num_classes=3, size=size, image_size=8)
    attach(backbone, SideNetwork())
    wrapped = [name for name, module in backbone.named_modules() if isinstance(module, SideBlock)]
    assert wrapped == ["spatial.blocks.0", "spatial.blocks.1"]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: SideNetwork(rank=0), "rank and beta must be positive"),
        (lambda: SideNetwork(beta=0.0), "rank and beta must be positive"),
        (lambda: SideNetwork(kernel=4), "kernel must be odd, or 0 for no convolution, not 4"),
        (lambda: attach(vit(), SideNetwork(late=(4,))), r"blocks 0 to 3, not \[4\]"),
    ],
)
def test_bad_settings_are_told(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def test_one_side_network_is_enough():
    backbone = vit()
    attach(backbone, SideNetwork())
    attach(backbone, LoRA(rank=1))
    with pytest.raises(ValueError, match="there is a side network here already"):
        attach(backbone, SideNetwork())


def test_tokens_that_come_and_go_are_told():
    backbone = vit()
    attach(backbone, SideNetwork())
    attach(backbone, VPT(count=2, blocks=(-1,)))
    with pytest.raises(ValueError, match="attach it after the adapter that adds tokens"):
        backbone(images())

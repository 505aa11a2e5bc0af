from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geomed.adapters import EarthAdapter, adapted_modules, adapter_state, attach
from geomed.adapters.counts import trainable
from geomed.adapters.earth_adapter import EarthBlock, load_released_earth_adapter, low_pass
from geomed.backbones.block import plain_block
from geomed.backbones.inputs import Inputs
from geomed.backbones.tsvit import TSViT, TSViTSize
from geomed.pixels import Pixels
from geomed.tokens import Tokens

# Outputs of the released adapter (github.com/VisionXLab/Earth-Adapter, commit 49a8ff8), run on a CPU in float64 with 16
# dimensions, experts in layer 1 and ratio 0.3, its weights by the rule of `released`: both layers [:, ::64, ::64], and
# two channels (0 and 64) of the input's low and high bands.
GOLDEN = Path(__file__).parent / "golden" / "earth_adapter.npz"


def released(width: int = 1024, bottleneck: int = 16, layers: int = 2) -> dict[str, Tensor]:
    """The first layers of a released state: the j-th of its sorted keys is 0.05 sin(0.37 i + 1.3 j) in float32."""
    kinds = {
        "0.weight": (bottleneck, width),
        "0.bias": (bottleneck,),
        "2.weight": (width, bottleneck),
        "2.bias": (width,),
    }
    shapes = {
        f"mlp_list{expert}.{layer}.{kind}": shape
        for expert in (1, 2, 3)
        for layer in range(24)
        for kind, shape in kinds.items()
    }
    shapes |= {f"router.{layer}.weight": (3, width) for layer in range(24)}
    shapes |= {f"router.{layer}.bias": (3,) for layer in range(24)}
    shapes["scale"] = (24,)
    state = {}
    for j, name in enumerate(sorted(shapes)):
        if name == "scale" or int(name.split(".")[1]) < layers:
            i = torch.arange(math.prod(shapes[name]), dtype=torch.float64)
            value = 0.05 * torch.sin(0.37 * i + 1.3 * j) + (0.1 if name == "scale" else 0)
            state[f"backbone.refine_feat.{name}"] = value.float().double().reshape(shapes[name])
    return state


def bare(blocks: int, width: int, adapter: EarthAdapter) -> nn.Module:
    """A network of adapted blocks that do nothing themselves."""
    like = torch.zeros(width, dtype=torch.float64)
    mixing = adapter.frequency_blocks or ()
    return nn.ModuleDict(
        {
            "blocks": nn.ModuleList(
                EarthBlock(nn.Identity(), adapter, like, mixture=number in mixing) for number in range(blocks)
            )
        }
    )


def test_equals_the_released_code():
    golden = np.load(GOLDEN)
    network = bare(2, 1024, EarthAdapter(bottleneck=16, frequency_blocks=(1,)))
    load_released_earth_adapter(network, released())
    x = torch.sin(0.0131 * torch.arange(2 * 1025 * 1024, dtype=torch.float64)).reshape(2, 1025, 1024)
    for number, total in enumerate((92.00117177661053, 128.3752479590739)):
        y = network["blocks"][number](Tokens(x, (32, 32), 1)).data
        np.testing.assert_allclose(y[:, ::64, ::64].detach(), golden[f"y{number}"], rtol=0, atol=1e-10)
        assert y.sum().item() == pytest.approx(total, abs=1e-8)
        assert torch.equal(y[:, 0], x[:, 0])
    given = x[:, 1:, [0, 64]].transpose(1, 2).unflatten(2, (32, 32))
    low = filtered(given, 0.3, symmetric=False)
    np.testing.assert_allclose(low, golden["low"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(given - low, golden["high"], rtol=0, atol=1e-10)


def filtered(given: Tensor, cutoff: float, *, symmetric: bool) -> Tensor:
    """`low_pass` on [B, C, h, w]."""
    height, width = given.shape[-2:]
    rows, columns = low_pass((height, width), cutoff, given, symmetric=symmetric)
    between = (rows @ given).unflatten(-2, (height, -1)).flatten(-2)
    return between @ columns.t()


def transformed(given: Tensor, cutoff: float, *, symmetric: bool) -> Tensor:
    """The same with Fourier transforms, the mask on signed frequencies."""
    masks = []
    for side in given.shape[-2:]:
        reach, frequency = int(side * cutoff // 2), torch.fft.fftfreq(side, 1 / side).round()
        kept = (frequency >= -reach) & (frequency <= reach if symmetric else frequency < reach)
        masks.append(kept.double())
    return torch.fft.ifft2(torch.fft.fft2(given) * masks[0][:, None] * masks[1]).real


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("cutoff", [0.3, 0.55, 1.0])
@pytest.mark.parametrize("grid", [(8, 8), (7, 7), (16, 9), (9, 30)])
def test_the_filter_is_the_one_of_fourier_transforms(grid, cutoff, symmetric):
    given = torch.randn(2, 3, *grid, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    low = filtered(given, cutoff, symmetric=symmetric)
    torch.testing.assert_close(low, transformed(given, cutoff, symmetric=symmetric), rtol=0, atol=1e-12)
    if symmetric:
        torch.testing.assert_close(filtered(low, cutoff, symmetric=True), low, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mask", ["reference", "symmetric"])
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_equals_the_formula_on_any_grid_behind_any_prefix(prefix, mask):
    made = torch.Generator().manual_seed(0)
    grid, a = (6, 9), 4
    block = bare(1, 8, EarthAdapter(bottleneck=a, cutoff=0.5, mask=mask, frequency_blocks=(0,)))["blocks"][0]
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=made, dtype=torch.float64))
    x = torch.randn(2, prefix + 54, 8, generator=made, dtype=torch.float64)
    patches = x[:, prefix:]
    low = transformed(patches.transpose(1, 2).unflatten(2, grid), 0.5, symmetric=mask == "symmetric")
    low = low.flatten(2).transpose(1, 2)
    weights = F.linear(patches, block.down.weight[-3:], block.down.bias[-3:]).softmax(-1)
    expected = patches
    for expert, band in enumerate((patches, low, patches - low)):
        rows = slice(expert * a, (expert + 1) * a)
        inner = F.linear(band, block.down.weight[rows], block.down.bias[rows]).relu()
        update = F.linear(inner, block.up.weight[:, rows], block.up.weight[:, 3 * a + expert])
        expected = expected + block.scale * weights[..., expert, None] * update
    y = block(Tokens(x, grid, prefix)).data
    torch.testing.assert_close(y[:, prefix:], expected, rtol=0, atol=1e-12)
    assert torch.equal(y[:, :prefix], x[:, :prefix])


# bottleneck, frequency blocks, parameters that are used, of the released configs on 24 blocks of width 1024
RELEASED = [
    (64, (0, 1, 2), 3_974_049),
    (32, (21, 22, 23), 2_007_009),
    (16, (21, 22, 23), 1_023_489),
    (32, (18, 19, 20, 21, 22, 23), 2_415_786),
    (24, (18, 19, 20, 21, 22, 23), 1_825_674),
    (64, (0, 1, 2, 3, 4, 5), 4_776_234),
    (64, (-3, -2, -1), 3_974_049),
    (64, None, 3_974_049),
]


def stack(depth: int, width: int = 1024) -> nn.Module:
    with torch.device("meta"):
        return nn.ModuleDict(
            {"blocks": nn.ModuleList(plain_block(width, heads=1, head_dim=4, hidden=4) for _ in range(depth))}
        )


@pytest.mark.parametrize(("bottleneck", "frequency_blocks", "expected"), RELEASED)
def test_counts_equal_the_released_configs(bottleneck, frequency_blocks, expected):
    network = stack(24)
    attach(network, EarthAdapter(bottleneck=bottleneck, frequency_blocks=frequency_blocks))
    assert trainable(network) == expected


@pytest.mark.parametrize(
    ("depth", "blocks", "frequency_blocks", "expected"),
    [
        (5, (), None, [1, 1, 3, 3, 3]),
        (2, (), None, [3, 3]),
        (5, (0, 1, 2, -1), None, [1, 3, 3, 3]),
        (5, (), (), [1] * 5),
        (5, (1, -1), (-1,), [1, 3]),
    ],
)
def test_which_blocks_mix_experts(depth, blocks, frequency_blocks, expected):
    network = stack(depth, 8)
    attach(network, EarthAdapter(bottleneck=2, blocks=blocks, frequency_blocks=frequency_blocks))
    assert [block.experts for block in adapted_modules(network)] == expected


def small_tsvit() -> TSViT:
    size = TSViTSize(dim=8, heads=2, head_dim=4, temporal_depth=2, spatial_depth=2)
    return TSViT(inputs=Inputs(("red",), [0.0], [1.0]), num_classes=2, size=size, image_size=16, space_token=True)


def test_tsvit_is_adapted_where_its_tokens_are_places():
    backbone = small_tsvit()
    attach(backbone, EarthAdapter(bottleneck=2))
    assert {name.split(".")[0] for name in adapter_state(backbone)} == {"spatial"}
    pixels = Pixels(values=torch.rand(1, 2, 1, 16, 16), days=torch.tensor([[18_000, 18_030]]))
    assert backbone(pixels)[0].grid == (8, 8)


def test_the_filter_follows_the_grid_and_is_no_part_of_the_state():
    adapter = EarthAdapter(bottleneck=2, frequency_blocks=(0,))
    block = bare(1, 4, adapter)["blocks"][0]
    names = set(block.state_dict())
    first, second = torch.randn(1, 64, 4).double(), torch.randn(1, 64, 4).double()
    with torch.inference_mode():  # as in a validation before any training
        block(Tokens(first, (8, 8)))
    block(Tokens(first, (8, 8))).data.sum().backward()
    block(Tokens(second, (8, 8)))
    assert set(block.state_dict()) == names == {"down.weight", "down.bias", "up.weight", "scale"}
    nn.init.ones_(block.up.weight)
    wide = block(Tokens(torch.randn(1, 70, 4).double(), (7, 10))).data
    assert wide.shape == (1, 70, 4)
    assert not torch.equal(block(Tokens(first, (8, 8))).data, first)


def test_bad_settings_are_told():
    for make, told in (
        (lambda: EarthAdapter(bottleneck=0), "bottleneck must be positive"),
        (lambda: EarthAdapter(cutoff=0.0), "cutoff must be a share"),
        (lambda: EarthAdapter(cutoff=1.5), "cutoff must be a share"),
        (lambda: EarthAdapter(mask="hexagon"), "mask must be reference or symmetric"),
        (lambda: EarthAdapter(init="one"), "init zero or reference"),
        (lambda: attach(stack(2, 8), EarthAdapter(blocks=(2,))), "has blocks 0 to 1"),
        (lambda: attach(stack(2, 8), EarthAdapter(frequency_blocks=(-3,))), "has blocks 0 to 1"),
        (lambda: attach(stack(4, 8), EarthAdapter(blocks=(0,), frequency_blocks=(1,))), "must be among blocks"),
        (lambda: attach(small_tsvit(), EarthAdapter(targets=("temporal.blocks.*",))), "these are dates"),
    ):
        with pytest.raises(ValueError, match=told):
            make()


def test_a_grid_too_small_for_the_cutoff_is_told():
    block = bare(1, 4, EarthAdapter(bottleneck=2, frequency_blocks=(0,)))["blocks"][0]
    with pytest.raises(ValueError, match=r"0\.3 of 6 tokens keeps none; raise it to 2 / 6 or take mask='symmetric'"):
        block(Tokens(torch.zeros(1, 48, 4).double(), (8, 6)))


@pytest.mark.parametrize(
    ("settings", "options", "told"),
    [
        ({"bottleneck": 8}, {}, r"a tensor is \(4, 8\) there and \(8, 8\) here"),
        (
            {"bottleneck": 4, "frequency_blocks": (1,)},
            {},
            r"blocks\.1 needs backbone\.refine_feat\.mlp_list2\.1\.0\.bias",
        ),
        ({"bottleneck": 4}, {"prefix": "teacher."}, r"blocks\.0 needs teacher\.mlp_list1\.0\.0\.bias, .* check prefix"),
    ],
)
def test_a_checkpoint_of_another_adapter_is_refused(settings, options, told):
    network = bare(2, 8, EarthAdapter(**settings))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = {name: value for name, value in released(8, 4).items() if "mlp_list2" not in name}
    with pytest.raises(ValueError, match=told):
        load_released_earth_adapter(network, state, **options)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with pytest.raises(ValueError, match="none is attached"):
        load_released_earth_adapter(stack(2, 8), state)

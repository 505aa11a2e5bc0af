from __future__ import annotations

import copy
import math

import pytest
import torch
from test_adapters import disturb, features, pixels, plain_vit, rgb
from torch import Tensor, nn

from geomed.adapters import SNELL, SNELLA, LoRA, attach, merge
from geomed.adapters.counts import trainable
from geomed.adapters.kernels import kernel_update
from geomed.adapters.snell import KernelLinear
from geomed.adapters.survivors import Allocation, share_out, volume
from geomed.backbones.vit import ViT


def plain_update(outs: Tensor, ins: Tensor, kept: float, sparsifier: str, mix: Tensor | None = None) -> Tensor:
    """U of one matrix as the papers write it: every step on its own, by PyTorch's distances, quantile and autograd."""
    value = 0.1 * (torch.cdist(outs[0], ins[0]) - torch.cdist(outs[1], ins[1]))
    if mix is not None:
        alpha, gamma, beta = mix
        value = value + alpha * torch.softmax(value / gamma, 0) + beta
    if sparsifier == "none":
        return value
    level = torch.quantile(value.detach().abs(), 1 - kept)
    if sparsifier == "paper":
        return value * (value.abs() - level).clamp(min=0)
    return value * torch.where(value.abs() > level, value.abs(), 0).detach()


def released(*, mixed: bool) -> KernelLinear:
    """24 → 40, eight coordinates, drawn as the released code draws them from seed 0."""
    torch.manual_seed(0)
    points = [torch.rand(2, 24, 4), torch.rand(2, 40, 4)]
    for one in points:
        nn.init.kaiming_uniform_(one, a=math.sqrt(5))
    plain = nn.Linear(24, 40)
    nn.init.zeros_(plain.weight)
    nn.init.zeros_(plain.bias)
    adapter = SNELLA(sparsity=0.5, initial=0.5) if mixed else SNELL(sparsity=0.9)
    linear = KernelLinear(plain, adapter, plain, 1)
    linear.ins.data[0], linear.outs.data[0] = points
    return linear.double()


# Outputs, gradients and norms of github.com/ssfgunner/SNELL, commit e9d5185, run on a CPU in float32; ours in float64
def test_outputs_and_gradients_equal_the_released_code():
    linear = released(mixed=False)
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(1)).double()
    y = linear(x)
    assert y.sum().item() == pytest.approx(0.0040132739933937955, abs=2e-9)
    assert y.abs().sum().item() == pytest.approx(0.035022078121357936, abs=1e-8)
    y.square().sum().backward()
    assert linear.ins.grad.abs().sum().item() == pytest.approx(0.00052528702526633, rel=2e-6)
    assert linear.outs.grad.abs().sum().item() == pytest.approx(0.00045217812521070044, rel=2e-6)


def test_the_mixed_kernel_equals_the_released_code():
    y = released(mixed=True)(torch.randn(5, 24, generator=torch.Generator().manual_seed(1)).double())
    assert y.sum().item() == pytest.approx(-0.07384925933982345, abs=5e-8)
    assert y.abs().sum().item() == pytest.approx(0.49017457943844533, abs=5e-8)


@pytest.mark.parametrize(
    ("sparsifier", "norm", "gradient"),
    [
        ("released", 0.0017789790872484446, 0.33944272994995117),
        ("paper", 0.0005412338650785387, 0.4117457866668701),
    ],
)
def test_both_sparsifiers_equal_the_released_numbers(sparsifier, norm, gradient):
    linear = released(mixed=False)
    linear.sparsifier = sparsifier
    update = kernel_update(linear.outs, linear.ins, None, linear.kept, sparsifier)
    assert int((update != 0).sum()) == 96
    assert update.norm().item() == pytest.approx(norm, rel=1e-6)
    linear(torch.eye(24, dtype=torch.float64)).sum().backward()
    assert linear.ins.grad.abs().sum().item() == pytest.approx(gradient, rel=1e-6)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("sparsifier", ["released", "paper", "none"])
def test_values_and_gradients_equal_the_formulas(sparsifier, mixed, bias):
    torch.manual_seed(0)
    plain = nn.Linear(10, 21, bias=bias).double()
    adapter = SNELLA(rank=6, initial=0.4, sparsity=0.7) if mixed else SNELL(rank=6, sparsity=0.4)
    linear = KernelLinear(plain, adapter, plain, 3)
    linear.sparsifier = sparsifier
    if mixed:
        linear.mix.data += 0.3 * torch.rand_like(linear.mix)
    linear.kept.copy_(torch.tensor([0.6, 0.25, 1.0]))
    x = torch.randn(2, 4, 10, dtype=torch.float64, requires_grad=True)
    asked = [
        x,
        plain.weight,
        linear.outs,
        linear.ins,
        *([linear.mix] if mixed else []),
        *([plain.bias] if bias else []),
    ]
    updates = [
        plain_update(o, i, share.item(), sparsifier, linear.mix[k] if mixed else None)
        for k, (o, i, share) in enumerate(zip(linear.outs, linear.ins, linear.kept, strict=True))
    ]
    expected = nn.functional.linear(x, plain.weight + torch.cat(updates), plain.bias)
    torch.testing.assert_close(linear(x), expected, rtol=0, atol=1e-12)
    goal = torch.randn_like(expected)
    ours = torch.autograd.grad((linear(x) * goal).sum(), asked)
    theirs = torch.autograd.grad((expected * goal).sum(), asked)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_it_goes_on_top_of_another_adapter():
    torch.manual_seed(0)
    network = nn.ModuleDict({"fc1": nn.Linear(6, 9)}).double()
    attach(network, LoRA(rank=2, parts=(), targets=("fc1",)))
    disturb(network)
    lower = copy.deepcopy(network)["fc1"]
    attach(network, SNELL(rank=4, sparsity=0.5))
    upper, x = network["fc1"], torch.randn(4, 6, dtype=torch.float64)
    update = kernel_update(upper.outs, upper.ins, None, upper.kept, "released")
    torch.testing.assert_close(upper(x), lower(x) + x @ update.T, rtol=0, atol=1e-12)
    upper(x).square().sum().backward()
    assert all(one.grad is not None for one in network.parameters() if one.requires_grad)
    outputs = upper(x).detach()
    merge(network)
    torch.testing.assert_close(network["fc1"](x), outputs, rtol=0, atol=1e-12)


def test_points_that_meet_give_no_nan():
    plain = nn.Linear(6, 6)
    linear = KernelLinear(plain, SNELL(rank=4, sparsity=0), plain, 1)
    linear.outs.data.copy_(linear.ins.data)
    linear(torch.randn(3, 6)).square().sum().backward()
    assert torch.isfinite(linear.outs.grad).all()
    assert linear.outs.grad.abs().max() < 10


@pytest.mark.parametrize("sparsity", [0.1, 0.9, 0.99])
def test_large_matrices_compete_by_a_sample(sparsity):
    torch.manual_seed(0)
    plain = nn.Linear(384, 1536)
    linear = KernelLinear(plain, SNELL(sparsity=sparsity), plain, 1)
    update = kernel_update(linear.outs, linear.ins, None, linear.kept, "released")
    assert (update == 0).float().mean().item() == pytest.approx(sparsity, abs=0.005)


def test_nothing_is_kept_but_the_input():
    torch.manual_seed(0)
    plain = nn.Linear(32, 48).requires_grad_(requires_grad=False)
    linear = KernelLinear(plain, SNELL(sparsity=0.5), plain, 1)
    x = torch.randn(4, 7, 32, requires_grad=True)
    known = {one.untyped_storage().data_ptr() for one in (x, *linear.parameters(), *linear.buffers())}
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        linear(x)
    assert sum(one.numel() for one in kept if one.untyped_storage().data_ptr() not in known) == 1  # the threshold


def test_no_update_is_kept_in_a_whole_network():
    backbone = plain_vit().double()
    given = pixels(backbone)
    attach(backbone, SNELL(rank=2, sparsity=0.5))
    disturb(backbone)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: sizes.append(one.numel()) or one, lambda one: one):
        features(backbone, given)
    largest = max(module.weight.numel() for module in backbone.modules() if isinstance(module, nn.Linear))
    assert max(sizes) <= largest  # frozen weights are referred to; no update is


# (in + out) x rank for each matrix, as many as LoRA: 165,888 for each coordinate in the six matrices of ViT-B's blocks
@pytest.mark.parametrize(
    ("adapter", "expected"),
    [(SNELL(), 165_888 * 8), (SNELL(rank=32), 165_888 * 32), (SNELLA(), 165_888 * 8 + 3 * 72)],
)
def test_counts_equal_the_published(adapter, expected):
    with torch.device("meta"):
        backbone = ViT("vit_base_patch16_224", inputs=rgb())
    attach(backbone, adapter)
    assert trainable(backbone) == expected


# Schedule and thresholds of the released allocator with matrices of 960, 960 and 576 numbers, 0.01 to 0.8, ten epochs
def test_the_volume_follows_the_released_schedule():
    sizes = 960 + 960 + 576
    found = [volume(0.99 * sizes, 0.2 * sizes, epoch / 10) for epoch in range(11)]
    assert found == [2471, 1936, 1508, 1175, 925, 745, 625, 552, 514, 501, 499]


def test_survivors_are_shared_out_as_released():
    scores = (0.0006563876522704959, 0.1264437437057495, 0.8728998303413391)
    sizes = (960, 960, 576)
    sparsities = [1 - count / size for count, size in zip(share_out(925, scores, sizes), sizes, strict=True)]
    assert sparsities == pytest.approx([0.9989583333333333, 0.6385416666666667, 0.0], abs=1e-12)


@pytest.mark.parametrize(
    ("survivors", "scores", "sizes", "expected"),
    [
        (100, (0.0, 0.0), (100, 300), [25, 75]),  # nothing is known
        (50, (1.0, 0.0), (30, 40), [30, 20]),  # the rest goes to what is left
        (70, (0.5, 0.5), (30, 40), [30, 40]),
        (0, (0.5, 0.5), (30, 40), [0, 0]),
    ],
)
def test_every_survivor_finds_a_place(survivors, scores, sizes, expected):
    assert share_out(survivors, scores, sizes) == expected


def test_importance_is_averaged_as_in_adalora():
    torch.manual_seed(0)
    network = nn.ModuleDict({"fc1": nn.Linear(6, 9), "fc2": nn.Linear(9, 6)}).double()
    attach(network, SNELLA(rank=2, initial=0.1, sparsity=0.5))
    allocation = Allocation(network)
    mean, spread = torch.zeros(1, 2, 9, 1), torch.zeros(1, 2, 9, 1)
    for _ in range(3):
        network.zero_grad()
        network["fc2"](network["fc1"](torch.randn(4, 6, dtype=torch.float64))).square().sum().backward()
        allocation.observe()
        now = (network["fc1"].outs * network["fc1"].outs.grad).abs()
        mean = 0.85 * mean + 0.15 * now
        spread = 0.85 * spread + 0.15 * (now - mean).abs()
    torch.testing.assert_close(allocation.means["fc1.outs"], mean.detach())
    torch.testing.assert_close(allocation.strays["fc1.outs"], spread.detach())
    allocation.allocate(1.0)
    kept = torch.stack([network[name].kept[0] for name in ("fc1", "fc2")])
    assert float(kept.mean()) == pytest.approx(0.5, abs=0.02)
    assert kept[0] != kept[1]
    restored = Allocation(copy.deepcopy(network))
    restored.load(allocation.state())
    restored.allocate(1.0)
    assert all(restored.linears[name].kept == network[name].kept for name in ("fc1", "fc2"))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: SNELL(rank=3), "rank must be even"),
        (lambda: SNELL(sparsity=1.0), r"sparsity must lie in \[0, 1\)"),
        (lambda: SNELLA(rank=0), "rank must be even"),
        (lambda: SNELLA(sparsity=0.5, initial=0.6), "sparsity must rise from initial"),
    ],
)
def test_bad_settings_are_told(make, told):
    with pytest.raises(ValueError, match=told):
        make()

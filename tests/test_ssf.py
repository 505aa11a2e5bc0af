from __future__ import annotations

import pytest
import torch
from torch import nn

from geomed.adapters import SSF, LoRA, adapted_modules, attach, merge
from geomed.adapters.counts import trainable
from geomed.adapters.ssf import Scaled, ScaledNorm, ScaledPlane, scaled
from geomed.backbones.inputs import Inputs
from geomed.backbones.tsvit import TSViT
from geomed.backbones.vit import ViT


def rgb():
    return Inputs(("red", "green", "blue"), [0.5] * 3, [0.2] * 3)


def vit_base():
    with torch.device("meta"):
        return ViT("vit_base_patch16_224", inputs=rgb())


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def wrapped(module):
    root = nn.ModuleDict({"norm": module})
    attach(root, SSF(targets=("norm",)))
    with torch.no_grad():
        root["norm"].gain.normal_()
        root["norm"].shift.normal_()
    return root["norm"]


def test_counts_equal_the_published_one():
    # 0.21 M in the paper's and V-PETL Bench's tables: (1 + 12 (1 + 3 + 1 + 1 + 4 + 1) + 1) 768 channels, twice
    backbone = vit_base()
    attach(backbone, SSF())
    assert trainable(backbone) == 2 * 768 * (1 + 12 * 11 + 1) == 205_824


def test_all_operations_of_tsvit_are_found():
    backbone = TSViT(inputs=rgb(), num_classes=3)
    attach(backbone, SSF())
    assert trainable(backbone) == 2 * 128 * (1 + 8 * 11 + 2)
    assert len([module for module in adapted_modules(backbone) if isinstance(module, ScaledNorm)]) == 8 * 2 + 2


@pytest.mark.parametrize(
    ("module", "shape", "kind"),
    [
        (nn.Linear(5, 4), (2, 3, 5), Scaled),
        (nn.Linear(5, 4, bias=False), (3, 5), Scaled),
        (nn.LayerNorm(5), (2, 3, 5), ScaledNorm),
        (nn.LayerNorm(5, bias=False), (2, 3, 5), ScaledNorm),
        (nn.Conv2d(5, 4, 2), (2, 5, 4, 3), ScaledPlane),
    ],
)
def test_outputs_are_scaled_and_shifted_and_fold(module, shape, kind):
    torch.manual_seed(0)
    module = module.double()
    adapted = wrapped(module)
    assert type(adapted) is kind
    x = torch.randn(shape, dtype=torch.float64)
    channel = 1 if kind is ScaledPlane else -1
    plain = module(x).movedim(channel, -1) * (1 + adapted.gain) + adapted.shift
    torch.testing.assert_close(adapted(x), plain.movedim(-1, channel))
    torch.testing.assert_close(adapted.merged()(x), plain.movedim(-1, channel))


def test_gradients_are_those_of_the_plain_formula():
    torch.manual_seed(0)
    y, gain, shift, weights = drawn(2, 3, 5), drawn(5), drawn(5), drawn(2, 3, 5)
    every = (y, gain, shift)
    found = torch.autograd.grad((scaled(*every) * weights).sum(), every)
    expected = torch.autograd.grad(((y * (1 + gain) + shift) * weights).sum(), every)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("factor", [1e-2, -1e-2, 1e-4, 0.0])
def test_the_gradient_of_a_gain_near_nothing_is_near_or_too_small(factor):
    torch.manual_seed(0)
    y, g = torch.randn(300, 4), torch.randn(300, 4)
    gain, shift = torch.full((4,), factor - 1, requires_grad=True), torch.randn(4)
    (scaled(y, gain, shift) * g).sum().backward()
    exact = (y.double() * g.double()).sum(0)
    allowed = abs(factor) >= torch.finfo(torch.float32).eps ** 0.5
    error = (gain.grad - exact).abs().max()
    assert error < 0.05 if allowed else gain.grad.abs().max() <= exact.abs().max()


def test_bfloat16_keeps_its_type_and_small_gains_a_gradient_of_their_own():
    torch.manual_seed(0)
    y = torch.randn(400, 4).bfloat16()
    gain, shift = torch.full((4,), 0.3, requires_grad=True), torch.full((4,), 0.5, requires_grad=True)
    z = scaled(y, gain, shift)
    assert z.dtype == torch.bfloat16
    z.float().square().sum().backward()
    assert gain.grad.dtype == torch.float32
    exact = (2 * (1.3 * y.double() + 0.5) * y.double()).sum(0)
    torch.testing.assert_close(gain.grad.double(), exact, rtol=0.02, atol=0)


def test_the_output_alone_is_kept():
    y, gain, shift = drawn(3, 5), drawn(5), drawn(5)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        z = scaled(y, gain, shift)
    assert {each.data_ptr() for each in kept if each.ndim > 1} == {z.data_ptr()}


def test_folds_around_another_adapter():
    torch.manual_seed(0)
    root = nn.ModuleDict({"fc1": nn.Linear(5, 4)}).double()
    attach(root, LoRA(rank=2, targets=("fc1",)))
    attach(root, SSF())
    for parameter in root.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(3, 5, dtype=torch.float64)
    before = root["fc1"](x)
    merge(root)
    assert type(root["fc1"]) is nn.Linear
    torch.testing.assert_close(root["fc1"](x), before)


def test_norms_without_a_gain_are_left():
    root = nn.ModuleDict({"norm": nn.LayerNorm(4, elementwise_affine=False), "fc1": nn.Linear(4, 4)})
    attach(root, SSF())
    assert [name for name, module in root.named_children() if isinstance(module, Scaled)] == ["fc1"]

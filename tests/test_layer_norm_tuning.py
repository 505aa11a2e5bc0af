from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from timm.layers import LayerNormFp32
from torch import nn

from geomed.adapters import SSF, LayerNormTuning, attach, merge
from geomed.adapters.counts import trainable
from geomed.adapters.layer_norm_tuning import TunedNorm
from geomed.backbones.inputs import Inputs
from geomed.backbones.vit import ViT


def rgb():
    return Inputs(("red", "green", "blue"), [0.5] * 3, [0.2] * 3)


def test_counts_equal_the_published_one():
    # two norms in each of 12 blocks and the last one, gain and shift: 0.04 M
    with torch.device("meta"):
        backbone = ViT("vit_base_patch16_224", inputs=rgb())
    attach(backbone, LayerNormTuning())
    assert trainable(backbone) == 25 * 2 * 768 == 38_400


def test_trains_as_the_norms_themselves_would():
    torch.manual_seed(0)
    plain = ViT("test_vit", inputs=rgb()).double()
    adapted = copy.deepcopy(plain)
    attach(adapted, LayerNormTuning())
    for backbone in (plain, adapted):
        tokens = backbone.stem(
            torch.rand(1, 3, 160, 160, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        )
        F.layer_norm(backbone.norm(tokens), tokens.shape[-1:]).sin().sum().backward()
    torch.testing.assert_close(adapted.norm.gain.grad, plain.norm.weight.grad)
    torch.testing.assert_close(adapted.norm.shift.grad, plain.norm.bias.grad)


@pytest.mark.parametrize("norm", [nn.LayerNorm(5), nn.LayerNorm(5, bias=False), LayerNormFp32(5)])
@pytest.mark.parametrize("around", [False, True])
def test_changes_gain_and_shift_around_any_norm_and_folds(norm, around):
    torch.manual_seed(0)
    root = nn.ModuleDict({"norm": norm})
    for adapter in (SSF(), LayerNormTuning()) if around else (LayerNormTuning(),):
        attach(root, adapter)
    for parameter in root.parameters():
        nn.init.normal_(parameter)
    adapted = root["norm"]
    assert type(adapted) is TunedNorm
    x = torch.randn(2, 3, 5)
    plain = adapted.base(x) + F.layer_norm(x, (5,), eps=norm.eps) * adapted.gain + adapted.shift
    torch.testing.assert_close(adapted(x), plain)
    merge(root)
    assert type(root["norm"]) is type(norm)
    torch.testing.assert_close(root["norm"](x), plain)


def test_other_norms_and_norms_without_a_gain_are_left():
    root = nn.Sequential(nn.LayerNorm(4, elementwise_affine=False), nn.LayerNorm(4), nn.GroupNorm(1, 4))
    attach(root, LayerNormTuning())
    assert [isinstance(module, TunedNorm) for module in root] == [False, True, False]

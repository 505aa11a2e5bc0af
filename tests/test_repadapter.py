from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from geomed.adapters import RepAdapter, attach, merge
from geomed.adapters.counts import trainable
from geomed.backbones.inputs import Inputs
from geomed.backbones.vit import ViT


def rgb():
    return Inputs(("red", "green", "blue"), [0.5] * 3, [0.2] * 3)


def test_counts_equal_the_published_one():
    # A 768 x 8 + 8 and B 768 x 8 / 2 + 768, before attention and MLP of 12 blocks: 0.24 M with both biases
    with torch.device("meta"):
        backbone = ViT("vit_base_patch16_224", inputs=rgb())
    attach(backbone, RepAdapter())
    assert trainable(backbone) == 24 * (768 * 8 + 8 + 768 * 4 + 768) == 239_808


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("biased", [False, True])
def test_equals_grouped_convolutions_and_folds(groups, biased):
    torch.manual_seed(0)
    root = nn.ModuleDict({"fc1": nn.Linear(12, 5, bias=biased)}).double()
    attach(root, RepAdapter(bottleneck=6, groups=groups, scale=0.7))
    adapted = root["fc1"]
    for parameter in adapted.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 4, 12, dtype=torch.float64)
    narrow = F.conv1d(x.mT, adapted.down.weight[..., None], adapted.down.bias)
    wide = F.conv1d(narrow, adapted.up.weight[..., None], adapted.up.bias, groups=groups)
    expected = adapted.base(x + 0.7 * wide.mT)
    torch.testing.assert_close(adapted(x), expected)
    merge(root)
    assert type(root["fc1"]) is nn.Linear
    torch.testing.assert_close(root["fc1"](x), expected)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: RepAdapter(bottleneck=0), "must be positive and groups must divide bottleneck, not 0 and 2"),
        (lambda: RepAdapter(groups=0), "not 8 and 0"),
        (lambda: RepAdapter(bottleneck=8, groups=3), "not 8 and 3; choose a multiple"),
        (
            lambda: attach(nn.ModuleDict({"fc1": nn.Linear(5, 2)}), RepAdapter()),
            "fc1: groups must divide the width of a token, not 2 and 5",
        ),
    ],
)
def test_bad_settings_are_told(make, told):
    with pytest.raises(ValueError, match=told):
        make()

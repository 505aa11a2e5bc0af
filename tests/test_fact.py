from __future__ import annotations

import pytest
import torch
from test_adapters import disturb, plain_vit, rgb
from torch import nn

from geomed.adapters import FacT, adapter_state, attach
from geomed.adapters.counts import trainable
from geomed.backbones.vit import ViT

WIDTH, RANK = 6, 3


# FacT-TK of rank 16 and 32 on ViT-B/16, as the code of Jie and Deng (AAAI 2023) counts it: github.com/JieShibo/PETL-ViT
@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        (FacT(form="tk", rank=16), 30_976),
        (FacT(form="tk", rank=32), 86_528),
        (FacT(form="tt", rank=16), 2 * 768 * 16 + 144 * 16 * 16),
    ],
)
def test_counts_equal_the_published(adapter, expected):
    with torch.device("meta"):
        backbone = ViT("vit_base_patch16_224", inputs=rgb())
    attach(backbone, adapter)
    assert trainable(backbone) == expected


class Linears(nn.Module):
    """The Linears of one block."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"qkv": nn.Linear(WIDTH, 3 * WIDTH), "proj": nn.Linear(WIDTH, WIDTH)})
        self.fc1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.fc2 = nn.Linear(4 * WIDTH, WIDTH)


@pytest.mark.parametrize("form", ["tt", "tk"])
def test_each_slice_is_s_v_c_u(form):
    torch.manual_seed(0)
    network = Linears().double()
    attach(network, FacT(rank=RANK, form=form, scale=0.7))
    disturb(network)
    x, wide = torch.randn(2, 5, WIDTH, dtype=torch.float64), torch.randn(2, 5, 4 * WIDTH, dtype=torch.float64)
    adapted = {"qkv": network.attn.qkv, "proj": network.attn.proj, "fc1": network.fc1, "fc2": network.fc2}
    factors = network.fc1.factors
    assert all(one.factors is factors for one in adapted.values())
    u, v = factors.u, factors.v
    for name, module in adapted.items():
        given = wide if name == "fc2" else x
        slices = []
        for core in module.cores:
            if form == "tk":
                core = sum(part * matrix for part, matrix in zip(core, factors.cores, strict=True))  # noqa: PLW2901
            slices.append(0.7 * v @ core @ u)
        update = torch.cat(slices, 1 if name == "fc2" else 0)
        plain = module.base
        expected = given @ (plain.weight + update).T + plain.bias
        torch.testing.assert_close(module(given), expected, rtol=0, atol=1e-12)
        ours = torch.autograd.grad(module(given).square().sum(), (u, v, module.cores))
        theirs = torch.autograd.grad(expected.square().sum(), (u, v, module.cores))
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_a_file_holds_the_shared_factors_once():
    backbone = plain_vit()
    attach(backbone, FacT(rank=2))
    assert len([name for name in adapter_state(backbone) if name.endswith(".u")]) == 1


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: FacT(rank=0), "rank must be positive"),
        (lambda: FacT(targets=()), "targets named"),
        (lambda: attach(plain_vit(), FacT(rank=400)), "rank must not exceed the width"),
        (lambda: attach(nn.Sequential(nn.Linear(6, 9)), FacT(targets=("0",))), "9 x 6 leaves a rest"),
    ],
)
def test_bad_settings_are_told(make, told):
    with pytest.raises(ValueError, match=told):
        make()

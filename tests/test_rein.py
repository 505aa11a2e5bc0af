from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from geomed.adapters import Rein, adapted_modules, adapter_state, attach
from geomed.adapters.counts import trainable
from geomed.adapters.rein import Projections, RefinedBlock
from geomed.backbones.block import plain_block
from geomed.tokens import Tokens


def stack(depth: int, width: int) -> nn.Module:
    with torch.device("meta"):
        return nn.ModuleDict(
            {"blocks": nn.ModuleList(plain_block(width, heads=1, head_dim=4, hidden=4) for _ in range(depth))}
        )


# Released with the link to Mask2Former's queries: 1,741,569 on ViT-B, of which 393,728 are the link's.
@pytest.mark.parametrize(("depth", "width", "expected"), [(12, 768, 1_741_569 - 393_728), (24, 1024, 2_530_817)])
def test_counts_equal_the_published_ones_without_the_link_to_queries(depth, width, expected):
    network = stack(depth, width)
    attach(network, Rein())
    assert trainable(network) == expected


def test_blocks_share_their_projections_and_nothing_else():
    network = stack(3, 8)
    attach(network, Rein(tokens=4, rank=2, blocks=(0, -1)))
    first, last = adapted_modules(network)
    assert first.common is last.common
    assert first.rows is not last.rows
    assert sum(name.endswith("common.scale") for name in adapter_state(network)) == 1


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_equals_the_formula(prefix):
    made = torch.Generator().manual_seed(0)
    like = torch.zeros(8, dtype=torch.float64)
    adapter = Rein(tokens=5, rank=3)
    block = RefinedBlock(nn.Identity(), adapter, like, Projections(adapter, like))
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=made, dtype=torch.float64))
    x = torch.randn(2, prefix + 6, 8, generator=made, dtype=torch.float64)
    patches, learned = x[:, prefix:], block.rows @ block.columns
    attention = F.softmax(torch.einsum("bnd,md->bnm", patches, learned) / math.sqrt(8), -1)
    values = F.linear(learned, block.common.values.weight, block.common.values.bias)
    inner = patches + torch.einsum("bnm,md->bnd", attention[..., 1:], values[1:])
    update = F.linear(inner, block.common.update.weight, block.common.update.bias)
    y = block(Tokens(x, (2, 3), prefix)).data
    torch.testing.assert_close(y[:, prefix:], patches + block.common.scale * update, rtol=0, atol=1e-11)
    assert torch.equal(y[:, :prefix], x[:, :prefix])


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Rein(tokens=1), "tokens must be at least 2"),
        (lambda: Rein(rank=0), "rank positive"),
        (lambda: Rein(init="one"), "init must be zero or reference"),
        (lambda: attach(stack(2, 8), Rein(tokens=20, rank=9)), "rank must not exceed tokens and width, 9 > 8"),
        (lambda: attach(stack(2, 8), Rein(tokens=20, rank=2, blocks=(5,))), "has blocks 0 to 1"),
    ],
)
def test_bad_settings_are_told(make, told):
    with pytest.raises(ValueError, match=told):
        make()

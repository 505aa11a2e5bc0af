from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from geomed.adapters import AdaptFormer, Convpass, attach, merge
from geomed.adapters.convpass import ConvpassBranch
from geomed.adapters.counts import trainable
from geomed.backbones.block import plain_block
from geomed.backbones.inputs import Inputs
from geomed.backbones.tsvit import TSViT, TSViTSize
from geomed.backbones.vit import ViT
from geomed.tokens import Tokens


def rgb():
    return Inputs(("red", "green", "blue"), [0.5] * 3, [0.2] * 3)


def block(**also):
    torch.manual_seed(0)
    root = nn.Module()
    root.blocks = nn.ModuleList([plain_block(16, heads=2, head_dim=8, hidden=24)]).double()
    for adapter in (*also.get("before", ()), Convpass(bottleneck=3, scale=0.7)):
        attach(root, adapter)
    for parameter in root.parameters():
        nn.init.normal_(parameter, std=0.3)
    return root


def by_hand(adapted, x, grid, prefix):
    """Token by token, tap by tap."""
    act = lambda each: each * torch.sigmoid(1.702 * each)  # noqa: E731
    narrow = act(F.linear(x, adapted.down.weight, adapted.down.bias))
    spread = []
    for number in range(x.shape[1]):
        total = adapted.conv.bias.expand(len(x), -1)
        row, column = divmod(number - prefix, grid[1])
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                inside = 0 <= row + down < grid[0] and 0 <= column + right < grid[1]
                if number < prefix:
                    inside = down == right == 0
                if inside:
                    tap = adapted.conv.weight[:, :, down + 1, right + 1]
                    total = total + F.linear(narrow[:, number + down * grid[1] + right], tap)
        spread.append(act(total))
    return 0.7 * F.linear(torch.stack(spread, 1), adapted.up.weight, adapted.up.bias)


def test_counts_equal_the_published_one():
    # D 768 x 8 + 8, K 8 x 8 x 9 + 8, U 8 x 768 + 768, beside attention and MLP of 12 blocks: 0.33 M
    with torch.device("meta"):
        backbone = ViT("vit_base_patch16_224", inputs=rgb())
    attach(backbone, Convpass())
    assert trainable(backbone) == 24 * (768 * 8 + 8 + 8 * 8 * 9 + 8 + 8 * 768 + 768) == 327_552


@pytest.mark.parametrize(("grid", "prefix"), [((2, 3), 0), ((3, 2), 1), ((1, 4), 5)])
@pytest.mark.parametrize("name", ["attention", "mlp"])
def test_equals_the_formula_by_hand(grid, prefix, name):
    root = block()
    adapted = root.blocks[0].get_submodule(name)
    tokens = Tokens(torch.randn(2, grid[0] * grid[1] + prefix, 16, dtype=torch.float64), grid, prefix)
    beside = by_hand(adapted, adapted.base.norm(tokens.data), grid, prefix)
    torch.testing.assert_close(adapted(tokens), adapted.base(tokens) + beside)


def test_reads_the_norm_inside_other_adapters():
    root = block(before=(AdaptFormer(bottleneck=2),))
    adapted = root.blocks[0].mlp
    tokens = Tokens(torch.randn(2, 7, 16, dtype=torch.float64), (2, 3), 1)
    beside = by_hand(adapted, adapted.base.base.norm(tokens.data), (2, 3), 1)
    torch.testing.assert_close(adapted(tokens), adapted.base(tokens) + beside)


def test_normalised_tokens_are_not_kept():
    adapted = block().blocks[0].mlp
    norm, seen = adapted.base.norm, []

    class Watched(nn.Module):
        def forward(self, x):
            y = norm(x)
            seen.append(StorageWeakRef(y.untyped_storage()))
            return y

    adapted.base.norm = Watched()
    tokens = Tokens(torch.randn(2, 7, 16, dtype=torch.float64, requires_grad=True), (2, 3), 1)
    update = adapted(tokens)
    assert len(seen) == 2
    assert all(one.expired() for one in seen)
    update.sum().backward()


def test_dates_are_passed_over_and_refused_by_name():
    size = TSViTSize(dim=16, heads=2, head_dim=8, temporal_depth=2, spatial_depth=2)
    backbone = TSViT(inputs=rgb(), num_classes=3, size=size, image_size=8)
    attach(backbone, Convpass())
    names = [name for name, module in backbone.named_modules() if isinstance(module, ConvpassBranch)]
    assert len(names) == 4
    assert all(name.startswith("spatial.") for name in names)
    with pytest.raises(ValueError, match="these are dates"):
        attach(backbone, Convpass(targets=("temporal.*.mlp",)))


def test_starts_by_passing_on_and_does_not_fold():
    root = nn.Module()
    root.blocks = nn.ModuleList([plain_block(16, heads=2, head_dim=8, hidden=24)])
    attach(root, Convpass(bottleneck=2))
    x = torch.randn(1, 2, 3, 4)
    torch.testing.assert_close(root.blocks[0].mlp.conv(x), x)
    with pytest.raises(ValueError, match="cannot be merged"):
        merge(root)


def test_bad_settings_are_told():
    with pytest.raises(ValueError, match="bottleneck must be positive, not 0"):
        Convpass(bottleneck=0)

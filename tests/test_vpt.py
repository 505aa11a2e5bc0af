from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import pytest
import timm
import torch
from torch import nn

from geomed.adapters import DVPT, VPT, AdaptFormer, adapter_state, attach
from geomed.adapters.adapter import Adapted, Adapter
from geomed.adapters.counts import trainable
from geomed.backbones.inputs import Inputs
from geomed.backbones.tsvit import TSViT, TSViTSize
from geomed.backbones.vit import ViT, ViTSize
from geomed.pixels import Pixels

if TYPE_CHECKING:
    from geomed.tokens import Tokens


def rgb() -> Inputs:
    return Inputs(("red", "green", "blue"), [0.5] * 3, [0.25] * 3)


SIZE = ViTSize(dim=16, depth=3, heads=2, patch=4)


def tiny(name: str = "test_vit") -> ViT:
    torch.manual_seed(0)
    return ViT(name, inputs=rgb(), image_size=28, size=SIZE).double().eval()


def image() -> Pixels:
    made = torch.Generator().manual_seed(1)
    return Pixels(values=torch.rand(2, 3, 8, 12, generator=made, dtype=torch.float64))


def by_hand(name: str, prompts: list[torch.Tensor], *, deep: bool) -> torch.Tensor:
    """timm's own model with tokens put in and replaced as the paper's equations 4 to 7 say."""
    torch.manual_seed(0)
    options = {"embed_dim": 16, "depth": 3, "num_heads": 2, "patch_size": 4, "img_size": 28, "mlp_ratio": 4.0}
    model = timm.create_model(
        name, num_classes=0, dynamic_img_size=True, norm_layer=partial(nn.LayerNorm, eps=1e-6), **options
    )
    model = model.double().eval()
    x = model._pos_embed(model.patch_embed((image().values - 0.5) / 0.25))
    first, count = model.num_prefix_tokens, len(prompts[0])
    x = torch.cat((x[:, :first], prompts[0].expand(2, -1, -1), x[:, first:]), 1)
    for number, block in enumerate(model.blocks):
        if deep and number:
            x = torch.cat((x[:, :first], prompts[number].expand(2, -1, -1), x[:, first + count :]), 1)
        x = block(x)
    return model.norm(x)


@pytest.mark.parametrize("name", ["test_vit", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_18x2_224"])
@pytest.mark.parametrize("deep", [True, False])
def test_outputs_are_those_of_the_equations(name, deep):
    backbone = tiny(name)
    attach(backbone, VPT(count=3, deep=deep))
    prompts = [value for key, value in adapter_state(backbone).items() if key.endswith("prompts")]
    assert len(prompts) == (len(backbone.blocks) if deep else 1)
    tokens = backbone(image())[0]
    expected = by_hand(name, prompts, deep=deep)
    first = backbone.prefix
    torch.testing.assert_close(tokens.data[:, :first], expected[:, :first], rtol=0, atol=1e-10)
    torch.testing.assert_close(tokens.patches(), expected[:, first + 3 :], rtol=0, atol=1e-10)
    if not deep:
        left = backbone.norm(tokens.carried["vpt.0"])
        torch.testing.assert_close(left, expected[:, first : first + 3], rtol=0, atol=1e-10)


def test_counts_are_the_published_ones():
    for deep, expected in ((False, 7_680), (True, 92_160)):
        with torch.device("meta"):
            backbone = ViT("vit_base_patch16_224", inputs=rgb())
            attach(backbone, VPT(deep=deep))
        assert trainable(backbone) == expected


def test_prompts_are_drawn_within_the_published_bound():
    backbone = tiny()
    attach(backbone, VPT(count=400))
    bound = math.sqrt(6 / (3 * backbone.spec.patch**2 + backbone.spec.dim))
    for prompts in adapter_state(backbone).values():
        assert 0.99 * bound < prompts.abs().max() <= bound
        assert abs(prompts.mean()) < 0.05 * bound


def test_a_block_that_another_adapter_wraps_whole_is_the_same_block():
    first, second = tiny(), tiny()
    for backbone in (first, second):
        torch.manual_seed(3)
        if backbone is second:
            attach(second, _AsItIs())
        attach(backbone, VPT(count=3))
    assert any(isinstance(module, _Same) for module in second.modules())
    a, b = (backbone(image())[0].data for backbone in (first, second))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


class _AsItIs(Adapter):
    def wrap(self, place):
        return _Same(place.module) if place.grid_block(("blocks.*",)) else None


class _Same(Adapted):
    def forward(self, tokens: Tokens) -> Tokens:
        return self.base(tokens)


def test_only_the_blocks_named_get_prompts():
    backbone = tiny()
    attach(backbone, VPT(count=3, blocks=(-1,)))
    last = len(backbone.blocks) - 1
    assert set(adapter_state(backbone)) == {f"blocks.{last}.prompts"}


def test_tsvit_gets_them_in_its_spatial_stage():
    size = TSViTSize(dim=16, heads=2, head_dim=8, temporal_depth=2, spatial_depth=2)
    backbone = TSViT(inputs=rgb(), num_classes=3, size=size, image_size=8)
    attach(backbone, VPT(count=3))
    state = adapter_state(backbone)
    assert set(state) == {"spatial.blocks.0.prompts", "spatial.blocks.1.prompts"}
    assert all(value.shape == (3, 16) for value in state.values())
    with pytest.raises(ValueError, match="leave this stage out of targets"):
        attach(TSViT(inputs=rgb(), num_classes=3, size=size, image_size=8), VPT(targets=("temporal.blocks.*",)))


def test_each_attached_carries_prompts_of_its_own():
    backbone = tiny()
    attach(backbone, VPT(count=2, deep=False))
    attach(backbone, VPT(count=3, deep=False, blocks=(1, 2)))
    attach(backbone, VPT(count=4))
    attach(backbone, AdaptFormer(bottleneck=2))
    carried = backbone(image())[0].carried
    assert {name: value.shape[1] for name, value in carried.items()} == {"vpt.0": 2, "vpt.1": 3}


def test_a_network_without_a_backbone_is_refused():
    blocks = nn.ModuleDict({"blocks": tiny().blocks})
    with pytest.raises(ValueError, match=r"blocks\.0: prompts are drawn by the patch size"):
        attach(blocks, VPT())
    assert all(parameter.requires_grad for parameter in blocks.parameters())
    attach(nn.ModuleDict({"backbone": tiny()}), VPT())
    attach(blocks, DVPT(mode="released"))


def test_no_prompts_are_refused():
    with pytest.raises(ValueError, match="count must be positive, not 0"):
        VPT(count=0)

from __future__ import annotations

import pytest
import torch
from test_adapters import disturb, features, pixels, plain_vit, rgb, tsvit
from torch import nn

from geomed.adapters import BitFit, ExPLoRA, LoRA, adapter_state, attach, merge
from geomed.adapters.counts import trainable
from geomed.adapters.lora import LowRankSlices
from geomed.adapters.tune import Tuned
from geomed.backbones.inputs import Inputs
from geomed.backbones.vit import ViT, ViTSize

# Trainable parameters of DINOv2 (with LayerScale), as arXiv 2406.10973 prints them: D-[L]-r64 18.7 M, [L] alone 12.7 M,
# D-[1,L-1,L]-r64 43.4 M, ViT-B 9 M; to the digit by running the freezing rule of github.com/samar-khanna/ExPLoRA.
PUBLISHED = {
    "D-[L]-r64": ("large", ExPLoRA(), 18_724_864),
    "D-[L]-r64 without norms and class token": ("large", ExPLoRA(norms=False, class_token=False), 18_627_584),
    "[L]": ("large", ExPLoRA(rank=0), 12_695_552),
    "D-[1,L-1,L]-r64": ("large", ExPLoRA(blocks=(0, -2, -1)), 43_388_928),
    "D-[L]-r64, ViT-B": ("base", ExPLoRA(), 9_288_192),
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_counts_equal_the_published(name):
    size, adapter, expected = PUBLISHED[name]
    with torch.device("meta"):
        backbone = ViT(f"vit_{size}_patch14_dinov2", inputs=rgb())
    attach(backbone, adapter)
    assert trainable(backbone) == expected


def tiny(name: str) -> ViT:
    torch.manual_seed(0)
    size = ViTSize(dim=16, depth=3, heads=2, patch=4)
    backbone = ViT(name, inputs=rgb(), image_size=(8, 12), size=size).double().eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return backbone


def test_what_trains_is_what_the_paper_names():
    backbone = tiny("vit_small_patch14_dinov2")
    attach(backbone, ExPLoRA(rank=2))
    names = set(adapter_state(backbone))
    whole = {name for name in names if name.startswith("blocks.2.copy.")}
    assert len(whole) == 14  # two norms and four Linears with bias, two LayerScales
    rest = {"stem.copies.0", "norm.copy.weight", "norm.copy.bias"}
    for number in (0, 1):
        rest |= {f"blocks.{number}.attention.attn.qkv.{name}" for name in ("down", "up")}
        rest |= {f"blocks.{number}.{p}.norm.copy.{w}" for p in ("attention", "mlp") for w in ("weight", "bias")}
    assert names - whole == rest


def test_fused_slices_equal_separate_projections_with_their_own_updates():
    torch.manual_seed(0)
    qkv, x = nn.Linear(12, 36).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    adapted = LowRankSlices(qkv, LoRA(rank=4, alpha=1.0), qkv)
    nn.init.normal_(adapted.up)
    adapted(x).square().sum().backward()

    down = [part.detach().clone().requires_grad_() for part in adapted.down.chunk(2)]
    up = [part.detach().clone().requires_grad_() for part in adapted.up.chunk(2)]
    q, k, v = (x @ weight.T + bias for weight, bias in zip(qkv.weight.chunk(3), qkv.bias.chunk(3), strict=True))
    q = q + 0.25 * (x @ down[0].T) @ up[0].T
    v = v + 0.25 * (x @ down[1].T) @ up[1].T
    split = torch.cat((q, k, v), -1)
    split.square().sum().backward()
    torch.testing.assert_close(adapted(x), split, rtol=0, atol=1e-12)
    torch.testing.assert_close(adapted.down.grad, torch.cat([one.grad for one in down]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(adapted.up.grad, torch.cat([one.grad for one in up]), rtol=1e-12, atol=1e-12)


# a norm before the blocks; positions beside the class token, not on it
@pytest.mark.parametrize("name", ["vit_base_patch32_clip_224", "deit3_small_patch16_224"])
def test_the_class_token_and_a_norm_before_the_blocks_train_and_merge(name):
    backbone = tiny(name)
    given = pixels(backbone)
    before = features(backbone, given)
    attach(backbone, ExPLoRA(rank=2))
    assert torch.equal(features(backbone, given), before)
    disturb(backbone)
    after = features(backbone, given)
    after.square().sum().backward()
    assert all(copied.grad.abs().sum() > 0 for copied in backbone.stem.copies)
    assert len(backbone.stem.copies) == (3 if "clip" in name else 1)
    token = backbone.stem.copies[0].detach().clone()
    merge(backbone)
    torch.testing.assert_close(backbone.stem.cls_token, token, rtol=0, atol=0, check_stride=False)
    torch.testing.assert_close(features(backbone, given), after, rtol=0, atol=1e-12)


def test_a_norm_before_the_blocks_trains_without_the_class_token_too():
    backbone = tiny("vit_base_patch32_clip_224")
    attach(backbone, ExPLoRA(rank=0, blocks=(), class_token=False))
    assert isinstance(backbone.stem.norm_pre, Tuned)


def test_where_there_is_no_class_token_none_trains():
    backbone = tiny("vit_base_patch16_siglip_gap_224")
    attach(backbone, ExPLoRA(rank=2))
    assert not any(name.startswith("stem") for name in adapter_state(backbone))


def test_each_stage_of_a_tsvit_has_its_last_block():
    backbone = tsvit()
    attach(backbone, ExPLoRA(rank=2))
    names = {name.split(".copy")[0] for name in adapter_state(backbone)}
    assert {"temporal.blocks.1", "spatial.blocks.1", "temporal.norm", "spatial.norm", "class_tokens"} <= names
    assert "position" not in names


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: ExPLoRA(rank=0, blocks=(), norms=False, class_token=False), "something must train"),
        (lambda: ExPLoRA(rank=-1), "rank must be positive"),
        (lambda: attach(plain_vit(), ExPLoRA(blocks=(40,))), r"has blocks 0 to \d+, not \[40\]"),
        (lambda: attach(plain_vit(), ExPLoRA(rank=400)), "rank must not exceed the width"),
    ],
)
def test_bad_settings_are_told(make, told):
    with pytest.raises(ValueError, match=told):
        make()


@pytest.mark.parametrize("first", [BitFit(targets=("mlp.norm",)), ExPLoRA(rank=0, blocks=(), norms=False)])
def test_what_is_adapted_already_is_not_copied(first):
    backbone = plain_vit()
    attach(backbone, first)
    before = list(adapter_state(backbone))
    with pytest.raises(ValueError, match="this is adapted already; attach ExPLoRA first"):
        attach(backbone, ExPLoRA(rank=2))
    assert list(adapter_state(backbone)) == before


def test_a_block_without_a_fused_qkv_asks_for_rank_0():
    backbone = plain_vit()
    backbone.blocks[0].attention.attn = nn.Identity()
    with pytest.raises(ValueError, match=r"blocks\.0: low-rank updates need a fused qkv"):
        attach(backbone, ExPLoRA(rank=2))


def test_registers_and_patch_embedding_train_on_request():
    backbone = tiny("vit_small_patch14_reg4_dinov2")
    attach(backbone, ExPLoRA(rank=0, blocks=(), norms=False, registers=True, patch_embed=True))
    shapes = [tuple(p.shape) for p in backbone.parameters() if p.requires_grad]
    assert shapes == [(1, 1, 16), (1, 4, 16), (16, 3, 4, 4), (16,)]
    x = pixels(backbone)
    before = features(backbone, x)
    disturb(backbone)
    after = features(backbone, x)
    assert (after - before).abs().max() > 1e-3
    merge(backbone)
    torch.testing.assert_close(features(backbone, x), after, rtol=0, atol=1e-12)


def test_registers_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="has none"):
        attach(tiny("vit_small_patch14_dinov2"), ExPLoRA(registers=True))


def test_the_published_multispectral_structure():
    """M-[1,L]-r32 has 29,697,664 parameters with its decoder: here without the biases of two more groups of bands."""
    bands = [f"band{number}" for number in range(10)]
    with torch.device("meta"):
        backbone = ViT(
            "vit_large_patch16_224",
            inputs=Inputs(bands, [0.0] * 10, [1.0] * 10),
            image_size=96,
            size=ViTSize(dim=1024, depth=24, heads=16, patch=8),
        )
    attach(backbone, ExPLoRA(blocks=(0, -1), rank=32, patch_embed=True))
    decoder = 8 * 2 * 2 * 512 * 32 + 17 * 2 * 512 + (10 * 64 * 512 + 10 * 64)
    assert trainable(backbone) + decoder == 29_697_664 - 2 * 1024

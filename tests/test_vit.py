from __future__ import annotations

import gc
import weakref

import pytest
import timm
import torch

from geomed.backbones.inputs import Inputs
from geomed.backbones.vit import ViT, ViTSize
from geomed.heads.linear import Linear
from geomed.pixels import Pixels

NAMES = ["test_vit", "vit_tiny_patch16_224", "deit3_small_patch16_224", "vit_small_patch16_18x2_224"]


def rgb() -> Inputs:
    return Inputs(("red", "green", "blue"), [0.5] * 3, [0.2] * 3)


def both(name: str, **options) -> tuple[ViT, torch.nn.Module]:
    torch.manual_seed(0)
    ours = ViT(name, inputs=rgb(), image_size=options.get("img_size")).eval()
    torch.manual_seed(0)
    return ours, timm.create_model(name, num_classes=0, dynamic_img_size=True, **options).eval()


def same(ours: ViT, theirs: torch.nn.Module, height: int, width: int) -> None:
    values = torch.rand(2, 3, height * ours.spec.patch, width * ours.spec.patch)
    with torch.no_grad():
        first, last = ours(Pixels(values=values), depths=(1, -1))
        blocks = [1, len(theirs.blocks) - 1]
        expected = theirs.forward_intermediates(
            (values - 0.5) / 0.2, indices=blocks, norm=True, intermediates_only=True, output_fmt="NLC"
        )
    for tokens, features in zip((first, last), expected, strict=True):
        assert tokens.grid == (height, width)
        torch.testing.assert_close(tokens.patches(), features, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_features_equal_timm(name):
    ours, theirs = both(name)
    same(ours, theirs, 3, 5)


def test_dinov2_with_registers_equals_timm():
    ours, theirs = both("vit_small_patch14_reg4_dinov2", img_size=56)
    assert ours.stem.num_prefix_tokens == 5
    same(ours, theirs, 2, 3)


def test_any_size_is_padded_and_answered_for():
    ours, _ = both("test_vit")
    patch = ours.spec.patch
    pixels = Pixels(values=torch.rand(1, 3, 2 * patch + 1, patch - 3))
    head = Linear(ours.spec, 4)
    assert ours(pixels)[0].grid == (3, 1)
    assert head(ours(pixels), pixels.size).shape == (1, 4, 2 * patch + 1, patch - 3)


def test_a_forward_pass_without_backward_leaves_nothing_behind():
    ours, _ = both("test_vit")
    values = torch.rand(1, 3, 32, 32, requires_grad=True)
    held = weakref.ref(values)
    ours(Pixels(values=values))
    del values
    gc.collect()
    assert held() is None


def test_bands_start_from_the_colour_filters():
    torch.manual_seed(0)
    colours = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True).patch_embed.proj.weight
    torch.manual_seed(0)
    weight = ViT("test_vit", inputs=Inputs(("B02", "B03", "B04", "B08", "B11"))).stem.patch_embed.proj.weight
    for band, expected in enumerate((colours[:, 2], colours[:, 1], colours[:, 0], colours.mean(1), colours.mean(1))):
        torch.testing.assert_close(weight[:, band], expected * 3 / 5)


def test_a_size_of_ones_own():
    size = ViTSize(dim=24, depth=3, heads=4, patch=4, norm_eps=1e-5)
    ours = ViT("vit_tiny_patch16_224", inputs=rgb(), image_size=32, size=size)
    assert (ours.spec.dim, ours.spec.patch, len(ours.blocks), ours.norm.eps) == (24, 4, 3, 1e-5)
    assert ours(Pixels(values=torch.rand(1, 3, 16, 24)))[0].grid == (4, 6)


def test_weights_come_from_a_file(tmp_path):
    torch.manual_seed(1)
    saved = timm.create_model("test_vit", num_classes=0)
    torch.save(saved.state_dict(), tmp_path / "vit.pth")
    ours = ViT("test_vit", inputs=rgb(), checkpoint=str(tmp_path / "vit.pth"))
    assert torch.equal(ours.blocks[0].mlp.mlp.fc1.weight, saved.blocks[0].mlp.fc1.weight)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: ViT("vit_nothing", inputs=rgb()), "timm has no model 'vit_nothing'"),
        (lambda: ViT("resnet18", inputs=rgb()), "resnet18 is no VisionTransformer"),
        (lambda: ViT("vit_small_r26_s32_224", inputs=rgb()), "wraps timm's"),
        (
            lambda: both("test_vit")[0](Pixels(values=torch.zeros(1, 2, 3, 32, 32), days=torch.zeros(1, 2).long())),
            "a ViT reads single images",
        ),
        (lambda: ViTSize(dim=10, depth=1, heads=3, patch=2), "heads must divide dim"),
        (lambda: Linear(both("test_vit")[0].spec, 0), "num_classes must be positive"),
    ],
)
def test_bad_input_is_told(make, told):
    with pytest.raises(ValueError, match=told):
        make()

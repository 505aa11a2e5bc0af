from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geomed.adapters import DVPT, VPT, LoRA, adapter_state, attach
from geomed.adapters.counts import trainable
from geomed.adapters.dvpt import DynamicBottleneck, DynamicMlp, GatedBottleneck
from geomed.backbones.inputs import Inputs
from geomed.backbones.tsvit import TSViT, TSViTSize
from geomed.backbones.vit import ViT, ViTSize
from geomed.pixels import Pixels
from geomed.tokens import Tokens

GOLDEN = np.load(Path(__file__).parent / "golden" / "dvpt.npz")
# The released ViT, class VisionTransformer of code/model.py at commit 180a4a4 of github.com/NKUhealong/DVPT, run on a
# CPU in float64 as VisionTransformer(input_resolution=8, patch_size=4, width=16, layers=6, heads=2, output_dim=8). Its
# LayerNorm, which casts to float32, was replaced by PyTorch's. Weights (``param/``): 0.3 N(0, 1), plus 1 for norms,
# rounded to float32; gates 0.5. ``x`` → ``y``; ``tokens``: 50 prompts, class token and 4 patches after the last block;
# ``grad/``: gradients of sum(y · linspace(-1, 1)) for all that it trains.


def rgb() -> Inputs:
    return Inputs(("red", "green", "blue"), [0.5] * 3, [0.25] * 3)


def tiny(name: str = "test_vit", depth: int = 3) -> ViT:
    torch.manual_seed(0)
    size = ViTSize(dim=16, depth=depth, heads=2, patch=4)
    return ViT(name, inputs=rgb(), image_size=28, size=size).double().eval()


def image() -> Pixels:
    made = torch.Generator().manual_seed(1)
    return Pixels(values=torch.rand(2, 3, 8, 12, generator=made, dtype=torch.float64))


def golden(name: str) -> Tensor:
    return torch.from_numpy(GOLDEN[name]).double()


def our_name(theirs: str) -> str:
    """Theirs → ours with the adapter attached; a bottleneck is named by its first block, as theirs is."""
    stem = {
        "class_embedding": "cls_token",
        "positional_embedding": "pos_embed",
        "conv1.weight": "patch_embed.proj.weight",
    }
    if theirs in stem:
        return f"stem.{stem[theirs]}"
    name = theirs.replace("prompt_token", "blocks.0.prompts.prompts")
    name = name.replace("prompt_positional_embedding", "blocks.0.prompts.positions")
    name = name.replace("ln_pre", "stem.norm_pre").replace("ln_post", "norm").replace("transformer.resblocks", "blocks")
    for part, ours in (
        ("attn.in_proj_", "base.attention.attn.qkv."),
        ("attn.out_proj", "base.attention.attn.proj"),
        ("ln_1", "base.attention.norm"),
        ("ln_2", "base.mlp.norm"),
        ("mlp.c_fc", "base.mlp.mlp.fc1"),
        ("mlp.c_proj", "base.mlp.mlp.fc2"),
        ("prompt_proj.prompt_gate", "bottleneck.gate"),
        ("prompt_proj.prompt_key_proj_d", "bottleneck.down"),
        ("prompt_proj.prompt_key_proj_u", "bottleneck.up"),
    ):
        name = name.replace(f".{part}", f".{ours}")
    return name


def test_released_equals_the_authors_code():
    size = ViTSize(dim=16, depth=6, heads=2, patch=4, norm_eps=1e-5)
    inputs = Inputs(("red", "green", "blue"), [0.0] * 3, [1.0] * 3)
    backbone = ViT("vit_base_patch16_clip_quickgelu_224", inputs=inputs, image_size=8, size=size).double()
    attach(backbone, DVPT(mode="released"))
    names = [name.removeprefix("param/") for name in GOLDEN.files if name.startswith("param/")]
    parameters = dict(backbone.named_parameters())
    assert {our_name(name) for name in names} == {*parameters, "proj"}
    with torch.no_grad():
        for name in set(names) - {"proj"}:
            own = parameters[our_name(name)]
            own.copy_(golden(f"param/{name}").reshape(own.shape))

    tokens = backbone(Pixels(values=golden("x")))[0]
    prompts = backbone.norm(tokens.carried["dvpt.0"])
    found = torch.cat((prompts, tokens.data), 1)
    torch.testing.assert_close(found, backbone.norm(golden("tokens")), rtol=0, atol=1e-10)
    y = found[:, :51].mean(1) @ golden("param/proj")
    torch.testing.assert_close(y, golden("y"), rtol=0, atol=1e-10)

    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)).sum().backward()
    trained = {name for name in names if f"grad/{name}" in GOLDEN.files}
    assert {our_name(name) for name in trained} == set(adapter_state(backbone))
    for name in trained:
        expected = golden(f"grad/{name}")
        torch.testing.assert_close(parameters[our_name(name)].grad, expected.reshape_as(parameters[our_name(name)]))


def formula(x: Tensor, prefix: int, module: DynamicMlp, aggregate: str) -> Tensor:
    """The docstring's equations one by one, projecting up before aggregating."""
    part = module.bottleneck
    z = F.gelu(x @ part.down.weight.T + part.down.bias)
    grid = z[:, prefix:]
    width = z.shape[-1]
    q = torch.softmax(part.prompts @ grid.transpose(1, 2) / width**0.5, -1) @ grid
    u = q @ part.up.weight.T
    if aggregate == "mean":
        back = u.mean(1, keepdim=True)
    else:
        back = torch.softmax(z @ q.transpose(1, 2) / width**0.5, -1) @ u
    return module.gate * (back + z @ part.up.weight.T + part.up.bias)


@pytest.mark.parametrize("aggregate", ["broadcast", "mean"])
@pytest.mark.parametrize("prefix", [0, 5])
def test_paper_equals_its_equations(aggregate, prefix):
    backbone = tiny()
    attach(backbone, DVPT(count=4, bottleneck=6, aggregate=aggregate))
    module = backbone.blocks[0].mlp
    made = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in (*module.bottleneck.parameters(), module.gate):
            parameter.copy_(torch.randn(parameter.shape, generator=made, dtype=torch.float64))
    x = torch.randn(2, prefix + 6, backbone.spec.dim, generator=made, dtype=torch.float64)
    tokens = Tokens(x, (2, 3), prefix)
    update = module(tokens) - module.base(tokens)
    torch.testing.assert_close(update, formula(x, prefix, module, aggregate), rtol=1e-9, atol=1e-9)


def test_prompts_ask_the_grid_alone():
    backbone = tiny()
    attach(backbone, DVPT(count=4, bottleneck=6))
    part = backbone.blocks[0].mlp.bottleneck
    nn.init.normal_(part.up.weight)
    gate = torch.ones(1, dtype=torch.float64)
    x = torch.randn(1, 11, backbone.spec.dim, dtype=torch.float64)
    other = x.clone()
    other[:, :5] *= 100
    found = [part(Tokens(each, (2, 3), 5), gate) for each in (x, other)]
    torch.testing.assert_close(found[0][:, 5:], found[1][:, 5:], rtol=0, atol=1e-12)
    assert not torch.allclose(found[0][:, :5], found[1][:, :5])


@pytest.mark.parametrize("bottleneck", [6, 7])
def test_bottlenecks_learn_from_the_first_step_while_nothing_has_changed(bottleneck):
    backbone = tiny("vit_small_patch14_reg4_dinov2", depth=12)
    before = backbone(image())[0].data
    attach(backbone, DVPT(count=4, bottleneck=bottleneck))
    backbone = backbone.train()
    after = backbone(image())[0].data
    torch.testing.assert_close(after, before, rtol=0, atol=1e-12)
    weight = torch.randn(after.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (after * weight).sum().backward()
    parts = [module for module in backbone.modules() if isinstance(module, DynamicBottleneck)]
    assert len(parts) == 4
    for part in parts:
        assert (part.up.weight.grad.abs().amax(0) > 1e-6).all()
        assert (part.up.bias.grad.abs() > 1e-6).any()
        assert (part.down.weight.grad[: bottleneck // 2 * 2].abs().amax(1) > 1e-6).all()
        assert (part.down.bias.grad[: bottleneck // 2 * 2].abs() > 1e-6).all()
    optimiser = torch.optim.AdamW([p for p in backbone.parameters() if p.requires_grad], lr=1e-3)
    optimiser.step()
    optimiser.zero_grad()
    (backbone(image())[0].data * weight).sum().backward()
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            assert (parameter.grad != 0).any(), name
    half = bottleneck // 2
    for part in parts:  # the pairs have parted
        assert not torch.allclose(part.down.weight[:half], part.down.weight[half : 2 * half])


def test_counts_are_those_of_the_released_code():
    # theirs: ViT-B/16 at 288 pixels; 50 tokens and 50 positions, four modules of 31,509, the head not counted
    with torch.device("meta"):
        backbone = ViT("vit_base_patch16_224", inputs=rgb(), image_size=288)
        attach(backbone, DVPT(mode="released"))
    assert trainable(backbone) == 202_836 == 38_400 + 38_400 + 4 * 31_509
    with torch.device("meta"):
        backbone = ViT("vit_base_patch16_224", inputs=rgb(), image_size=288)
        attach(backbone, DVPT())
    assert trainable(backbone) == 4 * (31_508 + 50 * 20) + 12


@pytest.mark.parametrize(("mode", "kind"), [("paper", DynamicBottleneck), ("released", GatedBottleneck)])
def test_consecutive_blocks_share_a_bottleneck(mode, kind):
    backbone = tiny(depth=12)
    attach(backbone, DVPT(mode=mode, count=2, bottleneck=2, every=5, blocks=(0, 3, 4, 5, -1)))
    parts = {module for module in backbone.modules() if isinstance(module, kind)}
    assert len(parts) == 3
    blocks = [block if mode == "released" else block.mlp for block in backbone.blocks]
    assert blocks[0].bottleneck is blocks[3].bottleneck is blocks[4].bottleneck
    assert len({blocks[number].bottleneck for number in (0, 5, 11)}) == 3
    if mode == "paper":
        assert len({blocks[number].gate for number in (0, 3, 4)}) == 3


@pytest.mark.parametrize("mode", ["paper", "released"])
def test_blocks_are_named_alike_in_both_modes(mode):
    backbone = tiny()
    attach(backbone, DVPT(mode=mode, count=2, bottleneck=2, targets=("blocks.1",)))
    assert all(name.startswith("blocks.1.") for name in adapter_state(backbone))
    size = TSViTSize(dim=16, heads=2, head_dim=8, temporal_depth=2, spatial_depth=2)
    series = TSViT(inputs=rgb(), num_classes=3, size=size, image_size=8)
    attach(series, DVPT(mode=mode, count=2, bottleneck=2))
    assert all(name.startswith("spatial.blocks.") for name in adapter_state(series))
    with pytest.raises(ValueError, match="leave this stage out of targets"):
        attach(series, DVPT(mode=mode, targets=("temporal.blocks.*",)))


def test_what_it_does_not_reach_is_refused():
    with pytest.raises(ValueError, match=r"blocks\.0: DVPT stands beside the MLP, .* use VPT"):
        attach(tiny("vit_small_patch16_18x2_224"), DVPT())
    backbone = tiny()
    attach(backbone, VPT(count=2))
    attach(backbone, DVPT(count=2, bottleneck=2))
    with pytest.raises(ValueError, match="attach DVPT first"):
        attach(backbone, DVPT(mode="released"))
    backbone = tiny()
    attach(backbone, LoRA(rank=2))
    attach(backbone, DVPT(mode="released", count=2, bottleneck=2))
    attach(backbone, VPT(count=2))
    assert backbone(image())[0].carried["dvpt.0"].shape[1] == 2


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: DVPT(count=0), "count, bottleneck and every must be positive, not 0, 20 and 3"),
        (lambda: DVPT(bottleneck=0), "must be positive"),
        (lambda: DVPT(every=0), "must be positive"),
        (lambda: DVPT(mode="released", aggregate="mean"), "aggregate='mean' is for paper only"),
    ],
)
def test_bad_settings_are_told(make, told):
    with pytest.raises(ValueError, match=told):
        make()

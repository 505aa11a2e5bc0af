from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from geomed.adapters import Columns, LoRA, adapted_modules, attach, detach, merge
from geomed.adapters.columns import PartlyTrained, _Product
from geomed.adapters.counts import trainable
from geomed.backbones.inputs import Inputs
from geomed.backbones.vit import ViT, ViTSize
from geomed.pixels import Pixels

LINEARS = ("attn.qkv", "attn.proj", "fc1", "fc2")
S2FT = Columns(count=5, heads=2, coupled=True, targets=("attn.proj", "fc2"))


def vit(name: str = "vit_tiny_patch16_224", **options) -> ViT:
    torch.manual_seed(0)
    size = ViTSize(dim=24, depth=2, heads=3, patch=8)
    inputs = Inputs(("red", "green", "blue"), [0.5] * 3, [0.2] * 3)
    return ViT(name, inputs=inputs, image_size=16, size=size, **options).double()


def images() -> Pixels:
    return Pixels(values=torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64))


def disturb(backbone: nn.Module) -> None:
    made = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                change = torch.randn(parameter.shape, generator=made, dtype=torch.float64)
                parameter.add_(0.1 * change.to(parameter.dtype))


def loss(backbone: nn.Module) -> torch.Tensor:
    return backbone(images())[0].data.square().sum()


def parts(backbone: nn.Module) -> dict[str, PartlyTrained]:
    return {name: module for name, module in backbone.named_modules() if isinstance(module, PartlyTrained)}


@pytest.mark.parametrize("adapter", [Columns(count=3), S2FT], ids=["columns", "s2ft"])
def test_gradients_are_the_dense_ones_of_the_chosen_columns_and_rows(adapter):
    dense = vit()
    loss(dense).backward()
    ours = vit()
    attach(ours, adapter)
    loss(ours).backward()
    found = parts(ours)
    assert len(found) == 8
    for path, part in found.items():
        whole = dense.get_submodule(path).weight.grad
        torch.testing.assert_close(part.change.grad, whole.index_select(part.axis, part.index), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("first", [True, False], ids=["first block", "later"])
def test_gradients_equal_finite_differences(axis, bias, first):
    made = torch.Generator().manual_seed(0)
    x, weight, shift = (torch.randn(*s, generator=made, dtype=torch.float64) for s in ((2, 4, 5), (6, 5), (6,)))
    index = torch.tensor([0, 3])
    change = torch.randn((2, 5) if axis == 0 else (6, 2), generator=made, dtype=torch.float64, requires_grad=True)
    x.requires_grad_(not first)
    assert torch.autograd.gradcheck(
        lambda x, change: _Product.apply(x, weight, shift if bias else None, change, index, axis), (x, change)
    )


def test_what_is_not_needed_is_neither_kept_nor_computed():
    part = PartlyTrained(plain := nn.Linear(64, 32), plain, torch.arange(4), axis=1)
    plain.requires_grad_(requires_grad=False)
    tokens = torch.randn(2, 10, 64)
    y = part(tokens)
    kept = [tuple(tensor.shape) for tensor in y.grad_fn.saved_tensors]
    assert kept == [(2, 10, 4), (32, 64), (32, 4), (4,)]
    product = 2 * 20 * 64 * 32
    for needed, expected in ((False, product * 4 // 64), (True, product + product * 4 // 64)):
        with FlopCounterMode(display=False) as counted:
            y = part(tokens.requires_grad_(needed))
            forward = counted.get_total_flops()
            y.sum().backward()
        assert (forward, counted.get_total_flops() - forward) == (product, expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_same_over_a_plain_linear_and_over_an_adapted_one(axis):
    torch.manual_seed(0)
    plain = nn.Linear(12, 8).double()
    index = torch.tensor([1, 2, 7])
    ours = PartlyTrained(plain, plain, index, axis=axis)
    wrapped = PartlyTrained(nn.Sequential(plain), plain, index, axis=axis)
    with torch.no_grad():
        wrapped.change.copy_(nn.init.normal_(ours.change))
    changed = plain.weight.detach().clone()
    for place, number in enumerate(index):
        if axis == 0:
            changed[number] += ours.change[place].detach()
        else:
            changed[:, number] += ours.change[:, place].detach()
    grads = []
    for part in (ours, wrapped):
        x = torch.arange(36, dtype=torch.float64).reshape(3, 12).cos().requires_grad_()
        y = part(x)
        torch.testing.assert_close(y, F.linear(x, changed, plain.bias), rtol=0, atol=1e-13)
        y.sin().sum().backward()
        grads.append((x.grad, part.change.grad))
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-13)


def test_columns_are_drawn_by_seed_and_path():
    found = []
    for seed in (0, 0, 1):
        backbone = vit()
        attach(backbone, Columns(count=8, seed=seed))
        found.append({path: tuple(part.index.tolist()) for path, part in parts(backbone).items()})
    assert found[0] == found[1]
    assert found[0] != found[2]
    assert all(list(index) == sorted(set(index)) for index in found[0].values())
    assert len(set(found[0].values())) == len(found[0])
    detach(backbone)
    attach(backbone, LoRA(rank=1, targets=LINEARS))
    attach(backbone, Columns(count=8))
    plain = {path.replace(".base", ""): tuple(part.index.tolist()) for path, part in parts(backbone).items()}
    assert plain == found[0]


def test_the_largest_columns_are_those_of_the_largest_norm():
    backbone = vit()
    attach(backbone, Columns(count=3, choose="norm"))
    for part in adapted_modules(backbone):
        norms = [float(column.square().sum()) for column in part.base.weight.T]
        largest = sorted(range(len(norms)), key=lambda number: -norms[number])[:3]
        assert part.index.tolist() == sorted(largest)


@pytest.mark.parametrize("choose", ["random", "norm"])
def test_whole_heads_and_the_rows_that_make_them(choose):
    backbone = vit()
    attach(backbone, Columns(count=5, heads=2, coupled=True, choose=choose, targets=("attn.proj", "fc2")))
    found = parts(backbone)
    assert len(found) == 8
    for number in range(2):
        at = f"blocks.{number}.attention.attn"
        heads = found[f"{at}.proj"].index.unflatten(0, (2, 8))
        assert torch.equal(heads, heads[:, :1] // 8 * 8 + torch.arange(8))
        assert torch.equal(found[f"{at}.qkv"].index, found[f"{at}.proj"].index + 48)
        at = f"blocks.{number}.mlp.mlp"
        assert torch.equal(found[f"{at}.fc1"].index, found[f"{at}.fc2"].index)
        assert (found[f"{at}.fc1"].axis, found[f"{at}.fc2"].axis) == (0, 1)
        assert len(found[f"{at}.fc2"].index) == 5


def test_merging_changes_the_chosen_columns_alone():
    backbone = vit()
    plain = copy.deepcopy(backbone)
    attach(backbone, Columns(count=3))
    disturb(backbone)
    found = parts(backbone)
    merge(backbone)
    for path, part in found.items():
        before, after = plain.get_submodule(path).weight, backbone.get_submodule(path).weight
        assert torch.equal((after != before).any(0).nonzero().flatten(), part.index)
        assert torch.equal(after[:, part.index], before[:, part.index] + part.change)


# d = 768: a column of each Linear is 2304 + 768 + 3072 + 768 = 6912 numbers; the last is S2FT with one head of 64
# columns in proj and as many channels in fc2, alone and with V's rows and fc1's.
@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        (Columns(count=8), 663_552),
        (Columns(count=64, choose="norm"), 5_308_416),
        (Columns(count=64, heads=1, targets=("attn.proj", "fc2")), 1_179_648),
        (Columns(count=64, heads=1, coupled=True, targets=("attn.proj", "fc2")), 2_359_296),
    ],
)
def test_counts_on_vit_base(adapter, expected):
    with torch.device("meta"):
        backbone = ViT("vit_base_patch16_224", inputs=Inputs(("red", "green", "blue"), [0.5] * 3, [0.2] * 3))
    attach(backbone, adapter)
    assert trainable(backbone) == expected


def test_bfloat16_autocast_gradients_are_near():
    grads = []
    for enabled in (False, True):
        backbone = vit().float()
        attach(backbone, S2FT)
        disturb(backbone)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = backbone(Pixels(values=images().values.float()))[0].data.float().square().mean()
        out.backward()
        grads.append(torch.cat([part.change.grad.flatten() for part in parts(backbone).values()]))
    assert grads[1].dtype == torch.float32
    assert (grads[1] - grads[0]).norm() < 0.03 * grads[0].norm()


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.parametrize("adapter", [Columns(count=3), S2FT], ids=["columns", "s2ft"])
def test_compiled_gradients_are_the_same(adapter):
    backbone = vit()
    attach(backbone, adapter)
    disturb(backbone)
    torch.compiler.reset()
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    grads = []
    for network in (backbone, compiled):
        backbone.zero_grad()
        loss(network).backward()
        grads.append([part.change.grad.clone() for part in parts(backbone).values()])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Columns(count=0), "count must be positive"),
        (lambda: Columns(heads=-1), "heads not negative"),
        (lambda: attach(vit(), Columns(count=25)), r"blocks\.0.*count must not exceed what there are, 25 > 24"),
        (lambda: attach(vit(), Columns(heads=4)), "heads must not exceed what there are, 4 > 3"),
        (lambda: attach(vit(), Columns(coupled=True)), r"with coupled, its rows belong to the columns of .*proj"),
        (
            lambda: attach(vit("vit_giant_patch14_dinov2"), Columns(count=2, coupled=True, targets=("fc2",))),
            "does not read its rows one to one",
        ),
    ],
)
def test_bad_settings_are_told(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def test_another_way_to_choose_is_told():
    adapter = Columns()
    object.__setattr__(adapter, "choose", "loudest")  # past the check of types that the tests run under
    with pytest.raises(ValueError, match="choose must be random or norm, not 'loudest'"):
        adapter.__post_init__()

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from geomed.backbones.inputs import Inputs
from geomed.backbones.tsvit import TSViT, TSViTSize
from geomed.backbones.weights import from_released_tsvit, load_all, released_key
from geomed.bands import PASTIS_BANDS
from geomed.heads.class_tokens import ClassTokens, ClassTokensPooled
from geomed.pixels import Pixels

# Arrays computed with the reference code (github.com/michaeltrs/DeepSatModels, commit 782f736) from weights given by
# a rule; see golden/README.md.
GOLDEN = np.load(Path(__file__).parent / "golden" / "tsvit.npz")
SMALL = TSViTSize(dim=32, heads=4, head_dim=8, temporal_depth=2, spatial_depth=2)


def plain_inputs(bands: int) -> Inputs:
    return Inputs([f"b{number}" for number in range(bands)], [0.0] * bands, [1.0] * bands)


def released_names(module: nn.Module) -> dict[str, str]:
    """Our key → the released key, by running the project's own mapping backwards."""
    depths = range(4)
    names = ["temporal_token", "space_token", "space_pos_embedding"]
    for part in ("weight", "bias"):
        names += [f"to_patch_embedding.1.{part}", f"to_temporal_embedding_input.{part}"]
        names += [f"mlp_head.{number}.{part}" for number in (0, 1)]
        for stage in ("temporal", "space"):
            names += [f"{stage}_transformer.norm.{part}"]
            for layer in depths:
                root = f"{stage}_transformer.layers.{layer}"
                names += [
                    f"{root}.{end}.{part}" for end in ("0.norm", "0.fn.to_out.0", "1.norm", "1.fn.net.0", "1.fn.net.3")
                ]
                names += [f"{root}.0.fn.to_qkv.weight"]
    own = set(module.state_dict())
    pairs = {released_key(name): name for name in names}
    return {ours: theirs for ours, theirs in pairs.items() if ours in own}


def fill(module: nn.Module, *, rows: int = 366) -> None:
    """The rule of the golden arrays: w[i] = 0.05 sin(0.37 i + 1.3 j), +1 for weights of norms, j the key's place."""
    pairs = released_names(module)
    own = module.state_dict()
    state: dict[str, Tensor] = {}
    for j, theirs in enumerate(sorted(pairs.values())):
        ours = next(key for key, value in pairs.items() if value == theirs)
        shape = (own[ours].shape[0], rows) if theirs == "to_temporal_embedding_input.weight" else own[ours].shape
        size = int(np.prod(shape))
        value = 0.05 * np.sin(0.37 * np.arange(size) + 1.3 * j)
        if theirs.endswith("weight") and ("norm" in theirs or theirs.startswith("mlp_head.0")):
            value = value + 1
        state[theirs] = torch.from_numpy(value.reshape(shape)).float().double()  # the reference was filled in float32
    buffers = {name: value for name, value in own.items() if name not in pairs}
    load_all(module, {**from_released_tsvit(state), **buffers}, where="golden")


def whole(backbone: TSViT, head: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict({"backbone": backbone, "head": head}).double()


def golden_pixels() -> Pixels:
    values = torch.from_numpy(GOLDEN["x"][..., :10]).permute(0, 1, 4, 2, 3)
    # 2001 began on day 11323 since 1970-01-01, and its day 1 is 1 January
    return Pixels(values=values.contiguous(), days=torch.from_numpy(GOLDEN["doy"]).long() + 11322)


def small(**options) -> TSViT:
    return TSViT(inputs=plain_inputs(10), num_classes=5, size=SMALL, image_size=12, **options)


def dense(*, order: str = "reference") -> nn.ModuleDict:
    backbone = small()
    model = whole(backbone, ClassTokens(backbone.spec, order=order))
    fill(model)
    return model


def run(model: nn.ModuleDict, pixels: Pixels) -> Tensor:
    return model["head"](model["backbone"](pixels), pixels.size)


def test_equals_the_reference_in_double_precision():
    model = dense()
    assert sum(p.numel() for p in model.parameters()) == 65_124
    np.testing.assert_allclose(run(model, golden_pixels()).detach().numpy(), GOLDEN["y"], rtol=0, atol=1e-10)


def test_equals_the_reference_in_single_precision():
    model = dense().float()
    pixels = golden_pixels()
    pixels = Pixels(values=pixels.values.float(), days=pixels.days)
    np.testing.assert_allclose(run(model, pixels).detach().numpy(), GOLDEN["y32"], rtol=0, atol=2e-6)


def test_classification_equals_the_reference():
    backbone = small(space_token=True)
    model = whole(backbone, ClassTokensPooled(backbone.spec))
    fill(model, rows=365)
    np.testing.assert_allclose(run(model, golden_pixels()).detach().numpy(), GOLDEN["yc"], rtol=0, atol=1e-10)


def test_pastis_configuration_equals_the_reference():
    backbone = TSViT(inputs=Inputs(PASTIS_BANDS, [0.0] * 10, [1.0] * 10), num_classes=19)
    model = whole(backbone, ClassTokens(backbone.spec, order="reference"))
    assert sum(p.numel() for p in model.parameters()) == 1_657_476
    fill(model)
    values = torch.sin(0.011 * torch.arange(60 * 24 * 24 * 10, dtype=torch.float64)).reshape(1, 60, 24, 24, 10)
    days = 11322 + torch.tensor([int(3 + 340 * date / 59) for date in range(60)])[None]
    out = run(model, Pixels(values=values.permute(0, 1, 4, 2, 3), days=days)).detach()
    assert out.sum().item() == pytest.approx(-306.0565279823095, abs=1e-7)
    first = [-0.23282194, 0.21761304, -0.15780779, 0.05170502, -0.25834028]
    np.testing.assert_allclose(out.flatten()[:5].numpy(), first, rtol=0, atol=1e-8)


def series(dates: int = 6, height: int = 12, width: int = 12, *, seed: int = 0) -> Pixels:
    made = torch.Generator().manual_seed(seed)
    values = torch.rand(2, dates, 10, height, width, generator=made, dtype=torch.float64)
    days = 17_000 + torch.randperm(700, generator=made)[: 2 * dates].reshape(2, dates)
    return Pixels(values=values, days=days.sort(1).values)


def masked(pixels: Pixels, valid: Tensor) -> Pixels:
    return Pixels(values=pixels.values, days=pixels.days, valid=valid)


def test_correct_order_is_the_reference_put_right():
    # y.permute(0,2,3,1).reshape(B,n,n,p,p,K).permute(0,5,1,3,2,4): the reference's raster order taken back
    reference = run(dense(), golden_pixels())
    put_right = reference.permute(0, 2, 3, 1).reshape(2, 6, 6, 2, 2, 5).permute(0, 5, 1, 3, 2, 4).reshape(2, 5, 12, 12)
    torch.testing.assert_close(run(dense(order="correct"), golden_pixels()), put_right, rtol=0, atol=0)


def test_a_pixel_speaks_for_its_own_patch():
    model = dense(order="correct")
    for block in model["backbone"].spatial.blocks:  # no exchange between places
        nn.init.zeros_(block.attention.attn.proj.weight)
    pixels = golden_pixels()
    values = pixels.values.clone().requires_grad_()
    run(model, Pixels(values=values, days=pixels.days))[0, :, 5, 8].sum().backward()
    touched = values.grad[0].abs().sum((0, 1)).nonzero()
    assert {tuple(place.tolist()) for place in touched} == {(4, 8), (4, 9), (5, 8), (5, 9)}


def test_dates_may_come_in_any_order():
    model, pixels = dense(), series()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = Pixels(values=pixels.values[:, order], days=pixels.days[:, order])
    torch.testing.assert_close(run(model, shuffled), run(model, pixels), rtol=0, atol=1e-12)


@pytest.mark.parametrize("compiling", [False, True])
def test_masked_dates_change_nothing(compiling, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    model, pixels = dense(), series()
    noise = torch.full((2, 3, 10, 12, 12), float("nan"), dtype=torch.float64)
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[:, [1, 4, 8]] = False
    values, days = torch.zeros(2, 9, 10, 12, 12, dtype=torch.float64), torch.zeros(2, 9, dtype=torch.long)
    keep = valid[0].nonzero().squeeze()
    values[:, keep], days[:, keep] = pixels.values, pixels.days
    values[:, ~valid[0]] = noise
    longer = Pixels(values=values, days=days, valid=valid)
    torch.testing.assert_close(run(model, longer), run(model, pixels), rtol=0, atol=1e-12)


def test_samples_of_different_lengths_equal_each_alone():
    model, pixels = dense(), series()
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[0, [0, 3]] = False
    together = run(model, masked(pixels, valid))
    short = [1, 2, 4, 5]
    alone = run(model, Pixels(values=pixels.values[:1, short], days=pixels.days[:1, short]))
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-12)
    second = run(model, Pixels(values=pixels.values[1:], days=pixels.days[1:]))
    torch.testing.assert_close(together[1:], second, rtol=0, atol=1e-12)


def test_a_cloud_over_one_patch_hides_that_date_there_alone():
    model, pixels = dense(order="correct"), series()
    for block in model["backbone"].spatial.blocks:
        nn.init.zeros_(block.attention.attn.proj.weight)
    valid = torch.ones(2, 6, 12, 12, dtype=torch.bool)
    valid[0, 2, 4, 8] = False  # one pixel of patch (2, 4)
    out = run(model, masked(pixels, valid))
    plain = run(model, pixels)
    without = [0, 1, 3, 4, 5]
    hidden = run(model, Pixels(values=pixels.values[:, without], days=pixels.days[:, without]))
    torch.testing.assert_close(out[0, :, 4:6, 8:10], hidden[0, :, 4:6, 8:10], rtol=0, atol=1e-12)
    out[0, :, 4:6, 8:10] = plain[0, :, 4:6, 8:10]
    torch.testing.assert_close(out, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("level", ["dates", "pixels"])
def test_nothing_observed_is_finite(level):
    model, pixels = dense(), series()
    valid = torch.zeros((2, 6) if level == "dates" else (2, 6, 12, 12), dtype=torch.bool)
    valid[1] = True
    out = run(model, masked(pixels, valid))
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out[1:], run(model, pixels)[1:], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(12, 12), (13, 7), (1, 1), (30, 18)])
@pytest.mark.parametrize("dates", [1, 4])
def test_any_size_and_any_number_of_dates(height, width, dates):
    out = run(dense(order="correct"), series(dates, height, width))
    assert out.shape == (2, 5, height, width)
    assert torch.isfinite(out).all()


def test_positions_of_other_sizes():
    backbone = dense(order="correct")["backbone"]
    learned = backbone.position().reshape(6, 6, 32)
    assert torch.equal(backbone._positions((6, 6)), backbone.position())
    assert torch.equal(backbone._positions((4, 5)).reshape(4, 5, 32), learned[:4, :5])  # a part, not a squeezed whole
    assert backbone._positions((9, 4)).shape == (1, 36, 32)
    assert torch.equal(
        backbone._positions((9, 4)).reshape(9, 4, 32), backbone._positions((9, 6)).reshape(9, 6, 32)[:, :4]
    )


def test_the_same_day_of_another_year_looks_the_same_unless_years_are_told():
    pixels = series()
    later = Pixels(
        values=pixels.values, days=torch.cat((pixels.days[:, :3], pixels.days[:, 3:] + 146_097), 1)
    )  # 400 years
    assert torch.equal(run(dense(), later), run(dense(), pixels))
    torch.manual_seed(0)
    backbone = small(years=True).double()
    assert torch.equal(backbone(later)[0].data, backbone(pixels)[0].data)  # it starts from zero
    nn.init.normal_(backbone.dates.years.project.weight)
    assert not torch.allclose(backbone(later)[0].data, backbone(pixels)[0].data)


def test_leap_days_have_a_row():
    model = dense()
    last = Pixels(values=series(1).values, days=torch.tensor([[18_627], [18_627]]))  # 2020-12-31, day 366
    before = Pixels(values=last.values, days=last.days - 1)
    assert torch.equal(run(model, last), run(model, before))


def test_padding_as_the_released_checkpoints_saw_it():
    backbone = small(attend_padding=True)
    model = whole(backbone, ClassTokens(backbone.spec, order="reference"))
    fill(model)
    pixels = series()
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[:, 4:] = False
    plain = dense()
    monitored = run(model, masked(pixels, valid))
    values = pixels.values.clone()
    values[:, 4:] = 0  # PASTIS's means, after normalisation
    table = plain["backbone"].dates.day
    with torch.no_grad():
        row = 11_322 + 365 - 365  # 2000-12-31 is day 366, which shares row 365: put row 0 there
        table.weight[:, 365] = table.weight[:, 0]
    days = pixels.days.clone()
    days[:, 4:] = row
    padded = run(plain, Pixels(values=values, days=days))
    torch.testing.assert_close(monitored, padded, rtol=0, atol=1e-12)


def test_intermediate_depths():
    backbone = small().double()
    first, last = backbone(series(), depths=(0, -1))
    assert first.grid == last.grid == (6, 6)
    assert torch.equal(last.data, backbone(series())[0].data)
    assert not torch.equal(first.data, last.data)
    with pytest.raises(ValueError, match="depths must lie in -2 to 1"):
        backbone(series(), depths=(2,))


def test_bfloat16_keeps_dates_exact():
    backbone = small().float()
    pixels = series()
    pixels = Pixels(values=pixels.values.float(), days=pixels.days)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = backbone(pixels)[0].data
    assert (mixed.float() - backbone(pixels)[0].data).abs().mean() < 0.05
    low = backbone.bfloat16()
    assert torch.isfinite(low(Pixels(values=pixels.values.bfloat16(), days=pixels.days))[0].data).all()


def test_gradients_equal_those_with_everything_kept(monkeypatch):
    model, pixels = dense(), series()
    run(model, pixels).square().sum().backward()
    lean = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    monkeypatch.setattr("geomed.backbones.block.recomputing", lambda *_: nullcontext())
    run(model, pixels).square().sum().backward()
    for parameter, gradient in zip(model.parameters(), lean, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-14)


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.parametrize("level", [None, "dates", "pixels"])
def test_compiles_without_a_graph_break(level):
    model, pixels = dense(order="correct"), series()
    if level is not None:
        valid = torch.ones((2, 6) if level == "dates" else (2, 6, 12, 12), dtype=torch.bool)
        valid[0, 2] = False
        pixels = masked(pixels, valid)
    torch.compiler.reset()
    compiled = torch.compile(lambda p: run(model, p), fullgraph=True)
    torch.testing.assert_close(compiled(pixels), run(model, pixels), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: TSViT(inputs=plain_inputs(10), num_classes=0), "must be positive"),
        (lambda: TSViT(inputs=plain_inputs(10), num_classes=2, image_size=9), "patch must divide the image"),
        (lambda: small().double()(Pixels(values=torch.rand(1, 10, 12, 12))), "TSViT reads series"),
        (
            lambda: small().double()(Pixels(values=torch.rand(1, 2, 4, 12, 12), days=torch.zeros(1, 2).long())),
            "reads 10 bands",
        ),
        (lambda: Inputs(["B01", "B02"]), "no usual statistics are known of B01"),
        (lambda: Inputs(["B02", "B2"]), "each once"),
        (lambda: Inputs(["B02", "nope"]), "no Sentinel-2 band is called 'nope'"),
        (lambda: load_all(small(), {}, where="x.pth"), "x.pth: these are weights of another model"),
        (
            lambda: from_released_tsvit({"conv1.weight": torch.zeros(1)}),
            "conv1.weight is no tensor of a released TSViT",
        ),
    ],
)
def test_bad_input_is_told(make, told):
    with pytest.raises(ValueError, match=told):
        make()

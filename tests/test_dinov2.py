"""DINOv2's objective, held against loops in float64 and, where that is right, against lightly's."""

from __future__ import annotations

import copy
import functools
import math
import random
from typing import TYPE_CHECKING

import pytest
import torch
from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
from lightly.models.modules.center import Center
from lightly.models.modules.heads import DINOProjectionHead
from lightly.models.utils import random_block_mask
from torch import Tensor, distributed, multiprocessing, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from geomed.adapters import attach
from geomed.adapters.explora import ExPLoRA
from geomed.backbones.inputs import Inputs
from geomed.backbones.vit import Hidden, ViT, ViTSize
from geomed.pixels import Pixels
from geomed.tasks import self_distillation
from geomed.tasks.block_masks import BlockMasks
from geomed.tasks.centring import Centring, RunningMean, Sinkhorn
from geomed.tasks.dinov2 import Averaging, DINOv2, LossWeights, Temperatures, _entropy, _koleo
from geomed.tasks.objective import Views
from geomed.tasks.projection_head import ProjectionHead, Prototypes
from geomed.tasks.self_distillation import cross_entropy, image_loss, patch_loss, patch_weights

if TYPE_CHECKING:
    from pathlib import Path

PROTOTYPES = Prototypes(count=24, hidden=16, bottleneck=8)
FEW = (24, 16, 8)


def network(name: str = "vit_tiny_patch16_224", **options) -> ViT:
    torch.manual_seed(0)
    inputs = Inputs(("red", "green", "blue"), [0.5] * 3, [0.2] * 3)
    return ViT(name, inputs=inputs, image_size=32, size=ViTSize(dim=32, depth=2, heads=2, patch=4), **options)


def objective(backbone: ViT, **options) -> DINOv2:
    torch.manual_seed(1)
    made = DINOv2(**{"prototypes": PROTOTYPES} | options)
    made.bind(backbone)
    return made


def crops(count: int, images: int, side: int, *, seed: int, valid: bool = False) -> tuple[Pixels, ...]:
    drawn = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        values = torch.rand(images, 3, side, side, generator=drawn)
        seen = torch.ones(images, side, side, dtype=torch.bool)
        seen[:, : side // 2 + 1] = False
        made.append(Pixels(values=values, valid=seen if valid else None))
    return tuple(made)


def views(images: int = 4, *, wide: int = 2, small: int = 3, valid: bool = False) -> Views:
    return Views(wide=crops(wide, images, 32, seed=2, valid=valid), small=crops(small, images, 16, seed=3, valid=valid))


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def looped(logits: Tensor, targets: Tensor, temperature: float) -> float:
    """One row's cross-entropy, number by number."""
    scaled = [float(x) / temperature for x in logits.detach()]
    level = max(scaled) + math.log(sum(math.exp(x - max(scaled)) for x in scaled))
    return -sum(float(target) * (x - level) for target, x in zip(targets, scaled, strict=True))


def close(one: Tensor | float, other: Tensor | float, tolerance: float = 1e-5) -> None:
    one, other = (float(torch.as_tensor(number, dtype=torch.float64).detach()) for number in (one, other))
    assert one == pytest.approx(other, rel=tolerance, abs=tolerance)


def test_head_counts_as_published():
    """Without the lengths of the prototypes, which DINO's code freezes at 1 and DINOv2's (65536 more) trains."""
    with torch.device("meta"):
        head = ProjectionHead(1024, Prototypes())
    assert sum(parameter.numel() for parameter in head.parameters()) == 23_597_312


def test_head_equals_that_of_lightly():
    """Theirs is built on the deprecated weight_norm, which cannot be copied, not even when new; ours can."""
    count, hidden, bottleneck = FEW
    with pytest.warns(FutureWarning, match="weight_norm"):
        theirs = DINOProjectionHead(32, hidden, bottleneck, count)
    ours = ProjectionHead(32, PROTOTYPES)
    assert {p.shape for p in theirs.parameters()} - {p.shape for p in ours.parameters()} == {(count, 1)}
    for layer, (weight, bias) in enumerate(((0, 1), (2, 3), (4, 5))):
        values = list(theirs.layers.parameters())
        ours.mlp[2 * layer].weight.data.copy_(values[weight])
        ours.mlp[2 * layer].bias.data.copy_(values[bias].data.normal_())
    ours.last.weight.data.copy_(theirs.last_layer.weight_v)
    x = torch.randn(7, 32)
    torch.testing.assert_close(ours(x), theirs(x))
    assert ours(x).abs().max() <= 1 + 1e-6
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    torch.testing.assert_close(ours.last.weight.grad, theirs.last_layer.weight_v.grad)
    torch.testing.assert_close(ours.mlp[0].weight.grad, theirs.layers[0].weight.grad)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(theirs)
    torch.testing.assert_close(copy.deepcopy(ours)(x), ours(x))
    doubled = {name: 2 * value for name, value in ours.named_parameters()}
    assert not torch.allclose(functional_call(ours, doubled, (x,)), ours(x))


@pytest.mark.parametrize("numbers", [2**24, 50])
def test_cross_entropy_and_its_gradient(numbers, monkeypatch):
    """All at once and a few rows at a time; targets need not sum to 1."""
    monkeypatch.setattr(self_distillation, "_parts", functools.partial(self_distillation._parts, numbers=numbers))
    logits = torch.randn(7, 24, dtype=torch.float64, requires_grad=True)
    targets = 2 * torch.rand(7, 24, dtype=torch.float64)
    found = cross_entropy(logits, targets, 0.1)
    for row in range(7):
        close(found[row], looped(logits[row], targets[row], 0.1), 1e-12)
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, targets, 0.1), (logits,))
    assert cross_entropy(logits[:0], targets[:0], 0.1).shape == (0,)


def test_cross_entropy_of_half_precision_is_computed_in_float32():
    logits = torch.randn(5, 24).bfloat16().requires_grad_()
    targets = torch.rand(5, 24)
    found = cross_entropy(logits, targets, 0.1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, cross_entropy(logits.detach().float(), targets, 0.1))
    found.sum().backward()
    assert logits.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(("wide", "small"), [(2, 0), (2, 3), (3, 2)])
def test_image_loss_equals_loops_and_that_of_lightly(wide, small):
    """Theirs takes the softmax of the teacher itself, so that Sinkhorn cannot go in."""
    torch.manual_seed(0)
    student = [torch.randn(4, 24, dtype=torch.float64, requires_grad=True) for _ in range(wide + small)]
    teacher = torch.randn(wide, 4, 24, dtype=torch.float64)
    targets = (teacher / 0.05).softmax(-1)
    ours = image_loss(student[:wide], student[wide:], targets, 0.1)
    terms = [
        looped(student[mine][image], targets[yours][image], 0.1)
        for yours in range(wide)
        for mine in range(wide + small)
        if mine != yours
        for image in range(4)
    ]
    close(ours, sum(terms) / len(terms), 1e-12)
    theirs = DINOLoss(24).double()(list(teacher), student, teacher_temp=0.05)
    close(ours, theirs, 1e-8)  # theirs holds the temperature in float32
    for mine, yours in zip(torch.autograd.grad(ours, student), torch.autograd.grad(theirs, student), strict=True):
        torch.testing.assert_close(mine, yours)


def test_patch_loss_equals_loops_and_that_of_lightly():
    """Theirs takes the softmax itself as well. Crops without a hidden patch count as zero."""
    mask = torch.zeros(3, 2, 4, dtype=torch.bool)
    mask[0, 0, :3] = mask[2, 1, 3] = True
    hidden = mask.flatten().nonzero()[:, 0]
    logits = torch.randn(4, 24, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 24, dtype=torch.float64)
    targets = (teacher / 0.05).softmax(-1)
    ours = patch_loss(logits, targets, patch_weights(mask, hidden), 0.1)
    rows = [looped(logits[row], targets[row], 0.1) for row in range(4)]
    close(ours, (sum(rows[:3]) / 3 + 0 + rows[3]) / 3)
    theirs = IBOTPatchLoss(24).double()(teacher, logits, mask, teacher_temp=0.05)
    close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits))


def test_koleo_is_that_of_lightly_in_float32():
    """Under autocast theirs looks for neighbours in bfloat16, and among images that are alike it finds others."""
    torch.manual_seed(0)
    vectors = (torch.randn(64) + 0.05 * torch.randn(2, 48, 64)).requires_grad_()
    expected = 0.0
    for crop in vectors.detach().double():
        unit = [vector / vector.norm() for vector in crop]
        nearest = [min(float((a - b).norm()) for j, b in enumerate(unit) if j != i) for i, a in enumerate(unit)]
        expected -= sum(math.log(distance) for distance in nearest) / len(nearest)
    close(_koleo(vectors), expected)
    with torch.autocast("cpu", torch.bfloat16):
        close(_koleo(vectors), expected)
        wrong = sum(float(KoLeoLoss()(crop)) for crop in vectors.detach())
    assert abs(wrong - expected) > 1e-3


def bound(centring: Centring, prototypes: int = 24) -> Centring:
    centring.bind(prototypes)
    return centring


def test_running_mean_equals_that_of_lightly():
    ours, theirs = bound(RunningMean(0.8)), IBOTPatchLoss(24, center_momentum=0.8)
    mask = torch.ones(1, 2, 3, dtype=torch.bool)
    for seed in range(4):
        logits = torch.randn(6, 24, generator=drawn(seed))
        before = ours.centre.value.clone()
        torch.testing.assert_close(ours(logits, 0.05), ((logits - before) / 0.05).softmax(-1))
        theirs(logits, logits, mask)
        torch.testing.assert_close(ours.centre.value, theirs.center.value)
    assert ours.centre.value.abs().min() > 0


def test_running_mean_outlives_a_batch_without_tokens():
    """In lightly's loss the mean becomes NaN, and stays so."""
    ours, theirs = bound(RunningMean()), IBOTPatchLoss(24)
    ours(torch.randn(6, 24), 0.05)
    before = ours.centre.value.clone()
    assert ours(torch.zeros(0, 24), 0.05).shape == (0, 24)
    torch.testing.assert_close(ours.centre.value, before)
    theirs(torch.zeros(0, 24), torch.zeros(0, 24), torch.zeros(1, 2, 2, dtype=torch.bool))
    assert theirs.center.value.isnan().all()


def test_running_mean_moves_in_training_only():
    centring = bound(RunningMean()).eval()
    centring(torch.randn(6, 24), 0.05)
    assert not centring.centre.value.any()


@pytest.mark.parametrize(("rows", "columns"), [(16, 6), (5, 24)])
def test_sinkhorn_converges_to_equal_shares(rows, columns):
    logits = torch.randn(rows, columns, generator=drawn()).clamp(-1, 1)
    found = Sinkhorn(300)(logits, 0.2)
    torch.testing.assert_close(found.sum(1), torch.ones(rows))
    torch.testing.assert_close(found.sum(0), torch.full((columns,), rows / columns), rtol=1e-3, atol=0)


def test_sinkhorn_equals_the_published_algorithm():
    logits = torch.randn(12, 24, generator=drawn()).div(3).clamp(-1, 1)
    shares = (logits.double() / 0.05).exp()
    for _ in range(3):
        shares = shares / shares.sum(0, keepdim=True) / 24
        shares = shares / shares.sum(1, keepdim=True) / 12
    torch.testing.assert_close(Sinkhorn()(logits, 0.05), (12 * shares).float(), rtol=1e-4, atol=1e-7)


def test_sinkhorn_stands_any_logits():
    """The exponentials of these overflow, or vanish, and a row lies far below the others."""
    logits = 100 * torch.randn(8, 24, generator=drawn())
    logits[3] -= 1e4
    found = Sinkhorn()(logits, 0.04)
    torch.testing.assert_close(found.sum(1), torch.ones(8))
    assert Sinkhorn()(torch.zeros(0, 24), 0.04).shape == (0, 24)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(Sinkhorn()(logits, 0.04), found)


def test_what_all_images_share_is_centred_away():
    """Where all get the same prototype, Sinkhorn gives none; the running mean learns to."""
    alone = torch.zeros(6, 24)
    alone[:, 5] = 1
    torch.testing.assert_close(Sinkhorn()(alone, 0.02), torch.full((6, 24), 1 / 24))
    centring = bound(RunningMean())
    entropies = [float(_entropy(centring(alone, 0.02))) for _ in range(60)]
    close(entropies[0], 0)
    close(entropies[-1], 1, 0.01)
    close(_entropy(torch.eye(24)), 1)


@pytest.mark.parametrize("grid", [(2, 2), (2, 5), (1, 3), (3, 7), (4, 4), (8, 8), (16, 16)])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_masks_hide_something_and_never_all(grid, count):
    """lightly refuses grids on which less than four patches may be hidden, and of one image hides nothing."""
    patches = math.prod(grid)
    for seed in range(20):
        masks = BlockMasks()(count, grid, drawn(seed))
        hidden = masks.sum((1, 2))
        assert masks.shape == (count, *grid)
        assert int((hidden > 0).sum()) == max(1, count // 2)
        assert int(hidden.max()) <= max(1, patches // 2)


def test_masks_hide_as_much_as_those_of_lightly():
    random.seed(0)
    theirs = torch.cat([random_block_mask((32, 14, 14)) for _ in range(8)])
    ours = torch.cat([BlockMasks()(32, (14, 14), drawn(seed)) for seed in range(8)])
    close(ours.float().mean(), theirs.float().mean(), 0.06)
    edges = [(masks[:, 1:] ^ masks[:, :-1]).float().mean() for masks in (ours, theirs)]
    close(*edges, 0.01)  # as compact


def test_masks_come_from_the_generator_alone():
    """Those of lightly come from Python's global one, so that no run could go on as it was."""
    state = torch.get_rng_state(), random.getstate()
    first, again, other = (BlockMasks()(16, (8, 8), drawn(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]


def test_ratios_are_spread_over_the_crops():
    hidden = BlockMasks(share=1, ratio=(0.2, 0.6))(4, (16, 16), drawn()).sum((1, 2)).sort().values / 256
    assert all(low - 0.06 < share <= low + 0.1 for low, share in zip((0.2, 0.3, 0.4, 0.5), hidden, strict=True))


def test_schedules():
    """Linear and then constant, and half a cosine, as in the published configuration."""
    temperatures = Temperatures()
    assert [temperatures.teacher(done) for done in (0, 0.15, 0.3, 1)] == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert Temperatures(warmup=0).teacher(0) == pytest.approx(0.07)
    assert [Averaging().momentum(done) for done in (0, 0.5, 1)] == pytest.approx([0.992, 0.996, 1])


CASES = {
    "running mean": {},
    "sinkhorn": {"centring": Sinkhorn()},
    "separate heads": {"prototypes": Prototypes(count=24, hidden=16, bottleneck=8, separate=True)},
}


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch16_siglip_gap_224"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("valid", [False, True])
def test_loss_is_the_formula(name, case, valid):
    """Crop by crop, image by image, patch by patch; the second network has no class token."""
    backbone = network(name)
    task = objective(backbone, **CASES[case])
    task.mask_token.data.normal_()
    given = views(images=3, valid=valid)
    outcome = task(backbone, given, generator=drawn(7), done=0.15)

    mask = BlockMasks()(6, (8, 8), drawn(7))
    if valid:
        mask[:, :4] = False  # rows 0 to 16 of the crops are empty, of the patches 0 to 3 wholly
    assert mask.any()
    image_head, patch_head = task.heads.image, task.heads.patch or task.heads.image
    students, vectors, hidden, targets, seen = [], [], [], [], []
    with torch.no_grad():
        for number, crop in enumerate(given.wide):
            here = mask[3 * number : 3 * number + 3]
            (whole,), (partly,) = backbone(crop), backbone(crop, hidden=Hidden(mask=here, token=task.mask_token))
            vectors.append(vector_of(backbone, partly))
            students.append(image_head(vectors[-1]))
            targets.append(image_head(vector_of(backbone, whole)))
            hidden.append(patch_head(partly.patches()[here.flatten(1)]))
            seen.append(patch_head(whole.patches()[here.flatten(1)]))
        students += [image_head(vector_of(backbone, backbone(crop)[0])) for crop in given.small]
    centre = CASES[case].get("centring", bound(RunningMean()))
    taught = centre(torch.cat(targets), 0.055).unflatten(0, (2, 3))
    patches = bound(copy.deepcopy(centre))(torch.cat(seen), 0.055) if case == "sinkhorn" else None
    if patches is None:
        patches = (torch.cat(seen) / 0.055).softmax(-1)
    pairs = [(yours, mine) for yours in range(2) for mine in range(5) if mine != yours]
    dino = [looped(students[mine][image], taught[yours][image], 0.1) for yours, mine in pairs for image in range(3)]
    rows = [looped(logits, target, 0.1) for logits, target in zip(torch.cat(hidden), patches, strict=True)]
    owner = mask.flatten(1).nonzero()[:, 0].tolist()
    ibot = sum(row / owner.count(crop) for crop, row in zip(owner, rows, strict=True)) / 6
    koleo = float(sum(KoLeoLoss()(vector) for vector in vectors))
    close(outcome.figures["dino"], sum(dino) / len(dino), 1e-4)
    close(outcome.figures["ibot"], ibot, 1e-4)
    close(outcome.figures["koleo"], koleo, 1e-4)
    close(outcome.loss, sum(dino) / len(dino) + ibot + 0.1 * koleo, 1e-4)
    close(outcome.figures["teacher_temperature"], 0.055)
    assert outcome.features.shape == (6, 32)
    assert 0 < float(outcome.entropy) <= 1


def vector_of(backbone: ViT, tokens) -> Tensor:
    return tokens.data[:, 0] if backbone.spec.class_token else tokens.patches().mean(1)


def trained(backbone: ViT, task: DINOv2) -> dict[str, nn.Parameter]:
    named = [*backbone.named_parameters(prefix="backbone"), *task.named_parameters(prefix="objective")]
    return {name: parameter for name, parameter in named if parameter.requires_grad}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("empty", [False, True])
def test_all_that_trains_gets_a_gradient(case, empty):
    """DDP waits for each of them, where one crop of four is masked and where no patch can be."""
    backbone = network()
    attach(backbone, ExPLoRA(rank=2))
    masks = BlockMasks(share=0.1)
    task = objective(backbone, masks=masks, **CASES[case])
    given = views(images=2)
    if empty:
        (crop,) = masks(4, (8, 8), drawn()).any((1, 2)).nonzero()[:, 0].tolist()
        valid = torch.ones(4, 32, 32, dtype=torch.bool)
        valid[crop] = False
        wide = [Pixels(values=c.values, valid=v) for c, v in zip(given.wide, valid.chunk(2), strict=True)]
        given = Views(wide=tuple(wide), small=given.small)
    outcome = task(backbone, given, generator=drawn(), done=0.5)
    assert bool(outcome.figures["ibot"] == 0) is empty
    outcome.loss.backward()
    without = [name for name, parameter in trained(backbone, task).items() if parameter.grad is None]
    assert without == []
    assert bool(task.mask_token.grad.any()) is not empty
    groups = [parameter for group in task.groups() for parameter in group.parameters]
    assert {id(p) for p in groups} == {id(p) for p in task.parameters()}
    assert len(groups) == len(list(task.parameters()))


def test_prototypes_stand_still_at_first():
    heads, prototypes = objective(network(), head_rate=2.0).groups()
    assert (heads.rate, heads.frozen_until, prototypes.rate, prototypes.frozen_until) == (2, 0, 2, 0.03)
    assert [tuple(parameter.shape) for parameter in prototypes.parameters] == [(24, 8)]


@pytest.mark.parametrize("average", ["factors", "merged"])
def test_the_teacher_follows_and_is_the_result(average):
    backbone = network()
    attach(backbone, ExPLoRA(rank=2))
    task = objective(backbone, averaging=Averaging(average=average, first=0.9, last=0.9))
    pixels = views().wide[0]
    before = task.tokens(backbone, pixels).data
    torch.testing.assert_close(before, backbone(pixels)[0].data)
    kept = {name: tensor.clone() for name, tensor in task.result(backbone).items()}
    heads = {name: tensor.detach().clone() for name, tensor in task.heads.named_parameters()}
    with torch.no_grad():
        for parameter in trained(backbone, task).values():
            parameter.add_(torch.randn_like(parameter))
    torch.testing.assert_close(task.tokens(backbone, pixels).data, before)
    task.after_step(backbone, 0.5)
    own = dict(backbone.named_parameters())
    assert not any(tensor.requires_grad for tensor in task.result(backbone).values())
    same = [name for name in kept if average == "factors" or (own[name].requires_grad and not name.endswith(".up"))]
    for name in same:
        torch.testing.assert_close(task.result(backbone)[name], 0.9 * kept[name] + 0.1 * own[name].detach())
    assert not torch.allclose(task.tokens(backbone, pixels).data, before)
    for name, value in task.heads.named_parameters():
        follows = task.heads_teacher.tensors(task.heads)[name]
        torch.testing.assert_close(follows, 0.9 * heads[name] + 0.1 * value.detach())


def test_the_teacher_drops_nothing():
    backbone = network(drop_path=0.5).train()
    task, pixels = objective(backbone), views().wide[0]
    torch.testing.assert_close(task.tokens(backbone, pixels).data, task.tokens(backbone, pixels).data, rtol=0, atol=0)
    assert all(module.training for module in backbone.modules())
    assert not torch.equal(backbone(pixels)[0].data, backbone(pixels)[0].data)


def test_what_is_not_valid_does_not_count():
    backbone = network()
    given = views(valid=True)
    wide = [Pixels(values=torch.where(c.valid[:, None], c.values, 1e6), valid=c.valid) for c in given.wide]
    losses = [
        objective(backbone)(backbone, chosen, generator=drawn(), done=0).loss.item()
        for chosen in (given, Views(wide=tuple(wide), small=given.small))
    ]
    assert losses[0] == losses[1]


def test_the_generator_decides_alone():
    losses = []
    for seed in (0, 0, 1):
        backbone = network()
        task = objective(backbone)
        task.mask_token.data.fill_(1)
        torch.manual_seed(len(losses))
        losses.append(task(backbone, views(), generator=drawn(seed), done=0).loss.item())
    assert losses[0] == losses[1] != losses[2]


def test_bfloat16_stays_finite_and_near():
    found = {}
    for enabled in (False, True):
        backbone = network()
        task = objective(backbone, centring=Sinkhorn())
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outcome = task(backbone, views(), generator=drawn(), done=0)
        outcome.loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in trained(backbone, task).values())
        found[enabled] = outcome.loss.item()
    assert found[True] == pytest.approx(found[False], rel=0.02)


def textures(images: int) -> Views:
    """Stripes of another direction and width in each image; each crop has its own phase."""
    made = []
    for number, side in enumerate((32, 32, 16, 16)):
        y, x = torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="ij")
        angle = torch.arange(images)[:, None, None] * math.pi / images
        waves = torch.sin(2 * (x * angle.cos() + y * angle.sin()) / (1 + angle) + number)
        made.append(Pixels(values=(0.5 + 0.4 * waves)[:, None].expand(-1, 3, -1, -1)))
    return Views(wide=tuple(made[:2]), small=tuple(made[2:]))


def test_thirty_steps_lower_the_loss():
    backbone = network()
    task = objective(backbone, averaging=Averaging(first=0.9), centring=Sinkhorn())
    optimizer = torch.optim.AdamW(trained(backbone, task).values(), lr=3e-3)
    given, losses = textures(8), []
    for step in range(30):
        outcome = task(backbone, given, generator=drawn(step), done=step / 30)
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        task.after_step(backbone, step / 30)
        losses.append(outcome.loss.item())
    assert losses[-1] < 0.6 * losses[0]


BROKEN = {
    "two or more": Views(wide=crops(1, 4, 32, seed=0)),
    "batch of one": views(images=1),
    "two patches": Views(wide=crops(2, 4, 32, seed=0), small=crops(1, 4, 7, seed=0)),
    "one size": Views(wide=(*crops(1, 4, 32, seed=0), *crops(1, 4, 16, seed=0))),
    "same 4 images": Views(wide=crops(2, 4, 32, seed=0), small=crops(1, 3, 16, seed=0)),
    "no pixel": Views(
        wide=tuple(Pixels(values=crop.values, valid=torch.zeros(4, 32, 32, dtype=torch.bool)) for crop in views().wide)
    ),
}


@pytest.mark.parametrize("words", BROKEN)
def test_batches_of_which_nothing_is_learned_are_refused(words):
    backbone = network()
    with pytest.raises(ValueError, match=words):
        objective(backbone)(backbone, BROKEN[words], generator=drawn(), done=0)


def test_one_image_will_do_without_koleo():
    backbone = network()
    task = objective(backbone, weights=LossWeights(koleo=0))
    outcome = task(backbone, views(images=1), generator=drawn(), done=0)
    assert bool(outcome.loss.isfinite())
    assert "koleo" not in outcome.figures


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: Prototypes(count=1), "two prototypes"),
        (lambda: Averaging(first=0.9, last=0.8), "rises"),
        (lambda: Temperatures(first=0), "positive"),
        (lambda: LossWeights(dino=0, ibot=0), "dino or ibot"),
        (lambda: BlockMasks(ratio=(0.5, 0.1)), "lower one first"),
        (lambda: BlockMasks()(3, (1, 1), drawn()), "larger crops"),
        (lambda: RunningMean(1.0), "momentum"),
        (lambda: RunningMean()(torch.zeros(1, 4), 0.1), "bind"),
        (lambda: Sinkhorn(0), "iterations"),
        (lambda: DINOv2(head_rate=0), "head_rate"),
        (lambda: DINOv2().after_step(network(), 0), "bind"),
        (lambda: DINOv2().bind(nn.Linear(2, 2)), "take a ViT"),
    ],
)
def test_settings_that_mean_nothing_are_refused(made, words):
    with pytest.raises(ValueError, match=words):
        made()


class Loss(nn.Module):
    """A network with its objective, as DDP wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = network()
        attach(self.backbone, ExPLoRA(rank=2))
        self.task = objective(self.backbone, centring=Sinkhorn())

    def forward(self, given: Views, generator: torch.Generator) -> Tensor:
        return self.task(self.backbone, given, generator=generator, done=0.1).loss


def uneven() -> list[tuple[str, Centring, int]]:
    """Centrings, and how many of seven tokens the first process has."""
    made = {"mean": lambda: bound(RunningMean()), "sinkhorn": Sinkhorn}
    return [(f"{name} {first}", make(), first) for name, make in made.items() for first in (2, 7)]


def in_a_process(rank: int, folder: Path) -> None:
    """Two steps under DDP, and the centrings on batches of unequal size."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for name, centring, first in uneven():
        for step in range(2):
            logits = torch.randn(7, 24, generator=drawn(step)).clamp(-1, 1)
            found[name] = centring(logits.tensor_split([first])[rank], 0.1)
    theirs = Center(size=(1, 24))
    theirs.update(logits.tensor_split([2])[rank])
    found["theirs"] = theirs.value
    model = DistributedDataParallel(Loss(), find_unused_parameters=False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for step in range(2):
        optimizer.zero_grad()
        model(views(images=2), drawn(10 * step + rank)).backward()
        optimizer.step()
    found["weights"] = model.module.task.mask_token.detach()
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_agree_with_one_that_has_all(tmp_path):
    """Centre of lightly weighs processes alike, however few tokens one has."""
    multiprocessing.spawn(in_a_process, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    torch.testing.assert_close(first["weights"], second["weights"])
    assert first["weights"].any()
    for name, centring, _ in uneven():
        for step in range(2):
            logits = torch.randn(7, 24, generator=drawn(step)).clamp(-1, 1)
            expected = centring(logits, 0.1)
        torch.testing.assert_close(torch.cat((first[name], second[name])), expected)
    assert not torch.allclose(first["theirs"], 0.1 * logits.mean(0), atol=1e-3)

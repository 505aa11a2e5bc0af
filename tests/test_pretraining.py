"""Pre-training without labels: MAE, the teacher, runs that go on bit by bit, the files that are left."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING

import lightning
import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin
from safetensors.torch import save_file
from torch import nn

from geomed.adapters import AdaptFormer, Convpass, ExPLoRA, LoRA, adapter_state, attach, merge
from geomed.adapters.files import PRETRAINING, read_adapter, save_adapter
from geomed.adapters.lora import LowRankSlices
from geomed.backbones.inputs import Inputs
from geomed.backbones.tsvit import TSViT, TSViTSize
from geomed.backbones.vit import Hidden, ViT, ViTSize
from geomed.cli import main
from geomed.data.crops import Crops
from geomed.data.pretraining_data import PretrainingData
from geomed.data.unlabelled_rasters import UnlabelledRasters
from geomed.pixels import Pixels
from geomed.tasks.dinov2 import DINOv2
from geomed.tasks.mae import MAE, DecoderSize, TrainedDecoder, positions, random_order
from geomed.tasks.objective import Views
from geomed.tasks.pretrained_export import PretrainedExport, exchanged, save_backbone
from geomed.tasks.pretraining import Pretraining
from geomed.tasks.projection_head import Prototypes
from geomed.tasks.task import BaseWeights, adapt, load_base
from geomed.tasks.teacher import Teacher

if TYPE_CHECKING:
    from pathlib import Path

BANDS = ("B04", "B03", "B02")
SMALL = DecoderSize(dim=16, depth=1, heads=2)


def vit(name: str = "vit_tiny_patch16_224", **options) -> ViT:
    torch.manual_seed(0)
    size = ViTSize(dim=16, depth=3, heads=2, patch=4)
    return ViT(name, inputs=Inputs(BANDS), image_size=16, size=size, **options)


def images(count: int = 3, side: int = 16) -> Pixels:
    torch.manual_seed(1)
    return Pixels(values=torch.rand(count, 3, side, side), valid=torch.ones(count, side, side, dtype=torch.bool))


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# what a ViT reads of an image


def test_keeping_all_patches_is_the_whole_image():
    backbone, pixels = vit().eval(), images()
    everything = torch.arange(16).expand(3, -1)
    torch.testing.assert_close(backbone(pixels, kept=everything)[0].data, backbone(pixels)[0].data, rtol=0, atol=0)


def test_kept_patches_know_their_places():
    """Without attention between tokens a patch alone is what it is among others."""
    backbone, pixels = vit().eval(), images()
    backbone.blocks = backbone.blocks[:1]
    with torch.no_grad():
        backbone.blocks[0].attention.attn.proj.weight.zero_()
    kept = torch.tensor([[3, 7], [0, 15], [5, 6]])
    whole, part = backbone(pixels)[0], backbone(pixels, kept=kept)[0]
    assert part.grid == (2,)
    rows = torch.arange(3)[:, None]
    torch.testing.assert_close(part.patches(), whole.patches()[rows, kept], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_hidden_patches_are_a_token_with_its_place(name):
    backbone, pixels = vit(name).eval(), images()
    mask = torch.rand(3, 4, 4, generator=drawn()) < 0.5
    token = torch.randn(16, generator=drawn())
    found = backbone._embedded(pixels, Hidden(mask=mask, token=token)).patches()
    plain = backbone._embedded(pixels, None).patches()
    embedded = backbone.stem.patch_embed(backbone.inputs(pixels.values)).flatten(1, 2)
    expected = torch.where(mask.flatten(1)[..., None], token + plain - embedded, plain)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_hiding_leaves_the_names_of_weights_alone():
    assert {"stem.patch_embed.proj.weight", "stem.patch_embed.proj.bias"} <= set(vit().state_dict())


def test_a_mask_of_another_grid_is_refused():
    with pytest.raises(ValueError, match=r"must be \[B, 4, 4\]"):
        vit()(images(), hidden=Hidden(mask=torch.ones(3, 2, 2, dtype=torch.bool), token=torch.zeros(16)))


# masked autoencoding


def bound(backbone: ViT, **options) -> MAE:
    objective = MAE(decoder=SMALL, **options)
    objective.bind(backbone)
    return objective


def by_hand(objective: MAE, backbone: ViT, pixels: Pixels, seed: int) -> float:
    """The published loss, patch by patch, of images that are valid everywhere."""
    values = backbone.inputs(pixels.values)
    order = torch.rand(len(values), 16, generator=drawn(seed)).argsort(1)
    kept = order[:, :4].sort(1).values
    pictures = objective.decoder(backbone(pixels, kept=kept)[0], kept, (4, 4))
    errors = []
    for image in range(len(values)):
        for patch in set(range(16)) - set(kept[image].tolist()):
            row, column = divmod(patch, 4)
            target = values[image, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten()
            if objective.normalise:
                target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            errors.append((pictures[image, patch] - target).square().mean())
    return float(torch.stack(errors).mean().detach())


@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_is_the_published_one(normalise):
    backbone, pixels = vit().double().eval(), images()
    pixels = Pixels(values=pixels.values.double())
    objective = bound(backbone, normalise=normalise).double()
    outcome = objective(backbone, Views(wide=(pixels,)), generator=drawn(7), done=0.0)
    assert outcome.loss.item() == pytest.approx(by_hand(objective, backbone, pixels, 7), abs=1e-6)
    assert outcome.features.shape == (3, 16)
    assert not outcome.features.requires_grad


def test_pixels_that_are_not_valid_are_neither_read_nor_asked_for():
    backbone, pixels = vit().eval(), images()
    objective = bound(backbone)
    valid = pixels.valid.clone()
    valid[:, :, 6:11] = False  # a whole column of patches, and parts of two
    losses = []
    for filler in (0.0, 77.0):
        values = torch.where(valid[:, None], pixels.values, filler)
        views = Views(wide=(Pixels(values=values, valid=valid),))
        losses.append(objective(backbone, views, generator=drawn(), done=0.0).loss)
    assert torch.equal(losses[0], losses[1])
    assert losses[0].isfinite()


def test_images_of_nothing_give_no_gradient():
    backbone, pixels = vit().eval(), images()
    views = Views(wide=(Pixels(values=pixels.values, valid=torch.zeros_like(pixels.valid)),))
    outcome = bound(backbone)(backbone, views, generator=drawn(), done=0.0)
    assert outcome.loss.item() == 0.0


def test_patches_without_a_valid_pixel_come_last():
    useful = torch.rand(5, 30, generator=drawn()) < 0.5
    order = random_order(useful, drawn(3))
    for row, places in zip(useful, order, strict=True):
        assert sorted(places.tolist()) == list(range(30))
        assert row[places].tolist() == sorted(row.tolist(), reverse=True)


def test_positions_are_those_of_the_published_decoder():
    found = positions((3, 5), 16)
    for row in range(3):
        for column in range(5):
            expected = []
            for place in (column, row):
                angles = [place / 10_000 ** (number / 4) for number in range(4)]
                expected += [*map(float, np.sin(angles)), *map(float, np.cos(angles))]
            torch.testing.assert_close(found[5 * row + column], torch.tensor(expected), rtol=0, atol=1e-6)


def test_every_parameter_that_trains_gets_a_gradient():
    backbone = vit()
    attach(backbone, ExPLoRA(rank=2))
    objective = bound(backbone)
    with torch.no_grad():
        for module in backbone.modules():
            if isinstance(module, LowRankSlices):
                module.up.normal_()
    objective(backbone, Views(wide=(images(),)), generator=drawn(), done=0.0).loss.backward()
    for name, parameter in [*backbone.named_parameters(), *objective.named_parameters()]:
        assert parameter.requires_grad == (parameter.grad is not None), name


def test_a_decoder_goes_on_where_a_run_left_it(tmp_path: Path):
    first = bound(vit())
    save_file(first.kept(), tmp_path / "objective.safetensors")
    path = str(tmp_path / "objective.safetensors")
    second = bound(vit(), trained_decoder=TrainedDecoder(path=path, rank=2))
    backbone, views = vit().eval(), Views(wide=(images(),))
    losses = [one(backbone, views, generator=drawn(), done=0.0).loss for one in (first, second)]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-7)
    (group,) = second.groups()
    # q and v of 16 x 16, rank 2, in one block; the gains and shifts of its two norms and the last
    assert sum(parameter.numel() for parameter in group.parameters) == 2 * 2 * 16 * 2 + 3 * 2 * 16
    names = {name for name, parameter in second.named_parameters() if parameter.requires_grad}
    assert all("norm" in name or name.endswith(("up", "down")) for name in names)
    anew = bound(vit(), trained_decoder=TrainedDecoder(path=path, rank=0, prediction=True))
    assert anew.decoder.predict.weight.requires_grad
    wide = MAE(decoder=DecoderSize(dim=32, depth=1, heads=2), trained_decoder=TrainedDecoder(path=path))
    with pytest.raises(ValueError, match="another model"):
        wide.bind(vit())


def test_adapters_that_need_places_are_refused_by_mae():
    backbone = vit()
    attach(backbone, Convpass())
    with pytest.raises(ValueError, match="on their grid"):
        bound(backbone)


def test_several_crops_and_an_unbound_objective_are_refused():
    backbone = vit()
    with pytest.raises(ValueError, match="one crop of each image"):
        bound(backbone)(backbone, Views(wide=(images(), images())), generator=drawn(), done=0.0)
    with pytest.raises(ValueError, match="bind"):
        MAE()(backbone, Views(wide=(images(),)), generator=drawn(), done=0.0)
    with pytest.raises(ValueError, match="mask must lie"):
        MAE(mask=1.0)


def test_pictures_keep_what_was_seen_and_fill_the_rest():
    backbone, pixels = vit().eval(), images()
    for normalise in (True, False):
        seen, guessed = bound(backbone, normalise=normalise).pictures(backbone, pixels, drawn(5))
        hidden = seen.isnan()
        assert hidden[:, 0].float().mean() == 0.75
        torch.testing.assert_close(guessed[~hidden], pixels.values[~hidden], rtol=0, atol=1e-5)
        assert guessed.isfinite().all()
        blocks = hidden[:, 0].unflatten(1, (4, 4)).unflatten(3, (4, 4)).float().mean((2, 4))
        assert set(blocks.unique().tolist()) == {0.0, 1.0}


# the teacher


def student(**options) -> ViT:
    backbone = vit().eval()
    attach(backbone, ExPLoRA(rank=2, **options))
    wander(backbone)
    return backbone


def wander(module: nn.Module, seed: int = 0) -> None:
    generator = drawn(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_a_teacher_keeps_what_trains_and_shares_the_rest():
    backbone = student()
    teacher = Teacher(backbone)
    trained = sum(parameter.numel() for parameter in backbone.parameters() if parameter.requires_grad)
    assert teacher.bytes == 4 * trained
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    pixels = images()
    before = backbone(pixels)[0].data
    torch.testing.assert_close(teacher(backbone, pixels)[0].data, before, rtol=0, atol=0)
    wander(backbone, 1)
    torch.testing.assert_close(teacher(backbone, pixels)[0].data, before, rtol=0, atol=0)
    assert not teacher(backbone, pixels)[0].data.requires_grad
    assert (backbone(pixels)[0].data - before).abs().max() > 1e-3


def test_the_average_is_exponential():
    backbone = student()
    teacher = Teacher(backbone)
    expected = {name: p.detach().clone() for name, p in backbone.named_parameters() if p.requires_grad}
    for step in range(3):
        wander(backbone, step)
        teacher.update(backbone, 0.9)
        for name, parameter in backbone.named_parameters():
            if name in expected:
                expected[name] = 0.9 * expected[name] + 0.1 * parameter.detach()
    found = teacher.tensors(backbone)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


def test_merged_averages_are_of_the_weights():
    """They differ from the product of the averaged factors, and equal the average of folded networks."""
    backbone = student()
    merged, factors = Teacher(backbone, average="merged"), Teacher(backbone)

    def folded() -> dict[str, torch.Tensor]:
        plain = copy.deepcopy(backbone)
        merge(plain)
        return {name: value.clone() for name, value in plain.state_dict().items() if value.is_floating_point()}

    expected = folded()
    for step in range(4):
        wander(backbone, step)
        for teacher in (merged, factors):
            teacher.update(backbone, 0.8)
        expected = {name: 0.8 * expected[name] + 0.2 * value for name, value in folded().items()}
    reference = vit().eval()
    reference.load_state_dict(expected)
    pixels = images()
    answer = reference(pixels)[0].data
    torch.testing.assert_close(merged(backbone, pixels)[0].data, answer, rtol=0, atol=2e-5)
    assert (factors(backbone, pixels)[0].data - answer).abs().max() > 1e-3
    assert merged.bytes > factors.bytes


def test_low_precision_students_have_exact_teachers():
    backbone = student().to(torch.bfloat16)
    teacher = Teacher(backbone)
    name = next(name for name, p in backbone.named_parameters() if p.requires_grad)
    start = teacher.tensors(backbone)[name].clone()
    with torch.no_grad():
        backbone.get_parameter(name).add_(1.0)
    for _ in range(100):
        teacher.update(backbone, 0.9999)  # each step is far below the spacing of bfloat16
    moved = teacher.tensors(backbone)[name] - start
    gap = backbone.get_parameter(name).float() - start
    torch.testing.assert_close(moved, gap * (1 - 0.9999**100), rtol=1e-3, atol=1e-5)
    assert teacher(backbone, Pixels(values=images().values.bfloat16()))[0].data.dtype == torch.bfloat16


def test_a_student_of_other_shapes_is_refused():
    teacher = Teacher(student())
    other = vit()
    attach(other, ExPLoRA(rank=4))
    for call in (lambda: teacher.update(other, 0.9), lambda: teacher(other, images())):
        with pytest.raises(ValueError, match="teacher and student have other shapes"):
            call()
    with pytest.raises(ValueError, match="nothing trains"):
        Teacher(vit().requires_grad_(requires_grad=False))


# runs


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :64]
    for number in range(3):
        place = from_origin(5e5 + number * 1e4, 5e6, 10, 10)
        path = folder / f"tile{number}.tif"
        with rasterio.open(path, "w", "GTiff", 64, 64, 3, "EPSG:32631", place, "uint16") as file:
            for band, name in enumerate(BANDS):
                waves = np.sin(columns / (3 + band + number)) + np.cos(rows / (5 + number))
                file.write((2000 + 500 * waves + rng.normal(0, 50, (64, 64))).astype("uint16"), band + 1)
                file.set_band_description(band + 1, name)
    return folder


def source(tiles: Path) -> UnlabelledRasters:
    return UnlabelledRasters(paths=(str(tiles),), bands=BANDS, window=32, scale=1e-4, offset=0.0, per_epoch=12)


def objective_of(name: str) -> MAE | DINOv2:
    if name == "mae":
        return MAE(decoder=SMALL)
    return DINOv2(prototypes=Prototypes(count=16, hidden=16, bottleneck=8))


def crops_of(name: str) -> Crops:
    return Crops(size=16) if name == "mae" else Crops(size=16, count=2)


def fitted(tiles: Path, folder: Path, name: str, *, epochs: int = 4, stop: int | None = None, **options) -> Pretraining:
    """A run of four epochs; with ``stop`` it is interrupted after so many, and with ``goes_on`` taken up again."""
    goes_on = options.pop("goes_on", False)
    model = Pretraining(backbone=vit(drop_path=0.2), objective=objective_of(name), adapter=ExPLoRA(rank=2), **options)

    class Interrupt(lightning.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = stop is not None and trainer.current_epoch + 1 == stop

    trainer = lightning.Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=2,
        num_sanity_val_steps=0,
        callbacks=[
            lightning.pytorch.callbacks.ModelCheckpoint(folder, save_last=True),
            PretrainedExport(),
            Interrupt(),
        ],
    )
    data = PretrainingData(source(tiles), crops=crops_of(name), batch_size=3)
    trainer.fit(model, datamodule=data, ckpt_path=str(folder / "last.ckpt") if goes_on else None)
    return model


told = pytest.mark.filterwarnings("default")  # Lightning's advice is the user's to see, no fault of these tests


@told
@pytest.mark.parametrize("name", ["mae", "dinov2"])
def test_an_interrupted_run_goes_on_bit_by_bit(tiles: Path, tmp_path: Path, name: str):
    whole = fitted(tiles, tmp_path / "whole", name)
    fitted(tiles, tmp_path / "parts", name, stop=2)
    parts = fitted(tiles, tmp_path / "parts", name, goes_on=True)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[key]), key
    files = [read_adapter(tmp_path / run / "adapter.safetensors") for run in ("whole", "parts")]
    for key, value in files[0].tensors.items():
        assert torch.equal(value, files[1].tensors[key]), key
    start = Pretraining(backbone=vit(), objective=objective_of(name), adapter=ExPLoRA(rank=2))
    assert any(not torch.equal(value, whole.state_dict()[key]) for key, value in start.state_dict().items())


@told
def test_checkpoints_leave_out_what_is_frozen(tiles: Path, tmp_path: Path):
    model = fitted(tiles, tmp_path, "mae", epochs=1)
    held = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained <= set(held)
    assert "backbone.blocks.0.attention.attn.qkv.base.weight" not in held
    other = vit()
    with torch.no_grad():
        other.blocks[0].mlp.mlp.fc1.weight.add_(1)
    stranger = Pretraining(backbone=other, objective=objective_of("mae"), adapter=ExPLoRA(rank=2))
    with pytest.raises(ValueError, match="other base weights"):
        stranger.on_load_checkpoint(torch.load(tmp_path / "last.ckpt", weights_only=True))
    wider = Pretraining(backbone=vit(), objective=objective_of("mae"), adapter=ExPLoRA(rank=3))
    with pytest.raises(ValueError, match="another model"):
        wider.on_load_checkpoint(torch.load(tmp_path / "last.ckpt", weights_only=True))


@told
def test_a_teacher_follows_steps_of_the_optimizer_not_batches(tiles: Path, tmp_path: Path, monkeypatch):
    calls = []
    monkeypatch.setattr(DINOv2, "after_step", lambda _objective, _backbone, done: calls.append(done))
    fitted(tiles, tmp_path, "dinov2", epochs=2)  # 4 batches an epoch, 2 of them a step
    assert calls == pytest.approx([0.0, 0.25, 0.5, 0.75])


@told
def test_heads_learn_alone_at_first(tiles: Path, tmp_path: Path):
    model = fitted(tiles, tmp_path, "mae", epochs=1, head_warmup=0.99)
    start = Pretraining(backbone=vit(), objective=objective_of("mae"), adapter=ExPLoRA(rank=2))
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, start.get_parameter(name))}
    assert changed
    assert all(name.startswith("objective.") for name in changed)


@told
def test_the_file_goes_under_any_later_adapter(tiles: Path, tmp_path: Path):
    model = fitted(tiles, tmp_path, "mae", epochs=1)
    path = tmp_path / "adapter.safetensors"
    assert read_adapter(path).facts[PRETRAINING] == "MAE"
    base, head, pixels = vit().eval(), nn.Linear(16, 2), images()
    before = head.weight.clone()
    adapters = adapt(base, head, [str(path), LoRA(rank=2)])
    assert adapters == (LoRA(rank=2),)
    assert torch.equal(head.weight, before)
    torch.testing.assert_close(base.eval()(pixels)[0].data, model.backbone.eval()(pixels)[0].data, rtol=0, atol=1e-5)
    trained = {name for name, p in base.named_parameters() if p.requires_grad}
    assert trained == set(adapter_state(base))
    assert all(name.endswith(("up", "down")) for name in trained)
    alone = vit()
    assert adapt(alone, head, [str(path)]) == ()
    assert all(parameter.requires_grad for parameter in alone.parameters())
    save_backbone(tmp_path / "backbone.safetensors", model.backbone)
    loaded = vit().eval()
    load_base(loaded, head, BaseWeights(path=str(tmp_path / "backbone.safetensors"), head=False))
    torch.testing.assert_close(loaded(pixels)[0].data, base(pixels)[0].data, rtol=0, atol=1e-5)


@told
def test_of_a_teacher_it_is_the_teacher_that_is_written(tiles: Path, tmp_path: Path):
    model = fitted(tiles, tmp_path, "dinov2", epochs=2)
    plain, pixels = vit().eval(), images()
    adapt(plain, nn.Identity(), [str(tmp_path / "adapter.safetensors")])
    backbone = model.backbone.eval()
    expected = model.objective.tokens(backbone, pixels).data
    torch.testing.assert_close(plain.eval()(pixels)[0].data, expected, rtol=0, atol=1e-5)
    assert (backbone(pixels)[0].data - expected).abs().max() > 1e-4


def test_exchanged_values_come_back_after_an_error():
    layer = nn.Linear(2, 2)
    before = layer.weight.detach().clone()
    with pytest.raises(ZeroDivisionError), exchanged(layer, {"weight": torch.zeros(2, 2)}):
        1 / layer.weight.sum().round().int().item()
    assert torch.equal(layer.weight, before)


# refusals


def test_what_cannot_be_pretrained_is_refused():
    series = TSViT(
        inputs=Inputs(("B04", "B08")),
        num_classes=2,
        patch=2,
        image_size=4,
        size=TSViTSize(dim=8, heads=1, head_dim=8, temporal_depth=1, spatial_depth=1),
    )
    with pytest.raises(ValueError, match="of a ViT"):
        Pretraining(backbone=series, objective=MAE())
    with pytest.raises(ValueError, match="head_warmup"):
        Pretraining(backbone=vit(), objective=MAE(), head_warmup=1.0)
    assert not DINOv2().shardable


CONFIG = """\
model:
  backbone:
    class_path: ViT
    init_args:
      name: vit_tiny_patch16_224
      inputs: {{class_path: Inputs, init_args: {{bands: [B04, B03, B02]}}}}
      image_size: 16
      size: {{dim: 16, depth: 2, heads: 2, patch: 4}}
  objective: {{class_path: MAE, init_args: {{decoder: {{dim: 16, depth: 1, heads: 2}}}}}}
{model}
data:
  source:
    class_path: UnlabelledRasters
    init_args: {{paths: [{tiles}], bands: [{bands}], window: 32, scale: 1.0e-4, offset: 0.0, per_epoch: 8}}
  crops: {{size: 16}}
  batch_size: 4
trainer: {{max_epochs: 1, accelerator: cpu, enable_progress_bar: false}}
{more}
"""


def written(
    folder: Path, name: str, tiles: Path, *, model: str = "", more: str = "", bands: str = "B04, B03, B02"
) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(CONFIG.format(tiles=tiles, model=model, more=more, bands=bands))
    return str(path)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


EXTENDED = """\
  weights: runs/base/backbone.safetensors
  adapter: {class_path: ExPLoRA, init_args: {rank: 2}}
"""


@told
def test_the_command_from_base_to_adapter(here: Path, tiles: Path, capsys):
    base = written(here, "base", tiles)
    more = written(here, "more", tiles, model=EXTENDED, more=f"after: {base}\nmerged: true")
    assert main(["pretrain", "--config", more]) == 0
    assert "adapter: [runs/more/adapter.safetensors" in capsys.readouterr().out
    left = {path.name for path in (here / "runs/more").iterdir() if path.is_file()}
    files = {"adapter.safetensors", "backbone.safetensors", "objective.safetensors"}
    assert left == files | {"pretraining.json", "pretraining.png"}
    assert {path.name for path in (here / "runs/more/checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    made = (here / "runs/base/backbone.safetensors").stat().st_mtime_ns
    assert main(["pretrain", "--config", more]) == 0  # the same again; what comes before is not made anew
    assert (here / "runs/base/backbone.safetensors").stat().st_mtime_ns == made
    assert json.loads((here / "runs/more/pretraining.json").read_text())["model.adapter.init_args.rank"] == 2


@told
def test_a_folder_of_another_run_and_other_bands_are_refused(here: Path, tiles: Path, capsys):
    config = written(here, "base", tiles)
    assert main(["pretrain", "--config", config]) == 0
    left = (here / "runs/base/backbone.safetensors").read_bytes()
    assert main(["pretrain", "--config", config, "--model.optimisation.lr", "0.5"]) == 2
    message = capsys.readouterr().err
    assert "holds a run of another configuration" in message
    assert "model.optimisation.lr" in message
    assert main(["pretrain", "--config", config, "--data.workers", "1"]) == 0  # another count of processes is none
    assert (here / "runs/base/backbone.safetensors").read_bytes() == left
    capsys.readouterr()
    assert main(["pretrain", "--config", written(here, "fewer", tiles, bands="B04, B03")]) == 2
    assert "make them the same" in capsys.readouterr().err
    assert main(["pretrain", "--config", written(here, "unknown", tiles, bands="B04, B03, B99")]) == 2
    assert "B99" in capsys.readouterr().err


@told
def test_a_collapse_ends_the_run_in_one_line(here: Path, tiles: Path, capsys):
    limits = "  optimisation: {lr: 1.0e+6}\n  collapse: {after: 0, every: 1, patience: 1, images: 16}"
    config = written(here, "wild", tiles, model=limits)
    assert main(["pretrain", "--config", config, "--trainer.max_epochs", "30"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("geomed: error:")
    assert "learning rate" in message
    assert message.count("\n") == 1


def test_an_adapter_that_cannot_be_folded_in_is_refused_when_it_is_loaded(tmp_path: Path):
    backbone = vit()
    attach(backbone, AdaptFormer())
    save_adapter(tmp_path / "a.safetensors", backbone, [AdaptFormer()], facts={PRETRAINING: "MAE"})
    with pytest.raises(ValueError, match="cannot be merged"):
        adapt(vit(), nn.Identity(), [str(tmp_path / "a.safetensors")])


@told
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["mae", "dinov2"])
def test_it_runs_in_bf16_on_a_gpu(tiles: Path, tmp_path: Path, name: str):
    model = Pretraining(backbone=vit(), objective=objective_of(name), adapter=ExPLoRA(rank=2))
    before = copy.deepcopy(model.state_dict())
    trainer = lightning.Trainer(
        default_root_dir=tmp_path, max_epochs=2, accelerator="gpu", devices=1, precision="bf16-mixed", logger=False
    )
    trainer.fit(model, datamodule=PretrainingData(source(tiles), crops=crops_of(name), batch_size=3))
    after = {key: value.cpu() for key, value in model.state_dict().items()}
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(value, before[key]) for key, value in after.items())

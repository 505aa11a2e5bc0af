from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from PIL import Image
from torch.utils.data import Dataset, DistributedSampler
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import gaussian_blur

from geomed.data.crops import Cropped, Crops, LocalCrops, _drawn, _Image
from geomed.data.drawable import Drawable
from geomed.data.photometric import Photometric, _blurred
from geomed.data.pretraining_data import PretrainingData
from geomed.data.source import Source
from geomed.windows import Window

WHOLE = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
"""A crop that is the image."""


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=seeded(seed))


def spotted(size=48, seed=1):
    """Valid but for some holes and a corner."""
    valid = noise(size, size, seed=seed) > 0.02
    valid[: size // 3, : size // 3] = False
    return valid


def areas(regions, shape):
    return np.array([region.height * region.width for region in regions]) / math.prod(shape)


def near(values, expected):
    """The mean of independent draws is where it should be, as in all but one of 15 000 seeds."""
    return abs(np.mean(values) - expected) < 4 * np.std(values) / math.sqrt(len(values))


# where crops lie


def test_area_and_aspect_are_drawn_evenly_within_their_bounds():
    shape, scale, ratio = (400, 400), (0.2, 0.6), (3 / 4, 4 / 3)
    generator = seeded()
    regions = [_drawn(shape, scale, ratio, generator) for _ in range(4000)]
    shares, aspects = areas(regions, shape), np.array([region.width / region.height for region in regions])
    assert 0.198 < shares.min() < 0.201
    assert 0.599 < shares.max() < 0.602
    assert 0.74 < aspects.min() < 0.76
    assert 1.32 < aspects.max() < 1.345
    assert near(shares, 0.4)
    assert shares.var() == pytest.approx(0.4**2 / 12, rel=0.06)
    assert near(np.log(aspects), 0)
    for first, length in (("row", "height"), ("column", "width")):
        centres = [getattr(region, first) + getattr(region, length) / 2 for region in regions]
        assert near(centres, 200)
        assert all(0 <= getattr(region, first) <= 400 - getattr(region, length) for region in regions)
    assert {region.row for region in regions} >= {0}


def test_large_crops_are_as_rare_as_torchvision_has_them():
    torch.manual_seed(0)
    image, generator = torch.zeros(1, 256, 200), seeded()
    for scale in ((0.2, 1.0), (0.9, 1.0)):
        ours = areas([_drawn((256, 200), scale, (3 / 4, 4 / 3), generator) for _ in range(2000)], (256, 200))
        theirs = [RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(2000)]
        theirs = np.array([height * width for _, _, height, width in theirs]) / (256 * 200)
        assert abs(ours.mean() - theirs.mean()) < 4 * math.sqrt((ours.var() + theirs.var()) / 2000)
        assert ours.std() == pytest.approx(theirs.std(), rel=0.1)


@pytest.mark.parametrize("shape", [(20, 100), (100, 20), (64, 65)])
def test_where_no_crop_fits_the_largest_in_the_middle_is_taken_as_torchvision_does(shape):
    row, column, height, width = RandomResizedCrop.get_params(torch.zeros(1, *shape), [1.0, 1.0], [0.7, 0.9])
    assert _drawn(shape, (1.0, 1.0), (0.7, 0.9), seeded()) == Window(row, column, height, width)


def test_a_crop_shows_the_place_that_was_drawn():
    rows, columns = torch.meshgrid(torch.arange(90.0), torch.arange(70.0), indexing="ij")
    image = _Image.of({"values": torch.stack([rows, columns])})
    for region in (Window(10, 20, 40, 30), Window(0, 0, 90, 70), Window(85, 3, 5, 60)):
        values, valid = image.resized(region, 16)
        assert valid.all()
        assert values[0].mean() == pytest.approx(region.row + (region.height - 1) / 2, abs=0.05)
        assert values[1].mean() == pytest.approx(region.column + (region.width - 1) / 2, abs=0.05)
        assert (values[0].diff(dim=0) >= 0).all()
        assert (values[1].diff(dim=1) >= 0).all()


# what they hold


def test_a_crop_of_the_whole_image_gives_its_pixels_back_exactly():
    values, valid = noise(5, 48, 48), spotted()
    crops = Crops(size=48, flip=False, **WHOLE)
    given = crops({"values": values}, seeded())
    assert torch.equal(given["global_crops"][0], values)
    assert given["global_valid"].all()
    assert set(given) == {"global_crops", "global_valid"}
    given = crops({"values": values, "valid": valid}, seeded())
    assert torch.equal(given["global_crops"][0], values * valid)
    assert torch.equal(given["global_valid"][0], valid)


def test_resizing_is_that_of_pillow():
    values = noise(1, 60, 80)
    image = _Image.of({"values": values})
    for region, size in ((Window(5, 10, 50, 60), 24), (Window(30, 40, 20, 16), 32)):
        part = values[0][region.slices].numpy()
        expected = np.asarray(Image.fromarray(part).resize((size, size), Image.Resampling.BICUBIC))
        expected = expected.clip(float(values.min()), float(values.max()))
        np.testing.assert_allclose(image.resized(region, size)[0][0].numpy(), expected, atol=2e-6)


def test_of_what_is_missing_resizing_is_that_of_pillow_with_and_without_it():
    def resized(array, size):
        return np.asarray(Image.fromarray(array.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC))

    values, valid = noise(1, 48, 48), spotted()
    image = _Image.of({"values": values, "valid": valid})
    pixels, mask = values[0].numpy() * valid.numpy(), valid.numpy()
    for size in (17, 48, 70):
        share = resized(mask, size)
        expected = np.where(share >= 0.4999, resized(pixels, size) / share.clip(0.4), 0)
        given, kept = image.resized(Window(0, 0, 48, 48), size)
        assert np.array_equal(kept.numpy(), share >= 0.4999)
        seen = values[0][valid]
        expected = np.where(kept.numpy(), expected.clip(float(seen.min()), float(seen.max())), 0)
        np.testing.assert_allclose(given[0].numpy(), expected, atol=4e-6)


@pytest.mark.parametrize("size", [16, 24, 48, 100])
def test_pixels_that_are_not_valid_have_no_part_in_those_that_are(size):
    valid = spotted()
    crops = Crops(size=size, count=3, local=LocalCrops(count=4, size=12), max_missing=1.0)
    constant = torch.tensor([0.1, 7.0])[:, None, None].expand(2, 48, 48)
    given = crops({"values": constant * valid, "valid": valid}, seeded())
    # What stands under the mask does not matter either.
    poisoned = crops({"values": torch.where(valid, constant, math.nan), "valid": valid}, seeded())
    for name in ("global", "local"):
        kept, values = given[f"{name}_valid"], given[f"{name}_crops"]
        assert 0 < kept.sum() < kept.numel()
        for band, value in enumerate((0.1, 7.0)):
            assert (values[:, band][kept] == torch.tensor(value)).all()
            assert (values[:, band][~kept] == 0).all()
        assert torch.equal(poisoned[f"{name}_crops"], values)
        assert torch.equal(poisoned[f"{name}_valid"], kept)


def test_a_new_pixel_is_valid_where_half_of_what_it_covers_is():
    valid = torch.ones(40, 40, dtype=torch.bool)
    valid[:, :15] = False
    image = _Image.of({"values": noise(1, 40, 40), "valid": valid})
    kept = image.resized(Window(0, 0, 40, 40), 20)[1]
    # the eighth column is half covered: it counts
    assert kept.all(0).tolist() == [False] * 7 + [True] * 13
    assert image.resized(Window(0, 0, 40, 40), 80)[1].all(0).tolist() == [False] * 30 + [True] * 50


def test_values_stay_within_the_range_of_their_band():
    values = (noise(3, 40, 40) > 0.5).float() * torch.tensor([1.0, 2.0, -3.0])[:, None, None]
    given = Crops(size=64, count=4)({"values": values, "valid": spotted(40)}, seeded())["global_crops"]
    assert given.amax((0, 2, 3)).tolist() == [1, 2, 0]
    assert given.amin((0, 2, 3)).tolist() == [0, 0, -3]


def test_eight_bits_become_brightness_from_0_to_1():
    values = (noise(3, 32, 32) * 255.999).to(torch.uint8)
    given = Crops(size=32, flip=False, **WHOLE)({"values": values}, seeded())["global_crops"]
    assert given.dtype == torch.float32
    torch.testing.assert_close(given[0], values / 255)
    strong = Crops(size=32, count=8, photometric=Photometric(jitter=0.9))({"values": values}, seeded())["global_crops"]
    assert (strong.min(), strong.max()) == (0, 1)


def test_nan_is_refused_where_it_is_said_to_be_valid():
    for wrong in (math.nan, math.inf, -math.inf):
        values = noise(2, 16, 16)
        values[1, 3, 4] = wrong
        valid = torch.ones(16, 16, dtype=torch.bool)
        for sample in ({"values": values}, {"values": values, "valid": valid}):
            with pytest.raises(ValueError, match="NaN or infinity where they are said to be valid"):
                Crops(size=8)(sample, seeded())
        valid[3, 4] = False
        assert Crops(size=8)({"values": values, "valid": valid}, seeded())["global_crops"].isfinite().all()


def test_a_crop_that_misses_too_much_is_drawn_again():
    valid = torch.ones(60, 60, dtype=torch.bool)
    valid[:, :36] = False
    sample = {"values": noise(1, 60, 60), "valid": valid}

    def missing(limit, scale):
        crops = Crops(size=30, count=100, scale=scale, max_missing=limit)
        return 1 - crops(sample, seeded())["global_valid"].float().mean((1, 2))

    assert missing(1.0, (0.1, 0.2)).max() == 1
    assert missing(0.3, (0.1, 0.2)).quantile(0.9) <= 0.35
    # Where none is good enough, the best of ten is better than any.
    assert missing(0.0, (0.8, 1.0)).mean() < missing(1.0, (0.8, 1.0)).mean() - 0.02
    nothing = Crops(size=30, count=2, photometric=Photometric(jitter=0.3, blur=1.0))(
        {"values": torch.full((2, 60, 60), math.nan), "valid": torch.zeros(60, 60, dtype=torch.bool)}, seeded()
    )
    assert not nothing["global_valid"].any()
    assert (nothing["global_crops"] == 0).all()


# what changes in them


def test_flips_and_quarter_turns_reach_all_symmetries_with_equal_chance():
    values = torch.arange(4.0).reshape(1, 2, 2)
    valid = torch.tensor([[True, True], [True, False]])
    for fields, kinds in (({"flip": False}, 1), ({}, 2), ({"flip": False, "rotate": True}, 4), ({"rotate": True}, 8)):
        given = Crops(size=2, count=1600, **WHOLE, **fields)({"values": values + 1, "valid": valid}, seeded())
        seen, counts = given["global_crops"].flatten(1).unique(dim=0, return_counts=True)
        assert len(seen) == kinds
        expected = 1600 / kinds
        assert ((counts - expected).abs() <= 4 * math.sqrt(expected)).all()
        assert torch.equal(given["global_valid"], given["global_crops"][:, 0] != 0)


def test_jitter_scales_and_moves_each_band_by_what_it_may():
    values = noise(2, 32, 32) * torch.tensor([1.0, 1000.0])[:, None, None] + 5
    valid = spotted(32)
    plain = Crops(size=32, count=300, flip=False, max_missing=1.0, **WHOLE)
    crops = Crops(size=32, count=300, flip=False, max_missing=1.0, photometric=Photometric(jitter=0.4), **WHOLE)
    sample = {"values": values, "valid": valid}
    before = plain(sample, seeded())["global_crops"][0][:, valid]
    given = crops(sample, seeded())
    assert torch.equal(given["global_valid"], valid.expand(300, -1, -1))
    assert (given["global_crops"][:, :, ~valid] == 0).all()
    after = given["global_crops"][:, :, valid]
    gains = after.std(-1) / before.std(-1)
    moves = (after.mean(-1) - before.mean(-1)) / before.std(-1)
    for drawn, middle in ((gains, 1), (moves, 0)):
        assert drawn.min() >= middle - 0.401
        assert drawn.max() <= middle + 0.401
        assert near(drawn.numpy(), middle)
        assert drawn.std() == pytest.approx(0.8 / math.sqrt(12), rel=0.1)
        assert abs(np.corrcoef(drawn.T.numpy())[0, 1]) < 0.2
    torch.testing.assert_close(
        after[0], before.mean(-1, keepdim=True) + (before - before.mean(-1, keepdim=True)) * gains[0][:, None]
        + (moves[0] * before.std(-1))[:, None], rtol=1e-4, atol=1e-2,
    )  # fmt: skip


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_that_of_torchvision_away_from_borders(sigma):
    values = noise(3, 32, 40)
    ours = _blurred(values, torch.ones(32, 40, dtype=torch.bool), sigma)
    torch.testing.assert_close(ours[:, 4:-4, 4:-4], gaussian_blur(values, [9, 9], [sigma, sigma])[:, 4:-4, 4:-4])
    assert (_blurred(values[:, :3, :2], torch.ones(3, 2, dtype=torch.bool), sigma) <= 1).all()


def test_blur_takes_nothing_from_pixels_that_are_not_valid_and_comes_as_often_as_said():
    valid = spotted()
    sample = {"values": torch.full((1, 48, 48), 3.0), "valid": valid}
    given = Crops(size=40, count=20, photometric=Photometric(blur=1.0))(sample, seeded())
    torch.testing.assert_close(given["global_crops"][:, 0], 3.0 * given["global_valid"])
    image = noise(1, 32, 32)
    given = Crops(size=32, count=200, flip=False, photometric=Photometric(blur=0.3), **WHOLE)(
        {"values": image}, seeded()
    )
    blurred = (given["global_crops"] != image).flatten(1).any(1).float()
    assert near(blurred.numpy(), 0.3)


# all of it is drawn in one place


RICH = Crops(
    size=16, count=2, local=LocalCrops(count=3, size=8), rotate=True, photometric=Photometric(jitter=0.2, blur=0.5)
)


def test_crops_follow_from_the_generator_alone():
    sample = {"values": noise(4, 30, 40), "valid": spotted(48)[:30, :40]}
    before = {name: tensor.clone() for name, tensor in sample.items()}
    torch.manual_seed(1)
    first = RICH(sample, seeded(7))
    state = torch.random.get_rng_state()
    again = RICH(sample, seeded(7))
    other = RICH(sample, seeded(8))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {name: tuple(tensor.shape) for name, tensor in first.items()} == {
        "global_crops": (2, 4, 16, 16),
        "global_valid": (2, 16, 16),
        "local_crops": (3, 4, 8, 8),
        "local_valid": (3, 8, 8),
    }
    for name, tensor in first.items():
        assert tensor.dtype == (torch.bool if name.endswith("valid") else torch.float32)
        assert torch.equal(tensor, again[name])
    assert not torch.equal(first["global_crops"], other["global_crops"])
    assert not torch.equal(first["global_crops"][0], first["global_crops"][1])
    assert all(torch.equal(sample[name], before[name]) for name in before)  # it may be kept in memory


def test_a_config_says_all_of_it():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--crops", type=Crops, default=Crops())
    given = ["--crops.count=2", "--crops.scale=[0.32, 1]", "--crops.local.count=8", "--crops.photometric.jitter=0.4"]
    crops = parser.instantiate(parser.parse_args(given)).crops
    assert crops == Crops(count=2, scale=(0.32, 1.0), local=LocalCrops(count=8), photometric=Photometric(jitter=0.4))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 0}, "size and count must be at least 1"),
        ({"count": 0}, "size and count must be at least 1"),
        ({"local": LocalCrops(count=-1)}, "local count at least 0"),
        ({"local": LocalCrops(size=0)}, "local size at least 1"),
        ({"scale": (0.0, 1.0)}, r"scale is a least and a largest share in \(0, 1\], not 0.0 and 1.0"),
        ({"scale": (0.5, 0.2)}, "scale is a least"),
        ({"scale": (0.5, 1.2)}, "scale is a least"),
        ({"local": LocalCrops(scale=(0.3, 0.1))}, "the scale of local is a least"),
        ({"ratio": (0.0, 1.0)}, "ratio is a least and a largest width over height"),
        ({"ratio": (2.0, 1.0)}, "ratio is a least and a largest width over height"),
        ({"max_missing": 1.5}, "max_missing is a share from 0 to 1, not 1.5"),
    ],
)
def test_crops_that_are_none_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Crops(**fields)


@pytest.mark.parametrize("fields", [{"jitter": -0.1}, {"jitter": 1.0}, {"blur": 1.1}, {"jitter": math.nan}])
def test_changes_that_are_none_are_refused(fields):
    with pytest.raises(ValueError, match=f"{next(iter(fields))} is a .* correct it"):
        Photometric(**fields)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"values": torch.zeros(3, 2, 8, 8), "days": torch.arange(3)}, "single images.*choose one date"),
        ({"values": torch.zeros(3, 2, 8, 8)}, "single images.*choose one date"),
        ({"slices": torch.zeros(3, 2, 8, 8)}, "volumes; give their slices"),
        ({"values": torch.zeros(2, 8, 8, dtype=torch.int16)}, "values are float, or uint8"),
    ],
)
def test_samples_that_are_not_images_are_refused(sample, message):
    with pytest.raises(ValueError, match=message):
        Crops(size=4)(sample, seeded())


# batches


class Images(Dataset):
    """Images of one number each, larger and smaller."""

    def __init__(self, count, extra=None):
        self.count, self.extra, self.reads = count, extra or {}, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index >= self.count:
            raise IndexError(index)
        self.reads += 1
        size = 24 + index % 3
        values = noise(3, size, size, seed=index) + 10 * index
        return {"values": values, "valid": spotted(size), "label": torch.tensor(index)} | self.extra


class Drawn(Drawable):
    """Images that a generator draws."""

    def __len__(self):
        return 9

    def draw(self, index, generator):
        return {"values": torch.rand(3, 24, 24, generator=generator) + 10 * index}


@dataclass(frozen=True, kw_only=True)
class Toy(Source):
    """Only its training part may be looked at."""

    bands: tuple[str, ...] = ("red", "green", "blue")
    images: Dataset = field(default_factory=lambda: Images(11))
    asked: list[str] = field(default_factory=list)

    @property
    def classes(self):
        return ()

    def prepare(self):
        self.asked.append("prepare")

    def split(self, part):
        self.asked.append(part)
        if part != "train":
            raise AssertionError(f"{part} was read")
        return self.images


def data(images=None, **fields):
    source = Toy() if images is None else Toy(images=images)
    module = PretrainingData(source, **{"crops": RICH, "batch_size": 4, "seed": 3} | fields)
    module.setup("fit")
    return module


def alike(ones, others):
    for one, other in zip(ones, others, strict=True):
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name])
    return True


def numbers(batch):
    """Which images a batch holds: each has its own tens."""
    crops, valid = batch["global_crops"][:, :, 0], batch["global_valid"]
    return (((crops * valid).sum((1, 2, 3)) / valid.sum((1, 2, 3))) / 10).floor().int().tolist()


def test_a_drawable_is_drawn_by_the_seed_it_is_called_with():
    crops = Crops(size=24, flip=False, **WHOLE)
    cropped = Cropped(Drawn(), crops)
    assert len(cropped) == 9
    torch.testing.assert_close(cropped[2, 5]["global_crops"][0], torch.rand(3, 24, 24, generator=seeded(5)) + 20)
    assert alike([cropped[2, 5]], [cropped[2, 5]])
    assert not torch.equal(cropped[2, 5]["global_crops"], cropped[2, 6]["global_crops"])
    plain = Cropped(Images(3), crops)
    assert torch.equal(plain[0, 1]["global_crops"][0], Images(3)[0]["values"] * spotted(24))


@pytest.mark.parametrize("images", [Images(11), Drawn()])
def test_batches_follow_from_seed_and_epoch_whatever_the_workers(images):
    alone, helped, other = (
        data(images).train_dataloader(),
        data(images, workers=2).train_dataloader(),
        data(images, seed=4),
    )
    epochs = []
    for _ in range(2):
        epochs.append(list(alone))
        assert alike(epochs[-1], list(helped))
    assert len(alone) == len(epochs[0]) == 2
    assert epochs[0][0]["global_crops"].shape == (4, 2, 3, 16, 16)
    assert epochs[0][0]["local_valid"].shape == (4, 3, 8, 8)
    assert "label" not in epochs[0][0]
    assert not torch.equal(epochs[0][0]["global_crops"], epochs[1][0]["global_crops"])
    assert not torch.equal(epochs[0][0]["global_crops"], next(iter(other.train_dataloader()))["global_crops"])
    resumed = data(images).train_dataloader()
    resumed.sampler.set_epoch(1)
    assert alike(list(resumed), epochs[1])


def test_an_epoch_shows_each_image_once():
    plain = Crops(size=8)
    loader = data(crops=plain, batch_size=11).train_dataloader()
    shown = [numbers(batch) for _ in range(3) for batch in loader]
    assert all(sorted(epoch) == list(range(11)) for epoch in shown)
    assert shown[0] != shown[1]


@pytest.mark.parametrize("told", [DistributedSampler, DistributedSamplerWrapper])
def test_processes_share_an_epoch_out_and_go_on_with_it_when_resumed(told):
    """Lightning wraps the sampler; of some versions only the wrapper is told which epoch comes."""

    def epoch(rank, at, *, started):
        module = data(batch_size=2)
        module.trainer = SimpleNamespace(current_epoch=started, world_size=2)
        sampler = DistributedSamplerWrapper(
            module.train_dataloader().sampler, num_replicas=2, rank=rank, shuffle=True, seed=0
        )
        for number in range(started, at + 1):
            told.set_epoch(sampler, number)
            called = list(sampler)
        return called

    first, second = (epoch(rank, 2, started=0) for rank in range(2))
    assert {index for index, _ in first + second} == set(range(11))
    assert len(first) == len(second) == 6
    assert [epoch(rank, 2, started=2) for rank in range(2)] == [first, second]
    assert epoch(0, 1, started=0) != first


class Watching(lightning.LightningModule):
    """Notes what it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.watched = [], []

    def training_step(self, batch, index):
        self.seen.append((self.current_epoch, float(batch["global_crops"].double().sum())))
        return self.weight * 0

    def validation_step(self, batch, index):
        self.watched.append(batch["label"].tolist())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
def test_a_resumed_run_sees_what_it_would_have_seen(tmp_path):
    def fit(epochs, path=None, **fields):
        module = Watching()
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, default_root_dir=tmp_path, log_every_n_steps=1, num_sanity_val_steps=0,
            **fields,
        )  # fmt: skip
        found = PretrainingData(Toy(), crops=Crops(size=8), monitor=Toy(images=Images(5)), batch_size=4, workers=0)
        trainer.fit(module, found, ckpt_path=path)
        return trainer, module

    trainer, stopped = fit(1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    through, resumed = fit(3)[1], fit(3, tmp_path / "one.ckpt")[1]
    assert stopped.seen + resumed.seen == through.seen
    assert len({total for _, total in through.seen}) == 6
    assert through.watched == [[0, 1, 2, 3], [4]] * 3


def test_the_monitor_gives_its_training_part_whole_and_in_order_and_no_other():
    monitor = Toy(images=Images(5))
    module = data(monitor=monitor, batch_size=3)
    batches = list(module.val_dataloader())
    assert [batch["label"].tolist() for batch in batches] == [[0, 1, 2], [3, 4]]
    assert batches[0]["values"].shape == (3, 3, 26, 26)
    torch.testing.assert_close(batches[1]["values"][0, :, :24, :24], Images(5)[3]["values"])
    module.setup("validate")
    assert monitor.asked == module.source.asked == ["train"]
    with pytest.raises(AssertionError, match="test was read"):
        monitor.split("test")
    assert data().val_dataloader() == []


def test_the_monitor_is_prepared_first():
    asked = []
    PretrainingData(Toy(asked=asked), monitor=Toy(asked=asked)).prepare_data()
    assert asked == ["prepare", "prepare"]

    class Unable(Toy):
        def prepare(self):
            raise ValueError("unable")

    source = Toy()
    with pytest.raises(ValueError, match="unable"):
        PretrainingData(source, monitor=Unable()).prepare_data()
    assert not source.asked
    PretrainingData(source).prepare_data()
    assert source.asked == ["prepare"]


def test_images_are_read_once_when_kept_in_memory():
    images, watched = Images(8), Images(3)
    module = data(images, in_memory=True, monitor=Toy(images=watched))
    loader = module.train_dataloader()
    kept = [list(loader) for _ in range(3)]
    assert images.reads == 8
    assert sum(len(batch["label"]) for _ in range(2) for batch in module.val_dataloader()) == 6
    assert watched.reads == 3
    plain = data(Images(8)).train_dataloader()
    assert all(alike(epoch, list(plain)) for epoch in kept)


SERIES = {"values": torch.zeros(2, 3, 24, 24), "days": torch.arange(2)}


@pytest.mark.parametrize(
    ("images", "fields", "message"),
    [
        (Images(0), {}, "at least 2 images.*has 0"),
        (Images(1), {"batch_size": 2}, "at least 2 images.*has 1; cut large images"),
        (Images(3), {}, "a batch of 4 is more than the 3 images.*lower batch_size to 3 or less"),
        (Images(8, SERIES), {}, "choose one date"),
        (Images(8, {"slices": torch.zeros(2, 3, 24, 24)}), {}, "these samples are volumes; give their slices"),
        (Images(8, {"values": torch.full((3, 24, 24), math.nan)}), {}, "NaN or infinity"),
        (Drawn(), {"in_memory": True}, "drawn anew each time; leave it out"),
        (Images(8), {"monitor": Toy(images=Images(0))}, "monitor's training part has no samples"),
        (Images(8), {"monitor": Toy(images=Images(2, SERIES))}, "choose one date"),
        (Images(8), {"monitor": Toy(bands=("grey",))}, "monitor has the bands grey and the source red, green, blue"),
        (Images(8), {"batch_size": 1}, "batch_size must be at least 2"),
        (Images(8), {"workers": -1}, "workers at least 0"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_before_it_starts(images, fields, message):
    with pytest.raises(ValueError, match=message):
        data(images, **fields)


def test_processes_that_get_less_than_a_batch_each_are_refused():
    module = PretrainingData(Toy(images=Images(10)), crops=RICH, batch_size=4)
    module.trainer = SimpleNamespace(current_epoch=0, world_size=3)
    module.setup("fit")
    module = PretrainingData(Toy(images=Images(9)), crops=RICH, batch_size=4)
    module.trainer = SimpleNamespace(current_epoch=0, world_size=3)
    with pytest.raises(ValueError, match="the 3 images that each of 3 processes has"):
        module.setup("fit")


def test_there_is_nothing_to_test_or_to_predict():
    for stage in ("test", "predict"):
        with pytest.raises(ValueError, match=f"pre-training has no {stage}"):
            PretrainingData(Toy()).setup(stage)
    with pytest.raises(ValueError, match="call setup"):
        PretrainingData(Toy()).train_dataloader()

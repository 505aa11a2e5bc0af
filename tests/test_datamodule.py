from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from geomed.data.datamodule import DataModule
from geomed.data.shuffle import InMemory
from geomed.data.source import IGNORE, Source, collate
from geomed.data.transforms import Augment, Change, apply


def sample(number=0, times=2, height=4, width=4):
    values = torch.arange(times * 3 * height * width, dtype=torch.float32).reshape(times, 3, height, width)
    window = torch.tensor([0, 0, height, width])
    return {
        "values": values + 1000 * number,
        "days": torch.arange(times) + 17000,
        "valid": values[:, 0] % 3 > 0,
        "labels": torch.arange(height * width).reshape(height, width) % 5,
        "scene": torch.tensor(number),
        "read": window,
        "keep": window,
    }


class Numbered(Dataset):
    def __init__(self, count):
        self.count, self.reads = count, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index >= self.count:
            raise IndexError(index)
        self.reads += 1
        return sample(index, times=1 + index % 3)


@dataclass(frozen=True, kw_only=True)
class Toy(Source):
    bands: tuple[str, ...] = ("B02", "B03", "B04")
    val: int = 2

    @property
    def classes(self):
        return ("a", "b")

    def split(self, part):
        return Numbered({"train": 7, "val": self.val, "test": 3, "predict": 0}[part])

    def scenes(self):
        return ()


def test_collate_pads_dates_rows_and_columns_and_marks_them():
    batch = collate([sample(0, 2, 4, 5), sample(1, 3, 6, 2)])
    assert batch["values"].shape == (2, 3, 3, 6, 5)
    assert batch["days"].tolist() == [[17000, 17001, 0], [17000, 17001, 17002]]
    assert not batch["valid"][0, 2].any()
    assert not batch["valid"][0, :, 4:].any()
    assert not batch["valid"][1, :, :, 2:].any()
    assert (batch["labels"][0, 4:] == IGNORE).all()
    assert (batch["labels"][1, :, 2:] == IGNORE).all()
    torch.testing.assert_close(batch["values"][0, :2, :, :4], sample(0, 2, 4, 5)["values"])
    assert batch["values"][0, 2].abs().sum() == 0
    assert batch["keep"].tolist() == [[0, 0, 4, 5], [0, 0, 6, 2]]


def test_collate_refuses_labels_in_some_samples_only():
    bare = {key: value for key, value in sample().items() if key != "labels"}
    assert "labels" not in collate([bare, bare])
    with pytest.raises(ValueError, match="labels is in some only"):
        collate([sample(), bare])
    with pytest.raises(ValueError, match="at least one sample"):
        collate([])


def test_the_eight_symmetries_move_values_valid_and_labels_together():
    seen = set()
    for flip in (False, True):
        for turns in range(4):
            changed = apply(sample(), Change(flip=flip, turns=turns))
            rows, columns = np.unravel_index(changed["values"][0, 0].long().ravel().numpy(), (4, 4))
            torch.testing.assert_close(changed["labels"].ravel(), sample()["labels"][rows, columns])
            torch.testing.assert_close(changed["valid"][0].ravel(), sample()["valid"][0][rows, columns])
            seen.add(tuple(changed["values"][0, 0].ravel().tolist()))
    assert len(seen) == 8


def test_draws_reach_all_symmetries_and_keep_one_date():
    augment = Augment(drop_dates=0.9)
    changes = [augment.draw(sample(), torch.Generator().manual_seed(seed)) for seed in range(200)]
    assert {(change.flip, change.turns) for change in changes} == {(f, t) for f in (False, True) for t in range(4)}
    assert {len(change.dates) for change in changes} == {1, 2}
    assert augment.draw(sample(), torch.Generator().manual_seed(3)) == changes[3]
    kept = apply(sample(), Change(dates=(1,)))
    assert (kept["days"].tolist(), kept["values"].shape[0], kept["valid"].shape[0]) == ([17001], 1, 1)


def test_a_sample_that_is_not_square_keeps_its_shape():
    oblong = sample(height=3, width=5)
    changes = [Augment().draw(oblong, torch.Generator().manual_seed(seed)) for seed in range(50)]
    assert {change.turns for change in changes} == {0, 2}
    assert apply(oblong, changes[0])["labels"].shape == (3, 5)


def test_a_chance_must_be_one():
    with pytest.raises(ValueError, match="drop_dates is a chance"):
        Augment(drop_dates=1.0)


def epochs(workers=0, count=2, **fields):
    module = DataModule(Toy(), batch_size=3, workers=workers, **fields)
    module.setup("fit")
    loader = module.train_dataloader()
    return [[batch["values"] for batch in loader] for _ in range(count)]


def test_order_and_augmentation_follow_from_the_seed_whatever_the_workers():
    first, again = epochs(seed=4), epochs(seed=4, workers=2)
    for one, other in zip(first, again, strict=True):
        for left, right in zip(one, other, strict=True):
            torch.testing.assert_close(left, right)
    scenes = [sorted(int(values.amax((1, 2, 3, 4))[i] // 1000) for values in epoch for i in range(len(values)))
              for epoch in first]  # fmt: skip
    assert scenes == [list(range(7))] * 2
    assert any((a.shape != b.shape) or (a != b).any() for a, b in zip(*first, strict=True))
    other = epochs(seed=5)
    assert any((a.shape != b.shape) or (a != b).any() for a, b in zip(first[0], other[0], strict=True))


def test_a_resumed_run_goes_on_with_the_epoch_it_is_told():
    module = DataModule(Toy(), batch_size=3, seed=4)
    module.setup("fit")
    loader = module.train_dataloader()
    loader.sampler.set_epoch(1)
    for left, right in zip(loader, epochs(seed=4)[1], strict=True):
        torch.testing.assert_close(left["values"], right)


def test_only_training_is_changed():
    module = DataModule(Toy(), batch_size=2, eval_batch_size=1)
    module.setup("fit")
    module.setup("test")
    for loader, count in ((module.val_dataloader(), 2), (module.test_dataloader(), 3)):
        batches = list(loader)
        assert len(batches) == count
        for number, batch in enumerate(batches):
            torch.testing.assert_close(batch["values"][0], sample(number, 1 + number % 3)["values"])


def test_parts_without_samples_are_refused_except_val_in_fit():
    module = DataModule(Toy(val=0))
    module.setup("fit")
    assert module.val_dataloader() == []
    with pytest.raises(ValueError, match="val has no samples"):
        DataModule(Toy(val=0)).setup("validate")
    with pytest.raises(ValueError, match="predict has no samples"):
        module.setup("predict")
    with pytest.raises(ValueError, match="batch sizes must be at least 1"):
        DataModule(Toy(), batch_size=0)


def test_samples_are_read_once_when_kept_in_memory():
    numbered = Numbered(3)
    kept = InMemory(numbered)
    first = [kept[index] for index in (0, 1, 0, 0)]
    assert numbered.reads == 2
    torch.testing.assert_close(first[0]["values"], first[3]["values"])
    module = DataModule(Toy(), in_memory=True, batch_size=3)
    module.setup("fit")
    for _ in range(3):
        assert sum(len(batch["values"]) for batch in module.train_dataloader()) == 7
    assert module.parts["train"].dataset.reads == 7

"""MedMNIST's files are read as they are, and other files are not taken for them."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from geomed.data.duplicates import Duplicates
from geomed.data.med_mnist import MedMnist
from geomed.data.med_mnist_sets import SETS
from geomed.data.source import collate

DATA = Path(os.environ.get("GEOMED_REAL_DATA", "/nowhere"))
PNEUMONIA = DATA / "medical" / "pneumoniamnist_28" / "train_val.npz"


def arrays(name="pneumoniamnist", size=28, counts=(12, 5, 6)):
    """Random images and labels of a set."""
    about, draw = SETS[name], np.random.default_rng(0)
    inner = (size,) * (3 if about.volume else 2) + ((3,) if about.channels == 3 else ())
    made = {}
    for part, count in zip(("train", "val", "test"), counts, strict=True):
        made[f"{part}_images"] = draw.integers(0, 256, (count, *inner)).astype(np.uint8)
        if about.task == "multi-label":
            made[f"{part}_labels"] = draw.integers(0, 2, (count, len(about.classes))).astype(np.uint8)
        else:
            made[f"{part}_labels"] = (np.arange(count)[:, None] % len(about.classes)).astype(np.uint8)
    return made


def write(path, made, *, compressed=True):
    (np.savez_compressed if compressed else np.savez)(path, **made)
    return str(path)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("compressed", [True, False], ids=["compressed", "stored"])
def test_every_set_gives_its_samples_as_they_are(tmp_path, name, compressed):
    made, about = arrays(name), SETS[name]
    source = MedMnist(file=write(tmp_path / "set.npz", made, compressed=compressed), name=name)
    source.prepare()
    assert source.classes == about.classes
    for part in ("train", "val", "test", "predict"):
        key = "test" if part == "predict" else part
        samples = source.split(part)
        assert len(samples) == len(made[f"{key}_images"])
        sample, image = samples[3], made[f"{key}_images"][3]
        if about.volume:
            assert np.array_equal(sample["slices"][:, 0], image)
            assert sample["present"].all()
        else:
            assert sample["values"].shape == (len(source.bands), 28, 28)
            assert np.array_equal(sample["values"].permute(1, 2, 0), image.reshape(28, 28, -1))
        expected = made[f"{key}_labels"][3]
        if about.task == "multi-label":
            assert sample["label"].dtype == torch.float32
            assert sample["label"].tolist() == expected.tolist()
        else:
            assert sample["label"].dtype == torch.int64
            assert sample["label"].item() == expected[0]
    assert [int(source.split(part)[0]["case"]) for part in ("train", "val", "test")] == [0, 12, 17]


def test_there_are_twelve_sets_of_images_and_six_of_volumes():
    assert sum(not about.volume for about in SETS.values()) == 12
    assert sum(about.volume for about in SETS.values()) == 6
    # the paper counts 708,069 images and 9,998 volumes; version 3 took some out of the organs and of the vessels
    assert sum(sum(about.counts) for about in SETS.values() if not about.volume) == 708_069 - 107
    assert sum(sum(about.counts) for about in SETS.values() if about.volume) == 9_998 - 2
    assert {name for name, about in SETS.items() if about.task == "ordinal"} == {"retinamnist"}
    assert {name for name, about in SETS.items() if about.task == "multi-label"} == {"chestmnist"}


def test_arrays_that_are_not_compressed_are_read_in_place(tmp_path):
    made = arrays()
    stored = MedMnist(file=write(tmp_path / "a.npz", made, compressed=False), name="pneumoniamnist").split("train")
    assert isinstance(stored.images.array, np.memmap)
    laid = MedMnist(file=write(tmp_path / "b.npz", made), name="pneumoniamnist", unpacked=str(tmp_path / "open")).split(
        "train"
    )
    assert isinstance(laid.images.array.base, np.memmap)
    assert np.array_equal(laid.images.array, stored.images.array)
    assert len(list((tmp_path / "open").iterdir())) == 4  # images of train, labels of all


def test_samples_pickle_as_their_place_and_load_in_workers(tmp_path):
    samples = MedMnist(file=write(tmp_path / "a.npz", arrays()), name="pneumoniamnist").split("train")
    samples[0]
    copy = pickle.loads(pickle.dumps(samples))  # noqa: S301  (our own)
    assert "array" not in vars(copy.images)
    assert torch.equal(copy[2]["values"], samples[2]["values"])
    batch = next(iter(DataLoader(samples, batch_size=4, collate_fn=collate)))
    assert batch["values"].shape == (4, 1, 28, 28)
    assert batch["values"].dtype == torch.uint8


def test_an_array_of_objects_is_never_loaded(tmp_path):
    made = arrays()
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = tmp_path / f"{compression}.npz"
        with zipfile.ZipFile(path, "w", compression) as archive:
            for key, array in made.items():
                content = io.BytesIO()
                np.save(content, np.array([print] * 12, dtype=object) if key == "train_images" else array)
                archive.writestr(f"{key}.npy", content.getvalue())
        with pytest.raises(ValueError, match=r"train_images\.npy cannot"):
            MedMnist(file=str(path), name="pneumoniamnist").prepare()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made: made.update(train_images=made["train_images"].astype(np.float32)), "must hold uint8 images of"),
        (
            lambda made: made.update(val_images=made["val_images"][:, :20]),
            r"val of pneumoniamnist must hold uint8 images",
        ),
        (lambda made: made.update(val_labels=made["val_labels"][:3]), r"must hold whole numbers \(5, 1\)"),
        (lambda made: made["test_labels"].fill(7), "6 labels are not from 0 to 1"),
        (lambda made: made["train_labels"].fill(1), "labels of one class only"),
        (lambda made: made.pop("train_images"), "six names"),
        (lambda made: made.pop("val_labels"), "six names"),
    ],
)
def test_another_file_is_not_taken_for_it(tmp_path, change, message):
    made = arrays()
    change(made)
    with pytest.raises(ValueError, match=message):
        MedMnist(file=write(tmp_path / "set.npz", made), name="pneumoniamnist").prepare()


def test_a_cut_off_file_is_refused(tmp_path):
    path = Path(write(tmp_path / "set.npz", arrays()))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="no npz, or is cut off"):
        MedMnist(file=str(path), name="pneumoniamnist").prepare()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "mnist"}, "no set 'mnist'"),
        ({"size": 32}, "not 32"),
        ({"name": "organmnist3d", "size": 224}, "not 224"),
    ],
)
def test_sets_and_sizes_that_do_not_exist_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        MedMnist(**{"file": "x.npz", "name": "pneumoniamnist", **given})


def test_the_summary_says_what_a_reader_of_figures_must_know(tmp_path):
    made = arrays()
    made["test_images"][2] = made["train_images"][5]
    file = write(tmp_path / "set.npz", made)
    summary = MedMnist(file=file, name="pneumoniamnist").summary
    assert "image-level split, optimistic" in summary
    assert "not the official file: (12, 5, 6) images" in summary
    assert "1 images of test look like one of train: train 5 ~ test 2. They stay: it is the official split" in summary
    with pytest.raises(ValueError, match="1 images of test look like one of train"):
        MedMnist(file=file, name="pneumoniamnist", duplicates=Duplicates(contradictions="as published")).prepare()
    organs = MedMnist(file=write(tmp_path / "organs.npz", arrays("organamnist")), name="organamnist", duplicates=None)
    assert not organs.division.image_level
    assert "the file cannot show it" in organs.summary


@pytest.mark.real
@pytest.mark.skipif(not PNEUMONIA.is_file(), reason=f"no pneumoniamnist_28 in {DATA}: name it in GEOMED_REAL_DATA")
def test_real_pneumonia_repeats_train_in_val_and_is_not_the_official_file():
    source = MedMnist(file=str(PNEUMONIA), name="pneumoniamnist")
    assert "(3882, 524, 0) images of train, val and test, MedMNIST 3.0.2 has (4708, 524, 624)" in source.summary
    assert "25 images repeat another pixel by pixel" in source.summary
    assert "8 images of val look like one of train" in source.summary
    val = source.split("val")
    assert np.bincount([int(val[i]["label"]) for i in range(len(val))]).tolist() == [135, 389]
    with pytest.raises(ValueError, match="no test part"):
        source.split("test")

"""Images that are the same or look the same are found, and those of different patients are not taken for it."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from geomed.data.case_ids import CaseIds
from geomed.data.duplicates import (
    PRINT,
    SIDE,
    Duplicates,
    LookAlikes,
    _close,
    fingerprint,
    look_alikes,
    refuse_across,
    refuse_contradictions,
)
from geomed.data.folder_of_classes import FolderOfClasses
from geomed.data.rendition import Rendition
from geomed.evaluation.patient_splits import ByPatient, CaseDivision

DATA = Path(os.environ.get("GEOMED_REAL_DATA", "/nowhere"))
BUSI = DATA / "medical" / "busi_ultrasound"
needed = pytest.mark.skipif(not BUSI.is_dir(), reason=f"no busi_ultrasound in {DATA}: name it in GEOMED_REAL_DATA")


def texture(seed, side=96):
    """A random smooth image."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def prints(images):
    return np.array([fingerprint(image) for image in images], dtype=PRINT)


def test_the_same_pixels_are_one_image_whatever_the_file():
    images = [texture(0), texture(1), texture(0), texture(2), texture(0)]
    found = look_alikes(prints(images), Duplicates())
    assert found.same == ((0, 2, 4),)
    assert found.near == ()


@pytest.mark.parametrize(
    "change",
    [
        lambda image: np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR)),
        lambda image: (image * 0.7 + 40).astype(np.uint8),
        lambda image: image + np.random.default_rng(9).integers(0, 8, image.shape).astype(np.uint8),
        lambda image: image.astype(np.uint16) * 257,
        lambda image: np.pad(image, 2, mode="edge"),
    ],
    ids=["smaller", "other contrast", "noise", "16 bits", "border"],
)
def test_a_changed_copy_looks_the_same(change):
    images = [texture(seed) // 2 + 20 for seed in range(30)]
    found = look_alikes(prints([*images, change(images[4])]), Duplicates())
    assert found.near == ((4, 30),)
    assert found.groups() == ((4, 30),)


def test_the_hash_is_that_of_the_discrete_cosine_transform():
    seen = fingerprint(texture(3))
    frequencies = dctn(seen["thumbnail"].astype(float), norm="ortho")[:8, :8].ravel()
    # the orthonormal transform makes its first row and column smaller by a root of two
    scale = np.where(np.arange(8) == 0, np.sqrt(2), 1.0)
    frequencies *= (scale[:, None] * scale[None]).ravel()
    bits = frequencies > np.median(frequencies[1:])
    assert int(seen["bits"]) == int("".join("01"[int(bit)] for bit in bits), 2)


def test_close_hashes_are_found_as_by_counting_bits():
    bits = np.random.default_rng(0).integers(0, 2**63, 300, dtype=np.uint64)
    bits[200:] = bits[:100] ^ np.uint64(0b1011 << 40)
    expected = [(i, j) for i in range(300) for j in range(i + 1, 300) if (int(bits[i]) ^ int(bits[j])).bit_count() <= 5]
    assert [tuple(pair) for pair in _close(bits, 5).tolist()] == expected
    assert len(expected) >= 100


def test_flat_images_are_not_near_to_each_other():
    images = [np.full((40, 40), value, dtype=np.uint8) for value in (0, 3, 200)]
    assert look_alikes(prints(images), Duplicates()) == LookAlikes()


def test_only_identical_images_are_looked_for_if_so_said():
    images = [texture(0), texture(0) // 2 + 3, texture(0)]
    assert look_alikes(prints(images), Duplicates(bits=None)) == LookAlikes(same=((0, 2),))


def test_vectors_of_a_network_have_the_last_word():
    images = [texture(0), texture(0) // 2 + 3, texture(1), texture(1) // 2 + 3]
    asked = []

    def embed(indices):
        asked.extend(indices)
        return np.array([[1.0, index == 3] for index in indices])

    assert look_alikes(prints(images), Duplicates(), embed=embed).near == ((0, 1),)
    assert asked == [0, 1, 2, 3]


def test_a_volume_is_seen_as_a_whole():
    volume = np.stack([texture(seed) for seed in range(5)])
    found = look_alikes(np.array([fingerprint(volume), fingerprint(volume), fingerprint(volume[:4])]), Duplicates())
    assert found.same == ((0, 1),)


DIVISION = CaseDivision(train=(0, 1, 2), val=(3,), test=(4, 5))


def name(index):
    return f"case {index}"


def test_look_alikes_in_two_parts_are_refused_with_counts_and_names():
    found = LookAlikes(same=((0, 4),), near=((0, 2), (1, 5)))
    with pytest.raises(
        ValueError, match=r"2 images of test look like one of train: case 0 ~ case 4; case 2 ~ case 4; "
    ):
        refuse_across(found, DIVISION, Duplicates(), name)
    told = refuse_across(found, DIVISION, Duplicates(accepted="the organisers drew it so"), name)
    assert told[0].endswith("They stay: the organisers drew it so")


def test_look_alikes_in_one_part_are_told_only():
    found = LookAlikes(same=((0, 1),), near=((4, 5),))
    assert refuse_across(found, DIVISION, Duplicates(), name) == ()
    assert refuse_contradictions(found, [0] * 6, Duplicates(), name) == (
        "look-alikes: 1 images repeat another pixel by pixel, 1 pairs look the same, 0 of these have different labels",
    )


def test_one_image_with_two_labels_is_refused():
    found = LookAlikes(same=((0, 4),))
    with pytest.raises(ValueError, match="with several labels: case 0 = case 4"):
        refuse_contradictions(found, [0, 0, 0, 0, 1, 0], Duplicates(), name)
    told = refuse_contradictions(found, [0, 0, 0, 0, 1, 0], Duplicates(contradictions="two readers differ"), name)
    assert "They stay: two readers differ" in told[1]


def test_rules_that_cannot_be_are_refused():
    for given in ({"bits": 32}, {"correlation": 0}, {"accepted": "because"}):
        with pytest.raises(ValueError, match=r"correct it|reason in words"):
            Duplicates(**given)


def test_thumbnails_are_small():
    assert SIDE * SIDE < PRINT.itemsize < 1100


def busi(tmp_path, **given):
    return FolderOfClasses(
        folder=str(BUSI),
        patients="none",
        by=ByPatient(),
        ids=CaseIds(key_file=str(tmp_path / "key")),
        rendition=Rendition(size=64, colour=True),
        **given,
    )


@needed
@pytest.mark.real
def test_real_ultrasound_has_one_image_with_two_labels(tmp_path):
    with pytest.raises(ValueError, match="1 images stand in the set with several labels") as caught:
        busi(tmp_path).prepare()
    first, second = re.findall("[0-9a-f]{16}", str(caught.value))
    source = busi(tmp_path)
    pair = {source.cases[source.row_of(one) - 1].written for one in (first, second)}
    assert pair == {"benign/benign_433.png", "malignant/malignant_145.png"}


@needed
@pytest.mark.real
def test_real_ultrasound_leaks_unless_look_alikes_stay_together(tmp_path):
    with pytest.raises(ValueError, match=r"[2-9]\d images of test look like one of train"):
        busi(tmp_path, duplicates=Duplicates(contradictions="known label noise")).prepare()
    source = busi(tmp_path, duplicates=Duplicates(contradictions="known label noise", together=True))
    source.prepare()
    assert source.division.image_level
    assert "14 of 584 scans are in colour (benign 12 of 328, malignant 2 of 149, normal 0 of 107)" in source.summary

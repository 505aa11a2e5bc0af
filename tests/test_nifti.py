"""NIfTI: scale, places, orientation and spacing against nibabel and MONAI, and what is refused."""

import gzip
import warnings
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from geomed.io.nifti import read_nifti
from geomed.io.scan import Scan, UnreadableScanError
from geomed.io.volume_grid import oriented, resampled

RAS = np.array([[0, -2.0, 0, 10], [1.5, 0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]])  # x leads to A, y to L


def write(path, values, affine=RAS, *, slope=None, intercept=None, codes=(1, 1), units="mm"):
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units(units)
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    nibabel.save(image, path)
    if slope is not None:  # nibabel writes what it makes of them
        raw = bytearray(path.read_bytes())
        raw[112:120] = np.array([slope, intercept], "<f4").tobytes()
        path.write_bytes(bytes(raw))
    return path


@pytest.fixture
def numbers():
    return np.arange(5 * 4 * 3, dtype=np.int16).reshape(5, 4, 3)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_values_and_place_equal_nibabels(tmp_path, numbers, kind, ending):
    path = write(tmp_path / f"a{ending}", numbers.astype(kind))
    scan, image = read_nifti(path), nibabel.load(path)
    np.testing.assert_array_equal(scan.values, image.get_fdata().transpose(2, 1, 0))
    assert scan.values.flags.c_contiguous
    assert scan.bits == np.dtype(kind).itemsize * 8
    assert scan.spacing == pytest.approx((3, 2, 1.5))
    assert scan.orientation == "".join(nibabel.aff2axcodes(image.affine)) == "ALS"
    np.testing.assert_allclose(scan.affine @ [2, 1, 3, 1] * [-1, -1, 1, 1], image.affine @ [3, 1, 2, 1])


@pytest.mark.parametrize(
    ("slope", "intercept", "kind"), [(1, -1024, np.int16), (2, 0.5, np.float32), (1, 0.5, np.float32), (0, 7, np.int16)]
)
def test_the_scale_is_applied(tmp_path, numbers, slope, intercept, kind):
    path = write(tmp_path / "a.nii", numbers, slope=slope, intercept=intercept)
    scan = read_nifti(path, unit="HU")
    np.testing.assert_array_equal(scan.values, nibabel.load(path).get_fdata().transpose(2, 1, 0))
    assert scan.values.dtype == kind
    assert scan.unit == "HU"


def test_a_volume_of_several_is_named(tmp_path):
    values = np.arange(5 * 4 * 3 * 2 * 2, dtype=np.int16).reshape(5, 4, 3, 2, 2)
    path = write(tmp_path / "a.nii.gz", values)
    with pytest.raises(UnreadableScanError, match=r"a\.nii\.gz: it holds 4 volumes .5 x 4 x 3 x 2 x 2.; name one"):
        read_nifti(path)
    np.testing.assert_array_equal(read_nifti(path, volume=1).values, values[..., 1, 0].transpose(2, 1, 0))
    with pytest.raises(UnreadableScanError, match="no volume 4, it holds 4"):
        read_nifti(path, volume=4)


def test_units_of_length(tmp_path, numbers):
    scan = read_nifti(write(tmp_path / "a.nii", numbers, RAS * 1000, units="micron"))
    assert scan.spacing == pytest.approx((3, 2, 1.5))


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PIR"])
def test_orientations_equal_nibabels(tmp_path, numbers, orientation):
    path = write(tmp_path / "a.nii", numbers)
    scan, image = read_nifti(path, orientation=orientation), nibabel.load(path)
    ends = nibabel.orientations.axcodes2ornt(orientation)
    turned = image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), ends))
    np.testing.assert_array_equal(scan.values, turned.get_fdata().transpose(2, 1, 0))
    assert scan.orientation == orientation
    np.testing.assert_allclose(scan.affine @ [2, 1, 3, 1] * [-1, -1, 1, 1], turned.affine @ [3, 1, 2, 1])
    back = oriented(scan, "ALS")
    np.testing.assert_array_equal(back.values, read_nifti(path).values)
    np.testing.assert_allclose(back.affine, read_nifti(path).affine)


def test_spacing_and_orientation_equal_monais(tmp_path):
    values = np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32)
    path = write(tmp_path / "a.nii", values)
    scan = read_nifti(path, orientation="RAS", spacing=(2.0, 1.5, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Orientation, Spacing

        steps = [LoadImage(), EnsureChannelFirst(), Orientation(axcodes="RAS", labels=None), Spacing((1.0, 1.5, 2.0))]
        right = Compose(steps)(str(path))
    np.testing.assert_allclose(scan.values, right[0].numpy().transpose(2, 1, 0), atol=1e-4)
    assert scan.spacing == (2.0, 1.5, 1.0)
    np.testing.assert_allclose(
        scan.affine @ [2, 1, 3, 1] * [-1, -1, 1, 1], right.affine.numpy() @ [3, 1, 2, 1], atol=1e-4
    )
    with pytest.raises(ValueError, match="three positive numbers"):
        resampled(scan, (1, 0, 1))
    with pytest.raises(ValueError, match="GiB, more than"):
        resampled(scan, (1e-4, 1e-4, 1e-4))


def test_what_has_no_place_is_not_turned(tmp_path, numbers):
    path = write(tmp_path / "a.nii", numbers, codes=(0, 0))
    assert read_nifti(path).affine is None
    assert read_nifti(path).orientation is None
    with pytest.raises(UnreadableScanError, match="qform and sform are 0"):
        read_nifti(path, orientation="RAS")
    with pytest.raises(ValueError, match="without affine"):
        oriented(read_nifti(path), "RAS")
    with pytest.raises(ValueError, match="one of R/L, A/P and I/S each"):
        oriented(replace(read_nifti(path), affine=np.eye(4)), "RRS")
    with pytest.raises(ValueError, match="only a volume"):
        oriented(Scan(values=np.zeros((2, 2)), unit="grey", bits=8), "RAS")


def damaged(path, how):
    raw = path.read_bytes()
    path.write_bytes(how(raw))
    return path


def rewritten(start, numbers_, kind):
    patch = np.array(numbers_, kind).tobytes()
    return lambda raw: raw[:start] + patch + raw[start + len(patch) :]


@pytest.mark.parametrize(
    ("ending", "how", "words"),
    [
        (".nii", lambda raw: raw[:-7], "truncated: 465 bytes where 472"),
        (".nii", lambda raw: raw[:100], "no NIfTI file, or one cut off"),
        (".nii.gz", lambda raw: raw[:-20], "damaged|cut off"),
        (".nii.gz", lambda raw: raw[:30], "no NIfTI|damaged"),
        (".nii.gz", lambda raw: raw[:60] + b"xxxx" + raw[64:], "damaged|no NIfTI"),
        (".nii", lambda _: b"hello", "no NIfTI"),
        (".nii.gz", lambda _: gzip.compress(b"hello"), "no NIfTI"),
        (".nii", rewritten(40, [3, 30000, 30000, 30000], "<i2"), "50291.4 GiB, more than 4"),
        (".nii", rewritten(40, [3, 0, 4, 3], "<i2"), "promises 0 x 4 x 3"),
        (".nii", rewritten(70, [32, 64], "<i2"), "colours or complex"),
        (".nii", rewritten(70, [128, 24], "<i2"), "colours or complex"),
        (".nii", rewritten(70, [4321], "<i2"), "damaged"),
        (".nii", rewritten(280, [9.0, 0, 0, 0], "<f4"), "lead into different directions|flat"),
        (".nii", rewritten(280, [np.nan], "<f4"), "not finite or flat"),
        (".nii", rewritten(123, [4], "u1"), "a unit that NIfTI does not define"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_is_no_volume_is_refused(tmp_path, numbers, ending, how, words, capfd):
    path = damaged(write(tmp_path / f"a{ending}", numbers), how)
    with pytest.raises(UnreadableScanError, match=words) as caught:
        read_nifti(path, named="case 7")
    assert str(caught.value).startswith("case 7: ")
    assert "\n" not in str(caught.value)
    assert "a.nii" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_gzip_file_is_held_against_its_checksum(tmp_path):
    rng = np.random.default_rng(0)
    path = write(tmp_path / "a.nii", rng.integers(0, 1000, (20, 20, 20), np.int16))
    raw = bytearray(gzip.compress(path.read_bytes(), compresslevel=0))  # stored, so that a changed byte inflates
    packed = tmp_path / "a.nii.gz"
    packed.write_bytes(bytes(raw))
    np.testing.assert_array_equal(read_nifti(packed).values, read_nifti(path).values)
    raw[9000] ^= 1
    packed.write_bytes(bytes(raw))
    with pytest.raises(UnreadableScanError, match="damaged, reading it ended in BadGzipFile"):
        read_nifti(packed)
    raw[9000] ^= 1
    packed.write_bytes(bytes(raw[:-6]))
    with pytest.raises(UnreadableScanError, match="damaged, reading it ended in EOFError"):
        read_nifti(packed)
    packed.write_bytes(gzip.compress(path.read_bytes() + b"more"))
    with pytest.raises(UnreadableScanError, match="more than the 16352 bytes promised"):
        read_nifti(packed)


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    values = np.ones((3, 3, 3), np.float32)
    values[0, 0, :2] = np.nan, np.inf
    with pytest.raises(UnreadableScanError, match="2 of 27 values are NaN or infinite"):
        read_nifti(write(tmp_path / "a.nii", values))


def test_other_files_are_refused(tmp_path, numbers):
    with pytest.raises(UnreadableScanError, match="no such file"):
        read_nifti(tmp_path / "b.nii")
    with pytest.raises(UnreadableScanError, match=r"ends in .nii or .nii.gz"):
        read_nifti(tmp_path / "b.mha")
    with pytest.raises(UnreadableScanError, match="it has 2 axes"):
        read_nifti(write(tmp_path / "a.nii", numbers[0]))

"""DICOM: the nine cases, what is refused, pydicom's own test files, units, windows, privacy."""

import os
import warnings
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from fakes_scans import PERSON, SIDE, SPACING, empty, enhanced, nine_cases, slice_of, uid, written
from pydicom.data.data_manager import DATA_ROOT
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    JPEGLossless,
    ParametricMapStorage,
    PositronEmissionTomographyImageStorage,
    RLELossless,
)

from geomed.io.dicom import open_series, read_dicom, read_series, series_in
from geomed.io.scan import UnreadableScanError
from geomed.io.voi import Voi, window
from geomed.io.volume_grid import oriented

FILES = Path(DATA_ROOT) / "test_files"
SERIES = Path(os.environ.get("GEOMED_REAL_DATA", "../shared/data")) / "medical" / "mr_t1_dicom_series"
CASES = (
    *("normal", "numbers shuffled", "no numbers", "gap", "duplicate", "two series", "MONOCHROME1"),
    *("rescale of each slice", "enhanced multi-frame"),
)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return {case.name: case for case in nine_cases(tmp_path_factory.mktemp("nine"))}


@pytest.mark.parametrize("name", CASES)
def test_nine_cases(cases, name):
    case = cases[name]
    if case.right is None:
        with pytest.raises(UnreadableScanError, match=case.words):
            read_series(case.files[0].parent)
        return
    scan = read_series(case.files[0].parent)
    assert scan.values.shape == (4, SIDE, SIDE)
    np.testing.assert_array_equal(scan.values, np.broadcast_to(case.right[:, None, None], scan.values.shape))
    assert scan.unit == ("grey" if name == "MONOCHROME1" else "HU")
    assert scan.spacing == pytest.approx((10, *SPACING))
    assert scan.orientation == "LPS"
    np.testing.assert_allclose(scan.affine @ [1, 2, 3, 1], [-4 + 3 * SPACING[1], -3 + 2 * SPACING[0], 10, 1])


def test_there_are_nine(cases):
    assert tuple(cases) == CASES


def highdicoms(series):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return highdicom.get_volume_from_series([pydicom.dcmread(path) for path in series])


@pytest.mark.parametrize("name", ["normal", "numbers shuffled", "rescale of each slice"])
def test_series_equal_highdicom(cases, name):
    volume, scan = highdicoms(cases[name].files), read_series(cases[name].files)
    if volume.affine[2, 0] < 0:  # it may start at the other end
        scan = oriented(scan, "LPI")
    np.testing.assert_allclose(volume.array, scan.values)
    np.testing.assert_allclose(volume.affine, scan.affine)


def test_an_enhanced_file_equals_highdicom(tmp_path):
    item = enhanced((20, 0, 30, 10))
    organisation = Dataset()
    organisation.DimensionOrganizationUID = uid("organisation")
    item.DimensionOrganizationSequence = [organisation]
    (path,) = written(tmp_path, [item])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        volume = highdicom.imread(path).get_volume()
    scan = read_dicom(path)
    scan = oriented(scan, "LPI") if volume.affine[2, 0] < 0 else scan
    np.testing.assert_allclose(volume.array, scan.values)
    np.testing.assert_allclose(volume.affine, scan.affine)


# what is refused


def odd(index, items, **elements):
    for keyword, value in elements.items():
        if value is None:
            delattr(items[index], keyword)
        else:
            setattr(items[index], keyword, value)
    return items


def four(**fields):
    return [slice_of(z, number=z, **fields) for z in (0, 10, 20, 30)]


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([slice_of(0)], "two slices at least"),
        (odd(1, four(), RescaleSlope=None, RescaleIntercept=None), "1 of 4 slices have no rescale, so this CT"),
        (odd(1, four(), RescaleSlope=None), "file 2 of 4: a rescale is a slope other than 0 and an intercept"),
        (odd(1, four(), RescaleSlope=0), "a slope other than 0"),
        (odd(1, four(), RescaleType="US"), "several units"),
        (four(RescaleType="US"), "an unspecified unit, not to HU"),
        (odd(3, four(), ImagePositionPatient=None), "1 of 4 slices say no position"),
        (odd(3, four(), PixelSpacing=None), "1 of 4 slices say no spacing"),
        (odd(3, four(), PixelSpacing=[0.5, 0.8]), r"several widths: 0.5 x 0.75 mm \(3\), 0.5 x 0.8 mm \(1\)"),
        (odd(3, four(), PixelSpacing=[0, 0.8]), "file 4 of 4: its pixels are 0 x 0.8 mm wide"),
        (odd(0, four(), ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "1 of 4 slices are turned otherwise"),
        (odd(0, four(), ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "not at right angles"),
        (odd(0, four(), ImageOrientationPatient=[1, 0, 0]), "ImageOrientationPatient has 3 numbers, not 6"),
        (odd(0, four(), FrameOfReferenceUID=uid("other")), "several coordinate systems"),
        (odd(2, four(), BitsStored=12, HighBit=11), r"differ in bits: 16 of 16 \(3\), 12 of 16 \(1\)"),
        (odd(2, four(), HighBit=14), "not the lowest ones"),
        (odd(2, four(), PixelRepresentation=0), r"differ in sign: signed \(3\), unsigned \(1\)"),
        (odd(2, four(), PhotometricInterpretation="MONOCHROME1"), "differ in photometric interpretation"),
        (odd(2, four(), PhotometricInterpretation="HSV"), "photometric interpretation is none of"),
        (odd(2, four(), Rows=8, Columns=32), r"differ in size: 16 x 16 \(3\), 8 x 32 \(1\)"),
        (odd(2, four(), Rows=17), "truncated: 512 bytes of pixels where 544"),
        (odd(2, four(), Rows=8), "512 bytes of pixels and promises 256"),
        (odd(2, four(), Modality="MR"), "differ in modality"),
        (odd(2, four(), Modality="SR"), "it is SR, which is no picture"),
        (odd(2, four(), Modality=""), "no modality"),
        (odd(2, four(), Modality="JANE"), "a modality that DICOM does not define"),
        (odd(2, four(), PresentationLUTShape="INVERSE"), "MONOCHROME2 and its presentation is INVERSE"),
        ([slice_of(z) for z in (0, 0, 10, 10, 20, 20)], "6 slices have 3 positions, all 3 positions hold 2"),
        ([slice_of(z) for z in (0, 10, 20, 40, 50, 80)], "at 1 more places: slices missing: 3;"),
        ([slice_of(z) for z in (0, 10, 20, 27)], "the spacing changes"),
        ([slice_of(z, ImagePositionPatient=[0, z / 5, z]) for z in (0, 10, 20)], "sheared"),
        (four(NumberOfFrames=0), "promises 0 x 16 x 16"),
        (four(NumberOfFrames=100_000_000), "47.7 GiB, more than 4"),
        (four(Rows=65535, Columns=65535, NumberOfFrames=12), "96.0 GiB, more than 4"),
        (four(PixelData=None), "no pixels"),
        (four(PixelPaddingValue=1024 + 10, PixelPaddingRangeLimit=-3000), None),
    ],
)
def test_what_is_no_volume_is_refused(tmp_path, items, words):
    files = written(tmp_path, items)
    if words is None:
        scan = read_series(files)
        assert scan.padded.mean(axis=(1, 2)).tolist() == [1, 1, 0, 0]
        assert set(scan.values.ravel()) == {20, 30}
        return
    with pytest.raises(UnreadableScanError, match=words) as caught:
        read_series(files, named="case 7")
    assert str(caught.value).startswith("case 7: ")
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_what_a_series_holds_besides_images(tmp_path):
    files = written(tmp_path, four())
    (tmp_path / "README.txt").write_text("not DICOM")
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    assert read_series(tmp_path).values.shape == (4, SIDE, SIDE)
    files[2].write_bytes(b"")
    with pytest.raises(UnreadableScanError, match=r"file 3 of 4: this is no DICOM file"):
        read_series(tmp_path)
    with pytest.raises(UnreadableScanError, match="no folder"):
        read_series(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnreadableScanError, match="no file of this folder is DICOM"):
        read_series(tmp_path / "empty")


def test_series_are_sorted_apart(cases):
    found = series_in(cases["two series"].files[0].parent)
    assert [len(series) for series in found] == [4, 2]
    np.testing.assert_array_equal(read_series(found[0]).values[:, 0, 0], [0, 10, 20, 30])


def test_a_volume_is_read_when_it_is_wanted(cases):
    volume = open_series(cases["normal"].files)
    assert volume.shape == (4, SIDE, SIDE)
    assert volume.spacing == pytest.approx((10, *SPACING))
    part = volume.read(slice(1, 3))
    np.testing.assert_array_equal(part.values[:, 0, 0], [10, 20])
    np.testing.assert_array_equal(part.affine @ [0, 0, 0, 1], volume.read().affine @ [1, 0, 0, 1])
    with pytest.raises(ValueError, match="step of 1"):
        volume.read(slice(None, None, 2))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.99])
@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "693_J2KI.dcm", "MR_small_RLE.dcm", "image_dfl.dcm", "examples_palette.dcm"]
)
def test_truncated_files_are_refused(tmp_path, name, share):
    whole = (FILES / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
    try:
        read_dicom(tmp_path / name)
    except UnreadableScanError:
        return
    assert share == 0.99  # JPEG 2000 codes the last bits of detail last, and other files end in padding
    assert name != "CT_small.dcm"


def test_there_is_no_such_file(tmp_path):
    with pytest.raises(UnreadableScanError, match="no such file"):
        read_dicom(tmp_path / "x.dcm")
    with pytest.raises(UnreadableScanError, match="this is a folder"):
        read_dicom(tmp_path)


# pydicom's own files


def read_or_told(path):
    try:
        return read_dicom(path), ""
    except UnreadableScanError as error:
        return None, str(error)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in sorted(FILES.glob("*.*"))])
def test_files_of_pydicom_give_values_or_one_line(path, capfd):
    scan, said = read_or_told(path)
    if scan is None:
        assert said.startswith(f"{path.name}: ")
        assert "\n" not in said
    else:
        assert scan.values.dtype in {np.dtype(kind) for kind in (np.uint8, np.uint16, np.int16, np.float32)}
        assert scan.values.ndim == (3 if scan.unit == "RGB" else 2)
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("error")
def test_folders_of_pydicom_give_values_or_one_line():
    read = 0
    for path in sorted(path for path in (FILES / "dicomdirtests").rglob("*") if path.is_file()):
        scan, said = read_or_told(path)
        assert "\n" not in said
        read += scan is not None
    assert read == 31


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "693_J2KI.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
    ],
)
def test_values_equal_pydicoms(name):
    item, scan = pydicom.dcmread(FILES / name), read_dicom(FILES / name)
    stored = item.pixel_array.astype(float)
    right = stored * float(item.get("RescaleSlope", 1)) + float(item.get("RescaleIntercept", 0))
    kept = np.ones(right.shape, bool) if scan.padded is None else ~scan.padded
    np.testing.assert_array_equal(scan.values[kept], right[kept])
    assert (scan.padded is not None) == (stored == item.get("PixelPaddingValue")).any()
    if scan.padded is not None:
        assert set(scan.values[scan.padded]) == {right[kept].min()}


@pytest.mark.parametrize(
    "name", ["SC_rgb_rle.dcm", "SC_ybr_full_422_uncompressed.dcm", "ExplVR_BigEnd.dcm", "examples_jpeg2k.dcm"]
)
def test_colours_become_rgb(name):
    scan = read_dicom(FILES / name)
    right = pydicom.pixels.pixel_array(FILES / name)
    assert (scan.unit, scan.bits) == ("RGB", 8)
    np.testing.assert_array_equal(scan.values, right)


def test_a_palette_becomes_rgb():
    item, scan = pydicom.dcmread(FILES / "examples_palette.dcm"), read_dicom(FILES / "examples_palette.dcm")
    right = pydicom.pixels.apply_color_lut(item.pixel_array, item)
    np.testing.assert_array_equal(scan.values, (right >> 8 if right.max() > 255 else right).astype(np.uint8))


def test_a_film_gives_one_frame():
    path = FILES / "examples_ybr_color.dcm"
    with pytest.raises(UnreadableScanError, match="30 frames that say no position; take one"):
        read_dicom(path)
    np.testing.assert_array_equal(read_dicom(path, frame=7).values, pydicom.pixels.pixel_array(path, index=7))
    with pytest.raises(UnreadableScanError, match="no frame 30"):
        read_dicom(path, frame=30)


def test_the_package_to_install_is_named(tmp_path):
    with pytest.raises(UnreadableScanError, match=r"lossless JPEG.*install pylibjpeg and pylibjpeg-libjpeg"):
        read_dicom(FILES / "SC_rgb_jpeg_gdcm.dcm")
    item = slice_of(0)
    item.file_meta.TransferSyntaxUID = JPEGLossless
    item.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    item["PixelData"].is_undefined_length = True
    with pytest.raises(UnreadableScanError, match="install pylibjpeg"):
        read_dicom(*written(tmp_path, [item]))


def test_a_modality_may_be_named():
    path = FILES / "JPEGLSNearLossless_08.dcm"
    with pytest.raises(UnreadableScanError, match="no modality"):
        read_dicom(path)
    assert read_dicom(path, modality="OT").values.shape == (45, 10)
    with pytest.raises(UnreadableScanError, match="says another modality"):
        read_dicom(FILES / "CT_small.dcm", modality="MR")
    with pytest.raises(UnreadableScanError, match="no rescale"):
        read_dicom(path, modality="CT")


# units


def single(tmp_path, item):
    (path,) = written(tmp_path, [item])
    return read_dicom(path)


def test_compressed_series_equal_plain_ones(tmp_path):
    rng = np.random.default_rng(0)
    items = [slice_of(z, rng.integers(0, 4000, (SIDE, SIDE), np.int16)) for z in (30, 0, 20, 10)]
    plain = read_series(written(tmp_path / "plain", items))
    for item in items:
        item.compress(RLELossless, generate_instance_uid=False)
    np.testing.assert_array_equal(read_series(written(tmp_path / "rle", items)).values, plain.values)
    mixed = [tmp_path / kind / f"{number:03d}.dcm" for number, kind in enumerate(("plain", "rle", "plain", "rle"))]
    np.testing.assert_array_equal(read_series(mixed).values, plain.values)


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_other_orders_of_bytes(tmp_path, syntax):
    stored = np.arange(SIDE * SIDE, dtype=np.int16).reshape(SIDE, SIDE)
    item = slice_of(0, stored, PixelPaddingValue=5)
    item.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        item.PixelData = stored.astype(">i2").tobytes()
    path = tmp_path / "one.dcm"
    pydicom.dcmwrite(path, item, enforce_file_format=True)
    scan = read_dicom(path)
    assert scan.padded.sum() == 1
    np.testing.assert_array_equal(scan.values[~scan.padded], stored[~scan.padded] - 1024)


def test_a_deflated_file_may_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr("geomed.io.dicom_header.LARGEST_BYTES", 1 << 16)
    with pytest.raises(UnreadableScanError, match="inflates to more than"):
        read_dicom(FILES / "image_dfl.dcm")


def test_bits_above_the_stored_ones_are_not_read(tmp_path):
    stored = np.full((SIDE, SIDE), 0xF000 + 100, np.uint16)
    assert set(single(tmp_path, slice_of(0, stored, BitsStored=12)).values.ravel()) == {100 - 1024}
    signed = np.full((SIDE, SIDE), 0x0FFF, np.int16)  # -1 in 12 bits
    assert set(single(tmp_path, slice_of(0, signed, BitsStored=12)).values.ravel()) == {-1 - 1024}


def test_values_that_leave_16_bits_become_real_numbers(tmp_path):
    stored = np.full((SIDE, SIDE), 65535, np.uint16)
    scan = single(tmp_path, slice_of(0, stored))
    assert scan.values.dtype == np.float32
    assert set(scan.values.ravel()) == {65535 - 1024}
    low = np.full((SIDE, SIDE), 7, np.uint16)
    assert single(tmp_path, slice_of(0, low)).values.dtype == np.int16
    assert single(tmp_path, slice_of(0, low, RescaleIntercept=-0.5)).values[0, 0] == pytest.approx(6.5)


def test_padding_with_the_wrong_sign(tmp_path):
    stored = np.full((SIDE, SIDE), 50, np.int16)
    stored[0] = -2000
    item = slice_of(0, stored)
    item.add_new("PixelPaddingValue", "US", 65536 - 2000)
    scan = single(tmp_path, item)
    assert scan.padded.sum() == SIDE
    assert set(scan.values.ravel()) == {50 - 1024}
    stored[:] = -2000
    with pytest.raises(UnreadableScanError, match="all of its pixels are padding"):
        single(tmp_path, slice_of(0, stored, PixelPaddingValue=-2000))


def test_hounsfield_units_are_not_mirrored(tmp_path):
    scan = single(tmp_path, slice_of(40, PhotometricInterpretation="MONOCHROME1"))
    assert (scan.unit, scan.mirror, scan.photometric) == ("HU", None, "MONOCHROME1")
    assert set(scan.values.ravel()) == {40}


def test_pet_is_in_what_it_says(tmp_path):
    item = slice_of(0, modality="PT", Units="BQML", RescaleSlope=2.5, RescaleIntercept=0)
    item.SOPClassUID = item.file_meta.MediaStorageSOPClassUID = PositronEmissionTomographyImageStorage
    scan = single(tmp_path, item)
    assert scan.unit == "BQML"
    assert scan.values[0, 0] == pytest.approx(2560)


def test_floating_point_pixels(tmp_path):
    item = slice_of(0, modality="MR", PixelData=None, BitsAllocated=32, BitsStored=None, HighBit=None)
    item.SOPClassUID = item.file_meta.MediaStorageSOPClassUID = ParametricMapStorage
    values = np.linspace(0, 1, SIDE * SIDE, dtype=np.float32)
    item.FloatPixelData = values.tobytes()
    np.testing.assert_array_equal(single(tmp_path, item).values.ravel(), values)
    values[3] = np.nan
    item.FloatPixelData = values.tobytes()
    with pytest.raises(UnreadableScanError, match="1 of 256 values are not finite"):
        single(tmp_path, item)


def test_a_table_of_units(tmp_path):
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4, 10, 16], "OD"
    table.LUTData = np.array([5, 6, 9, 60000], np.uint16).tobytes()
    table["LUTData"].VR = "OW"
    stored = np.full((SIDE, SIDE), 12, np.uint16)
    stored[0, :3] = 0, 10, 999
    item = slice_of(0, stored, modality="MR", ModalityLUTSequence=[table])
    item["ModalityLUTSequence"][0]["LUTDescriptor"].VR = "US"
    scan = single(tmp_path, item)
    assert scan.unit == "grey"
    assert scan.values[0, :4].tolist() == [5, 5, 60000, 9]
    with pytest.raises(UnreadableScanError, match="in several files"):
        read_series(written(tmp_path / "two", [slice_of(10, stored, modality="MR"), item]))
    ct = slice_of(0, stored, ModalityLUTSequence=[table])
    with pytest.raises(UnreadableScanError, match="a table of units besides a rescale"):
        single(tmp_path, ct)
    del ct.RescaleSlope, ct.RescaleIntercept, ct.RescaleType
    with pytest.raises(UnreadableScanError, match="a CT whose table of units does not lead to HU"):
        single(tmp_path, ct)


# windows


def test_windows_are_dicoms(tmp_path):
    stored = np.arange(SIDE * SIDE, dtype=np.int16).reshape(SIDE, SIDE) + 900
    for function in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        item = slice_of(0, stored, WindowCenter=[20, 0], WindowWidth=[101, 5], VOILUTFunction=function)
        item.WindowCenterWidthExplanation = ["BONE", "DOE JANE"]
        scan = single(tmp_path, item)
        assert [voi.name for voi in scan.windows] == ["BONE", ""]
        item.BitsStored, item.HighBit = 16, 15
        right = pydicom.pixels.apply_windowing(stored - 1024.0, _without_rescale(item))
        low, high = (0, 2**16 - 1)
        for which in ("file", "file: BONE", scan.windows[0]):
            got = window(scan, which)
            # pydicom stretches to the range of the stored bits, which are signed here
            np.testing.assert_allclose(got, (right + 2**15 - low) / (high - low), atol=2e-5)
        assert window(scan, "file", dtype=np.uint8).dtype == np.uint8


def _without_rescale(item):
    kept = Dataset()
    kept.update(item)
    del kept.RescaleSlope, kept.RescaleIntercept, kept.RescaleType
    return kept


def test_named_windows_are_of_hu(tmp_path):
    stored = np.array([[-1350, -600, 150, 1000]] * SIDE, np.int16) + 1024
    scan = single(tmp_path, slice_of(0, stored))
    np.testing.assert_allclose(window(scan, "lung")[0], [0, 0.5, 1, 1])
    np.testing.assert_array_equal(window(scan, (-600, 1500), dtype=np.uint8)[0], [0, 128, 255, 255])
    np.testing.assert_allclose(window(scan, "full")[0], [0, 750 / 2350, 1500 / 2350, 1], atol=1e-6)
    for words, which in (("there is no window", "lungs"), ("proposes 0 windows", "file")):
        with pytest.raises(ValueError, match=words):
            window(scan, which)
    with pytest.raises(ValueError, match="the values are grey"):
        window(single(tmp_path, slice_of(0, modality="MR")), "lung")
    with pytest.raises(ValueError, match="all values are about"):
        window(single(tmp_path, slice_of(0)), "robust")
    with pytest.raises(ValueError, match="float32 or uint8"):
        window(scan, "lung", dtype=np.int16)
    with pytest.raises(ValueError, match="finite centre"):
        window(scan, (0, 0))


@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_looking_up_equals_computing(kind):
    rng = np.random.default_rng(1)
    scan = read_dicom(FILES / "CT_small.dcm")
    values = rng.integers(-2000, 3000, (300, 300)).astype(np.int16)
    got = window(replace(scan, values=values.astype(kind), padded=None), "lung", dtype=np.uint8)
    np.testing.assert_array_equal(got, np.rint(Voi(centre=-600, width=1500).brightness(values) * 255))


def test_windows_of_mirrored_pictures_are_mirrored(tmp_path):
    stored = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) * 16
    item = slice_of(
        *(0, stored),
        modality="DX",
        PhotometricInterpretation="MONOCHROME1",
        PresentationLUTShape="INVERSE",
        BitsStored=12,
        WindowCenter=1000,
        WindowWidth=500,
    )
    item.SOPClassUID = item.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    scan = single(tmp_path, item)
    np.testing.assert_array_equal(scan.values, 4095 - stored)
    right = 1 - Voi(centre=1000, width=500, function="LINEAR").brightness(stored)
    np.testing.assert_allclose(window(scan, "file"), right, atol=1e-6)


def test_a_table_of_brightness(tmp_path):
    table = Dataset()
    table.LUTDescriptor, table.LUTExplanation = [4, 1034, 8], "DOE^JANE"
    table.LUTData = np.array([0, 51, 102, 255], np.uint16).tobytes()
    table["LUTData"].VR = "OW"
    stored = np.array([[0, 1034, 1035, 1036, 1037, 3000]] * SIDE, np.int16)
    item = slice_of(0, stored, VOILUTSequence=[table], RescaleIntercept=0)
    item["VOILUTSequence"][0]["LUTDescriptor"].VR = "SS"
    scan = single(tmp_path, item)
    assert scan.windows[0].name == ""
    np.testing.assert_allclose(window(scan, "file")[0], [0, 0, 0.2, 0.4, 1, 1], atol=1e-6)


def test_a_window_that_changes_is_none_of_the_volume(tmp_path):
    scan = read_series(written(tmp_path, [slice_of(z, WindowCenter=z, WindowWidth=9) for z in (0, 10, 20)]))
    assert scan.windows == ()


# privacy


def test_nothing_that_names_a_person_leaves_the_reader(tmp_path, caplog):
    items = four(WindowCenter=4, WindowWidth=9, WindowCenterWidthExplanation="DOE^JANE")
    odd(3, items, ImagePositionPatient=[0, 0, 99])
    folder = tmp_path / "SECRET-123"
    files = written(folder, items)
    said = [repr(read_dicom(files[0])), repr(open_series(files[:3]))]
    for give in (folder, files):
        with pytest.raises(UnreadableScanError) as caught:
            read_series(give, named="4f2a")
        said.append(str(caught.value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom does not like to write it either
        items[0].Modality = "DOE^JANE"
        written(folder, items[:1])
    caplog.clear()
    with pytest.raises(UnreadableScanError) as caught:
        read_dicom(files[0], named="4f2a")
    said += [str(caught.value), caplog.text]
    for secret in (*PERSON.values(), "JANE", str(uid("series", "one")), str(tmp_path), "000.dcm"):
        assert not [words for words in said if secret in words]


@pytest.mark.real
@pytest.mark.skipif(not SERIES.is_dir(), reason=f"no {SERIES}: name the parent of medical in GEOMED_REAL_DATA")
def test_a_real_oblique_series_equals_highdicom():
    scan = read_series(SERIES)
    assert scan.values.shape == (40, 384, 274)
    assert (scan.unit, scan.modality, scan.orientation) == ("grey", "MR", "LPS")
    assert scan.spacing == pytest.approx((0.6667, 0.6667, 0.7), abs=1e-4)
    volume = highdicoms(sorted(SERIES.glob("*.dcm")))
    turned = scan if volume.affine[:3, 0] @ scan.affine[:3, 0] > 0 else None
    values = scan.values if turned is not None else scan.values[::-1]
    np.testing.assert_array_equal(volume.array, values)
    start = scan.affine @ [0 if turned is not None else 39, 0, 0, 1]
    np.testing.assert_allclose(volume.affine[:, 3], start, atol=1e-3)
    with pytest.raises(UnreadableScanError, match="slices missing: 1;"):
        read_series(sorted(SERIES.glob("*.dcm"))[:10] + sorted(SERIES.glob("*.dcm"))[11:])


def test_an_item_without_pixels_is_no_picture(tmp_path):
    with pytest.raises(UnreadableScanError, match="no pixels"):
        read_dicom(*written(tmp_path, [empty(ParametricMapStorage)]))

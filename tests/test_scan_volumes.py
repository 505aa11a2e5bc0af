"""Volumes become slices for backbones of images."""

import numpy as np
import pytest
import torch
from fake_cohorts import HEADER, Made, nifti, volume
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from geomed.data.rendition import Rendition
from geomed.data.scan_cache import ScanCache
from geomed.data.scan_files import Reading
from geomed.data.source import collate
from geomed.evaluation.patient_splits import AllIn


@pytest.fixture
def made(tmp_path):
    return Made(tmp_path)


def volumes(made, **given):
    for index, row in enumerate(made.rows):
        row[0] = f"images/DOE_JANE_{index}.nii.gz"
        if not (made.folder / row[0]).exists():
            nifti(made.folder / row[0], volume(index, 10 + index % 3))
    usual = {
        "reading": Reading(unit="HU", orientation="LPS"),
        "rendition": Rendition(size=24, slices=4, window=(50.0, 100.0)),
    }
    return made.source(**usual | given)


def test_volumes_become_slices_at_equal_distances_in_a_window(made, tmp_path):
    source = volumes(made, by=AllIn(), cache=ScanCache(folder=str(tmp_path / "cache")))
    sample = source.split("test")[0]
    assert sample["slices"].shape == (4, 1, 24, 24)
    assert sample["slices"].dtype == torch.uint8
    assert sample["present"].tolist() == [True] * 4
    # of ten slices those in the middle of four equal parts: 1, 3, 6, 8, of 10, 30, 60, 80 HU in a window from 0 to 100
    assert [int(one[0, 12, 12]) for one in sample["slices"]] == [round(hu * 2.55) for hu in (10, 30, 60, 80)]


def test_all_slices_are_padded_in_a_batch_and_marked(made):
    source = volumes(made, by=AllIn(), rendition=Rendition(size=8, window=(0.0, 2000.0)))
    samples = source.split("test")
    batch = collate([samples[0], samples[2]])
    assert batch["slices"].shape == (2, 12, 1, 8, 8)
    assert batch["present"].sum(dim=1).tolist() == [10, 12]
    assert batch["slices"][0, 10:].eq(0).all()


def test_16_bits_keep_hounsfield_units(made):
    source = volumes(made, by=AllIn(), rendition=Rendition(size=24, depth=16))
    sample = source.split("test")[0]
    assert sample["slices"].dtype == torch.float32
    assert sample["slices"][3, 0, 12, 12] == 30
    assert sample["slices"].min() < -500


def test_volumes_stored_in_several_directions_are_refused_or_turned(made):
    nifti(made.folder / "images/DOE_JANE_3.nii.gz", volume(3), turned=True)
    source = volumes(made, reading=Reading(unit="HU"))
    with pytest.raises(ValueError, match="1 of 24 scans are turned otherwise than most"):
        source.prepare()
    volumes(made).prepare()


def test_volumes_with_nan_and_volumes_among_pictures_are_refused(made):
    values = volume(0).astype(np.float32)
    values[2, 3, 4] = np.nan
    volumes(made)
    nifti(made.folder / "images/DOE_JANE_0.nii.gz", values)
    with pytest.raises(ValueError, match=r"1 of 24 scans cannot be used.*\n.*finite"):
        volumes(made).prepare()
    nifti(made.folder / "images/DOE_JANE_0.nii.gz", volume(0))
    source = volumes(made, rendition=Rendition(size=24, slices=4, window="full"))
    made.rows[5][0] = "images/DOE_JANE_5.png"
    (made.folder / "table.csv").write_text("\n".join(",".join(row) for row in [HEADER, *made.rows]))
    with pytest.raises(ValueError, match="23 of 24 scans are volumes, the others pictures"):
        source.prepare()


def test_a_folder_is_one_dicom_series(made):
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for index, row in enumerate(made.rows[:4]):
        row[0] = f"series/DOE_JANE_{index}"
        folder = made.folder / row[0]
        folder.mkdir(parents=True)
        values = volume(index, 5)
        for number in range(5):
            item = Dataset()
            item.file_meta = FileMetaDataset()
            item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            item.SOPClassUID = item.file_meta.MediaStorageSOPClassUID = CTImageStorage
            item.SOPInstanceUID = item.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            item.StudyInstanceUID, item.SeriesInstanceUID, item.FrameOfReferenceUID = study, series, frame
            item.PatientName, item.PatientID, item.Modality = "DOE^JANE", "SECRET-123", "CT"
            item.Rows, item.Columns = 20, 24
            item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
            item.BitsAllocated = item.BitsStored = 16
            item.HighBit, item.PixelRepresentation = 15, 1
            item.RescaleSlope, item.RescaleIntercept = "1", "0"
            item.PixelSpacing, item.ImageOrientationPatient = ["1", "1"], ["1", "0", "0", "0", "1", "0"]
            item.ImagePositionPatient = ["0", "0", str(2 * number)]
            item.PixelData = values[number].tobytes()
            item.save_as(folder / f"{9 - number}.dcm", enforce_file_format=True)
    made.rows = made.rows[:4]
    source = made.source(by=AllIn(), rendition=Rendition(size=24, window=(50.0, 100.0)))
    slices = source.split("test")[0]["slices"]
    assert [int(one[0, 12, 12]) for one in slices] == [round(hu * 2.55) for hu in (0, 10, 20, 30, 40)]
    (made.folder / made.rows[1][0] / "7.dcm").unlink()
    made.refused("1 of 4 scans cannot be used", by=AllIn(), rendition=Rendition(size=24, window=(50.0, 100.0)))

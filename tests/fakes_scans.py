"""Tiny DICOM look-alikes: slices of 16 x 16 whose values are their height in mm, and nine cases for readers of series.

`nine_cases` gives each with its right answer; they are those in which some readers are wrong without a word.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

SIDE, SPACING, STEP = 16, (0.5, 0.75), 10.0
PERSON = {"PatientName": "DOE^JANE", "PatientID": "SECRET-123", "PatientBirthDate": "19701224", "StudyDate": "20010203"}


def uid(*names):
    """The same for the same names."""
    return generate_uid(entropy_srcs=[str(name) for name in names])


def empty(sop_class, *, series="one", syntax=ExplicitVRLittleEndian):
    """A data set without pixels, of a person whose name must show up nowhere."""
    item = Dataset()
    item.file_meta = FileMetaDataset()
    item.file_meta.TransferSyntaxUID = syntax
    item.SOPClassUID = item.file_meta.MediaStorageSOPClassUID = sop_class
    item.SOPInstanceUID = item.file_meta.MediaStorageSOPInstanceUID = uid("instance", series)
    item.SeriesInstanceUID = uid("series", series)
    item.FrameOfReferenceUID, item.StudyInstanceUID = uid("frame"), uid("study")
    for keyword, value in PERSON.items():
        setattr(item, keyword, value)
    return item


def slice_of(z, values=None, *, number=None, modality="CT", series="one", **elements):
    """One slice at height ``z``; its stored numbers are ``values``, or ``z`` + 1024 everywhere.

    ``elements`` are set last; None takes an element away.
    """
    item = empty(CTImageStorage if modality == "CT" else MRImageStorage, series=series)
    stored = np.full((SIDE, SIDE), z + 1024, np.int16) if values is None else np.asarray(values)
    item.SOPInstanceUID = item.file_meta.MediaStorageSOPInstanceUID = uid("slice", series, z, number)
    item.Modality = modality
    item.ImagePositionPatient = [-4, -3, z]
    item.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    item.PixelSpacing = list(SPACING)
    item.PatientPosition = "HFS"
    item.SliceThickness = STEP
    item.Rows, item.Columns = stored.shape[:2]
    item.SamplesPerPixel = 1
    item.PhotometricInterpretation = "MONOCHROME2"
    item.BitsAllocated = item.BitsStored = stored.dtype.itemsize * 8
    item.HighBit = item.BitsStored - 1
    item.PixelRepresentation = int(stored.dtype.kind == "i")
    item.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    if modality == "CT":
        item.RescaleSlope, item.RescaleIntercept, item.RescaleType = 1, -1024, "HU"
    if number is not None:
        item.InstanceNumber = number
    for keyword, value in elements.items():
        if value is None:
            delattr(item, keyword)
        else:
            setattr(item, keyword, value)
    if "BitsStored" in elements and "HighBit" not in elements:
        item.HighBit = item.BitsStored - 1
    return item


def written(folder, items):
    """Files of data sets, named by their turn."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, item in enumerate(items):
        path = folder / f"{number:03d}.dcm"
        item.save_as(path, enforce_file_format=True)
        paths.append(path)
    return tuple(paths)


def enhanced(heights, *, slope=2, intercept=-1000):
    """A multi-frame CT whose rescale is said once and whose positions are said by frame; HU are the heights."""
    item = empty(EnhancedCTImageStorage)
    item.SOPInstanceUID = item.file_meta.MediaStorageSOPInstanceUID = uid("enhanced")
    item.Modality = "CT"
    item.Rows = item.Columns = SIDE
    item.NumberOfFrames = len(heights)
    item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
    item.BitsAllocated, item.BitsStored, item.HighBit, item.PixelRepresentation = 16, 16, 15, 0
    measures, turn, units = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = list(SPACING), STEP
    turn.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    units.RescaleSlope, units.RescaleIntercept, units.RescaleType = slope, intercept, "HU"
    shared = Dataset()
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([turn])
    shared.PixelValueTransformationSequence = Sequence([units])
    item.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for z in heights:
        place, frame = Dataset(), Dataset()
        place.ImagePositionPatient = [-4, -3, z]
        frame.PlanePositionSequence = Sequence([place])
        frames.append(frame)
    item.PerFrameFunctionalGroupsSequence = Sequence(frames)
    stored = [np.full((SIDE, SIDE), (z - intercept) / slope, np.uint16) for z in heights]
    item.PixelData = np.stack(stored).tobytes()
    return item


@dataclass(frozen=True, kw_only=True)
class Case:
    """A series and what a reader has to say to it."""

    name: str
    """What is odd about it."""

    files: tuple[Path, ...]
    """In a folder of their own."""

    right: np.ndarray | None
    """Value of each slice, from the lowest: all pixels of one are alike; None: it must be refused."""

    words: str = ""
    """What the refusal has to say, as a pattern."""


def nine_cases(folder):
    """The nine cases, written below a folder: right is the height in mm, 10 mm apart."""
    heights = (0, 10, 20, 30)
    right = np.array(heights, dtype=float)
    each = {
        "normal": [slice_of(z, number=n) for n, z in enumerate(heights)],
        "numbers shuffled": [slice_of(z, number=n) for n, z in zip((2, 0, 3, 1), heights, strict=True)],
        "no numbers": [slice_of(z) for z in (20, 0, 30, 10)],
        "gap": [slice_of(z, number=n) for n, z in enumerate((0, 10, 30, 40))],
        "duplicate": [slice_of(z, number=n) for n, z in enumerate((0, 10, 10, 20))],
        "two series": [
            *(slice_of(z, number=n) for n, z in enumerate(heights)),
            *(
                slice_of(z, np.full((SIDE, SIDE), 1123, np.int16), number=n, series="two")
                for n, z in enumerate((0, 10))
            ),
        ],
        "MONOCHROME1": [
            slice_of(
                *(z, np.full((SIDE, SIDE), 4095 - z, np.uint16)),
                number=n,
                modality="MR",
                PhotometricInterpretation="MONOCHROME1",
                BitsStored=12,
            )
            for n, z in enumerate(heights)
        ],
        "rescale of each slice": [
            slice_of(
                z, np.full((SIDE, SIDE), 10, np.int16), number=n, RescaleSlope=n + 1, RescaleIntercept=z - 10 * n - 10
            )
            for n, z in enumerate(heights)
        ],
        "enhanced multi-frame": [enhanced((20, 0, 30, 10))],
    }
    refused = {"gap": "slices missing: 1;", "duplicate": "3 positions", "two series": r"2 series, 4, 2"}
    return tuple(
        Case(
            name=name,
            files=written(Path(folder) / name.replace(" ", "_"), items),
            right=None if name in refused else right,
            words=refused.get(name, ""),
        )
        for name, items in each.items()
    )

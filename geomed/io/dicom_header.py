"""What is taken out of a DICOM file: geometry, units, windows and how pixels are stored. The rest never leaves here."""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from geomed.io.dicom_elements import count_of, numbers_of, one_of, sequence_of, tables_of, tag_of, word_of
from geomed.io.dicom_frames import frames_of
from geomed.io.scan import LARGEST_BYTES, UnreadableScanError, refuse_large

if TYPE_CHECKING:
    from pathlib import Path

    from pydicom.dataset import Dataset

    from geomed.io.dicom_frames import Frame
    from geomed.io.voi import VoiTable

_ALLOWED = (
    *("SOPClassUID", "Modality", "SeriesInstanceUID", "FrameOfReferenceUID", "Units", "PresentationLUTShape"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "VOILUTFunction", "VOILUTSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
_PICTURES = frozenset(
    {
        *("BI", "CR", "CT", "DG", "DM", "DMS", "DX", "ECHO", "ES", "GM", "HC", "IO", "IVOCT", "IVUS", "LS", "MG", "MR"),
        *("NM", "OP", "OPM", "OPT", "OPTBSV", "OPTENF", "OT", "PT", "PX", "RF", "RG", "SM", "TG", "US", "XA", "XC"),
    }
)
_OTHERS = frozenset(
    {
        *("AR", "ASMT", "AU", "DOC", "ECG", "EEG", "EMG", "EPS", "FID", "HD", "KER", "KO", "LEN", "M3D", "OAM", "OSS"),
        *(
            "PLAN",
            "POS",
            "PR",
            "REG",
            "RESP",
            "RTDOSE",
            "RTIMAGE",
            "RTPLAN",
            "RTRECORD",
            "RTSTRUCT",
            "RWV",
            "SEG",
            "SMR",
        ),
        *("SR", "SRF", "STAIN", "TEXTUREMAP"),
    }
)
GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
_CT = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{end}"
    for end in ("2", "2.1", "2.2")  # classic, enhanced, converted to enhanced
)
_PET_UNITS = frozenset({"BQML", "CNTS", "CPS", "GML", "PROPCNTS", "PROPCPS"})
_DEFLATED = "1.2.840.10008.1.2.1.99"
_NATIVE = {"1.2.840.10008.1.2": "<", "1.2.840.10008.1.2.1": "<", "1.2.840.10008.1.2.2": ">", _DEFLATED: ""}
_UNDEFINED = 0xFFFFFFFF


@dataclass(frozen=True, kw_only=True)
class Header:
    """One file."""

    path: Path
    """The file."""

    series: str = field(repr=False)
    """What tells it from another series; it is compared, and never shown."""

    frame_of_reference: str = field(repr=False)
    """The same of coordinate systems."""

    modality: str
    """One of those that make pictures."""

    hounsfield: bool
    """It is a CT, whose values mean nothing without a rescale."""

    photometric: str
    """Photometric interpretation."""

    size: tuple[int, int]
    """Rows, columns."""

    samples: int
    """1, or 3 of colours that are stored as such."""

    allocated: int
    """Bits from one number to the next."""

    stored: int
    """Bits that are used."""

    signed: bool
    """Two's complement."""

    padding: tuple[int, int] | None
    """Lowest and highest stored number that mean "no observation"."""

    units: str
    """What PET counts in."""

    table: VoiTable | None
    """From stored numbers to the unit, in place of a rescale."""

    table_type: str
    """Unit of it."""

    floating: bool
    """Its pixels are floating-point numbers."""

    order: str
    """"<" or ">" of uncompressed pixels, "" where pydicom has to find them."""

    syntax: str = field(repr=False)
    """Transfer syntax."""

    offset: int
    """Byte where uncompressed pixels begin."""

    length: int | None
    """Their number of bytes; None: compressed."""

    frames: tuple[Frame, ...]
    """Its slices or pictures, in the order of the file."""

    @property
    def colours(self) -> bool:
        """It becomes RGB."""
        return self.photometric not in GREY

    @property
    def layout(self) -> tuple[object, ...]:
        """What must be the same in all files of a volume, and how to call it, in turns."""
        return (
            *("size", f"{self.size[0]} x {self.size[1]}", "bits", f"{self.stored} of {self.allocated}"),
            *("sign", "signed" if self.signed else "unsigned", "photometric interpretation", self.photometric),
            *("modality", self.modality, "unit", self.units or "as said"),
            *("kind of numbers", "real" if self.floating else "whole"),
        )


Pick: TypeAlias = tuple[Header, int]
"""A file and the number of one of its frames."""


def read_header(path: Path, modality: str | None) -> Header:
    """Read what is allowed, and check what concerns one file alone.

    Raises:
        UnreadableScanError: it is no DICOM image, or one that cannot be understood.
    """
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    with path.open("rb") as file:
        try:
            item = dcmread(file, stop_before_pixels=True, specific_tags=[tag_of(keyword) for keyword in _ALLOWED])
        except InvalidDicomError:
            raise UnreadableScanError(
                "this is no DICOM file: the letters DICM are not at byte 128; give another"
            ) from None
        syntax = str(item.file_meta.get("TransferSyntaxUID") or "")
        if not syntax:
            raise UnreadableScanError(
                "it says no transfer syntax, so nobody knows how to read its pixels; export it anew"
            )
        if syntax == _DEFLATED:
            _refuse_bomb(file)
            pixels = _Pixels(offset=0, length=None, floating=False)
        else:
            pixels = _pixels_at(file, syntax)
    return _header(item, path, syntax, pixels, modality)


def is_document(path: Path) -> bool:
    """Whether a DICOM file says that it is no picture: a report, a plan, a segmentation, a presentation state."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        item = dcmread(path, stop_before_pixels=True, specific_tags=[tag_of("Modality")])
    except InvalidDicomError:
        return False
    return word_of(item, "Modality") in _OTHERS


@dataclass(frozen=True, kw_only=True)
class _Pixels:
    """Where the pixels stand in the file."""

    offset: int
    """First byte."""

    length: int | None
    """Number of bytes; None: not said, since they are compressed or deflated."""

    floating: bool
    """They are floating-point numbers."""


def _pixels_at(file: BinaryIO, syntax: str) -> _Pixels:
    """Where the pixels are, whose element is the next one in the file."""
    order = _NATIVE.get(syntax) or "<"
    head = file.read(12)
    if len(head) < 12 or struct.unpack(order + "HH", head[:4]) not in {(0x7FE0, end) for end in (8, 9, 0x10)}:
        raise UnreadableScanError("it holds no pixels: it is another kind of document, or cut off before them")
    floating = struct.unpack(order + "HH", head[:4])[1] != 0x10
    if syntax == "1.2.840.10008.1.2":  # implicit: no letters for the type
        return _Pixels(offset=file.tell() - 4, length=struct.unpack("<I", head[4:8])[0], floating=floating)
    (length,) = struct.unpack(order + "I", head[8:])
    return _Pixels(offset=file.tell(), length=None if length == _UNDEFINED else length, floating=floating)


def _refuse_bomb(file: BinaryIO) -> None:
    """Refuse a deflated file that would fill the memory, without inflating all of it at once."""
    file.seek(132 + 8)
    tag = file.read(4)  # the group length of the head that is not deflated
    file.seek(132 + 12 + struct.unpack("<I", tag)[0])
    inflate, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    waiting = file.read(1 << 20)
    while waiting and not inflate.eof:
        total += len(inflate.decompress(waiting, 1 << 24))
        if total > LARGEST_BYTES:
            raise UnreadableScanError(f"it inflates to more than {LARGEST_BYTES >> 30} GiB; cut or shrink it before")
        waiting = inflate.unconsumed_tail or file.read(1 << 20)


def _header(item: Dataset, path: Path, syntax: str, pixels: _Pixels, modality: str | None) -> Header:
    """The facts, each of them checked."""
    samples, allocated = count_of(item, "SamplesPerPixel", 1), count_of(item, "BitsAllocated")
    stored = count_of(item, "BitsStored", allocated)
    size = count_of(item, "Rows"), count_of(item, "Columns")
    photometric = word_of(item, "PhotometricInterpretation")
    _refuse_layout(samples, allocated, stored, photometric)
    if allocated == 64 and not pixels.floating:
        raise UnreadableScanError("its pixels are whole numbers of 64 bits; convert it before")
    _refuse_promise(item, path, syntax, pixels)
    if count_of(item, "HighBit", stored - 1) != stored - 1:
        raise UnreadableScanError(f"its pixels use {stored} bits but not the lowest ones; convert it before")
    shape = word_of(item, "PresentationLUTShape")
    if shape in {"IDENTITY", "INVERSE"} and photometric in GREY and (shape == "INVERSE") != (photometric == GREY[0]):
        raise UnreadableScanError(
            f"it is {photometric} and its presentation is {shape}: one of them inverts it and the other does not; "
            "correct the wrong one in the file"
        )
    signed = count_of(item, "PixelRepresentation", 0) == 1
    modality = _modality(item, modality)
    lut, table_type = tables_of(item, "ModalityLUTSequence", signed=signed), ""
    if lut:
        table_type = word_of(sequence_of(item, "ModalityLUTSequence")[0], "ModalityLUTType")
    return Header(
        path=path,
        series=word_of(item, "SeriesInstanceUID"),
        frame_of_reference=word_of(item, "FrameOfReferenceUID"),
        modality=modality,
        hounsfield=modality == "CT" or word_of(item, "SOPClassUID") in _CT,
        photometric=photometric,
        size=size,
        samples=samples,
        allocated=allocated,
        stored=stored,
        signed=signed,
        padding=_padding(item, allocated, signed=signed),
        units=one_of(word_of(item, "Units"), _PET_UNITS) if modality == "PT" else "",
        table=lut[0] if lut else None,
        table_type=table_type,
        order=_NATIVE.get(syntax, ""),
        syntax=syntax,
        offset=pixels.offset,
        length=pixels.length,
        floating=pixels.floating,
        frames=frames_of(item, signed=signed),
    )


def _refuse_layout(samples: int, allocated: int, stored: int, photometric: str) -> None:
    """Refuse pixels that are neither grey nor coloured ones as they are usual."""
    if photometric not in (*GREY, *_COLOURS):
        known = ", ".join((*GREY, *_COLOURS))
        raise UnreadableScanError(f"its photometric interpretation is none of {known}; convert it before")
    if samples != (3 if photometric in _COLOURS[:-1] else 1):
        raise UnreadableScanError(
            f"{photometric} and {samples} samples for a pixel contradict each other; correct the file"
        )
    if allocated not in {8, 16, 32, 64} or not 1 <= stored <= allocated:
        raise UnreadableScanError(
            f"its pixels use {stored} of {allocated} bits, not 8, 16, 32 or 64; convert it before"
        )
    if photometric in _COLOURS and allocated > 16:
        raise UnreadableScanError(f"its colours have {allocated} bits, more than 16; convert it before")


def _refuse_promise(item: Dataset, path: Path, syntax: str, pixels: _Pixels) -> None:
    """Refuse more pixels than memory or the file holds, or fewer than it does, before anything is made of them."""
    frames, rows, columns = count_of(item, "NumberOfFrames", 1), count_of(item, "Rows"), count_of(item, "Columns")
    shape, allocated = (frames, rows, columns, count_of(item, "SamplesPerPixel", 1)), count_of(item, "BitsAllocated")
    refuse_large(shape, allocated // 8)
    size = path.stat().st_size
    if shape[0] > size:
        raise UnreadableScanError(f"it promises {shape[0]} frames in {size} bytes; fetch it anew")
    if pixels.length is None or syntax not in _NATIVE:
        return
    frame = math.prod(shape[1:]) * allocated // 8
    if word_of(item, "PhotometricInterpretation") == "YBR_FULL_422":
        frame = frame // 3 * 2
    needed, there = frame * shape[0], min(pixels.length, size - pixels.offset)
    if there < needed:
        raise UnreadableScanError(
            f"it is truncated: {there} bytes of pixels where {needed} are promised; fetch it anew"
        )
    if there >= needed + frame:
        raise UnreadableScanError(f"it has {there} bytes of pixels and promises {needed}; correct the number of frames")


def _modality(item: Dataset, said: str | None) -> str:
    """The modality, which must be one that makes pictures."""
    found = word_of(item, "Modality")
    if said is not None and found and said != found:
        raise UnreadableScanError(f"it is to be {said} and says another modality; leave `modality` away")
    found = said or found
    if found in _PICTURES:
        return found
    if found in _OTHERS:
        raise UnreadableScanError(f"it is {found}, which is no picture of a patient; leave it out")
    raise UnreadableScanError(
        f"it says {'a modality that DICOM does not define' if found else 'no modality'}, so what its values "
        "mean is not known; name it: modality='OT' …"
    )


def _padding(item: Dataset, allocated: int, *, signed: bool) -> tuple[int, int] | None:
    """Stored numbers that mean nothing; files often say them with the wrong sign, as the same bits."""
    ends = [int(n) for key in ("PixelPaddingValue", "PixelPaddingRangeLimit") for n in numbers_of(item, key)[:1]]
    if not ends or tag_of("PixelPaddingValue") not in item:
        return None
    span = 1 << allocated
    ends = [(end + span // 2) % span - span // 2 if signed else end % span for end in ends]
    return min(ends), max(ends)

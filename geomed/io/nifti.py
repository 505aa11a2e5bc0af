"""NIfTI volumes, right or refused."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geomed.io.scan import Scan, UnreadableScanError, closest_axes, explained, refuse_large
from geomed.io.volume_grid import oriented, resampled

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # not said (mm by custom), metres, millimetres, micrometres
_ENDINGS = (".nii", ".nii.gz")


def read_nifti(
    path: str | Path,
    *,
    volume: int | None = None,
    orientation: str | None = None,
    spacing: tuple[float, float, float] | None = None,
    unit: str = "grey",
    named: str | None = None,
) -> Scan:
    """Read a NIfTI-1 or -2 file, plain or gzipped.

    ``values`` are [z, y, x] of the file after its scl_slope and scl_inter: whole numbers where they stay whole and fit
    16 bits, float32 otherwise. The affine is the sform, or the qform where there is none, turned from RAS to LPS.

    Args:
        path: a file ending in .nii or .nii.gz.
        volume: which one of a 4-D file, from 0; None: it holds one.
        orientation: as "RAS", see ``oriented``; None: as it is stored.
        spacing: of (slices, rows, columns) in mm, after the orientation, see ``resampled``; None: as it is stored.
        unit: what the values are, for NIfTI does not say it: "HU" for a CT.
        named: how errors call it; None: the name of the file.

    Raises:
        UnreadableScanError: it is missing, no NIfTI, truncated, damaged, in colours or complex, holds several volumes
            or numbers that are not finite, says no place where one is needed, or promises more than memory holds.
        ValueError: the orientation or the spacing is none.
    """
    path = Path(path)
    named = named or path.name
    with explained(named):
        if not path.name.lower().endswith(_ENDINGS):
            raise UnreadableScanError(f"NIfTI ends in {' or '.join(_ENDINGS)}; give such a file")
        scan = _read(path, volume, unit)
        if scan.affine is None and (orientation is not None or spacing is not None):
            raise UnreadableScanError("it says no orientation (qform and sform are 0), so it is not turned; set one")
    if orientation is not None:
        scan = oriented(scan, orientation)
    return scan if spacing is None else resampled(scan, spacing)


def read_nifti_slice(path: str | Path, number: int, *, unit: str = "grey", named: str | None = None) -> Scan:
    """Read one slice of a plain NIfTI file as a picture, [y, x] as ``read_nifti`` has it, and none of the others.

    Args:
        path: a file ending in .nii, of one volume.
        number: of the slice, from 0.
        unit: what the values are.
        named: how errors call it; None: the name of the file.

    Raises:
        UnreadableScanError: as ``read_nifti``; or it is gzipped, and so has no slices without those before.
    """
    path = Path(path)
    with explained(named or path.name):
        if not path.name.lower().endswith(".nii"):
            raise UnreadableScanError("single slices are read of a plain .nii; unpack it, or read it as a volume")
        image = _opened(path)
        header: Any = image.header
        stored: Any = image.dataobj
        shape = tuple(int(side) for side in image.shape)
        width = _refuse(header, path, int(stored.offset), shape, None)
        if not 0 <= number < shape[2]:
            raise UnreadableScanError(f"it has no slice {number}, it holds {shape[2]}; take one of them")
        kind = header.get_data_dtype()
        with path.open("rb") as file:
            file.seek(int(stored.offset) + number * shape[0] * shape[1] * width)
            raw = np.frombuffer(file.read(shape[0] * shape[1] * width), dtype=kind).reshape(shape[1], shape[0])
        return Scan(values=_in_unit(raw, float(stored.slope), float(stored.inter)), unit=unit, bits=width * 8)


def _opened(path: Path) -> Any:  # noqa: ANN401  (nibabel has no types)
    """The file with its header read."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.nifti1 import Nifti1Image

    try:
        image = nibabel.load(path, mmap=False)
    except ImageFileError:
        raise UnreadableScanError("this is no NIfTI file, or one cut off in its header; fetch it anew") from None
    if not isinstance(image, Nifti1Image):
        raise UnreadableScanError("this is another format under the name of NIfTI; convert it before")
    return image


def _read(path: Path, number: int | None, unit: str) -> Scan:
    """The volume as it is stored."""
    image = _opened(path)
    header: Any = image.header
    stored: Any = image.dataobj
    shape, offset = tuple(int(side) for side in image.shape), int(stored.offset)
    width = _refuse(header, path, offset, shape, number)
    if path.suffix.lower() == ".gz":
        image = type(image).from_bytes(_inflated(path, offset + width * math.prod(shape)))
    values = _values(image.dataobj, shape, number or 0)
    scale = _MILLIMETRES.get(int(header["xyzt_units"]) & 7)
    if scale is None:
        raise UnreadableScanError("it measures in a unit that NIfTI does not define; correct its xyzt_units")
    affine = _affine(image, scale)
    sides = np.array(header.get_zooms()[:3], dtype=np.float64) * scale
    if affine is not None:
        sides = np.linalg.norm(affine[:3, :3], axis=0)[::-1]
    return Scan(
        values=values,
        unit=unit,
        bits=width * 8,
        spacing=(float(sides[2]), float(sides[1]), float(sides[0])),
        affine=affine,
    )


def _refuse(header: Any, path: Path, offset: int, shape: tuple[int, ...], number: int | None) -> int:  # noqa: ANN401  (no types)
    """Refuse by what the header says; bytes of one number."""
    kind = header.get_data_dtype()
    if kind.fields or kind.kind not in "iuf":
        raise UnreadableScanError("its numbers are colours or complex, not real; convert it before")
    refuse_large(shape, kind.itemsize)
    count = math.prod(shape[3:])
    if len(shape) < 3:
        raise UnreadableScanError(f"it has {len(shape)} axes, a volume has 3; read it as a picture")
    if number is None and count > 1:
        raise UnreadableScanError(f"it holds {count} volumes ({' x '.join(map(str, shape))}); name one: volume=0 …")
    if not 0 <= (number or 0) < count:
        raise UnreadableScanError(f"it has no volume {number}, it holds {count}; take one from 0 to {count - 1}")
    if path.suffix.lower() != ".gz":
        needed = offset + kind.itemsize * math.prod(shape)
        if path.stat().st_size < needed:
            raise UnreadableScanError(
                f"it is truncated: {path.stat().st_size} bytes where {needed} are promised; fetch it anew"
            )
    return int(kind.itemsize)


def _inflated(path: Path, needed: int) -> bytes:
    """What a gzip file holds, to its end: the checksum stands there, and nibabel does not look at it."""
    with gzip.open(path) as file:
        found = file.read(needed)
        if len(found) < needed or file.read(1 << 20):
            raise UnreadableScanError(
                f"it holds {'fewer' if len(found) < needed else 'more'} than the {needed} bytes promised; fetch it anew"
            )
    return found


def _values(stored: Any, shape: tuple[int, ...], number: int) -> NDArray[np.generic]:  # noqa: ANN401  (an array proxy)
    """[z, y, x] of one volume, in its unit."""
    slope, intercept = float(stored.slope), float(stored.inter)
    if len(shape) == 3:
        raw = np.asanyarray(stored.get_unscaled())
    else:  # one volume is read, and not all
        place = np.unravel_index(number, shape[3:], order="F")
        raw = np.asarray(stored[(..., *(int(index) for index in place))])
        if (slope, intercept) != (1, 0):
            raw = raw.astype(np.float32)
        slope, intercept = 1.0, 0.0  # a part of it comes scaled
    return _in_unit(raw.transpose(2, 1, 0), slope, intercept)


def _in_unit(raw: NDArray[np.generic], slope: float, intercept: float) -> NDArray[np.generic]:
    """Stored numbers → values in their unit."""
    if raw.dtype.kind == "f":
        odd = int(raw.size - np.isfinite(raw).sum())
        if odd:
            raise UnreadableScanError(f"{odd} of {raw.size} values are NaN or infinite; set them to a number before")
    wide = np.float64 if raw.dtype.itemsize > 4 or (raw.dtype.itemsize == 4 and raw.dtype.kind in "iu") else np.float32
    if (slope, intercept) == (1, 0):
        narrow = raw.dtype.kind in "iu" and raw.dtype.itemsize <= 2
        return np.ascontiguousarray(raw, dtype=raw.dtype.newbyteorder("=") if narrow else wide)
    if slope == 1 and intercept == int(intercept) and raw.dtype.kind in "iu" and raw.dtype.itemsize <= 2:
        low, high = int(raw.min()) + int(intercept), int(raw.max()) + int(intercept)
        if low >= -(1 << 15) and high < 1 << 15:
            return np.ascontiguousarray(raw.astype(np.int32) + int(intercept), dtype=np.int16)
    values = np.ascontiguousarray(raw, dtype=wide)
    values *= wide(slope)
    values += wide(intercept)
    return values


def _affine(image: Any, scale: float) -> NDArray[np.float64] | None:  # noqa: ANN401  (nibabel has no types)
    """(z, y, x, 1) → LPS in mm; None: the file says none."""
    forms = {name: getattr(image, f"get_{name}")(coded=True) for name in ("sform", "qform")}
    said = {name: matrix for name, (matrix, code) in forms.items() if code}
    if not said:
        return None
    for name, matrix in said.items():
        if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
            raise UnreadableScanError(f"its {name} is not finite or flat, so its place is not known; correct it")
    found = {closest_axes(matrix) for matrix in said.values()}
    if len(found) > 1:
        raise UnreadableScanError("its sform and its qform lead into different directions; correct the wrong one")
    scaled = np.diag([scale, scale, scale, 1.0])
    matrix = np.asarray(said.get("sform", said.get("qform")), dtype=np.float64)
    return np.asarray(_LPS @ scaled @ matrix @ np.eye(4)[:, [2, 1, 0, 3]], dtype=np.float64)

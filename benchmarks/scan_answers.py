"""What readers of DICOM answer to the nine cases of tests/fakes_scans.py, in each of which a value is its height in mm.

An answer is right when the affine that comes with it puts every value at its height, or, where no regular volume is to
be had, when there is none.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geomed.io.dicom import read_dicom, read_series

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from fakes_scans import nine_cases  # the made-up series of the tests

if TYPE_CHECKING:
    from collections.abc import Callable

    from fakes_scans import Case
    from numpy.typing import NDArray

    Read = Callable[[Case], tuple[NDArray[np.generic], NDArray[np.float64]]]


def answers(folder: Path) -> list[dict[str, Any]]:
    """A row for each case: what was right, and what geomed and MONAI gave."""
    rows = []
    for case in nine_cases(folder):
        row: dict[str, Any] = {"case": case.name, "right": "refuse" if case.right is None else "0, 10, 20, 30"}
        for name, read in {"geomed": _geomed, "monai": _monai}.items():
            row[name] = _answer(case, read)
        rows.append(row)
    return rows


def _geomed(case: Case) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """Values [z, y, x] and their affine."""
    scan = read_dicom(case.files[0]) if len(case.files) == 1 else read_series(case.files)
    return scan.values, scan.affine


def _monai(case: Case) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """The same of LoadImage, whose axes are x, y, z."""
    from monai.transforms import LoadImage

    load = LoadImage(reader="PydicomReader", image_only=True)
    found = load(case.files[0] if len(case.files) == 1 else case.files[0].parent)
    values, affine = found.numpy(), np.asarray(found.affine)
    if values.shape[:2] != (16, 16):
        return values, affine
    return values.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]]


def _answer(case: Case, read: Read) -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            values, affine = read(case)
        except Exception as error:  # noqa: BLE001  (whatever a peer raises is its answer)
            told = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return {"verdict": "right, refused" if case.right is None else "wrong, refused", "told": told[-160:]}
    # nvImageCodec, which is not there, is spoken of at every LoadImage
    about = [str(one.message) for one in said if "nvImageCodec" not in str(one.message)]
    silent = ", without a word" if not about else ", with a warning"
    if values.shape[1:] != (16, 16):
        return {"verdict": f"wrong{silent}", "told": f"axes {values.shape}, lowest value {values.min():g}"}
    slices = [float(value) for value in np.median(values, axis=(1, 2))]
    heights = [float(affine[2] @ (number, 0, 0, 1)) for number in range(len(slices))]
    right = case.right is not None and np.allclose(slices, heights) and np.allclose(sorted(slices), case.right)
    told = f"values {_listed(slices)} at heights {_listed(heights)}"
    return {"verdict": "right" if right else f"wrong{silent}", "told": told}


def _listed(numbers: list[float]) -> str:
    return ", ".join(f"{number:.4g}" for number in numbers)


def table(rows: list[dict[str, Any]]) -> str:
    """Both side by side."""
    lines = [f"{'case':<24}{'right':<15}{'geomed':<24}{'monai':<24}monai's answer"]
    for row in rows:
        ours, theirs = row["geomed"], row["monai"]
        lines.append(f"{row['case']:<24}{row['right']:<15}{ours['verdict']:<24}{theirs['verdict']:<24}{theirs['told']}")
    return "\n".join(lines)

"""One scan or picture in memory: values in their unit, where they lie, and nothing that names a person."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np

from geomed.io.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from geomed.io.voi import Voi, VoiTable

LARGEST_BYTES = 4 << 30
"""More than this is not allocated for one scan, whatever its header promises."""

_TOWARDS = (("R", "L"), ("A", "P"), ("I", "S"))  # of LPS: where x, y, z are low, and where they are high


class UnreadableScanError(ValueError):
    """A scan that is not read, with the rule that it breaks; it quotes no name, date or identifier of the file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """A picture, a slice or a volume."""

    values: NDArray[np.generic]
    """[rows, columns] or [slices, rows, columns], with a last axis of 3 where the unit is "RGB". Slices go along the
    normal, columns then rows by the right hand: of axial slices from the feet to the head."""

    unit: str
    """Of the values: "HU", "RGB", another one that the file declares, or "grey", which compares only within a scan."""

    modality: str = ""
    """Code of DICOM (CT, MR, DX …), "" where the format has none."""

    photometric: str = ""
    """Photometric interpretation as it was stored; ``values`` are high where they are bright, or RGB, in any case."""

    bits: int
    """Stored bits of a sample: 8-bit and 16-bit pictures are not the same brightness."""

    spacing: tuple[float, ...] | None = None
    """Millimetres from centre to centre along (rows, columns) or (slices, rows, columns); None: not known."""

    affine: NDArray[np.float64] | None = None
    """[4, 4], of volumes: (slice, row, column, 1) → (x, y, z, 1) in mm, towards left, posterior and superior (LPS) as
    in DICOM, whatever the format; None: not known."""

    windows: tuple[Voi | VoiTable, ...] = ()
    """Windows that the file proposes for all of the values."""

    mirror: float | None = None
    """The values are ``mirror - stored`` (MONOCHROME1); None: they are not mirrored."""

    padded: NDArray[np.bool_] | None = None
    """Where there is no observation but the padding of a scanner; the values there are the lowest of the others."""

    def __post_init__(self) -> None:
        """Refuse fields that contradict each other."""
        if self.unit == "RGB" and self.values.shape[-1] != 3:
            raise ValueError(f"RGB has a last axis of 3, not {self.values.shape}; give another unit")
        if len(self.shape) not in {2, 3}:
            raise ValueError(f"values must be a picture or a volume, not {self.values.shape}; take one of them")
        if self.spacing is not None and len(self.spacing) != len(self.shape):
            raise ValueError(f"spacing must have {len(self.shape)} numbers, one for each axis, not {self.spacing}")
        if self.affine is not None and (len(self.shape) != 3 or self.affine.shape != (4, 4)):
            raise ValueError(f"an affine is [4, 4] and of a volume, not {self.affine.shape} of {self.shape}")

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns) or (slices, rows, columns)."""
        return self.values.shape[:-1] if self.unit == "RGB" else self.values.shape

    @property
    def orientation(self) -> str | None:
        """Where columns, rows and slices lead, in this order, the one of NIfTI's x, y, z: "LPS" or "RAS" or another."""
        if self.affine is None:
            return None
        axes, signs = closest_axes(self.affine)
        return "".join(_TOWARDS[axis][int(sign > 0)] for axis, sign in zip(axes, signs, strict=True))[::-1]


def closest_axes(affine: NDArray[np.float64]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """For each axis of the array: the nearest of x, y, z, each taken once, and whether it runs along (1) or against."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    axes = max(permutations(range(3)), key=lambda order: sum(abs(directions[a, i]) for i, a in enumerate(order)))
    return axes, tuple(1 if directions[a, i] > 0 else -1 for i, a in enumerate(axes))


def refuse_large(shape: tuple[int, ...], width: int) -> None:
    """Refuse what a header promises, before memory is taken.

    Args:
        shape: as the header has it.
        width: bytes of one number.

    Raises:
        UnreadableScanError: a side is not positive, or all of it is larger than ``LARGEST_BYTES``.
    """
    if any(side < 1 for side in shape):
        raise UnreadableScanError(f"its header promises {_by(shape)} numbers; a scan has one at least, fetch it anew")
    if math.prod(shape) * width > LARGEST_BYTES:
        size = math.prod(shape) * width / (1 << 30)
        raise UnreadableScanError(
            f"its header promises {_by(shape)} numbers, {size:.1f} GiB, more than {LARGEST_BYTES >> 30}; "
            "cut or shrink it before"
        )


def _by(shape: tuple[int, ...]) -> str:
    """Sides with a multiplication sign between them."""
    return " x ".join(map(str, shape))


@contextmanager
def explained(named: str) -> Iterator[None]:
    """What goes wrong with a file, as one line that begins with its name and quotes nothing of its content.

    Raises:
        UnreadableScanError: in place of whatever was raised inside, but for what has nothing to do with the file.
    """
    try:
        with quiet():
            yield
    except UnreadableScanError as error:
        raise UnreadableScanError(f"{named}: {error}") from None
    except FileNotFoundError:
        raise UnreadableScanError(f"{named}: there is no such file; correct the path") from None
    except IsADirectoryError:
        raise UnreadableScanError(f"{named}: this is a folder; give a file, or read it as a series") from None
    except PermissionError:
        raise UnreadableScanError(f"{named}: it may not be read; change its permissions") from None
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # noqa: BLE001  (libraries raise anything at all about damaged files, and quote them)
        raise UnreadableScanError(
            f"{named}: the file is damaged, reading it ended in {type(error).__name__}; fetch it anew"
        ) from None

"""Volumes turned to a named orientation, exactly, and resampled to a spacing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from geomed.io.quiet import quiet
from geomed.io.scan import Scan, closest_axes, refuse_large

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LETTERS = {"R": (0, -1), "L": (0, 1), "A": (1, -1), "P": (1, 1), "I": (2, -1), "S": (2, 1)}
"""Axis and sense, of LPS."""

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def oriented(scan: Scan, orientation: str) -> Scan:
    """Turn a volume by flips and exchanges of axes: no value changes.

    Args:
        scan: a volume with an affine.
        orientation: where columns, rows and slices are to lead, as "RAS" or "LPS": the order of NIfTI's x, y, z, which
            is the reverse of the axes of ``values``. Oblique volumes get the nearest one, and stay oblique.

    Raises:
        ValueError: it is no orientation, or the scan is no volume of which the place is known.
    """
    wanted = [_LETTERS.get(letter, (-1, 0)) for letter in orientation[::-1]]
    if sorted(axis for axis, _ in wanted) != [0, 1, 2]:
        raise ValueError(
            f"an orientation has one of R/L, A/P and I/S each, as RAS or LPS, not {orientation!r}; correct it"
        )
    affine = _affine(scan)
    axes, signs = closest_axes(affine)
    order = [axes.index(axis) for axis, _ in wanted]
    values, padded, turned = scan.values.transpose(order), scan.padded, affine.copy()
    padded = None if padded is None else padded.transpose(order)
    turned[:, :3] = affine[:, order]
    for place, (source, (_, sense)) in enumerate(zip(order, wanted, strict=True)):
        if signs[source] != sense:
            turned[:3, 3] += turned[:3, place] * (values.shape[place] - 1)
            turned[:3, place] *= -1
            values = np.flip(values, place)
            padded = None if padded is None else np.flip(padded, place)
    spacing = np.linalg.norm(turned[:3, :3], axis=0)
    return replace(
        scan,
        values=np.ascontiguousarray(values),
        padded=None if padded is None else np.ascontiguousarray(padded),
        affine=turned,
        spacing=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
    )


def resampled(
    scan: Scan, spacing: tuple[float, float, float], *, method: Literal["bilinear", "nearest"] = "bilinear"
) -> Scan:
    """Resample a volume by MONAI's ``Spacing``: float32 values on a grid of another spacing in the same directions.

    It does not smooth before, so halve the number of voxels at most. Importing MONAI takes seconds.

    Args:
        scan: a volume with an affine.
        spacing: wanted along (slices, rows, columns), in mm.
        method: "nearest" for labels.

    Raises:
        ValueError: the spacing is not positive, the result is larger than memory may hold, or the scan is no volume of
            which the place is known.
    """
    affine = _affine(scan)
    if len(spacing) != 3 or min(spacing) <= 0 or not np.isfinite(spacing).all():
        raise ValueError(f"spacing must be three positive numbers of mm, not {spacing}; correct it")
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    sides = [max(1, round(side * step / new)) for side, step, new in zip(scan.shape, steps, spacing, strict=True)]
    refuse_large(tuple(sides), 4)
    with quiet():
        from monai.data.meta_tensor import MetaTensor
        from monai.transforms.spatial.array import Spacing
        from torch import from_numpy

        swap = np.eye(4)[:, [2, 1, 0, 3]]  # MONAI's axes are x, y, z
        values = np.ascontiguousarray(scan.values.transpose(2, 1, 0)[None], dtype=np.float32)
        tensor = MetaTensor(from_numpy(values), affine=from_numpy(_LPS_TO_RAS @ affine @ swap))
        out = Spacing(pixdim=spacing[::-1], mode=method, padding_mode="border")(tensor)
        found: NDArray[np.float64] = _LPS_TO_RAS @ out.affine.numpy() @ swap
        new = out.as_tensor().numpy()[0].transpose(2, 1, 0)
    return replace(
        scan,
        values=np.ascontiguousarray(new),
        affine=found,
        spacing=(float(spacing[0]), *map(float, spacing[1:])),
        padded=None,
    )


def _affine(scan: Scan) -> NDArray[np.float64]:
    """The affine of a volume that has one."""
    if len(scan.shape) != 3 or scan.affine is None:
        raise ValueError(
            f"only a volume whose place is known can be turned or resampled, not values {scan.values.shape} "
            f"{'with' if scan.affine is not None else 'without'} affine; read it from a file that says it"
        )
    if scan.unit == "RGB":
        raise ValueError("a volume in colours is not turned or resampled; take its slices")
    return scan.affine

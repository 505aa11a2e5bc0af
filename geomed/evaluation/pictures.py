"""Maps as PNG pictures that stand inside a page."""

from __future__ import annotations

import base64
import io
import math
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Integer, UInt8  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geomed.palette import Colour

LONGEST = 512
"""Pixels of a picture's longer side: a page stays small, whatever the size of the map."""

OUTCOMES: dict[str, tuple[int, int, int, int]] = {
    "right before and after": (128, 138, 134, 84),
    "put right by adaptation": (0, 114, 178, 255),
    "wrong before and after": (230, 159, 0, 255),
    "made wrong by adaptation": (200, 30, 60, 255),
}
"""What can happen to a labelled pixel, and its colour (red, green, blue, opacity)."""


def stride(shape: Sequence[int]) -> int:
    """Every which pixel is shown, so that the longer side has at most ``LONGEST``."""
    return math.ceil(max(shape[:2]) / LONGEST)


def photograph(true_colour: UInt8[np.ndarray, "h w 3"]) -> str:
    """A true-colour image as a data URI; a large one is averaged over blocks of pixels."""
    step = stride(true_colour.shape)
    height, width = (side // step * step for side in true_colour.shape[:2])
    if not min(height, width):  # narrower than a block: nothing to average
        return _png(true_colour[::step, ::step])
    blocks = true_colour[:height, :width].reshape(height // step, step, width // step, step, 3)
    return _png(blocks.mean(axis=(1, 3)).round().astype(np.uint8))


def class_map(index: Integer[np.ndarray, "h w"], colours: Sequence[Colour], *, ignore: int) -> str:
    """Class indices in their colours as a data URI, ignored pixels transparent; of a large one every n-th pixel.

    Raises:
        ValueError: an index has no colour.
    """
    step = stride(index.shape)
    index = index[::step, ::step]
    blank = index == ignore
    if (found := index[~blank & ((index < 0) | (index >= len(colours)))]).size:
        raise ValueError(
            f"class index {found[0]} has no colour, there are {len(colours)} classes and {ignore} is ignored; "
            "give the map of these very classes"
        )
    table = np.array([(*colour, 255) for colour in colours], dtype=np.uint8)
    picture = table[np.where(blank, 0, index)]
    picture[blank] = 0
    return _png(picture)


def outcomes(
    truth: Integer[np.ndarray, "h w"],
    before: Integer[np.ndarray, "h w"],
    after: Integer[np.ndarray, "h w"],
    *,
    ignore: int,
) -> Integer[np.ndarray, "h w"]:
    """What adaptation did to each pixel: an index into ``OUTCOMES``, -1 where there is no label."""
    right_before, right_after = before == truth, after == truth
    outcome = np.select(
        [right_before & right_after, ~right_before & right_after, ~right_before & ~right_after], [0, 1, 2], 3
    )
    return np.where(truth == ignore, -1, outcome)


def outcome_map(outcome: Integer[np.ndarray, "h w"]) -> str:
    """The outcomes in their colours as a data URI."""
    step = stride(outcome.shape)
    table = np.array([*OUTCOMES.values(), (0, 0, 0, 0)], dtype=np.uint8)  # the last one answers to -1
    return _png(table[outcome[::step, ::step]])


def _png(picture: UInt8[np.ndarray, "h w channels"]) -> str:
    from matplotlib.image import imsave  # loads for half a second, and only a page needs it

    file = io.BytesIO()
    imsave(file, np.ascontiguousarray(picture), format="png", metadata={"Software": "geomed"})
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")

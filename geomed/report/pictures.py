"""Small pictures of cases that stand inside the page."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

LONGEST = 176
"""Pixels of a picture's longer side."""

MOST_BYTES = 900_000
"""All pictures of a page together, as they stand in it."""


def picture(path: Path) -> str | None:
    """The pixels as a data URI and nothing else that the file holds, for metadata may name a person; None if broken.

    Drawn anew as JPEG, of at most ``LONGEST``: to look at, not to measure.
    """
    from PIL import Image  # late: only a page with pictures needs it

    try:
        with Image.open(path) as opened:
            small = opened.convert("L" if opened.mode in {"1", "L", "I", "I;16"} else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what Pillow raises for broken files
        return None
    small.thumbnail((LONGEST, LONGEST))
    pixels = Image.frombytes(small.mode, small.size, small.tobytes())  # without whatever came along
    file = io.BytesIO()
    pixels.save(file, format="JPEG", quality=85, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")

"""Pictures: PNG, JPEG and TIFF, upright, in RGB or grey, 8 bits and 16 kept apart, right or refused."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from geomed.io.scan import Scan, UnreadableScanError, explained

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

LARGEST_PICTURE = 178_956_970
"""Pixels; more is refused before it is decoded. It is Pillow's own limit, which other code may have changed."""

_FORMATS = ("BMP", "JPEG", "PNG", "TIFF")
_DEEP = {"I;16", "I;16B", "I;16L", "I;16N"}
_BITS_PER_SAMPLE, _TURN = 258, 274  # tags of TIFF and EXIF


def read_picture(
    path: str | Path, *, size: tuple[int, int] | None = None, frame: int | None = None, named: str | None = None
) -> Scan:
    """Read a picture: [rows, columns] of "grey" or [rows, columns, 3] of "RGB", uint8 or uint16 as ``bits`` says.

    It is turned upright by its EXIF orientation. Palettes become RGB; an alpha channel is dropped where all is opaque.
    Colour profiles are not applied.

    Args:
        path: a PNG, JPEG, TIFF or BMP.
        size: (rows, columns) to shrink or stretch it to, smoothed (bilinear over the area that a pixel covers), in the
            type of the picture. A JPEG is decoded at a half, a quarter or an eighth where one and a half times the
            size remains: photographs of 2048 x 1536 at 224 x 224 then differ by 0.2 to 0.6 of 255 on average, by 4
            at most, from those that were decoded whole, in a third of the time.
        frame: the page of a TIFF of several, from 0; None: it has one.
        named: how errors call it; None: the name of the file.

    Raises:
        UnreadableScanError: it is missing, no such picture, truncated, or has several pages, more than
            ``LARGEST_PICTURE`` pixels, colours of 16 bits, or colours that RGB does not tell (CMYK, Lab, transparency).
    """
    from PIL import Image, TiffImagePlugin, UnidentifiedImageError  # noqa: F401  (enrols TIFF without all others)

    path = Path(path)
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"a size is (rows, columns), one pixel at least, not {size}; correct it")
    with explained(named or path.name):
        try:
            picture = Image.open(path, formats=_FORMATS)
        except UnidentifiedImageError:
            raise UnreadableScanError(
                "this is no PNG, JPEG, TIFF or BMP, or it is cut off at once; give another"
            ) from None
        except Image.DecompressionBombError:
            raise UnreadableScanError(f"its header promises more than {LARGEST_PICTURE} pixels; shrink it") from None
        with picture:
            _refuse(picture, frame)
            if frame is not None:
                picture.seek(frame)
            turned = picture.getexif().get(_TURN, 1) in range(5, 9)
            stored = (
                None if size is None else (size[::-1] if not turned else size)
            )  # Pillow's sizes are (width, height)
            if stored is not None and picture.format in {"JPEG", "MPO"}:
                picture.draft(None, (3 * stored[0] // 2, 3 * stored[1] // 2))
            bits = _bits(picture, path)
            try:
                picture.load()
            except OSError:
                raise UnreadableScanError("it is truncated or damaged; fetch it anew") from None
            return _scan(picture, stored, bits)


def _refuse(picture: Image, frame: int | None) -> None:
    """Refuse by what the header says."""
    if picture.width * picture.height > LARGEST_PICTURE:
        raise UnreadableScanError(
            f"its header promises {picture.width} x {picture.height} pixels, more than {LARGEST_PICTURE}; shrink it"
        )
    count = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)  # a camera's previews are no pages
    if frame is None and count > 1:
        raise UnreadableScanError(f"it holds {count} pages; name one: frame=0 …")
    if not 0 <= (frame or 0) < count:
        raise UnreadableScanError(f"it has no page {frame}, it holds {count}; take one from 0 to {count - 1}")


def _bits(picture: Image, path: Path) -> int:
    """Stored bits of a sample; Pillow cuts colours of 16 bits to 8 without a word, so the file is asked."""
    bits = 16 if picture.mode in _DEEP else {"1": 1, "F": 32, "I": 32}.get(picture.mode, 8)
    if picture.format == "PNG":
        with path.open("rb") as file:
            bits = struct.unpack(">B", file.read(25)[24:])[0]
    elif picture.format == "TIFF":
        said = picture.getexif().get(_BITS_PER_SAMPLE, bits)
        bits = max(said) if isinstance(said, tuple) else int(said)
    if bits == 16 and picture.mode not in _DEEP and picture.mode != "I":
        raise UnreadableScanError("its colours have 16 bits; convert them to 8, or to one grey channel, before")
    return bits


def _scan(picture: Image, size: tuple[int, int] | None, bits: int) -> Scan:
    """Pixels in RGB or grey, of the size wanted, upright."""
    from PIL import Image, ImageOps

    if picture.mode in {"LA", "PA", "RGBA", "La", "RGBa"} or "transparency" in picture.info:
        alpha = picture.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            raise UnreadableScanError(
                "parts of it are transparent, and what is under them is not said; flatten it before"
            )
    mode = picture.mode
    if mode in {"1", "L", "LA", "La"}:
        wanted = "L"
    elif mode in {"P", "PA", "RGB", "RGBA", "RGBa", "YCbCr"}:
        wanted = "RGB"
    elif mode in _DEEP or mode in {"I", "F"}:
        wanted = mode
    else:
        raise UnreadableScanError(
            f"its colours are {mode}, which RGB does not tell without a profile; convert it before"
        )
    picture = picture if mode == wanted else _with_turn(picture.convert(wanted), picture)
    if wanted not in {"L", "RGB"}:
        return _deep(picture, size, bits)
    if size is not None and picture.size != size:
        picture = _with_turn(picture.resize(size, Image.Resampling.BILINEAR), picture)
    values = np.asarray(ImageOps.exif_transpose(picture))
    return Scan(values=values, unit="RGB" if wanted == "RGB" else "grey", photometric=mode, bits=max(bits, 8))


def _with_turn(made: Image, origin: Image) -> Image:
    """The orientation follows what is made of a picture."""
    made.getexif()[_TURN] = origin.getexif().get(_TURN, 1)
    return made


def _deep(picture: Image, size: tuple[int, int] | None, bits: int) -> Scan:
    """Grey of 16 bits, or real numbers."""
    from PIL import Image, ImageOps

    values: NDArray[np.generic] = np.asarray(picture)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UnreadableScanError(
            f"{int((~np.isfinite(values)).sum())} of {values.size} values are NaN or infinite; mend it"
        )
    whole = values.dtype.kind in "iu"
    if whole and not (int(values.min()) >= 0 and int(values.max()) < 1 << 16):
        raise UnreadableScanError("its whole numbers leave 0 to 65535; save it with 16 bits")
    flat = Image.fromarray(values.astype(np.float32))
    if size is not None and picture.size != size:
        flat = flat.resize(size, Image.Resampling.BILINEAR)
    upright = np.asarray(ImageOps.exif_transpose(_with_turn(flat, picture)))
    values = np.rint(upright).astype(np.uint16) if whole else np.array(upright)
    return Scan(values=values, unit="grey", photometric=picture.mode, bits=bits)

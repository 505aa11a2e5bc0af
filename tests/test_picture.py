"""Pictures: colours, depths, turning, sizes, and what is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from geomed.io.picture import read_picture
from geomed.io.scan import UnreadableScanError

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = COLOURS[..., 0]
DEEP = GREY.astype(np.uint16) * 257


def saved(path, values, **options):
    picture = values if isinstance(values, Image.Image) else Image.fromarray(values)
    picture.save(path, **options)
    return path


def smooth(rows, columns):
    rng = np.random.default_rng(1)
    small = Image.fromarray(rng.integers(0, 256, (rows // 32, columns // 32, 3), dtype=np.uint8))
    return small.resize((columns, rows), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("ending", ["png", "tif", "bmp"])
@pytest.mark.parametrize("values", [COLOURS, GREY])
def test_values_are_the_files(tmp_path, ending, values):
    scan = read_picture(saved(tmp_path / f"a.{ending}", values))
    np.testing.assert_array_equal(scan.values, values)
    assert (scan.unit, scan.bits) == ("RGB" if values.ndim == 3 else "grey", 8)
    assert scan.values.dtype == np.uint8


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bits_stay_16(tmp_path, ending):
    path = saved(tmp_path / f"a.{ending}", DEEP)
    scan = read_picture(path)
    np.testing.assert_array_equal(scan.values, DEEP)
    assert (scan.values.dtype, scan.bits, scan.unit) == (np.uint16, 16, "grey")
    small = read_picture(path, size=(3, 3))
    right = np.asarray(Image.fromarray(DEEP.astype(np.float32)).resize((3, 3), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(small.values, right, atol=0.5)
    assert small.values.dtype == np.uint16


def test_real_numbers(tmp_path):
    values = GREY.astype(np.float32) / 7
    np.testing.assert_array_equal(read_picture(saved(tmp_path / "a.tif", values)).values, values)
    values[0, 0] = np.nan
    with pytest.raises(UnreadableScanError, match="1 of 54 values are NaN"):
        read_picture(saved(tmp_path / "a.tif", values))


def test_palettes_and_opaque_alpha_become_rgb(tmp_path):
    palette = Image.fromarray(COLOURS).quantize(16)
    np.testing.assert_array_equal(read_picture(saved(tmp_path / "a.png", palette)).values, palette.convert("RGB"))
    opaque = Image.fromarray(COLOURS).convert("RGBA")
    np.testing.assert_array_equal(read_picture(saved(tmp_path / "b.png", opaque)).values, COLOURS)
    both = Image.fromarray(GREY).convert("LA")
    np.testing.assert_array_equal(read_picture(saved(tmp_path / "c.png", both)).values, GREY)
    one = Image.fromarray(GREY).convert("1")
    assert set(read_picture(saved(tmp_path / "d.png", one)).values.ravel()) == {0, 255}


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("values", [COLOURS, GREY, DEEP])
def test_pictures_stand_upright(tmp_path, turn, values):
    exif = Image.Exif()
    exif[274] = turn
    undone = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: np.rot90,
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[turn]
    path = saved(tmp_path / "a.png", np.ascontiguousarray(undone(values)), exif=exif)
    np.testing.assert_array_equal(read_picture(path).values, values)
    assert read_picture(path, size=(4, 5)).values.shape[:2] == (4, 5)


@pytest.mark.parametrize("turn", [1, 6])
def test_a_reduced_jpeg_is_nearly_the_same(tmp_path, turn):
    exif = Image.Exif()
    exif[274] = turn
    path = saved(tmp_path / "a.jpg", smooth(768, 1024), quality=92, exif=exif)
    whole = Image.open(path).resize((112, 112), Image.Resampling.BILINEAR)
    right = np.asarray(whole if turn == 1 else whole.transpose(Image.Transpose.ROTATE_270)).astype(int)
    error = np.abs(read_picture(path, size=(112, 112)).values - right)
    assert error.max() <= 6
    assert error.mean() < 0.7
    assert read_picture(path).values.shape == ((768, 1024, 3) if turn == 1 else (1024, 768, 3))


def test_sizes_that_are_none(tmp_path):
    with pytest.raises(ValueError, match=r"a size is .rows, columns."):
        read_picture(tmp_path / "a.png", size=(0, 3))


def png(width, height, *, bits=8, colour=2, data=b""):
    """A PNG by hand: its header promises what it likes."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (png(100_000, 100_000), "header promises"),
        (png(16_000, 12_000), "header promises"),
        (png(2, 2, bits=16, data=(b"\0" + b"ab" * 6) * 2), "colours have 16 bits"),
        (png(9, 9), "damaged"),
        (b"", "no PNG, JPEG, TIFF or BMP"),
        (b"GIF89a", "no PNG, JPEG, TIFF or BMP"),
        (png(9, 9)[:20], "BMP|damaged"),
    ],
)
def test_broken_files_are_refused(tmp_path, raw, words):
    (tmp_path / "a.png").write_bytes(raw)
    with pytest.raises(UnreadableScanError, match=words) as caught:
        read_picture(tmp_path / "a.png", named="case 7")
    assert str(caught.value).startswith("case 7: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "bmp"])
@pytest.mark.parametrize("size", [None, (16, 16)])
@pytest.mark.filterwarnings("error")
def test_truncated_files_are_refused(tmp_path, share, ending, size):
    path = saved(tmp_path / f"a.{ending}", smooth(256, 320))
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(UnreadableScanError, match=r"truncated|damaged|cut off"):
        read_picture(path, size=size)


def test_colours_that_rgb_does_not_tell(tmp_path):
    for mode, ending in (("CMYK", "jpg"), ("CMYK", "tif"), ("LAB", "tif")):
        path = saved(tmp_path / f"a.{ending}", Image.new(mode, (4, 4)))
        with pytest.raises(UnreadableScanError, match=f"its colours are {mode}"):
            read_picture(path)
    clear = Image.fromarray(COLOURS).convert("RGBA")
    clear.putpixel((0, 0), (1, 2, 3, 0))
    with pytest.raises(UnreadableScanError, match="transparent"):
        read_picture(saved(tmp_path / "a.png", clear))
    palette = Image.fromarray(COLOURS).quantize(16)
    with pytest.raises(UnreadableScanError, match="transparent"):
        read_picture(saved(tmp_path / "b.png", palette, transparency=int(palette.getpixel((0, 0)))))


def test_colours_of_16_bits_in_a_tiff(tmp_path):
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    path = tmp_path / "a.tif"
    with (
        pytest.warns(NotGeoreferencedWarning),
        rasterio.open(
            *(path, "w"),
            driver="GTiff",
            width=4,
            height=4,
            count=3,
            dtype="uint16",
            photometric="RGB",
            interleave="pixel",
        ) as file,
    ):
        file.write(np.full((3, 4, 4), 999, np.uint16))
    with pytest.raises(UnreadableScanError, match="colours have 16 bits"):
        read_picture(path)


def test_pages_are_named(tmp_path):
    pages = [Image.fromarray(GREY), Image.fromarray(GREY[::-1].copy())]
    path = saved(tmp_path / "a.tif", pages[0], save_all=True, append_images=pages[1:])
    with pytest.raises(UnreadableScanError, match="it holds 2 pages; name one"):
        read_picture(path)
    np.testing.assert_array_equal(read_picture(path, frame=1).values, GREY[::-1])
    with pytest.raises(UnreadableScanError, match="no page 2"):
        read_picture(path, frame=2)


def test_there_is_no_such_file(tmp_path):
    with pytest.raises(UnreadableScanError, match=r"a\.png: there is no such file"):
        read_picture(tmp_path / "a.png")


def test_a_file_is_not_read_by_its_ending(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(COLOURS).save(buffer, "PNG")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    np.testing.assert_array_equal(read_picture(tmp_path / "a.jpg").values, COLOURS)

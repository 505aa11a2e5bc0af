"""A map of classes as a picture: what one shows of it."""

from __future__ import annotations

import io
import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from geomed.io.cog import read_small
from geomed.io.geotiff import NODATA, GeoTiff
from geomed.windows import Window

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from geomed.palette import Colour

_WIDTH = 1200
_EDGE = 32
_COLUMN = 300
_GAP = 28
_MOST = 40  # entries of a legend
_LARGEST = 16  # pixels of the picture for one of the map
_FARTHEST = 2_000_000  # metres: across more than this one scale does not hold
_INK, _PALE, _RULE = "#1f2328", "#6b727b", "#eef0f2"
_DPI = 100


@dataclass(frozen=True, kw_only=True)
class _Ground:
    """How the middle of a raster lies on the earth."""

    across: float
    """Metres from pixel to pixel along a row."""

    down: float
    """Metres from row to row."""

    north: tuple[float, float]
    """Where north is: (to the right, upwards), of length 1."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A line of the legend."""

    name: str
    colour: Colour | None
    share: float


def class_shares(map_path: Path, count: int) -> NDArray[np.int64]:
    """How many pixels of a map each class has, block by block; where the class is not known does not count.

    Args:
        map_path: the map.
        count: of classes.

    Returns:
        Pixels [count].

    Raises:
        ValueError: the file is missing or damaged, or holds a number that is no class.
    """
    raster = GeoTiff.open(map_path)
    rows, columns = raster.grid.shape.yx
    found = np.zeros(256, dtype=np.int64)
    side = 512  # the tiles of such maps
    wide = max(1, 2**24 // side**2) * side
    for row in range(0, rows, side):
        for column in range(0, columns, wide):
            window = Window(row, column, min(side, rows - row), min(wide, columns - column))
            for line in raster.read(window, [1])[0]:  # bincount makes eight bytes of each: by rows they stay in cache
                found += np.bincount(line, minlength=256)
    wrong = np.flatnonzero(found[count:NODATA])
    if wrong.size:
        raise ValueError(
            f"{map_path}: {count + wrong[0]} is no class, they are 0 to {count - 1} and {NODATA} for unknown; "
            "give the classes that it was made with"
        )
    return found[:count]


def quicklook(
    map_path: Path,
    out: Path,
    *,
    names: Sequence[str],
    colours: Sequence[Colour],
    title: str,
    counts: Sequence[int] | NDArray[np.int64] | None = None,
) -> None:
    """Draw a map of classes with a legend of their shares, at most 1200 pixels wide, from its overviews.

    What is not known is hatched. On the ground pixels may be higher than wide; the picture shows them so. It has a
    scale bar where the coordinate system tells metres, and an arrow where north is not up. The same map gives the same
    bytes.

    Args:
        map_path: the map.
        out: the PNG; it is there whole or not at all.
        names: of classes in index order.
        colours: of each class.
        title: stands above the map.
        counts: pixels of each class if they are known; None: they are counted.

    Raises:
        ValueError: names and colours do not match, or the map is missing, damaged or of other classes.
        OSError: the picture cannot be written.
    """
    if len(names) != len(colours) or not 0 < len(names) <= NODATA:
        raise ValueError(
            f"a map needs 1 to {NODATA} names and as many colours, not {len(names)} and {len(colours)}; "
            "give each class one of both"
        )
    pixels = np.asarray(class_shares(map_path, len(names)) if counts is None else counts)
    grid = GeoTiff.open(map_path).grid
    ground = _ground(grid)
    below = _proportion(grid, ground) < 0.6
    widest = _WIDTH - 2 * _EDGE - (0 if below else _GAP + _COLUMN)
    high, wide = _size(grid, ground, widest)
    picture = _picture(map_path, grid, (high, wide), colours)
    entries = _entries(names, colours, pixels)
    data = _drawn(picture, entries, title, _facts(grid, pixels), ground=_bar(grid, ground, wide), below=below)
    part = out.with_name(out.name + ".part")
    try:
        part.write_bytes(data)
        part.replace(out)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _ground(grid: GeoBox) -> _Ground | None:
    """None where there is no coordinate system, or none on the earth."""
    if grid.crs is None:
        return None
    from pyproj import Geod, Transformer
    from pyproj.exceptions import ProjError

    row, column = grid.shape.y / 2, grid.shape.x / 2
    steps = ((0, 0), (0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5))
    places = [grid.affine @ (column + right, row + lower) for right, lower in steps]
    try:
        to_degrees = Transformer.from_crs(grid.crs.to_wkt(), "EPSG:4326", always_xy=True)
        east, north = to_degrees.transform([place[0] for place in places], [place[1] for place in places])
        if not np.isfinite([east, north]).all():
            return None
        geod = Geod(ellps="WGS84")
        rightwards, _, across = geod.inv(east[2], north[2], east[1], north[1])
        upwards, _, down = geod.inv(east[3], north[3], east[4], north[4])
    except ProjError:
        return None
    right, up = math.cos(math.radians(rightwards)), math.cos(math.radians(upwards))
    length = math.hypot(right, up)
    if not (across > 0 and down > 0 and length > 0):
        return None
    return _Ground(across=across, down=down, north=(right / length, up / length))


def _proportion(grid: GeoBox, ground: _Ground | None) -> float:
    """Height of the map for a width of 1."""
    return grid.shape.y * _stretch(grid, ground) / grid.shape.x


def _stretch(grid: GeoBox, ground: _Ground | None) -> float:
    """How much higher than wide a pixel is; no more than four times, or one sees nothing."""
    if ground is not None:
        ratio = ground.down / ground.across
    else:
        affine = grid.affine
        ratio = math.hypot(affine.b, affine.e) / math.hypot(affine.a, affine.d)
    return min(max(ratio, 0.25), 4.0)


def _size(grid: GeoBox, ground: _Ground | None, widest: int) -> tuple[int, int]:
    """(rows, columns) of the map in the picture; what is enlarged is enlarged by whole numbers along a row."""
    stretch = _stretch(grid, ground)
    scale = min(widest / grid.shape.x, widest / (grid.shape.y * stretch), _LARGEST)
    if scale > 1:
        scale = math.floor(scale)
    return max(1, round(grid.shape.y * stretch * scale)), max(1, round(grid.shape.x * scale))


def _picture(map_path: Path, grid: GeoBox, shape: tuple[int, int], colours: Sequence[Colour]) -> NDArray[np.uint8]:
    """Red, green, blue [rows, columns, 3] of the map."""
    small = read_small(map_path, (min(shape[0], grid.shape.y), min(shape[1], grid.shape.x)))
    rows, columns = (np.arange(after) * before // after for before, after in zip(small.shape, shape, strict=True))
    classes = small[np.ix_(rows, columns)]
    table = np.full((256, 3), 255, dtype=np.uint8)
    table[: len(colours)] = colours
    picture: NDArray[np.uint8] = table[classes]
    lines = np.add.outer(np.arange(shape[0]), np.arange(shape[1])) % 8 == 0
    picture[lines & (classes == NODATA)] = 205
    return picture


def _entries(names: Sequence[str], colours: Sequence[Colour], pixels: NDArray[np.int64]) -> list[_Entry]:
    """Classes that are there, the commonest first; rare ones together where there are too many."""
    total = max(int(pixels.sum()), 1)
    order = [index for index in np.argsort(-pixels, kind="stable") if pixels[index] > 0]
    entries = [
        _Entry(name=" ".join(names[index].split()), colour=colours[index], share=int(pixels[index]) / total)
        for index in order
    ]
    if len(entries) > _MOST:
        rest = entries[_MOST - 1 :]
        name = f"{len(rest)} more classes"
        entries = [*entries[: _MOST - 1], _Entry(name=name, colour=None, share=sum(one.share for one in rest))]
    return entries


def _facts(grid: GeoBox, pixels: NDArray[np.int64]) -> str:
    rows, columns = grid.shape.yx
    known = int(pixels.sum())
    facts = [f"{columns:,} x {rows:,} pixels"]
    if grid.crs is not None and grid.crs.epsg:
        facts.append(f"EPSG:{grid.crs.epsg}")
    if known < rows * columns:
        facts.append(f"{_percent(1 - known / (rows * columns))} without data")
    return " · ".join(facts)


def _percent(share: float) -> str:
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return f"{100 * share:.1f} %"


@dataclass(frozen=True, kw_only=True)
class _Bar:
    """A scale bar, and the arrow beside it."""

    length: float
    """In pixels of the picture, 0: none."""

    label: str

    north: tuple[float, float] | None
    """(to the right, upwards); None: it is up, or nobody knows."""


def _bar(grid: GeoBox, ground: _Ground | None, wide: int) -> _Bar:
    if ground is None:
        return _Bar(length=0, label="", north=None)
    tilted = ground.north[1] < math.cos(math.radians(5))
    metres = ground.across * grid.shape.x
    north = ground.north if tilted else None
    if metres > _FARTHEST:
        return _Bar(length=0, label="", north=north)
    most = metres * min(0.3, 220 / wide)
    power = 10.0 ** math.floor(math.log10(most))
    length = next(step * power for step in (5, 2, 1) if step * power <= most)
    label = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    return _Bar(length=length / metres * wide, label=label, north=north)


def _drawn(
    picture: NDArray[np.uint8], entries: Sequence[_Entry], title: str, facts: str, *, ground: _Bar, below: bool
) -> bytes:
    """The PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late: it loads for half a second
    from matplotlib.figure import Figure

    high, wide = picture.shape[:2]
    top, foot = _EDGE + 44, 52
    roomy = not below and len(entries) * 40 <= max(high, 400)
    step = 40 if roomy else 25
    columns = max(1, (_WIDTH - 2 * _EDGE + _GAP) // (_COLUMN + _GAP)) if below else 1
    lines = -(-len(entries) // columns)
    room = (_WIDTH - 2 * _EDGE + _GAP) / columns - _GAP if below else _COLUMN
    legend = max(lines, 1) * step
    if below:
        width, height = max(wide + 2 * _EDGE, _WIDTH), top + high + foot + legend + _EDGE
        left, first = _EDGE, top + high + foot
    else:
        width = max(wide, 300) + _GAP + _COLUMN + 2 * _EDGE
        height = top + max(high + foot, legend) + _EDGE // 2
        left, first = _EDGE + max(wide, 300) + _GAP, top
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    framed = np.pad(picture, ((1, 1), (1, 1), (0, 0)), constant_values=140)
    figure.figimage(framed, _EDGE - 1, height - top - high - 1, origin="upper", zorder=-1)
    axes.patch.set_visible(False)
    pen = _Pen(figure, canvas, axes)
    pen.text(_EDGE, _EDGE + 12, title, size=24, bold=True, room=width - 2 * _EDGE)
    _foot(pen, ground, facts, top + high, width if below else left - _GAP + _EDGE)
    if not entries:
        pen.text(left, first + 10, "nothing is mapped", size=15, colour=_PALE)
    for number, one in enumerate(entries):
        column, line = divmod(number, lines)
        _line(pen, one, (left + column * (room + _GAP), first + line * step), room=room, roomy=roomy)
    return pen.png()


def _foot(pen: _Pen, bar: _Bar, facts: str, top: float, right: float) -> None:
    """Scale bar, arrow and facts below the map."""
    at = _EDGE + 0.0
    if bar.length:
        pen.box(at, top + 14, bar.length, 5, fill=_INK)
        at += pen.text(at + bar.length + 8, top + 17, bar.label, size=14) + bar.length + 28
    if bar.north is not None:
        east, up = bar.north
        pen.arrow((at + 10 - 9 * east, top + 17 + 9 * up), (at + 10 + 11 * east, top + 17 - 11 * up))
        at += 24 + pen.text(at + 28, top + 17, "N", size=14, bold=True) + 24
    pen.text(right - _EDGE, top + 17, facts, size=13, colour=_PALE, room=right - _EDGE - at, right=True)


def _line(pen: _Pen, one: _Entry, corner: tuple[float, float], *, room: float, roomy: bool) -> None:
    """A class, its share, and if there is space for it the share as a part of the whole."""
    left, middle = corner[0], corner[1] + 9
    paint = "white" if one.colour is None else "#{:02x}{:02x}{:02x}".format(*one.colour)
    pen.box(left, middle - 8, 16, 16, fill=paint, edge=_PALE)
    share = pen.text(left + room, middle, _percent(one.share), size=15, colour=_PALE, right=True)
    pen.text(left + 26, middle, one.name, size=15, room=room - 26 - share - 12)
    if roomy:
        pen.box(left + 26, middle + 13, room - 26, 4, fill=_RULE)
        pen.box(left + 26, middle + 13, max(1, (room - 26) * one.share), 4, fill=paint)


class _Pen:
    """Draws in pixels, y downwards."""

    def __init__(self, figure: Figure, canvas: FigureCanvasAgg, axes: Axes) -> None:
        self.figure, self.canvas, self.axes = figure, canvas, axes

    def box(self, x: float, y: float, wide: float, high: float, *, fill: str = "none", edge: str = "none") -> None:
        from matplotlib.patches import Rectangle

        self.axes.add_patch(Rectangle((x, y), wide, high, facecolor=fill, edgecolor=edge, linewidth=0.7))

    def arrow(self, tail: tuple[float, float], head: tuple[float, float]) -> None:
        from matplotlib.patches import FancyArrowPatch

        patch = FancyArrowPatch(tail, head, arrowstyle="-|>", mutation_scale=12, color=_INK, shrinkA=0, shrinkB=0)
        self.axes.add_patch(patch)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float,
        colour: str = _INK,
        bold: bool = False,
        right: bool = False,
        room: float = math.inf,
    ) -> float:
        """Write words, cut where there is no room for all, and give their width."""
        from matplotlib.font_manager import FontProperties, findfont, get_font

        font = FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal", size=size * 72 / _DPI)
        renderer = self.canvas.get_renderer()

        def width(words: str) -> float:
            return float(renderer.get_text_width_height_descent(words, font, ismath=False)[0])

        glyphs = get_font(findfont(font))  # one font of matplotlib's own: the same picture on every machine
        text = "".join(one if glyphs.get_char_index(ord(one)) else "□" for one in " ".join(text.split()))
        if width(text) > room:
            fits = bisect_right(range(1, len(text)), room, key=lambda count: width(text[:count] + "…"))
            text = text[:fits].rstrip() + "…"
        self.axes.text(
            x,
            y,
            text,
            fontproperties=font,
            color=colour,
            ha="right" if right else "left",
            va="center_baseline",
            parse_math=False,
            usetex=False,
        )
        return width(text)

    def png(self) -> bytes:
        data = io.BytesIO()
        self.figure.savefig(data, format="png", dpi=_DPI, metadata={"Software": None})
        return data.getvalue()

"""Colours of classes: the same class looks the same on every map, chart and page."""

from __future__ import annotations

import colorsys
import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Colour = tuple[int, int, int]
"""Red, green, blue, 0 to 255."""

CROPS: Mapping[str, Colour] = {
    "maize": (242, 169, 0),
    "corn": (242, 169, 0),
    "sorghum": (138, 66, 31),
    "wheat": (165, 108, 54),
    "spelt": (165, 108, 54),
    "barley": (232, 198, 160),
    "rye": (120, 92, 80),
    "triticale": (150, 130, 75),
    "oat": (205, 160, 150),
    "rape": (246, 232, 72),
    "canola": (246, 232, 72),
    "grass": (116, 190, 84),
    "meadow": (116, 190, 84),
    "pasture": (116, 190, 84),
    "potato": (110, 84, 168),
    "beet": (200, 45, 112),
    "sugarbeet": (200, 45, 112),
    "sunflower": (232, 93, 28),
    "soya": (64, 124, 40),
    "soybean": (64, 124, 40),
    "alfalfa": (52, 172, 138),
    "lucerne": (52, 172, 138),
    "clover": (52, 172, 138),
    "leguminous": (52, 172, 138),
    "pea": (160, 215, 190),
    "bean": (96, 150, 140),
    "vegetable": (70, 170, 190),
    "flax": (150, 180, 235),
    "rice": (60, 205, 215),
    "grape": (112, 38, 84),
    "vine": (112, 38, 84),
    "vineyard": (112, 38, 84),
    "orchard": (235, 140, 170),
    "fruit": (235, 140, 170),
    "cereal": (196, 140, 92),
    "forest": (22, 88, 58),
    "wood": (22, 88, 58),
    "tree": (22, 88, 58),
    "water": (52, 120, 210),
    "crop": (214, 178, 70),
    "rangeland": (178, 190, 96),
    "shrub": (140, 130, 60),
    "urban": (112, 116, 124),
    "built": (112, 116, 124),
    "building": (112, 116, 124),
    "fallow": (200, 196, 170),
    "bare": (200, 196, 170),
    "soil": (200, 196, 170),
    "other": (150, 156, 164),
    "background": (214, 218, 222),
    "void": (214, 218, 222),
}
"""Colours by the beginning of a word in the class's name; a word that comes earlier in this table wins."""

CYCLE: Sequence[Colour] = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
    (51, 34, 136),
    (136, 34, 85),
    (153, 153, 51),
    (68, 170, 153),
    (221, 204, 119),
)
"""For any other class: Okabe and Ito's colour-blind-safe set (Color Universal Design, 2008), then those of Tol's muted
set (SRON/EPS/TN/09-002) that are not close to one of them."""

APART = 36.0
"""Two colours at least so far from each other in RGB are told apart without effort."""


def palette(classes: Sequence[str]) -> tuple[Colour, ...]:
    """One colour for each class, all of them different.

    Crops and land covers are known by name in any spelling of case and word order ("Winter wheat", "wheat_winter"), and
    get the colour one expects: rapeseed is yellow, water is blue. The first class of its kind takes the colour itself,
    later ones (durum wheat after soft wheat) a lighter or darker shade. Unknown names take colours of a colour-blind-
    safe cycle that no class of this list uses yet.

    Args:
        classes: at most 256 names, each once.

    Raises:
        ValueError: a name stands twice, or there are more than 256.
    """
    names = list(classes)
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"class names must be unique, {', '.join(doubled)} stands twice; rename one of them")
    if len(names) > 256:
        raise ValueError(f"a palette has at most 256 colours, there are {len(names)} classes; merge rare classes")
    chosen: dict[str, Colour] = {}
    known = {name: colour for name in names if (colour := _crop(name)) is not None}
    for name, colour in known.items():
        chosen[name] = _first_apart((colour, *_shades(colour), *_wheel()), list(chosen.values()))
    for name in names:
        if name not in known:
            chosen[name] = _first_apart((*CYCLE, *_wheel()), list(chosen.values()))
    return tuple(chosen[name] for name in names)


def _crop(name: str) -> Colour | None:
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]
    for key, colour in CROPS.items():
        # a short key begins words of another kind: pea and peach, rye and ryegrass
        if any(word.startswith(key) if len(key) > 3 else word in {key, key + "s"} for word in words):
            return colour
    return None


def _shades(colour: Colour) -> Iterator[Colour]:
    """Lighter and darker neighbours of a colour, by turns."""
    for share in (0.35, 0.55, 0.2):
        for end in (255, 0):
            red, green, blue = (round(value + share * (end - value)) for value in colour)
            yield red, green, blue


def _wheel() -> Iterator[Colour]:
    """Colours for as many classes as a map can hold: hues a golden angle apart, in six tones."""
    for turn in range(512):
        saturation, value = ((0.75, 0.85), (0.45, 0.95), (0.9, 0.55), (0.55, 0.7), (0.3, 0.8), (0.7, 0.35))[turn % 6]
        red, green, blue = colorsys.hsv_to_rgb(turn * 0.618034 % 1.0, saturation, value)
        yield round(255 * red), round(255 * green), round(255 * blue)


def _first_apart(wanted: Sequence[Colour], taken: Sequence[Colour]) -> Colour:
    """The first wanted colour that is far enough from those taken; when none is, the one farthest from them."""
    if not taken:
        return wanted[0]
    steps = np.array(wanted)[:, None] - np.array(taken)[None]
    gaps = np.sqrt((steps**2).sum(axis=-1)).min(axis=1)
    far = np.flatnonzero(gaps >= APART)
    return wanted[int(far[0] if far.size else gaps.argmax())]

"""Rasters without labels: windows drawn anywhere in them, to be learned from before there are labels."""

from __future__ import annotations

import logging
import math
import os
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from geomed.data.drawable import Drawable
from geomed.data.mapped_scenes import Settings, find_scenes
from geomed.data.source import Part, Source
from geomed.windows import Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from geomed.data.mapped_scenes import SceneFile
    from geomed.data.opening import MappedScene

_log = logging.getLogger(__name__)

_TRIES = 16  # windows of one raster before another is drawn
_RASTERS = 64  # rasters before it is given up
_PROBED = 8  # windows that are drawn before anything is learned
_LISTED = 20  # files in a message
_OPENED_AT_ONCE = 8  # reading heads waits for the disk or the network more than for a core
_FLAGS = {"--scale": "scale", "--offset": "offset", "--band-names": "band_names"}  # what `geomed map` calls the fields


@dataclass(frozen=True, kw_only=True)
class UnlabelledRasters(Source):
    """Windows of rasters that have no labels; only training can draw from it.

    A raster is drawn with a chance proportional to its number of pixels and a window of it uniformly, so every place
    that is not at a border is as likely as any other; a window in which too much is missing is drawn again. Rasters
    may differ in coordinate system, size and resolution: a window is counted in pixels.

    A sample has ``values`` and ``valid``, each ``window`` x ``window``. A raster may be narrower or lower than a
    window, down to half of it: it is then read whole and filled at its right and lower end with what is not valid.
    """

    paths: tuple[str, ...]
    """Files (GeoTIFF, COG, VRT, JPEG 2000), addresses, folders, or patterns with ``*``, ``?``, ``[…]`` and ``**`` for
    any folders; with ``{band}`` in place of a band's name, one file for each band."""

    bands: tuple[str, ...]
    """What is read, by name, in this order, whatever the order of the files."""

    window: int = 256
    """Side of a window in pixels; crops are cut out of it."""

    scale: float | None = None
    """Value of one step of the stored numbers, with ``offset``; None: as each file declares."""

    offset: float | None = None
    """Value of the number 0; None: as each file declares."""

    nodata: float | None = None
    """Number that means "no observation" besides what the files declare."""

    band_names: tuple[str, ...] | None = None
    """Names of the bands in the order of the file, of files that do not describe them."""

    max_missing: float = 0.2
    """Largest share of a window's pixels in the raster that may be without observation."""

    per_epoch: int | None = None
    """Windows drawn in an epoch; None: as many as fit side by side into all rasters."""

    def __post_init__(self) -> None:
        """Refuse what no raster could give."""
        if not self.paths or not self.bands:
            raise ValueError("an unlabelled source needs files and bands; name both in `paths` and `bands`")
        doubled = sorted({band for band in self.bands if self.bands.count(band) > 1})
        if doubled:
            raise ValueError(f"bands must be named once each, {doubled[0]} stands twice; take one away")
        if self.window < 2:
            raise ValueError(f"a window has 2 x 2 pixels at least, not {self.window}; make it larger")
        if (self.scale is None) != (self.offset is None):
            raise ValueError(
                f"scale and offset belong together, they are {self.scale} and {self.offset}; say both (scale 1 and "
                "offset 0 change nothing), or neither where the files declare them"
            )
        if self.scale is not None and (not math.isfinite(self.scale) or self.scale == 0):
            raise ValueError(f"scale must be a finite number other than 0, not {self.scale}; correct it")
        if self.offset is not None and not math.isfinite(self.offset):
            raise ValueError(f"offset must be a finite number, not {self.offset}; correct it")
        if not 0 <= self.max_missing < 1:
            raise ValueError(f"max_missing is a share from 0 to below 1, not {self.max_missing}; correct it")
        if self.per_epoch is not None and self.per_epoch < 1:
            raise ValueError(f"an epoch draws one window at least, not {self.per_epoch}; correct per_epoch")

    @property
    def classes(self) -> tuple[str, ...]:
        """There are none."""
        return ()

    @property
    def summary(self) -> str:
        """What was found, for logs and reports."""
        samples = self._samples
        pixels = sum(math.prod(scene.grid.shape) for scene in samples.rasters)
        units = dict.fromkeys(scene.notes[0] for scene in samples.rasters)
        return (
            f"{len(samples.rasters)} rasters without labels, {pixels / 1e6:.4g} million pixels, {samples.fitting} "
            f"windows of {self.window} x {self.window} side by side; {'; '.join(units)}"
        )

    def prepare(self) -> None:
        """Read all heads, and a few windows, so that a run does not find out after hours that there is nothing.

        Raises:
            ValueError: nothing is found; files cannot be opened, lack a band or say no unit; there is a single
                window; or hardly any window has enough observations.
        """
        samples = self._samples
        for index in range(_PROBED):
            samples.draw(index, torch.Generator().manual_seed(index))
        _log.info(self.summary)

    def split(self, part: Part) -> RasterWindows:
        """The windows; ``train`` is the only part.

        Raises:
            ValueError: it is another part; or as ``prepare``.
        """
        if part != "train":
            raise ValueError(
                f"these rasters have no labels, so there is nothing but train, and no {part}; give a source with "
                "labels where something is to be measured"
            )
        return self._samples

    @cached_property
    def _samples(self) -> RasterWindows:
        settings = Settings(
            bands=self.bands, scale=self.scale, offset=self.offset, nodata=self.nodata, band_names=self.band_names
        )
        found = find_scenes(self.paths, None, None, settings)
        rasters, errors = [], []
        for opened in self._opened(found):
            if isinstance(opened, ValueError):
                errors.append(str(opened))
            else:
                rasters.append(opened)
        if errors:
            more = f"\n  … and {len(errors) - _LISTED} more" if len(errors) > _LISTED else ""
            raise ValueError(
                f"{len(errors)} of {len(found)} rasters cannot be used; none is left out silently: mend them, or "
                "take them out of `paths`\n  " + "\n  ".join(errors[:_LISTED]) + more
            )
        samples = RasterWindows(rasters, side=self.window, max_missing=self.max_missing, per_epoch=self.per_epoch)
        if samples.fitting < 2:
            raise ValueError(
                f"there is one image, of {' x '.join(map(str, rasters[0].grid.shape.yx))} pixels, and one window of "
                f"{self.window} fits into it: nothing is learned from one; give more rasters or a smaller window"
            )
        return samples

    def _opened(self, found: Sequence[SceneFile]) -> Iterator[MappedScene | ValueError]:
        """Each raster, its head read, or what is wrong with it, in order."""
        threads = min(_OPENED_AT_ONCE, 4 * (os.cpu_count() or 1))
        with (
            ThreadPoolExecutor(threads) as pool,
            tqdm(total=len(found), desc="opening rasters", unit="raster", delay=2, leave=False) as bar,
        ):
            for opened in pool.map(self._open, found):
                bar.update()
                yield opened

    def _open(self, scene: SceneFile) -> MappedScene | ValueError:
        try:
            opened = scene.open()
        except ValueError as error:
            told = str(error)
            for flag, name in _FLAGS.items():
                told = told.replace(flag, name)
            return ValueError(told)
        height, width = opened.grid.shape.yx
        if 2 * min(height, width) < self.window:
            return ValueError(
                f"{opened.name}: a raster of {height} x {width} pixels would fill less than half a window of "
                f"{self.window}; give a smaller window or leave it out"
            )
        return opened


class RasterWindows(Drawable):
    """Windows of rasters; files are opened when they are read, so it pickles."""

    def __init__(
        self, rasters: Sequence[MappedScene], *, side: int, max_missing: float, per_epoch: int | None = None
    ) -> None:
        """Hold what to draw from.

        Args:
            rasters: single images of the same bands.
            side: of a window in pixels.
            max_missing: largest share of a window's pixels in the raster without observation.
            per_epoch: windows of an epoch; None: as many as fit side by side.
        """
        self.rasters, self.side, self.max_missing = tuple(rasters), side, max_missing
        sizes = [scene.grid.shape.yx for scene in self.rasters]
        self.fitting = sum(max(height // side, 1) * max(width // side, 1) for height, width in sizes)
        """Windows that fit side by side."""
        self._length = self.fitting if per_epoch is None else per_epoch
        self._ends = list(accumulate(height * width for height, width in sizes))

    def __len__(self) -> int:
        return self._length

    def draw(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        """``values`` float32 [C, S, S] and ``valid`` bool [S, S]; the index has no part in it.

        Raises:
            ValueError: a file is damaged, or of many windows none has enough observations.
        """
        least = 1.0
        for _ in range(_RASTERS):
            scene = self.rasters[bisect_right(self._ends, _below(self._ends[-1], generator))]
            for _ in range(_TRIES):
                read = scene.read(self.place(scene, generator))
                valid = np.asarray(read["valid"])
                missing = 1 - np.count_nonzero(valid) / valid.size
                if missing <= self.max_missing:
                    return {"values": _filled(read["values"], self.side), "valid": _filled(valid, self.side)}
                least = min(least, missing)
        what = "all of them nodata" if least == 1 else f"the best of them lacks {least:.0%} of its pixels"
        raise ValueError(
            f"{_RASTERS * _TRIES} windows were drawn from {len(self.rasters)} rasters, as {self.rasters[0].name}, and "
            f"none is observed well enough, {what} (all-nodata rasters, or a wrong `nodata`?); raise max_missing, "
            f"which is {self.max_missing:g}, or give others"
        )

    def place(self, scene: MappedScene, generator: torch.Generator) -> Window:
        """A window of a raster, each as likely as any other."""
        height, width = (min(self.side, length) for length in scene.grid.shape.yx)
        rows, columns = scene.grid.shape.yx
        return Window(_below(rows - height + 1, generator), _below(columns - width + 1, generator), height, width)


def _below(limit: int, generator: torch.Generator) -> int:
    """A whole number from 0 to below ``limit``."""
    return int(torch.randint(limit, (), generator=generator))


def _filled(array: NDArray[np.generic], side: int) -> Tensor:
    """The last two axes filled with 0 to ``side``."""
    height, width = array.shape[-2:]
    if (height, width) != (side, side):
        array = np.pad(array, [*[(0, 0)] * (array.ndim - 2), (0, side - height), (0, side - width)])
    return torch.from_numpy(array)

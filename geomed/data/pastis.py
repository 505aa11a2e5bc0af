"""PASTIS-R: a year of Sentinel-2 over four tiles of France, with the crop of every parcel."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from affine import Affine
from odc.geo.geobox import GeoBox
from torch import Tensor
from torch.utils.data import Dataset

from geomed.bands import PASTIS_BANDS, band_indices
from geomed.data.source import Part, Scene, Source
from geomed.io.dates import date_in, days_since_epoch
from geomed.pixels import IGNORE
from geomed.windows import Window, cover

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

CLASSES = (
    "background",
    "meadow",
    "soft winter wheat",
    "corn",
    "winter barley",
    "winter rapeseed",
    "spring barley",
    "sunflower",
    "grapevine",
    "beet",
    "winter triticale",
    "winter durum wheat",
    "fruits, vegetables, flowers",
    "potatoes",
    "leguminous fodder",
    "soybeans",
    "orchard",
    "mixed cereal",
    "sorghum",
)
"""The 19 classes that are scored; 19 itself, "void", marks parcels that lie mostly outside their patch."""

_VOID = 19
_SIDE = 128
_METRES = 10
_SCALE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Patch:
    """One series of 128 x 128 pixels."""

    name: str
    """Its number in the archive."""

    images: Path
    """[T, 10, 128, 128] int16, reflectance x 10 000."""

    labels: Path
    """[3, 128, 128], the classes first."""

    days: tuple[int, ...]
    """Date of each image, days since 1970-01-01."""

    grid: GeoBox
    """10 m in the UTM zone of its tile. The archive gives the outline in Lambert-93, so the corner is right to a
    pixel."""


@dataclass(frozen=True, kw_only=True)
class Pastis(Source):
    """PASTIS-R with its official folds (Garnot and Landrieu, ICCV 2021; PASTIS-R: Garnot et al., ISPRS 2022).

    The archive is found and its patches are listed by torchgeo's ``PASTIS``; the arrays are then read window by
    window. Windows cover all 128 x 128 pixels of a patch, the last of each row and column shifted inwards. There is
    no cloud mask: every pixel of every date counts as an observation. ``datasets/pastis`` downloads the archive.
    """

    root: str = "data/pastis"
    """Folder that holds ``PASTIS-R``."""

    bands: tuple[str, ...] = PASTIS_BANDS
    """Bands to read, among the ten of the archive."""

    window: int = 24
    """Side of a window in pixels."""

    margin: int = 0
    """Pixels at each inner side of a val, test or predict window that are context only."""

    train: tuple[int, ...] = (1, 2, 3)
    """Folds to learn from."""

    val: tuple[int, ...] = (4,)
    """Folds to choose with."""

    test: tuple[int, ...] = (5,)
    """Folds to report on, and to map."""

    def __post_init__(self) -> None:
        """Refuse folds that are none or stand in two parts, bands that are missing, and margins that leave nothing."""
        folds = [*self.train, *self.val, *self.test]
        if len(set(folds)) < len(folds) or not set(folds) <= set(range(1, 6)):
            raise ValueError(f"folds are 1 to 5, each in one part, not {self.train}, {self.val}, {self.test}; move one")
        if self.margin < 0 or self.window <= 2 * self.margin:
            raise ValueError(
                f"twice the margin must be smaller than the window: 2 x {self.margin} against {self.window}; change one"
            )
        band_indices(self.bands, PASTIS_BANDS, where="PASTIS-R")

    @property
    def classes(self) -> tuple[str, ...]:
        """The 19 classes."""
        return CLASSES

    def scenes(self) -> tuple[Scene, ...]:
        """One for each patch of the folds in use."""
        return tuple(Scene(name=patch.name, grid=patch.grid) for patches in self._folds.values() for patch in patches)

    def prepare(self) -> None:
        """Check the head of every array.

        Raises:
            ValueError: the archive is missing, or an array is missing, truncated or of another shape.
        """
        for patches in self._folds.values():
            for patch in patches:
                _array(patch.images, (len(patch.days), len(PASTIS_BANDS), _SIDE, _SIDE))
                _array(patch.labels, (3, _SIDE, _SIDE))

    def split(self, part: Part) -> PatchWindows:
        """The windows of the folds of one part.

        Raises:
            ValueError: the archive is missing.
        """
        folds = {"train": self.train, "val": self.val, "test": self.test, "predict": self.test}[part]
        first, patches, starts = 0, list[Patch](), list[int]()
        for fold, found in self._folds.items():
            if fold in folds:
                patches.extend(found)
                starts.extend(range(first, first + len(found)))
            first += len(found)
        return PatchWindows(
            tuple(patches),
            tuple(starts),
            bands=tuple(band_indices(self.bands, PASTIS_BANDS, where="PASTIS-R")),
            windows=tuple(cover((_SIDE, _SIDE), size=self.window, margin=0 if part == "train" else self.margin)),
            overlap=part == "train",
        )

    @cached_property
    def _folds(self) -> dict[int, tuple[Patch, ...]]:
        return {fold: _patches(Path(self.root), fold) for fold in sorted((*self.train, *self.val, *self.test))}


class PatchWindows(Dataset[dict[str, Tensor]]):
    """Windows of patches as samples of ``geomed.data.source.Source``."""

    def __init__(
        self,
        patches: Sequence[Patch],
        scenes: Sequence[int],
        *,
        bands: tuple[int, ...],
        windows: tuple[tuple[Window, Window], ...],
        overlap: bool,
    ) -> None:
        """Hold what to read.

        Args:
            patches: the patches of the part.
            scenes: index of each among the source's scenes.
            bands: indices of the bands in the archive.
            windows: (read, keep) within every patch.
            overlap: whether labels outside ``keep`` count, so that some pixels count twice.
        """
        self.patches, self.scenes, self.bands = patches, scenes, bands
        self.windows, self.overlap = windows, overlap

    def __len__(self) -> int:
        return len(self.patches) * len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One window.

        Raises:
            ValueError: an array is missing, truncated or of another shape.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        number, which = divmod(index, len(self.windows))
        patch, (read, keep) = self.patches[number], self.windows[which]
        rows, columns = read.slices
        images = _array(patch.images, (len(patch.days), len(PASTIS_BANDS), _SIDE, _SIDE))
        order = np.argsort(patch.days, kind="stable")
        values = images[:, :, rows, columns][order][:, self.bands].astype(np.float32) * np.float32(_SCALE)
        valid = np.isfinite(values).all(axis=1)
        values[~np.broadcast_to(valid[:, None], values.shape)] = 0
        classes = _array(patch.labels, (3, _SIDE, _SIDE))[0, rows, columns].astype(np.int64)
        if not self.overlap:
            counted = np.full_like(classes, IGNORE)
            inner = keep.within(read).slices
            counted[inner] = classes[inner]
            classes = counted
        return {
            "values": torch.from_numpy(values),
            "days": torch.tensor(patch.days)[torch.from_numpy(order)],
            "valid": torch.from_numpy(valid),
            "labels": torch.from_numpy(np.where(classes == _VOID, IGNORE, classes)),
            "scene": torch.tensor(self.scenes[number]),
            "read": torch.tensor([read.row, read.column, read.height, read.width]),
            "keep": torch.tensor([keep.row, keep.column, keep.height, keep.width]),
        }


def _patches(root: Path, fold: int) -> tuple[Patch, ...]:
    import geopandas  # both are slow to import, and only needed where the archive is opened
    from torchgeo.datasets import PASTIS

    if not (root / PASTIS.directory).is_dir() and not (root / PASTIS.filename).is_file():
        raise ValueError(
            f"{root}: there is neither a folder {PASTIS.directory} nor {PASTIS.filename}; "
            "download them with datasets/pastis/prepare.py or correct root"
        )
    archive = PASTIS(str(root), folds=(fold,), download=False)
    table = geopandas.read_file(root / archive.directory / "metadata.geojson").set_index("ID_PATCH")
    return tuple(
        Patch(
            name=str(name),
            images=Path(files["s2"]),
            labels=Path(files["semantic"]),
            days=_days(table.loc[name, "dates-S2"], f"patch {name}"),
            grid=_grid(table.geometry.loc[[name]], str(table.loc[name, "TILE"])),
        )
        for name, files in zip(archive.idxs, archive.files, strict=True)
    )


def _days(dates: str | dict[str, int], where: str) -> tuple[int, ...]:
    """{"0": 20180924, ...} → days; readers of GeoJSON differ in whether the table stays text."""
    table: dict[str, Any] = json.loads(dates) if isinstance(dates, str) else dates
    listed = sorted((int(number), str(day)) for number, day in table.items() if day is not None)
    return tuple(days_since_epoch(date_in(day, where=where)) for _, day in listed)


def _grid(outline: Any, tile: str) -> GeoBox:  # noqa: ANN401  (a GeoSeries; geopandas is imported lazily)
    """10 m pixels around the centre of an outline, in the zone that the tile's name begins with (t31tfm: 31 north)."""
    zone = f"EPSG:326{tile.lstrip('tT')[:2]}"
    left, bottom, right, top = outline.to_crs(zone).total_bounds
    half = _SIDE * _METRES / 2
    corner = [round(value / _METRES) * _METRES for value in ((left + right) / 2 - half, (bottom + top) / 2 + half)]
    return GeoBox((_SIDE, _SIDE), Affine(_METRES, 0, corner[0], 0, -_METRES, corner[1]), zone)


def _array(path: Path, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """An array mapped into memory, so that only the pixels asked for are read."""
    try:
        array: NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"{path}: the array cannot be read ({str(error).splitlines()[0]}); it is missing or truncated: unpack the "
            "archive again"
        ) from error
    if array.shape != shape:
        raise ValueError(f"{path}: an array of {shape} is needed, this one is {array.shape}; unpack the archive again")
    return array

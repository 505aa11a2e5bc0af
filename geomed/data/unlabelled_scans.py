"""Scans without labels: every picture and every slice below a folder, to be learned from before there are labels."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from geomed.data.rendition import Rendition
from geomed.data.scan_cache import FACTS, Rendered, ScanCache, Shard, UnusableScansError
from geomed.data.scan_files import ENDINGS, Reading
from geomed.data.scan_folder import attempted, scans_below, sort_scans
from geomed.data.scan_slices import Slices, rendered, shown
from geomed.data.source import Part, Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_log = logging.getLogger(__name__)
_LISTED = 20  # files in a message


@dataclass(frozen=True, kw_only=True)
class UnlabelledScans(Source):
    """All pictures below a folder, and all slices of its volumes, without labels; only training can read them.

    Each PNG, JPEG, TIFF or BMP is an image, so is each frame of a DICOM file and each slice of a NIfTI volume. DICOM
    files of one series in one folder are a volume; files are DICOM's by their ending or by their content. DICOM files
    that are no pictures (reports, plans, segmentations) are left out and counted. Everything is decoded once before
    the first step, so that no unreadable file is found out hours later. Errors and logs call files by their number in
    the order of their paths and quote no path, for names of folders are names of patients; ``path_of`` tells a path.

    A sample has ``values`` alone: uint8 [C, H, W] of brightness from 0 to 255, or float32 in the scans' unit where the
    rendition keeps 16 bits. Each slice is rendered by itself: the windows "full", "robust" and "file" are those of the
    slice, so for CT take a window of HU. ``rendition.size`` is what crops are cut from: larger than a crop is usual.
    Slices of DICOM are as they were acquired, those of NIfTI are turned as ``reading.orientation`` says.

    Are images of test patients allowed here? No label is read, so none leaks, and results on these patients are those
    of a network that knows their images (a transductive one): what a figure says about patients of another day it no
    longer says strictly. Unsupervised steps that have seen the test data bias its figures, upwards or downwards
    (Moscovich and Rosset, "On the cross-validation bias due to unsupervised preprocessing", JRSS B 84(4), 2022). To
    rule it out, give pre-training the labelled source itself (``ScanTable``, ``FolderOfClasses``, with its split by
    patient): of any source only the train part is read.
    """

    folder: str
    """The folder; scans lie in it and below, at any depth."""

    rendition: Rendition = Rendition()  # noqa: RUF009  (frozen)
    """What happens to every image before a network sees it; ``slices`` takes so many of each volume."""

    reading: Reading = Reading()  # noqa: RUF009  (frozen)
    """What the files do not say themselves."""

    pattern: str = "*"
    """What the paths below the folder have to look like; ``*`` stands for anything, folders too."""

    exclude: tuple[str, ...] = ()
    """Patterns of paths that are left out, such as ``*_seg.nii.gz`` for masks beside the scans."""

    min_spread: float = 0.1
    """Least spread of a slice's values, as a share of the median of its volume: less is the air above or below a
    patient, from which there is nothing to learn. Images of one value, but for half a percent of their pixels, are
    left out in any case."""

    cache: ScanCache | None = None
    """Where the images are kept as the rendition makes them; None: each is decoded each time, and of gzipped or turned
    volumes all slices for each one that is read: set it for them."""

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if not 0 <= self.min_spread < 1:
            raise ValueError(f"min_spread is a share from 0 to below 1, not {self.min_spread}; correct it")

    @property
    def classes(self) -> tuple[str, ...]:
        """There are none."""
        return ()

    @property
    def bands(self) -> tuple[str, ...]:  # type: ignore[override]  # they follow from the rendition
        """Names of the channels."""
        return self.rendition.bands

    @property
    def summary(self) -> str:
        """What was found and what was left out, for logs and reports; it names nobody."""
        return "; ".join(self._checked[1])

    def path_of(self, file: int) -> Path:
        """The file that a number stands for, for the eyes of its owner.

        Raises:
            ValueError: no file has it.
        """
        files = self._files[0]
        if not 1 <= file <= len(files):
            raise ValueError(f"files are numbered from 1 to {len(files)}, there is no {file}; correct it")
        return files[file - 1]

    def prepare(self) -> None:
        """Decode everything once; fill the cache.

        Raises:
            ValueError: there is nothing, or one image; files cannot be read; or values mean different things.
        """
        _log.info(self.summary)

    def split(self, part: Part) -> ScanImages:
        """The images; ``train`` is the only part.

        Raises:
            ValueError: it is another part; or as ``prepare``.
        """
        if part != "train":
            raise ValueError(
                f"these scans have no labels, so there is nothing but train, and no {part}; give a source with labels "
                "where something is to be measured"
            )
        return self._checked[0]

    @cached_property
    def _files(self) -> tuple[tuple[Path, ...], int]:
        """The scans in the order of their paths, and how many other files lie there."""
        found, others = scans_below(Path(self.folder).expanduser(), pattern=self.pattern, exclude=self.exclude)
        if not found:
            raise ValueError(
                f"below the folder there is no scan, but {others} other files; scans end in {', '.join(ENDINGS)}, or "
                "are DICOM by their content: correct `folder`, `pattern` or `exclude`"
            )
        return found, others

    @cached_property
    def _checked(self) -> tuple[ScanImages, tuple[str, ...]]:
        files, others = self._files
        found = sort_scans(files, self.reading)
        blank: list[int] = []
        store: Shard | DecodedSlices
        if self.cache is None or found.errors:  # nothing is kept of a set that is refused
            store, facts = self._seen(found.scans, found.errors, blank)
        else:
            store, facts = self._kept(self.cache, found.scans, blank)
        self._refuse_units(facts)
        images = ScanImages(store)
        if len(images) < 2:
            raise ValueError(
                f"{len(files)} files hold {'one image' if len(images) else 'no image'} that shows something, and "
                f"{sum(blank)} blank ones: nothing is learned from one; add scans, or lower min_spread"
            )
        volumes = int(facts["volume"].sum())
        notes = [f"{len(images)} images without labels, of {len(facts) - volumes} pictures and {volumes} volumes"]
        notes.append(f"in the units {', '.join(sorted({unit.decode() for unit in facts['unit'].tolist()}))}")
        words = ("blank images", "DICOM files that are no pictures", "files that are no scans")
        left_out = zip((sum(blank), found.documents, others), words, strict=True)
        notes += [f"{count} {what} were left out" for count, what in left_out if count]
        slow = 0 if self.cache is not None else sum(one.unpacks(self.reading) for one in found.scans)
        if slow:
            notes.append(f"{slow} volumes are unpacked whole for each of their slices; set `cache`")
        return images, tuple(notes)

    def _seen(
        self, scans: Sequence[Slices], errors: Sequence[Exception], blank: list[int]
    ) -> tuple[DecodedSlices, NDArray[np.void]]:
        """All images, decoded each time; every scan is looked at once.

        Raises:
            ValueError: some cannot be used, and those of ``errors``.
        """

        def look(index: int) -> tuple[NDArray[np.int32], NDArray[np.void]]:
            one = shown(scans[index], self.reading, self.rendition, self.min_spread)
            blank.append(one.blank)
            return one.places, one.facts

        results = attempted(look, len(scans), "reading scans")
        wrong = [*errors, *(one for one in results if isinstance(one, Exception))]
        if wrong:
            raise ValueError(_told(wrong, len(self._files[0])))
        looks = [one for one in results if not isinstance(one, Exception)]
        store = DecodedSlices(
            scans=tuple(scans),
            places=tuple(places for places, _ in looks),
            reading=self.reading,
            rendition=self.rendition,
        )
        return store, np.array([facts for _, facts in looks], dtype=FACTS)

    def _kept(self, cache: ScanCache, scans: Sequence[Slices], blank: list[int]) -> tuple[Shard, NDArray[np.void]]:
        """All images from the cache, which is filled where it has to be.

        Raises:
            ValueError: some cannot be used.
        """
        recipe = {
            "images": "slice by slice",
            "reading": self.reading.recipe(),
            "rendition": self.rendition.recipe(),
            "min_spread": self.min_spread,
        }
        with tqdm(total=len(scans), desc="reading scans", unit="scan", delay=2, leave=False) as bar:

            def render(index: int) -> Rendered:
                one = shown(scans[index], self.reading, self.rendition, self.min_spread)
                blank.append(one.blank)
                bar.update()
                return Rendered(values=one.values, facts=one.facts)

            try:
                shard = cache.hold([one.files for one in scans], recipe, render, self.rendition.dtype)
            except UnusableScansError as error:
                wrong = [
                    ValueError(f"{scans[index].called}: {one.strerror}") if isinstance(one, OSError) else one
                    for index, one in sorted(error.errors.items())
                ]
                raise ValueError(_told(wrong, len(self._files[0]))) from None
        return shard, shard.facts()

    def _refuse_units(self, facts: NDArray[np.void]) -> None:
        """Refuse values of several units where the rendition takes them for one."""
        if self.rendition.depth == 8 and not isinstance(self.rendition.window, tuple):
            return
        grey = facts[~facts["colour"]]
        kinds = sorted(
            {
                (one["unit"].decode(), int(one["bits"])) if one["unit"] == b"grey" else (one["unit"].decode(), 0)
                for one in grey
            }
        )
        if len(kinds) > 1:
            told = ", ".join(f"{unit} of {bits} bits" if bits else unit for unit, bits in kinds)
            raise ValueError(
                f"the scans are in several units ({told}), and the rendition takes their numbers as they are; leave "
                "all but one out by `exclude`, or take depth 8 and a window by name"
            )


@dataclass(frozen=True, kw_only=True)
class DecodedSlices:
    """Slices that are decoded each time, each by itself."""

    scans: tuple[Slices, ...]
    """Pictures and volumes."""

    places: tuple[NDArray[np.int32], ...]
    """Of each scan, which of its slices count."""

    reading: Reading
    """What the files do not say themselves."""

    rendition: Rendition
    """What happens to a slice."""

    def __getitem__(self, at: tuple[int, int]) -> NDArray[np.generic]:
        """The slice [C, H, W] of a scan's number and its own among those that count.

        Raises:
            ValueError: it cannot be read any more.
        """
        scan, number = at
        return rendered(self.scans[scan], int(self.places[scan][number]), self.reading, self.rendition)


class ScanImages(Dataset[dict[str, Tensor]]):
    """Pictures and slices as ``UnlabelledScans`` describes them; files are opened when they are read."""

    def __init__(self, store: Shard | DecodedSlices) -> None:
        """Hold what to read.

        Args:
            store: the scans with their slices.
        """
        self.store = store
        kept = store.places if isinstance(store, DecodedSlices) else [store[scan] for scan in range(len(store))]
        self._ends = np.cumsum([len(one) for one in kept], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One image.

        Raises:
            ValueError: its file cannot be read any more.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} images, none of them is {index}")  # ends a plain loop
        scan = int(np.searchsorted(self._ends, index, side="right"))
        place = index - int(self._ends[scan - 1] if scan else 0)
        pixels = self.store[scan, place] if isinstance(self.store, DecodedSlices) else self.store[scan][place]
        # a copy: what is kept is a file that cannot be written to
        return {"values": torch.from_numpy(pixels.copy() if pixels.dtype == np.uint8 else pixels.astype(np.float32))}


def _told(wrong: Sequence[Exception], count: int) -> str:
    """All that is wrong in one message, without a path."""
    lines = [f"a file: {error.strerror}" if isinstance(error, OSError) else str(error) for error in wrong]
    more = f"\n  … and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
    return (
        f"{len(wrong)} of {count} files cannot be used; mend them or take them out by `exclude`, none is dropped "
        "silently. `path_of` tells the path of a file, counted from 1.\n  " + "\n  ".join(lines[:_LISTED]) + more
    )

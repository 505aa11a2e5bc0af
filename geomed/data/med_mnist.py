"""MedMNIST, read directly from its files: eighteen small biomedical sets with an official split."""

from __future__ import annotations

import os
import secrets
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from geomed.data.duplicates import Duplicates, fingerprint, look_alikes, refuse_across, refuse_contradictions
from geomed.data.med_mnist_sets import SETS
from geomed.data.source import Part, Source
from geomed.evaluation.labelled_cases import LabelledCases
from geomed.evaluation.patient_splits import Case, CaseDivision
from geomed.evaluation.splits import PARTS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geomed.data.med_mnist_sets import MedMnistSet

_SIZES = (28, 64, 128, 224)
_AS_PUBLISHED = Duplicates(
    bits=None,
    accepted="it is the official split of MedMNIST",
    contradictions="these are the labels of MedMNIST as published",
)


@dataclass(frozen=True, kw_only=True)
class MedMnist(Source, LabelledCases):
    """One file of MedMNIST: ``NAME.npz`` or ``NAME_SIZE.npz``, with the official split.

    Samples are as those of ``geomed.data.scan_source.ScanSource``: ``values`` uint8 [C, H, W] of images, ``slices``
    uint8 [S, 1, H, W] and ``present`` of volumes, ``label``, ``case`` (train, val and test in a row) and ``patient``:
    nobody knows who it is, so each case is its own.
    """

    file: str
    """The file."""

    name: str
    """Which set it is, as ``pneumoniamnist``."""

    size: int = 28
    """Side in pixels: 28, 64, 128 or 224; the file must have it."""

    unpacked: str | None = None
    """A folder where compressed arrays are laid open once, to be read in place; None: they are held in memory. Arrays
    that are not compressed are read in place anyway."""

    duplicates: Duplicates | None = _AS_PUBLISHED
    """Which images count as the same; None: they are not looked for, which for large files takes minutes."""

    def __post_init__(self) -> None:
        """Refuse sets and sizes that do not exist."""
        if self.name not in SETS:
            raise ValueError(f"MedMNIST has no set {self.name!r}; name one of {', '.join(SETS)}")
        sizes = _SIZES[:2] if self.about.volume else _SIZES
        if self.size not in sizes:
            raise ValueError(
                f"{self.name} has images of {', '.join(map(str, sizes))} pixels, not {self.size}; correct it"
            )

    @property
    def about(self) -> MedMnistSet:
        """What is known of the set."""
        return SETS[self.name]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self.about.classes

    @property
    def bands(self) -> tuple[str, ...]:  # type: ignore[override]  # they follow from the set
        """Names of the channels."""
        return ("red", "green", "blue") if self.about.channels == 3 else ("grey",)

    @property
    def several(self) -> bool:
        """Whether an image may show several classes, or none."""
        return self.about.task == "multi-label"

    @property
    def ordered(self) -> bool:
        """Whether the classes are grades."""
        return self.about.task == "ordinal"

    @property
    def division(self) -> CaseDivision:
        """The official split; cases of train, val and test count on."""
        return self._checked[0]

    @property
    def summary(self) -> str:
        """What was found, part by part, for logs and reports."""
        division, notes = self._checked
        shown = [np.flatnonzero(row) if self.several else row for _, labels in self._labels for row in labels]
        cases = [Case(patient=None, labels=tuple(int(label) for label in labels)) for labels in shown]
        return "\n".join([division.summary(cases, self.classes), *notes])

    def truth(self, part: str) -> NDArray[np.int64]:
        """The labels of a part's cases in their order: [n] class indices, or [n, K] of 1 and 0."""
        name = "test" if part == "predict" else part
        for found, table in self._labels:
            if found == name:
                return table.astype(np.int64) if self.several else table[:, 0].astype(np.int64)
        return np.zeros((0, len(self.classes)) if self.several else 0, dtype=np.int64)

    def case_id(self, case: int) -> str:
        """Its part and its place there; the set is public."""
        for part in PARTS:
            own = self.division.part(part)
            if own and own[0] <= case <= own[-1]:
                return f"{part}-{case - own[0]}"
        raise ValueError(f"there is no case {case}, they count from 0 over train, val and test")

    def patient_id(self, case: int) -> str | None:
        """Nobody knows."""
        return None

    @property
    def overrides(self) -> tuple[str, ...]:
        """Why look-alikes in two parts, or contradicting labels, were accepted."""
        if self.duplicates is None:
            return ("duplicates were not looked for",)
        reasons = (self.duplicates.accepted, self.duplicates.contradictions)
        return tuple(reason for reason in reasons if reason is not None)

    def prepare(self) -> None:
        """Check shapes, types, labels and duplicates.

        Raises:
            ValueError: the file is not this set.
        """
        self._checked  # noqa: B018  (computing it is the check)

    def split(self, part: Part) -> MedMnistSamples:
        """The samples of one part; predict is the test.

        Raises:
            ValueError: the file is not this set, or has no such part.
        """
        name = "test" if part == "predict" else part
        first = 0
        for index, (found, labels) in enumerate(self._labels):
            if found == name:
                tensor = torch.from_numpy(labels.astype(np.float32) if self.several else labels[:, 0].astype(np.int64))
                return MedMnistSamples(self._images[index], tensor, first, volume=self.about.volume)
            first += len(labels)
        raise ValueError(f"the file of {self.name} has no {name} part; get the official file")

    @cached_property
    def _members(self) -> dict[str, Member]:
        path = Path(self.file).expanduser()
        if not path.is_file():
            raise ValueError(f"the file of {self.name} is not there; correct `file`")
        try:
            with zipfile.ZipFile(path) as archive:
                names = {info.filename for info in archive.infolist()}
        except zipfile.BadZipFile:
            raise ValueError(f"the file of {self.name} is no npz, or is cut off; get it anew") from None
        wanted = [f"{part}_{what}.npy" for part in PARTS for what in ("images", "labels")]
        odd = [
            name
            for part in PARTS
            for name in [f"{part}_images.npy"]
            if (name in names) != (f"{part}_labels.npy" in names)
        ]
        if "train_images.npy" not in names or odd:
            raise ValueError(
                f"the file of {self.name} must hold images and labels of train, val and test under their six names; "
                "get the official file"
            )
        folder = None if self.unpacked is None else Path(self.unpacked).expanduser()
        return {name: Member(path, name, folder) for name in wanted if name in names}

    @cached_property
    def _images(self) -> list[Member]:
        return [member for name, member in self._members.items() if name.endswith("_images.npy")]

    @cached_property
    def _labels(self) -> list[tuple[str, NDArray[np.generic]]]:
        """Part and labels [N, 1] or [N, K] of each part that the file has."""
        return [
            (name.partition("_")[0], member.array)
            for name, member in self._members.items()
            if name.endswith("_labels.npy")
        ]

    @cached_property
    def _checked(self) -> tuple[CaseDivision, tuple[str, ...]]:
        about, notes, parts, first = self.about, list[str](), dict[str, tuple[int, ...]](), 0
        for (part, labels), images in zip(self._labels, self._images, strict=True):
            self._refuse_arrays(part, images.array, labels)
            parts[part] = tuple(range(first, first + len(labels)))
            first += len(labels)
        counts = tuple(len(parts.get(part, ())) for part in PARTS)
        if counts != about.counts:
            notes.append(
                f"not the official file: {counts} images of train, val and test, MedMNIST 3.0.2 has {about.counts}; "
                "figures cannot be compared with published ones"
            )
        if about.by_patient:
            notes.append(
                f"MedMNIST says that the parts of {self.name} are of different patients; the file cannot show it"
            )
        train, val, test = (parts.get(part, ()) for part in PARTS)
        division = CaseDivision(train=train, val=val, test=test, predict=test, image_level=not about.by_patient)
        if self.duplicates is not None:
            looks = self.duplicates.bits is not None
            prints = [
                fingerprint(one, colour=about.channels == 3, looks=looks)
                for member in self._images
                for one in member.array
            ]
            found = look_alikes(np.array(prints), self.duplicates)
            rows = [tuple(row.tolist()) for _, labels in self._labels for row in labels]
            names = [f"{part} {index - owned[0]}" for part, owned in parts.items() for index in owned]
            notes += refuse_contradictions(found, rows, self.duplicates, names.__getitem__)
            notes += refuse_across(found, division, self.duplicates, names.__getitem__)
        return division, tuple(notes)

    def _refuse_arrays(self, part: str, images: NDArray[np.generic], labels: NDArray[np.generic]) -> None:
        """Make sure that images and labels are those of the set.

        Raises:
            ValueError: they are not.
        """
        about, side = self.about, self.size
        inner = (side,) * (3 if about.volume else 2) + ((3,) if about.channels == 3 else ())
        width = len(about.classes) if self.several else 1
        if images.dtype != np.uint8 or images.shape[1:] != inner:
            raise ValueError(
                f"{part} of {self.name} must hold uint8 images of {inner}, not {images.dtype} of {images.shape[1:]}; "
                "correct `name` or `size`"
            )
        if labels.dtype.kind not in "iu" or labels.shape != (len(images), width):
            raise ValueError(
                f"{part} of {self.name} must hold whole numbers {(len(images), width)} as labels, not {labels.dtype} "
                f"{labels.shape}; get the official file"
            )
        highest = 1 if self.several else len(about.classes) - 1
        wrong = int((~np.isin(labels, np.arange(highest + 1))).sum())
        if wrong:
            raise ValueError(f"{part} of {self.name}: {wrong} labels are not from 0 to {highest}; correct `name`")
        if len(labels) and (labels == labels[0]).all():
            raise ValueError(f"{part} of {self.name} has labels of one class only; nothing can be learned or measured")


class Member:
    """One array of an npz, opened when it is wanted and never unpickled; it pickles as its place."""

    def __init__(self, path: Path, name: str, unpacked: Path | None) -> None:
        """Say where it is; nothing is read.

        Args:
            path: the npz.
            name: the array's file in it.
            unpacked: where a compressed array is laid open; None: in memory.
        """
        self.path, self.name, self.unpacked = path, name, unpacked

    def __getstate__(self) -> dict[str, object]:
        """What is pickled: where the array is, not the array."""
        return {"path": self.path, "name": self.name, "unpacked": self.unpacked}

    @cached_property
    def array(self) -> NDArray[np.generic]:
        """The array, in place where that is possible.

        Raises:
            ValueError: the file is damaged, or the array is of Python objects.
        """
        try:
            with zipfile.ZipFile(self.path) as archive:
                info = archive.getinfo(self.name)
                if info.compress_type == zipfile.ZIP_STORED:
                    return self._in_place(info)
                if self.unpacked is not None:
                    return self._laid_open(archive, info)
                with archive.open(info) as file:
                    return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
        except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
            raise ValueError(f"{self.name} cannot be read ({type(error).__name__}); get the file anew") from None

    def _in_place(self, info: zipfile.ZipInfo) -> NDArray[np.generic]:
        with self.path.open("rb") as file:
            file.seek(info.header_offset + 26)  # APPNOTE.TXT 4.3.7: lengths of name and extra field, then the data
            lengths = file.read(4)
            file.seek(int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little"), os.SEEK_CUR)
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            if dtype.hasobject:
                raise ValueError("an array of objects would run code")
            return np.memmap(self.path, dtype, "r", file.tell(), shape, "F" if fortran else "C")

    def _laid_open(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[np.generic]:
        """A copy that is written once, as a whole; its name holds the checksum of its content."""
        folder = self.unpacked or Path()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{info.CRC:08x}-{info.file_size}.npy"
        if not path.exists() or path.stat().st_size != info.file_size:
            draft = path.with_suffix(f".{os.getpid()}.{secrets.token_hex(4)}")
            try:
                with archive.open(info) as source, draft.open("xb") as target:
                    while block := source.read(1 << 22):
                        target.write(block)
                draft.replace(path)
            finally:
                draft.unlink(missing_ok=True)
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


class MedMnistSamples(Dataset[dict[str, Tensor]]):
    """The images of one part."""

    def __init__(self, images: Member, labels: Tensor, first: int, *, volume: bool) -> None:
        """Hold what to read; ``first`` is the number of the first case."""
        self.images, self.labels, self.first, self.volume = images, labels, first, volume

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One sample."""
        image = torch.from_numpy(np.array(self.images.array[index]))
        case = torch.tensor(self.first + index)
        sample = {"label": self.labels[index], "case": case, "patient": case}
        if self.volume:
            return {"slices": image[:, None], "present": torch.ones(len(image), dtype=torch.bool), **sample}
        return {"values": image[None] if image.ndim == 2 else image.permute(2, 0, 1).contiguous(), **sample}

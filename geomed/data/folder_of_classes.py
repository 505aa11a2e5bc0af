"""A folder with one folder for each class."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from geomed.data.area import Legend
from geomed.data.scan_files import ENDINGS
from geomed.data.scan_list import Listed, ScanCase, Trouble
from geomed.data.scan_source import ScanSource
from geomed.data.scan_table import NOBODY
from geomed.data.targets import Grade, OneOf, Target
from geomed.evaluation.patient_splits import ByMark, BySite

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class FolderOfClasses(ScanSource):
    """Scans that lie in folders named by their class, at any depth; see ``ScanSource`` for what is checked.

    Each file is one picture or volume. A series of DICOM slices is a folder, which only a table can name, see
    ``ScanTable``.
    """

    folder: str
    """The folder: ``CLASS/…/scan``, or with ``parts`` ``PART/CLASS/…/scan``."""

    patients: str
    """A regular expression with one group that finds the patient in the path of a scan below the folder, as
    ``([0-9]+)_(?:left|right)``; the word ``none``: nobody knows, scans are split one by one, and every figure is
    stamped as optimistic."""

    names: tuple[str, ...] | None = None
    """The classes in index order; None: the folders in alphabetical order."""

    graded: bool = False
    """The classes are grades, from the lowest to the highest; ``names`` must say their order."""

    parts: bool = False
    """The folders of classes lie in folders of parts, for a split ``ByMark``."""

    def __post_init__(self) -> None:
        """Refuse what the folder cannot give, and an expression without a group."""
        if self.graded and self.names is None:
            raise ValueError("grades have an order that the alphabet does not know; say it in `names`")
        if isinstance(self.by, BySite):
            raise ValueError("a folder of classes knows no sites; use a table, or split by patient")  # noqa: TRY004  (a rule, not a type)
        if isinstance(self.by, ByMark) != self.parts:
            raise ValueError("folders of parts and a split by marks go together; set `parts` and `by` accordingly")
        if self.patients != NOBODY:
            try:
                groups = re.compile(self.patients).groups
            except re.error as error:
                raise ValueError(f"patients must be a regular expression: {error}; correct it") from None
            if groups != 1:
                raise ValueError(f"patients must have one group in parentheses, it has {groups}; use (?:…) for others")

    @cached_property
    def target(self) -> Target:
        """The folders."""
        found = self.names or tuple(sorted({parts[self._depth] for parts, _ in self._files[0]}))
        if not found:
            raise ValueError("the folder of classes holds no scan in a folder; correct `folder`")
        legend = Legend(classes={name: [name] for name in found})
        return Grade(legend=legend) if self.graded else OneOf(legend=legend)

    @property
    def image_level(self) -> bool:
        """Whether it was said that no patients are known."""
        return self.patients == NOBODY

    @property
    def _depth(self) -> int:
        return int(self.parts)

    @cached_property
    def _files(self) -> tuple[list[tuple[tuple[str, ...], Path]], int]:
        """Parts of the path and path of every scan, and how many other files lie there."""
        root = Path(self.folder).expanduser()
        if not root.is_dir():
            raise ValueError("the folder of classes is not there; correct `folder`")
        files = sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
        scans = [
            (path.relative_to(root).parts, path)
            for path in files
            if path.name.lower().endswith(ENDINGS) and len(path.relative_to(root).parts) > 1 + self._depth
        ]
        return scans, len(files) - len(scans)

    def _rows(self) -> Sequence[tuple[int, str]]:
        return [(number, "/".join(parts)) for number, (parts, _) in enumerate(self._files[0], start=1)]

    def _listed(self) -> Listed:
        trouble, cases = Trouble(self.ids.case), []
        known = {name: index for index, name in enumerate(self.classes)}
        for number, (parts, path) in enumerate(self._files[0], start=1):
            written = "/".join(parts)
            if parts[self._depth] not in known:
                trouble.add(f"the folder is none of the classes {', '.join(known)}", written)
                continue
            found = None if self.image_level else re.search(self.patients, written)
            if found is None and not self.image_level:
                trouble.add("the expression finds no patient in the path", written)
            cases.append(
                ScanCase(
                    path=path,
                    written=written,
                    row=number,
                    labels=None if self._predicts_only else (known[parts[self._depth]],),
                    patient=found[1] if found else None,
                    mark=parts[0] if self.parts else None,
                )
            )
        trouble.refuse(len(self._files[0]))
        present = Counter(case.labels for case in cases)
        empty = [name for index, name in enumerate(self.classes) if not present[(index,)] and not self._predicts_only]
        if empty:
            raise ValueError(f"no scan lies in {', '.join(empty)}; correct `names` or fill the folder")
        other = self._files[1]
        return Listed(cases=tuple(cases), notes=(f"{other} files that are no scans were left out",) if other else ())

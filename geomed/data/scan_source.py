"""What sources of scans share: files with labels and patients, checked as a whole before anything is learned."""

from __future__ import annotations

import logging
from abc import abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from geomed.data.case_ids import CaseIds
from geomed.data.duplicates import Duplicates, LookAlikes, look_alikes, refuse_across, refuse_contradictions
from geomed.data.rendition import Rendition
from geomed.data.scan_cache import ScanCache, Shard, UnusableScansError, measure
from geomed.data.scan_files import Reading
from geomed.data.scan_kinds import refuse_mixtures
from geomed.data.scan_samples import ScanSamples, Unkept
from geomed.data.source import Part, Source
from geomed.evaluation.labelled_cases import LabelledCases
from geomed.evaluation.patient_splits import AllIn, Case, CaseDivision, CaseSplit, divide_cases
from geomed.evaluation.subgroups import bands

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from geomed.data.scan_cache import Rendered
    from geomed.data.scan_list import Listed, ScanCase
    from geomed.data.targets import Target

_log = logging.getLogger(__name__)
_LISTED = 20  # files in a message
_AGES = (18.0, 40.0, 65.0, 80.0)  # edges of the bands that ages are told in


@dataclass(frozen=True, kw_only=True)
class _Checked:
    cases: tuple[ScanCase, ...]
    store: Shard | Unkept
    facts: NDArray[np.void]
    division: CaseDivision
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ScanSource(Source, LabelledCases):
    """Pictures or volumes of patients, each with a label.

    Before the first sample everything is looked at once: every label, every file, the kinds of scans, images that
    look the same, and the split. What does not fit is refused with counts and the names of cases, which say nothing
    about them (``CaseIds``); nothing is left out without being told.

    A sample is, besides what ``Source`` says:

    - ``values`` uint8 [C, H, W] of a picture, brightness from 0 to 255; float32 in the scans' unit where the rendition
      keeps 16 bits
    - ``slices`` [S, C, H, W] of a volume in its place, and ``present`` bool [S], which is False only where a batch had
      to be filled
    - ``label`` int64 []; of findings float32 [K], 1, 0 or IGNORE; absent where nothing is known
    - ``case`` int64 []: index into ``cases``; ``patient`` int64 []: the same number for all cases of a patient
    """

    by: CaseSplit
    """What to learn from, to choose with and to report on."""

    reading: Reading = Reading()  # noqa: RUF009  (frozen)
    """What the files do not say themselves."""

    rendition: Rendition = Rendition()  # noqa: RUF009  (frozen)
    """What happens to every scan before a network sees it."""

    cache: ScanCache | None = None
    """Where the scans are kept as the rendition makes them; None: each is decoded each time."""

    duplicates: Duplicates = Duplicates()  # noqa: RUF009  (frozen)
    """What counts as the same image, and what is done about it."""

    ids: CaseIds = CaseIds()  # noqa: RUF009  (frozen)
    """How cases and patients are called."""

    @property
    @abstractmethod
    def target(self) -> Target:
        """What is to be learned."""

    @property
    @abstractmethod
    def image_level(self) -> bool:
        """Whether it was said that no patients are known."""

    @abstractmethod
    def _listed(self) -> Listed:
        """The cases.

        Raises:
            ValueError: the table or the folder is not as it must be.
        """

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self.target.names

    @property
    def bands(self) -> tuple[str, ...]:  # type: ignore[override]  # they follow from the rendition
        """Names of the channels."""
        return self.rendition.bands

    @property
    def several(self) -> bool:
        """Whether a case may show several classes, or none."""
        return self.target.several

    @property
    def ordered(self) -> bool:
        """Whether the classes are grades."""
        return self.target.ordered

    @property
    def cases(self) -> tuple[ScanCase, ...]:
        """All cases, which ``case`` of a sample counts through."""
        return self._list.cases

    @property
    def division(self) -> CaseDivision:
        """Which cases belong to which part."""
        return self._checked.division

    @property
    def summary(self) -> str:
        """What was found, part by part, for logs and reports."""
        checked = self._checked
        return "\n".join([checked.division.summary(self._split_cases, self.classes), *checked.notes])

    @property
    def prints(self) -> NDArray[np.void]:
        """How each case looks, type ``geomed.data.duplicates.PRINT``: to compare one source with another."""
        return self._checked.facts["print"]

    def case_id(self, case: int) -> str:
        """What a case may be called in public."""
        return self.ids.case(self.cases[case].written)

    def patient_id(self, case: int) -> str | None:
        """What the patient of a case may be called in public."""
        patient = self.cases[case].patient
        return None if patient is None else self.ids.patient(patient)

    def truth(self, part: str) -> NDArray[np.int64]:
        """The labels of a part's cases in their order: [n] class indices; of findings [n, K] of 1, 0 and IGNORE.

        Raises:
            ValueError: as ``prepare``; or some are not known.
        """
        found = [self.cases[index].labels for index in self.division.part(part)]
        known = [labels for labels in found if labels is not None]
        if len(known) < len(found):
            raise ValueError(f"{len(found) - len(known)} of {len(found)} cases of {part} have no label")
        table = np.array(known, dtype=np.int64).reshape(len(known), -1)
        return table if self.several else table.reshape(-1)

    def attributes(self, case: int) -> dict[str, str]:
        """Site, sex and age as a band, where the table has them."""
        about = self.cases[case]
        told = {"site": about.site, "sex": about.sex}
        if about.age is not None:
            told["age"] = bands([about.age], _AGES)[0]
        return {name: value for name, value in told.items() if value is not None}

    @property
    def overrides(self) -> tuple[str, ...]:
        """Why look-alikes in two parts, or contradicting labels, were accepted."""
        reasons = (self.duplicates.accepted, self.duplicates.contradictions)
        return tuple(reason for reason in reasons if reason is not None)

    @property
    def modality(self) -> str:
        """The unit of the scans, and whether they are volumes."""
        facts = self._checked.facts
        if not len(facts):
            return ""
        units = ", ".join(sorted({unit.decode() for unit in np.unique(facts["unit"])}))
        return f"{'volumes' if facts['volume'][0] else 'pictures'}, {units}"

    def refuse_key_inside(self, folder: Path) -> None:
        """Make sure that the key of the names does not lie where results are shared.

        Raises:
            ValueError: it does.
        """
        self.ids.refuse_inside(folder)

    def row_of(self, case_id: str) -> int:
        """The line of the table that a name stands for, for the eyes of its owner; the header is line 1.

        Raises:
            ValueError: no case is called so.
        """
        for row, written in self._rows():
            if self.ids.case(written) == case_id:
                return row
        raise ValueError("no case is called so; check the name, the table, and that the key is the same")

    @abstractmethod
    def _rows(self) -> Sequence[tuple[int, str]]:
        """Line and path of every row, good or bad."""

    def prepare(self) -> None:
        """Look at everything once; fill the cache.

        Raises:
            ValueError: labels, files, the kinds of scans, look-alikes or the split are not as they must be.
        """
        _log.info(self.summary)

    def split(self, part: Part) -> ScanSamples:
        """The samples of one part.

        Raises:
            ValueError: as ``prepare``.
        """
        checked = self._checked
        own = checked.division.part(part)
        labels = [checked.cases[index].labels for index in own]
        return ScanSamples(
            store=checked.store,
            indices=np.array(own, dtype=np.int64),
            labels=None if None in labels else [self.target.tensor(one) for one in labels if one is not None],
            patients=self.patient_numbers,
            volume=bool(len(checked.facts) and checked.facts["volume"][0]),
        )

    @cached_property
    def patient_numbers(self) -> NDArray[np.int64]:
        """For each case the number of its patient, else of its group, for intervals clustered so; else its own."""
        seen: dict[object, int] = {}
        keys = [
            next((pair for pair in (("patient", case.patient), ("group", case.group)) if pair[1] is not None), index)
            for index, case in enumerate(self.cases)
        ]
        return np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.int64)

    @cached_property
    def _list(self) -> Listed:
        return self._listed()

    @property
    def _predicts_only(self) -> bool:
        return isinstance(self.by, AllIn) and self.by.part == "predict"

    @cached_property
    def _split_cases(self) -> tuple[Case, ...]:
        """The cases as a split sees them, without look-alikes."""
        unknown = self._predicts_only or self.image_level
        return tuple(
            Case(
                patient=None if unknown else case.patient,
                labels=() if case.labels is None else self.target.shown(case.labels),
                site=case.site,
                mark=case.mark,
            )
            for case in self.cases
        )

    @cached_property
    def _checked(self) -> _Checked:
        cases = self.cases
        names = [self.ids.case(case.written) for case in cases]
        files = [case.path for case in cases]
        render = partial(_render, self.reading, self.rendition, files, names)
        store: Shard | Unkept
        try:
            if self.cache is None:
                pixels = partial(_pixels, self.reading, self.rendition, files, names)
                facts, store = measure(len(cases), render), Unkept(pixels=pixels)
            else:
                recipe = {"reading": self.reading.recipe(), "rendition": self.rendition.recipe()}
                store = self.cache.hold(files, recipe, render, self.rendition.dtype)
                facts = store.facts()
        except UnusableScansError as error:
            raise ValueError(_told(error.errors, names)) from None
        notes = [*self._list.notes, *refuse_mixtures(facts, self.rendition, self._strata, names)]
        found = look_alikes(facts["print"], self.duplicates)
        labels = [case.labels for case in cases]
        notes += refuse_contradictions(found, labels, self.duplicates, names.__getitem__)
        split_cases = self._split_cases
        belonging = _belonging(cases)
        if self.duplicates.together or belonging:
            told = found if self.duplicates.together else LookAlikes()
            alike = replace(told, same=(*told.same, *belonging)).groups()
            groups = {index: number for number, group in enumerate(alike) for index in group}
            if alike:
                what = "scans that belong together" if belonging else "look-alikes"
                largest = max(map(len, alike))
                notes.append(f"{len(alike)} groups of {what} stay together, the largest of {largest} images")
            split_cases = tuple(
                Case(patient=c.patient, labels=c.labels, site=c.site, mark=c.mark, group=groups.get(index))
                for index, c in enumerate(split_cases)
            )
        division = divide_cases(
            self.by,
            split_cases,
            self.classes,
            image_level=self.image_level or self._predicts_only,
            name=self.ids.patient,
        )
        notes += refuse_across(found, division, self.duplicates, names.__getitem__)
        return _Checked(cases=cases, store=store, facts=facts, division=division, notes=tuple(notes))

    @cached_property
    def _strata(self) -> dict[str, list[int]]:
        """Class → its cases."""
        return {
            name: [index for index, case in enumerate(self._split_cases) if label in case.labels]
            for label, name in enumerate(self.classes)
        }


def _belonging(cases: Sequence[ScanCase]) -> tuple[tuple[int, ...], ...]:
    """The cases of each group that the table names, groups of two or more."""
    found: dict[str, list[int]] = {}
    for index, case in enumerate(cases):
        if case.group is not None:
            found.setdefault(case.group, []).append(index)
    return tuple(tuple(group) for group in found.values() if len(group) > 1)


def _render(
    reading: Reading, rendition: Rendition, files: Sequence[Path], names: Sequence[str], index: int
) -> Rendered:
    """A scan as it is kept.

    Raises:
        ValueError: it cannot be read, or is not such a scan.
    """
    scan = reading.read(files[index], named=f"case {names[index]}")
    with _naming(names[index]):
        return rendition.render(scan)


def _pixels(
    reading: Reading, rendition: Rendition, files: Sequence[Path], names: Sequence[str], index: int
) -> NDArray[np.generic]:
    """A scan, where nothing else of it is wanted.

    Raises:
        ValueError: it cannot be read any more.
    """
    scan = reading.read(files[index], named=f"case {names[index]}")
    with _naming(names[index]):
        return rendition.pixels(scan)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Say which case an error is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"case {name}: {error}") from None


def _told(errors: Mapping[int, Exception], names: Sequence[str]) -> str:
    """All unreadable files in one message, without a path."""
    lines = []
    for index, error in sorted(errors.items()):
        why = f"case {names[index]}: {error.strerror}" if isinstance(error, OSError) else str(error)
        lines.append(why if names[index] in why else f"case {names[index]}: {why}")
    more = f"\n  … and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
    return (
        f"{len(errors)} of {len(names)} scans cannot be used; mend them or take them out of the table, none is dropped "
        "silently. `row_of` tells the line of a case.\n  " + "\n  ".join(lines[:_LISTED]) + more
    )

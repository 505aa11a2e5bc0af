"""Splits of images by patient and by site as objects, and the refusal of splits that share a patient."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from geomed.evaluation.splits import PARTS
from geomed.evaluation.stratification import stratify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

OPTIMISTIC = "image-level split, optimistic: no patients are known, images of one patient may be in several parts"
"""What a report must say of figures from a division that knows no patients."""

_SHOWN = 5  # examples in a message


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a split needs to know of an image or a volume."""

    patient: str | None
    """Whose it is; None for all cases: nobody knows."""

    labels: tuple[int, ...]
    """Class indices: one of a binary, multi-class or ordinal label, any number of a multi-label one."""

    site: str | None = None
    """Where it was taken: hospital, scanner; None: not known."""

    mark: str | None = None
    """What the table says of its part."""

    group: int | None = None
    """Cases of one number must stay together although they are of several patients: they look the same."""


@dataclass(frozen=True, kw_only=True)
class CaseDivision:
    """Which cases belong to which part."""

    train: tuple[int, ...] = ()
    """Indices of the cases to learn from, ascending."""

    val: tuple[int, ...] = ()
    """To choose with."""

    test: tuple[int, ...] = ()
    """To report on."""

    predict: tuple[int, ...] = ()
    """To predict; they need no label, and may be in another part too."""

    image_level: bool = False
    """No patients are known: the figures are optimistic and must be stamped so (``OPTIMISTIC``)."""

    notes: tuple[str, ...] = ()
    """What a reader of the figures has to know besides."""

    def part(self, name: str) -> tuple[int, ...]:
        """The cases of a part by its name."""
        return {"train": self.train, "val": self.val, "test": self.test, "predict": self.predict}[name]

    def counts(self, cases: Sequence[Case], classes: Sequence[str]) -> dict[str, dict[str, int]]:
        """Part → images, patients (absent where unknown), sites (likewise) and images of every class."""
        table = {}
        for name in PARTS:
            own = [cases[index] for index in self.part(name)]
            row = {"images": len(own)}
            if not self.image_level:
                row["patients"] = len({case.patient for case in own})
            if any(case.site is not None for case in own):
                row["sites"] = len({case.site for case in own})
            found = Counter(label for case in own for label in case.labels)
            table[name] = row | {f"class {label}": found[index] for index, label in enumerate(classes)}
        return table

    def summary(self, cases: Sequence[Case], classes: Sequence[str]) -> str:
        """The counts, one line for each part, and whether patients were kept apart."""
        lines = [
            f"{name}: " + ", ".join(f"{key} {count}" for key, count in row.items())
            for name, row in self.counts(cases, classes).items()
            if row["images"]
        ]
        if lines:
            lines.append(OPTIMISTIC if self.image_level else "no patient is in two of train, val and test")
        if self.predict != self.test:
            lines.append(f"predict: images {len(self.predict)}")
        return "\n".join([*lines, *self.notes])


class CaseSplit(ABC):
    """A rule that gives every part its cases; implementations are frozen keyword-only dataclasses."""

    @abstractmethod
    def divide(self, cases: Sequence[Case]) -> CaseDivision:
        """The cases of every part, not yet checked: call ``divide_cases``, which refuses shared patients."""


@dataclass(frozen=True, kw_only=True)
class ByPatient(CaseSplit):
    """Patients drawn into parts so that each class has its share in each part."""

    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Share of the cases that goes to train, val and test."""

    seed: int = 0
    """Which patients go where."""

    def __post_init__(self) -> None:
        """Refuse fractions that are none."""
        _refuse_fractions(self.fractions)

    def divide(self, cases: Sequence[Case]) -> CaseDivision:
        """Whole patients, stratified.

        Raises:
            ValueError: there are fewer patients than parts.
        """
        return _division(stratify(cases, self.fractions, seed=self.seed))


@dataclass(frozen=True, kw_only=True)
class ByPatientFold(CaseSplit):
    """One of k folds for the test, the others to learn from and to choose with: run it k times for all cases."""

    folds: int = 5
    """How many folds; the same patients are in them for every ``fold``."""

    fold: int = 0
    """The one to report on, from 0."""

    val_fraction: float = 0.1
    """Share of the other folds that is kept to choose with."""

    seed: int = 0
    """Which patients go where."""

    def __post_init__(self) -> None:
        """Refuse a fold that does not exist."""
        if self.folds < 2 or not 0 <= self.fold < self.folds:
            raise ValueError(f"fold counts from 0 to folds - 1, not {self.fold} of {self.folds}; correct one")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction is a share from 0 to below 1, not {self.val_fraction}; correct it")

    def divide(self, cases: Sequence[Case]) -> CaseDivision:
        """Whole patients, stratified.

        Raises:
            ValueError: there are fewer patients than folds.
        """
        folds = stratify(cases, (1 / self.folds,) * self.folds, seed=self.seed)
        test = folds.pop(self.fold)
        train, val = _held_out(cases, sorted(itertools.chain(*folds)), self.val_fraction, self.seed)
        return _division([train, val, test])


@dataclass(frozen=True, kw_only=True)
class BySite(CaseSplit):
    """Whole sites for the test: does it work where it has never been?"""

    test: tuple[str, ...]
    """Sites to report on."""

    val: tuple[str, ...] = ()
    """Sites to choose with; none: ``val_fraction`` of the patients of the other sites."""

    val_fraction: float = 0.1
    """Share of the cases of the other sites that is kept to choose with, where no site is."""

    seed: int = 0
    """Which patients those are."""

    def __post_init__(self) -> None:
        """Refuse a test without a site and a share that is none."""
        if not self.test or set(self.test) & set(self.val):
            raise ValueError("a split by site needs test sites that are not in val as well; name them")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction is a share from 0 to below 1, not {self.val_fraction}; correct it")

    def divide(self, cases: Sequence[Case]) -> CaseDivision:
        """Each case goes where its site goes.

        Raises:
            ValueError: a case has no site, or there is no site of such a name.
        """
        unknown = sum(case.site is None for case in cases)
        if unknown:
            raise ValueError(f"a split by site needs the site of every case, {unknown} have none; fill them in")
        sites = {case.site for case in cases}
        missing = sum(site not in sites for site in (*self.test, *self.val))
        if missing:
            raise ValueError(
                f"{missing} of the named sites have no case, the table has {len(sites)} sites; correct test or val"
            )
        test = [index for index, case in enumerate(cases) if case.site in self.test]
        val = [index for index, case in enumerate(cases) if case.site in self.val]
        train = [index for index, case in enumerate(cases) if case.site not in (*self.test, *self.val)]
        if not self.val:
            train, val = _held_out(cases, train, self.val_fraction, self.seed)
        return _division([train, val, test])


@dataclass(frozen=True, kw_only=True)
class ByMark(CaseSplit):
    """What a column of the table says, checked as any other split."""

    train: tuple[str, ...] = ("train",)
    """Marks of the cases to learn from."""

    val: tuple[str, ...] = ("val",)
    """Marks of those to choose with."""

    test: tuple[str, ...] = ("test",)
    """Marks of those to report on."""

    unused: tuple[str, ...] = ()
    """Marks of those to leave out."""

    def divide(self, cases: Sequence[Case]) -> CaseDivision:
        """Each case goes where its mark says.

        Raises:
            ValueError: a case has no mark or one that is not listed.
        """
        wanted = (self.train, self.val, self.test)
        known = {mark for marks in (*wanted, self.unused) for mark in marks}
        strange = sum(case.mark not in known for case in cases)
        if strange:
            raise ValueError(
                f"{strange} of {len(cases)} cases have no mark in the split column, or another than "
                f"{', '.join(sorted(known))}; name the column, list its other marks in unused, or correct them"
            )
        return _division([[i for i, case in enumerate(cases) if case.mark in marks] for marks in wanted])


@dataclass(frozen=True, kw_only=True)
class AllIn(CaseSplit):
    """Every case in one part: an external test set, or images to predict that have no labels."""

    part: Literal["train", "val", "test", "predict"] = "test"
    """The part."""

    def divide(self, cases: Sequence[Case]) -> CaseDivision:
        """All of them."""
        everything = tuple(range(len(cases)))
        return CaseDivision(
            train=everything if self.part == "train" else (),
            val=everything if self.part == "val" else (),
            test=everything if self.part == "test" else (),
            predict=everything if self.part in {"test", "predict"} else (),
        )


def divide_cases(
    split: CaseSplit,
    cases: Sequence[Case],
    classes: Sequence[str],
    *,
    image_level: bool,
    name: Callable[[str], str],
) -> CaseDivision:
    """The cases of every part, checked.

    Args:
        split: the rule.
        cases: what is to be divided.
        classes: class names in index order.
        image_level: the user has said that no patients are known; the division is marked so.
        name: patient → what a message may call them.

    Raises:
        ValueError: patients are missing, or are in two parts; the parts do not have the classes they need; or the
            split does not fit the cases.
    """
    if not cases:
        raise ValueError("there is no case to divide; check the table")
    unknown = sum(case.patient is None for case in cases)
    if image_level and unknown < len(cases):
        raise ValueError(
            f"patients are said to be unknown and {len(cases) - unknown} cases have one; name the column of patients"
        )
    if unknown and not image_level:
        raise ValueError(
            f"{unknown} of {len(cases)} cases have no patient; a split by patient needs one for every case. Fill the "
            "column, or say `patients: none` to split by image, which the report will stamp as optimistic"
        )
    division = replace(split.divide(cases), image_level=image_level)
    refuse_shared(division, cases, name=name)
    return replace(division, notes=(*division.notes, *_missing_classes(division, cases, classes)))


def refuse_shared(division: CaseDivision, cases: Sequence[Case], *, name: Callable[[str], str]) -> None:
    """Make sure that no two of train, val and test hold the same case, patient, or group of look-alikes.

    Raises:
        ValueError: two parts do; the message counts and gives examples.
    """
    for index, one in enumerate(PARTS):
        for other in PARTS[index + 1 :]:
            first, second = division.part(one), division.part(other)
            doubled = len(set(first) & set(second))
            if doubled:
                raise ValueError(
                    f"{one} and {other} share {doubled} cases; a case belongs to one part, correct the split"
                )
            shared = {cases[i].patient for i in first} & {cases[i].patient for i in second} - {None}
            if shared:
                shown = ", ".join(sorted(name(patient) for patient in shared if patient is not None)[:_SHOWN])
                raise ValueError(
                    f"{one} and {other} share {len(shared)} patients: {shown}{' …' if len(shared) > _SHOWN else ''}; "
                    "a patient belongs to one part. Split by patient, or correct the column of parts"
                )
            grouped = {cases[i].group for i in first} & {cases[i].group for i in second} - {None}
            if grouped:
                raise ValueError(
                    f"{one} and {other} share {len(grouped)} groups of images that look the same; split by patient, "
                    "which keeps such groups together, or correct the column of parts"
                )


def _refuse_fractions(fractions: Sequence[float]) -> None:
    if min(fractions) < 0 or not 0 < sum(fractions) <= 1 + 1e-9:
        raise ValueError(f"fractions must be at least 0 and sum to at most 1, not {tuple(fractions)}; correct them")


def _held_out(cases: Sequence[Case], among: list[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Cases to learn from, and a fraction of them to choose with."""
    if not fraction or not among:
        return among, []
    train, val = stratify([cases[index] for index in among], (1 - fraction, fraction), seed=seed)
    return [among[index] for index in train], [among[index] for index in val]


def _division(parts: Sequence[Iterable[int]]) -> CaseDivision:
    train, val, test = (tuple(part) for part in parts)
    return CaseDivision(train=train, val=val, test=test, predict=test)


def _missing_classes(division: CaseDivision, cases: Sequence[Case], classes: Sequence[str]) -> tuple[str, ...]:
    """Notes on classes that a part lacks.

    Raises:
        ValueError: train lacks a class, or a part has cases of one class only.
    """
    notes = []
    for part in PARTS:
        own = division.part(part)
        if not own:
            continue
        found = Counter(label for index in own for label in set(cases[index].labels))
        missing = [name for index, name in enumerate(classes) if not found[index]]
        varied = any(0 < count < len(own) for count in found.values())
        if not varied:
            present = ", ".join(name for index, name in enumerate(classes) if found[index]) or "no class"
            raise ValueError(
                f"{part} has {len(own)} cases of {present} only; nothing can be learned or measured on one class. "
                "Check the labels, or take another split"
            )
        if missing and part == "train":
            raise ValueError(
                f"train has no case of {', '.join(missing)}; a class must be seen to be learned. Take another split "
                "or seed, or leave the class out"
            )
        if missing:
            notes.append(f"{part} has no case of {', '.join(missing)}: nothing can be said of it there")
    return tuple(notes)

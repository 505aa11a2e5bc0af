"""What a classifier said about cases whose truth is known: the one input of every score of a classification."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np
from jaxtyping import Bool, Float, Integer, Num, Shaped  # noqa: TC002  (annotations stay readable at run time)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geomed.evaluation.single_label import SingleLabel

PARTS = ("train", "val", "test")
"""The parts that predictions can be of. Thresholds and temperatures are chosen on "val" and on nothing else."""

SUM_TOLERANCE = 1e-4
"""How far the probabilities of a case may be from 1 together: what a float32 softmax over many classes needs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions(ABC):
    """Probabilities and truth of the cases of one part; an image is a case."""

    classes: tuple[str, ...]
    """K names, in the order of the columns. Of two classes of which one holds, the second is the positive one."""

    truth: Integer[np.ndarray, " n"] | Integer[np.ndarray, "n k"]
    """The true classes; each implementation says how."""

    probabilities: Float[np.ndarray, "n k"]
    """Share between 0 and 1 of each class for each case, kept as float64 and never rounded or normalised again, so
    that ties stay ties."""

    cases: tuple[str, ...]
    """A name for each case, unique: a keyed hash, nothing that identifies a person. Two runs are compared by it."""

    patients: tuple[str, ...] | None
    """Whose image each case is; None where nobody knows, and then every interval takes images for independent, which
    makes it too narrow: ``image_level`` says so."""

    part: str
    """train, val or test."""

    temperature: float = 1.0
    """The temperature that the probabilities have been scaled with, 1 for none."""

    def __post_init__(self) -> None:
        """Refuse what cannot be scored, with counts."""
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "cases", tuple(map(str, self.cases)))
        if self.patients is not None:
            object.__setattr__(self, "patients", tuple(_written(patient) for patient in self.patients))
        object.__setattr__(self, "truth", read_only(np.array(self.truth)))
        object.__setattr__(self, "probabilities", read_only(np.array(self.probabilities, dtype=np.float64)))
        if self.part not in PARTS:
            raise ValueError(f"predictions are of one of the parts {', '.join(PARTS)}, not of {self.part!r}; name it")
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"predictions need two classes or more with different names, not {list(self.classes)}")
        if self.probabilities.ndim != 2 or self.probabilities.shape[1] != len(self.classes):
            raise ValueError(
                f"probabilities must be [cases, classes] with {len(self.classes)} columns "
                f"({', '.join(self.classes)}), not {list(self.probabilities.shape)}; give one column for each class"
            )
        lengths = {"cases": len(self.cases), "truth": len(self.truth), "probabilities": len(self.probabilities)}
        lengths |= {} if self.patients is None else {"patients": len(self.patients)}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{length} {name}" for name, length in lengths.items())
            raise ValueError(f"every list must hold the same cases, there are {told}; drop nothing on the way")
        if not self.cases:
            raise ValueError("there is no case to score; check how the cases were chosen")
        if nobody := [
            case for case, patient in zip(self.cases, self.patients or self.cases, strict=True) if not patient
        ]:
            raise ValueError(
                f"every case must name its patient, {len(nobody)} of {len(self.cases)} do not ({_examples(nobody)}); "
                "give patients=None where nobody knows them"
            )
        if doubled := [case for case, times in Counter(self.cases).items() if times > 1]:
            raise ValueError(
                f"every case must stand once, {len(doubled)} of {len(self.cases)} stand twice or more "
                f"({_examples(doubled)}); merge them before scoring"
            )
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"a temperature is greater than 0, not {self.temperature}; 1 stands for none")
        broken: np.ndarray = ~np.isfinite(self.probabilities).all(1)
        self.refuse_rows(broken, "hold NaN or infinity", "find the input that broke the network")
        outside = np.any((self.probabilities < 0) | (self.probabilities > 1), axis=1)
        self.refuse_rows(outside, "lie outside 0 to 1", "give probabilities, or logits to from_logits")
        self._check_truth()

    @abstractmethod
    def _check_truth(self) -> None:
        """Refuse a truth that does not belong to the classes, and what belongs to one kind of task only."""

    @property
    @abstractmethod
    def targets(self) -> Bool[np.ndarray, "n k"]:
        """Which classes hold for which case."""

    @property
    @abstractmethod
    def answers(self) -> Bool[np.ndarray, "n k"]:
        """Which classes are decided for which case: the most probable one, or the labels as likely as not and more."""

    @property
    @abstractmethod
    def scored(self) -> tuple[int, ...]:
        """Columns that have a score of their own: the positive class of two, or all classes."""

    @abstractmethod
    def one_against_rest(self, name: str) -> SingleLabel:
        """The same cases as a question of yes or no: is it this class?"""

    @property
    def image_level(self) -> bool:
        """Whether patients are unknown, so that intervals are of images and too narrow."""
        return self.patients is None

    @cached_property
    def patient_of(self) -> Integer[np.ndarray, " n"]:
        """Number of the patient of each case, from 0; each case is its own where patients are unknown."""
        names = self.cases if self.patients is None else self.patients
        numbers: np.ndarray = np.unique(np.array(names, dtype=str), return_inverse=True)[1]
        return read_only(numbers)

    @property
    def n_patients(self) -> int:
        """How many patients there are."""
        return int(self.patient_of.max()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of which cases these are, whose, and with which truth; neither order nor probabilities count."""
        patients = self.cases if self.patients is None else self.patients
        rows = sorted(zip(self.cases, patients, self.truth.tolist(), strict=True))
        return hashlib.sha256(json.dumps([list(self.classes), rows], separators=(",", ":")).encode()).hexdigest()

    def column(self, name: str) -> int:
        """Which column a class has.

        Raises:
            ValueError: there is no such class.
        """
        if name not in self.classes:
            raise ValueError(f"there is no class {name!r}; the classes are {', '.join(self.classes)}")
        return self.classes.index(name)

    def select(self, chosen: Bool[np.ndarray, " n"] | Integer[np.ndarray, " m"]) -> Self:
        """Some of the cases, by a mask or in the order of the indices."""
        at = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        return replace(
            self,
            truth=self.truth[at],
            probabilities=self.probabilities[at],
            cases=tuple(self.cases[i] for i in at),
            patients=None if self.patients is None else tuple(self.patients[i] for i in at),
        )

    def refuse_rows(self, wrong: Bool[np.ndarray, " n"], what: str, way_out: str) -> None:
        """Refuse the cases of a mask.

        Raises:
            ValueError: there is one; the message counts them and names three.
        """
        if wrong.any():
            cases = [self.cases[at] for at in np.flatnonzero(wrong)[:3]]
            raise ValueError(
                f"the probabilities of {wrong.sum()} of {len(wrong)} cases {what} ({_examples(cases)}); {way_out}"
            )


def softmax(logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Shares that sum to 1; no logit is too great."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(1, keepdims=True)
    return shares


def refuse_one_class(predictions: Predictions, purpose: str) -> None:
    """Refuse cases that are all of one class, or labels that all cases share.

    Raises:
        ValueError: nothing in the truth differs from case to case.
    """
    counts = predictions.targets.sum(0)
    if ((counts == 0) | (counts == len(predictions.cases))).all():
        told = ", ".join(f"{count} of {name}" for name, count in zip(predictions.classes, counts, strict=True))
        raise ValueError(
            f"{purpose} needs cases of at least two classes, the {len(predictions.cases)} cases of "
            f"{predictions.part} are {told}; split again, stratified by class"
        )


def refuse_strange_truth(truth: Shaped[np.ndarray, ...], dimensions: int, classes: int) -> None:
    """Refuse a truth of another shape, and labels that are not in the table.

    Raises:
        ValueError: with counts.
    """
    shape = "[n] class indices" if dimensions == 1 else "[n, K] of 0 and 1"
    if truth.ndim != dimensions or truth.dtype.kind not in "biu":
        raise ValueError(
            f"the truth must be {shape}, not {list(truth.shape)} {truth.dtype}; look names up in the class table first"
        )
    strange = (truth < 0) | (truth >= classes)
    if strange.any():
        told = ", ".join(str(value) for value in np.unique(truth[strange])[:5])
        raise ValueError(
            f"the truth must be {shape} from 0 to {classes - 1}, {strange.sum()} of {truth.size} entries are not in "
            f"the table ({told}); leave cases without a label out and say how many"
        )


def finite_logits(logits: Num[np.ndarray, ...]) -> Float[np.ndarray, ...]:
    """Logits as float64.

    Raises:
        ValueError: some are NaN or infinite.
    """
    values: np.ndarray = np.asarray(logits, dtype=np.float64)
    if values.ndim not in (1, 2):
        raise ValueError(f"logits must be [cases, classes], not {list(values.shape)}; give one row for each case")
    broken = ~np.isfinite(values if values.ndim == 1 else values.sum(1))
    if broken.any():
        raise ValueError(
            f"the logits of {broken.sum()} of {len(values)} cases hold NaN or infinity; "
            "find the input that broke the network"
        )
    return values


def read_only(values: np.ndarray) -> np.ndarray:
    """The same array, which nobody can change any more."""
    values.flags.writeable = False
    return values


def _written(patient: object) -> str:
    """A patient as text; empty for what a table reads from an empty cell."""
    empty = patient is None or (isinstance(patient, float) and not np.isfinite(patient))
    return "" if empty else str(patient)


def _examples(cases: Sequence[str]) -> str:
    return ", ".join(cases[:3]) + (", …" if len(cases) > 3 else "")

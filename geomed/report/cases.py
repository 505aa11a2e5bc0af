"""What a run said about each case: evaluation/cases.csv."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from geomed.evaluation.multi_label import MultiLabel
from geomed.evaluation.single_label import SingleLabel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from geomed.evaluation.predictions import Predictions
    from geomed.report.setup import Setup

PARTS = ("val", "test")
"""Whose cases are told."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PartCases:
    """The cases of one part whose truth is known."""

    predictions: Predictions
    """As the network gave them, not scaled."""

    groups: Mapping[str, tuple[str, ...]]
    """For each attribute the group of each case."""

    unlabelled: int
    """Cases that were left out, for some truth of theirs is unknown."""


def read_cases(path: Path, setup: Setup, run: str) -> dict[str, PartCases]:
    """The cases by part; a part without a labelled case is absent. Errors name the run as given.

    Raises:
        ValueError: there is no such file, or it is broken; a row is named by its number, the head's being 1.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, strict=True))
    except FileNotFoundError:
        raise ValueError(
            f"{run}: there is no evaluation/cases.csv, so it is no evaluated run; run geomed test first"
        ) from None
    except (ValueError, OSError, csv.Error) as error:
        raise ValueError(f"{run}: evaluation/cases.csv cannot be read as a table; run geomed test again") from error
    if not rows:
        raise ValueError(f"{run}: evaluation/cases.csv is empty; run geomed test again")
    head, *body = rows
    table = _Table(run=run, head=head, body=body, setup=setup)
    parts = table.column("part")
    if strange := sorted(set(parts) - set(PARTS)):
        raise ValueError(f"{run}: part in cases.csv must be val or test, not {strange[0]!r:.40}; run geomed test again")
    found = {part: table.part(np.array([here == part for here in parts], dtype=bool), part) for part in PARTS}
    return {part: cases for part, cases in found.items() if cases is not None}


@dataclass(frozen=True, kw_only=True)
class _Table:
    """The rows, checked to be of one length."""

    run: str
    head: Sequence[str]
    body: Sequence[Sequence[str]]
    setup: Setup

    def __post_init__(self) -> None:
        if doubled := sorted({name for name in self.head if self.head.count(name) > 1}):
            raise ValueError(f"{self.run}: the column {doubled[0]!r} stands twice in cases.csv; run geomed test again")
        for number, row in enumerate(self.body, start=2):
            if len(row) != len(self.head):
                raise ValueError(
                    f"{self.run}: row {number} of cases.csv has {len(row)} cells and the head {len(self.head)}; "
                    "run geomed test again"
                )

    def column(self, name: str) -> list[str]:
        if name not in self.head:
            raise ValueError(f"{self.run}: cases.csv has no column {name!r}; it is of another task or version")
        at = self.head.index(name)
        return [row[at] for row in self.body]

    def numbers(self, name: str) -> np.ndarray:
        """The column as float64, NaN where empty."""
        values = np.full(len(self.body), np.nan)
        for at, cell in enumerate(self.column(name)):
            try:
                values[at] = float(cell) if cell else np.nan
            except ValueError:
                raise ValueError(
                    f"{self.run}: row {at + 2} of cases.csv has no number in {name!r}; run geomed test again"
                ) from None
        return values

    @property
    def truths(self) -> list[str]:
        several = self.setup.kind == "multilabel"
        return [f"truth_{name}" for name in self.setup.classes] if several else ["truth"]

    @property
    def logits(self) -> list[str]:
        names = [f"logit_{name}" for name in self.setup.classes]
        if self.setup.kind == "binary" and names[0] not in self.head:  # one output, the log-odds of the positive class
            return names[1:]
        return names

    def part(self, held: np.ndarray, part: str) -> PartCases | None:
        truth = np.stack([self.numbers(name) for name in self.truths], axis=1)[held]
        logits = np.stack([self.numbers(name) for name in self.logits], axis=1)[held]
        known = np.isfinite(truth).all(1)
        if not known.any():
            return None
        if (truth[known] % 1).any():
            raise ValueError(f"{self.run}: a truth in cases.csv is no whole number; run geomed test again")
        at = np.flatnonzero(held)[known]
        patients = [self.column("patient")[i] for i in at]
        cases = [self.column("case")[i] for i in at]
        whole, logits = truth[known].astype(np.int64), logits[known]
        known_patients = patients if any(patients) else None
        try:
            predictions: Predictions
            if self.setup.kind == "multilabel":
                predictions = MultiLabel.from_logits(
                    logits, classes=self.setup.classes, truth=whole, cases=cases, patients=known_patients, part=part
                )
            else:
                predictions = SingleLabel.from_logits(
                    logits if logits.shape[1] > 1 else logits[:, 0],
                    classes=self.setup.classes,
                    truth=whole[:, 0],
                    cases=cases,
                    patients=known_patients,
                    part=part,
                    ordered=self.setup.kind == "ordinal",
                )
        except ValueError as error:
            raise ValueError(f"{self.run}: {error}") from error
        taken = {"case", "patient", "part", *self.truths, *self.logits}
        others = [name for name in self.head if name not in taken and not name.startswith(("truth", "logit_"))]
        return PartCases(
            predictions=predictions,
            groups={name: tuple(self.column(name)[i] for i in at) for name in others},
            unlabelled=int((~known).sum()),
        )

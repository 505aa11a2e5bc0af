"""How a run does for women and men, young and old, site by site; small groups are not shown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float  # noqa: TC002  (annotations stay readable at run time)

from geomed.evaluation.interval import Estimate
from geomed.evaluation.single_label import SingleLabel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from geomed.evaluation.bootstrap import Bootstrap
    from geomed.evaluation.measure import Measure
    from geomed.evaluation.predictions import Predictions

NOT_RECORDED = "not recorded"
"""The group of cases for which an attribute is empty; they are not dropped."""


@dataclass(frozen=True, kw_only=True)
class Subgroup:
    """One line of the table. What is None is suppressed, or has no meaning."""

    attribute: str
    """What the groups differ in: sex, site; "all" for the whole."""

    group: str
    """Which group."""

    patients: int | None
    """How many patients."""

    images: int | None
    """How many images."""

    prevalence: float | None
    """Share of images that are positive, of two classes."""

    estimate: Estimate | None
    """The measure, with its interval."""

    @property
    def suppressed(self) -> bool:
        """Whether the line is withheld because some group is small: this one, or another that this would betray."""
        return self.patients is None

    def to_dict(self) -> dict[str, object]:
        """The line as JSON can hold it."""
        return {
            "attribute": self.attribute,
            "group": self.group,
            "suppressed": self.suppressed,
            "patients": self.patients,
            "images": self.images,
            "prevalence": self.prevalence,
            "estimate": None if self.estimate is None else self.estimate.to_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class SubgroupTable:
    """A measure by subgroups, after small cells are suppressed."""

    measure: str
    """Its name."""

    least_patients: int
    """Groups of fewer patients are small."""

    rows: tuple[Subgroup, ...]
    """The whole first, then the groups of each attribute in the order of their names."""

    @classmethod
    def of(
        cls,
        predictions: Predictions,
        groups: Mapping[str, Sequence[str]],
        measure: Measure,
        *,
        bootstrap: Bootstrap,
        least_patients: int = 10,
    ) -> SubgroupTable:
        """The table of a measure.

        A group of fewer than ``least_patients`` is suppressed, and so is a prevalence that would tell of fewer than so
        many patients with the disease or without it. Further groups are suppressed until nothing that is withheld can
        be computed from what is shown by adding and subtracting, over all attributes together (complementary
        suppression; Hundepool et al., "Statistical Disclosure Control", 2012, chapter 4), and until the withheld groups
        of an attribute are not small together. Bounds that follow from counts being 0 or more are not considered.

        Args:
            predictions: of the whole test set.
            groups: for each attribute the group of each case; empty text, None and NaN are "not recorded".
            measure: of each group.
            bootstrap: of the intervals.
            least_patients: fewer are few.

        Raises:
            ValueError: an attribute is not given for each case, or ``least_patients`` is below 1.
        """
        total = len(predictions.cases)
        if least_patients < 1:
            raise ValueError(f"the least number of patients shown must be 1 or more, not {least_patients}; 10 is usual")
        for attribute, values in groups.items():
            if len(values) != total:
                raise ValueError(
                    f"{attribute!r} must name the group of each of the {total} cases, there are {len(values)}; "
                    "leave unknown ones empty"
                )
        written = {attribute: np.array([_written(value) for value in values]) for attribute, values in groups.items()}
        named = [
            (attribute, str(group), values == group)
            for attribute, values in written.items()
            for group in np.unique(values)
        ]
        members = np.array([held for _, _, held in named], dtype=bool).reshape(len(named), total)
        attributes = np.array([attribute for attribute, _, _ in named], dtype=object)
        count = partial(_distinct, predictions)
        small = np.array([count(held) < least_patients for held in members], dtype=bool)
        hidden = suppress(members, attributes, small, least_patients, count)
        blurred = _blurred(predictions, members, attributes, hidden, least_patients)
        rows = [_row(predictions, "all", "all", np.ones(total, dtype=bool), measure, bootstrap, shown=True)]
        for at, (attribute, group, held) in enumerate(named):
            if hidden[at]:
                none = Subgroup(
                    attribute=attribute, group=group, patients=None, images=None, prevalence=None, estimate=None
                )
                rows.append(none)
            else:
                rows.append(_row(predictions, attribute, group, held, measure, bootstrap, shown=not blurred[at]))
        return cls(measure=measure.name, least_patients=least_patients, rows=tuple(rows))

    def to_dict(self) -> dict[str, object]:
        """The table as JSON can hold it."""
        return {
            "measure": self.measure,
            "least_patients": self.least_patients,
            "rows": [row.to_dict() for row in self.rows],
        }

    def table(self) -> str:
        """The table as aligned plain text; "–" stands for what is suppressed or has no meaning."""
        heads: tuple[str, ...] = ("attribute", "group", "patients", "images", "prevalence", self.measure)
        lines = [heads]
        for row in self.rows:
            prevalence = "–" if row.prevalence is None else f"{100 * row.prevalence:.1f} %"
            counts = tuple("–" if count is None else f"{count:,}" for count in (row.patients, row.images))
            told = "suppressed" if row.estimate is None else row.estimate.text()
            lines.append((row.attribute, row.group, *counts, prevalence, told))
        widths = [max(len(line[at]) for line in lines) for at in range(len(heads))]
        text = [
            "  ".join(f"{cell:<{width}}" if at in (0, 1, 5) else f"{cell:>{width}}" for at, (cell, width) in cells)
            for cells in (list(enumerate(zip(line, widths, strict=True))) for line in lines)
        ]
        note = f"groups of fewer than {self.least_patients} patients are suppressed, and others that would betray them"
        return "\n".join([*(line.rstrip() for line in text), note])


def bands(values: Sequence[float], edges: Sequence[float]) -> list[str]:
    """Ages, or other numbers, as groups of a table: ``<40``, ``40–<65``, ``≥65``; NaN is not recorded.

    Raises:
        ValueError: the edges do not increase, or there is none.
    """
    if not edges or any(after <= before for before, after in pairwise(edges)):
        raise ValueError(f"the edges of bands must increase, these are {list(edges)}")
    names = [f"<{edges[0]:g}", *(f"{low:g}–<{high:g}" for low, high in pairwise(edges))]
    names.append(f"≥{edges[-1]:g}")
    return ["" if math.isnan(value) else names[sum(value >= edge for edge in edges)] for value in values]


def suppress(
    members: Bool[np.ndarray, "groups n"],
    attributes: np.ndarray,
    small: Bool[np.ndarray, " groups"],
    least: int,
    count: Callable[[Bool[np.ndarray, " n"]], int],
) -> Bool[np.ndarray, " groups"]:
    """Which groups to withhold so that no small one is told, nor can be computed from the rest and the whole.

    Args:
        members: which images are in which group.
        attributes: of each group; the groups of an attribute share all images out among themselves.
        small: which groups are to be withheld whatever follows.
        least: patients that the withheld groups of an attribute have together at least.
        count: how many patients some images are of.
    """
    hidden = small.copy()
    if not hidden.any():
        return hidden
    # images that are in the same groups cannot be told apart by any count: one column stands for all of them
    kinds = np.unique(members, axis=1).astype(np.float64)
    whole = np.ones((1, kinds.shape[1]))
    sizes = np.array([count(held) for held in members])
    while not hidden.all():
        more = _too_few_together(members, attributes, hidden, least, count)
        if more is None:
            more = _betrayer(np.concatenate((whole, kinds)), np.concatenate(([0], sizes)), hidden)
        if more is None:
            break
        hidden[more] = True
    return hidden


def _too_few_together(
    members: np.ndarray,
    attributes: np.ndarray,
    hidden: np.ndarray,
    least: int,
    count: Callable[[Bool[np.ndarray, " n"]], int],
) -> int | None:
    """The smallest shown group of an attribute whose hidden ones are few together."""
    for attribute in dict.fromkeys(attributes[hidden].tolist()):
        inside = attributes == attribute
        shown = np.flatnonzero(inside & ~hidden)
        if len(shown) and ((inside & hidden).sum() < 2 or count(members[inside & hidden].any(0)) < least):
            return int(min(shown, key=lambda at: count(members[at])))
    return None


def _betrayer(counted: Float[np.ndarray, "rows kinds"], sizes: np.ndarray, hidden: np.ndarray) -> int | None:
    """The smallest shown group without which some hidden one could not be computed; row 0 is the whole.

    A hidden count follows from the shown ones if its row is a combination of theirs.
    """
    shown = np.concatenate(([0], 1 + np.flatnonzero(~hidden)))
    known = counted[shown]
    for at in np.flatnonzero(hidden):
        parts = np.linalg.lstsq(known.T, counted[1 + at], rcond=None)[0]
        if np.abs(parts @ known - counted[1 + at]).max() < 1e-8:
            used = [place for place, part in zip(shown, parts, strict=True) if place and abs(part) > 1e-8]
            if used:
                return int(min(used, key=lambda place: sizes[place])) - 1
    return None


def _blurred(
    predictions: Predictions, members: np.ndarray, attributes: np.ndarray, hidden: np.ndarray, least: int
) -> Bool[np.ndarray, " groups"]:
    """Whose prevalence is withheld: it would tell of few patients with the disease, or without, or betray another."""
    blurred = hidden.copy()
    if not (isinstance(predictions, SingleLabel) and predictions.binary):
        return blurred
    positive = predictions.targets[:, 1]

    def fewer(held: Bool[np.ndarray, " n"]) -> int:
        sizes = [_distinct(predictions, held & side) for side in (positive, ~positive)]
        return min((size for size in sizes if size), default=0)

    few = np.array([fewer(held) < least for held in members], dtype=bool)
    return suppress(members, attributes, blurred | few, least, fewer)


def _row(
    predictions: Predictions,
    attribute: str,
    group: str,
    held: np.ndarray,
    measure: Measure,
    bootstrap: Bootstrap,
    *,
    shown: bool,
) -> Subgroup:
    part = predictions.select(held)
    two = isinstance(part, SingleLabel) and part.binary
    if part.n_patients < 2:
        value = measure.of(part)
        estimate = Estimate(value=value, reason=measure.reason(part) if math.isnan(value) else "")
    else:
        (estimate,) = bootstrap.estimates(part, [measure])
    return Subgroup(
        attribute=attribute,
        group=group,
        patients=part.n_patients,
        images=len(part.cases),
        prevalence=float(part.targets[:, 1].mean()) if two and shown else None,
        estimate=estimate,
    )


def _written(value: object) -> str:
    """The name of a group, also of what a table reads from an empty cell."""
    empty = value is None or value == "" or (isinstance(value, float) and math.isnan(value))
    return NOT_RECORDED if empty else str(value)


def _distinct(predictions: Predictions, held: np.ndarray) -> int:
    return len(np.unique(predictions.patient_of[held]))

"""What a classification asks of a source: whose the cases are, what they show, and what they may be called."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from geomed.evaluation.patient_splits import CaseDivision


class LabelledCases(ABC):
    """Cases with labels, divided into parts; a case is called by its number, which ``case`` of a sample gives."""

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""

    @property
    @abstractmethod
    def several(self) -> bool:
        """Whether a case may show several classes, or none."""

    @property
    @abstractmethod
    def ordered(self) -> bool:
        """Whether the classes are grades, in the order of their indices."""

    @property
    @abstractmethod
    def division(self) -> CaseDivision:
        """Which cases belong to which part."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """What was found, part by part, for logs and reports."""

    @abstractmethod
    def truth(self, part: str) -> NDArray[np.int64]:
        """The labels of a part's cases in their order: [n] class indices; of several [n, K] of 1, 0 and IGNORE."""

    @abstractmethod
    def case_id(self, case: int) -> str:
        """What a case may be called in public."""

    @abstractmethod
    def patient_id(self, case: int) -> str | None:
        """What the patient of a case may be called in public; None: not known."""

    def attributes(self, case: int) -> dict[str, str]:
        """What is known of a case besides, by name, for scores of subgroups: site, sex, age as a band."""
        return {}

    @property
    def overrides(self) -> tuple[str, ...]:
        """The written reasons for which a check was passed over."""
        return ()

    @property
    def modality(self) -> str:
        """What kind of scans these are, where that is known."""
        return ""

    def refuse_key_inside(self, folder: Path) -> None:  # noqa: B027  (most sources have no key)
        """Make sure that no key of the names lies where results are shared.

        Raises:
            ValueError: it does.
        """


def kind(source: LabelledCases) -> str:
    """binary, multiclass, multilabel or ordinal."""
    if source.several:
        return "multilabel"
    if source.ordered:
        return "ordinal"
    return "binary" if len(source.classes) == 2 else "multiclass"

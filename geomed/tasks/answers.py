"""What a network answered to the cases of one part, gathered batch by batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from geomed.evaluation.labelled_cases import LabelledCases, kind
from geomed.evaluation.multi_label import MultiLabel
from geomed.evaluation.single_label import SingleLabel
from geomed.pixels import IGNORE

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from geomed.evaluation.predictions import Predictions


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """Logits and truth of the cases of one part, in the order in which the source counts them."""

    part: str
    """val, test or predict."""

    cases: NDArray[np.int64]
    """[n] numbers of the cases."""

    logits: NDArray[np.float64]
    """[n, K]; of grades logarithms of the probabilities."""

    truth: NDArray[np.int64]
    """[n] class indices, or [n, K] of 1, 0 and IGNORE; of predictions that have no truth empty."""

    def predictions(self, source: LabelledCases) -> Predictions:
        """As the scores want them: cases of which something is unknown are left out, see ``unknown``."""
        known = self.known
        cases, logits, truth = self.cases[known], self.logits[known], self.truth[known]
        patients = [source.patient_id(int(case)) for case in cases]
        named = [name for name in patients if name is not None]
        told = tuple(named) if len(named) == len(patients) else None
        names = tuple(source.case_id(int(case)) for case in cases)
        if source.several:
            return MultiLabel.from_logits(
                logits, classes=source.classes, truth=truth, cases=names, patients=told, part=self.part
            )
        return SingleLabel.from_logits(
            logits,
            classes=source.classes,
            truth=truth,
            cases=names,
            patients=told,
            part=self.part,
            ordered=source.ordered,
        )

    @property
    def known(self) -> NDArray[np.bool_]:
        """Of which cases everything is known."""
        return ~(self.truth == IGNORE).reshape(len(self.truth), -1).any(1)

    @property
    def unknown(self) -> int:
        """How many cases the scores leave out, for some finding of theirs is unknown."""
        return int((~self.known).sum())


@dataclass(eq=False)
class Gathering:
    """Collects the batches of one pass; more than one process may give the same case."""

    _logits: list[Tensor] = field(default_factory=list)
    _labels: list[Tensor] = field(default_factory=list)
    _cases: list[Tensor] = field(default_factory=list)

    def add(self, logits: Tensor, batch: dict[str, Tensor]) -> None:
        """One batch; labels are absent where nothing is known."""
        self._logits.append(logits.detach().double().cpu())
        self._cases.append(batch["case"].cpu())
        if "label" in batch:
            self._labels.append(batch["label"].cpu().long())

    def tensors(self) -> tuple[Tensor, ...]:
        """Cases, logits and, where there are any, labels of all batches."""
        told = (torch.cat(self._cases), torch.cat(self._logits))
        return (*told, torch.cat(self._labels)) if self._labels else told

    def clear(self) -> None:
        """Forget them."""
        self._logits.clear()
        self._labels.clear()
        self._cases.clear()

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._cases)


def answers(part: str, tensors: tuple[Tensor, ...], source: LabelledCases) -> Answers:
    """The answers of a part from what was gathered, each case once."""
    cases, at = np.unique(tensors[0].numpy(), return_index=True)
    logits = tensors[1]
    if kind(source) == "ordinal":
        logits = logits.log_softmax(1)
    truth = tensors[2].numpy()[at] if len(tensors) > 2 else np.zeros(0, dtype=np.int64)
    return Answers(part=part, cases=cases, logits=logits.numpy()[at], truth=truth)

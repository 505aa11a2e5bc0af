"""Temperature scaling: one number, fitted on validation, that makes probabilities honest and changes no decision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Integer  # noqa: TC002  (annotations stay readable at run time)

from geomed.evaluation.multi_label import MultiLabel
from geomed.evaluation.predictions import refuse_one_class, softmax
from geomed.evaluation.proper_scores import log
from geomed.evaluation.single_label import SingleLabel

if TYPE_CHECKING:
    from typing import Self, TypeVar

    from geomed.evaluation.predictions import Predictions

    Kind = TypeVar("Kind", bound=Predictions)

HIGHEST = 100.0
"""No temperature above it is tried, nor below its inverse: there all classes are nearly alike, or certain."""


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """A fitted temperature and what it was fitted on.

    Probabilities become softmax(log p / T), which is softmax(logits / T); T > 1 makes them less sure (Guo et al., ICML
    2017, section 4.2). The most probable class and the order within two classes stay, so that no AUROC of two classes
    changes. Labels are scaled one by one with a temperature that they share.
    """

    value: float
    """T, greater than 0."""

    images: int
    """How many validation images it was fitted on."""

    patients: int
    """Of how many patients they were."""

    before: float
    """Their log loss as it was."""

    after: float
    """Their log loss with it; never greater."""

    fingerprint: str
    """Which cases they were."""

    note: str = ""
    """What a reader must know about the fit."""

    @classmethod
    def fit(cls, predictions: Predictions) -> Self:
        """The temperature of least log loss on validation.

        The loss is convex in 1/T, so that its slope has one sign change at most; Newton steps inside a bracket that is
        halved wherever a step leaves it (Press et al., "Numerical Recipes", 2007, section 9.4) find it for certain.

        If every case is right, the loss falls without end as T goes to 0: then T stays 1 and ``note`` says so.

        Raises:
            ValueError: the predictions are not of validation, have been scaled before, or have cases of one class only.
        """
        if predictions.part != "val":
            raise ValueError(
                f"a temperature is fitted on validation, not on {predictions.part}, or its calibration error means "
                "nothing; give the predictions of val"
            )
        if predictions.temperature != 1:
            raise ValueError(
                f"the probabilities have been scaled with temperature {predictions.temperature:.4g}; fit on those "
                "of the network itself"
            )
        refuse_one_class(predictions, "a temperature")
        logs, truth = _problem(predictions)
        inverse, note = _minimum(logs, truth)
        return cls(
            value=1 / inverse,
            images=len(predictions.cases),
            patients=predictions.n_patients,
            before=_loss(logs, truth, 1.0),
            after=_loss(logs, truth, inverse),
            fingerprint=predictions.fingerprint,
            note=note,
        )

    def apply(self, predictions: Kind) -> Kind:
        """The predictions with their probabilities scaled, and marked so.

        Raises:
            ValueError: they have been scaled before.
        """
        if predictions.temperature != 1:
            raise ValueError(
                f"the probabilities have been scaled with temperature {predictions.temperature:.4g} already; scale "
                "those of the network itself"
            )
        shares = predictions.probabilities
        if isinstance(predictions, MultiLabel):
            scaled = 1 / (1 + np.exp((log(1 - shares) - log(shares)) / self.value))
        else:
            scaled = softmax(log(shares) / self.value)
        return replace(predictions, probabilities=scaled, temperature=self.value)

    def to_dict(self) -> dict[str, object]:
        """The temperature as JSON can hold it."""
        told: dict[str, object] = {
            "value": self.value,
            "fitted_on": "val",
            "images": self.images,
            "patients": self.patients,
            "log_loss_before": self.before,
            "log_loss_after": self.after,
            "fingerprint": self.fingerprint,
        }
        return told | ({"note": self.note} if self.note else {})


def _problem(predictions: Predictions) -> tuple[Float[np.ndarray, "n k"], Integer[np.ndarray, " n"]]:
    """Logarithms of the probabilities, and which of them is true; each label of a case is a case of its own."""
    if isinstance(predictions, SingleLabel):
        return log(predictions.probabilities), predictions.truth
    yes = predictions.probabilities.ravel()
    return np.stack((log(1 - yes), log(yes)), axis=1), predictions.targets.ravel().astype(np.int64)


def _minimum(logs: Float[np.ndarray, "n k"], truth: Integer[np.ndarray, " n"]) -> tuple[float, str]:
    """The 1/T of least loss, and what there is to say of it."""
    low, high = 1 / HIGHEST, HIGHEST
    if (np.take_along_axis(logs, truth[:, None], axis=1)[:, 0] >= logs.max(1)).all():
        return (
            1.0,
            "every validation case is right, so that no temperature is best: probabilities are left as they were",
        )
    if _slope(logs, truth, high)[0] <= 0:
        return high, f"the best temperature is below the least that is tried, {1 / HIGHEST:g}"
    if _slope(logs, truth, low)[0] >= 0:
        return low, f"the probabilities say nothing of the validation cases: the best temperature is above {HIGHEST:g}"
    at = 1.0
    for _ in range(200):
        slope, bend = _slope(logs, truth, at)
        low, high = (at, high) if slope < 0 else (low, at)
        step = at - slope / bend if bend > 0 else low
        following = step if low < step < high else (low + high) / 2
        if abs(following - at) <= 1e-12 * at:
            break
        at = following
    return (
        at if _loss(logs, truth, at) <= _loss(logs, truth, 1.0) else 1.0
    ), ""  # 1 where they differ by rounding only


def _slope(logs: Float[np.ndarray, "n k"], truth: Integer[np.ndarray, " n"], inverse: float) -> tuple[float, float]:
    """First and second derivative of the mean loss: mean of the logs less the true one, and their variance."""
    shares = softmax(inverse * logs)
    mean = (shares * logs).sum(1)
    rest = logs - mean[:, None]
    true = np.take_along_axis(logs, truth[:, None], axis=1)[:, 0]
    return float(np.mean(mean - true)), float(np.mean((shares * rest**2).sum(1)))


def _loss(logs: Float[np.ndarray, "n k"], truth: Integer[np.ndarray, " n"], inverse: float) -> float:
    scaled = inverse * logs
    top = scaled.max(1)
    true = np.take_along_axis(scaled, truth[:, None], axis=1)[:, 0]
    return float(np.mean(top + np.log(np.exp(scaled - top[:, None]).sum(1)) - true))

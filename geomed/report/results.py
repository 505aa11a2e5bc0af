"""Everything the page says of one run, computed from its cases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from geomed.evaluation.calibration import CalibrationError
from geomed.evaluation.classification_scores import ClassificationScores
from geomed.evaluation.operating_point import OperatingPoint, OperatingScores, Rule
from geomed.evaluation.proper_scores import Brier, LogLoss
from geomed.evaluation.roc import AUROC
from geomed.evaluation.single_label import SingleLabel
from geomed.evaluation.subgroups import SubgroupTable
from geomed.evaluation.temperature import Temperature

if TYPE_CHECKING:
    from geomed.evaluation.bootstrap import Bootstrap
    from geomed.evaluation.interval import Estimate
    from geomed.evaluation.predictions import Predictions
    from geomed.report.run import Run

CALIBRATION = (CalibrationError(), Brier(), LogLoss())
"""What is told before and after temperature scaling."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """One question of yes or no: a class against the rest, a label, a grade or higher."""

    name: str
    """What is asked."""

    test: SingleLabel
    """The test cases, scaled."""

    operating: OperatingScores | None
    """The test cases at the threshold chosen on validation."""

    reason: str
    """Why there is none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Results:
    """Scores of one run."""

    run: Run
    """Where they are from."""

    bootstrap: Bootstrap
    """Of all intervals."""

    temperature: Temperature | None
    """Fitted on validation."""

    reason: str
    """Why there is none."""

    test: Predictions
    """The test cases, scaled where there is a temperature."""

    scores: ClassificationScores
    """Of them."""

    calibration: tuple[tuple[str, Estimate, Estimate], ...]
    """For each of ``CALIBRATION`` its name, and the estimates before and after scaling."""

    questions: tuple[Question, ...]
    """Those that have a curve."""

    subgroups: tuple[SubgroupTable, ...]
    """One table for each measure; none where no attribute is recorded."""

    @classmethod
    def of(cls, run: Run, bootstrap: Bootstrap) -> Self:
        """Compute them; temperature and thresholds come from validation, as in the run itself.

        Raises:
            ValueError: the test cases are of one class or of one patient.
        """
        raw = run.test.predictions
        temperature, reason = _temperature(run)
        test = raw if temperature is None else temperature.apply(raw)
        val = None if run.val is None else run.val.predictions
        if val is not None and temperature is not None:
            val = temperature.apply(val)
        scores = ClassificationScores.of(test, bootstrap=bootstrap)
        before = bootstrap.estimates(raw, CALIBRATION)
        after = bootstrap.estimates(test, CALIBRATION)
        told = run.test.groups
        attributes = {name: groups for name, groups in told.items() if any(groups)}
        measures = (AUROC(), Brier()) if attributes else ()
        return cls(
            run=run,
            bootstrap=bootstrap,
            temperature=temperature,
            reason=reason,
            test=test,
            scores=scores,
            calibration=tuple(
                (measure.name, one, two) for measure, one, two in zip(CALIBRATION, before, after, strict=True)
            ),
            questions=tuple(
                _question(name, asked, None if val is None else _asked(val, name), run.recorded.rule)
                for name, asked in _questions(test)
            ),
            subgroups=tuple(SubgroupTable.of(test, attributes, kind, bootstrap=bootstrap) for kind in measures),
        )


def _temperature(run: Run) -> tuple[Temperature | None, str]:
    if run.val is None:
        return None, "there are no validation cases to fit a temperature on"
    try:
        return Temperature.fit(run.val.predictions), ""
    except ValueError as error:
        return None, str(error)


def _questions(predictions: Predictions) -> list[tuple[str, SingleLabel]]:
    if isinstance(predictions, SingleLabel) and (predictions.ordered or predictions.binary):
        names = predictions.classes[1:]
    else:
        names = predictions.classes
    return [(name, _asked(predictions, name)) for name in names]


def _asked(predictions: Predictions, name: str) -> SingleLabel:
    if isinstance(predictions, SingleLabel) and predictions.ordered and not predictions.binary:
        return predictions.at_least(name)
    return predictions.one_against_rest(name)


def _question(name: str, test: SingleLabel, val: SingleLabel | None, rule: Rule) -> Question:
    operating, reason = None, ""
    if val is None:
        reason = "there are no validation cases to choose a threshold on"
    else:
        try:
            operating = OperatingScores.of(OperatingPoint.choose(val, rule), test)
        except ValueError as error:
            reason = str(error)
    return Question(name=test.classes[1] or name, test=test, operating=operating, reason=reason)

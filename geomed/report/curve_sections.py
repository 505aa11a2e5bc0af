"""Curves, operating points, confusions, calibration."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from geomed.evaluation.calibration import reliability
from geomed.evaluation.markup import matrix, table
from geomed.evaluation.roc import AUROC, Curve
from geomed.evaluation.single_label import SingleLabel
from geomed.report.bands import CurveBands
from geomed.report.charts import COLOURS, Trace, curves_chart, reliability_chart, stepped
from geomed.report.words import estimate, listed, number, share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geomed.evaluation.predictions import Predictions
    from geomed.report.comparison import Comparison
    from geomed.report.results import Question, Results

BANDS = 3
"""More runs than these in one chart have no bands, which would cover each other."""

POINTS = 120
"""Of a drawn curve."""


def sections(group: Comparison) -> list[str]:
    """Curves, operating points, confusions and calibration of runs on one test set."""
    return [_curves(group.results), _operating(group.results), _confusions(group.results), _calibration(group.results)]


def _curves(results: Sequence[Results]) -> str:
    banded = len(results) <= BANDS
    figures = "".join(_pair([one.questions[at] for one in results], results, banded=banded) for at in _at(results))
    key = "".join(
        f'<li><svg class="keyline" viewBox="0 0 34 10" aria-hidden="true"><polyline class="curve t{at % COLOURS}" '
        f'points="1,5 33,5"/></svg>{escape(one.run.label)}</li>'
        for at, one in enumerate(results)
    )
    around = "duos" if len(_at(results)) > 1 else "squares"
    bands = "The bands are pointwise 95 % intervals." if banded else "Bands are left out for the number of runs."
    return (
        "<section><h2>ROC and precision&ndash;recall curves</h2>"
        f'<p class="said">{bands} Dashed: chance. Circles: the operating point, chosen on validation. Precision holds '
        "at the prevalence of this test set only.</p>"
        f'<ul class="legend" style="margin:0 0 1.2rem">{key}</ul><div class="{around}">{figures}</div></section>'
    )


def _at(results: Sequence[Results]) -> range:
    return range(len(results[0].questions))


def _pair(questions: Sequence[Question], results: Sequence[Results], *, banded: bool) -> str:
    """ROC and precision against recall of one question, all runs in one."""
    name = questions[0].name
    held = questions[0].test.targets[:, 1]
    if held.all() or not held.any():
        none = "all test cases are" if held.all() else "no test case is"
        return f"<div><figure><h3>{escape(name)}</h3><figcaption>No curve: {none} of it.</figcaption></figure></div>"
    rocs, precisions, told = [], [], []
    for at, (question, one) in enumerate(zip(questions, results, strict=True)):
        curve = Curve.of(question.test).thinned(POINTS)
        told.append((f"{one.run.label} " if len(results) > 1 else "") + f"{AUROC().of(question.test):.3f}")
        bands = CurveBands.of(question.test, one.bootstrap) if banded else None
        scores = question.operating
        where = None if scores is None else (1 - scores.specificity.value, scores.sensitivity.value)
        hit = None
        if scores is not None and scores.positive_predictive_value.images:
            hit = (scores.sensitivity.value, scores.positive_predictive_value.value)
        rocs.append(
            Trace(
                run=at,
                across=1 - curve.specificity,
                up=curve.sensitivity,
                band=None if bands is None else bands.roc,
                point=where,
            )
        )
        across, up = stepped(curve.sensitivity, curve.precision)
        precisions.append(
            Trace(run=at, across=across, up=up, band=None if bands is None else bands.precision, point=hit)
        )
    areas = "; ".join(told)
    prevalence = float(held.mean())
    roc = curves_chart(
        rocs,
        across="1 − specificity",  # noqa: RUF001  (a minus sign)
        up="sensitivity",
        told=f"ROC curve of {name}. Area: {areas}",
        diagonal=True,
    )
    precision = curves_chart(
        precisions,
        across="recall",
        up="precision",
        told=f"Precision against recall of {name}, prevalence {prevalence:.3f}",
        level=prevalence,
    )
    return (
        f"<div><figure><h3>{escape(name)}: ROC</h3>{roc}<figcaption>AUROC {escape(areas)}</figcaption></figure>"
        f"<figure><h3>{escape(name)}: precision&ndash;recall</h3>{precision}"
        f"<figcaption>Prevalence {number(prevalence)}: {held.sum():,} of {len(held):,} images</figcaption></figure>"
        "</div>"
    )


def _operating(results: Sequence[Results]) -> str:
    rows = []
    for at in _at(results):
        for one in results:
            question = one.questions[at]
            several = len(one.questions) > 1
            name = (f"{escape(question.name)} " if several else "") + (
                (f"<small>{escape(one.run.label)}</small>" if several else escape(one.run.label))
                if len(results) > 1 or not several
                else ""
            )
            if question.operating is None:
                rows.append(
                    f'<tr><th scope="row">{name}</th><td class="left wrap interval" colspan="5">none: '
                    f"{escape(question.reason)}</td></tr>"
                )
                continue
            scores = question.operating
            shares = (
                scores.sensitivity,
                scores.specificity,
                scores.positive_predictive_value,
                scores.negative_predictive_value,
            )
            rows.append(
                f'<tr><th scope="row">{name}</th><td>{scores.point.threshold:.3g}</td>'
                + "".join(f"<td>{share(one_share)}</td>" for one_share in shares)
                + "</tr>"
            )
    heads = ["Positive", "Threshold", "Sensitivity", "Specificity", "PPV", "NPV"]
    if len(results[0].questions) == 1:
        heads[0] = f"Positive: {results[0].questions[0].name}"
    return (
        "<section><h2>Operating points</h2>"
        '<p class="said">Thresholds chosen on validation ('
        f"{_rules(results)}), applied to test. Small: 95 % "
        "interval; images. Predictive values hold at the prevalence of this test set only.</p>"
        f"{table(heads, ''.join(rows))}</section>"
    )


def _rules(results: Sequence[Results]) -> str:
    return escape(listed(list(dict.fromkeys(one.run.recorded.rule.name for one in results))))


def _confusions(results: Sequence[Results]) -> str:
    kind = results[0].run.setup.kind
    if kind == "multilabel":
        how = "A label is given from its own threshold, where there is one, and from 0.5 elsewhere."
    elif kind == "binary":
        how = "Decided at the operating point where there is one, and for the more probable class elsewhere."
    else:
        how = "Decided for the most probable class."
    figures = "".join(f"<div><h3>{escape(one.run.label)}</h3>{_confusion(one)}</div>" for one in results)
    around = "matrices" if len(results[0].test.classes) < 6 and kind != "multilabel" else "stack"
    numbers = (
        "" if kind == "multilabel" else " Rows are the truth, columns the decision: percent of the row, and images."
    )
    return (
        f'<section><h2>Confusion</h2><p class="said">{how}{numbers}</p><div class="{around}">{figures}</div></section>'
    )


def _confusion(results: Results) -> str:
    test = results.test
    if not isinstance(test, SingleLabel):
        rows = "".join(
            f'<tr><th scope="row">{escape(question.name)}</th>'
            + "".join(f"<td>{cell:,}</td>" for cell in _decided(question)[[1, 1, 0, 0], [1, 0, 1, 0]])
            + "</tr>"
            for question in results.questions
        )
        return table(["Label", "True positive", "Missed", "False alarm", "True negative"], rows)
    if test.binary:
        return matrix(_decided(results.questions[0]), test.classes)
    counts = np.zeros((len(test.classes),) * 2, dtype=np.int64)
    np.add.at(counts, (test.truth, test.decided), 1)
    return matrix(counts, test.classes)


def _decided(question: Question) -> np.ndarray:
    """[2, 2] counts, rows are the truth."""
    threshold = None if question.operating is None else question.operating.point.threshold
    test = question.test
    called = test.decided == 1 if threshold is None else test.probabilities[:, 1] >= threshold
    counts = np.zeros((2, 2), dtype=np.int64)
    np.add.at(counts, (test.truth, called.astype(np.int64)), 1)
    return counts


def _calibration(results: Sequence[Results]) -> str:
    rows = []
    for one in results:
        temperature = "none" if one.temperature is None else f"{one.temperature.value:.3f}"
        cells = "".join(
            f'<td class="wrap">{estimate(before)}</td><td class="wrap">{estimate(after)}</td>'
            for _, before, after in one.calibration
        )
        note = "" if one.temperature is None or not one.temperature.note else one.temperature.note
        under = f"<small>{escape(note)}</small>" if note else ""
        rows.append(f'<tr><th scope="row">{escape(one.run.label)}{under}</th><td>{temperature}</td>{cells}</tr>')
    short = ("ECE", "Brier", "Log loss")
    heads = ["Run", "Temperature", *(f"{name} {when}" for name in short for when in ("before", "after"))]
    figures = "".join(_diagrams(one, named=len(results) > 1) for one in results)
    return (
        "<section><h2>Calibration</h2>"
        '<p class="said">Before and after temperature scaling, on test; less is better. Hollow: as the network gave '
        "them; filled: scaled, with 95 % intervals over patients. On the diagonal probabilities mean what they say. "
        "ECE is too great on few cases, even of perfect probabilities, and has no interval for that reason.</p>"
        f'{table(heads, "".join(rows))}<div class="squares" style="margin-top:1.6rem">{figures}</div></section>'
    )


def _diagrams(results: Results, *, named: bool) -> str:
    raw = results.run.test.predictions
    pairs: list[tuple[str, Predictions, Predictions]]
    if isinstance(raw, SingleLabel):
        across = f"probability of {raw.classes[1]}" if raw.binary else "probability of the decided class"
        pairs = [("", raw, results.test)]
    else:
        across = "probability"
        pairs = [(name, raw.one_against_rest(name), results.test.one_against_rest(name)) for name in raw.classes]
    told = f"ECE {number(results.calibration[0][1].value)} before, {number(results.calibration[0][2].value)} after"
    scaled = results.temperature is not None
    figures = []
    for name, before, after in pairs:
        title = ", ".join(part for part in (results.run.label if named or not name else "", name) if part)
        chart = reliability_chart(
            reliability(before) if scaled else (),
            reliability(after),
            across=across,
            told=f"Reliability diagram of {title}",
        )
        caption = f"<figcaption>{told}</figcaption>" if not name else ""
        figures.append(f"<figure><h3>{escape(title)}</h3>{chart}{caption}</figure>")
    return "".join(figures)

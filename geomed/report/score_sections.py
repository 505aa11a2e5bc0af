"""Scores side by side, differences, groups of patients."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from geomed.evaluation.markup import table
from geomed.report.words import chance, count, estimate, listed, number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from geomed.evaluation.interval import Estimate
    from geomed.evaluation.subgroups import Subgroup, SubgroupTable
    from geomed.report.comparison import Comparison
    from geomed.report.results import Results

CALIBRATION = ("ECE", "calibration error")
"""Measures of bins are told where calibration is."""


def sections(group: Comparison) -> list[str]:
    """Scores of the whole and of each class, and the differences."""
    parts = [_scores(group.results)]
    if any(results.scores.per_class for results in group.results):
        parts.append(_classes(group.results))
    if group.pairs:
        parts.append(_differences(group))
    return parts


def subgroups(group: Comparison) -> list[str]:
    """How each run does for groups of patients; none where nothing is recorded of them."""
    shown = [results for results in group.results if results.subgroups]
    if not shown:
        unknown = (
            '<section><h2>Groups of patients</h2><p class="said">No site, sex or age is recorded with the cases: '
            "whether a run does worse for some people is not known.</p></section>"
        )
        return [unknown]
    tables = "".join(_groups(results, named=len(group.results) > 1) for results in shown)
    least = shown[0].subgroups[0].least_patients
    told = (
        "<section><h2>Groups of patients</h2>"
        f'<p class="said">Groups of fewer than {least} patients are withheld, and others from which those could be '
        f"computed. Many groups are looked at: some will differ by chance.</p>{tables}</section>"
    )
    return [told]


def _scores(results: Sequence[Results]) -> str:
    names = list(dict.fromkeys(name for one in results for name in one.scores.overall))
    names = [name for name in names if not any(word in name for word in CALIBRATION)]
    who = "images (patients are unknown)" if results[0].test.image_level else "patients"
    return (
        "<section><h2>Scores on the test set</h2>"
        f'<p class="said">{_whole(results[0])} Small: 95 % interval over {who}. Probabilities are scaled by '
        "temperature; a case is of its most probable class"
        f"{', a label holds from 0.5' if results[0].run.setup.kind == 'multilabel' else ''}.</p>"
        f"{_side_by_side(names, results, lambda one, name: one.scores.overall.get(name))}{_remarks(results)}</section>"
    )


def _whole(results: Results) -> str:
    test = results.test
    patients = "" if test.image_level else f" of {test.n_patients:,} patients"
    return f"{len(test.cases):,} images{patients}."


def _side_by_side(
    names: Sequence[str], results: Sequence[Results], told: Callable[[Results, str], Estimate | None]
) -> str:
    def cell(one: Results, name: str) -> str:
        found = told(one, name)
        return '<td class="wrap">' + ("&ndash;" if found is None else estimate(found)) + "</td>"

    rows = "".join(
        f'<tr><th scope="row">{escape(name)}{_arrow(name)}</th>' + "".join(cell(one, name) for one in results) + "</tr>"
        for name in names
    )
    return table(["Measure", *(one.run.label for one in results)], rows)


def _arrow(name: str) -> str:
    return "<small>less is better</small>" if name in {"Brier score", "log loss"} or "ECE" in name else ""


def _remarks(results: Sequence[Results]) -> str:
    """What intervals have to say of themselves."""
    notes: dict[tuple[str, str], list[str]] = {}
    for one in results:
        for name, told in one.scores.overall.items():
            if told.interval is not None and told.interval.note and not any(word in name for word in CALIBRATION):
                notes.setdefault((one.run.label, told.interval.note), []).append(name)
    said = [f"{label}, {listed(names)}: {note}." for (label, note), names in notes.items()]
    said += [
        f"{one.run.label}: the probabilities are not scaled: {one.reason}."
        for one in results
        if one.temperature is None
    ]
    for one in results:
        if wrong := one.run.recorded.disagreements(one.scores.overall):
            said.append(
                f"{one.run.label}: metrics.json tells other values of {listed(wrong)} than cases.csv gives; the page "
                "is of cases.csv, and one of the two is not of this test."
            )
    return '<ul class="notes">' + "".join(f"<li>{escape(line)}</li>" for line in said) + "</ul>" if said else ""


def _classes(results: Sequence[Results]) -> str:
    parts = []
    measures = list(dict.fromkeys(name for one in results for each in one.scores.per_class.values() for name in each))
    for one in results:
        support = dict(zip(one.scores.classes, one.scores.support, strict=True))
        rows = "".join(
            f'<tr><th scope="row">{escape(name)}</th><td>{count(support[name])}</td>'
            + "".join(f'<td class="wrap">{estimate(each[measure])}</td>' for measure in measures)
            + "</tr>"
            for name, each in one.scores.per_class.items()
        )
        head = f'<h3 class="part">{escape(one.run.label)}</h3>' if len(results) > 1 else ""
        parts.append(head + table(["Class", "Test images", *measures], rows))
    return f'<section><h2>Class by class</h2><p class="said">Each class against the rest.</p>{"".join(parts)}</section>'


def _differences(group: Comparison) -> str:
    rows = []
    for pair in group.pairs:
        name = f"{escape(pair.asked.run.label)} <small>against {escape(pair.reference.run.label)}</small>"
        for at, told in enumerate(pair.differences):
            decides = " key" if not at else ""
            better = "" if told.greater_is_better else "<small>less is better</small>"
            rows.append(
                f'<tr><th scope="row">{"" if at else name}</th><td class="left{decides}">'
                f"{escape(told.measure)}{better}</td><td>{number(told.first)}</td><td>{number(told.second)}</td>"
                f'<td class="wrap">{estimate(told.difference, signed=True)}</td>'
                f"<td>{chance(told.p_value, told.permutations)}</td></tr>"
            )
    heads = ["Run", "Measure", "Reference", "Run", "Difference", "p"]
    tests = len(group.pairs) * len(group.pairs[0].differences)
    return (
        "<section><h2>Paired differences</h2>"
        '<p class="said">The same cases in both, all images of a patient together. The first measure of each pair is '
        "the one that the sentences at the top speak of; “not shown to be better” stands wherever its interval "
        f"includes 0 or its p-value is 0.05 or more. There are {tests} p-values here, not adjusted for one another: of "
        f"so many, about {tests * 0.05:.2g} fall below 0.05 by chance alone.</p>"
        f'<div class="words">{table(heads, "".join(rows))}</div></section>'
    )


def _groups(results: Results, *, named: bool) -> str:
    first = results.subgroups[0]
    heads = [
        "Group",
        "Patients",
        "Images",
        *(["Prevalence"] if _two(first) else []),
        *(one.measure for one in results.subgroups),
    ]
    rows, before = [], ""
    for lines in zip(*(one.rows for one in results.subgroups), strict=True):
        head = lines[0]
        if head.attribute not in (before, "all"):
            rows.append(
                f'<tr class="reference"><th scope="rowgroup" colspan="{len(heads)}">{escape(head.attribute)}</th></tr>'
            )
        before = head.attribute
        rows.append(_group(lines, prevalence=_two(first)))
    title = f'<h3 class="part">{escape(results.run.label)}</h3>' if named else ""
    return title + table(heads, "".join(rows))


def _two(one: SubgroupTable) -> bool:
    return any(row.prevalence is not None for row in one.rows)


def _group(lines: Sequence[Subgroup], *, prevalence: bool) -> str:
    head = lines[0]
    if head.suppressed:
        width = 2 + prevalence + len(lines)
        return (
            f'<tr><th scope="row">{escape(head.group)}</th>'
            f'<td class="left interval" colspan="{width}">withheld: too few patients, here or in a group that this one '
            "would betray</td></tr>"
        )
    share = "&ndash;" if head.prevalence is None else f"{100 * head.prevalence:.1f} %"
    return (
        f'<tr><th scope="row">{escape(head.group)}</th><td>{count(head.patients)}</td><td>{count(head.images)}</td>'
        + (f"<td>{share}</td>" if prevalence else "")
        + "".join(
            f'<td class="wrap">{"&ndash;" if line.estimate is None else estimate(line.estimate)}</td>' for line in lines
        )
        + "</tr>"
    )

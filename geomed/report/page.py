"""The page of scans, from what was computed."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from geomed import __version__
from geomed.evaluation.markup import document, terms
from geomed.report import case_sections, curve_sections, data_sections, score_sections
from geomed.report.stylesheet import STYLESHEET
from geomed.report.words import AGREE, chance, listed, number, span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geomed.report.comparison import Comparison, Pair
    from geomed.report.results import Results
    from geomed.report.setup import Setup

NOT_A_DEVICE = (
    '<p class="warning"><strong>Research software. Not a medical device. No diagnostic use.</strong> Nothing on this '
    "page may guide the care of a person.</p>"
)

TASKS = {
    "binary": "two classes",
    "multiclass": "one of several classes",
    "multilabel": "any number of labels",
    "ordinal": "grades",
}
"""What is asked of an image."""


def html(groups: Sequence[Comparison]) -> str:
    """The whole page; every text of a run is escaped.

    Args:
        groups: runs on one test set together.
    """
    setups = [results.run.setup for group in groups for results in group.results]
    title = _title(setups)
    sections = [_header(title, groups), _use(setups)]
    album = case_sections.Album(runs=len(setups))
    for number_of, group in enumerate(groups, start=1):
        if len(groups) > 1:
            sections.append(_divider(number_of, group))
        sections += data_sections.sections(group)
        sections += score_sections.sections(group)
        sections += curve_sections.sections(group)
        sections += score_sections.subgroups(group)
        sections += case_sections.sections(group, album)
    sections.append(_method(groups))
    return document(title, sections, style=STYLESHEET)


def _title(setups: Sequence[Setup]) -> str:
    modalities = list(dict.fromkeys(setup.modality for setup in setups if setup.modality))
    what = f" of {listed(modalities)}" if modalities else " of scans"
    return f"Classification{what}: evaluation of {len(setups)} run{'s' if len(setups) > 1 else ''}"


def _header(title: str, groups: Sequence[Comparison]) -> str:
    stamps = ""
    every = [results for group in groups for results in group.results]
    if any(results.run.setup.image_level or results.test.image_level for results in every):
        stamps = '<p class="stamp">image-level split, optimistic</p>'
    apart = ""
    if len(groups) > 1:
        apart = (
            f'<p class="warning"><strong>The runs were tested on {len(groups)} different test sets</strong> (or ask '
            "different questions). They are shown one after the other and are not compared: scores of different cases "
            "say nothing of which run is better.</p>"
        )
    return f"<header>{NOT_A_DEVICE}{stamps}<h1>{escape(title)}</h1>{apart}{_verdicts(groups)}</header>"


def _verdicts(groups: Sequence[Comparison]) -> str:
    """Plain sentences: what may be said of each run on its own, and of adapters against baselines."""
    said = []
    for group in groups:
        if len(group.results) == 1:
            said.append(f"<li>{_alone(group.results[0])}</li>")
        said += [f'<li class="{pair.outcome}">{_sentence(pair)}</li>' for pair in group.pairs]
        adapters = [one for one in group.results if not one.run.setup.model.baseline]
        if adapters and group.missing:
            names = listed([f"no {name}" for name in group.missing])
            beats = "beats" if len(adapters) == 1 else "beat"
            said.append(
                f'<li class="unknown">There is {names} on this test set among the runs: that '
                f"{escape(listed([one.run.label for one in adapters]))} {beats} "
                f"{'it' if len(group.missing) == 1 else 'them'} is not shown.</li>"
            )
    return f'<ul class="verdicts">{"".join(said)}</ul>' if said else ""


def _alone(results: Results) -> str:
    name, told = next(iter(results.scores.overall.items()))
    within = span(told.interval)
    who = "images" if results.test.image_level else "patients"
    return (
        f"<strong>{escape(results.run.label)}</strong>: {escape(name)} {number(told.value)}"
        + (
            f" (95 % interval {within}, over {who})"
            if within
            else f" ({escape(told.reason or 'no interval: ' + AGREE)})"
        )
        + f" on {len(results.test.cases):,} test images."
    )


def _sentence(pair: Pair) -> str:
    told = pair.differences[0]
    one, two = (f"<strong>{escape(part.run.label)}</strong>" for part in (pair.reference, pair.asked))
    interval = span(told.difference.interval, signed=True)
    chance_of = chance(told.p_value, told.permutations, equals=True)
    numbers = (
        f"{escape(told.measure)} {number(told.first)} and {number(told.second)}, difference "
        f"{number(told.difference.value, signed=True)} (95 % interval {interval or AGREE}; p {chance_of})"
    )
    if pair.outcome == "better":
        return f"{two} is better than {one} on this test set: {numbers}."
    if pair.outcome == "worse":
        return f"{two} is worse than {one} on this test set: {numbers}."
    if pair.outcome == "unknown":
        return f"{two} is not shown to be better than {one}: there are too few cases for an interval or a test."
    known = told.difference.interval
    zero = known is not None and known.low <= 0 <= known.high
    why = "the interval of the paired difference includes 0" if zero else "the permutation test does not speak for it"
    return f"{two} is not shown to be better than {one}: {why}. {numbers[0].upper()}{numbers[1:]}."


def _use(setups: Sequence[Setup]) -> str:
    tasks = listed(list(dict.fromkeys(TASKS[setup.kind] for setup in setups)))
    modalities = listed(list(dict.fromkeys(setup.modality for setup in setups if setup.modality)) or ["scans"])
    classes = listed(list(dict.fromkeys(name for setup in setups for name in setup.classes)))
    return (
        '<section><div class="pair"><div><h2>Intended use</h2><p>Research on adapting vision networks: to compare '
        f"methods at telling {escape(classes)} apart ({tasks}) in {escape(modalities)}, on the data described below."
        "</p></div><div><h2>Out of scope</h2><p>Diagnosis, triage, screening, prognosis or treatment of any person; "
        "other modalities, devices, sites, ages or prevalences than those of the data below; any use without a "
        "prospective study and the approval that a medical device needs.</p></div></div></section>"
    )


def _divider(number_of: int, group: Comparison) -> str:
    names = escape(listed([results.run.label for results in group.results]))
    return (
        f'<section class="divider"><h2>Test set {number_of}: {names}</h2>'
        '<p class="said">What follows, up to the next test set, is of these runs only.</p></section>'
    )


def _method(groups: Sequence[Comparison]) -> str:
    every = [results for group in groups for results in group.results]
    first = every[0].bootstrap
    seeds = ", ".join(dict.fromkeys(str(results.bootstrap.seed) for results in every))
    rules = listed(list(dict.fromkeys(results.run.recorded.rule.name for results in every)))
    versions = listed(list(dict.fromkeys(results.run.setup.version for results in every)))
    prints = list(dict.fromkeys(group.results[0].run.setup.test_fingerprint for group in groups))
    intervals = (
        f"{100 * first.level:g} %, bootstrap of patients with all of their images, stratified by class, "
        f"{first.draws:,} draws, seed {escape(seeds)}; of proportions Wilson at the effective number of images"
    )
    differences = (
        f"the same draws for both runs; permutation test that exchanges patients, {first.draws:,} permutations"
    )
    facts = [
        ("Intervals", intervals),
        ("Differences", differences),
        ("Bands", "pointwise 95 %, from the same bootstrap"),
        ("Temperature", "least log loss on validation; decisions and thresholds are made after it"),
        ("Thresholds", f"{escape(rules)} on validation, one for each class; never chosen on test"),
        ("Calibration", "ECE over 15 bins of equal width; diagrams have 10 bins of equal mass"),
        ("Test set", escape(", ".join(prints))),
        ("Runs made with", f"geomed {escape(versions)}"),
        ("Page made with", f"geomed {__version__}, from evaluation/cases.csv and setup.json of each run"),
    ]
    return (
        "<section><h2>How the figures were made</h2>"
        f'<dl class="facts">{terms(facts)}</dl>'
        '<ul class="notes" style="margin-top:1.2rem"><li>Intervals are of other patients of the same kind as these: '
        "they do not cover other hospitals, devices or times, nor another training with another seed.</li>"
        "<li>p-values are of one comparison each and not adjusted for how many there are.</li>"
        "<li>Case names are keyed hashes.</li></ul></section>"
    )

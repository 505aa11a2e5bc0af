"""What a run was trained and tested on."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from geomed.evaluation.markup import table
from geomed.report.words import count, listed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geomed.report.comparison import Comparison
    from geomed.report.run import Run
    from geomed.report.setup import Setup

ORDER = ("train", "val", "test")
"""Of the parts in a table."""

FEW = 10
"""Patients of a class; of fewer a reader is warned."""


def sections(group: Comparison) -> list[str]:
    """Data and split, and the models."""
    runs = [results.run for results in group.results]
    return [_data(runs), _models(runs)]


def _data(runs: Sequence[Run]) -> str:
    told: dict[str, list[Run]] = {}
    for run in runs:
        told.setdefault(_split(run.setup), []).append(run)
    parts = []
    for content, same in told.items():
        head = f'<h3 class="part">{escape(listed([run.label for run in same]))}</h3>' if len(told) > 1 else ""
        parts.append(head + content)
    if len(told) > 1:
        parts.insert(
            0, '<p class="warning">The runs share the test set, but not the data or the split that they come from.</p>'
        )
    parts += [_overrides(runs), _openings(runs), _warnings(runs)]
    return f"<section><h2>Data and split</h2>{''.join(parts)}</section>"


def _split(setup: Setup) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in setup.data)
    named = [part for part in ORDER if part in setup.counts] + [part for part in setup.counts if part not in ORDER]
    classes = list(dict.fromkeys([*setup.classes, *(name for part in setup.counts.values() for name in part.by_class)]))
    rows = "".join(
        f'<tr><th scope="row">{escape(part)}</th><td>{count(here.patients)}</td><td>{count(here.images)}</td>'
        + "".join(f"<td>{count(here.by_class.get(name))}</td>" for name in classes)
        + "</tr>"
        for part, here in ((part, setup.counts[part]) for part in named)
    )
    stamp = (
        '<p class="stamp">image-level split, optimistic</p><p>Images of one patient may be in training and in test: '
        "scores are better than they would be for new patients.</p>"
        if setup.image_level
        else '<p class="said">Split by patient.</p>'
    )
    several = " An image may have several labels or none." if setup.kind == "multilabel" else ""
    return (
        (f'<ul class="notes" style="margin-bottom:1.2rem">{lines}</ul>' if lines else "")
        + stamp
        + (table(["Part", "Patients", "Images", *classes], rows) if rows else "")
        + (f'<p class="said">Under each class: images.{several}</p>' if rows else "")
    )


def _overrides(runs: Sequence[Run]) -> str:
    """Why refusals were overridden, with the runs that did so."""
    told: dict[str, list[str]] = {}
    for run in runs:
        for reason in run.setup.overrides:
            told.setdefault(reason, []).append(run.label)
    if not told:
        return '<p class="said">No refusal was overridden.</p>'
    lines = "".join(
        f"<li>{escape(reason)}{f' ({escape(listed(who))})' if len(runs) > 1 else ''}</li>"
        for reason, who in told.items()
    )
    return (
        '<div class="warning"><strong>Refusals that were overridden</strong>, and why:'
        f'<ul class="notes">{lines}</ul></div>'
    )


def _openings(runs: Sequence[Run]) -> str:
    """How often the test set was looked at."""
    most = max(run.setup.test_openings for run in runs)
    if most <= 1:
        return (
            '<p class="said">The test set was opened once.</p>'
            if most
            else ('<p class="said">No opening of the test set is on record.</p>')
        )
    each = "; ".join(f"{run.label}: {run.setup.test_openings}" for run in runs)
    told = f" (when each run was tested: {escape(each)})" if len(runs) > 1 else ""
    return (
        f'<p class="warning"><strong>The test set was opened {most} times</strong>{told}. Whatever was chosen after '
        "the first look flatters the scores.</p>"
    )


def _warnings(runs: Sequence[Run]) -> str:
    said = []
    for run in runs:
        who = "images" if run.test.predictions.image_level else "patients"
        if run.shared_patients:
            said.append(
                f"{run.label}: {run.shared_patients:,} {who} are in validation and in test, so that threshold and "
                "temperature have seen test cases."
            )
        if run.test.unlabelled:
            whole = run.test.unlabelled + len(run.test.predictions.cases)
            said.append(
                f"{run.label}: {run.test.unlabelled:,} of {whole:,} test images are left out, for some truth of theirs "
                "is unknown."
            )
        if few := _few(run):
            said.append(f"Few test {who}: {listed(few)}. Scores of so few vary widely, and intervals are too narrow.")
        if run.test.predictions.image_level:
            said.append(f"{run.label}: patients are unknown, so that all intervals are too narrow.")
    return "".join(f'<p class="warning">{escape(line)}</p>' for line in dict.fromkeys(said))


def _few(run: Run) -> list[str]:
    """Classes that fewer than ten patients of the test set have."""
    test = run.test.predictions
    sizes = [len(np.unique(test.patient_of[held])) for held in test.targets.T]
    return [f"{size} of {name}" for name, size in zip(test.classes, sizes, strict=True) if size < FEW]


def _models(runs: Sequence[Run]) -> str:
    def line(run: Run) -> str:
        model = run.setup.model
        part = model.trained / model.parameters if model.trained is not None and model.parameters else None
        seed = f"<td>{'&ndash;' if run.setup.seed is None else run.setup.seed}</td>"
        tag = '<span class="tag">baseline</span>' if model.baseline else ""
        return (
            f'<tr><th scope="row">{escape(run.label)}{tag}</th><td class="left">{escape(model.backbone)}</td>'
            f'<td class="left">{escape(model.adapter)}</td><td>{count(model.trained)}</td>'
            f"<td>{'&ndash;' if part is None else f'{100 * part:.3g} %'}</td>{seed}</tr>"
        )

    heads = ["Run", "Backbone", "Adapter", "Trained parameters", "Share", "Seed"]
    lines = "".join(map(line, runs))
    return f'<section><h2>Runs</h2><div class="words3">{table(heads, lines)}</div></section>'

"""The sections of a report's page, as HTML."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from geomed.evaluation.charts import change_chart, methods_chart, season_chart
from geomed.evaluation.markup import document, matrix, table, terms
from geomed.evaluation.pictures import OUTCOMES, class_map, outcome_map, outcomes, photograph, stride
from geomed.palette import palette

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geomed.evaluation.comparison import CropArea, Maps, Row
    from geomed.evaluation.report import Report
    from geomed.palette import Colour


def html(report: Report) -> str:
    """The whole page; every text of the report is escaped."""
    colours = palette(report.classes)
    sections = [_header(report), _methods(report)]
    if report.maps is not None:
        sections.append(_maps(report, report.maps, colours))
    sections.append(_classes(report, colours))
    if report.seasons:
        sections.append(_seasons(report, colours))
    if report.areas:
        sections.append(_areas(report, colours))
    sections.append(_provenance(report))
    return document(report.title, sections)


def _header(report: Report) -> str:
    best, start = report.chosen, report.unadapted
    simulated = (
        '<p class="simulated"><strong>Simulated data.</strong> Images, fields and labels come from a generator: the '
        "figures show that the method works, not how well it does on real fields.</p>"
    )
    within = f" (95 % interval {_span(best.interval)})" if best.interval else ""
    tiles = [
        (
            "gain over the unadapted model",
            f"{100 * (best.macro_f1 - start.macro_f1):+.1f} points".replace("-", "&minus;"),
        )
    ]
    if report.full is not None and report.full.macro_f1 > 0:
        tiles.append(("of full fine-tuning&rsquo;s macro F1", _share(best.macro_f1 / report.full.macro_f1)))
    if best.adapter_bytes is not None:
        tiles.append(("adapter file", _size(best.adapter_bytes)))
    if best.seconds is not None:
        tiles.append(("training time", _time(best.seconds)))
    return (
        f"<header>{simulated if report.simulated else ''}<h1>{escape(report.title)}</h1>"
        f'<p class="lead">{escape(report.summary)}</p><div class="hero"><p class="score">'
        f'<span class="from">{100 * start.macro_f1:.1f}</span><span class="arrow">→</span>'
        f'<span class="to">{100 * best.macro_f1:.1f}</span> <small>% macro F1</small></p>'
        f'<p class="what">in {escape(report.target)}, with <strong>{_share(best.trained_share)}</strong> of the model'
        f"&rsquo;s parameters trained by <strong>{escape(best.name)}</strong>{within}.</p>"
        f'<dl class="tiles">{terms(tiles, "div")}</dl></div><pre>{escape(report.command)}</pre></header>'
    )


def _methods(report: Report) -> str:
    def line(row: Row, kind: str) -> str:
        tag = ' <span class="tag">reference</span>' if kind == "reference" else ""
        interval = f' <span class="interval">{_span(row.interval)}</span>' if row.interval else ""
        note = f"<small>{escape(row.note)}</small>" if row.note else ""
        cells = [
            f"{row.trained_parameters:,}",
            _share(row.trained_share),
            f"{100 * row.accuracy:.1f}",
            f"{100 * row.iou:.1f}",
            "&ndash;" if row.seconds is None else _time(row.seconds),
            "&ndash;" if row.adapter_bytes is None else _size(row.adapter_bytes),
        ]
        return (
            f'<tr class="{kind}"><th scope="row">{escape(row.name)}{tag}{note}</th>'
            f'<td class="key">{100 * row.macro_f1:.1f}{interval}</td>'
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>"
        )

    heads = [
        "Method",
        "Macro F1, %",
        "Trained parameters",
        "Share",
        "Accuracy, %",
        "Mean IoU, %",
        "Training",
        "Adapter file",
    ]
    lines = [line(row, "reference") for row in report.references]
    lines += [line(row, "best" if row.name == report.best else "method") for row in report.rows]
    charts = "".join(
        f'<div class="{kind}">'
        + methods_chart(report.rows, references=report.references, best=report.best, width=width)
        + "</div>"
        for kind, width in (("wide", 1060), ("narrow", 360))
    )
    brackets = (
        " Bars and brackets: 95 % intervals." if any(row.interval for row in (*report.references, *report.rows)) else ""
    )
    return (
        "<section><h2>What each method reaches, and what it trains</h2>"
        '<p class="said">Filled dots adapt, hollow ones are references; the dashed line is the unadapted model.'
        f"{brackets}</p><figure>{charts}</figure>"
        f"{table(heads, ''.join(lines))}</section>"
    )


def _maps(report: Report, maps: Maps, colours: Sequence[Colour]) -> str:
    height, width = maps.truth.shape
    labelled = maps.truth != maps.ignore
    count = max(int(labelled.sum()), 1)
    right = [
        f"{100 * float(((index == maps.truth) & labelled).sum()) / count:.1f} % right"
        for index in (maps.before, maps.after)
    ]
    outcome = outcomes(maps.truth, maps.before, maps.after, ignore=maps.ignore)
    panels = [
        ("True colour", report.target, photograph(maps.true_colour)),
        ("Truth", "labels", class_map(maps.truth, colours, ignore=maps.ignore)),
        ("Before", f"unadapted: {right[0]}", class_map(maps.before, colours, ignore=maps.ignore)),
        ("After", f"{report.best}: {right[1]}", class_map(maps.after, colours, ignore=maps.ignore)),
        ("Error", "what adaptation changed", outcome_map(outcome)),
    ]
    bar = _round_length(0.4 * width * maps.metres)
    length = f"{bar / 1000:g} km" if bar >= 1000 else f"{bar:g} m"
    scale = f'<div class="scale">{length}<i style="width:{100 * bar / (width * maps.metres):.1f}%"></i></div>'
    figures = "".join(
        f'<figure><div class="frame"><img src="{picture}" alt="{name}: {escape(said)}, {width} by {height} pixels">'
        f"{scale if name == 'True colour' else ''}</div>"
        f"<figcaption>{name}<small>{escape(said)}</small></figcaption></figure>"
        for name, said, picture in panels
    )
    seen = np.unique(np.concatenate([index.ravel() for index in (maps.truth, maps.before, maps.after)]))
    legend = "".join(
        f"<li>{_swatch(colour)}{escape(name)}</li>"
        for at, (name, colour) in enumerate(zip(report.classes, colours, strict=True))
        if at in seen
    )
    kinds = "".join(
        f"<li>{_swatch(colour[:3], colour[3] / 255)}{name}, {100 * float((outcome == at).sum()) / count:.1f} %</li>"
        for at, (name, colour) in enumerate(OUTCOMES.items())
    )
    step = stride(maps.truth.shape)
    thinned = f" Shown at one pixel in {step} each way." if step > 1 else ""
    return (
        "<section><h2>The map before and after</h2>"
        f'<p class="said">{width} &times; {height} pixels of {maps.metres:g} m. '
        f'Shares are of labelled pixels.{thinned}</p><div class="maps">{figures}</div>'
        f'<ul class="legend">{legend}</ul><ul class="legend" aria-label="Error map">{kinds}</ul></section>'
    )


def _classes(report: Report, colours: Sequence[Colour]) -> str:
    before, after = report.before, report.after
    lines = "".join(
        f'<tr><th scope="row">{_swatch(colours[at])}{escape(name)}</th><td>{_percent(before.f1[at])}</td>'
        f'<td class="key">{_percent(after.f1[at])}</td><td>{change_chart(before.f1[at], after.f1[at])}</td>'
        f"<td>{_percent(after.precision[at])}</td><td>{_percent(after.recall[at])}</td><td>{_percent(after.iou[at])}</td>"
        f"<td>{after.support[at]:,}</td></tr>"
        for at, name in enumerate(report.classes)
    )
    foot = (
        f'<tr><th scope="row">Macro mean</th><td>{_percent(before.macro_f1)}</td><td>{_percent(after.macro_f1)}</td>'
        f"<td>{change_chart(before.macro_f1, after.macro_f1)}</td><td></td><td></td>"
        f"<td>{_percent(after.macro_iou)}</td><td>{sum(after.support):,}</td></tr>"
    )
    heads = ["Class", "F1 before", "F1 after", "From 0 to 100", "Precision", "Recall", "IoU", "Pixels"]
    kappa = "no kappa" if math.isnan(after.kappa) else f"kappa {after.kappa:.3f}"
    return (
        "<section><h2>Class by class</h2>"
        f'<p class="said">{escape(report.best)} against the unadapted model, in percent, over all '
        f"{sum(after.support):,} labelled test pixels. After adaptation: accuracy {_percent(after.accuracy)} %, "
        f"{kappa}; before: accuracy {_percent(before.accuracy)} %.</p>"
        f"{table(heads, lines, foot)}</section>"
        f"<section><h2>What is taken for what</h2>"
        '<p class="said">Rows are the truth, columns the map. Numbers: percent of the row'
        '<span class="counted">; small ones: pixels</span>.</p>'
        f'<div class="pair"><div><h3>Before: unadapted</h3>{matrix(report.confusion_before, report.classes)}</div>'
        f"<div><h3>After: {escape(report.best)}</h3>{matrix(report.confusion_after, report.classes)}</div>"
        "</div></section>"
    )


def _seasons(report: Report, colours: Sequence[Colour]) -> str:
    both = [season for crop in report.seasons for season in (crop.source, crop.target)]
    days = (min(int(season.days[0]) for season in both), max(int(season.days[-1]) for season in both))
    top = min(max(0.6, math.ceil(10 * max(float(season.upper[season.clear].max()) for season in both) / 2) / 5), 1.0)
    figures = "".join(
        f"<figure><h3>{escape(crop.crop)}</h3>"
        + season_chart(crop, colours[report.classes.index(crop.crop)], days=days, top=top)
        + "</figure>"
        for crop in report.seasons
    )
    return (
        "<section><h2>The shift: one crop, two seasons</h2>"
        '<p class="said">NDVI over clear pixels: the line is the mean, the band runs from the first '
        'to the third quartile.</p><ul class="legend" style="margin:0 0 1.2rem">'
        f'<li><span class="dash"></span>{escape(report.source)}, where the model comes from</li>'
        f'<li><span class="dash solid"></span>{escape(report.target)}, in the colour of the crop</li></ul>'
        f'<div class="curves">{figures}</div></section>'
    )


def _areas(report: Report, colours: Sequence[Colour]) -> str:
    most = max((area for part in report.areas for area in (part.truth, part.mapped)), default=0) or 1

    def line(part: CropArea) -> str:
        colour = colours[report.classes.index(part.crop)]
        paint = "#{:02x}{:02x}{:02x}".format(*colour)
        change = f"{100 * (part.mapped / part.truth - 1):+.1f} %".replace("-", "&minus;") if part.truth else "&ndash;"
        return (
            f'<tr><th scope="row">{_swatch(colour)}{escape(part.crop)}</th>'
            f"<td>{part.truth:,.1f}</td><td>{part.mapped:,.1f}</td><td>{change}</td>"
            f'<td class="bars" aria-hidden="true"><i class="truth" style="width:{100 * part.truth / most:.1f}%"></i><i'
            f' style="width:{100 * part.mapped / most:.1f}%;background:{paint}"></i></td></tr>'
        )

    heads = ["Crop", "Truth, ha", "Mapped, ha", "Difference", ""]
    return (
        "<section><h2>Area of each crop</h2>"
        f'<p class="said">Counted pixels of the map by {escape(report.best)} against the '
        "labels, not corrected for the errors of the map. Grey: truth.</p>"
        f"{table(heads, ''.join(line(part) for part in report.areas))}</section>"
    )


def _provenance(report: Report) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    parts = []
    if notes:
        parts.append(f'<section><h2>Limits</h2><ul class="notes">{notes}</ul></section>')
    columns = "".join(
        f'<div><h2>{name}</h2><dl class="facts">'
        + terms([(escape(key), escape(value)) for key, value in pairs.items()])
        + "</dl></div>"
        for name, pairs in (("Data", report.facts), ("Made with", report.versions))
        if pairs
    )
    if columns:
        parts.append(f'<section><div class="pair">{columns}</div></section>')
    return "\n".join(parts)


def _swatch(colour: Sequence[int], opacity: float = 1) -> str:
    red, green, blue = colour
    return f'<span class="swatch" style="background:rgba({red},{green},{blue},{opacity:.2f})"></span>'


def _percent(share: float) -> str:
    return "&ndash;" if math.isnan(share) else f"{100 * share:.1f}"


def _share(share: float) -> str:
    percent = 100 * share
    return f"{percent:.1f} %" if percent >= 1 or not percent else f"{percent:.2g} %"


def _span(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f}&ndash;{100 * interval[1]:.1f}"


def _size(count: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _round_length(most: float) -> float:
    """The longest of 1, 2 and 5 times a power of ten that is not above ``most``."""
    power = 10.0 ** math.floor(math.log10(most))
    return float(max(step * power for step in (1, 2, 5) if step * power <= most))

"""Single cases: the worst errors, and where the network looked."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from geomed.evaluation.single_label import SingleLabel
from geomed.report.pictures import MOST_BYTES, picture
from geomed.report.words import listed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from geomed.report.comparison import Comparison
    from geomed.report.results import Results

MOST = 12
"""Pictures of a kind for each run."""


@dataclass
class Album:
    """Counts what pictures weigh, so that a page of many runs stays light."""

    runs: int
    """How many share the page."""

    left_out: int = field(default=0, init=False)
    """Pictures that are broken or no more fit in."""

    def take(self, paths: Sequence[Path]) -> list[str | None]:
        """The pictures in order, None for those left out."""
        room = MOST_BYTES / self.runs / 2
        taken: list[str | None] = []
        for path in paths:
            drawn = picture(path)
            if drawn is not None and len(drawn) > room:
                drawn = None
            room -= len(drawn or "")
            self.left_out += drawn is None
            taken.append(drawn)
        return taken


def sections(group: Comparison, album: Album) -> list[str]:
    """The worst errors and the attention maps; none where a run left no pictures."""
    named = len(group.results) > 1
    parts = []
    worst = "".join(_plates(one, one.run.thumbnails, album, named=named, what="Test image") for one in group.results)
    if worst:
        parts.append(
            "<section><h2>Worst errors</h2>"
            '<p class="said">Test images that are the farthest from their truth, the worst first. Chosen for being '
            f"wrong: they say nothing of how often that happens.</p>{worst}</section>"
        )
    attention = "".join(
        _plates(one, one.run.attention, album, named=named, what="Attention map") for one in group.results
    )
    if attention:
        parts.append(
            "<section><h2>Attention maps</h2>"
            '<p class="warning"><strong>Not evidence of correctness.</strong> They show where the network&rsquo;s '
            "attention lies, which need not be what its answer rests on; a plausible map proves nothing.</p>"
            f"{attention}</section>"
        )
    return parts


def distances(results: Results) -> np.ndarray:
    """[n] how far each test case is from its truth, 1 at most: of the true class, or of the worst label."""
    test = results.test
    gaps: np.ndarray = np.abs(test.probabilities - test.targets)
    if isinstance(test, SingleLabel):
        return np.take_along_axis(gaps, test.truth[:, None].astype(np.int64), axis=1)[:, 0]
    worst: np.ndarray = gaps.max(1)
    return worst


def _plates(results: Results, pictures: Mapping[str, Path], album: Album, *, named: bool, what: str) -> str:
    far, cases = distances(results), results.test.cases
    order = [at for at in np.argsort(-far, kind="stable") if cases[at] in pictures][:MOST]
    drawn = album.take([pictures[cases[at]] for at in order])
    figures = "".join(
        f'<figure><img src="{source}" alt="{what} of case {escape(cases[at])}"><figcaption>{_told(results, int(at))}'
        f"<small>{escape(cases[at][:12])}</small></figcaption></figure>"
        for at, source in zip(order, drawn, strict=True)
        if source is not None
    )
    if not figures:
        return ""
    missing = sum(source is None for source in drawn)
    note = f'<p class="said">{missing} more cannot be shown: broken, or too large for the page.</p>' if missing else ""
    title = f'<h3 class="part">{escape(results.run.label)}</h3>' if named else ""
    return f'{title}<div class="plates">{figures}</div>{note}'


def _told(results: Results, at: int) -> str:
    """Truth and answer of a case."""
    test = results.test
    if isinstance(test, SingleLabel):
        decided = int(test.decided[at])
        return (
            f"truth {escape(test.classes[int(test.truth[at])])}; said {escape(test.classes[decided])} "
            f"({test.probabilities[at, decided]:.2f})"
        )
    held = [name for name, yes in zip(test.classes, test.targets[at], strict=True) if yes]
    worst = int(np.argmax(np.abs(test.probabilities[at] - test.targets[at])))
    return (
        f"truth {escape(listed(held) or 'none')}; {escape(test.classes[worst])} said "
        f"({test.probabilities[at, worst]:.2f})"
    )

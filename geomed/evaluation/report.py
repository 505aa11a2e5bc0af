"""One page that shows what an adaptation did: a single HTML file that needs nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np  # noqa: TC002  (likewise)
from jaxtyping import Num  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)

from geomed.evaluation.markup import write_page
from geomed.evaluation.page import html
from geomed.evaluation.segmentation_scores import SegmentationScores

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    from geomed.evaluation.comparison import CropArea, CropSeasons, Maps, Row


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """A comparison of adaptation methods, and the best of them in detail."""

    title: str
    """What was compared, in a few words."""

    summary: str
    """What was done, in one paragraph."""

    command: str
    """The command line that repeats it."""

    rows: tuple[Row, ...]
    """The adaptation methods, in the order of the table."""

    best: str
    """Name of the row that headline, maps and classes show. Choose it on other data than that of the scores here."""

    unadapted: Row
    """Reference: the model as it comes from the source region."""

    scratch: Row | None = None
    """Reference: trained from nothing on the same labels of the target region."""

    full: Row | None = None
    """Reference: every parameter fine-tuned."""

    classes: tuple[str, ...]
    """Names, in the order of the matrices and the indices of the maps."""

    confusion_before: Num[np.ndarray, "truth predicted"]
    """[K, K] pixel counts of the unadapted model, rows are the truth."""

    confusion_after: Num[np.ndarray, "truth predicted"]
    """[K, K] pixel counts of the best row over the same pixels."""

    source: str
    """Region and year where the model was trained first."""

    target: str
    """Region and year that it was adapted to."""

    maps: Maps | None = None
    """One place in pictures."""

    seasons: tuple[CropSeasons, ...] = ()
    """NDVI of each crop in both regions."""

    areas: tuple[CropArea, ...] = ()
    """Hectares of each crop."""

    facts: Mapping[str, str] = field(default_factory=dict)
    """What the data are, by name: dates, cloud share, fields, pixels."""

    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of programs and the machine, by name."""

    notes: tuple[str, ...] = ()
    """Limits and caveats, each a sentence or two."""

    simulated: bool = False
    """True says on the page that the data come from a generator."""

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        names = [row.name for row in (*self.references, *self.rows)]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(
                f"the rows of a report must have different names, {', '.join(doubled)} stands twice; rename one"
            )
        if self.best not in [row.name for row in self.rows]:
            raise ValueError(f"best must name one of the rows {[row.name for row in self.rows]}, not {self.best!r}")
        before, after = self.before, self.after
        if before.support != after.support:
            raise ValueError(
                "both confusion matrices must count the same pixels, their truths are "
                f"{before.support} and {after.support}; evaluate both models on one test set"
            )
        crops = {part.crop for part in self.seasons} | {part.crop for part in self.areas}
        if strange := sorted(crops - set(self.classes)):
            raise ValueError(f"seasons and areas must be of the classes {self.classes}, not {', '.join(strange)}")

    @property
    def references(self) -> tuple[Row, ...]:
        """The rows that the methods are measured against, the unadapted model first."""
        return tuple(row for row in (self.unadapted, self.scratch, self.full) if row is not None)

    @property
    def chosen(self) -> Row:
        """The best row."""
        return next(row for row in self.rows if row.name == self.best)

    @property
    def before(self) -> SegmentationScores:
        """Scores of the unadapted model."""
        return SegmentationScores.from_confusion(self.confusion_before, self.classes)

    @property
    def after(self) -> SegmentationScores:
        """Scores of the best row."""
        return SegmentationScores.from_confusion(self.confusion_after, self.classes)


def write_report(path: str | PathLike[str], report: Report) -> None:
    """Write the report as one HTML file: styles, charts and pictures are inside, nothing is fetched, no script runs.

    The same report gives the same bytes. A file at ``path`` is replaced only when the new one is complete.

    Raises:
        ValueError: a map holds a class index without a class.
        FileNotFoundError: the folder of ``path`` does not exist.
    """
    write_page(Path(path), html(report))

"""Scans of patients that nobody has to download or protect: simulated, written as PNG and CSV, read like real ones."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import shutil
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomed.data.area import Legend
from geomed.data.duplicates import Duplicates
from geomed.data.scan_source import ScanSource
from geomed.data.scan_table import ScanTable
from geomed.data.simulation.cohort import GRADES, HOSPITAL, MOBILE, REFERABLE, SCREENING, Site, photographs
from geomed.data.targets import Grade, OneOf, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from geomed.data.scan_list import Listed

VERSION = 1
"""Raised whenever the same fields give other files: what an older version wrote is then made anew."""

SMALLEST = 32
"""Side of the smallest picture in which a lesion is seen."""

RECORD = "simulation.json"
"""The file that makes a folder complete: written last, with the parameters and their fingerprint."""

COLUMNS = ("path", "patient_id", "eye", "site", "sex", "age", "grade", "referable")
"""Of the table."""

GRADE = Grade(
    legend=Legend(classes={name: [grade] for grade, name in enumerate(GRADES)}),
    column="grade",
)
"""How ill the eye is, from 0 to 4."""

REFERRAL = OneOf(legend=Legend(classes={"healthy": [0], "referable": [1]}), column="referable")
"""Whether that is moderate or worse."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SimulatedCohort(ScanSource):
    """Photographs of made-up retinas from several sites, in colour; nothing in them is of a person.

    The grade is a count of small lesions, red and bright, among vessels, pigmented spots and drusen that resemble them;
    pictures differ far more in exposure and pigment, so that their brightness tells next to nothing. A patient has 1 to
    4 pictures of one or two eyes, which look alike. Most are healthy. Sites differ in camera, light and prevalence; sex
    and age say a little of the grade.

    ``prepare`` writes ``images/`` and ``table.csv``; they are then read as a ``ScanTable``. Set ``colour`` in the
    rendition, or ``luma``.
    """

    root: str = "data/simulated_cohort"
    """Folder of the pictures and the table; made if absent."""

    labels: Target | None = None
    """What is to be learned, from a column of the table; None: ``GRADE``."""

    sites: tuple[Site, ...] = (SCREENING, MOBILE, HOSPITAL)
    """Where the patients come from."""

    size: int = 64
    """Side of a picture in pixels, 32 or more."""

    duplicates: Duplicates = Duplicates(correlation=0.98)  # noqa: RUF009  (frozen)
    """What counts as the same image. At the usual 0.95 retinas of different patients do: at 64 pixels under one black
    rim they are that alike."""

    disagreement: float = 0.05
    """Share of the eyes whose grade is read one too high or too low: no model can be perfect."""

    seed: int = 0
    """Everything random follows from it."""

    def __post_init__(self) -> None:
        """Refuse what cannot be simulated."""
        names = [site.name for site in self.sites]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"sites must be at least one and differ, not {', '.join(names) or 'none'}; rename one")
        if self.size < SMALLEST:
            raise ValueError(f"size must be at least {SMALLEST} pixels, not {self.size}: smaller ones show no lesion")
        if not 0.0 <= self.disagreement <= 0.5:
            raise ValueError(f"disagreement is a share from 0 to 0.5, not {self.disagreement}; correct it")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, not {self.seed}; correct it")
        strange = [name for name in self.target.columns if name not in COLUMNS]
        if strange:
            raise ValueError(f"labels: the table has no column {', '.join(strange)}; take one of {', '.join(COLUMNS)}")
        if not (self.rendition.colour or self.rendition.luma):
            raise ValueError("the pictures have colours; set colour in the rendition, or luma to make them grey")

    @property
    def target(self) -> Target:
        """What is to be learned."""
        return GRADE if self.labels is None else self.labels

    @property
    def image_level(self) -> bool:
        """Never: the patients are known."""
        return False

    @property
    def modality(self) -> str:
        """What kind of scans these are: no reader shall take them for real ones."""
        return "simulated photographs of retinas"

    @property
    def summary(self) -> str:
        """What was found, part by part, for logs and reports."""
        return f"simulated: nothing in it is of a person; seed {self.seed}\n{super().summary}"

    def prepare(self, progress: Callable[[int], None] | None = None) -> None:
        """Simulate the cohort if it is not there yet or was made with other parameters, then look at all of it.

        It is written beside its place and moved there when it is complete, so that an interrupted run leaves no half of
        one. Only one process may do this at a time.

        Args:
            progress: called with the count of pictures after each.

        Raises:
            ValueError: a folder that this class did not write stands in its place.
        """
        folder, parameters = Path(self.root), self._parameters()
        if not _complete(folder, parameters):
            pictures = self._simulate(folder, parameters, progress)
            for kept in ("_table", "_list", "_checked", "_split_cases", "_strata", "patient_numbers"):
                vars(self).pop(kept, None)  # it may have looked at the files that were there before
            _log.info("simulated %d pictures of %d x %d pixels", pictures, self.size, self.size)
        super().prepare()

    def _parameters(self) -> dict[str, Any]:
        """All that decides what the files hold."""
        sites = [asdict(site) for site in self.sites]
        parameters = {"version": VERSION, "sites": sites, "size": self.size, "seed": self.seed}
        plain: dict[str, Any] = json.loads(json.dumps({**parameters, "disagreement": self.disagreement}))
        return plain

    def _simulate(self, folder: Path, parameters: dict[str, Any], progress: Callable[[int], None] | None) -> int:
        from PIL import Image

        aside, old = (folder.with_name(f".{folder.name}.{ending}") for ending in ("part", "old"))
        for left in (aside, old):  # by an interrupted run
            shutil.rmtree(left, ignore_errors=not left.exists())
        (aside / "images").mkdir(parents=True)
        rows = []
        for site in self.sites:
            for taken in photographs(site, size=self.size, disagreement=self.disagreement, seed=self.seed):
                path = f"images/{taken.file}"
                Image.fromarray(taken.pixels).save(aside / path, compress_level=1)
                known = (taken.patient, taken.eye, taken.site, taken.sex, taken.age, taken.grade)
                rows.append((path, *known, int(taken.grade >= REFERABLE)))
                if progress is not None:
                    progress(len(rows))
        with (aside / "table.csv").open("w", newline="", encoding="utf-8") as text:
            csv.writer(text).writerows([COLUMNS, *rows])
        record = {"fingerprint": _fingerprint(parameters), "pictures": len(rows), "parameters": parameters}
        (aside / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old, ignore_errors=not old.exists())
        return len(rows)

    @cached_property
    def _table(self) -> ScanTable:
        return ScanTable(
            by=self.by,
            ids=self.ids,
            table=str(Path(self.root) / "table.csv"),
            labels=self.target,
            site="site",
            side="eye",
            sex="sex",
            age="age",
        )

    def _rows(self) -> Sequence[tuple[int, str]]:
        return self._table._rows()  # noqa: SLF001  (it is this one's reader)

    def _listed(self) -> Listed:
        return self._table._listed()  # noqa: SLF001  (likewise)


def _fingerprint(parameters: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()


def _complete(folder: Path, parameters: dict[str, Any]) -> bool:
    """Whether the folder holds all that these parameters give.

    Raises:
        ValueError: it holds something else.
    """
    if not folder.exists():
        return False
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        fingerprint, pictures = record["fingerprint"], record["pictures"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} exists, but its {RECORD} does not say that it was simulated ({type(error).__name__}); move it "
            "away, or give another root"
        ) from error
    whole = (folder / "table.csv").exists() and len(list((folder / "images").glob("*.png"))) == pictures
    return bool(whole and fingerprint == _fingerprint(parameters))

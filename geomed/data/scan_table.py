"""A table of scans: one row for each picture or volume, with its label, its patient, and what else is known."""

from __future__ import annotations

import csv
import math
import os
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from geomed.data.area import code_text
from geomed.data.scan_list import Listed, ScanCase, Trouble
from geomed.data.scan_source import ScanSource
from geomed.data.targets import Target, UnlistedError
from geomed.evaluation.patient_splits import ByMark, BySite

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from geomed.data.targets import Labels

NOBODY = "none"
"""What is said in place of a column of patients where there is none."""


@dataclass(frozen=True, kw_only=True)
class ScanTable(ScanSource):
    """A CSV or Parquet table with a header; see ``ScanSource`` for what is checked and what a sample is."""

    table: str
    """The file: comma-separated text in UTF-8, or ``.parquet``."""

    labels: Target
    """What is to be learned, and from which columns."""

    patients: str = "patient_id"
    """The column that says whose a scan is; the word ``none``: nobody knows, scans are split one by one, and every
    figure is stamped as optimistic."""

    path: str = "path"
    """The column of paths: a picture, a file of a volume, or a folder with one series. They count from ``root``."""

    root: str | None = None
    """What paths count from; None: the folder of the table."""

    part: str | None = None
    """The column that says which part a scan belongs to, for a split ``ByMark``."""

    site: str | None = None
    """The column of sites."""

    group: str | None = None
    """The column that says which scans belong together where no patient does, as the crops of one image: they stay in
    one part."""

    side: str | None = None
    """The column that says which eye, breast, lung …"""

    sex: str | None = None
    """The column of sexes."""

    age: str | None = None
    """The column of ages in years."""

    delimiter: str = ","
    """What stands between the cells of a CSV."""

    def __post_init__(self) -> None:
        """Refuse a split that needs a column which is not named, and columns named twice."""
        if isinstance(self.by, ByMark) and self.part is None:
            raise ValueError("a split by marks needs the column that holds them; name it in `part`")
        if isinstance(self.by, BySite) and self.site is None:
            raise ValueError("a split by site needs the column that holds it; name it in `site`")
        doubled = [name for name, count in Counter(self._wanted()).items() if count > 1]
        if doubled:
            raise ValueError(f"a column says one thing, {', '.join(doubled)} is named twice; name another")

    @property
    def target(self) -> Target:
        """What is to be learned."""
        return self.labels

    @property
    def image_level(self) -> bool:
        """Whether it was said that no patients are known."""
        return self.patients == NOBODY

    def _wanted(self) -> list[str]:
        """The columns that are read."""
        named = [self.path, *self.labels.columns, self.part, self.site, self.group, self.side, self.sex]
        named.append(self.age)
        return [name for name in named if name is not None] + ([] if self.image_level else [self.patients])

    @cached_property
    def _cells(self) -> list[dict[str, str]]:
        """The rows, with the columns that are wanted."""
        file = Path(self.table).expanduser()
        if not file.is_file():
            raise ValueError("the table of scans is not there; correct `table`")
        wanted = self._wanted()
        # to predict, neither labels nor patients are needed
        optional = {*self.labels.columns, self.patients} if self._predicts_only else set[str]()
        rows = _parquet(file) if file.suffix.lower() in {".parquet", ".pq"} else _csv(file, self.delimiter)
        header = next(rows)
        _refuse_header(header, [name for name in wanted if name not in optional])
        index = {name: header.index(name) for name in wanted if name in header}
        cells = [{name: row[column].strip() for name, column in index.items()} for row in rows]
        if not cells:
            raise ValueError("the table of scans has a header and no rows; fill it")
        return cells

    def _rows(self) -> Sequence[tuple[int, str]]:
        return [(number, _written(number, cells[self.path])) for number, cells in enumerate(self._cells, start=2)]

    def _listed(self) -> Listed:
        file = Path(self.table).expanduser()
        root = file.parent if self.root is None else Path(self.root).expanduser()
        trouble = Trouble(self.ids.case)
        cases, ignored = [], 0
        for number, cells in enumerate(self._cells, start=2):
            written = _written(number, cells[self.path])
            labels, counts = self._labels(cells, written, trouble)
            if not counts:
                ignored += 1
                continue
            if not cells[self.path]:
                trouble.add("the path is empty", written)
            if self.patients in cells and not cells[self.patients] and not self._predicts_only:
                trouble.add("the patient is empty", written)
            cases.append(
                ScanCase(
                    path=root / written,
                    written=written,
                    row=number,
                    labels=labels,
                    patient=cells.get(self.patients) or None,
                    site=_cell(cells, self.site),
                    side=_cell(cells, self.side),
                    sex=_cell(cells, self.sex),
                    age=_age(_cell(cells, self.age), written, trouble),
                    mark=_cell(cells, self.part),
                    group=_cell(cells, self.group),
                )
            )
        _refuse_repeated(cases, trouble)
        _refuse_odd_patients(cases, trouble)
        trouble.refuse(len(self._cells))
        notes = (f"{ignored} of {len(self._cells)} rows have a label that the legend ignores",) if ignored else ()
        return Listed(cases=tuple(cases), notes=notes)

    def _labels(self, cells: Mapping[str, str], written: str, trouble: Trouble) -> tuple[Labels | None, bool]:
        """The labels of a row, and whether it counts."""
        if self._predicts_only:
            return None, True
        try:
            labels = self.labels.encode([cells[name] for name in self.labels.columns])
        except UnlistedError as error:
            known = ", ".join(self.labels.names)
            trouble.add(f"the label {error}; the classes are {known}", written)
            return None, True
        return labels, labels is not None


def _csv(file: Path, delimiter: str) -> Iterator[list[str]]:
    """The header and the rows, each as long as the header.

    Raises:
        ValueError: the text is not UTF-8, or rows are longer or shorter than the header.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            rows = [row for row in csv.reader(text, delimiter=delimiter, strict=True) if row]
    except UnicodeDecodeError:
        raise ValueError("the table of scans is not UTF-8; save it as CSV in UTF-8") from None
    except csv.Error:
        raise ValueError("the table of scans is not a CSV, a quotation mark is not closed; save it anew") from None
    if not rows:
        raise ValueError("the table of scans is empty; fill it")
    odd = [number for number, row in enumerate(rows, start=1) if len(row) != len(rows[0])]
    if odd:
        raise ValueError(
            f"{len(odd)} of {len(rows)} rows have more or fewer cells than the {len(rows[0])} of the header, the first "
            f"is row {odd[0]}; correct them, or name the `delimiter`"
        )
    yield from rows


def _parquet(file: Path) -> Iterator[list[str]]:
    """The names of the columns, and the rows as text.

    Raises:
        ValueError: the package that reads Parquet is missing, or the file is damaged.
    """
    import pandas as pd

    try:
        frame = pd.read_parquet(file)
    except ImportError:
        raise ValueError("reading Parquet needs pyarrow: pip install pyarrow, or save the table as CSV") from None
    except (ValueError, OSError):
        raise ValueError("the table of scans is not a Parquet file, or damaged; save it anew") from None
    yield [str(name) for name in frame.columns]
    for row in frame.itertuples(index=False, name=None):
        yield ["" if pd.isna(cell) else code_text(cell) for cell in row]


def _refuse_header(header: Sequence[str], wanted: Sequence[str]) -> None:
    """Refuse a table without the wanted columns.

    What stands in the first line is quoted only if it is a header beyond doubt: otherwise it is a patient.

    Raises:
        ValueError: columns are missing, or one that is wanted is there twice.
    """
    missing = [name for name in wanted if name not in header]
    if missing and len(missing) == len(wanted):
        raise ValueError(
            f"the first line of the table holds none of the columns {', '.join(wanted)}; it has no header, or the "
            "wrong `delimiter` or names: write the names of the columns into the first line, or name those that it has"
        )
    if missing:
        raise ValueError(
            f"the table has no column {', '.join(missing)}; name the columns that it has, or for patients that nobody "
            f"knows say `patients: {NOBODY}`"
        )
    doubled = [name for name in wanted if header.count(name) > 1]
    if doubled:
        raise ValueError(f"the table has several columns {', '.join(doubled)}; rename one")


def _written(number: int, path: str) -> str:
    """What the name of a row is made of: its path, or where there is none its line."""
    return path or f"line {number}"


def _cell(cells: Mapping[str, str], column: str | None) -> str | None:
    return cells[column] or None if column is not None else None


def _age(text: str | None, written: str, trouble: Trouble) -> float | None:
    if text is None:
        return None
    try:
        age = float(text)
    except ValueError:
        age = math.nan
    if not 0 <= age <= 130:
        trouble.add("the age is no number of years from 0 to 130", written)
        return None
    return age


def _refuse_repeated(cases: Sequence[ScanCase], trouble: Trouble) -> None:
    """Collect files that stand in several rows."""
    first: dict[str, ScanCase] = {}
    for case in cases:
        other = first.setdefault(os.path.normpath(case.path), case)
        if other is case:
            continue
        if other.labels != case.labels:
            trouble.add("the same file stands there already with another label", case.written)
        elif other.patient != case.patient:
            trouble.add("the same file stands there already with another patient", case.written)
        else:
            trouble.add("the same file stands there already; leave one row", case.written)


def _refuse_odd_patients(cases: Sequence[ScanCase], trouble: Trouble) -> None:
    """Collect patients who are written in two ways, or are of two sexes: they could get into two parts."""
    spelt: dict[str, str] = {}
    sexes: dict[str, str] = {}
    for case in cases:
        if case.patient is None:
            continue
        usual = re.sub(r"\s|(?<!\d)0+(?=\d)", "", case.patient.casefold())
        if spelt.setdefault(usual, case.patient) != case.patient:
            trouble.add(
                "the patient is another one's but for zeros, spaces or capitals; write each in one way", case.written
            )
        if case.sex is not None and sexes.setdefault(case.patient, case.sex) != case.sex:
            trouble.add("the patient has another sex in another row", case.written)

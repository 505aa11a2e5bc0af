"""Acquisition dates of image files: from the name, or from a table beside the images."""

from __future__ import annotations

import csv
import datetime as dt
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_EPOCH = dt.date(1970, 1, 1).toordinal()
_FORMS = (
    (re.compile(r"(?<!\d)(\d{8})T\d{6}(?!\d)"), "%Y%m%d"),  # a product id: the first of its times is the acquisition
    (re.compile(r"(?<!\d)(\d{4}-\d{2}-\d{2})(?!\d)"), "%Y-%m-%d"),
    (re.compile(r"(?<!\d)(\d{8})(?!\d)"), "%Y%m%d"),
)


def days_since_epoch(day: dt.date) -> int:
    """Whole days since 1970-01-01."""
    return day.toordinal() - _EPOCH


def date_of_day(day: int) -> dt.date:
    """The inverse of ``days_since_epoch``."""
    return dt.date.fromordinal(day + _EPOCH)


def date_in(text: str, *, where: str) -> dt.date:
    """The date that stands in a name, as 20180421T105031, 2018-04-21 or 20180421.

    Args:
        text: the name of a file, a product or a band.
        where: what an error names.

    Raises:
        ValueError: there is no date in it, it is no day of the calendar, or there are two that differ.
    """
    for pattern, form in _FORMS:
        found = pattern.findall(text)
        if not found:
            continue
        if len(set(found)) > 1 and pattern is not _FORMS[0][0]:
            raise ValueError(
                f"{where}: a name must hold one date, {text!r} holds {' and '.join(dict.fromkeys(found))}; "
                "rename it or list the dates in a table dates.csv (file,date) beside it"
            )
        try:
            return dt.datetime.strptime(found[0], form).replace(tzinfo=dt.UTC).date()
        except ValueError as error:
            raise ValueError(
                f"{where}: {found[0]} is no day of the calendar (YYYYMMDD or YYYY-MM-DD); rename it or list the dates "
                "in a table dates.csv (file,date) beside it"
            ) from error
    raise ValueError(
        f"{where}: no date in the name {text!r}, which needs YYYYMMDD, YYYY-MM-DD or a product id; rename it or list "
        "the dates in a table dates.csv (file,date) beside it"
    )


def iso_date(text: str, *, where: str) -> dt.date:
    """A date written as YYYY-MM-DD.

    Raises:
        ValueError: it is written otherwise; ``where`` says of what.
    """
    try:
        return dt.date.fromisoformat(text.strip())
    except ValueError as error:
        raise ValueError(f"{where}: {text!r} is no date, write it as YYYY-MM-DD") from error


def date_table(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a CSV table that must have these columns.

    Raises:
        ValueError: a column is missing, or a row is shorter than the head.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}: column {', '.join(missing)} is missing; the head must be {','.join(columns)}")
        rows = list(reader)
    for number, row in enumerate(rows, start=2):
        if any(row[column] is None for column in columns):
            raise ValueError(f"{path}: line {number} is too short; it needs {','.join(columns)}")
    return rows

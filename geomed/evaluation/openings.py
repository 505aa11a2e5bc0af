"""How often a test set has been opened: what is looked at often is no test any more."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike


@dataclass(frozen=True, kw_only=True)
class Opening:
    """One look at a test set."""

    fingerprint: str
    """Which cases with which truth: ``Predictions.fingerprint``."""

    run: str
    """What looked: the name of a run or the fingerprint of its weights. No path, which may name a person."""

    at: str
    """When, in UTC, as ISO 8601."""


@dataclass(frozen=True)
class Openings:
    """The openings in a file, one JSON object a line, in the order in which they happened.

    Each is appended by one write, so that runs side by side lose none. The file is an honest person's memory, not a
    seal: who deletes it starts at 0.
    """

    path: Path
    """The file; none yet is none opened. Its folder must be there."""

    def record(self, fingerprint: str, *, run: str) -> int:
        """Note an opening, before the truth of the test set is used, and say how many there have been with this one.

        Raises:
            ValueError: the file is damaged, so that nobody knows how many there were.
            FileNotFoundError: its folder does not exist.
        """
        if not fingerprint or not run:
            raise ValueError(
                "an opening has the fingerprint of the test set and a name for the run; neither may be empty"
            )
        self.all()  # a damaged file must not grow
        opening = Opening(fingerprint=fingerprint, run=run, at=datetime.now(UTC).isoformat(timespec="seconds"))
        line = json.dumps(asdict(opening)) + "\n"
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode())
            os.fsync(file.fileno())
        return self.count(fingerprint)

    def count(self, fingerprint: str) -> int:
        """How often this test set has been opened.

        Raises:
            ValueError: the file is damaged.
        """
        return sum(opening.fingerprint == fingerprint for opening in self.all())

    def all(self) -> tuple[Opening, ...]:
        """Every opening of any test set.

        Raises:
            ValueError: a line is not an opening.
        """
        if not self.path.exists():
            return ()
        openings = []
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                openings.append(Opening(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"line {number} of the record of test openings is no opening, so that nobody knows how many there "
                    "were; restore the file, or put it aside and say so in the report"
                ) from error
        return tuple(openings)


def openings_beside(run: str | PathLike[str]) -> Openings:
    """The record beside a run's folder, in the folder that holds it, so that all runs there share it."""
    return Openings(Path(run).absolute().parent / "test_openings.jsonl")

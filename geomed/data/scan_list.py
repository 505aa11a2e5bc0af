"""The cases of a table or a folder, and what is wrong with its rows."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from geomed.data.targets import Labels

_SHOWN = 5  # examples of a rule in a message


@dataclass(frozen=True, kw_only=True)
class ScanCase:
    """One picture or volume, and what is known of it; what names it is not shown when this is printed."""

    path: Path = field(repr=False)
    """Where it lies."""

    written: str = field(repr=False)
    """Its path as the table or the folder has it: what its name is made of."""

    row: int
    """Its line in the table, the header being line 1; in a folder its number in the order of paths, from 1."""

    labels: Labels | None
    """What it shows; None: not known."""

    patient: str | None = field(default=None, repr=False)
    """Whose it is."""

    site: str | None = field(default=None, repr=False)
    """Where it was taken."""

    side: str | None = None
    """Which eye, breast, lung …"""

    sex: str | None = None
    """As the table has it."""

    age: float | None = None
    """In years."""

    mark: str | None = None
    """What the table says of its part."""

    group: str | None = field(default=None, repr=False)
    """What it belongs to besides its patient, as the image that it was cut from."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """The cases of a table or a folder, and what was left out of it on purpose."""

    cases: tuple[ScanCase, ...]
    """In the order of the table."""

    notes: tuple[str, ...] = ()
    """What was left out, and why."""


class Trouble:
    """What is wrong with the rows of a table, all of it, told at once."""

    def __init__(self, name: Callable[[str], str]) -> None:
        """Collect; ``name`` is how a message calls the path of a row."""
        self._name, self._found = name, defaultdict[str, list[str]](list)

    def add(self, rule: str, written: str) -> None:
        """A row breaks a rule."""
        self._found[rule].append(self._name(written))

    def refuse(self, rows: int) -> None:
        """Stop if anything was collected.

        Raises:
            ValueError: it counts the rows that break each rule, with examples.
        """
        if self._found:
            lines = [
                f"{len(found)} of {rows} rows: {rule} ({', '.join(found[:_SHOWN])}{' …' * (len(found) > _SHOWN)})"
                for rule, found in self._found.items()
            ]
            raise ValueError(
                "the table cannot be used as it is; no row is dropped silently. `row_of` tells the line of a case.\n  "
                + "\n  ".join(lines)
            )

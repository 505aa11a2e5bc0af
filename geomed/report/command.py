"""The command `geomed report`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from geomed.evaluation.bootstrap import Bootstrap
from geomed.evaluation.markup import write_page
from geomed.report.comparison import Comparison, on_one_test_set
from geomed.report.page import html
from geomed.report.results import Results
from geomed.report.run import Run, labels, read_run

if TYPE_CHECKING:
    from collections.abc import Sequence

SEED = 0
"""Of all draws: that of geomed test, so that page and metrics.json agree."""


def main(arguments: Sequence[str]) -> int:
    """Write the page; returns the exit code.

    Raises:
        ValueError: a folder is no run, or what is in it is broken.
    """
    parser = argparse.ArgumentParser(prog="geomed report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a folder that geomed test has written to")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default: %(default)s)")
    parser.add_argument(
        "--draws", type=int, default=2000, help="of the bootstrap and of the permutation test (default: %(default)s)"
    )
    given = parser.parse_args(arguments)
    if not given.out.absolute().parent.is_dir():
        raise ValueError(f"the page cannot be written: the folder of {given.out.name} is not there; make it first")
    write_page(given.out, report(given.runs, draws=given.draws))
    print(f"written to {given.out}")  # noqa: T201  (the command line prints)
    return 0


def report(folders: Sequence[Path], *, draws: int = 2000) -> str:
    """The page of some runs, as HTML.

    Args:
        folders: that hold ``evaluation``, in the order of the page.
        draws: of the bootstrap and of the permutation test.

    Raises:
        ValueError: a folder is no run, or what is in it is broken.
    """
    seen: set[Path] = set()
    for folder in folders:
        if (place := folder.resolve()) in seen:
            raise ValueError(f"{folder.name}: the same run is given twice; name each once")
        seen.add(place)
    runs = [read_run(folder) for folder in folders]
    runs = [replace(run, label=label) for run, label in zip(runs, labels(runs), strict=True)]
    groups = []
    for together in on_one_test_set(runs):
        results = tuple(_results(run, draws) for run in together)
        groups.append(Comparison.of(results, draws=draws))
    return html(groups)


def _results(run: Run, draws: int) -> Results:
    try:
        return Results.of(run, Bootstrap(seed=SEED, draws=draws))
    except ValueError as error:
        raise ValueError(f"{run.folder}: {error}") from error

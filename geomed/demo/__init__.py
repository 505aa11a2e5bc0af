"""`geomed demo`: whole adaptations without any download, from simulated pixels to a report.

`geomed demo` is about land and ends in a map too, `geomed demo scans` is about patients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run one of the demos; returns the exit code."""
    if arguments and arguments[0] == "scans":
        from geomed.demo.scans import main as scans

        return scans(arguments[1:])
    from geomed.demo.command import main as land

    return land(arguments)

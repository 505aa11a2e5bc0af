"""One page on how runs classify scans: for a careful reviewer, not for the clinic."""

from geomed.report.command import main

__all__ = ["main"]

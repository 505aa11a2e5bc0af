"""`geomed demo`: a whole adaptation, from simulated pixels to a map and a report, without any download."""

from geomed.demo.command import main

__all__ = ["main"]

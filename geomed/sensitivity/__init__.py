"""`geomed sensitivity`: from a config and a budget to a plan of what to train."""

from geomed.sensitivity.command import main

__all__ = ["main"]

"""geomed adapts large vision backbones to satellites and to scans, with few labels and few trained parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from geomed.mapping.public import *  # noqa: F403  (for type checkers; at run time names arrive when asked for)
    from geomed.public import *  # noqa: F403


def __getattr__(name: str) -> object:
    """Import the public names when the first of them is asked for: torch takes seconds."""
    from importlib import import_module

    if not name.startswith("_"):
        for place in ("geomed.public", "geomed.mapping.public"):
            public = vars(import_module(place))
            if name in public["__all__"]:
                return public[name]
    raise AttributeError(f"geomed has no {name}; the public names stand in geomed.public and geomed.mapping.public")

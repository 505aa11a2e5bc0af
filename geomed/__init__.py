"""geomed adapts large vision backbones to satellites and to scans, with few labels and few trained parameters."""

from __future__ import annotations

__version__ = "0.1.0"

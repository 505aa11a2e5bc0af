"""Pieces of a drawing inside a page."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def svg(width: int, height: int, told: str, marks: Sequence[str]) -> str:
    """A drawing of its marks, which are SVG; what is told, plain text, stands in for it where nobody sees it."""
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(told)}">' + "".join(marks) + "</svg>"


def text(x: float, y: float, text: str, kind: str) -> str:
    """Plain text at a place, in the classes of the style sheet."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'

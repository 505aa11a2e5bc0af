"""Pieces of a page that needs nothing else: the document around it, tables, matrices."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Num  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)

from geomed.evaluation.stylesheet import STYLESHEET

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""The browser itself refuses to fetch or run anything on behalf of the page."""


def document(title: str, sections: Sequence[str], *, style: str = "") -> str:
    """The whole page around its sections, which are HTML; the title is plain text.

    Args:
        title: in the window's bar.
        sections: one below the other.
        style: rules added to the style sheet.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en-GB">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLESHEET}{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def table(heads: Sequence[str], lines: str, foot: str = "") -> str:
    """A table that scrolls sideways where it is too wide; lines and foot are HTML, the heads plain text."""
    below = f"<tfoot>{foot}</tfoot>" if foot else ""
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{_heads(heads)}</tr></thead>'
        f"<tbody>{lines}</tbody>{below}</table></div>"
    )


def terms(pairs: Sequence[tuple[str, str]], around: str = "") -> str:
    """Terms and what is said of them, each already HTML, for a ``dl``."""
    start, end = (f"<{around}>", f"</{around}>") if around else ("", "")
    return "".join(f"{start}<dt>{key}</dt><dd>{value}</dd>{end}" for key, value in pairs)


def matrix(confusion: Num[np.ndarray, "truth predicted"], classes: Sequence[str]) -> str:
    """A confusion matrix: percent of the row, and counts; rows are the truth."""

    def cell(count: int, whole: int) -> str:
        if not count:
            return '<td class="none">·</td>'
        share = count / whole
        text = f"{100 * share:.0f}" if share >= 0.005 else "&lt;1"
        hot = ' class="hot"' if share > 0.55 else ""
        paint = f"background:rgba(17,111,99,{0.06 + 0.9 * share:.2f})"
        return f'<td{hot} style="{paint}">{text}<span class="count">{count:,}</span></td>'

    counts = np.asarray(confusion).astype(np.int64)
    heads = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in classes)
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(cell(int(count), int(row.sum())) for count in row)}</tr>'
        for name, row in zip(classes, counts, strict=True)
    )
    return (
        f'<div class="scroll" tabindex="0"><table class="matrix"><thead><tr><td></td>{heads}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def write_page(path: Path, page: str) -> None:
    """Write a page; a file at ``path`` is replaced only when the new one is complete.

    Raises:
        FileNotFoundError: the folder of ``path`` does not exist.
    """
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(page, encoding="utf-8", newline="\n")
    unfinished.replace(path)


def _heads(names: Sequence[str]) -> str:
    return "".join(f'<th scope="col">{escape(name)}</th>' for name in names)

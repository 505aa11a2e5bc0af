"""Scans that are not of one kind: a model would learn the kind of file instead of the disease."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from geomed.data.rendition import Rendition

_SHOWN = 5  # examples in a message


def refuse_mixtures(
    facts: NDArray[np.void], rendition: Rendition, strata: Mapping[str, Sequence[int]], names: Sequence[str]
) -> list[str]:
    """Notes about scans of several kinds, and the refusal of kinds that are not one set.

    Raises:
        ValueError: pictures and volumes, several units, or brightness of several depths.
    """
    everything, grey = np.ones(len(facts), dtype=np.bool_), ~facts["colour"]
    unnamed = grey & (facts["unit"] == b"grey")
    rules = [
        (everything, facts["volume"], "volumes, the others pictures"),
        (grey, facts["unit"] != _usual(facts["unit"][grey]), "in another unit than most"),
        (
            facts["volume"],
            facts["orientation"] != _usual(facts["orientation"][facts["volume"]]),
            "turned otherwise than most",
        ),
        (unnamed, facts["bits"] > 8, "of more than 8 bits, the others of 8"),
    ]
    if isinstance(rendition.window, tuple):
        rules.append((unnamed, facts["bits"] != _usual(facts["bits"][unnamed]), "of another depth than most"))
    for among, chosen, what in rules:
        odd = among & chosen
        if odd.any() and (among & ~chosen).any():
            few = np.flatnonzero(odd if 2 * odd.sum() <= among.sum() else among & ~chosen)
            shown = ", ".join(f"case {names[index]}" for index in few[:_SHOWN])
            raise ValueError(
                f"{int(odd.sum())} of {int(among.sum())} scans are {what}; the fewer are {shown}"
                f"{' …' if len(few) > _SHOWN else ''}. A number must mean the same in the whole set, or a model learns "
                "the kind of file: convert them, or make two sets"
            )
    notes = []
    for what, chosen in (("in colour", facts["colour"]), ("of one brightness all over", facts["flat"])):
        if chosen.any() and not chosen.all():
            found = [f"{name} {int(chosen[list(own)].sum())} of {len(own)}" for name, own in strata.items() if own]
            told = (
                f"{int(chosen.sum())} of {len(facts)} scans are {what}{' (' + ', '.join(found) + ')' if found else ''}"
            )
            notes.append(f"{told}; a model may learn just that")
    return notes


def _usual(values: NDArray[np.generic]) -> object:
    """The most frequent one; None of none."""
    present, counts = np.unique(values, return_counts=True)
    return present[counts.argmax()] if len(present) else None

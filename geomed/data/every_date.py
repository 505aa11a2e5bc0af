"""A split of places that holds on all of their dates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from geomed.evaluation.splits import PARTS, Division, Place, Share, Split

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class EveryDate(Split):
    """A split of places, done alike on every image of each: what is learned from on one date is tested on none."""

    by: Split
    """How the places are divided; its areas are places."""

    places: tuple[str, ...]
    """The place that each image shows, in the order of the images; images of one place have one grid."""

    def divide(self, places: Sequence[Place]) -> Division:
        """The shares of the places, for each of their images."""
        images: dict[str, list[int]] = {}
        for index, name in enumerate(self.places):
            images.setdefault(name, []).append(index)
        grounds = [replace(places[found[0]], name=name) for name, found in images.items()]
        division = self.by.divide(grounds)
        return {
            part: tuple(
                Share(area=index, blocks=share.blocks)
                for share in division[part]
                for index in images[grounds[share.area].name]
            )
            for part in (*PARTS, "predict")
        }

    def gap(self) -> int:
        """That of the split of places."""
        return self.by.gap()

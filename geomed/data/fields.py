"""The few-labels case: which labelled fields the train part may see."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from geomed.pixels import IGNORE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from geomed.data.labels import Fields


def classes_by_field(fields: Fields, windows: Iterable[tuple[NDArray[np.int32], NDArray[np.int64]]]) -> dict[int, int]:
    """Field → class, of the fields that own at least one labelled pixel.

    Args:
        fields: the fields of an area.
        windows: for each window the field of each pixel (-1: none) and its label.
    """
    owned: set[int] = set()
    for ids, labels in windows:
        owned.update(int(index) for index in np.unique(ids[(ids >= 0) & (labels != IGNORE)]))
    return {index: fields.classes[index] for index in sorted(owned)}


def choose_fields(present: Mapping[int, Mapping[int, int]], per_class: int, *, seed: int) -> dict[int, frozenset[int]]:
    """Draw the same number of fields for each class, over all areas together.

    Args:
        present: area → field → class.
        per_class: fields to keep of each class; of a class that has fewer all are kept.
        seed: of the draw, which is independent of the number of classes.

    Returns:
        Area → the fields kept.
    """
    pools: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for area, fields in sorted(present.items()):
        for field, value in sorted(fields.items()):
            if value != IGNORE:
                pools[value].append((area, field))
    kept: dict[int, set[int]] = {area: set() for area in present}
    for value, pool in sorted(pools.items()):
        draw = random.Random(f"{seed}-{value}")  # noqa: S311  (a sample of fields, not a secret)
        for area, field in draw.sample(pool, min(per_class, len(pool))):
            kept[area].add(field)
    return {area: frozenset(fields) for area, fields in kept.items()}

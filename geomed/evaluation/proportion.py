"""A share of images with an interval that knows their patients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Integer  # noqa: TC002  (annotations stay readable at run time)

from geomed.evaluation.interval import Interval

if TYPE_CHECKING:
    from typing import Self


@dataclass(frozen=True, kw_only=True)
class Proportion:
    """So many of so many images."""

    hits: int
    """How many images."""

    images: int
    """Of how many."""

    patients: int
    """Of how many patients those are."""

    interval: Interval | None
    """Where the share lies; None where there is no image."""

    @property
    def value(self) -> float:
        """The share between 0 and 1, NaN of nothing."""
        return self.hits / self.images if self.images else math.nan

    @classmethod
    def of(cls, hit: Bool[np.ndarray, " n"], patient_of: Integer[np.ndarray, " n"], *, level: float = 0.95) -> Self:
        """The share of hits with Wilson's interval at the effective number of images.

        Images of one patient agree, and count for less than as many patients would: the variance of the share by
        clusters says for how many independent images they count, at most for as many as there are (the linearised
        ratio and the effective sample size of Rao and Scott, Biometrics 48, 1992, "A simple method for the analysis of
        clustered binary data"), and Wilson's score interval (JASA 22, 1927) is taken at that number. Where all images
        agree the variance by clusters is 0 and says nothing: then each patient counts as one image. Unlike a bootstrap,
        the interval keeps its width at 0 and 100 %. With fewer than ten patients it is too narrow.

        Args:
            hit: which images.
            patient_of: whose each is.
            level: of the interval.
        """
        images = len(hit)
        if not images:
            return cls(hits=0, images=0, patients=0, interval=None)
        share = float(hit.mean())
        _, member = np.unique(patient_of, return_inverse=True)
        patients = int(member.max()) + 1
        rests = np.bincount(member, weights=hit - share)
        variance = patients / max(patients - 1, 1) * float(rests @ rests) / images**2
        inside = 0 < share < 1 and patients > 1
        effective = min(images, share * (1 - share) / variance) if inside and variance > 0 else patients
        low, high = wilson(share, effective, level=level)
        return cls(
            hits=int(hit.sum()),
            images=images,
            patients=patients,
            interval=Interval(low=low, high=high, level=level, method="Wilson, effective number of images"),
        )

    def to_dict(self) -> dict[str, object]:
        """The share as JSON can hold it."""
        return {
            "value": self.value if self.images else None,
            "hits": self.hits,
            "images": self.images,
            "patients": self.patients,
            "interval": None if self.interval is None else self.interval.to_dict(),
        }


def wilson(share: float, count: float, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share of ``count`` independent images (JASA 22, 1927, page 209)."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    # at the ends the sum is exact on paper only
    return (0.0 if share == 0 else max(0.0, middle - half)), (1.0 if share == 1 else min(1.0, middle + half))

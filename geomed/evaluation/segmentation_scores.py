"""How well a map agrees with the truth, by class and on the whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Num  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor  # noqa: TC002  (likewise)

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class SegmentationScores:
    """Scores of a confusion matrix. Shares between 0 and 1; NaN where a score has no meaning."""

    classes: tuple[str, ...]
    """Names, in the order of the matrix."""

    support: tuple[int, ...]
    """Pixels of each class in the truth."""

    precision: tuple[float, ...]
    """Share of the pixels mapped as a class that are of it; NaN for a class that is never predicted."""

    recall: tuple[float, ...]
    """Share of the pixels of a class that are mapped as it; NaN for a class that the truth lacks."""

    f1: tuple[float, ...]
    """Harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN); NaN for a class in neither of the two."""

    iou: tuple[float, ...]
    """Intersection over union, TP / (TP + FP + FN); NaN for a class in neither of the two."""

    macro_f1: float
    """Mean F1 of the classes that occur in truth or prediction: NaN is left out, not counted as 0."""

    macro_iou: float
    """Mean intersection over union of the classes that occur in truth or prediction: NaN is left out."""

    accuracy: float
    """Overall accuracy: share of all pixels that are mapped as what they are."""

    kappa: float
    """Cohen's kappa, agreement beyond chance (Cohen 1960); NaN when truth and prediction are one and the same class."""

    @classmethod
    def from_confusion(
        cls, matrix: Num[np.ndarray, "truth predicted"] | Num[Tensor, "truth predicted"], classes: Sequence[str]
    ) -> SegmentationScores:
        """Scores of a matrix of pixel counts.

        Args:
            matrix: [K, K], rows are the truth, columns the prediction; ignored pixels are not in it.
            classes: K names.

        Raises:
            ValueError: the matrix is not square, does not fit the names, counts nothing, or holds something else than
                counts.
        """
        counts = _counts(matrix)
        if len(classes) != len(counts):
            raise ValueError(
                f"a confusion matrix has one row for each class: {len(counts)} rows, {len(classes)} classes; "
                "give the names of this very matrix"
            )
        if not counts.any():
            raise ValueError(
                "a confusion matrix must count at least one pixel, this one is all 0; check the ignored class"
            )
        hits, truth, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
        total = counts.sum()
        f1 = _f1(counts)
        iou = _ratio(hits, truth + predicted - hits)
        accuracy = float(hits.sum() / total)
        chance = float((truth / total) @ (predicted / total))
        return cls(
            classes=tuple(classes),
            support=tuple(int(pixels) for pixels in truth),
            precision=tuple(_ratio(hits, predicted).tolist()),
            recall=tuple(_ratio(hits, truth).tolist()),
            f1=tuple(f1.tolist()),
            iou=tuple(iou.tolist()),
            macro_f1=float(np.nanmean(f1)),
            macro_iou=float(np.nanmean(iou)),
            accuracy=accuracy,
            kappa=(accuracy - chance) / (1 - chance) if chance < 1 else math.nan,
        )

    def to_dict(self) -> dict[str, object]:
        """The scores as JSON can hold them: NaN becomes None."""

        def number(value: float) -> float | None:
            return None if math.isnan(value) else value

        return {
            "macro_f1": self.macro_f1,
            "macro_iou": self.macro_iou,
            "accuracy": self.accuracy,
            "kappa": number(self.kappa),
            "per_class": {
                name: {
                    "precision": number(self.precision[at]),
                    "recall": number(self.recall[at]),
                    "f1": number(self.f1[at]),
                    "iou": number(self.iou[at]),
                    "support": self.support[at],
                }
                for at, name in enumerate(self.classes)
            },
        }

    def table(self) -> str:
        """The scores in percent as aligned plain text, one line for each class, the means below; "-" stands for NaN."""

        def percent(value: float) -> str:
            return f"{'-' if math.isnan(value) else f'{100 * value:.1f}':>10}"

        width = max(len("overall accuracy"), *map(len, self.classes))
        lines = [
            f"{'class':<{width}}"
            + "".join(f"{head:>10}" for head in ("precision", "recall", "F1", "IoU"))
            + f"{'pixels':>14}"
        ]
        for name, *scores, pixels in zip(
            self.classes, self.precision, self.recall, self.f1, self.iou, self.support, strict=True
        ):
            lines.append(f"{name:<{width}}" + "".join(map(percent, scores)) + f"{pixels:>14,}")
        kappa = "-" if math.isnan(self.kappa) else f"{self.kappa:.3f}"
        lines += [
            "-" * len(lines[0]),
            f"{'macro mean':<{width}}{'':>20}{percent(self.macro_f1)}{percent(self.macro_iou)}{sum(self.support):>14,}",
            f"{'overall accuracy':<{width}}{'':>20}{percent(self.accuracy)}",
            f"{'kappa':<{width}}{'':>20}{kappa:>10}",
        ]
        return "\n".join(line.rstrip() for line in lines)


def bootstrap_macro_f1(
    matrices: Sequence[Num[np.ndarray, "truth predicted"]] | Sequence[Num[Tensor, "truth predicted"]],
    *,
    n: int = 1000,
    seed: int,
) -> tuple[float, float]:
    """A 95 % interval of macro F1 by resampling spatial units with replacement.

    Pixels of one field agree with each other, so that an interval over pixels would be far too narrow: draw fields, or
    windows of the map (percentile bootstrap over clusters; Davison and Hinkley, "Bootstrap Methods and their
    Application", 1997). A class that a draw does not contain is left out of that draw's mean. The interval speaks of
    other fields of the same area and season; it does not hold the spread between training runs.

    Args:
        matrices: one confusion matrix [K, K] for each unit; units without a counted pixel say nothing and are left out.
        n: draws.
        seed: of the draws.

    Returns:
        The 2.5th and 97.5th percentile of macro F1.

    Raises:
        ValueError: fewer than two units with pixels, matrices of different shapes, or no draws.
    """
    if n < 1:
        raise ValueError(f"a bootstrap needs at least one draw, not {n}; 1000 is usual")
    units = [counts for counts in map(_counts, matrices) if counts.any()]
    if len(units) < 2:
        raise ValueError(
            f"an interval over spatial units needs at least two with labelled pixels, there are {len(units)}; "
            "resample smaller units (fields, windows) or report no interval"
        )
    shapes = {counts.shape for counts in units}
    if len(shapes) > 1:
        raise ValueError(
            f"all units must count the same classes, their matrices are {sorted(shapes)}; count K x K for each"
        )
    stack = np.stack(units)
    draw = np.random.default_rng(seed)
    means = []
    for _ in range(n):
        times = np.bincount(draw.integers(len(stack), size=len(stack)), minlength=len(stack))
        means.append(np.nanmean(_f1(np.tensordot(times, stack, axes=1))))
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def _counts(matrix: Num[np.ndarray, "truth predicted"] | Num[Tensor, "truth predicted"]) -> Float[np.ndarray, "k k"]:
    counts: np.ndarray = np.asarray(matrix, dtype=np.float64)  # exact up to 2**53 pixels
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not len(counts):
        raise ValueError(
            f"a confusion matrix must be [K, K], this one is {list(counts.shape)}; count truth x prediction"
        )
    wrong = counts[~(np.isfinite(counts) & (counts >= 0) & (counts == np.floor(counts)))]
    if wrong.size:
        raise ValueError(f"a confusion matrix holds counts of pixels, not {wrong[0]}; give it before normalising")
    return counts


def _ratio(part: Float[np.ndarray, " k"], whole: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """Part of whole, NaN where there is no whole."""
    ratio: np.ndarray = np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)
    return ratio


def _f1(counts: Float[np.ndarray, "k k"]) -> Float[np.ndarray, " k"]:
    return _ratio(2 * counts.diagonal(), counts.sum(0) + counts.sum(1))

"""What a comparison of adaptation methods is made of: rows, maps, seasons, areas."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Integer, UInt8  # noqa: TC002  (annotations are evaluated by the shape checker in tests)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method of adaptation and what it reached."""

    name: str
    """As a person calls it: LoRA, full fine-tuning."""

    trained_parameters: int
    """How many numbers were trained, 0 for none."""

    trained_share: float
    """The same as a share of the model's parameters, 0 to 1."""

    macro_f1: float
    """Share, 0 to 1."""

    accuracy: float
    """Overall accuracy, 0 to 1."""

    iou: float
    """Mean intersection over union, 0 to 1."""

    seconds: float | None = None
    """Time of training; None where nothing was trained."""

    adapter_bytes: int | None = None
    """Size of the file that holds what was trained; None where there is none."""

    interval: tuple[float, float] | None = None
    """95 % interval of macro F1, (low, high)."""

    note: str = ""
    """What a reader must know about this row."""

    def __post_init__(self) -> None:
        """Refuse percent where shares belong, and what is not a number."""
        shares = {"trained_share": self.trained_share, "macro_f1": self.macro_f1, "accuracy": self.accuracy}
        shares |= {"iou": self.iou} | dict(zip(("interval[0]", "interval[1]"), self.interval or (), strict=False))
        for field, value in shares.items():
            if not 0 <= value <= 1:
                raise ValueError(
                    f"row {self.name!r}: {field} must be a share between 0 and 1, not {value}; divide percent"
                )
        amounts = (self.trained_parameters, self.seconds or 0, self.adapter_bytes or 0)
        if not all(math.isfinite(value) and value >= 0 for value in amounts):
            raise ValueError(f"row {self.name!r}: parameters, seconds and bytes must be 0 or more, not {amounts}")
        if self.interval is not None and self.interval[0] > self.interval[1]:
            raise ValueError(f"row {self.name!r}: an interval is (low, high), not {self.interval}; swap the two")


@dataclass(frozen=True, kw_only=True, eq=False)
class Maps:
    """One place: what the satellite saw, what grows there, and what the model said before and after adaptation."""

    true_colour: UInt8[np.ndarray, "h w 3"]
    """Red, green, blue, 0 to 255, already stretched for the eye."""

    truth: Integer[np.ndarray, "h w"]
    """Class index of each pixel."""

    before: Integer[np.ndarray, "h w"]
    """Class index predicted by the unadapted model."""

    after: Integer[np.ndarray, "h w"]
    """Class index predicted by the best adapted model."""

    metres: float
    """Side of a pixel on the ground."""

    ignore: int = 255
    """Index of pixels without a label (or without a prediction); they are left blank."""

    def __post_init__(self) -> None:
        """Refuse pictures of different places."""
        shape = self.true_colour.shape
        if self.true_colour.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or not self.true_colour.size:
            raise ValueError(
                f"true colour must be [H, W, 3] uint8, not {list(shape)} {self.true_colour.dtype}; stretch it"
            )
        for name, index in (("truth", self.truth), ("before", self.before), ("after", self.after)):
            if index.shape != shape[:2] or index.dtype.kind not in "iu":
                raise ValueError(
                    f"{name} must hold whole class indices on the same grid as true colour, {list(shape[:2])}, not "
                    f"{list(index.shape)} {index.dtype}; read the same window of each"
                )
        if not (math.isfinite(self.metres) and self.metres > 0):
            raise ValueError(f"metres must be the side of a pixel on the ground, not {self.metres}; Sentinel-2 has 10")


@dataclass(frozen=True, kw_only=True, eq=False)
class Season:
    """A vegetation index of one crop in one region through one season."""

    days: Int[np.ndarray, " t"]
    """Increasing days counted from 1 January of the year of harvest (1), so that years lie on top of each other; 0 and
    less are days of the autumn before."""

    mean: Float[np.ndarray, " t"]
    """Mean over clear pixels, NaN on a date without any."""

    lower: Float[np.ndarray, " t"]
    """First quartile."""

    upper: Float[np.ndarray, " t"]
    """Third quartile."""

    def __post_init__(self) -> None:
        """Refuse curves that do not belong to the dates."""
        shapes = {values.shape for values in (self.days, self.mean, self.lower, self.upper)}
        if len(shapes) > 1 or self.days.ndim != 1:
            raise ValueError(f"days, mean, lower and upper must be four lists of one length, not {sorted(shapes)}")
        if (np.diff(self.days) <= 0).any():
            raise ValueError(
                f"days must increase, these are {self.days.tolist()}; sort the dates and merge those of a day"
            )
        if not self.clear.any():
            raise ValueError("a season needs at least one clear date, all are NaN; leave the crop out")

    @property
    def clear(self) -> np.ndarray:
        """[T] boolean, where there is a value."""
        clear: np.ndarray = np.isfinite(self.mean) & np.isfinite(self.lower) & np.isfinite(self.upper)
        return clear


@dataclass(frozen=True, kw_only=True, eq=False)
class CropSeasons:
    """The season of one crop in the two regions: the shift that adaptation has to bridge."""

    crop: str
    """One of the report's classes."""

    source: Season
    """Where the model was trained first."""

    target: Season
    """Where it was adapted to."""


@dataclass(frozen=True, kw_only=True)
class CropArea:
    """How much of a crop there is."""

    crop: str
    """One of the report's classes."""

    truth: float
    """Hectares by the labels."""

    mapped: float
    """Hectares by the map, over the same pixels."""

    def __post_init__(self) -> None:
        """Refuse what is no area."""
        if not all(math.isfinite(area) and area >= 0 for area in (self.truth, self.mapped)):
            raise ValueError(f"{self.crop}: hectares must be 0 or more, not {self.truth} and {self.mapped}")

"""What must be known of a trained model besides its weights, and how an exported file says it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import geomed
from geomed.data.area import Masks
from geomed.inference.model import MapModel, Units
from geomed.palette import palette

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

FORMAT = 1
"""Version of what `Facts.dumped` writes."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What must be known of a trained model besides its weights."""

    bands: tuple[str, ...]
    """What it reads, in order."""

    classes: tuple[str, ...]
    """What it tells apart, in order of its logits."""

    series: bool
    """Whether it reads several dates."""

    window: int
    """Side of the windows that it was trained on, in pixels."""

    patch: int
    """Sides of windows should be multiples of it."""

    units: Units | None = None
    """Those of its training; None where they are not known or not the same for all images."""

    masks: Masks | None = None
    """How its training told clear dates; None: of single images, or not the same for all areas."""

    min_clear: float | None = None
    """The share of a window that had to be clear for a date to stay; None for single images."""

    band_names: tuple[str, ...] | None = None
    """The bands of its training's files in their order, where these did not describe them themselves."""

    about: Mapping[str, str] = field(default_factory=dict)
    """For its card: architecture, adapter, parameters, framework."""

    def dumped(self, **more: object) -> str:
        """As JSON, with the classes' colours, the version of geomed, and what else is given."""
        told = dataclasses.asdict(self) | {"colours": palette(self.classes), "geomed": geomed.__version__}
        return json.dumps({"format": FORMAT, **told, **more}, sort_keys=True)

    @classmethod
    def loaded(cls, text: str, *, where: str) -> tuple[Facts, dict[str, Any]]:
        """The facts of a JSON text, and all that stands in it.

        Raises:
            ValueError: it is not what `dumped` writes.
        """
        try:
            told = json.loads(text)
            version = told["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{where}: what geomed export writes into a file is missing or broken; export again"
            ) from error
        if version != FORMAT:
            raise ValueError(f"{where}: of format {version}, this geomed reads {FORMAT}; export again with this one")
        try:
            facts = cls(
                bands=_names(told["bands"]),
                classes=_names(told["classes"]),
                series=bool(told["series"]),
                window=int(told["window"]),
                patch=int(told["patch"]),
                units=None if told["units"] is None else Units(**told["units"]),
                masks=None
                if told["masks"] is None
                else Masks(**{**told["masks"], "clear": (*told["masks"]["clear"],)}),
                min_clear=None if told["min_clear"] is None else float(told["min_clear"]),
                band_names=None if told["band_names"] is None else _names(told["band_names"]),
                about={str(name): str(value) for name, value in told["about"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{where}: what it says of itself is broken ({error}); export again") from error
        return facts, told


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model that is ready to map, with what its training knew about reading scenes."""

    model: MapModel
    """The model."""

    masks: Masks | None = None
    """How its training told clear dates; None: of single images, or not the same for all areas."""

    min_clear: float | None = None
    """The share of a window that had to be clear for a date to stay; None for single images."""

    band_names: tuple[str, ...] | None = None
    """The bands of its training's files in their order, where these did not describe them themselves."""

    @classmethod
    def of(
        cls, facts: Facts, run: Callable[[dict[str, Tensor]], Tensor], *, fingerprint: str, fixed: bool = False
    ) -> Trained:
        """Facts and a callable."""
        return cls(
            model=MapModel(
                run=run,
                bands=facts.bands,
                classes=facts.classes,
                series=facts.series,
                fingerprint=fingerprint,
                window=facts.window,
                patch=facts.patch,
                fixed=fixed,
                units=facts.units,
                about=facts.about,
            ),
            masks=facts.masks,
            min_clear=facts.min_clear,
            band_names=facts.band_names,
        )


def _names(given: list[str]) -> tuple[str, ...]:
    if not given or not all(isinstance(name, str) for name in given):
        raise ValueError(f"names must be texts, at least one, not {given}")
    return tuple(given)

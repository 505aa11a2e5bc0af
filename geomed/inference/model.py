"""What maps: a callable on batches, with what must be known of it to feed it and to read its answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox
    from torch import Tensor

    from geomed.windows import Window


@dataclass(frozen=True, kw_only=True)
class Units:
    """How stored numbers become the values that a model reads: ``scale * number + offset``."""

    scale: float
    """Value of one step."""

    offset: float
    """Value of number 0."""

    nodata: float | None = None
    """Number that means "no observation" besides what a file declares."""


@dataclass(frozen=True, kw_only=True)
class MapModel:
    """A network ready to map."""

    run: Callable[[dict[str, Tensor]], Tensor]
    """A batch → logits [B, K, H, W]. A batch holds ``values`` [B, C, H, W] float32 and ``valid`` [B, H, W] bool, or, of
    series, ``values`` [B, T, C, H, W], ``valid`` [B, T, H, W] and ``days`` [B, T] int64, all on the model's device."""

    bands: tuple[str, ...]
    """What it reads, in order."""

    classes: tuple[str, ...]
    """What it tells apart, in order of its logits."""

    series: bool
    """Whether it reads several dates."""

    fingerprint: str
    """SHA-256 over everything that its answers depend on."""

    window: int
    """Side of the windows that it was trained on, in pixels."""

    patch: int = 1
    """Sides of windows should be multiples of it."""

    fixed: bool = False
    """Whether it reads windows of that side only."""

    units: Units | None = None
    """Those of its training; None where they are not known or not the same for all images."""

    about: Mapping[str, str] = field(default_factory=dict)
    """For its card: architecture, adapter, parameters, framework."""


@runtime_checkable
class Scene(Protocol):
    """What is mapped: the images of one place, read window by window."""

    @property
    def name(self) -> str:
        """It names the map."""
        ...

    @property
    def grid(self) -> GeoBox:
        """Shape, transform and coordinate system, which may be None."""
        ...

    @property
    def pointwise(self) -> bool:
        """Whether what is read of a pixel is the same in every window."""
        ...

    @property
    def days(self) -> tuple[int, ...]:
        """When it was observed, days since 1970-01-01, ascending; empty where that is not known."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of it."""
        ...

    def read(self, window: Window) -> dict[str, NDArray[np.generic]]:
        """``values`` and ``valid``, and of a series ``days``, as in ``MapModel.run`` without the axis B."""
        ...

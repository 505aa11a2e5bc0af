"""Training whole modules, as an adapter like the others."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from geomed.adapters.adapter import Adapted, Adapter

if TYPE_CHECKING:
    from torch import nn

    from geomed.adapters.place import Place


@dataclass(frozen=True, kw_only=True)
class Tune(Adapter):
    """Trains a copy of each module named, such as the class tokens or the last block."""

    paper: ClassVar[str] = "–"

    targets: tuple[str, ...]
    """Which modules: shell-style patterns of paths or of their ends."""

    def wrap(self, place: Place) -> Adapted | None:
        """Wrap what the patterns name, if it has weights."""
        if not place.matches(self.targets) or not any(True for _ in place.plain.parameters()):
            return None
        return Tuned(place.module)


class Tuned(Adapted):
    """A module with a copy that trains in its stead."""

    mergeable = True

    def __init__(self, base: nn.Module) -> None:
        """The copy starts as the module is."""
        super().__init__(base)
        self.copy = copy.deepcopy(base)

    def live(self) -> tuple[str, nn.Module]:
        """The copy runs."""
        return "copy", self.copy

    def forward(self, *args: Any) -> Any:  # noqa: ANN401  (it stands in for any module)
        """copy(...)."""
        return self.copy(*args)

    def merged(self) -> nn.Module:
        """The copy."""
        return self.copy

"""What sources of rasters share: one scene for each area, and windows of its parts."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from geomed.data.source import Part, Scene, Source

if TYPE_CHECKING:
    from geomed.data.area import Legend
    from geomed.data.parts import Parts
    from geomed.data.window_samples import WindowSamples


class RasterSource(Source):
    """A source whose areas are rasters with labels; implementations say how their files become ``Parts``."""

    legend: Legend
    """Which label codes make which class."""

    @property
    @abstractmethod
    def _parts(self) -> Parts:
        """The areas, opened, with their labels and their split; computed once.

        Raises:
            ValueError: a file is not as it must be; the message names it, the rule and the way out.
        """

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self.legend.names

    def scenes(self) -> tuple[Scene, ...]:
        """One for each area."""
        return self._parts.scenes()

    def prepare(self) -> None:
        """Check the heads of all files and whether one is truncated, all label codes, and the split.

        Raises:
            ValueError: one of them is not as it must be; the message names the file, the rule and the way out.
        """
        self._parts.prepare()

    def split(self, part: Part) -> WindowSamples:
        """The samples of one part; one line about it is logged and stands in ``summary``.

        Raises:
            ValueError: the split does not fit the areas, an area of a part with labels has none, or the train part
                has no window left.
        """
        return self._parts.split(part)

"""Single images of any sensor, each one date of one place, read from GeoTIFFs window by window."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from geomed.data.area import Legend  # noqa: TC001  (jsonargparse resolves the fields' types)
from geomed.data.image import Image, ImageFiles
from geomed.data.labels import open_truth
from geomed.data.parts import Parts, refuse_windows
from geomed.data.raster_source import RasterSource
from geomed.evaluation.splits import Split  # noqa: TC001  (likewise)


@dataclass(frozen=True, kw_only=True)
class Scenes(RasterSource):
    """Any number of images with labels from a raster or from polygons, for backbones that read single images.

    Bands go by name: the band descriptions of a file, the image's ``band_names``, or ``{band}`` in its path. A pixel is
    valid where every band holds a finite number that is not nodata; elsewhere values are 0, no label counts, and the
    map stays empty. Polygons may have any coordinate system; a raster of codes must have that of the image, on
    whatever grid, see ``Labels``.

    Windows lie inside the blocks of their part, and those without a label are left out of train, val and test, which
    is logged; predict covers whole images.
    """

    images: tuple[Image, ...]
    """The places and dates."""

    legend: Legend
    """Which label codes make which class."""

    by: Split
    """What to learn from, to choose with, to report on and to map; images are its areas."""

    bands: tuple[str, ...]
    """Bands to read, by name."""

    window: int = 32
    """Side of a window in pixels."""

    margin: int = 0
    """Pixels at each inner side of a val, test or predict window that are context only."""

    whole_polygons: bool = True
    """A label polygon that reaches into several parts counts only in the one that holds most of it, for pixels of one
    polygon are alike. Without effect on a raster of codes."""

    fields_per_class: int | None = None
    """Labelled fields of each class that the train part keeps: polygons, or connected regions of a label raster;
    None: all."""

    seed: int = 0
    """Which fields those are."""

    def __post_init__(self) -> None:
        """Refuse what no file needs to be read for."""
        if not self.images:
            raise ValueError("a source needs at least one image, images is empty; name one")
        if not self.bands or len(set(self.bands)) < len(self.bands):
            raise ValueError(f"bands must be named, each once, not {self.bands}; correct them")
        refuse_windows(self.window, self.margin, self.fields_per_class)

    @cached_property
    def _parts(self) -> Parts:
        opened = tuple(ImageFiles.open(image, self.bands) for image in self.images)
        truths = tuple(open_truth(one.image.labels, self.legend, one.grid, f"image {one.name}") for one in opened)
        return Parts(
            images=opened,
            truths=truths,
            classes=self.classes,
            by=self.by,
            window=self.window,
            margin=self.margin,
            fields_per_class=self.fields_per_class,
            seed=self.seed,
            whole_polygons=self.whole_polygons,
            needs="an observation",
            check="and what is nodata",
        )

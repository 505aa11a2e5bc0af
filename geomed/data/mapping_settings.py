"""What is known of all scenes before they are mapped, and what follows from it for the files of one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from geomed.data.area import Masks
from geomed.data.units import Units

if TYPE_CHECKING:
    from geomed.data.units import Files
    from geomed.io.geotiff import GeoTiff


class StoredUnits(Protocol):
    """Units as a trained model knows them."""

    @property
    def scale(self) -> float:
        """Value of one step."""
        ...

    @property
    def offset(self) -> float:
        """Value of number 0."""
        ...

    @property
    def nodata(self) -> float | None:
        """Number that means "no observation" besides what a file declares."""
        ...


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is known of all scenes before one is opened."""

    bands: tuple[str, ...]
    """What the model reads, by name, in order."""

    series: bool = False
    """Whether it reads several dates."""

    scale: float | None = None
    """Value of one step, said by the user; None: not said."""

    offset: float | None = None
    """Value of number 0, said by the user; None: not said."""

    nodata: float | None = None
    """Number that means "no observation" besides what the files declare, said by the user; None: not said."""

    trained: StoredUnits | None = None
    """The units of the model's training, where neither user nor file nor catalogue say any; None: not known."""

    band_names: tuple[str, ...] | None = None
    """Names of the bands in the order of the file, of files that do not describe them."""

    masks: Masks = field(default_factory=Masks)
    """Of series: where the images can be trusted."""

    min_clear: float = 0.1
    """Of series: a date is left out of a window of which a smaller share than this is clear."""

    season: tuple[str, str] | None = None
    """Of series: first and last day to use, both included, as YYYY-MM-DD; None: all dates."""

    reproject: bool = False
    """Bring bands of other grids onto the finest, and dates onto the first, instead of refusing them."""

    def __post_init__(self) -> None:
        """Refuse half a unit."""
        if (self.scale is None) != (self.offset is None):
            missing = "scale" if self.scale is None else "offset"
            raise ValueError(
                f"scale and offset belong together, they are {self.scale} and {self.offset}; add --{missing} "
                "(scale 1 and offset 0 change nothing)"
            )
        if not 0 <= self.min_clear <= 1:
            raise ValueError(f"min_clear is a share from 0 to 1, not {self.min_clear}; correct it")

    @property
    def unseen(self) -> float | None:
        """The number that means "no observation" besides what files and catalogue say."""
        return self.nodata if self.nodata is not None or self.trained is None else self.trained.nodata


def chosen(settings: Settings, files: Files, owner: str, told: Units | None = None) -> tuple[Units, str]:
    """The units of stored numbers and who says them: the user, else the files, else the catalogue, else training.

    Args:
        settings: what the user and the model's training say.
        files: what the files declare.
        owner: whose they are, as ``image north``.
        told: what a catalogue says.

    Raises:
        ValueError: nobody says any, or the files of some bands only.
    """
    nodata = settings.unseen
    if settings.scale is not None and settings.offset is not None:
        return Units(scale=settings.scale, offset=settings.offset, nodata=nodata), "as you say"
    found = [(raster.scales[band - 1], raster.offsets[band - 1]) for raster, bands in files for band in bands]
    plain = [pair == (1.0, 0.0) for pair in found]
    if not any(plain):
        return united(found, nodata), "as the file declares"
    if not all(plain):
        raise ValueError(
            f"{owner}: its files declare scale and offset of {plain.count(False)} of {len(plain)} bands only; "
            "say those of all with --scale and --offset"
        )
    if told is not None:
        return replace(told, nodata=nodata), "as its catalogue says"
    if settings.trained is not None:
        return Units(scale=settings.trained.scale, offset=settings.trained.offset, nodata=nodata), "as in training"
    raise ValueError(
        f"{owner}: how its numbers become the values that the model reads stands neither in its files nor in the "
        "model; say it with --scale and --offset (--scale 1 --offset 0: they are those values already)"
    )


def united(pairs: list[tuple[float, float]], nodata: float | None) -> Units:
    """One scale and offset, or one for each band."""
    if len(set(pairs)) == 1:
        return Units(scale=pairs[0][0], offset=pairs[0][1], nodata=nodata)
    scales, offsets = zip(*pairs, strict=True)
    return Units(scale=scales, offset=offsets, nodata=nodata)


def names_of(raster: GeoTiff, settings: Settings) -> tuple[str, ...] | None:
    """The names of the bands that the user or training gives, of a file that has none itself.

    Raises:
        ValueError: nobody names them.
    """
    if any(raster.bands):
        return None
    if settings.band_names is None:
        raise ValueError(
            f"{raster.path}: bands are read by name, and the file describes none of its {len(raster.bands)}; "
            f"name them in the order of the file with --band-names"
        )
    return settings.band_names

"""What becomes of a scene when all its pieces are there: its rasters, a picture, its fields, its item."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING

import geomed
from geomed.inference.fields import write_fields
from geomed.inference.ledger import write_text
from geomed.inference.outputs import STEPS, UNKNOWN
from geomed.inference.quicklook import quicklook
from geomed.io.cog import Layout, assemble
from geomed.io.dates import date_of_day
from geomed.io.extents import extents
from geomed.io.stac import MapItem, ModelItem, write_item, write_model_item
from geomed.palette import palette

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from geomed.inference.model import MapModel, Scene
    from geomed.inference.plan import Plan
    from geomed.inference.worker import Job, SceneFile

FINISHED = ".finished"
"""Where in the output directory it is noted which scenes are finished."""

CARD = "geomed_model.json"
"""The model's item in the output directory."""


@dataclass(frozen=True, kw_only=True)
class Finish:
    """Makes maps of pieces, in one output directory."""

    model: MapModel
    """What mapped."""

    job: Job
    """How."""

    fingerprint: str
    """Of the run."""

    out: Path
    """The directory."""

    fields: bool = False
    """Whether the areas of each class are written as polygons."""

    background: tuple[str, ...] = ()
    """Classes that are no fields."""

    min_area: float = 0.0
    """Smaller fields are left out, in m²."""

    def __post_init__(self) -> None:
        """Refuse a background that the model does not know.

        Raises:
            ValueError: it does not.
        """
        unknown = [name for name in self.background if name not in self.model.classes]
        if unknown:
            raise ValueError(
                f"the background must be among the classes {', '.join(self.model.classes)}, {unknown[0]} is not; "
                "correct it"
            )

    @property
    def classes(self) -> int:
        """How many the model tells apart."""
        return len(self.model.classes)

    def finished(self, file: SceneFile) -> bool:
        """Whether this scene, as its files are now, was mapped by this run, and its map is still there."""
        note = self._note(file.name)
        return (
            note.is_file()
            and note.read_text(encoding="utf-8") == self._mark(file)
            and self._raster(file.name).is_file()
        )

    def scene(self, scene: Scene, file: SceneFile, plan: Plan, piece: Callable[[int, str], Path]) -> None:
        """Make all of a scene; ``piece`` says where that of a super-tile's layer lies. Done twice, it makes the same.

        Raises:
            ValueError: a piece is damaged.
            OSError: there is no room, or the directory cannot be written.
        """
        name, classes = file.name, self.model.classes
        note = self._note(name)
        note.unlink(missing_ok=True)
        made: dict[str, Path] = {}
        for layer in self.job.layers.bands(len(classes)):
            made[layer] = self._raster(name) if layer == "map" else self.out / f"{name}_{layer}.tif"
            pieces = [(piece(tile.number, layer), tile.keep) for tile in plan.tiles]
            assemble(made[layer], pieces, scene.grid, self._layout(layer))
        colours = palette(classes)
        covered = extents(made["map"], len(classes))
        picture = self.out / f"{name}.png"
        quicklook(made["map"], picture, names=classes, colours=colours, title=name, counts=covered.pixels)
        days = scene.days
        outlines: Path | None = None
        if self.fields:
            outlines = self.out / f"{name}_fields.parquet"
            write_fields(
                made["map"],
                outlines,
                names=classes,
                collection=name,
                confidence=made.get("confidence"),
                background=self.background,
                min_area=self.min_area,
                determination_datetime=_moment(days[-1]).isoformat() if days else None,
            )
        self._card()
        write_item(
            self.out / f"{name}.json",
            MapItem(
                name=name,
                grid=scene.grid,
                classes=classes,
                colours=colours,
                map=made["map"],
                confidence=made.get("confidence"),
                probabilities=made.get("probabilities"),
                fields=outlines,
                thumbnail=picture,
                extents=covered,
                start=_moment(days[0]) if days else None,
                end=_moment(days[-1]) if len(days) > 1 else None,
                lineage=self._lineage(),
                software={"geomed": geomed.__version__},
                model=self.out / CARD,
                model_name=self._name(),
            ),
        )
        note.parent.mkdir(exist_ok=True)
        write_text(note, self._mark(file))

    def _raster(self, name: str) -> Path:
        return self.out / f"{name}.tif"

    def _note(self, name: str) -> Path:
        return self.out / FINISHED / name

    def _mark(self, file: SceneFile) -> str:
        return f"{self.fingerprint} {file.identity}\n"

    def _layout(self, layer: str) -> Layout:
        if layer == "map":
            return Layout(
                bands=("class",), classes=self.model.classes, colours=palette(self.model.classes), nodata=UNKNOWN
            )
        bands = ("confidence", "entropy") if layer == "confidence" else self.model.classes
        return Layout(bands=bands, scale=1 / STEPS, nodata=UNKNOWN)

    def _name(self) -> str:
        return f"{self.model.about.get('architecture', 'network')} {self.model.fingerprint[:12]}"

    def _lineage(self) -> str:
        tiling = self.job.tiling
        turned = ", the mean of all turned and mirrored forms" if self.job.flips else ""
        return (
            f"Classes by the highest mean logit of {self._name()} over windows of {tiling.size} pixels that "
            f"overlap by at least {tiling.overlap} ({tiling.blend} blending{turned})."
        )

    def _card(self) -> None:
        """The model's item, the same for all scenes."""
        model, path = self.model, self.out / CARD
        if path.is_file():
            return
        about = dict(model.about)
        parameters = about.pop("parameters", "")
        write_model_item(
            path,
            ModelItem(
                name=self._name(),
                architecture=about.pop("architecture", "network"),
                bands=model.bands,
                classes=model.classes,
                colours=palette(model.classes),
                series=model.series,
                window=model.window,
                fixed=model.fixed,
                units=None if model.units is None else (model.units.scale, model.units.offset),
                parameters=int(parameters) if parameters.isdigit() else None,
                framework="ONNX" if "onnx" in about.get("file", "").lower() else "PyTorch",
                about=about,
            ),
        )


def _moment(day: int) -> dt.datetime:
    return dt.datetime.combine(date_of_day(day), dt.time(), dt.UTC)

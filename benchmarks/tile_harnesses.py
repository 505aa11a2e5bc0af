"""Who maps a scene tile by tile: geomed and its peers, each called as its user would; for tiles.py.

A peer is measured if it can be imported. It is spared what is not its own: its package's other imports, a wasteful way
to read (bands come straight into float32), torch's slow argmax over the first axis, a large array of indices.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import tempfile
import time
import types
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import torch
from rasterio.windows import Window
from tile_scenes import BANDS, BLOCK, KINDS, SCALE  # the file beside this one
from torch import Tensor, nn

from geomed.backbones.inputs import Inputs
from geomed.backbones.tsvit import TSViT, TSViTSize
from geomed.data.image import Image, ImageFiles
from geomed.heads.class_tokens import ClassTokens
from geomed.pixels import Pixels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from odc.geo.geobox import GeoBox

    from geomed.backbones.backbone import Backbone
    from geomed.heads.head import Head
    from geomed.inference.plan import Tiling
    from geomed.windows import Window as Extent

DAYS = (19_100, 19_130, 19_160, 19_190, 19_220, 19_250)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is to be mapped, and how; it travels to a process of its own as JSON."""

    scenes: tuple[str, ...]
    """Files: one, or one for each date."""

    side: int
    """Rows and columns."""

    model: str
    """One of ``MODELS``."""

    batch: int
    """Windows that go through the model at once."""

    threads: int
    """Of torch."""

    device: str
    """Where the model is."""

    size: int
    """Side of a window."""

    overlap: int
    """Pixels that two neighbours share."""


class Net(nn.Module):
    """A backbone with a head, as one module: reflectance in, logits out."""

    def __init__(self, backbone: Backbone, head: Head) -> None:
        """Of these two."""
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, values: Tensor, valid: Tensor | None = None, days: Tensor | None = None) -> Tensor:
        """[B, C, H, W] or, with dates, [B, T, C, H, W] → [B, K, H, W]."""
        pixels = Pixels(values=values, valid=valid, days=days)
        return self.head(self.backbone(pixels, depths=self.head.depths), pixels.size)


def _decided(last: nn.Conv2d | nn.Linear, std: float) -> nn.Module:
    """Weights so large that one class is likelier than the others, as after training."""
    nn.init.normal_(last.weight, std=std)
    return last


def _pointwise() -> nn.Module:
    return _decided(nn.Conv2d(len(BANDS), KINDS, 1), 5.0)


def _convolutions() -> nn.Module:
    """It sees five pixels far, less than any margin here."""
    return nn.Sequential(
        nn.Conv2d(len(BANDS), 16, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 16, 5, padding=2),
        nn.ReLU(),
        _decided(nn.Conv2d(16, KINDS, 3, padding=1), 3.0),
    )


def _vit() -> nn.Module:
    from geomed.backbones.vit import ViT  # with timm: 200 MiB that other models can do without
    from geomed.heads.linear import Linear

    backbone = ViT("vit_small_patch16_224", inputs=Inputs(BANDS), image_size=256)
    head = Linear(backbone.spec, KINDS)
    _decided(head.linear, 0.2)
    return Net(backbone, head)


def _tsvit() -> nn.Module:
    size = TSViTSize(dim=32, heads=2, head_dim=16, temporal_depth=2, spatial_depth=2)
    backbone = TSViT(inputs=Inputs(BANDS), num_classes=KINDS, size=size, patch=4, image_size=48)
    return Net(backbone, ClassTokens(backbone.spec))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "pointwise": _pointwise,
    "convolutions": _convolutions,
    "vit": _vit,
    "tsvit": _tsvit,
}
SERIES = ("tsvit",)


class Counted(nn.Module):
    """The model with random weights, always the same, in eval mode; it notes what it was given."""

    def __init__(self, model: str, device: str) -> None:
        """On CUDA devices it runs in bfloat16 autocast and answers in float32."""
        super().__init__()
        torch.manual_seed(0)
        self.body = MODELS[model]().to(device).eval()
        self.shapes: Counter[tuple[int, ...]] = Counter()
        self._cuda = device.startswith("cuda")

    def forward(self, *inputs: Tensor) -> Tensor:
        """As the model."""
        self.shapes[tuple(inputs[0].shape)] += 1
        with torch.autocast("cuda", torch.bfloat16) if self._cuda else nullcontext():
            return self.body(*inputs).float()


@dataclass
class Told:
    """What a harness tells of itself."""

    phases: dict[str, float] = field(default_factory=dict)
    """Wall seconds of reading and writing, where they are apart from the rest."""

    idle: float | None = None
    """Share of the time that the model waited for pixels."""


class Harness(ABC):
    """Maps a scene; the map lies at ``out`` afterwards."""

    package = ""
    """What must be importable."""

    series = False
    """Whether it can map series of dates."""

    def missing(self) -> str | None:
        """Why it cannot be measured here."""
        if importlib.util.find_spec(self.package) is None:
            return "not installed: skipped"
        try:
            self.prepare()
        except ImportError as error:
            return f"cannot be imported ({error}): skipped"
        return None

    def version(self) -> str:
        """Of its package."""
        return importlib.metadata.version(self.package)

    @abstractmethod
    def prepare(self) -> None:
        """Import what it needs."""

    @abstractmethod
    def run(self, model: Counted, case: Case, out: Path) -> Told:
        """Map the scene."""

    @abstractmethod
    def scores(self, model: Counted, case: Case) -> Tensor:
        """Class probabilities [K, H, W] of the whole scene, blended, on the CPU."""

    @abstractmethod
    def borders(self, case: Case) -> list[int]:
        """Lines, the same along rows and columns, where a window begins or ceases to count."""


class Geomed(Harness):
    """This package: one scene through the engine of ``geomed map``, from the file to the finished map."""

    package = "geomed"
    series = True

    def __init__(self, blend: str = "cosine") -> None:
        """``none`` is the control: windows cut in the middle of what they share."""
        self.blend = blend

    def prepare(self) -> None:
        """Import the engine."""
        importlib.import_module("geomed.inference.batch")
        importlib.import_module("geomed.inference.finish")
        importlib.import_module("matplotlib.backends.backend_agg")  # of the picture
        importlib.import_module("matplotlib.figure")

    def _tiling(self, case: Case) -> Tiling:
        from geomed.inference.plan import Tiling

        return Tiling(size=case.size, overlap=case.overlap, blend=self.blend)  # type: ignore[arg-type]

    def run(self, model: Counted, case: Case, out: Path) -> Told:
        """Map the scene."""
        return map_with_geomed(model, case, self._tiling(case), out)

    def scores(self, model: Counted, case: Case) -> Tensor:
        """What the engine blends before it chooses."""
        from geomed.inference.plan import Plan
        from geomed.inference.stream import blend

        plan = Plan.of((case.side, case.side), self._tiling(case))
        found = torch.empty(KINDS, case.side, case.side)

        def run(batch: dict[str, Tensor]) -> Tensor:
            with torch.inference_mode():
                return torch.softmax(model(batch["values"]), 1)

        for part in blend(_opened(case), run, plan, plan.tiles, batch_size=case.batch, device=case.device):
            top = part.tile.keep.row
            found[:, top + part.rows[0] : top + part.rows[1]] = part.scores
        return found

    def borders(self, case: Case) -> list[int]:
        """Where weights begin and end."""
        from geomed.inference.plan import Axis

        axis = Axis.of(case.side, self._tiling(case))
        return _inside((*axis.begins, *axis.ends), case.side)


class Peer(Harness):
    """Another package: read the whole scene, let it blend, choose the classes, write."""

    @abstractmethod
    def blended(self, model: Counted, values: Tensor, case: Case) -> Tensor:
        """Logits [K, H, W] of values [1, C, H, W] on the CPU."""

    def run(self, model: Counted, case: Case, out: Path) -> Told:
        """Map the scene."""
        began = time.perf_counter()
        values = whole(case.scenes[0])
        read = time.perf_counter() - began
        with torch.inference_mode():
            logits = self.blended(model, values, case)
        del values
        began = time.perf_counter()
        write_classes(out, logits, like=case.scenes[0])
        return Told(phases={"read": read, "write": time.perf_counter() - began})

    def scores(self, model: Counted, case: Case) -> Tensor:
        """Softmax of what it blends."""
        with torch.inference_mode():
            return torch.softmax(self.blended(model, whole(case.scenes[0]), case).cpu(), 0)


class TerraTorch(Peer):
    """``terratorch.tasks.tiled_inference``: reflected borders, 8 pixels of each window cut away, cosine."""

    package = "terratorch"
    delta = 8

    def prepare(self) -> None:
        """Its one file: the package's own imports are many, and tiled inference needs none of them."""
        for name in ("terratorch", "terratorch.tasks", "terratorch.models"):
            _bare(name)
        unused = types.ModuleType("terratorch.models.utils")
        unused.pad_images = None  # type: ignore[attr-defined]  # imported there, never called
        sys.modules.setdefault("terratorch.models.utils", unused)
        self._infer = importlib.import_module("terratorch.tasks.tiled_inference").tiled_inference

    def blended(self, model: Counted, values: Tensor, case: Case) -> Tensor:
        """It gives the result back on the device that it is told, so on a GPU it holds both."""
        return self._infer(
            model,
            values,
            crop=case.size,
            stride=case.size - case.overlap,
            delta=self.delta,
            batch_size=case.batch,
            device=case.device,
        )[0]

    def borders(self, case: Case) -> list[int]:
        """Windows lie on an image padded by ``delta`` and are cut by as much."""
        stride, last = case.size - case.overlap, case.side + 2 * self.delta - case.size
        starts = [*range(0, last - 1, stride), last]
        return _inside([at for start in starts for at in (start, start + case.size - 2 * self.delta)], case.side)


class Monai(Peer):
    """``monai.inferers.sliding_window_inference``, Gaussian weights."""

    package = "monai"

    def __init__(self, *, on_device: bool = False) -> None:
        """Scene and sums on the CPU, or all of it on the device."""
        self._on_device = on_device

    def prepare(self) -> None:
        """Its inferers."""
        self._infer = importlib.import_module("monai.inferers").sliding_window_inference

    def blended(self, model: Counted, values: Tensor, case: Case) -> Tensor:
        """With the overlap as a share."""
        device = case.device if self._on_device else "cpu"
        return self._infer(
            values,
            (case.size, case.size),
            case.batch,
            model,
            overlap=case.overlap / case.size,
            mode="gaussian",
            sw_device=case.device,
            device=device,
        )[0]

    def borders(self, case: Case) -> list[int]:
        """Windows at equal steps, the last one moved inside."""
        return _steps(case)


class GeoAI(Harness):
    """``geoai.inference.predict_geotiff``: from file to file."""

    package = "geoai"

    def version(self) -> str:
        """Its distribution has another name."""
        return importlib.metadata.version("geoai-py")

    def prepare(self) -> None:
        """Its one file, and of its utilities the one function that is needed."""
        _bare("geoai")
        utilities = _bare("geoai.utils")
        utilities.get_device = importlib.import_module("geoai.utils.device").get_device
        self._predict = importlib.import_module("geoai.inference").predict_geotiff

    def _run(self, model: Counted, case: Case, out: Path, choose: Callable[[np.ndarray], np.ndarray]) -> None:
        self._predict(
            model,
            case.scenes[0],
            str(out),
            tile_size=case.size,
            overlap=case.overlap,
            batch_size=case.batch,
            num_classes=KINDS,
            output_dtype="uint8",
            output_nodata=255,
            blend_mode="spline",
            preprocess_fn=lambda values: values * np.float32(SCALE),
            postprocess_fn=choose,
            device=case.device,
            compress="deflate",
            verbose=False,
        )

    def run(self, model: Counted, case: Case, out: Path) -> Told:
        """Map the scene."""
        self._run(model, case, out, lambda logits: logits.argmax(0)[None])
        return Told()

    def scores(self, model: Counted, case: Case) -> Tensor:
        """Caught before it chooses."""
        caught: list[np.ndarray] = []

        def choose(logits: np.ndarray) -> np.ndarray:
            caught.append(logits)
            return logits.argmax(0)[None]

        with tempfile.TemporaryDirectory() as folder:
            self._run(model, case, Path(folder) / "map.tif", choose)
        return torch.softmax(torch.from_numpy(caught[0]), 0)

    def borders(self, case: Case) -> list[int]:
        """Windows at equal steps, the last ones moved inside."""
        return _steps(case)


HARNESSES: dict[str, Harness] = {
    "geomed": Geomed(),
    "geomed, unblended": Geomed("none"),
    "terratorch": TerraTorch(),
    "monai": Monai(),
    "monai, all on the device": Monai(on_device=True),
    "geoai": GeoAI(),
}


@dataclass(frozen=True, kw_only=True)
class Land:
    """A scene of whole images, one or a series of which all dates of every window are read."""

    images: tuple[ImageFiles, ...]
    name: str = "map"
    notes: tuple[str, ...] = ()

    @property
    def grid(self) -> GeoBox:
        """That of the first date."""
        return self.images[0].grid

    @property
    def pointwise(self) -> bool:
        """The engine reads single images in stretches."""
        return len(self.images) == 1

    @property
    def days(self) -> tuple[int, ...]:
        """Of a series."""
        return DAYS[: len(self.images)] if len(self.images) > 1 else ()

    def read(self, window: Extent) -> dict[str, np.ndarray]:
        """Values [C, H, W] and valid [H, W], and of a series with an axis T before and days [T]."""
        if self.pointwise:
            return self.images[0].read(window)
        read = [image.read(window) for image in self.images]
        stacked = {name: np.stack([one[name] for one in read]) for name in ("values", "valid")}
        return stacked | {"days": np.array(self.days, dtype=np.int64)}


@dataclass(frozen=True, kw_only=True)
class Unopened:
    """The scene of a case, as the engine takes it."""

    case: Case
    name: str = "map"
    identity: str = "0" * 64

    def open(self) -> Land:
        """Read the heads of its files."""
        return _opened(self.case)


def _opened(case: Case) -> Land:
    named = [Image(name="map", path=path, scale=SCALE, offset=0.0) for path in case.scenes]
    return Land(images=tuple(ImageFiles.open(image, BANDS) for image in named))


def map_with_geomed(model: Counted, case: Case, tiling: Tiling, out: Path) -> Told:
    """What ``geomed map`` does after it has loaded the model and found the scene; all of its outputs are made."""
    from geomed.inference.batch import LocalEngine, map_scenes
    from geomed.inference.finish import Finish
    from geomed.inference.ledger import Ledger
    from geomed.inference.model import MapModel
    from geomed.inference.worker import Job, Worker

    def run(batch: dict[str, Tensor]) -> Tensor:
        with torch.inference_mode():
            return model(*(batch[name] for name in ("values", "valid", "days") if name == "values" or "days" in batch))

    mapped = MapModel(
        run=run,
        bands=BANDS,
        classes=tuple(f"class {number}" for number in range(KINDS)),
        series=len(case.scenes) > 1,
        fingerprint="0" * 64,
        window=case.size,
    )
    job = Job(tiling=tiling, batch_size=case.batch)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder, Ledger(Path(folder), {}) as ledger:
        worker = Worker(mapped, job, device=case.device, readers=8 if case.device.startswith("cuda") else 2)
        engine = LocalEngine(worker)
        finish = Finish(model=mapped, job=job, fingerprint=ledger.fingerprint, out=Path(folder), fields=False)
        summary = map_scenes([Unopened(case=case)], engine, job, ledger, finish)
        if summary.failed:
            raise ValueError(summary.failed["map"])
        (Path(folder) / "map.tif").replace(out)
    return Told(idle=summary.idle)


def write_classes(path: Path, logits: Tensor, *, like: str) -> None:
    """The most likely class of each pixel as a tiled GeoTIFF."""
    with rasterio.open(like) as file:
        grid = {"crs": file.crs, "transform": file.transform, "height": file.height, "width": file.width}
    layout = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": 255, "compress": "deflate", "tiled": True}
    with rasterio.open(path, "w", **grid, **layout, blockxsize=BLOCK, blockysize=BLOCK) as file:
        for row in range(0, logits.shape[1], BLOCK):
            part = logits[:, row : row + BLOCK]
            if part.device.type == "cpu":
                best = part.numpy().argmax(0).astype(np.uint8)  # half the time of torch's
            else:
                best = part.argmax(0).to(torch.uint8).cpu().numpy()
            file.write(best, 1, window=Window(0, row, best.shape[1], best.shape[0]))


def whole(path: str) -> Tensor:
    """A scene [1, C, H, W] in reflectance, without copies on the way."""
    with rasterio.open(path) as file:
        values = np.empty((file.count, file.height, file.width), dtype=np.float32)
        for band in range(file.count):
            file.read(band + 1, out=values[band])
            values[band] *= np.float32(SCALE)
    return torch.from_numpy(values)[None]


def _inside(lines: Iterable[int], side: int) -> list[int]:
    return sorted({line for line in lines if 0 < line < side})


def _steps(case: Case) -> list[int]:
    starts = [min(at, case.side - case.size) for at in range(0, case.side, case.size - case.overlap)]
    return _inside([at for start in starts for at in (start, start + case.size)], case.side)


def _bare(name: str) -> Any:  # noqa: ANN401  (attributes are put on it)
    """A package of which single modules can be imported, without what its ``__init__`` would import besides."""
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ImportError(f"there is no {name}")
        package = types.ModuleType(name)
        package.__path__ = list(spec.submodule_search_locations or ())
        package.__spec__ = spec
        sys.modules[name] = package
    return sys.modules[name]

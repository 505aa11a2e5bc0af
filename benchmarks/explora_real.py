"""Does extending the pre-training help, on real weights and a real scene? Without labels first, then judged with few.

    python datasets/rachel_carson/prepare.py --source FOLDER --out data/rachel_carson
    GEOMED_REAL_DATA=DIR python benchmarks/explora_real.py [--seeds 3] [--steps 150] [--variants ...]

The network is Galileo's nano encoder as a ViT of one date (galileo.py, which says what of that is exact; weights in
DIR/weights/galileo_nano), the scene the Sentinel-2 L1C image of datasets/rachel_carson: 8-bit numbers whose unit is a
reading, other pixels, a coast. Of its eight bands Galileo knows seven; B01 is left out.

Every variant is pre-trained for the same number of steps on the same crops of a seed, by masked autoencoding. That is
not Galileo's own objective, which compares tokens and draws no pixels; the decoder starts anew, for all alike. Pixels
come from the blocks of the train part alone, their labels unread; only ``transductive`` reads those of the test part
too, as one may whose one scene lies before him. In a network this small the one block that ExPLoRA trains whole is a
fifth of all. Then, with nothing chosen by the test part:

- ``probe``: a multinomial logistic regression on frozen features of the labelled pixels (scikit-learn's default
  penalty), with all polygons of the train part or two of each class;
- ``fine_tuned``: LoRA on q and v and a linear head, two polygons of each class; steps and rate such that the training
  loss has come down.

Reported is macro F1 of the labelled pixels of the test blocks. They are 300 to 440 in 7 classes: a few polygons decide,
and differences below 0.05 say nothing. So that these are not always the same few, each seed has a division of its own:
the blocks of datasets/rachel_carson, the next seed of blocks by the same rule (of every class 20 labelled pixels in
each part), and both with their parts swapped. Differences are to be read within a seed; ``over_as_it_is`` is their
mean. ``folds`` is the probe's score within the train part, by whole polygons: by it settings may be chosen, and windows
of 12 pixels were, against 24, on the first division. The references say what the same judges give to the seven numbers
of a pixel alone, to Galileo with its own tokens, and to a network that is trained whole from random weights.
"""

from __future__ import annotations

import argparse
import copy
import datetime as dt
import functools
import json
import logging
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import galileo as released  # the file beside this one
import lightning
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm
from tsvit import processor  # likewise

from geomed import __version__
from geomed.adapters.adapter import Adapter, attach, merge
from geomed.adapters.counts import trainable
from geomed.adapters.explora import ExPLoRA
from geomed.adapters.lora import LoRA
from geomed.data.area import Labels, Legend
from geomed.data.crops import Crops
from geomed.data.image import Image, ImageFiles
from geomed.data.pretraining_data import PretrainingData
from geomed.data.scenes import Scenes
from geomed.data.source import Part, Source, collate
from geomed.evaluation.probing import logistic_regression
from geomed.evaluation.segmentation_scores import SegmentationScores
from geomed.evaluation.splits import ByBlocks, Place, Split, divide
from geomed.heads.linear import Linear
from geomed.pixels import IGNORE, Pixels
from geomed.tasks.mae import MAE, DecoderSize
from geomed.tasks.optimisation import Optimisation
from geomed.tasks.pretraining import Pretraining

if TYPE_CHECKING:
    from geomed.backbones.vit import ViT
    from geomed.evaluation.splits import Division

RESULTS = Path(__file__).parent / "results" / "explora_real.json"
SCENE = Path("data/rachel_carson")
BLOCK, WINDOW, PATCH = 32, 12, 2  # as in configs/rachel_carson_vit_*.yaml
AS_IT_IS = "Galileo as it is"
RATE, FINE_RATE = 1e-3, 1e-2
BATCH, FINE_BATCH, FINE_STEPS = 128, 8, 200
POLYGONS = 2
FOLDS = 5
DECODER = DecoderSize(dim=64, depth=1, heads=4)
SHARE = (WINDOW / (BLOCK - 2)) ** 2  # of a block: crops keep the size of their pixels
CROPS = Crops(size=WINDOW, scale=(SHARE, SHARE), ratio=(1, 1), rotate=True)
CLASSES = {
    "emergent wetland": ["Emergent Wetland"],
    "forested wetland": ["Forested Wetland"],
    "herbaceous": ["Herbaceous"],
    "sand": ["Sand"],
    "scrub-shrub wetland": ["Scrub-Shrub Wetland"],
    "subtidal haline": ["Subtidal Haline"],
    "wet sand": ["WetSand"],
}
IMAGE = Image(
    name="rachel_carson",
    path=f"{SCENE}/2018-10-13_S2B_L1C_{{band}}.tif",
    scale=0.0015686,  # 0.4 / 255, a reading: see datasets/rachel_carson/README.md
    offset=0,
    labels=Labels(path=f"{SCENE}/landcover_polygons.gpkg", column="Classname"),
)
DIVISIONS = ((64, False), (171, False), (64, True), (171, True))

Features = Callable[[Tensor], Tensor]
"""Images [B, C, H, W] → features [B, D, H, W]."""


@dataclass(frozen=True, kw_only=True)
class Swapped(Split):
    """What is learned from and what is reported on change places."""

    split: Split
    """What they are before."""

    def divide(self, places: Sequence[Place]) -> Division:
        """The same blocks."""
        parts = self.split.divide(places)
        return {**parts, "train": parts["test"], "test": parts["train"]}

    def gap(self) -> int:
        """The same."""
        return self.split.gap()


def division(seed: int) -> Split:
    """The blocks of a seed: those of datasets/rachel_carson, the next that fulfil its rule, and both swapped."""
    number, swapped = DIVISIONS[seed % len(DIVISIONS)]
    blocks = ByBlocks(size=BLOCK, buffer=2, fractions=(0.5, 0, 0.5), seed=number)
    return Swapped(split=blocks) if swapped else blocks


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A network to judge, and what is done to it before."""

    released: bool = True
    """Start from the released weights."""

    pretrained: bool = True
    """Extend its pre-training."""

    adapters: tuple[Adapter, ...] = ()
    """What trains in that; none: everything but the positions, which are fixed in MAE."""

    parts: tuple[Part, ...] = ("train",)
    """Whose pixels it sees."""


def variants() -> dict[str, Variant]:
    """All of them, by name; the bands are not Galileo's groups any more, so the patch embedding trains in each."""
    explora = ExPLoRA(blocks=(-1,), rank=16, patch_embed=True)
    chosen = {
        AS_IT_IS: Variant(pretrained=False),
        "Random weights": Variant(released=False, pretrained=False),
        "Random weights, MAE": Variant(released=False),
        "Full continued MAE": Variant(),
        "ExPLoRA": Variant(adapters=(explora,)),
        "LoRA only": Variant(adapters=(replace(explora, blocks=(), norms=False),)),
        "Block only": Variant(adapters=(replace(explora, rank=0, norms=False),)),
    }
    return chosen | {"ExPLoRA, transductive": replace(chosen["ExPLoRA"], parts=("train", "test"))}


@dataclass(frozen=True, kw_only=True)
class Blocks(Source):
    """All pixels of the blocks of some parts, without labels."""

    parts: tuple[Part, ...] = ("train",)
    """Which."""

    seed: int
    """Of the division."""

    bands: tuple[str, ...] = released.BANDS
    """Those that the network reads."""

    @property
    def classes(self) -> tuple[str, ...]:
        """None."""
        return ()

    def split(self, part: Part) -> Dataset[dict[str, Tensor]]:
        """One sample for each block that a crop fits into."""
        return _Held([one for name in self.parts for one in _blocks(self.seed)[name]] if part == "train" else [])


class _Held(Dataset[dict[str, Tensor]]):
    def __init__(self, samples: list[dict[str, Tensor]]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.samples[index]


@functools.cache
def _blocks(seed: int) -> dict[str, list[dict[str, Tensor]]]:
    """The blocks of each part, read once."""
    opened = ImageFiles.open(IMAGE, released.BANDS)
    place = Place(name=opened.name, year=opened.year, grid=opened.grid)
    whole = {name: torch.from_numpy(array) for name, array in opened.read(place.whole).items()}
    found: dict[str, list[dict[str, Tensor]]] = {}
    for part, shares in divide(division(seed), [place]).items():
        blocks = [block for share in shares for block in share.blocks if part != "predict"]
        large = [block for block in blocks if min(block.height, block.width) >= WINDOW]
        found[part] = [{name: value[..., *block.slices].clone() for name, value in whole.items()} for block in large]
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """The windows of one part that hold a label."""

    values: Tensor
    """[N, C, H, W]."""

    labels: Tensor
    """[N, H, W]."""

    polygons: Tensor
    """[N, H, W]: which polygon each pixel lies in, -1 where none."""

    def pixels(self, features: Features) -> tuple[Tensor, Tensor, Tensor]:
        """Features [P, D], class and polygon of every labelled pixel."""
        known = self.labels != IGNORE
        with torch.inference_mode():
            found = torch.cat([features(values).movedim(1, -1) for values in self.values.split(64)])
        return found[known], self.labels[known], self.polygons[known]


@functools.cache
def labelled(part: Part, seed: int, polygons: int | None = None) -> Labelled:
    """Of the train part all polygons or so many of each class."""
    source = Scenes(
        bands=released.BANDS,
        window=WINDOW,
        images=(IMAGE,),
        legend=Legend(classes=CLASSES),
        by=division(seed),
        fields_per_class=polygons if part == "train" else None,
        seed=seed,
    )
    samples = source.split(part)
    batch = collate([samples[index] for index in range(len(samples))])
    (area,) = samples.areas
    if area.fields is None:
        raise ValueError("the labels must be polygons, for folds are made of whole ones")
    numbers = [torch.from_numpy(area.fields.ids(area.imagery.grid, spot.read)) for spot in samples.spots]
    return Labelled(values=batch["values"], labels=batch["labels"], polygons=torch.stack(numbers))


def network(released_weights: bool) -> ViT:  # noqa: FBT001  (a name says it where it is called)
    """The network with Galileo's weights, or with random ones."""
    shape = of_galileo()
    return shape.vit() if released_weights else shape.plain()


def missing() -> str | None:
    """Why nothing can be run here."""
    if not (_weights() / "encoder.pt").is_file():
        return f"{_weights()} holds no encoder.pt; set GEOMED_REAL_DATA to the folder above weights/galileo_nano"
    if not SCENE.is_dir():
        return f"there is no {SCENE}; run datasets/rachel_carson/prepare.py"
    return None


def _weights() -> Path:
    return Path(os.environ.get("GEOMED_REAL_DATA", "")) / "weights" / "galileo_nano"


def of_galileo() -> released.Galileo:
    """The released weights, told of this scene."""
    return released.Galileo(folder=_weights(), window=WINDOW, patch=PATCH, month=9, metres=8.2)


class _Losses(lightning.Callback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: object, module: object, outputs: dict[str, Tensor], *_: object) -> None:
        """Append it."""
        self.values.append(float(outputs["loss"].detach()))


def pretrain(backbone: ViT, variant: Variant, *, steps: int, seed: int, rate: float = RATE) -> dict[str, float]:
    """Extend its pre-training and fold what was attached into its weights."""
    backbone.stem.pos_embed.requires_grad_(requires_grad=False)  # sines and cosines, fixed in MAE
    task = Pretraining(
        backbone=backbone,
        objective=MAE(decoder=DECODER),
        adapter=list(variant.adapters) or None,
        optimisation=Optimisation(lr=rate, betas=(0.9, 0.95)),
        seed=seed,
    )
    count = trainable(backbone)
    data = PretrainingData(Blocks(parts=variant.parts, seed=seed), crops=CROPS, batch_size=BATCH, seed=seed)
    losses = _Losses()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    lightning.Trainer(
        max_steps=steps, accelerator="cpu", devices=1, callbacks=[losses], enable_model_summary=False, **quiet
    ).fit(task, datamodule=data)
    if variant.adapters:
        merge(backbone)
    tenth = max(steps // 10, 1)
    first, last = (statistics.mean(part) for part in (losses.values[:tenth], losses.values[-tenth:]))
    return {"parameters": count, "first_loss": round(first, 4), "last_loss": round(last, 4)}


def dense(backbone: ViT) -> Features:
    """A frozen network's features at every pixel, bilinear as `Linear` reads them."""
    backbone.eval()

    def features(values: Tensor) -> Tensor:
        tokens = backbone(Pixels(values=values))[0]
        return _spread(tokens.patches())

    return features


def _spread(tokens: Tensor) -> Tensor:
    grid = rearrange(tokens, "b (h w) d -> b d h w", h=WINDOW // PATCH)
    return F.interpolate(grid, scale_factor=PATCH, mode="bilinear", align_corners=False)


def macro_f1(truth: Tensor, found: Tensor) -> float:
    """Over all classes."""
    count = len(CLASSES)
    confusion = (truth * count + found).bincount(minlength=count**2).view(count, count)
    return SegmentationScores.from_confusion(confusion, tuple(CLASSES)).macro_f1


def probe(features: Features, train: Labelled, test: Labelled) -> dict[str, float]:
    """Macro F1 of a linear probe on the test part, and of folds of the train part's polygons."""
    x, y, polygons = train.pixels(features)
    fold, guessed = _folds(y, polygons), torch.empty_like(y)
    for number in fold.unique():
        out = fold == number
        guessed[out] = _answers(x[~out], y[~out], x[out])
    asked, truth, _ = test.pixels(features)
    return {"test": macro_f1(truth, _answers(x, y, asked)), "folds": macro_f1(y, guessed)}


def _answers(x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
    """What logistic regression on standardised features says."""
    x, asked = x.double(), asked.double()
    middle, width = x.mean(0), x.std(0).clamp(min=1e-6)
    weight, bias, _ = logistic_regression((x - middle) / width, y, len(CLASSES))
    return ((asked - middle) / width @ weight + bias).argmax(1)


def _folds(y: Tensor, polygons: Tensor) -> Tensor:
    """The fold of each pixel: the polygons of each class are dealt out one by one."""
    fold = torch.zeros_like(y)
    for label in y.unique():
        for rank, polygon in enumerate(polygons[y == label].unique()):
            fold[polygons == polygon] = rank % FOLDS
    return fold


def fine_tune(backbone: ViT, seed: int, *, whole: bool = False) -> float:
    """Macro F1 on the test part after training LoRA, or everything, and a head on few polygons of the train part."""
    train = labelled("train", seed, POLYGONS)
    torch.manual_seed(seed)
    head = Linear(backbone.spec, len(CLASSES))
    model = nn.ModuleDict({"backbone": copy.deepcopy(backbone), "head": head}).train()
    if not whole:
        model["backbone"].requires_grad_(requires_grad=False)
        attach(model["backbone"], LoRA(rank=8, alpha=8))

    def logits(values: Tensor) -> Tensor:
        pixels = Pixels(values=values)
        return model["head"](model["backbone"](pixels), pixels.size)

    rate = RATE if whole else FINE_RATE
    chosen = Optimisation(lr=rate).configure([p for p in model.parameters() if p.requires_grad], FINE_STEPS)
    drawn = torch.Generator().manual_seed(seed)
    for _ in range(FINE_STEPS):
        index = torch.randint(len(train.values), (FINE_BATCH,), generator=drawn)
        turns = int(torch.randint(4, (), generator=drawn))
        values, labels = (one[index].rot90(turns, (-2, -1)) for one in (train.values, train.labels))
        chosen["optimizer"].zero_grad(set_to_none=True)
        F.cross_entropy(logits(values), labels, ignore_index=IGNORE).backward()
        chosen["optimizer"].step()
        chosen["lr_scheduler"]["scheduler"].step()
    model.eval()
    found, truth, _ = labelled("test", seed).pixels(logits)
    return macro_f1(truth, found.argmax(1))


def judge(features: Features, seed: int) -> dict[str, dict[str, float]]:
    """Linear probes with all polygons and with few."""
    test = labelled("test", seed)
    given = {"all": labelled("train", seed), "few": labelled("train", seed, POLYGONS)}
    return {name: probe(features, train, test) for name, train in given.items()}


def run(seed: int, variant: str, steps: int, *, rate: float = RATE) -> dict[str, object]:
    """One variant with one seed: pre-train, probe, fine-tune."""
    chosen = variants()[variant]
    torch.manual_seed(seed)
    began = time.process_time()
    backbone = network(chosen.released)
    told: dict[str, object] = {"parameters": 0}
    if chosen.pretrained:
        told |= {"rate": rate, **pretrain(backbone, chosen, steps=steps, seed=seed, rate=rate)}
    took = time.process_time() - began
    return {
        "variant": variant,
        "seed": seed,
        "steps": steps if chosen.pretrained else 0,
        **told,
        "probe": judge(dense(backbone), seed),
        "fine_tuned": {"few": {"test": fine_tune(backbone, seed)}},
        "pretraining_cpu_s": round(took, 2),
        "cpu_s": round(time.process_time() - began, 2),
    }


def references(seed: int) -> dict[str, dict[str, object]]:
    """What the judges give to the pixels alone, to Galileo's own tokens and to learning from random weights."""
    galileo = of_galileo()
    torch.manual_seed(seed)
    whole = fine_tune(galileo.plain(), seed, whole=True)
    return {
        "Pixels alone": {"probe": judge(lambda values: values, seed)},
        "Galileo, own tokens": {"probe": judge(lambda v: _spread(galileo.own(v, ndvi=False)), seed)},
        "Galileo, own tokens and NDVI": {"probe": judge(lambda v: _spread(galileo.own(v, ndvi=True)), seed)},
        "Random weights, all trained": {"fine_tuned": {"few": {"test": whole}}},
    }


def conversion() -> dict[str, object]:
    """How true the network is to Galileo, on a sample of the train part's pixels."""
    galileo = of_galileo()
    values = torch.stack([one["values"][:, :WINDOW, :WINDOW] for one in _blocks(0)["train"][::40]])
    return {
        "largest_difference_of_blocks": released.block_difference(galileo),
        "images": len(values),
        "tokens": released.likeness(galileo, values),
    }


def facts(seeds: int) -> dict[str, object]:
    """What all runs share, and what there is to learn from for each seed."""

    def count(part: Part, seed: int, polygons: int | None = None) -> int:
        return int((labelled(part, seed, polygons).labels != IGNORE).sum())

    data = [
        {
            "seed": seed,
            "blocks_seed": DIVISIONS[seed % len(DIVISIONS)][0],
            "swapped": DIVISIONS[seed % len(DIVISIONS)][1],
            "unlabelled_blocks": {part: len(_blocks(seed)[part]) for part in ("train", "test")},
            "labelled_pixels_of_windows": {  # windows of the train part overlap where a block is no multiple of them
                "train": count("train", seed),
                "train, few polygons": count("train", seed, POLYGONS),
                "test": count("test", seed),
            },
        }
        for seed in range(seeds)
    ]
    return {
        "batch": BATCH,
        "window": WINDOW,
        "patch": PATCH,
        "rate": RATE,
        "fine_tuning": {"rate": FINE_RATE, "rate_whole": RATE, "steps": FINE_STEPS, "batch": FINE_BATCH},
        "data": data,
        "conversion": conversion(),
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Mean and standard deviation over seeds of every score, by variant."""
    found: dict[str, dict[str, float | None]] = {}
    for variant in dict.fromkeys(str(one["variant"]) for one in runs):
        mine = [one for one in runs if one["variant"] == variant]
        for judged in ("probe", "fine_tuned"):
            for labels in mine[0].get(judged, {}):
                for score in mine[0][judged][labels]:
                    values = [one[judged][labels][score] for one in mine]
                    key = f"{judged}_{labels}_{score}"
                    row = found.setdefault(variant, {})
                    row[f"{key}_mean"] = statistics.mean(values)
                    row[f"{key}_sd"] = statistics.stdev(values) if len(values) > 1 else None
                    before = _scores(runs, AS_IT_IS, judged, labels)
                    pairs = [(value, before.get(one["seed"])) for one, value in zip(mine, values, strict=True)]
                    gains = [value - plain for value, plain in pairs if plain is not None]
                    if score == "test" and gains:
                        row[f"{key}_over_as_it_is"] = statistics.mean(gains)
    return found


def _scores(runs: list[dict[str, Any]], variant: str, judged: str, labels: str) -> dict[int, float]:
    return {one["seed"]: one[judged][labels]["test"] for one in runs if one["variant"] == variant}


def table(told: dict[str, dict[str, float | None]]) -> str:
    """What a person reads first."""
    keys = ("probe_all_test", "probe_few_test", "fine_tuned_few_test", "probe_all_folds")
    lines = [f"{'macro F1':<30}" + "".join(f"{key:>22}" for key in keys)]
    for variant, row in told.items():
        cells = [
            f"{row[f'{key}_mean']:.3f} +- {row[f'{key}_sd'] or 0:.3f}" if f"{key}_mean" in row else "–" for key in keys
        ]
        lines.append(f"{variant:<30}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def measured(
    seeds: int,
    steps: int,
    *,
    names: Sequence[str] | None = None,
    rate: float = RATE,
    after_each: Callable[[dict[str, object]], None] = lambda _: None,
) -> dict[str, object]:
    """All variants, or those named, for so many seeds; ``after_each`` run gets what there is until then.

    Raises:
        ValueError: weights or scene are not there.
    """
    if (why := missing()) is not None:
        raise ValueError(why)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    runs: list[dict[str, Any]] = []
    told: dict[str, object] = {"steps": steps, "facts": facts(seeds)}
    for seed in tqdm(range(seeds), desc="real, seeds"):
        runs += [{"variant": name, "seed": seed, **found} for name, found in references(seed).items()]
        for name in names or variants():
            runs.append(run(seed, name, steps, rate=rate))
            told |= {"summary": summary(runs), "runs": runs}
            after_each(told)
    print(table(summary(runs)))
    return told


def main() -> None:
    """Run all variants for all seeds and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=list(variants()), choices=list(variants()))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if (why := missing()) is not None:
        parser.error(why)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    report: dict[str, object] = {
        "command": f"python benchmarks/explora_real.py --seeds {given.seeds} --steps {given.steps} --rate {given.rate}",
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "threads_used": 1, "accelerator": "none"},
        "versions": {"geomed": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }

    def write(told: dict[str, object]) -> None:
        given.out.write_text(json.dumps(report | told, indent=2) + "\n")

    write(measured(given.seeds, given.steps, names=given.variants, rate=given.rate, after_each=write))


if __name__ == "__main__":
    main()

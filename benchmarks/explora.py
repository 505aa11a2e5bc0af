"""Does it help to extend a backbone's pre-training to a new domain, and how much of it has to train?

    python benchmarks/explora.py [--seeds 0 1 2] [--base-steps 600] [--steps 400] [--variants …] [--no-real]

Simulated, without any download: a small ViT is pre-trained by MAE on images of one domain (a region in spring,
Sentinel-2 as it is) and extended to another (another region and year in summer, a sensor of other band response, twice
the pixel size, haze and noise). Each variant takes as many steps (DINOv2, with six crops an image, half as many) on the
same images, from the same base, decoder included. Then, on blocks of the new domain that nothing else has seen:

- ``probe``: macro F1 of a multinomial logistic regression on frozen patch features, with all labels of the train
  blocks; patches count that mostly show one class;
- ``fine_tuned``: macro F1 of pixels after LoRA and a linear head were trained on three labelled fields of each class.

"All matrices" redoes an ablation of Khanna et al. (ICML 2025): low-rank updates of MLPs and projections as well, of a
quarter of the rank. "All matrices, weights lost" does what the released code does there: it makes new linears and never
copies the pre-trained weights into them. Rates were chosen on land of another seed, by the probe within its train
blocks (``--tune``); nothing was chosen by test blocks.

Where GEOMED_REAL_DATA is set the same is done with real weights and a real scene (explora_real.py, which says how), and
stands in the same result file.
"""

from __future__ import annotations

import argparse
import copy
import datetime as dt
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import explora_real as real  # the files beside this one
import lightning
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm
from tsvit import processor

from geomed import __version__
from geomed.adapters.adapter import Adapter, attach, merge
from geomed.adapters.counts import trainable
from geomed.adapters.explora import ExPLoRA
from geomed.adapters.lora import LoRA
from geomed.backbones.inputs import Inputs
from geomed.backbones.vit import ViT, ViTSize
from geomed.data.crops import Crops, LocalCrops
from geomed.data.photometric import Photometric
from geomed.data.pretraining_data import PretrainingData
from geomed.data.simulated_dates import SimulatedDates
from geomed.data.simulated_season import SimulatedSeason
from geomed.data.simulation.region import EARLIER, LATER, NORTH, SOUTH
from geomed.data.simulation.sensor import OTHER
from geomed.data.source import collate
from geomed.evaluation.probing import logistic_regression, probe
from geomed.evaluation.segmentation_scores import SegmentationScores
from geomed.heads.linear import Linear
from geomed.pixels import IGNORE, Pixels
from geomed.tasks.centring import Sinkhorn
from geomed.tasks.dinov2 import DINOv2
from geomed.tasks.mae import MAE, DecoderSize, TrainedDecoder
from geomed.tasks.monitor import patch_labels
from geomed.tasks.optimisation import Optimisation
from geomed.tasks.pretraining import Pretraining
from geomed.tasks.projection_head import Prototypes

RESULTS = Path(__file__).parent / "results" / "explora.json"
ROOT = Path("data/explora")
BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
WINDOW, PATCH = 16, 2
SIZE = ViTSize(dim=96, depth=6, heads=4, patch=PATCH)
DECODER = DecoderSize(dim=64, depth=2, heads=4)
BATCH, FINE_BATCH, FINE_STEPS = 64, 16, 200
RANK, FIELDS, PROBED = 16, 3, 10_000
RATES = {"full": 2e-3, "part": 4e-3, "fine": 8e-3}
CROPS = Crops(size=WINDOW, scale=(0.4, 1.0), rotate=True)
SEVERAL = Crops(
    size=WINDOW,
    scale=(0.4, 1.0),
    count=2,
    local=LocalCrops(count=4, size=8, scale=(0.1, 0.4)),
    rotate=True,
    photometric=Photometric(jitter=0.2),
)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What happens between base and judgement."""

    adapters: tuple[Adapter, ...] = ()
    """What trains; none: everything."""

    base: bool = True
    """Start from the base; else from random weights."""

    steps: float = 1.0
    """Share of the steps."""

    lost: bool = False
    """Draw the MLPs and projections anew before, as the released code does."""

    dino: bool = False
    """By DINOv2's objective instead of MAE."""

    @property
    def rate(self) -> float:
        """Highest learning rate."""
        return RATES["part" if self.adapters else "full"]


def variants() -> dict[str, Variant]:
    """All of them, by name."""
    explora = ExPLoRA(rank=RANK, alpha=RANK)
    inner = ",".join(str(number) for number in range(SIZE.depth - 1)).replace(",", "")
    rest = LoRA(
        rank=RANK // 4, alpha=RANK // 4, targets=tuple(f"blocks.[{inner}].*.{n}" for n in ("proj", "fc1", "fc2"))
    )
    return {
        "Base as it is": Variant(steps=0),
        "Random weights": Variant(base=False, steps=0),
        "MAE from random weights": Variant(base=False),
        "Full continued MAE": Variant(),
        "ExPLoRA": Variant(adapters=(explora,)),
        "LoRA only": Variant(adapters=(replace(explora, blocks=()),)),
        "Block only": Variant(adapters=(replace(explora, rank=0),)),
        "All matrices": Variant(adapters=(explora, rest)),
        "All matrices, weights lost": Variant(adapters=(explora, rest), lost=True),
        "ExPLoRA, scale 1/64": Variant(adapters=(ExPLoRA(rank=64, alpha=1.0),)),
        "ExPLoRA by DINOv2": Variant(adapters=(explora,), dino=True, steps=0.5),
    }


def old_domain(seed: int) -> SimulatedDates:
    """What the base knows."""
    season = SimulatedSeason(root=f"{ROOT}/season-{seed}-512", size=512, regions=(NORTH,), years=(EARLIER,), seed=seed)
    return SimulatedDates(season=season, root=f"{ROOT}/dates", months=(4, 6), dates=8, window=WINDOW)


def new_domain(seed: int, fields: int | None = None) -> SimulatedDates:
    """Where it goes."""
    season = SimulatedSeason(root=f"{ROOT}/season-{seed}-1024", size=1024, regions=(SOUTH,), years=(LATER,), seed=seed)
    return SimulatedDates(
        season=season,
        root=f"{ROOT}/dates",
        sensor=OTHER,
        months=(6, 7),
        dates=6,
        window=WINDOW,
        fields_per_class=fields,
        seed=seed,
    )


def network(seed: int) -> ViT:
    """Random weights."""
    torch.manual_seed(seed)
    return ViT("vit_tiny_patch16_224", inputs=Inputs(BANDS), image_size=WINDOW, size=SIZE)


def pretrain(
    backbone: ViT, source: SimulatedDates, variant: Variant, *, steps: int, seed: int, decoder: Path | None, rate: float
) -> MAE | DINOv2:
    """Train, and fold what was attached into the weights; the result is the teacher's where there is one."""
    trained = None
    if decoder is not None:
        trained = TrainedDecoder(path=str(decoder), rank=8 if variant.adapters else None, alpha=8.0)
    objective = MAE(decoder=DECODER, trained_decoder=trained)
    if variant.dino:
        objective = DINOv2(prototypes=Prototypes(count=512, hidden=256, bottleneck=64), centring=Sinkhorn())
    task = Pretraining(
        backbone=backbone,
        objective=objective,
        adapter=list(variant.adapters) or None,
        optimisation=Optimisation(lr=rate, betas=(0.9, 0.95), weight_decay=0.0 if variant.adapters else 0.05),
        head_warmup=0.1 if variant.dino else 0.0,
        seed=seed,
    )
    data = PretrainingData(
        source, crops=SEVERAL if variant.dino else CROPS, batch_size=BATCH, in_memory=True, seed=seed
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    lightning.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", devices=1, enable_model_summary=False, **quiet
    ).fit(task, datamodule=data)
    with torch.no_grad():
        for name, value in objective.result(backbone).items():
            backbone.get_parameter(name).copy_(value)
    if variant.adapters:
        merge(backbone)
    return objective


def lose(backbone: ViT) -> None:
    """Draw anew what the released code draws anew: fc1, fc2 and proj of the blocks that are not trained whole."""
    for block in list(backbone.blocks)[:-1]:
        for layer in (block.attention.attn.proj, block.mlp.mlp.fc1, block.mlp.mlp.fc2):
            layer.reset_parameters()


def samples(source: SimulatedDates, part: str) -> dict[str, Tensor]:
    """All windows of a part."""
    held = source.split(part)
    return collate([held[index] for index in range(len(held))])


def patches(backbone: ViT, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Features, class and place of every patch that mostly shows one class."""
    labels = patch_labels(batch["labels"], PATCH)
    backbone.eval()
    with torch.inference_mode():
        pairs = zip(batch["values"].split(64), batch["valid"].split(64), strict=True)
        tokens = torch.cat([backbone(Pixels(values=v, valid=m))[0].patches() for v, m in pairs])
    places = (batch["read"][:, 0] * 10_007 + batch["read"][:, 1])[:, None].expand_as(labels)
    known = labels != IGNORE
    return tokens[known].double(), labels[known], places[known]


def linear_probe(backbone: ViT, train: dict[str, Tensor], test: dict[str, Tensor], classes: tuple[str, ...]) -> float:
    """Macro F1 on the test blocks."""
    x, y, _ = patches(backbone, train)
    drawn = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:PROBED]
    x, y = x[drawn], y[drawn]
    asked, truth, _ = patches(backbone, test)
    middle, width = x.mean(0), x.std(0).clamp(min=1e-6)
    weight, bias, _ = logistic_regression((x - middle) / width, y, len(classes))
    return macro_f1(truth, ((asked - middle) / width @ weight + bias).argmax(1), classes)


def macro_f1(truth: Tensor, found: Tensor, classes: tuple[str, ...]) -> float:
    """Over all classes."""
    count = len(classes)
    confusion = (truth * count + found).bincount(minlength=count**2).view(count, count)
    return SegmentationScores.from_confusion(confusion.numpy(), classes).macro_f1


def fine_tune(
    backbone: ViT, train: dict[str, Tensor], test: dict[str, Tensor], classes: tuple[str, ...], seed: int
) -> float:
    """Macro F1 of pixels on the test blocks after LoRA and a head were trained on few fields."""
    torch.manual_seed(seed)
    model = nn.ModuleDict({"backbone": copy.deepcopy(backbone), "head": Linear(backbone.spec, len(classes))}).train()
    model["backbone"].requires_grad_(requires_grad=False)
    attach(model["backbone"], LoRA(rank=8, alpha=8))

    def logits(values: Tensor, valid: Tensor) -> Tensor:
        pixels = Pixels(values=values, valid=valid)
        return model["head"](model["backbone"](pixels), pixels.size)

    chosen = Optimisation(lr=RATES["fine"]).configure([p for p in model.parameters() if p.requires_grad], FINE_STEPS)
    drawn = torch.Generator().manual_seed(seed)
    for _ in range(FINE_STEPS):
        index = torch.randint(len(train["values"]), (FINE_BATCH,), generator=drawn)
        turns = int(torch.randint(4, (), generator=drawn))
        values, valid, labels = (train[name][index].rot90(turns, (-2, -1)) for name in ("values", "valid", "labels"))
        chosen["optimizer"].zero_grad(set_to_none=True)
        F.cross_entropy(logits(values, valid), labels, ignore_index=IGNORE).backward()
        chosen["optimizer"].step()
        chosen["lr_scheduler"]["scheduler"].step()
    model.eval()
    with torch.inference_mode():
        pairs = zip(test["values"].split(64), test["valid"].split(64), strict=True)
        found = torch.cat([logits(values, valid).argmax(1) for values, valid in pairs])
    known = test["labels"] != IGNORE
    return macro_f1(test["labels"][known], found[known], classes)


def base(seed: int, steps: int, folder: Path) -> tuple[dict[str, Tensor], Path]:
    """Weights of a network that knows the old domain, and the file of its decoder."""
    backbone = network(seed)
    objective = pretrain(backbone, old_domain(seed), Variant(), steps=steps, seed=seed, decoder=None, rate=2e-3)
    path = folder / f"objective-{seed}.safetensors"
    save_file(objective.kept(), path)
    return {name: value.clone() for name, value in backbone.state_dict().items()}, path


def run(
    name: str, seed: int, weights: dict[str, Tensor], decoder: Path, *, steps: int, rate: float | None = None
) -> dict[str, object]:
    """One variant: extended, probed, fine-tuned; with a ``rate`` of its own only probed within the train blocks."""
    variant, source = variants()[name], new_domain(seed)
    backbone = network(seed)
    if variant.base:
        backbone.load_state_dict(weights)
    if variant.lost:
        lose(backbone)
    whole = copy.deepcopy(backbone)
    for adapter in variant.adapters:
        attach(whole, adapter)
    began = time.process_time()
    count = round(steps * variant.steps)
    if count:
        pretrain(
            backbone,
            source,
            variant,
            steps=count,
            seed=seed,
            decoder=decoder if variant.base and not variant.dino else None,
            rate=rate or variant.rate,
        )
    took = time.process_time() - began
    classes = source.classes
    train = samples(source, "train")
    features, labels, places = patches(backbone, train)
    within = probe(features.float().numpy(), labels.numpy(), places.numpy(), limit=6000)
    told: dict[str, object] = {
        "variant": name,
        "seed": seed,
        "steps": count,
        "rate": rate or variant.rate if count else 0,
        "parameters": trainable(whole) if count else 0,
        "within_train": {"knn": round(within.knn, 4), "linear": round(within.linear, 4)},
    }
    if rate is not None:
        return told
    test, few = samples(source, "test"), samples(new_domain(seed, FIELDS), "train")
    return told | {
        "probe": round(linear_probe(backbone, train, test, classes), 4),
        "fine_tuned": round(fine_tune(backbone, few, test, classes, seed), 4),
        "pretraining_cpu_s": round(took, 1),
        "cpu_s": round(time.process_time() - began, 1),
    }


def tune(base_steps: int, steps: int) -> list[dict[str, object]]:
    """Rates, on land of another seed, by the probe within the train blocks."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(100)
        weights, decoder = base(100, base_steps, Path(folder))
        for name in ("Base as it is", "Full continued MAE", "ExPLoRA", "ExPLoRA by DINOv2"):
            for rate in (1e-3, 2e-3, 4e-3) if variants()[name].steps else (0.0,):
                found.append(run(name, 100, weights, decoder, steps=steps, rate=rate))
                print(found[-1], flush=True)
    return found


def prepare(seed: int) -> None:
    """Simulate what a seed needs."""
    old_domain(seed).prepare()
    new_domain(seed).prepare()


def summary(runs: list[dict[str, object]]) -> dict[str, dict[str, float | None]]:
    """Means and standard deviations over seeds, and the differences to the base of the same seed."""
    found: dict[str, dict[str, float | None]] = {}
    for name in dict.fromkeys(str(one["variant"]) for one in runs):
        mine = [one for one in runs if one["variant"] == name]
        row: dict[str, float | None] = {"parameters": mine[0]["parameters"]}  # type: ignore[dict-item]
        row["pretraining_cpu_s"] = statistics.median(float(one["pretraining_cpu_s"]) for one in mine)  # type: ignore[arg-type]
        for score in ("probe", "fine_tuned"):
            values = {one["seed"]: float(one[score]) for one in mine}  # type: ignore[arg-type]
            start = {one["seed"]: float(one[score]) for one in runs if one["variant"] == "Base as it is"}  # type: ignore[arg-type]
            gains = [values[seed] - start[seed] for seed in values if seed in start]
            for what, numbers in ((score, list(values.values())), (f"{score}_gain", gains)):
                row[f"{what}_mean"] = round(statistics.mean(numbers), 4) if numbers else None
                row[f"{what}_sd"] = round(statistics.stdev(numbers), 4) if len(numbers) > 1 else None
        found[name] = row
    return found


def table(told: dict[str, dict[str, float | None]]) -> str:
    """What a person reads first."""
    lines = [f"{'macro F1 on the new domain':<30}{'trains':>10}{'CPU s':>8}{'probe':>18}{'fine-tuned':>18}"]
    for name, row in told.items():
        cells = [f"{row[f'{score}_mean']:.3f} +- {row[f'{score}_sd'] or 0:.3f}" for score in ("probe", "fine_tuned")]
        trained, seconds = f"{row['parameters']:,}", f"{row['pretraining_cpu_s']:.0f}"
        lines.append(f"{name:<30}{trained:>10}{seconds:>8}{cells[0]:>18}{cells[1]:>18}")
    return "\n".join(lines)


def main() -> None:
    """Run all variants for all seeds and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=list(variants()), choices=list(variants()))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--base-steps", type=int, default=600)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--no-real", action="store_true", help="leave the real half out")
    parser.add_argument("--real-steps", type=int, default=150)
    parser.add_argument(
        "--joined", type=Path, nargs="+", default=[], help="results of other seeds to take in as they are"
    )
    parser.add_argument("--joined-real", type=Path, help="result of explora_real.py to take in as it is")
    parser.add_argument("--tune", action="store_true", help="only compare rates, on land of another seed")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if given.tune:
        tune(given.base_steps, given.steps)
        return
    report: dict[str, object] = {
        "command": f"python benchmarks/explora.py --base-steps {given.base_steps} --steps {given.steps}"
        + (", each seed in a process of its own, then --joined" if given.joined else ""),
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "threads_used": 1, "accelerator": "none"},
        "versions": {"geomed": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "settings": {
            "rates": RATES,
            "batch": BATCH,
            "fine_steps": FINE_STEPS,
            "fields_per_class": FIELDS,
            "rank": RANK,
        },
    }
    runs = [one for path in given.joined for one in json.loads(path.read_text())["simulated"]["runs"]]
    with tempfile.TemporaryDirectory() as folder:
        for seed in tqdm(given.seeds, desc="seeds"):
            prepare(seed)
            weights, decoder = base(seed, given.base_steps, Path(folder))
            for name in given.variants:
                runs.append(run(name, seed, weights, decoder, steps=given.steps))
                print(runs[-1], flush=True)
                report |= {"simulated": {"summary": summary(runs), "runs": runs}}
                given.out.write_text(json.dumps(report, indent=2) + "\n")
    report |= {"simulated": {"summary": summary(runs), "runs": runs}}
    given.out.write_text(json.dumps(report, indent=2) + "\n")
    print(table(summary(runs)))
    if given.joined_real is not None:
        report["real"] = json.loads(given.joined_real.read_text())
    elif given.no_real or (why := real.missing()) is not None:
        print("the real half was left out" if given.no_real else f"the real half was left out: {why}")
    else:
        report["real"] = real.measured(3, given.real_steps)
    given.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

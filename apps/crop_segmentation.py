r"""Adapt a trained TSViT to one area with labelled fields, score it on blocks that it never saw, and map the area.

python apps/crop_segmentation.py --images data/away/images --labels data/away/fields.gpkg --column crop \
    --classes maize wheat grass --base runs/crops/checkpoints/best.ckpt --adapter lora --out out/away
python apps/crop_segmentation.py --simulate --out out/simulated     # simulated land and base: runs anywhere
"""

import argparse
from pathlib import Path

from lightning import Trainer, seed_everything

import geomed

SIZE = geomed.TSViTSize(dim=64, heads=4, head_dim=16, temporal_depth=2, spatial_depth=2)  # that of the base
BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
ADAPTERS = {
    "lora": geomed.LoRA(rank=4, alpha=8),
    "adaptformer": geomed.AdaptFormer(bottleneck=16, scale=0.5),
    "prompts": geomed.Prompts(count=8),
    "bitfit": geomed.BitFit(),
}


def untrained(source: geomed.Sentinel2Series | geomed.SimulatedSeason) -> geomed.TSViT:
    """The network for the classes of a source."""
    return geomed.TSViT(inputs=geomed.Inputs(BANDS), num_classes=len(source.classes), size=SIZE)


def simulated(given: argparse.Namespace) -> geomed.SimulatedSeason:
    """A few labelled fields of one simulated region, after training the base on another."""
    land, given.base = str(given.out / "land"), str(given.out / "base.ckpt")
    home = geomed.SimulatedSeason(root=land, size=128, by=geomed.ByBlocks(size=24, areas=("north-2021",)))
    task = geomed.Segmentation(backbone=untrained(home), head=geomed.ClassTokens)
    trainer = Trainer(max_epochs=given.epochs, logger=False, enable_checkpointing=False)
    trainer.fit(task, datamodule=geomed.DataModule(home, batch_size=4, in_memory=True))
    trainer.save_checkpoint(given.base)
    blocks = geomed.ByBlocks(size=24, areas=("south-2022",))
    return geomed.SimulatedSeason(root=land, size=128, by=blocks, fields_per_class=3)


def main() -> None:
    """Adapt, score, map."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="folder with one GeoTIFF for each date and its scene classification")
    parser.add_argument("--offset", type=float, default=0.0, help="reflectance of number 0 in them (default: 0)")
    parser.add_argument("--labels", help="GeoPackage or GeoJSON of fields")
    parser.add_argument("--column", default="crop", help="column of the labels that holds the class (default: crop)")
    parser.add_argument("--classes", nargs="+", help="values of the column, in the order of the base's classes")
    parser.add_argument("--base", help="checkpoint to adapt")
    parser.add_argument("--adapter", choices=ADAPTERS, default="lora")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for scores, map and adapter")
    parser.add_argument("--simulate", action="store_true", help="simulate two seasons, train the base on the first")
    given = parser.parse_args()
    if not given.simulate and None in (given.images, given.labels, given.classes, given.base):
        parser.error("give --images, --labels, --classes and --base, or --simulate")
    seed_everything(0)
    if given.simulate:
        source = simulated(given)
    else:
        labels, unit = geomed.Labels(path=given.labels, column=given.column), geomed.Reflectance(offset=given.offset)
        area = geomed.Area(name=given.out.name, images=given.images, labels=labels, reflectance=unit)
        legend = geomed.Legend(classes={name: [name] for name in given.classes})
        source = geomed.Sentinel2Series(areas=(area,), legend=legend, by=geomed.ByBlocks(size=24), bands=BANDS)
    adapter, base, course = ADAPTERS[given.adapter], geomed.BaseWeights(path=given.base), geomed.Optimisation(lr=1e-2)
    task = geomed.Segmentation(
        backbone=untrained(source), head=geomed.ClassTokens, weights=base, adapter=adapter, optimisation=course
    )
    data, maps = geomed.DataModule(source, batch_size=4, in_memory=True), [geomed.MapsCallback(str(given.out))]
    trainer = Trainer(default_root_dir=given.out, max_epochs=given.epochs, logger=False, callbacks=maps)
    trainer.fit(task, datamodule=data)
    trainer.test(task, datamodule=data, verbose=False)
    trainer.predict(task, datamodule=data, return_predictions=False)
    geomed.save_adapter(given.out / "adapter.safetensors", task.backbone, [adapter], head=task.head)


if __name__ == "__main__":
    main()

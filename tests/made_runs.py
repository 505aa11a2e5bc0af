"""Run folders as `geomed fit` leaves them, without training."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING

import torch

from geomed.adapters.adapter import attach
from geomed.adapters.adaptformer import AdaptFormer
from geomed.adapters.files import save_adapter
from geomed.adapters.lora import LoRA
from geomed.backbones.inputs import Inputs
from geomed.backbones.tsvit import TSViT, TSViTSize
from geomed.backbones.vit import ViT, ViTSize
from geomed.heads.class_tokens import ClassTokens
from geomed.heads.linear import Linear
from geomed.mapping.network import Network

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = ("wheat", "maize", "water")
MEAN, STD = [0.1, 0.2, 0.3], [0.05, 0.1, 0.2]
INPUTS = {"class_path": "Inputs", "init_args": {"bands": ["B04", "B08", "B11"], "mean": MEAN, "std": STD}}
LEGEND = {"classes": {name: [number] for number, name in enumerate(CLASSES)}}
SCENES = {
    "class_path": "Scenes",
    "init_args": {
        "images": [{"name": "one", "path": "gone/{band}.tif", "scale": 1e-4, "offset": -0.1, "nodata": 0}],
        "legend": LEGEND,
        "by": {"class_path": "ByBlocks", "init_args": {"size": 64}},
        "bands": ["B04", "B08", "B11"],
        "window": 16,
    },
}
SERIES = {
    "class_path": "Sentinel2Series",
    "init_args": {
        "areas": [{"name": "one", "images": "gone", "masks": {"scl": None, "bad": "{stem}_CLM.tif"}}],
        "legend": LEGEND,
        "by": {"class_path": "ByBlocks", "init_args": {"size": 64}},
        "bands": ["B04", "B08", "B11"],
        "window": 8,
        "min_clear": 0.3,
    },
}
ADAPTERS = {"LoRA": LoRA(rank=2), "AdaptFormer": AdaptFormer(bottleneck=4)}
WRITTEN = {
    "LoRA": {"class_path": "LoRA", "init_args": {"rank": 2}},
    "AdaptFormer": {"class_path": "AdaptFormer", "init_args": {"bottleneck": 4}},
}


def bare(kind: str) -> Network:
    """Backbone and head of `model_config`."""
    inputs = Inputs(["B04", "B08", "B11"], mean=MEAN, std=STD)
    if kind == "ViT":
        vit = ViT("vit_tiny_patch16_224", inputs=inputs, image_size=32, size=ViTSize(dim=16, depth=2, heads=2, patch=4))
        return Network(vit, Linear(vit.spec, num_classes=3))
    size = TSViTSize(dim=16, heads=2, head_dim=8, temporal_depth=2, spatial_depth=1)
    tsvit = TSViT(inputs=inputs, num_classes=3, patch=2, image_size=8, size=size)
    return Network(tsvit, ClassTokens(tsvit.spec))


def model_config(kind: str, **more: object) -> dict[str, object]:
    if kind == "ViT":
        size = {"dim": 16, "depth": 2, "heads": 2, "patch": 4}
        given = {"name": "vit_tiny_patch16_224", "inputs": INPUTS, "image_size": 32, "size": size}
        head = {"class_path": "Linear", "init_args": {"num_classes": 3}}
        return {"backbone": {"class_path": "ViT", "init_args": given}, "head": head, **more}
    size = {"dim": 16, "heads": 2, "head_dim": 8, "temporal_depth": 2, "spatial_depth": 1}
    given = {"inputs": INPUTS, "num_classes": 3, "patch": 2, "image_size": 8, "size": size}
    return {"backbone": {"class_path": "TSViT", "init_args": given}, "head": {"class_path": "ClassTokens"}, **more}


def perturb(network: torch.nn.Module, seed: int = 0) -> None:
    """Weights that no part of the network ignores: adapters start at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def make_run(
    folder: Path, kind: str, adapter: str | None = None, *, source: object = None, **more: object
) -> tuple[Path, Network]:
    """A run's folder, and its network with the adapter attached."""
    torch.manual_seed(1)
    network = bare(kind)
    if adapter is not None:
        attach(network.backbone, ADAPTERS[adapter])
        more = {"adapter": WRITTEN[adapter], **more}
    perturb(network)
    network.eval()
    write_run(folder, model_config(kind, **more), network, source or (SCENES if kind == "ViT" else SERIES))
    if adapter is not None:
        save_adapter(folder / "adapter.safetensors", network.backbone, [ADAPTERS[adapter]], head=network.head)
    return folder, network


def write_run(folder: Path, model: object, network: Network, source: object) -> None:
    logs = folder / "logs/version_0"
    logs.mkdir(parents=True)
    (logs / "config.yaml").write_text(json.dumps({"model": model, "data": {"source": source}, "ckpt_path": None}))
    (folder / "checkpoints").mkdir()
    state = copy.deepcopy(network.state_dict())
    torch.save({"state_dict": state, "classes": list(CLASSES)}, folder / "checkpoints/last.ckpt")


def batch_of(
    kind: str, count: int = 2, dates: int = 3, side: int | None = None, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Some pixels are not valid, and of a series the last sample misses its last date."""
    generator = torch.Generator().manual_seed(seed)
    side = side or (16 if kind == "ViT" else 8)
    shape = (count,) if kind == "ViT" else (count, dates)
    valid = torch.rand(*shape, side, side, generator=generator) > 0.2
    if kind == "TSViT":
        valid[-1, -1] = dates == 1
    values = torch.where(valid.unsqueeze(-3), torch.rand(*shape, 3, side, side, generator=generator), 0)
    batch = {"values": values, "valid": valid}
    if kind == "TSViT":
        batch["days"] = torch.randint(17800, 18200, shape, generator=generator).sort(1).values
    return batch


def answer(network: Network, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return network(*(batch[name] for name in ("values", "valid", "days") if name in batch))

"""The two plain models that an adapter has to beat, from the config of the run that uses it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

SUFFIXES = ("linear-probe", "cnn")
"""What is appended to the folder of a run for each."""


def baseline(config: dict[str, Any], suffix: str, *, network: str = "resnet18") -> dict[str, Any]:
    """The config of a baseline of a run of ``Classification``; its folder lies beside the run's.

    Both have the run's data, split, head, loss and seed. The linear probe has its backbone too, frozen, without
    adapters, and sees training cases as they are, so that the backbone reads each once. The small convolutional network
    starts from random weights and trains whole.

    Args:
        config: of the run, as LightningCLI parsed it.
        suffix: which baseline.
        network: timm's name of the convolutional network.

    Raises:
        ValueError: the config is not one of a classification.
    """
    if "init_args" not in config["model"]:
        raise ValueError("baselines are of a classification; the config names model.class_path Classification there")
    changed = copy.deepcopy(config)
    changed.pop("config", None)
    model = changed["model"]["init_args"]
    model["adapter"] = None
    if suffix == "cnn":
        inputs = model["backbone"]["init_args"]["inputs"]
        model["backbone"] = {"class_path": "geomed.backbones.cnn.Cnn", "init_args": {"name": network, "inputs": inputs}}
        model["freeze"], model["weights"] = False, None
        if isinstance(model["head"], dict) and model["head"].get("init_args", {}).get("tokens") == "class":
            model["head"]["init_args"]["tokens"] = None  # it has no class token
    else:
        model["freeze"] = True
        changed["data"]["augment"] = None
    folder = changed["trainer"]["default_root_dir"]
    changed["trainer"]["default_root_dir"] = beside(folder, suffix)
    wanted = changed.get("ckpt_path")
    if isinstance(wanted, str) and Path(wanted).is_relative_to(folder):
        changed["ckpt_path"] = str(Path(beside(folder, suffix)) / Path(wanted).relative_to(folder))
    return changed


def beside(folder: str, suffix: str) -> str:
    """The folder of a baseline of the run in this one."""
    path = Path(folder)
    return str(path.with_name(f"{path.name}-{suffix}"))

"""A run's folder → its trained network: nothing is needed that the checkpoint holds already."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from jsonargparse import ArgumentError, ArgumentParser, get_loader

import geomed
import geomed.public  # (so that configs may name every class shortly)
from geomed.adapters.adapter import Adapter, base_state, merge
from geomed.adapters.files import is_pretraining, read_adapter
from geomed.backbones.backbone import weights_hash
from geomed.backbones.vit import ViT
from geomed.backbones.weights import load_all
from geomed.data.area import Masks, Reflectance
from geomed.data.scenes import Scenes
from geomed.data.sentinel2_series import Sentinel2Series
from geomed.data.source import Source
from geomed.inference.model import Units
from geomed.mapping.facts import Facts
from geomed.mapping.network import Network, reads_series
from geomed.tasks.segmentation import Segmentation
from geomed.tasks.task import adapt

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

_T = TypeVar("_T")

_log = logging.getLogger(__name__)

MEANING = "1"
"""Changes whenever the same weights begin to give other answers."""

_TRAINING = ("freeze", "weights", "loss", "optimisation")
"""What of a model's config only training needs."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trained network, on the CPU."""

    network: Network
    """Its adapters are folded into the weights if all of them can be."""

    facts: Facts
    """What else is known of it."""

    fingerprint: str
    """SHA-256 over the weights as they were trained and over everything that tells what is computed with them."""


def open_run(path: Path) -> Run:
    """Build the network of a run's folder, or of a checkpoint in one, and load what it has learned.

    Base weights come from the checkpoint, so nothing is fetched, and neither ``model.weights`` nor the data need be
    there. Where a file of adapters or a plan that the config names is gone, ``adapter.safetensors`` of the run tells
    what was attached.

    Raises:
        ValueError: there is no config or no checkpoint, one of them is broken, or they do not belong together.
    """
    checkpoint = _checkpoint(path)
    config_path = _config(checkpoint)
    config = _read_config(config_path)
    model = config.get("model")
    if isinstance(model, dict) and str(model.get("class_path", "")).rpartition(".")[2] == "Classification":
        raise ValueError(
            f"{config_path}: a Classification answers for whole images, a map needs an answer for every pixel; give a "
            "run of Segmentation, or take geomed predict for the answers of this one"
        )
    state, classes = _read_checkpoint(checkpoint)
    if not isinstance(model, dict) or "backbone" not in model or "head" not in model:
        raise ValueError(f"{config_path}: a config names model.backbone and model.head, this one does not; restore it")
    network, shape = _bare(model, config_path)
    base = {name: state[found] for name, found in _base_names(network, state).items()}
    load_all(network.backbone, base, where=str(checkpoint))
    adapters = _adapted(network, model.get("adapter"), config_path, checkpoint)
    load_all(network, state, where=str(checkpoint))
    network.eval().requires_grad_(requires_grad=False)
    if len(classes) != network.head.num_classes:
        raise ValueError(
            f"{checkpoint}: knows {len(classes)} classes ({', '.join(classes)}), the head answers for "
            f"{network.head.num_classes}; use the config that it was trained with"
        )
    fingerprint = _fingerprint(network, shape, adapters, classes)
    folded = _merged(network)
    series = reads_series(network)
    about = {
        "architecture": " ".join(
            part for part in (type(network.backbone).__name__, shape["backbone"].get("name")) if part
        ),
        "adapter": ", ".join(type(one).__name__ for one in adapters) + (" (merged)" if adapters and folded else ""),
        "head": type(network.head).__name__,
        "parameters": str(sum(parameter.numel() for parameter in network.parameters())),
        "framework": f"geomed {geomed.__version__}, torch {torch.__version__}",
        "file": f"checkpoint {checkpoint.name}",
    }
    facts = Facts(
        bands=network.backbone.inputs.bands,
        classes=classes,
        series=series,
        patch=network.backbone.spec.patch,
        about={name: told for name, told in about.items() if told},
        **_of_source(config.get("data"), config_path, patch=network.backbone.spec.patch),
    )
    return Run(network=network, facts=facts, fingerprint=fingerprint)


def _checkpoint(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(f"{path}: there is no such run, checkpoint or exported file; check the path")
    for name in ("best", "last"):
        found = path / "checkpoints" / f"{name}.ckpt"
        if found.is_file():
            return found
    raise ValueError(
        f"{path}: there is neither checkpoints/best.ckpt nor checkpoints/last.ckpt; give the folder of a finished run, "
        "such as runs/NAME, or the path of a checkpoint"
    )


def _config(checkpoint: Path) -> Path:
    """The config of the last training; those of tests and predictions stand beside it, and may name other data."""
    for folder in checkpoint.absolute().parents[:3]:
        found = [*folder.glob("config.yaml"), *folder.glob("logs/version_*/config.yaml")]
        if found:
            found.sort(key=lambda one: (_trains(one), int(re.sub(r"\D", "", one.parent.name) or 0)))
            return found[-1]
    raise ValueError(
        f"{checkpoint}: there is no config of its training (logs/version_N/config.yaml) beside it; leave the "
        "checkpoint in its run's folder, or give an exported file"
    )


def _trains(config: Path) -> bool:
    """Whether it is of `geomed fit`: those of other commands say how much to print, or what to return."""
    return re.search(r"^(verbose|return_predictions):", config.read_text(errors="replace"), re.MULTILINE) is None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = get_loader("yaml")(path.read_text(encoding="utf-8"))
    except Exception as error:  # the YAML parser's are its own
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not readable as a config ({line}); restore it") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: holds no config; restore it")  # noqa: TRY004  (the project raises ValueError for every broken rule)
    return config


def _read_checkpoint(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors and the classes."""
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        line = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path}: holds more than tensors and numbers, and is not read: {line}") from error
    except (EOFError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path}: the checkpoint is broken or cut off ({type(error).__name__}); use another"
        ) from error
    state = held.get("state_dict") if isinstance(held, dict) else None
    classes = held.get("classes") if isinstance(held, dict) else None
    if not isinstance(state, dict) or not isinstance(classes, list) or not classes:
        raise ValueError(f"{path}: no checkpoint of geomed fit, it holds no state_dict with classes; give one")
    return state, tuple(str(name) for name in classes)


def _bare(model: Mapping[str, Any], where: Path) -> tuple[Network, dict[str, Any]]:
    """Backbone and head with random weights, and what the config says of both."""
    given = {name: value for name, value in model.items() if name not in (*_TRAINING, "adapter")}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Segmentation, "model", skip={*_TRAINING, "adapter"})
    try:
        chosen = parser.parse_object({"model": given})
        init = chosen.model.backbone.init_args
        if issubclass(_named(chosen.model.backbone.class_path), ViT):
            init.pretrained, init.checkpoint = False, None
        parts = {"backbone": init.as_dict(), "head": chosen.model.head.as_dict()}
        shape = json.loads(json.dumps(parts, default=str))
        task: Segmentation = parser.instantiate(chosen).model
    except (ArgumentError, AttributeError, TypeError) as error:
        raise ValueError(f"{where}: {' '.join(str(error).split())}") from error
    return Network(task.backbone, task.head), shape


def _named(class_path: str) -> type:
    module, _, name = class_path.rpartition(".")
    return getattr(import_module(module), name)


def _base_names(network: Network, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Each tensor of the plain backbone → its name in the checkpoint, inside however many adapters (``….base.…``)."""
    found: dict[str, str] = {}
    for name in state:
        plain = ".".join(part for part in name.split(".") if part != "base").removeprefix("backbone.")
        if name.startswith("backbone.") and name.count(".base.") >= found.get(plain, "").count(".base."):
            found[plain] = name
    return {name: found[name] for name in network.backbone.state_dict() if name in found}


def _adapted(network: Network, given: object, config: Path, checkpoint: Path) -> tuple[Adapter, ...]:
    """Attach what the config names; the head and the adapters' tensors come from the checkpoint afterwards."""
    if given is None:
        return ()
    backbone, head = network.backbone, network.head
    try:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--adapter", type=Adapter | str | list[Adapter | str])
        wanted = parser.instantiate(parser.parse_object({"adapter": given})).adapter
    except (ArgumentError, ValueError) as error:
        wanted, problem = None, error
    if wanted is not None:
        wanted = wanted if isinstance(wanted, list) else [wanted]
        gone = [one for one in wanted if isinstance(one, str) and not Path(one).is_file()]
        if not gone:
            own = [one for one in wanted if not (isinstance(one, str) and is_pretraining(one))]
            return adapt(backbone, head, own)  # what a pre-training left is folded into the checkpoint's weights
        problem = ValueError(f"{gone[0]}: there is no such adapter file")
    recorded = next((one for one in _beside(checkpoint) if one.is_file()), None)
    if recorded is None:
        raise ValueError(
            f"{config}: the adapter that it names cannot be built ({' '.join(str(problem).split())}), and the run has "
            "no adapter.safetensors that tells it; put the file back, or start where its relative path counts from"
        )
    file = read_adapter(recorded)
    if file.base != weights_hash(base_state(backbone)):
        raise ValueError(
            f"{recorded}: was made on other weights than those of the checkpoint, and {config} names an adapter that "
            f"cannot be built ({' '.join(str(problem).split())}); put that file back"
        )
    _log.info("%s: adapters as in %s", config, recorded.name)
    return adapt(backbone, head, list(file.adapters))


def _beside(checkpoint: Path) -> list[Path]:
    """Where `geomed fit` writes the adapters of this run."""
    return [folder / "adapter.safetensors" for folder in checkpoint.absolute().parents[:2]]


def _merged(network: Network) -> bool:
    """Fold all adapters into the weights, or leave them attached where one of them cannot be."""
    try:
        merge(network.backbone)
    except ValueError:
        return False
    network.eval().requires_grad_(requires_grad=False)
    return True


def _fingerprint(
    network: Network, shape: Mapping[str, Any], adapters: Sequence[Adapter], classes: tuple[str, ...]
) -> str:
    """Before adapters are folded in, for sums of products differ in their last bits from machine to machine."""
    told = {
        "meaning": MEANING,
        "weights": weights_hash(network.state_dict()),
        "network": [type(network.backbone).__qualname__, type(network.head).__qualname__, shape],
        "adapters": [[type(one).__qualname__, dataclasses.asdict(one)] for one in adapters],  # type: ignore[call-overload]
        "bands": network.backbone.inputs.bands,
        "classes": classes,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def _of_source(data: object, where: Path, *, patch: int) -> dict[str, Any]:
    """Window, units, masks and names of bands as `Facts` names them."""
    given = data.get("source") if isinstance(data, dict) else None
    if not isinstance(given, dict):
        raise ValueError(f"{where}: a config names data.source, this one does not; restore it")  # noqa: TRY004  (likewise)
    kind, told = str(given.get("class_path", "")).rpartition(".")[2], given.get("init_args") or {}
    if kind not in {"Scenes", "Sentinel2Series"}:  # others say nothing about files, and need not be importable here
        window = told.get("window")
        found: dict[str, Any] = {"window": window if isinstance(window, int) and window > 0 else 16 * patch}
        if kind == "SimulatedSeason":  # writes its files as a plain area has them
            plain = Reflectance()
            found["units"] = _units((plain.scale, plain.offset, plain.nodata))
            found |= {"masks": Masks(), "min_clear": Sentinel2Series.min_clear}
        return found
    try:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--source", type=Source)
        source = cast("Scenes | Sentinel2Series", parser.instantiate(parser.parse_object({"source": given})).source)
    except (ArgumentError, ValueError) as error:
        raise ValueError(f"{where}: data.source cannot be read: {' '.join(str(error).split())}") from error
    images = source.images if isinstance(source, Scenes) else ()
    areas = source.areas if isinstance(source, Sentinel2Series) else ()
    units = {(one.scale, one.offset, one.nodata) for one in images}
    units |= {(one.reflectance.scale, one.reflectance.offset, one.reflectance.nodata) for one in areas}
    scalar = len(units) == 1 and not any(isinstance(number, tuple) for unit in units for number in unit)
    return {
        "window": source.window,
        "units": _units(units.pop()) if scalar else None,
        "masks": _one_of(area.masks for area in areas),
        "min_clear": source.min_clear if isinstance(source, Sentinel2Series) else None,
        "band_names": _one_of([*(one.band_names for one in images), *(one.band_names for one in areas)]),
    }


def _one_of(values: Iterable[_T | None]) -> _T | None:
    """What all of them are; None where they differ."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _units(told: tuple[Any, Any, float | None]) -> Units:
    return Units(scale=told[0], offset=told[1], nodata=told[2])

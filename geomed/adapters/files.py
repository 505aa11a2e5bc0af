"""Adapter files: the few trained tensors, what they are, and the base that they belong to."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import distributed

import geomed
from geomed.adapters.adapter import Adapter, adapter_state, attach, base_state, freeze_base
from geomed.backbones.backbone import weights_hash, whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn


PRETRAINING = "pretraining"
"""The fact that marks a file of a pre-training and names its objective; it is a part of the base of what follows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterFile:
    """What an adapter file holds."""

    adapters: tuple[Adapter, ...]
    """In the order in which they are attached."""

    base: str
    """SHA-256 of the backbone's weights, see `geomed.backbones.backbone.weights_hash`."""

    version: str
    """The version of geomed that wrote it."""

    facts: Mapping[str, Any]
    """What else was said at saving: bands, classes."""

    tensors: Mapping[str, Tensor]
    """The adapters' tensors by name, and those of the head behind ``head.``."""


def save_adapter(
    path: str | Path,
    backbone: nn.Module,
    adapters: Sequence[Adapter],
    *,
    head: nn.Module | None = None,
    facts: Mapping[str, Any] | None = None,
) -> int:
    """Write what the adapters attached to ``backbone`` have learned, and the head; returns the file's size in bytes.

    The JSON lies in the safetensors header: ``geomed`` (version), ``adapters`` (class and fields of each), ``base``
    (hash of the backbone's weights) and ``facts``. The file appears whole or not at all.

    Of several processes the first writes, and the others return 0. Where each holds a part of the tensors (FSDP), all
    of them have to call this.

    Raises:
        ValueError: nothing is attached.
    """
    path = Path(path)
    tensors = {f"backbone.{name}": value for name, value in adapter_state(backbone).items()}
    if not tensors:
        raise ValueError(f"{path}: nothing is attached to this {type(backbone).__name__}; attach an adapter first")
    if head is not None:
        tensors |= {f"head.{name}": value for name, value in head.state_dict().items()}
    tensors = {name: whole(value).contiguous().clone() for name, value in tensors.items()}
    about = _about(adapters, weights_hash(base_state(backbone)), facts or {})
    if distributed.is_available() and distributed.is_initialized() and distributed.get_rank() > 0:
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_file(tensors, part, metadata=about)
    _settle(part)
    part.replace(path)
    return path.stat().st_size


def _settle(path: Path) -> None:
    """Sort the header, whose facts safetensors writes in any order: the same run is to leave the same bytes."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # as it always is
            file.seek(8)
            file.write(text.ljust(size))


def file_size(backbone: nn.Module, adapters: Sequence[Adapter]) -> int:
    """Bytes of the file that `save_adapter` would write, without a head or facts; the backbone may lie on meta."""
    state = adapter_state(backbone)
    tensors = {f"backbone.{name}": torch.zeros(value.shape, dtype=value.dtype) for name, value in state.items()}
    return len(save(tensors, metadata=_about(adapters, 64 * "0", {})))


def _about(adapters: Sequence[Adapter], base: str, facts: Mapping[str, Any]) -> dict[str, str]:
    """What stands in the header."""
    return {
        "geomed": geomed.__version__,
        "adapters": json.dumps([{"class": _name(type(one)), "fields": dataclasses.asdict(one)} for one in adapters]),  # type: ignore[call-overload]
        "base": base,
        "facts": json.dumps(dict(facts)),
    }


def read_adapter(path: str | Path) -> AdapterFile:
    """Read an adapter file; classes are found among the adapters that are imported, nothing is executed.

    Raises:
        ValueError: the file is missing, broken, no adapter file, or of an adapter that is not imported.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such adapter file; check the path")
    try:
        with safe_open(path, framework="pt") as opened:
            about = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error}); copy it again") from error
    if not {"geomed", "adapters", "base"} <= set(about):
        raise ValueError(f"{path}: no adapter file of geomed, its header lacks adapters and base; load it as weights")
    known = {_name(one): one for one in _subclasses(Adapter)}
    adapters = []
    for entry in json.loads(about["adapters"]):
        if entry["class"] not in known:
            raise ValueError(f"{path}: the adapter {entry['class']} is not imported here; import its module first")
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in entry["fields"].items()}
        adapters.append(known[entry["class"]](**fields))
    return AdapterFile(
        adapters=tuple(adapters),
        base=about["base"],
        version=about["geomed"],
        facts=json.loads(about.get("facts", "{}")),
        tensors=tensors,
    )


def is_pretraining(path: str | Path) -> bool:
    """Whether a file is of a pre-training.

    Raises:
        ValueError: it is no adapter file.
    """
    return PRETRAINING in read_adapter(path).facts


def load_adapter(path: str | Path, backbone: nn.Module, *, head: nn.Module | None = None) -> AdapterFile:
    """Attach the adapters of a file to a plain backbone and load what they have learned, the head's tensors too.

    A file without a head, as a pre-training leaves, keeps the head as it is.

    Raises:
        ValueError: the backbone's weights are not those that the file was made on, or a tensor finds no place.
    """
    file = read_adapter(path)
    here = weights_hash(base_state(backbone))
    if here != file.base:
        raise ValueError(
            f"{path}: this adapter was made on a backbone with weights {file.base[:12]}, this one has {here[:12]}; "
            "load the base weights that it was trained on first"
        )
    for adapter in file.adapters:
        attach(backbone, adapter)
    freeze_base(backbone)
    _fill(backbone, adapter_state(backbone), file.tensors, "backbone.", where=str(path))
    if head is not None and any(name.startswith("head.") for name in file.tensors):
        _fill(head, head.state_dict(), file.tensors, "head.", where=str(path))
    return file


def _fill(module: nn.Module, own: Mapping[str, Tensor], given: Mapping[str, Tensor], part: str, *, where: str) -> None:
    mine = {name.removeprefix(part): value for name, value in given.items() if name.startswith(part)}
    wrong = sorted(set(own) ^ set(mine)) or [name for name in own if own[name].shape != mine[name].shape]
    if wrong:
        raise ValueError(
            f"{where}: {len(wrong)} tensors of the {part[:-1]} do not fit ({wrong[0]}); build the same one"
        )
    module.load_state_dict({**module.state_dict(), **mine})


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _subclasses(cls: type[Any]) -> list[type[Any]]:
    return [deeper for one in cls.__subclasses__() for deeper in (one, *_subclasses(one))]

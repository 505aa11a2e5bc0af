"""What every task shares: a backbone with its adapters and base weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from geomed.adapters.adapter import Adapter, attach, merge
from geomed.adapters.files import PRETRAINING, load_adapter
from geomed.backbones.weights import from_released_tsvit, load_all, read_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn


@dataclass(frozen=True, kw_only=True)
class BaseWeights:
    """Where the weights come from that training starts with."""

    path: str
    """A checkpoint of an earlier run, a safetensors file, or a released TSViT."""

    head: bool = True
    """Take the head from it too. False: the head starts anew, for other classes."""


def load_base(backbone: nn.Module, head: nn.Module, weights: BaseWeights) -> None:
    """Load base weights; every tensor of the backbone must arrive.

    A head with a Linear behind it (``remap``) keeps that Linear as drawn where the file has none.

    Raises:
        ValueError: the file is no weights file, or of another model.
    """
    state = read_weights(weights.path)
    if "temporal_token" in state:
        state = from_released_tsvit(state)
    inputs = {f"inputs.{name}": value for name, value in backbone.get_submodule("inputs").state_dict().items()}
    parts = {"backbone": dict(inputs) if "backbone.inputs.mean" not in state else {}, "head": {}}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        if part in parts:
            parts[part][rest] = value
    load_all(backbone, parts["backbone"], where=weights.path)
    if weights.head:
        fresh = {name: value for name, value in head.state_dict().items() if name.startswith("remap.")}
        load_all(head, fresh | parts["head"], where=f"{weights.path} (head; set weights.head false for other classes)")


def adapt(backbone: nn.Module, head: nn.Module, adapters: Sequence[Adapter | str]) -> tuple[Adapter, ...]:
    """Attach adapters in order; a path attaches what that file holds, with the head that it was trained with.

    What a pre-training left belongs to the base of all that follows: it is folded into the weights and trains no more.

    Returns:
        All adapters, those from files included, without what was folded in.

    Raises:
        ValueError: an adapter matches nothing, or a file belongs to another base, cannot be folded in or does not
            stand first.
    """
    attached: list[Adapter] = []
    for adapter in adapters:
        if isinstance(adapter, str):
            if attached:
                raise ValueError(f"{adapter}: an adapter file goes in before other adapters; put it first in the list")
            file = load_adapter(adapter, backbone, head=head)
            if PRETRAINING in file.facts:
                merge(backbone)
            else:
                attached += file.adapters
        else:
            attach(backbone, adapter)
            attached.append(adapter)
    return tuple(attached)

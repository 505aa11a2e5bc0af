"""Weights from files: every tensor must arrive, and nothing is ever unpickled that could run code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a PyTorch file that holds tensors alone (`weights_only`).

    A Lightning checkpoint gives its ``state_dict``.

    Raises:
        ValueError: the file is missing, broken, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such weights file; check the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path}: not a readable weights file ({_first_line(error)}); copy it again") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: weights must be a mapping from names to tensors, not {type(state).__name__}")
    return {name.removeprefix("module."): value for name, value in state.items()}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def load_all(module: nn.Module, state: Mapping[str, Tensor], *, where: str) -> None:
    """Load a state of which every tensor must arrive, and which must fill every tensor, with its shape.

    Raises:
        ValueError: tensors are left over, missing, or of another shape; nothing has been loaded then.
    """
    own = module.state_dict()
    left = sorted(set(state) - set(own))
    missing = sorted(set(own) - set(state))
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if left or missing or shapes:
        told = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for what, names in (("unknown", left), ("missing", missing), ("of another shape", shapes))
            if names
        ]
        raise ValueError(
            f"{where}: these are weights of another model, {'; '.join(told)} of {len(own)} tensors; "
            "build the model that they were saved from"
        )
    module.load_state_dict(dict(state))


_RELEASED = (
    (r"to_patch_embedding\.1\.(weight|bias)", r"backbone.patch.\1"),
    (r"to_temporal_embedding_input\.(weight|bias)", r"backbone.dates.day.\1"),
    (r"temporal_token", r"backbone.class_tokens.weight"),
    (r"space_token", r"backbone.space_token.weight"),
    (r"space_pos_embedding", r"backbone.position.weight"),
    (r"(temporal|space)_transformer\.norm\.(weight|bias)", r"backbone.\1.norm.\2"),
    (
        r"(temporal|space)_transformer\.layers\.(\d+)\.0\.norm\.(weight|bias)",
        r"backbone.\1.blocks.\2.attention.norm.\3",
    ),
    (
        r"(temporal|space)_transformer\.layers\.(\d+)\.0\.fn\.to_qkv\.(weight|bias)",
        r"backbone.\1.blocks.\2.attention.attn.qkv.\3",
    ),
    (
        r"(temporal|space)_transformer\.layers\.(\d+)\.0\.fn\.to_out\.0\.(weight|bias)",
        r"backbone.\1.blocks.\2.attention.attn.proj.\3",
    ),
    (r"(temporal|space)_transformer\.layers\.(\d+)\.1\.norm\.(weight|bias)", r"backbone.\1.blocks.\2.mlp.norm.\3"),
    (
        r"(temporal|space)_transformer\.layers\.(\d+)\.1\.fn\.net\.0\.(weight|bias)",
        r"backbone.\1.blocks.\2.mlp.mlp.fc1.\3",
    ),
    (
        r"(temporal|space)_transformer\.layers\.(\d+)\.1\.fn\.net\.3\.(weight|bias)",
        r"backbone.\1.blocks.\2.mlp.mlp.fc2.\3",
    ),
    (r"mlp_head\.0\.(weight|bias)", r"head.norm.\1"),
    (r"mlp_head\.1\.(weight|bias)", r"head.linear.\1"),
    (r"mlp_change\.(weight|bias)", r"head.remap.\1"),
)


def released_key(name: str) -> str:
    """A tensor's name in the released TSViT (DeepSatModels, commit 782f736) → its name here.

    Raises:
        ValueError: no released model has a tensor of this name.
    """
    for pattern, target in _RELEASED:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, target, name).replace("backbone.space.", "backbone.spatial.")
    raise ValueError(f"{name} is no tensor of a released TSViT; load it into the model that it was saved from")


def from_released_tsvit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The key layout of the released TSViT → ours, ``backbone.…`` and ``head.…``.

    The classification model's date table of 365 rows gets a 366th, a copy of its last. Bands and normalisation are not
    in those files: build `Inputs` with PASTIS's.

    Raises:
        ValueError: a key that no released model has.
    """
    ours = {released_key(name): value for name, value in state.items()}
    table = ours.get("backbone.dates.day.weight")
    if table is not None and table.shape[1] == 365:
        ours["backbone.dates.day.weight"] = torch.cat((table, table[:, -1:]), 1)
    return ours

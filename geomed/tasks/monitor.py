"""How well features tell labelled things apart while they are being learned without labels."""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor

from geomed.evaluation.labelled_cases import LabelledCases
from geomed.evaluation.probing import probe
from geomed.pixels import IGNORE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geomed.backbones.vit import ViT
    from geomed.tokens import Tokens

_PATCHES = 64
"""So many patches of an image are looked at, evenly spread."""

_NEIGHBOURHOOD = 4
"""Windows whose places lie in one square of so many windows belong together, whatever their date."""


class Monitor:
    """Gathers features with their labels, and lets a k-NN and a linear probe judge them (`probe`).

    Of maps each patch counts that mostly shows one class, with the class token and registers left out; of cases the
    image vector: the class token, or the mean of the patches where there is none. What is judged comes from other
    patients, or other places, than what is learned from.
    """

    def __init__(self, backbone: ViT) -> None:
        """``backbone`` says how its tokens lie."""
        self.patch, self.class_token = backbone.spec.patch, backbone.spec.class_token
        self.source: object = None
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def of(self, source: object) -> None:
        """Say where the labels come from.

        Raises:
            ValueError: cases there may show several things at once.
        """
        if isinstance(source, LabelledCases) and source.several:
            raise ValueError("the monitor tells apart cases of one class each, these show several; leave monitor out")
        self.source = source

    def add(self, tokens: Tokens, batch: dict[str, Tensor]) -> None:
        """Keep the features of a batch.

        Raises:
            ValueError: the batch has no labels.
        """
        if "label" in batch:
            features = tokens.data[:, 0] if self.class_token else tokens.patches().mean(1)
            groups = torch.tensor([self._person(int(case)) for case in batch["case"]])
            self._keep(features, batch["label"], groups)
            return
        if "labels" not in batch:
            raise ValueError("the monitor needs labels, its source gives none; name another, or leave monitor out")
        labels = patch_labels(batch["labels"], self.patch)
        count = min(_PATCHES, labels.shape[1])
        chosen = torch.linspace(0, labels.shape[1] - 1, count).round().long().to(labels.device)
        side = torch.full((), max(batch["labels"].shape[-2:]) * _NEIGHBOURHOOD)
        rows, columns = (batch["read"][:, :2].cpu() // side).unbind(1)
        groups = (rows * 100_003 + columns)[:, None].expand(-1, count)
        self._keep(tokens.patches()[:, chosen].flatten(0, 1), labels[:, chosen].flatten(), groups.flatten())

    def _keep(self, features: Tensor, labels: Tensor, groups: Tensor) -> None:
        self._kept.append((features.detach().float().cpu(), labels.long().cpu(), groups.long().cpu()))

    def _person(self, case: int) -> int:
        """A number for the patient of a case; the case's own where nobody knows."""
        known = self.source.patient_id(case) if isinstance(self.source, LabelledCases) else None
        return -1 - case if known is None else crc32(known.encode())

    def gathered(self, device: torch.device) -> list[Tensor]:
        """Features [n, D], labels [n] and groups [n] of this process, which forgets them."""
        kept, self._kept = self._kept, []
        return [torch.cat(part).to(device) for part in zip(*kept, strict=True)] if kept else []

    def judged(self, tensors: Sequence[Tensor]) -> dict[str, float]:
        """Macro F1 of k-NN and linear probe; empty where nothing was gathered."""
        if not tensors:
            return {}
        features, labels, groups = (tensor.cpu().numpy() for tensor in tensors)
        found = probe(features, labels, groups)
        return {"knn": found.knn, "linear": found.linear}


def patch_labels(labels: Tensor, patch: int) -> Tensor:
    """The class [B, n] of each patch that holds one on at least half of its pixels, IGNORE elsewhere."""
    height, width = labels.shape[-2:]
    labels = F.pad(labels, (0, -width % patch, 0, -height % patch), value=IGNORE)
    known = labels[labels != IGNORE]
    count = int(known.max()) + 1 if known.numel() else 1
    shares = torch.stack([F.avg_pool2d((labels == one).float(), patch) for one in range(count)], -1)
    most, which = shares.max(-1)
    return torch.where(most >= 0.5, which, IGNORE).flatten(1)

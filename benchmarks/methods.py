"""The methods that the adapter benchmarks compare, in one list. Not a script: imported by those beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from geomed.adapters.adapter import Adapted, Adapter, attach, detach
from geomed.adapters.allocation_rule import AllocationRule
from geomed.adapters.candidate import candidates
from geomed.adapters.plan import make_plan
from geomed.adapters.sensitivity import measure_sensitivity
from geomed.public import (
    DVPT,
    SNELL,
    SNELLA,
    SPT,
    SSF,
    VPT,
    AdaptFormer,
    BitFit,
    Columns,
    Convpass,
    EarthAdapter,
    ExPLoRA,
    FacT,
    LayerNormTuning,
    LoRA,
    Peft,
    Prompts,
    Rein,
    RepAdapter,
    SideNetwork,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from geomed.adapters.place import Place

Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Training:
    """What a method may look at before it chooses: batches of the training part and their loss."""

    loss: Callable[[Batch], Tensor]
    """Through the backbone and the head."""

    batches: Callable[[], Iterable[Batch]]
    """Always the same."""

    head: nn.Module
    """What else the loss goes through."""


LINEARS = ("attn.qkv", "attn.proj", "fc1", "fc2")


@dataclass(frozen=True, kw_only=True)
class InputVector(Adapter):
    """One trained vector added to every token at the input: the least that carries gradients to the first block."""

    paper: ClassVar[str] = "–"

    def wrap(self, place: Place) -> Adapted | None:
        """Wrap the stem of a ViT, or the patch embedding of a TSViT."""
        if place.path == "stem":
            return _Shifted(place.module, place.root.norm.weight)
        if place.path == "patch":
            return _Shifted(place.module, place.plain.bias)
        return None


class _Shifted(Adapted):
    def __init__(self, base: nn.Module, like: Tensor) -> None:
        super().__init__(base)
        self.shift = nn.Parameter(torch.zeros_like(like))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.shift


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way of training a backbone."""

    name: str
    """As a person calls it."""

    adapters: Callable[[nn.Module, Training], list[Adapter]] = field(default=lambda *_: [])
    """What is attached, given the plain backbone and what it will be trained on."""

    everything: bool = False
    """Full fine-tuning."""

    floor: bool = False
    """Not a method, but what it is held against."""

    def attach(self, backbone: nn.Module, training: Training) -> list[Adapter]:
        """Make a plain backbone train what this method trains; returns what it attached."""
        detach(backbone)
        adapters = self.adapters(backbone, training)
        backbone.requires_grad_(requires_grad=self.everything)
        for adapter in adapters:
            attach(backbone, adapter)
        return adapters


def one(adapter: Adapter) -> Callable[[nn.Module, Training], list[Adapter]]:
    """The same adapter for every backbone."""
    return lambda *_: [adapter]


def planned(rule: AllocationRule, share: float) -> Callable[[nn.Module, Training], list[Adapter]]:
    """SPT with a share of the backbone's parameters, by the sensitivities of this backbone on these batches."""

    def adapters(backbone: nn.Module, training: Training) -> list[Adapter]:
        found = measure_sensitivity(backbone, training.loss, training.batches(), head=training.head)
        budget = round(share * sum(one.size for one in candidates(backbone)))
        return [SPT(plan=make_plan(backbone, found, budget=budget, rule=rule))]

    return adapters


def methods(width: int) -> tuple[Method, ...]:
    """All of them, sized for a backbone of so many features: as published from 384 on, narrower below."""
    rank, narrow, tokens, share = (8, 64, 100, 0.005) if width >= 384 else (4, 16, 20, 0.03)

    def low_rank(method: str, **more: object) -> Callable[[nn.Module, Training], list[Adapter]]:
        return one(Peft(method=method, options={"r": rank, **more}))

    return (
        Method(name="Frozen, linear head", floor=True),
        Method(name="One input vector", adapters=one(InputVector()), floor=True),
        Method(name="Full fine-tuning", everything=True, floor=True),
        Method(name="LoRA, Q and V", adapters=one(LoRA(rank=rank, alpha=rank))),
        Method(name="LoRA, all linears", adapters=one(LoRA(rank=rank, alpha=rank, parts=(), targets=LINEARS))),
        Method(name="BitFit", adapters=one(BitFit())),
        Method(name="LayerNormTuning", adapters=one(LayerNormTuning())),
        Method(name="SSF", adapters=one(SSF())),
        Method(name="AdaptFormer", adapters=one(AdaptFormer(bottleneck=narrow))),
        Method(name="Convpass", adapters=one(Convpass())),
        Method(name="RepAdapter", adapters=one(RepAdapter())),
        Method(name="FacT, TT", adapters=one(FacT(rank=2 * rank))),
        Method(name="FacT, TK", adapters=one(FacT(rank=4 * rank, form="tk"))),
        Method(name="VPT, shallow", adapters=one(VPT(count=10, deep=False))),
        Method(name="VPT, deep", adapters=one(VPT(count=10))),
        Method(name="Prompts", adapters=one(Prompts(count=8))),
        Method(name="DVPT, paper", adapters=one(DVPT())),
        Method(name="DVPT, released", adapters=one(DVPT(mode="released"))),
        Method(name="EarthAdapter", adapters=one(EarthAdapter(bottleneck=narrow))),
        Method(name="Rein", adapters=one(Rein(tokens=tokens, rank=2 * rank))),
        Method(name="ExPLoRA", adapters=one(ExPLoRA(rank=8 * rank))),
        Method(name="SPT, LoRA", adapters=planned(AllocationRule(rank=rank), share)),
        Method(name="SPT, Adapter", adapters=planned(AllocationRule(structure="adapter", rank=rank), share)),
        Method(name="SNELL", adapters=one(SNELL(rank=rank))),
        Method(name="SNELLA", adapters=one(SNELLA(rank=rank))),
        Method(name="Columns, random (PaCA)", adapters=one(Columns(count=rank))),
        Method(
            name="Columns, heads (S2FT)", adapters=one(Columns(count=8 * rank, heads=1, targets=("attn.proj", "fc2")))
        ),
        Method(name="SideNetwork (DTL)", adapters=one(SideNetwork())),
        Method(name="peft: DoRA", adapters=low_rank("LORA", lora_alpha=rank, use_dora=True)),
        Method(name="peft: MiSS", adapters=low_rank("MISS")),
        Method(name="peft: HiRA", adapters=low_rank("HIRA")),
        Method(name="peft: OFT", adapters=one(Peft(method="OFT", options={"r": 0, "oft_block_size": 4 * rank}))),
        Method(name="peft: VeRA", adapters=one(Peft(method="VERA", options={"r": 32 * rank}))),
    )

"""What trains while a network is pre-trained further on other images: a block or two whole, the rest by low rank."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call

from geomed.adapters.adapter import Adapted, Adapter
from geomed.adapters.lora import LoRA
from geomed.adapters.tune import Tuned
from geomed.backbones.block import Block, WholeBlock
from geomed.backbones.tsvit import Learned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geomed.adapters.place import Place


@dataclass(frozen=True, kw_only=True)
class ExPLoRA(Adapter):
    """Trains some blocks whole, low-rank updates of q and v in all others, every norm and the class token.

    Khanna, Irgau, Lobell and Ermon, ICML 2025 (arXiv 2406.10973), section 4.1: D-[L]-r64 is the default here. It is the
    structure alone; what it is trained on is the task's affair (`geomed.tasks.pretraining.Pretraining`). All else stays
    frozen, LayerScale of the other blocks and positions too.
    """

    paper: ClassVar[str] = "Khanna, Irgau, Lobell and Ermon, ICML 2025"

    blocks: tuple[int, ...] = (-1,)
    """Blocks of each stage that train whole, counted from 0, or from the end with negative numbers; may be empty."""

    rank: int = 64
    """Width of the update of each q and v in the other blocks; 0 makes none."""

    alpha: float = 1.0
    """That update is scaled by alpha / rank: in the published weights by 1 / 64."""

    parts: tuple[Literal["q", "k", "v"], ...] = ("q", "v")
    """Which slices of the fused qkv have one."""

    norms: bool = True
    """Train all norms, the last one and those within attention too."""

    class_token: bool = True
    """Train the class token where the network has one (in TSViT its class tokens and the space token)."""

    registers: bool = False
    """Train the register tokens of a ViT that has them."""

    patch_embed: bool = False
    """Train the patch embedding of a ViT: for bands that it was not made for (section 5, multi-spectral images)."""

    def __post_init__(self) -> None:
        """Refuse a structure in which nothing trains, and what `LoRA` refuses."""
        if self.rank:
            self._low_rank()
        elif not (self.blocks or self.norms or self.class_token or self.registers or self.patch_embed):
            raise ValueError("something must train: give blocks, a rank, norms, class_token, registers or patch_embed")

    def _low_rank(self) -> LoRA:
        return LoRA(rank=self.rank, alpha=self.alpha, parts=self.parts)

    def wrap(self, place: Place) -> Adapted | None:
        """Wrap a block that trains whole, a norm, a qkv or what holds the class token.

        Raises:
            ValueError: there is no such block, a block without a fused qkv, or what is to be copied is adapted already.
        """
        plain = place.plain
        if isinstance(plain, (Block, WholeBlock)):
            block = place.block()
            if block is not None and self.blocks and block.among(self.blocks):
                return Tuned(_untouched(place))
            if self.rank and not any(name.endswith("qkv") for name, _ in plain.named_modules()):
                raise ValueError(
                    f"{place.path}: low-rank updates need a fused qkv, and this block has none; give rank 0"
                )
            return None
        if isinstance(plain, VisionTransformer):
            names = self._trained_names(plain)
            return TunedParameters(_untouched(place), names) if names else None
        if isinstance(plain, Learned):
            return Tuned(_untouched(place)) if self.class_token and not place.matches(("position",)) else None
        if self.norms and _is_norm(place.path) and any(True for _ in plain.parameters()):
            return Tuned(_untouched(place))
        return self._low_rank().wrap(place) if self.rank else None

    def _trained_names(self, stem: VisionTransformer) -> list[str]:
        """What trains in the stem of a ViT, and with it the norms there, which `wrap` is not asked about then.

        Raises:
            ValueError: registers are to train, and there are none.
        """
        if self.registers and stem.reg_token is None:
            raise ValueError("registers are to train, and this network has none; leave registers out")
        names = ["cls_token"] if self.class_token and stem.cls_token is not None else []
        names += ["reg_token"] if self.registers else []
        if self.patch_embed:
            names += [f"patch_embed.{name}" for name, _ in stem.patch_embed.named_parameters()]
        norms = [name for name, _ in stem.named_parameters() if _is_norm(name.rpartition(".")[0])]
        return [*names, *(name for name in norms if self.norms and name not in names)] if names else []


def _is_norm(path: str) -> bool:
    return "norm" in path.rpartition(".")[2]


def _untouched(place: Place) -> nn.Module:
    """The module, of which a copy is to train.

    Raises:
        ValueError: an adapter inside it trains already, and would be left behind by the copy.
    """
    if any(isinstance(module, Adapted) for module in place.module.modules()):
        raise ValueError(f"{place.path}: ExPLoRA trains a copy, and this is adapted already; attach ExPLoRA first")
    return place.module


class TunedParameters(Adapted):
    """A module in which copies of some parameters train in their stead."""

    mergeable = True

    def __init__(self, base: nn.Module, names: Sequence[str]) -> None:
        """``names`` are the parameters' within ``base``; the copies start as they are."""
        super().__init__(base)
        self.names = tuple(names)
        self.copies = nn.ParameterList(base.get_parameter(name).detach().clone() for name in names)

    def forward(self, x: object) -> Tensor:
        """base(x) with the copies."""
        return functional_call(self.base, dict(zip(self.names, self.copies, strict=True)), (x,))

    def merged(self) -> nn.Module:
        """The module with the copies in it."""
        new = copy.deepcopy(self.base)
        for name, trained in zip(self.names, self.copies, strict=True):
            holder, _, last = name.rpartition(".")
            new.get_submodule(holder).register_parameter(last, nn.Parameter(trained.detach().clone()))
        return new

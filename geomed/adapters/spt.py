"""Training what a plan of a backbone's sensitivity names."""

from __future__ import annotations

import copy
from collections.abc import Sequence  # noqa: TC003  (annotations are evaluated in the tests)
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor, nn

from geomed.adapters.adapter import Adapted, Adapter, base_state, innermost
from geomed.adapters.lora import LoRA
from geomed.adapters.plan import Choice, Plan
from geomed.adapters.sparse_linear import changed, sparse_linear
from geomed.backbones.backbone import weights_hash

if TYPE_CHECKING:
    from geomed.adapters.place import Place

_CHECKED = "spt: the plan is for this network"
_PARTS: tuple[Literal["q", "k", "v"], ...] = ("q", "k", "v")
_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class SPT(Adapter):
    """Sensitivity-aware parameter tuning (He et al., ICCV 2023): trains the weights that a task's loss depends on most.

    ``geomed sensitivity`` makes the plan. Matrices with many sensitive entries get a low-rank update B A, as they are
    in the reference code without a scale, or a bottleneck; sensitive vectors train whole; what else is sensitive
    trains entry by entry, as changes of single weights.

    The reference code also trains the class token, leaves single entries of norms out though it counts them, and drops
    a tenth of what goes into and comes out of its modules; here nothing more trains than was planned, nothing less,
    and nothing is dropped.
    """

    paper: ClassVar[str] = "He et al., ICCV 2023"

    plan: str | dict[str, Any] | Plan
    """What trains: a plan, its content, or the path of its file."""

    init: Literal["zero", "reference"] = "zero"
    """``zero``: updates start from zero. ``reference``: low-rank updates and bottlenecks start as the reference code
    leaves them, both matrices drawn from N(0, 0.02²) cut at ±2, so that the network changes before it is trained."""

    def __post_init__(self) -> None:
        """Read the plan: whatever becomes of its file, this adapter stays what it is."""
        object.__setattr__(self, "plan", Plan.of(self.plan))

    @property
    def content(self) -> Plan:
        """The plan."""
        return Plan.of(self.plan)

    @property
    def identity(self) -> bool:
        """Not with the reference's start, if there is anything that it starts."""
        structures = {"lora", "adapter"}
        return self.init == "zero" or not any(choice.trains in structures for choice in self.content.choices)

    def wrap(self, place: Place) -> Adapted | None:
        """Wrap a Linear or a norm of which something trains.

        Raises:
            ValueError: the plan was made for another backbone, or for other weights.
        """
        plan = self.content
        if _CHECKED not in place.shared:
            _refuse_foreign(plan, place.root)
            place.shared[_CHECKED] = nn.Identity()
        choices = plan.of_modules.get(place.path, ())
        if not choices:
            return None
        plain = place.plain
        if isinstance(plain, nn.LayerNorm):
            return ChangedNorm(place.module, plain, choices)
        if not isinstance(plain, nn.Linear):
            raise ValueError(f"{place.path}: a plan is for Linears and norms, this is a {type(plain).__name__}")  # noqa: TRY004  (the project raises ValueError for every broken rule)
        inside = place
        if any(choice.trains in {"entries", "all"} for choice in choices):
            inside = replace(place, module=ChangedLinear(place.module, plain, choices))
        structured = [choice for choice in choices if choice.trains in {"lora", "adapter"}]
        if structured and plan.rule.structure == "lora":
            return self._lora(inside, structured)
        if structured:
            return Bottlenecked(inside.module, plain.weight, structured, self)
        return cast("ChangedLinear", inside.module)

    def _lora(self, place: Place, choices: Sequence[Choice]) -> Adapted | None:
        rank = self.content.rule.rank
        named = {choice.candidate.operation for choice in choices}
        parts = tuple(part for part in _PARTS if part in named)
        found = LoRA(rank=rank, alpha=rank, targets=(place.path,), parts=parts).wrap(place)
        if self.init == "reference" and found is not None:
            for name in ("down", "up"):
                nn.init.trunc_normal_(found.get_parameter(name), std=_STD)
        return found


def _refuse_foreign(plan: Plan, root: nn.Module) -> None:
    state = base_state(root)
    for choice in plan.choices:
        one = choice.candidate
        shape = tuple(state[one.tensor].shape) if one.tensor in state else ()
        if not shape or shape[0] < one.rows[1] or (one.kind == "matrix" and shape[1:] != (one.columns,)):
            told = f"is {shape}" if shape else "is not there"
            raise ValueError(
                f"the plan is for another backbone: {one} {told} in this {type(root).__name__}; make one for it "
                "with geomed sensitivity"
            )
    here = weights_hash(state)
    if here != plan.base:
        raise ValueError(
            f"the plan was made on weights {plan.base[:12]}, this {type(root).__name__} has {here[:12]}: what is "
            "sensitive depends on them; load those weights first, or make a new plan with geomed sensitivity"
        )


class Changes(nn.Module):
    """Trained changes of a tensor: at some places of it, or everywhere."""

    places: Tensor | None

    def __init__(self, tensor: Tensor, choices: Sequence[Choice]) -> None:
        """``choices`` are those of ``tensor`` that train entries, or all."""
        super().__init__()
        width = tensor[0].numel()
        found = np.concatenate(
            [
                choice.candidate.rows[0] * width
                + (choice.places() if choice.trains == "entries" else np.arange(choice.candidate.size))
                for choice in choices
            ]
        )
        few = torch.int32 if tensor.numel() < 2**31 else torch.int64
        places = None if len(found) == tensor.numel() else torch.from_numpy(found).to(tensor.device, few)
        self.register_buffer("places", places)
        self.values = nn.Parameter(tensor.new_zeros(len(found)))

    def forward(self, tensor: Tensor) -> Tensor:
        """The tensor with its changes."""
        return changed(tensor, self.values, self.places)


def _changes(plain: nn.Module, choices: Sequence[Choice], name: str) -> Changes | None:
    own = [one for one in choices if one.candidate.tensor.endswith(f".{name}") and one.trains in {"entries", "all"}]
    return Changes(plain.get_parameter(name), own) if own else None


class ChangedLinear(Adapted):
    """A Linear with changes of single weights and of its bias."""

    mergeable = True

    def __init__(self, base: nn.Module, plain: nn.Linear, choices: Sequence[Choice]) -> None:
        """``plain`` is the Linear inside ``base``."""
        super().__init__(base)
        self.of_weight = _changes(plain, choices, "weight")
        self.of_bias = _changes(plain, choices, "bias")

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """In one matrix product, unless another adapter is within."""
        if type(self.base) is nn.Linear:
            return self._product(x, self.base.weight, self.base.bias)
        plain = innermost(self.base)
        bias = None if self.of_bias is None else torch.zeros_like(plain.get_parameter("bias"))
        y = self.base(x)
        if self.of_weight is None:
            return y if bias is None or self.of_bias is None else y + self.of_bias(bias)
        return y + self._product(x, torch.zeros_like(plain.get_parameter("weight")), bias)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.of_bias is not None and bias is not None:
            bias = self.of_bias(bias)
        if self.of_weight is None:
            return F.linear(x, weight, bias)
        places = self.of_weight.places
        if places is None:
            return F.linear(x, self.of_weight(weight), bias)
        return sparse_linear(x, weight, bias, self.of_weight.values, places)

    def merged(self) -> nn.Module:
        """Weights and changes."""
        return _merged(self.base, self.of_weight, self.of_bias)


class ChangedNorm(Adapted):
    """A LayerNorm with changes of its weight and bias."""

    mergeable = True

    def __init__(self, base: nn.Module, plain: nn.LayerNorm, choices: Sequence[Choice]) -> None:
        """``plain`` is the norm inside ``base``."""
        super().__init__(base)
        self.shape, self.eps = tuple(plain.normalized_shape), plain.eps
        self.of_weight = _changes(plain, choices, "weight")
        self.of_bias = _changes(plain, choices, "bias")

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """In one kernel, unless another adapter is within."""
        if isinstance(self.base, nn.LayerNorm):
            return self._norm(x, self.base.weight, self.base.bias)
        plain = innermost(self.base)
        weight, bias = (torch.zeros_like(plain.get_parameter(name)) for name in ("weight", "bias"))
        return self.base(x) + self._norm(x, weight, bias)

    def _norm(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        weight = weight if self.of_weight is None else self.of_weight(weight)
        bias = bias if self.of_bias is None or bias is None else self.of_bias(bias)
        return F.layer_norm(x, self.shape, weight, bias, self.eps)

    def merged(self) -> nn.Module:
        """Weights and changes."""
        return _merged(self.base, self.of_weight, self.of_bias)


@torch.no_grad()
def _merged(plain: nn.Module, of_weight: Changes | None, of_bias: Changes | None) -> nn.Module:
    new = copy.deepcopy(plain)
    for name, changes in (("weight", of_weight), ("bias", of_bias)):
        if changes is not None:
            new.get_parameter(name).copy_(changes(new.get_parameter(name)))
    return new


class Bottlenecked(Adapted):
    """A Linear with bottlenecks: y + U gelu(D y + b) + c on some of its rows y, on those alone.

    Beside a projection that ends attention, D reads the projection's input instead, as in the reference code.
    """

    def __init__(self, base: nn.Module, weight: Tensor, choices: Sequence[Choice], adapter: SPT) -> None:
        """``weight`` is that of the Linear inside ``base``."""
        super().__init__(base)
        self.beside = choices[0].candidate.operation == "proj"
        self.parts = tuple("qkv".find(choice.candidate.operation) for choice in choices)
        rank = adapter.content.rule.rank
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for one in (choice.candidate for choice in choices):
            read = one.columns if self.beside else one.height
            down = nn.Linear(read, rank, device=weight.device, dtype=weight.dtype)
            up = nn.Linear(rank, one.height, device=weight.device, dtype=weight.dtype)
            for tensor in (down.bias, up.bias, up.weight):
                nn.init.zeros_(tensor)
            if adapter.init == "reference":
                for tensor in (down.weight, up.weight):
                    nn.init.trunc_normal_(tensor, std=_STD)
            self.down.append(down)
            self.up.append(up)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """base(x), and what the bottlenecks add to its rows."""
        y = self.base(x)
        if self.parts == (-1,):
            return y + self.up[0](F.gelu(self.down[0](x if self.beside else y)))
        slices = list(torch.chunk(y, 3, -1))
        for part, down, up in zip(self.parts, self.down, self.up, strict=True):
            slices[part] = slices[part] + up(F.gelu(down(slices[part])))
        return torch.cat(slices, -1)

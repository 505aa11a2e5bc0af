"""Updates of weights that Hugging Face's package peft computes, as adapters like the others."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping  # noqa: TC003  (jsonargparse reads the annotations)
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geomed.adapters.adapter import Adapted, Adapter
from geomed.adapters.peft_methods import check_options, from_weights, known_method

if TYPE_CHECKING:
    from geomed.adapters.place import Place

_NAME = "base"  # of the one module in the container that peft is given
_REFUSALS = (AssertionError, KeyError, RuntimeError, TypeError, ValueError, UserWarning)


@dataclass(frozen=True, kw_only=True)
class Peft(Adapter):
    """One of peft's updates of weights (Mangrulkar et al., 2022), in each Linear that is named.

    `LoRA` is geomed's own: it takes a fused qkv slice by slice, where peft sees one matrix.

    | method | W becomes | published |
    |---|---|---|
    | LORA | W + s B A | Hu et al., ICLR 2022 |
    | – ``use_rslora``, ``use_dora`` | s by the root of r; length and direction apart | arXiv 2312.03732, 2402.09353 |
    | – ``init_lora_weights: pissa`` | W + s (B A - B0 A0), from the SVD of W | arXiv 2404.02948 |
    | – ``pissa_niter_16``, ``olora``, ``orthogonal`` | the same, from a faster SVD, a QR, or drawn | arXiv 2406.01775 |
    | – ``mica`` | W + s B A, B from the SVD of W and frozen | arXiv 2604.01694 |
    | LOHA | W + s (B A) * (D C) | arXiv 2108.06098 |
    | LOKR | W + s C x (B A), a Kronecker product | arXiv 2309.14859 |
    | OFT | W R, R orthogonal by blocks | arXiv 2306.07280 |
    | IA3 | diag(l) W; W diag(l) for ``fc2`` | arXiv 2205.05638 |
    | VERA | W + diag(b) B diag(d) A, B and A drawn | arXiv 2310.11454 |
    | FOURIERFT | W + a few frequencies | arXiv 2405.03003 |
    | HRA | W H, r Householder reflections | arXiv 2405.17484 |
    | MISS | W + D, repeated; ``init_weights``: ``bat`` (Bone), ``mini`` | arXiv 2409.15371 |
    | RANDLORA | W + scaled products that are drawn | arXiv 2502.00987 |
    | SHIRA | W + a few entries | arXiv 2406.13175 |
    | WAVEFT | W + a few wavelet coefficients | arXiv 2505.12532 |
    | C3A | W + circulant blocks | arXiv 2407.19342 |
    | DELORA | W + a normalised B A, scaled | arXiv 2503.18225 |
    | GRALORA | W + B A, block by block | arXiv 2505.20355 |
    | HIRA | W + W * (B A) | Huang et al., ICLR 2025 |
    | ROAD | R W, R rotations of pairs | arXiv 2409.00119 |
    | PSOFT | W + B (R - 1) A, B and A from the SVD of W | openreview.net/forum?id=FSHrinMArK |
    | PEANUT | W + a small network of W | arXiv 2410.01870 |
    | GLORA | W + W * A + B, bias + bias * D + E + W C | arXiv 2306.07967 |

    LORA, LOHA, LOKR, IA3, HRA and HIRA also go into a Conv2d. Each starts as the identity, C3A only with
    ``init_weights: true``. Each merges, but for C3A, which peft computes in single precision. `torch.compile` takes
    each as one graph, but for LOHA, LOKR, SHIRA and WAVEFT.
    """

    paper: ClassVar[str] = "as its method says; Mangrulkar et al., 2022, for peft"

    method: str
    """Its name in the table."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of peft's config of this method, such as ``r``, numbers and texts; what is not given is peft's default."""

    targets: tuple[str, ...] = ("attn.qkv", "attn.proj", "fc1", "fc2")
    """Which Linear or Conv2d modules: shell-style patterns of paths or of their ends."""

    def __post_init__(self) -> None:
        """Refuse what peft does not know, or what is known to be wrong.

        Raises:
            ValueError: such a method or option, or peft is not installed.
        """
        check_options(self.method, self.options)
        if not self.targets:
            raise ValueError("targets must name modules, not none; leave them out for the Linears of all blocks")
        self._config(feedforward=False)

    @property
    def identity(self) -> bool:
        """Whether the network starts unchanged: not with C3A as it was published."""
        return self.method != "C3A" or self.options.get("init_weights") is True

    def wrap(self, place: Place) -> Adapted | None:
        """Wrap a plain Linear or Conv2d.

        Raises:
            ValueError: it is adapted already, or this method or peft refuses it.
        """
        plain = place.plain
        if not isinstance(plain, (nn.Linear, nn.Conv2d)) or not place.matches(self.targets):
            return None
        if place.module is not plain:
            raise ValueError(
                f"{place.path}: peft takes a plain module, this one is adapted already; put the Peft adapter first"
            )
        known = known_method(self.method)
        if isinstance(plain, nn.Conv2d) and (not known.convolutions or plain.groups != 1 or plain.dilation != (1, 1)):
            raise ValueError(
                f"{place.path}: {self.method} is not right in peft on {plain}; leave it out of targets, or use LoRA"
            )
        computed = from_weights(self.method, self.options)
        layer = self._layer(copy.deepcopy(plain).float() if computed else plain, place.path)
        if computed:
            layer = layer.to(plain.weight.dtype)
            layer.base_layer = plain
        _own_buffers(layer, known.kept, plain)
        for name in known.drawn:
            drawn = layer.get_submodule(name)
            (values,) = drawn.buffers()
            drawn.register_buffer("default", values, persistent=False)
            setattr(layer, name, place.shared.setdefault(f"{name} {tuple(values.shape)}", drawn))
        if computed and self.method == "LORA" and self.options["init_lora_weights"] != "mica":
            return PeftLayerFromStart(plain, layer)
        return PeftLayer(plain, layer) if known.mergeable else PeftLayerInSingle(plain, layer)

    def _config(self, *, feedforward: bool) -> Any:  # noqa: ANN401  (peft is optional and has no types here)
        """Peft's own config.

        Raises:
            ValueError: peft is not installed, or refuses the options.
        """
        try:
            from peft import get_peft_config  # late: optional, and imports transformers
        except ImportError as error:
            raise ValueError(
                f"Peft needs the package peft, which is not installed ({error}); pip install 'geomed[peft]'"
            ) from error
        given = {"peft_type": self.method, "target_modules": [_NAME], **known_method(self.method).chosen}
        if self.method == "IA3":
            given["feedforward_modules"] = [_NAME] if feedforward else []
        try:
            return get_peft_config({**given, **self.options})
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"peft refuses {self.method} with options {dict(self.options)} ({error}); change them"
            ) from error

    def _layer(self, module: nn.Module, path: str) -> nn.Module:
        """Peft's layer around this module, which is left as it was.

        Raises:
            ValueError: peft refuses it.
        """
        from peft import get_peft_model  # late: optional

        trained = [parameter.requires_grad for parameter in module.parameters()]
        container = nn.ModuleDict({_NAME: module})
        try:
            with warnings.catch_warnings():
                # peft warns where it changes an option by itself, such as a block size that does not divide
                warnings.filterwarnings("error", category=UserWarning, module=r"peft\.")
                config = self._config(feedforward=path.rsplit(".", 1)[-1] == "fc2")
                get_peft_model(container, config, autocast_adapter_dtype=False)
        except _REFUSALS as error:
            raise ValueError(
                f"{path}: peft refuses {self.method} with options {dict(self.options)} on {module} ({error}); "
                "change options or targets"
            ) from error
        finally:
            for parameter, flag in zip(module.parameters(), trained, strict=True):
                parameter.requires_grad_(flag)
        return container.get_submodule(_NAME)


def _own_buffers(layer: nn.Module, kept: tuple[str, ...], plain: nn.Module) -> None:
    """Make buffers of what peft adds but does not train, and save those that are to be kept."""
    for path, module in layer.named_modules():
        if module is plain:
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.requires_grad:
                delattr(module, name)
                module.register_buffer(name, parameter.detach())
        for name, values in list(module.named_buffers(recurse=False)):
            if path in kept:
                module.register_buffer(name, values)


class PeftLayer(Adapted):
    """A module inside peft's layer. Both hold it: by the name ``base`` it is counted and frozen."""

    mergeable = True

    def __init__(self, base: nn.Module, layer: nn.Module) -> None:
        """``layer`` is peft's, around ``base``."""
        super().__init__(base)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """What peft computes."""
        return self.layer(x)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """What peft merges."""
        layer: Any = copy.deepcopy(self.layer)
        layer.merge()
        return layer.get_base_layer()


class PeftLayerInSingle(PeftLayer):
    """A layer that peft computes in single precision, whatever the weights."""

    mergeable = False

    def merged(self) -> nn.Module:
        """Refused.

        Raises:
            ValueError: always.
        """
        raise ValueError("this layer cannot be merged: peft computes C3A in single precision; keep it attached")


class PeftLayerFromStart(PeftLayer):
    """LoRA whose B A does not start from zero: its start is taken off again.

    peft takes it off the frozen weight instead, which then is another one.
    """

    first_down: Tensor
    first_up: Tensor

    def __init__(self, base: nn.Module, layer: nn.Module) -> None:
        """``layer`` holds B A as they start."""
        super().__init__(base, layer)
        scaling = cast("Mapping[str, float]", layer.scaling)["default"]
        self.register_buffer("first_down", layer.get_parameter("lora_A.default.weight").detach().clone())
        self.register_buffer("first_up", layer.get_parameter("lora_B.default.weight").detach() * scaling)

    def forward(self, x: Tensor) -> Tensor:
        """What peft computes, without the start."""
        return self.layer(x) - F.linear(F.linear(x, self.first_down), self.first_up)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """What peft merges, without the start."""
        new = super().merged()
        weight = new.get_parameter("weight")
        weight -= self.first_up @ self.first_down
        return new

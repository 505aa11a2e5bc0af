"""The adapter protocol: what to wrap, how to get in, how to get out again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from fnmatch import fnmatch
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Adapted(nn.Module, ABC):
    """Stands in for ``base``, holds it frozen and never changes it."""

    mergeable: ClassVar[bool] = False
    """Whether `merged` can give one plain module of the same outputs."""

    def __init__(self, base: nn.Module) -> None:
        """``base`` is the module as it was, possibly adapted already."""
        super().__init__()
        self.base = base

    def live(self) -> tuple[str, nn.Module]:
        """The inner module that still runs, by its name: where further adapters go in."""
        return "base", self.base

    def merged(self) -> nn.Module:
        """A plain module with the same outputs; ``base`` is plain already when this is called.

        Raises:
            ValueError: the update is not linear in the input and cannot be folded into weights.
        """
        raise ValueError(
            f"{type(self).__name__} cannot be merged: its update is not linear in the input; keep it attached"
        )


class Adapter(ABC):
    """Says which modules to wrap, and in what. Implementations are frozen keyword-only dataclasses."""

    @abstractmethod
    def wrap(self, module: nn.Module, path: str, root: nn.Module) -> Adapted | None:
        """Wrap this module, or leave it.

        Args:
            module: what stands at this place now; `innermost` gives the plain module in it.
            path: its place in ``root``, as if nothing were attached, such as ``temporal.blocks.0.attention.attn.qkv``.
            root: the whole network.

        Raises:
            ValueError: the place matches, but this method is not defined on such a module.
        """


def innermost(module: nn.Module) -> nn.Module:
    """The plain module inside any adapters around it."""
    while isinstance(module, Adapted):
        module = module.base
    return module


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether the path, or its end after a dot, matches one of the shell-style patterns."""
    return any(fnmatch(path, pattern) or fnmatch(path, f"*.{pattern}") for pattern in patterns)


def attach(root: nn.Module, adapter: Adapter) -> None:
    """Freeze the network and let the adapter wrap what it names. Adapters attached before keep training.

    Raises:
        ValueError: nothing matched; the network is as it was.
    """
    found = list(_places(root, adapter))
    if not found:
        names = sorted({path.rsplit(".", 1)[-1] for path, _ in root.named_modules() if path})
        raise ValueError(f"{adapter} matches no module of {type(root).__name__}; its modules end in {', '.join(names)}")
    for parent, name, adapted in found:
        parent.add_module(name, adapted)
    freeze_base(root)


def _places(root: nn.Module, adapter: Adapter) -> Iterator[tuple[nn.Module, str, Adapted]]:
    """(parent, child name, wrapper) for each place that the adapter wants; what it wraps is not searched further."""
    pending: list[tuple[nn.Module, str]] = [(root, "")]
    while pending:
        parent, path = pending.pop(0)
        for name, child in parent.named_children():
            place = f"{path}.{name}".lstrip(".")
            adapted = adapter.wrap(child, place, root)
            if adapted is not None:
                yield parent, name, adapted
                continue
            inner = child
            while isinstance(inner, Adapted):
                inner = inner.live()[1]
            pending.append((inner, place))


def freeze_base(root: nn.Module) -> None:
    """Exactly the adapters' parameters train."""
    for name, parameter in root.named_parameters():
        parameter.requires_grad_(_plain_name(root, name) is None)


def adapted_modules(root: nn.Module) -> list[Adapted]:
    """All wrappers, outer before inner."""
    return [module for module in root.modules() if isinstance(module, Adapted)]


def detach(root: nn.Module) -> None:
    """Take every adapter out; what remains is bit by bit what was there before `attach`, and trains again."""
    for name, child in list(root.named_children()):
        plain = innermost(child)
        setattr(root, name, plain)
        detach(plain)
    for parameter in root.parameters():
        parameter.requires_grad_()


def merge(root: nn.Module) -> None:
    """Fold every adapter into the weights: same outputs, plain modules, no cost at inference.

    Raises:
        ValueError: an adapter cannot be folded; the network is as it was.
    """
    for module in adapted_modules(root):
        if not module.mergeable:
            module.merged()  # raises, and says why
    _fold_children(root)
    for parameter in root.parameters():
        parameter.requires_grad_()


def _fold_children(parent: nn.Module) -> None:
    for name, child in list(parent.named_children()):
        setattr(parent, name, _folded(child))


def _folded(module: nn.Module) -> nn.Module:
    if isinstance(module, Adapted):
        name, live = module.live()
        setattr(module, name, _folded(live))
        return module.merged()
    _fold_children(module)
    return module


def adapter_state(root: nn.Module) -> dict[str, Tensor]:
    """The tensors that belong to adapters, by their names in ``root.state_dict()``."""
    return {name: value for name, value in root.state_dict().items() if _plain_name(root, name) is None}


def base_state(root: nn.Module) -> dict[str, Tensor]:
    """The tensors of the network itself, by the names that they have where nothing is attached."""
    named = ((_plain_name(root, name), value) for name, value in root.state_dict().items())
    return {name: value for name, value in named if name is not None}


def _plain_name(root: nn.Module, name: str) -> str | None:
    """A tensor's name as if nothing were attached; None where it belongs to an adapter."""
    module: nn.Module | None = root
    plain = []
    for part in name.split("."):
        if isinstance(module, Adapted):
            if part != "base":
                return None
            module = module.base
            continue
        plain.append(part)
        module = None if module is None else dict(module.named_children()).get(part)
    return ".".join(plain)

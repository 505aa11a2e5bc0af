"""The adapter protocol: what to wrap, how to get in, how to get out again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from geomed.adapters.place import Place


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

    paper: ClassVar[str] = ""
    """Where the method was published."""

    @property
    def identity(self) -> bool:
        """Whether the network's outputs are unchanged until the adapter has been trained."""
        return True

    @abstractmethod
    def wrap(self, place: Place) -> Adapted | None:
        """Wrap the module at this place, or leave it.

        Raises:
            ValueError: the place is named, but this method is not defined on such a module.
        """


def innermost(module: nn.Module) -> nn.Module:
    """The plain module inside any adapters around it."""
    while isinstance(module, Adapted):
        module = module.base
    return module


def running(module: nn.Module) -> nn.Module:
    """The module inside any adapters around it that still runs: not always the plain one, see `Adapted.live`."""
    while isinstance(module, Adapted):
        module = module.live()[1]
    return module


def attach(root: nn.Module, adapter: Adapter) -> None:
    """Freeze the network and let the adapter wrap what it names. Adapters attached before keep training.

    Raises:
        ValueError: nothing matched, or the adapter is not defined on what did; the network is as it was.
    """
    found = list(_wrapped(root, adapter))
    if not found:
        names = sorted({path.rsplit(".", 1)[-1] for path, _ in root.named_modules() if path})
        raise ValueError(f"{adapter} matches no module of {type(root).__name__}; its modules end in {', '.join(names)}")
    for parent, name, adapted in found:
        parent.add_module(name, adapted)
    freeze_base(root)


def _wrapped(root: nn.Module, adapter: Adapter) -> Iterator[tuple[nn.Module, str, Adapted]]:
    """(parent, child name, wrapper) for each place that the adapter wants; what it wraps is not searched further."""
    from geomed.adapters.place import Place  # late: a place is told in terms of this module

    shared: dict[str, nn.Module] = {}
    pending: list[tuple[nn.Module, str]] = [(root, "")]
    while pending:
        parent, path = pending.pop(0)
        for name, child in parent.named_children():
            place = f"{path}.{name}".lstrip(".")
            adapted = adapter.wrap(Place(module=child, path=place, root=root, shared=shared))
            if adapted is not None:
                yield parent, name, adapted
            else:
                pending.append((running(child), place))


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
    """The tensors that belong to adapters, by their names in ``root.state_dict()``; what several share, once."""
    first = _first_names(root)
    return {
        name: value
        for name, value in root.state_dict().items()
        if first.get(name, name) == name and _plain_name(root, name) is None
    }


def base_state(root: nn.Module) -> dict[str, Tensor]:
    """The tensors of the network itself, by the names that they have where nothing is attached."""
    named = ((_plain_name(root, name), value) for name, value in root.state_dict().items())
    return {name: value for name, value in named if name is not None}


def _first_names(root: nn.Module) -> dict[str, str]:
    """Each parameter's and buffer's name → the first of the names that this very tensor has."""
    first: dict[int, str] = {}
    named = [*root.named_parameters(remove_duplicate=False), *root.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(value), name) for name, value in named}


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

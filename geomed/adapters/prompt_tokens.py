"""Prompt tokens among a block's tokens: in before it runs and out again after it, so that the layout outside stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float  # noqa: TC002  (annotations are evaluated by the shape checker in the tests)
from torch import Tensor, nn

from geomed.adapters.adapter import running
from geomed.backbones.backbone import Backbone
from geomed.tokens import Tokens

if TYPE_CHECKING:
    from geomed.adapters.place import Place


def inserted(tokens: Tokens, prompts: Float[Tensor, "#b p d"]) -> Tokens:
    """The prompts between the prefix tokens and the grid, as prefix tokens."""
    x, prefix = tokens.data, tokens.prefix
    prompts = prompts.to(x.dtype).expand(x.shape[0], -1, -1)
    first, grid = x.split((prefix, x.shape[1] - prefix), 1)  # its backward pass is one copy, that of slices several
    return Tokens(torch.cat((first, prompts, grid), 1), tokens.grid, prefix + prompts.shape[1], tokens.carried)


def parted(
    data: Float[Tensor, "b m d"], layout: Tokens, count: int
) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b p d"]]:
    """What stands where the tokens of ``layout`` do, and where ``count`` prompts were `inserted` among them."""
    first, prompts, grid = data.split((layout.prefix, count, data.shape[1] - layout.prefix - count), 1)
    return torch.cat((first, grid), 1), prompts


class CarriedPrompts(nn.Module):
    """Prompts that enter before the first block that is wrapped and go through the others with the tokens.

    Between blocks they ride beside the tokens, in `Tokens.carried` under ``name``; after the last one they lie there.
    """

    def __init__(
        self,
        name: str,
        prompts: Float[Tensor, "p d"],
        positions: Float[Tensor, "p d"] | None = None,
        norm: nn.Module | None = None,
    ) -> None:
        """``positions`` are added to the prompts, and ``norm``, which is the backbone's, is applied to the sum."""
        super().__init__()
        self.name = name
        self.prompts = nn.Parameter(prompts)
        self.positions = None if positions is None else nn.Parameter(positions)
        self._norm = () if norm is None else (norm,)  # in a tuple: used here, but not a part of this module

    def beside(self, tokens: Tokens) -> Float[Tensor, "#b p d"]:
        """The prompts as the last wrapped block left them, or as they enter the first."""
        carried = tokens.carried.get(self.name)
        if carried is not None:
            return carried
        prompts = self.prompts if self.positions is None else self.prompts + self.positions
        for norm in self._norm:
            prompts = norm(prompts)
        return prompts[None]


def unused_name(root: nn.Module, method: str) -> str:
    """A name to carry prompts under that none attached earlier has: the method's, a dot and a number from 0."""
    taken = {module.name for module in root.modules() if isinstance(module, CarriedPrompts)}
    return next(name for name in (f"{method}.{number}" for number in range(len(taken) + 1)) if name not in taken)


def backbone_around(place: Place) -> Backbone | None:
    """The innermost backbone that a block stands in."""
    module, found = running(place.root), None
    for part in place.path.split("."):
        found = module if isinstance(module, Backbone) else found
        module = running(module.get_submodule(part))
    return found

"""Stop a pre-training that has collapsed: all images become alike, and no loss says so."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from geomed.evaluation.feature_rank import effective_rank, spread

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float
    from torch import Tensor

TOLD_APART = 1e-3
"""Below it an indicator has collapsed even if it was never higher: the mean cosine of two images is above 1 - 1e-6, or
one direction or prototype holds all but about a ten-thousandth."""


class CollapsedError(ValueError):
    """The network gives the same features for all images, or no numbers any more."""


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """When a pre-training is stopped because its features or its teacher's assignments have collapsed.

    Three indicators are measured every few steps. Any of them has collapsed once it is below its limit here *and* below
    ``share`` of the highest value that this run has seen, ``patience`` times in a row. The second condition lets
    networks live whose features are alike from the start, as those of MAE: limits that suit DINOv2 would stop them at
    once. An indicator below 0.001 (of the rank: below 1.001) has collapsed even if it was never higher.
    """

    min_rank: float = 2.0
    """Effective rank (RankMe) of the last images' features, of which 1 is the least there is; 1 turns it off."""

    min_spread: float = 0.05
    """Spread of the directions of these features, from 0 (all alike) to 1 (evenly around 0); 0 turns it off."""

    min_entropy: float = 0.02
    """Entropy of the teacher's mean assignment over the largest there is, 0 where all images get the same prototype; 0
    turns it off. It cannot see a teacher that gives all images the same *uniform* assignment; the others do."""

    share: float = 0.1
    """Share of the highest value so far (of the rank: of what is above 1) below which an indicator has to fall."""

    after: int = 200
    """Optimizer steps before which nothing is judged: heads begin at random, and indicators swing."""

    patience: int = 3
    """Checks in a row at which an indicator is too low."""

    images: int = 512
    """The last rows of features that rank and spread are of."""

    every: int = 50
    """Optimizer steps from check to check."""

    def __post_init__(self) -> None:
        """Refuse limits that stop every run or none by accident."""
        if not 1 <= self.min_rank < math.inf:
            raise ValueError(f"min_rank must be at least 1, the least rank there is, not {self.min_rank}; 2 is usual")
        for name in ("min_spread", "min_entropy", "share"):
            value = {"min_spread": self.min_spread, "min_entropy": self.min_entropy, "share": self.share}[name]
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be from 0 to below 1, not {value}; at 1 healthy runs would be stopped")
        if self.after < 0:
            raise ValueError(f"after must be 0 steps or more, not {self.after}")
        for name, count in (("patience", self.patience), ("every", self.every)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, not {count}; the checks cost little")
        if self.images < 16:
            raise ValueError(f"images must be at least 16, or the rank says nothing, not {self.images}; 512 is usual")
        if self.min_rank > self.images:
            raise ValueError(
                f"min_rank must be below the count of images that the rank is of, {self.images}, not {self.min_rank}; "
                "the rank cannot exceed it"
            )


@dataclass(frozen=True, kw_only=True)
class Indicators:
    """What one check has measured."""

    rank: float
    """Effective rank of the last images' features, from 1 to the width; 0 where all of them are 0."""

    spread: float
    """Of the directions of these features, from 0 (all alike) to 1."""

    entropy: float | None
    """Of the teacher's mean assignment, from 0 to 1, averaged since the last check; None without a teacher."""

    def figures(self) -> dict[str, float]:
        """What there is to log, by name."""
        known = {"rank": self.rank, "spread": self.spread}
        return known if self.entropy is None else known | {"entropy": self.entropy}


class Watch:
    """Keeps the last features of a run and checks now and then whether it has collapsed.

    ``add`` costs a copy of the features on the device that they are on and never waits for it; only a due ``check``
    brings them to the CPU and takes their singular values.
    """

    def __init__(self, settings: Collapse) -> None:
        """Watch a run.

        Args:
            settings: limits and intervals.
        """
        self.settings = settings
        self._rows: deque[Tensor] = deque()
        self._highest: dict[str, float] = {}
        self._low: dict[str, list[int]] = {}
        self._checked = -1
        self._entropy: Tensor | None = None
        self._entropies = 0
        self._sound: Tensor | None = None
        self._batches = 0

    def add(self, features: Float[Tensor, "n d"], entropy: Tensor | None = None, *, loss: Tensor | None = None) -> None:
        """Note what one batch gave.

        Args:
            features: one vector for each image.
            entropy: of the teacher's mean assignment, from 0 to 1.
            loss: to be told when it is no number any more.

        Raises:
            ValueError: the features are not [n, d], or of another width than before.
        """
        if features.ndim != 2 or (self._rows and self._rows[-1].shape[1] != features.shape[1]):
            width = self._rows[-1].shape[1] if self._rows else "d"
            raise ValueError(
                f"features to watch must be [n, {width}], one vector for each image, not {tuple(features.shape)}; "
                "pool the tokens of an image"
            )
        # a clone: a slice would keep the tokens of all depths alive
        self._rows.append(features.detach()[-self.settings.images :].clone())
        while sum(map(len, self._rows)) - len(self._rows[0]) >= self.settings.images:
            self._rows.popleft()
        sound = features.detach().isfinite().all()
        if loss is not None:
            sound = sound & loss.detach().isfinite().all()
        if entropy is not None:
            level = entropy.detach().float()
            sound = sound & level.isfinite().all()
            self._entropy = level if self._entropy is None else self._entropy + level
            self._entropies += 1
        # batches up to the first that is not finite, counted without waiting for the device
        reached = torch.as_tensor(0) if self._sound is None else self._sound
        self._sound = reached + (sound & (reached == self._batches)).long()
        self._batches += 1

    def check(self, step: int) -> Indicators | None:
        """Measure at the steps that are due, which are the multiples of ``every``; None at all others.

        Args:
            step: optimizer steps so far.

        Raises:
            CollapsedError: features or loss are not finite, or an indicator has been too low for too long.
        """
        if step % self.settings.every or step == self._checked or not self._batches:
            return None
        self.refuse_not_finite(step)
        rows = torch.cat([some.to("cpu", torch.float32) for some in self._rows])[-self.settings.images :]
        if len(rows) < 2:
            return None  # one image alone is always alike
        entropy = None if self._entropy is None else float(self._entropy) / self._entropies
        indicators = Indicators(rank=effective_rank(rows), spread=spread(rows), entropy=entropy)
        self._checked, self._entropy, self._entropies, self._sound, self._batches = step, None, 0, None, 0
        self._judge(step, indicators)
        return indicators

    def refuse_not_finite(self, step: int) -> None:
        """Make sure that loss and features were numbers in all batches since the last check.

        Raises:
            CollapsedError: they were not.
        """
        sound, batches = self._batches if self._sound is None else int(self._sound), self._batches
        if sound < batches:
            raise CollapsedError(
                f"loss or features are not finite (NaN or infinite) at step {step}, first in batch {sound + 1} of the "
                f"{batches} since the last check (step {max(self._checked, 0)}). Lower the learning rate, clip "
                "gradients, take bf16 or fp32 instead of fp16, and look for NaN in the input; go on from an earlier "
                "checkpoint"
            )

    def _judge(self, step: int, indicators: Indicators) -> None:
        limits = {
            "rank": self.settings.min_rank - 1,
            "spread": self.settings.min_spread,
            "entropy": self.settings.min_entropy,
        }
        for name, figure in indicators.figures().items():
            value = max(figure - 1, 0.0) if name == "rank" else figure
            highest = self._highest[name] = max(value, self._highest.get(name, 0.0))
            limit = min(limits[name], max(TOLD_APART, self.settings.share * highest))
            if step < self.settings.after or value >= limit:
                self._low.pop(name, None)
                continue
            lows = self._low.setdefault(name, [])
            lows.append(step)
            if len(lows) >= self.settings.patience:
                shift = 1 if name == "rank" else 0
                raise CollapsedError(
                    f"{_COLLAPSED[name]}: {_NAMES[name]} is {figure:.4g} at step {step} and has been below "
                    f"{limit + shift:.4g} since step {lows[0]}; the highest of this run was {highest + shift:.4g}. "
                    "Lower the learning rate, warm the head up for longer, take Sinkhorn instead of the running mean "
                    "for centring, add KoLeo, or give more images, and more different ones; the last good checkpoint "
                    "stays in the run's folder. Where the features are known to be fine, change the limits of Collapse"
                )

    def state_dict(self) -> dict[str, object]:
        """What a checkpoint needs so that a resumed run is judged as if it had never stopped."""
        return {
            "rows": torch.cat([some.cpu() for some in self._rows]) if self._rows else None,
            "highest": dict(self._highest),
            "low": {name: list(steps) for name, steps in self._low.items()},
            "checked": self._checked,
            "entropy": None if self._entropy is None else self._entropy.cpu(),
            "entropies": self._entropies,
            "sound": None if self._sound is None else self._sound.cpu(),
            "batches": self._batches,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that ``state_dict`` gave."""
        self._rows = deque([] if state["rows"] is None else [state["rows"]])
        self._highest = dict(state["highest"])
        self._low = {name: list(steps) for name, steps in state["low"].items()}
        self._checked, self._entropies, self._batches = state["checked"], state["entropies"], state["batches"]
        self._entropy, self._sound = state["entropy"], state["sound"]


_NAMES = {
    "rank": "the effective rank of the last images' features",
    "spread": "the spread of the last images' features",
    "entropy": "the entropy of the teacher's mean assignment (1 = evenly over all prototypes)",
}
_COLLAPSED = {
    "rank": "the features of all images have collapsed onto one direction",
    "spread": "the features of all images have collapsed onto one point",
    "entropy": "the teacher's assignments have collapsed: nearly all images get the same prototype",
}

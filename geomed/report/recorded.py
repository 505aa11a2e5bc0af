"""What a run has already said of its scores: metrics.json. The page must agree with it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from geomed.evaluation.operating_point import Rule, SensitivityAtLeast, SpecificityAtLeast, Youden

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from geomed.evaluation.interval import Estimate

PREFIXES = {"sensitivity of at least ": SensitivityAtLeast, "specificity of at least ": SpecificityAtLeast}
"""How the names of rules with a share begin."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The part of metrics.json that the page needs."""

    rule: Rule = field(default_factory=Youden)
    """How the run chose its operating points."""

    overall: Mapping[str, float] = field(default_factory=dict)
    """Scores of the whole test set by name."""

    @classmethod
    def read(cls, path: Path, run: str) -> Self:
        """Read the file; without one nothing has been said, and errors name the run as given.

        Raises:
            ValueError: it is broken.
        """
        broken = f"{run}: metrics.json cannot be read as what geomed test writes; run geomed test again"
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()
        except (ValueError, OSError) as error:
            raise ValueError(broken) from error
        try:
            names = {str(point["point"]["rule"]) for point in told.get("operating_points", ())}
            overall = {str(name): one["value"] for name, one in told.get("overall", {}).items()}
            values = {name: float(value) for name, value in overall.items() if value is not None}
            rules = [_rule(name) for name in sorted(names)]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(broken) from error
        return cls(rule=rules[0], overall=values) if rules else cls(overall=values)

    def disagreements(self, overall: Mapping[str, Estimate]) -> list[str]:
        """Scores that the cases do not give, by name."""
        return [
            name
            for name, value in self.overall.items()
            if name in overall and not math.isclose(value, overall[name].value, rel_tol=1e-6, abs_tol=1e-9)
        ]


def _rule(name: str) -> Rule:
    for prefix, kind in PREFIXES.items():
        if name.startswith(prefix):
            return kind(float(name.removeprefix(prefix)))
    if name != Youden().name:
        raise ValueError(f"there is no rule {name!r}")
    return Youden()

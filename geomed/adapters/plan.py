"""A plan: which weights of one backbone train, how, and why."""

from __future__ import annotations

import base64
import json
import zlib
from collections import Counter
from collections.abc import Mapping  # noqa: TC003  (annotations are evaluated by the shape checker in the tests)
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from geomed.adapters.adapter import base_state
from geomed.adapters.allocation_rule import AllocationRule, Ranking, Trains, within
from geomed.adapters.candidate import Candidate, candidates
from geomed.backbones.backbone import weights_hash

if TYPE_CHECKING:
    from torch import nn

    from geomed.adapters.sensitivity import Sensitivity


_MODULES = {"lora": "a low-rank update", "adapter": "a bottleneck"}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a plan makes of one candidate."""

    candidate: Candidate
    """The matrix or vector."""

    trains: Trains
    """What of it trains."""

    count: int
    """Parameters that train."""

    sensitive: int
    """How many of its entries are among the most sensitive of the backbone."""

    share: float
    """Its part of the sensitivity of all candidates, 0 to 1."""

    packed: str = ""
    """Where ``entries`` train: their places in the candidate, flattened and ascending, see `pack`."""

    def places(self) -> np.ndarray:
        """The places of the entries that train, in the candidate flattened.

        Raises:
            ValueError: they are not as many as counted, not ascending, or not in the candidate.
        """
        found = unpack(self.packed, self.count if self.trains == "entries" else 0)
        if found.size and not (found[0] >= 0 and found[-1] < self.candidate.size and (np.diff(found) > 0).all()):
            raise ValueError(
                f"{self.candidate}: places must ascend within its {self.candidate.size}; make the plan anew"
            )
        return found

    def why(self, rule: AllocationRule) -> str:
        """The reason in words."""
        one, whole = self.candidate, rule.cost(self.candidate)
        share = rule.beta if one.kind == "vector" else rule.alpha
        module = "the whole vector" if one.kind == "vector" else _MODULES[rule.structure]
        if not self.sensitive:
            return f"none of its {one.size:,} entries is sensitive enough"
        told = f"{self.sensitive:,} of its {one.size:,} entries are sensitive"
        enough = f"{whole / share:,.1f} call for {module}, {whole:,} parameters"
        return f"{told}, {enough}" + ("; single entries do not train here" if self.trains == "nothing" else "")


def pack(places: np.ndarray) -> str:
    """Ascending places → base64 of zlib of their differences as little-endian uint32: about two bytes for each."""
    return base64.b64encode(zlib.compress(np.diff(places, prepend=0).astype("<u4").tobytes(), 9)).decode("ascii")


def unpack(packed: str, count: int) -> np.ndarray:
    """The reverse of `pack`.

    Raises:
        ValueError: the text holds something else, or another number of places.
    """
    if not packed and not count:
        return np.zeros(0, np.int64)
    try:
        plain = zlib.decompressobj().decompress(base64.b64decode(packed, validate=True), 4 * count + 1)
    except (ValueError, zlib.error) as error:
        raise ValueError(f"places of entries must be packed numbers, these are not ({error}); copy the plan") from error
    if len(plain) != 4 * count:
        raise ValueError(f"{count} entries need as many places, packed are others; copy the plan again")
    return np.cumsum(np.frombuffer(plain, "<u4").astype(np.int64))


@dataclass(frozen=True, kw_only=True, repr=False)
class Plan:
    """Which weights train within a budget, by sensitivity-aware parameter tuning (He et al., ICCV 2023)."""

    rule: AllocationRule
    """When a matrix or a vector trains as a whole, and by what."""

    budget: int
    """Parameters that were allowed to train."""

    top: int
    """How many entries of the backbone count as sensitive: the paper's τ."""

    samples: int
    """How many samples the sensitivity was measured on."""

    reduction: Literal["batch", "sample"]
    """Whose gradients were squared."""

    base: str
    """SHA-256 of the backbone's weights, see `geomed.backbones.backbone.weights_hash`."""

    choices: tuple[Choice, ...]
    """Every candidate, in the order of the backbone."""

    @cached_property
    def trained(self) -> int:
        """Parameters that train."""
        return sum(choice.count for choice in self.choices)

    @cached_property
    def of_modules(self) -> Mapping[str, tuple[Choice, ...]]:
        """The path of each module that trains → what of it."""
        found: dict[str, tuple[Choice, ...]] = {}
        for choice in self.choices:
            if choice.count:
                module = choice.candidate.module
                found[module] = (*found.get(module, ()), choice)
        return found

    def save(self, path: str | Path) -> None:
        """Write it as JSON, one line for each candidate, with the reason for each choice."""
        content = asdict(self)
        lines = [
            json.dumps(fields | {"why": choice.why(self.rule)})
            for choice, fields in zip(self.choices, content.pop("choices"), strict=True)
        ]
        head = json.dumps({"summary": str(self), **content}, indent=2).removesuffix("\n}")
        told = ",\n    ".join(lines)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{head},\n  "choices": [\n    {told}\n  ]\n}}\n', encoding="utf-8")

    @staticmethod
    def of(given: str | Path | Mapping[str, Any] | Plan) -> Plan:
        """A plan from its file or its content; a plan is itself.

        Raises:
            ValueError: the file is missing, or holds no plan.
        """
        if isinstance(given, Plan):
            return given
        where = str(given) if isinstance(given, (str, Path)) else "the plan"
        content: Any = given
        if isinstance(given, (str, Path)):
            if not Path(given).is_file():
                raise ValueError(f"{where}: there is no such plan; make it with geomed sensitivity --out {where}")
            try:
                content = json.loads(Path(given).read_text(encoding="utf-8"))
            except ValueError as error:  # not JSON, or not text
                raise ValueError(f"{where}: not readable as JSON ({error}); make the plan anew") from error
        try:
            return _plan(dict(content))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where}: holds no plan ({error}); make it anew with geomed sensitivity") from error

    def table(self) -> str:
        """What trains, operation by operation, for people."""
        rows: dict[str, Counter[str]] = {}  # counts, and shares of sensitivity
        for choice in self.choices:
            one = choice.candidate
            name = one.operation if one.kind == "matrix" or "norm" in one.operation else f"{one.operation} bias"
            rows.setdefault(name, Counter()).update(
                {choice.trains: 1, "parameters": choice.count, "share": choice.share}
            )
        kinds = (self.rule.structure, "all", "entries")
        names = (self.rule.structure, "whole", "entries")
        lines = [f"{'':<12}{'sensitivity':>12}" + "".join(f"{name:>9}" for name in names) + f"{'parameters':>13}"]
        for name, row in rows.items():
            told = "".join(f"{row[kind] or '–':>9}" for kind in kinds)
            lines.append(f"{name:<12}{row['share']:>12.1%}{told}{row['parameters']:>13,}")
        all_of = "".join(f"{sum(row[kind] for row in rows.values()) or '–':>9}" for kind in kinds)
        return "\n".join([*lines, f"{'all':<12}{'':>12}{all_of}{self.trained:>13,}"])

    def __str__(self) -> str:
        kinds = Counter(choice.trains for choice in self.choices)
        singly = sum(choice.count for choice in self.choices if choice.trains == "entries")
        return (
            f"{self.trained:,} parameters train (budget {self.budget:,}): {kinds[self.rule.structure]} matrices by "
            f"{self.rule.structure} of rank {self.rule.rank}, {kinds['all']} whole vectors, {singly:,} single entries"
        )

    def __repr__(self) -> str:  # a plan is long, and stands in messages
        return f"Plan({self}; base {self.base[:12]})"


def _plan(content: dict[str, Any]) -> Plan:
    content.pop("summary", None)
    choices = []
    for given in content.pop("choices"):
        fields = {name: value for name, value in given.items() if name != "why"}
        one = dict(fields.pop("candidate"))
        candidate = Candidate(**one | {"rows": (int(one["rows"][0]), int(one["rows"][1]))})
        choices.append(Choice(candidate=candidate, **fields))
        choices[-1].places()  # raises if they are wrong
    return Plan(rule=AllocationRule(**content.pop("rule")), choices=tuple(choices), **content)


def make_plan(
    backbone: nn.Module,
    sensitivity: Sensitivity,
    *,
    budget: int,
    rule: AllocationRule = AllocationRule(),  # noqa: B008  (frozen)
) -> Plan:
    """Choose what trains within a budget of parameters.

    Raises:
        ValueError: the budget is below the smallest allocation, the rank above the width of a matrix, or the
            sensitivity is another backbone's.
    """
    ranking = Ranking(candidates(backbone), sensitivity.scores)
    top = within(ranking, rule, budget)
    sums = [float(one.of(sensitivity.scores[one.tensor]).sum()) for one in ranking.candidates]
    choices = []
    for number, sensitive in enumerate(ranking.sensitive(top).tolist()):
        one = ranking.candidates[number]
        trains, count = rule.trains(one, sensitive)
        packed = pack(ranking.entries(number, count)) if trains == "entries" else ""
        share = round(sums[number] / sum(sums), 6)
        choices.append(
            Choice(candidate=one, trains=trains, count=count, sensitive=sensitive, share=share, packed=packed)
        )
    return Plan(
        rule=rule,
        budget=budget,
        top=top,
        samples=sensitivity.samples,
        reduction=sensitivity.reduction,
        base=weights_hash(base_state(backbone)),
        choices=tuple(choices),
    )

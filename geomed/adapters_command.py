"""Every adapter with its default settings, on one backbone that holds no numbers, so that it takes seconds."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import inspect
import re
import textwrap
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import geomed.adapters
from geomed.adapters.adapter import Adapted, Adapter, adapted_modules, attach, detach
from geomed.adapters.counts import trainable
from geomed.adapters.files import file_size
from geomed.backbones.inputs import Inputs
from geomed.backbones.tsvit import TSViT
from geomed.backbones.vit import ViT
from geomed.bands import PASTIS_BANDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import nn

    from geomed.backbones.backbone import Backbone

EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "Peft": {"method": "MISS", "options": {"r": 8}},
    "Tune": {"targets": ("patch", "patch_embed")},
}
"""What is given where there are no defaults."""

WITHOUT: Mapping[str, str] = {"SPT": "its plan is made by geomed sensitivity, for one backbone and one task"}
"""Why there is no example of these."""

WIDTH = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listed:
    """One adapter, as it is told about. What is not known is None."""

    adapter: str
    """The class."""

    paper: str
    """Where it was published."""

    adds: str
    """The first sentence of its documentation."""

    settings: str
    """Fields that are not the defaults."""

    where: tuple[str, ...] = ()
    """Paths of what it wraps, those of several blocks as one: ``blocks.*`` of all, ``blocks.6-11`` of some."""

    mergeable: bool | None = None
    """Whether all that it wraps can be folded into weights."""

    starts_as_base: bool | None = None
    """Whether the outputs are unchanged until it is trained."""

    parameters: int | None = None
    """How many train."""

    share: float | None = None
    """The same over the backbone's parameters."""

    file_bytes: int | None = None
    """An adapter file without a head."""

    why_not: str = ""
    """The reason, where it is not attached."""


def main(arguments: Sequence[str]) -> int:
    """List the adapters; returns the exit code."""
    parser = argparse.ArgumentParser(prog="geomed adapters", description=__doc__)
    parser.add_argument(
        "--backbone",
        default="vit_base_patch16_224",
        metavar="NAME",
        help="a VisionTransformer of timm, or tsvit, in the size published for PASTIS (default: %(default)s)",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table there too, for machines")
    given = parser.parse_args(arguments)
    backbone = _backbone(given.backbone)
    base = sum(parameter.numel() for parameter in backbone.parameters())
    found = [_listed(kind, backbone, base) for kind in adapter_classes()]
    print(f"{given.backbone}: {base:,} parameters\n")
    print("\n".join(_table(found)))
    if given.csv is not None:
        _write(given.csv, found)
        print(f"\nwritten to {given.csv}")
    return 0


def adapter_classes() -> list[type[Adapter]]:
    """All that geomed offers, by name."""
    offered = (getattr(geomed.adapters, name) for name in geomed.adapters.__all__)
    kinds = [one for one in offered if inspect.isclass(one) and issubclass(one, Adapter)]
    return sorted((one for one in kinds if not inspect.isabstract(one)), key=lambda kind: kind.__name__.lower())


def _backbone(name: str) -> Backbone:
    """A backbone without numbers.

    Raises:
        ValueError: there is none of this name.
    """
    with torch.device("meta"):
        if name == "tsvit":
            return TSViT(inputs=Inputs(PASTIS_BANDS), num_classes=19)
        return ViT(name, inputs=Inputs(("red", "green", "blue"), [0.5] * 3, [0.5] * 3))


def _listed(kind: type[Adapter], backbone: Backbone, base: int) -> Listed:
    """What attaching it with its defaults tells."""
    fields = EXAMPLES.get(kind.__name__, {})
    told = Listed(
        adapter=kind.__name__,
        paper=kind.paper,
        adds=_first_sentence(inspect.getdoc(kind) or ""),
        settings=", ".join(f"{name}={value!r}" for name, value in fields.items()),
    )
    missing = [name for name in _required(kind) if name not in fields]
    if missing:
        why_not = WITHOUT.get(kind.__name__, f"{', '.join(missing)} must be given")
        return dataclasses.replace(told, why_not=why_not)
    try:
        adapter = kind(**fields)
        attach(backbone, adapter)
    except (ValueError, RuntimeError) as error:  # refused, or its start needs the weights' numbers
        return dataclasses.replace(told, why_not=" ".join(str(error).split()))
    parameters = trainable(backbone)
    told = dataclasses.replace(
        told,
        where=tuple(_where(backbone)),
        mergeable=all(module.mergeable for module in adapted_modules(backbone)),
        starts_as_base=adapter.identity,
        parameters=parameters,
        share=parameters / base,
        file_bytes=file_size(backbone, [adapter]),
    )
    detach(backbone)
    return told


def _required(kind: type[Adapter]) -> list[str]:
    none = dataclasses.MISSING
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]  # every adapter is a dataclass
    return [field.name for field in fields if field.default is none and field.default_factory is none]


def _first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence, without a citation in brackets."""
    (first, *_) = re.split(r"(?<!al)(?<!eq)(?<!e\.g)(?<!i\.e)\.(?:\s|$)", " ".join(text.split()), maxsplit=1)
    return re.sub(r"\s*\([^()]*(?:\b(?:19|20)\d\d\b|arXiv)[^()]*\)", "", first).replace("`", "").rstrip(" :;")


def _where(root: nn.Module) -> Iterator[str]:
    """What is wrapped, block numbers put together."""
    wrapped: list[str] = []
    for path, module in root.named_modules():
        if isinstance(module, Adapted) and not any(path.startswith(f"{outer}.") for outer in wrapped):
            wrapped.append(path)
    numbers: dict[tuple[str, str], list[int]] = defaultdict(list)
    for path in wrapped:
        stage, blocks, rest = path.rpartition("blocks.")
        number, dot, inside = rest.partition(".")
        numbers[(stage + blocks, dot + inside) if blocks else (path, "")] += [int(number)] if blocks else []
    for (stage, inside), found in numbers.items():
        count = len(list(root.get_submodule(stage.rstrip(".")).children())) if found else 0
        yield stage + ("" if not found else "*" if len(found) == count else _ranges(found)) + inside


def _ranges(numbers: Iterable[int]) -> str:
    """0, 1, 2, 5 → 0-2,5."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)


def _table(found: Sequence[Listed]) -> Iterator[str]:
    """A line of numbers for each adapter, and under it in words what it is and where it goes."""
    width = max(len(one.adapter) for one in found)
    head = f"{'adapter':<{width}} {'trained':>13} {'share':>9} {'file, bytes':>14}"
    yield f"{head}   {'starts as the base':<20}{'mergeable'}"
    yield "-" * WIDTH
    for one in found:
        yield f"{one.adapter:<{width}} {_numbers(one)}".rstrip()
        paper = "" if one.paper in {"", "–"} else f" [{one.paper}]"
        yield _wrapped(one.adds + paper)
        settings = f" (here with {one.settings})" if one.settings else ""
        yield _wrapped(f"not attached: {one.why_not}" if one.why_not else f"in {_places(one.where)}{settings}")


def _places(where: Sequence[str]) -> str:
    """The paths, those that differ in the stage alone as one, in the braces of a shell."""
    stages: dict[str, list[str]] = defaultdict(list)
    for path in where:
        stage, dot, inside = path.partition(".blocks.")
        stages[dot + inside if dot else path] += [stage] if dot else []
    return ", ".join(
        path if not found else found[0] + path if len(found) == 1 else f"{{{','.join(found)}}}{path}"
        for path, found in stages.items()
    )


def _numbers(one: Listed) -> str:
    if one.parameters is None or one.share is None:
        return f"{'–':>13} {'–':>9} {'–':>14}   {'–':<20}–"
    starts, folds = ("yes" if told else "no" for told in (one.starts_as_base, one.mergeable))
    return f"{one.parameters:>13,} {one.share:>9.3%} {one.file_bytes:>14,}   {starts:<20}{folds}"


def _wrapped(text: str) -> str:
    indent = "    "
    lines = textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines)


def _write(path: Path, found: Sequence[Listed]) -> None:
    names = [field.name for field in dataclasses.fields(Listed)]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, names)
        table.writeheader()
        for one in found:
            row = {name: getattr(one, name) for name in names}
            said = {name: str(value).lower() for name, value in row.items() if isinstance(value, bool)}
            table.writerow({**row, **said, "where": " ".join(one.where)})

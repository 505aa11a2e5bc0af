"""What a run says of itself: evaluation/setup.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

KINDS = ("binary", "multiclass", "multilabel", "ordinal")
"""What is asked of an image: yes or no, one of several classes, any number of labels, a grade."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """What was trained."""

    backbone: str
    """Its name."""

    adapter: str
    """Its name, or "none"."""

    trained: int | None
    """How many parameters were trained; None where nobody says."""

    parameters: int | None
    """Of how many."""

    baseline: str | None
    """"linear probe" or "cnn" of what an adapter has to beat; None of an adapter."""


@dataclass(frozen=True, kw_only=True)
class PartCount:
    """How much there is of one part."""

    patients: int | None
    """None where patients are unknown."""

    images: int
    """How many."""

    by_class: Mapping[str, int]
    """Images of each class."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Task, data, split and model of a run."""

    kind: str
    """One of ``KINDS``."""

    classes: tuple[str, ...]
    """Names, in the order of the logits."""

    modality: str
    """Of the images; empty where nobody says."""

    data: tuple[str, ...]
    """A summary, line by line."""

    image_level: bool
    """Whether the split is by images, so that a patient may be on both sides."""

    counts: Mapping[str, PartCount]
    """By part."""

    overrides: tuple[str, ...]
    """Why a refusal was overridden, each time."""

    model: Model
    """What was trained."""

    seed: int | None
    """Of the run; None where none was set."""

    test_openings: int
    """How often the test set had been opened, this run included."""

    test_fingerprint: str
    """Which test set."""

    version: str
    """Of geomed."""

    @classmethod
    def read(cls, path: Path, run: str) -> Self:
        """Read the file; errors name the run as given.

        Raises:
            ValueError: there is no such file, it is no JSON, or something in it is missing or of another kind.
        """
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(
                f"{run}: there is no evaluation/setup.json, so it is no evaluated run; run geomed test first"
            ) from None
        except (ValueError, OSError) as error:
            raise ValueError(f"{run}: evaluation/setup.json cannot be read as JSON; run geomed test again") from error
        entry = _Entries(run, told)
        kind, classes = entry.text("kind"), tuple(entry.texts("classes"))
        if kind not in KINDS:
            raise ValueError(f"{run}: kind in setup.json must be one of {', '.join(KINDS)}, not {kind!r}")
        if len(classes) < 2 or (kind == "binary" and len(classes) > 2):
            raise ValueError(f"{run}: a {kind} run cannot have {len(classes)} classes; setup.json is of another task")
        split, model = entry.inner("split"), entry.inner("model")
        parts = split.inner("counts")
        return cls(
            kind=kind,
            classes=classes,
            modality=entry.text("modality", ""),
            data=tuple(entry.texts("data", ())),
            image_level=split.of("image_level", bool),
            counts={part: _part(parts.inner(part)) for part in parts.told},
            overrides=(*split.texts("overrides", ()), *entry.texts("overrides", ())),
            model=Model(
                backbone=named(model.told.get("backbone")),
                adapter=named(model.told.get("adapter")),
                trained=model.count("trained"),
                parameters=model.count("parameters"),
                baseline=model.text("baseline", "") or None,
            ),
            seed=entry.of("seed", int, None),
            test_openings=entry.of("test_openings", int),
            test_fingerprint=entry.text("test_fingerprint"),
            version=entry.text("geomed", "unknown"),
        )


def named(value: object) -> str:
    """A model's part as a person calls it: a name, or the class of a configuration."""
    if value is None or value == "":
        return "none"
    if isinstance(value, dict):
        return named(value.get("class_path") or value.get("name"))
    if isinstance(value, list):
        return " + ".join(named(part) for part in value) or "none"
    text = str(value)
    return text.rpartition(".")[2] if text.startswith("geomed.") else text


@dataclass(frozen=True)
class _Entries:
    """A JSON object of a run, with complaints that name the entry."""

    run: str
    told: Any
    where: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.told, dict):
            raise ValueError(  # noqa: TRY004  (the project raises ValueError for every broken rule)
                f"{self.run}: {self.where.rstrip('.') or 'the whole'} in setup.json must be an object of named entries"
            )

    def of(self, name: str, kind: type, absent: Any = ...) -> Any:  # noqa: ANN401  (JSON)
        value = self.told.get(name)
        if value is None and absent is not ...:
            return absent
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            what = {str: "text", int: "a whole number", bool: "true or false", list: "a list"}[kind]
            raise ValueError(
                f"{self.run}: {self.where}{name} in setup.json must be {what}, "
                f"{'it is missing' if value is None else f'not {value!r:.40}'}; run geomed test again"
            )
        return value

    def text(self, name: str, absent: Any = ...) -> str:  # noqa: ANN401  (a mark for none)
        return str(self.of(name, str, absent))

    def texts(self, name: str, absent: Any = ...) -> list[str]:  # noqa: ANN401  (a mark for none)
        return [str(value) for value in self.of(name, list, absent)]

    def count(self, name: str) -> int | None:
        value = self.of(name, int, None)
        if value is not None and value < 0:
            raise ValueError(f"{self.run}: {self.where}{name} in setup.json must be 0 or more, not {value}")
        return None if value is None else int(value)

    def inner(self, name: str) -> _Entries:
        return _Entries(self.run, self.told.get(name), f"{self.where}{name}.")


def _part(entry: _Entries) -> PartCount:
    by_class = entry.inner("by_class") if entry.told.get("by_class") is not None else _Entries(entry.run, {})
    return PartCount(
        patients=entry.count("patients"),
        images=entry.of("images", int),
        by_class={name: by_class.of(name, int) for name in by_class.told},
    )

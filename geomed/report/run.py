"""An evaluated run, read from its folder."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from geomed.report.cases import PartCases, read_cases
from geomed.report.recorded import Recorded
from geomed.report.setup import Model, Setup

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """What a page says of one run comes from here."""

    folder: str
    """Name of its folder, for errors; not on the page, for people put names of people there."""

    label: str
    """What the page calls it."""

    setup: Setup
    """What the run says of itself."""

    recorded: Recorded
    """What the run said of its scores."""

    val: PartCases | None
    """Validation cases; None where there are none with a truth."""

    test: PartCases
    """Test cases."""

    thumbnails: Mapping[str, Path]
    """Pictures of test cases, by case."""

    attention: Mapping[str, Path]
    """Attention maps of test cases, by case."""

    @property
    def shared_patients(self) -> int:
        """How many patients (images, where patients are unknown) are in validation and in test: a leak."""
        if self.val is None:
            return 0
        val, test = self.val.predictions, self.test.predictions
        if val.patients is None or test.patients is None:
            return len(set(val.cases) & set(test.cases))
        return len(set(val.patients) & set(test.patients))


def read_run(folder: Path) -> Run:
    """Read a run.

    Raises:
        ValueError: it is no run, has not been evaluated, or is broken.
    """
    name = folder.name or folder.resolve().name
    if not folder.is_dir():
        raise ValueError(f"{name}: there is no such folder; give the folder of a run")
    if not (folder / "evaluation").is_dir():
        raise ValueError(
            f"{name}: there is no folder evaluation in it, so it is no evaluated run; run geomed test first"
        )
    setup = Setup.read(folder / "evaluation" / "setup.json", name)
    parts = read_cases(folder / "evaluation" / "cases.csv", setup, name)
    if "test" not in parts:
        raise ValueError(f"{name}: cases.csv has no test case with a known truth; run geomed test first")
    cases = set(parts["test"].predictions.cases)
    return Run(
        folder=name,
        label=name,
        setup=setup,
        recorded=Recorded.read(folder / "metrics.json", name),
        val=parts.get("val"),
        test=parts["test"],
        thumbnails=_pictures(folder / "evaluation" / "thumbnails", cases),
        attention=_pictures(folder / "evaluation" / "attention", cases),
    )


def labels(runs: Sequence[Run]) -> list[str]:
    """What the page calls each run: its method, and as much more as tells them apart."""
    named = [_method(run.setup.model) for run in runs]
    further = (
        [run.setup.model.backbone for run in runs],
        ["no seed" if run.setup.seed is None else f"seed {run.setup.seed}" for run in runs],
        [f"run {number}" for number in range(1, len(runs) + 1)],
    )
    for more in further:
        times = Counter(named)
        if max(times.values()) == 1:
            break
        if len(set(more)) > 1:
            named = [f"{name}, {what}" if times[name] > 1 else name for name, what in zip(named, more, strict=True)]
    return named


def _method(model: Model) -> str:
    if model.baseline is not None:
        return "CNN" if model.baseline == "cnn" else model.baseline
    whole = model.adapter == "none" and model.trained is not None and model.trained == model.parameters
    return "all weights" if whole else model.adapter


def _pictures(folder: Path, cases: set[str]) -> dict[str, Path]:
    """The pictures named after a case; whatever else lies there is not looked at."""
    return {path.stem: path for path in sorted(folder.glob("*.png")) if path.stem in cases}

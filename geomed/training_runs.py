"""What all commands that train have in common: where a run lies, whether a checkpoint is whole, what is not said."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def config_paths(rest: Sequence[str]) -> list[Path]:
    """The configs among the options, in order."""
    found = []
    for position, word in enumerate(rest):
        if word.startswith("--config="):
            found.append(Path(word.partition("=")[2]))
        elif word in {"--config", "-c"} and position + 1 < len(rest):
            found.append(Path(rest[position + 1]))
    return found


def config_name(rest: Sequence[str]) -> str:
    """The name of the last config among the options, or 'run'."""
    return next((path.stem for path in reversed(config_paths(rest))), "run")


def check_checkpoint(command: str, wanted: str | None, folder: Path) -> None:
    """Refuse a checkpoint that is missing or broken; Lightning would test random weights in place of a missing last.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    from torch import load  # late: imports torch

    found = sorted(folder.rglob("last*.ckpt")) if wanted == "last" else [Path(wanted)] if wanted else []
    if wanted == "last" and not found and command not in {"fit", "pretrain"}:
        raise ValueError(f"{folder}: there is no last checkpoint; run geomed fit first, or give the path of another")
    for path in found:
        if not path.is_file():
            continue  # a name that Lightning itself resolves, or says that it cannot
        try:
            load(path, map_location="cpu", weights_only=True, mmap=True)
        except UnpicklingError:
            raise
        except (EOFError, OSError, RuntimeError) as error:
            raise ValueError(
                f"{path}: the checkpoint is broken or cut off ({type(error).__name__}); use another"
            ) from error


def quiet() -> None:
    """Leave out what Lightning tells every user of every run."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's calls, not the user's
    for about in (
        "does not have many workers",
        "LeafSpec",
        "srun",
        "args parameter is intended",
        "Total length of `list`",
    ):
        warnings.filterwarnings("ignore", f".*{about}.*")
    advice = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    advice.addFilter(lambda record: "Tip:" not in record.getMessage())

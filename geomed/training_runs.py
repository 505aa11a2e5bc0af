"""What all commands that train have in common: where a run lies, whether a checkpoint is whole, how errors are told."""

from __future__ import annotations

import logging
import os
import re
import shlex
import signal
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

NULL = "argument after ** must be a mapping, not NoneType"
"""What the parser says of a null in place of settings, as a TypeError."""

_SEVERAL = "Does not validate against any of the Union subtypes"
_TYPE = re.compile(r"Expected a <class '\w+'>")
_LISTED = (
    *(_SEVERAL, "Subtypes:", "Errors:", "Given value", "Not a valid subclass", "Subclass types expect"),
    *("a class path (str)", "a dict with"),
)
_SAID: tuple[tuple[str, str], ...] = (
    (rf"functools\.partial\(.*{re.escape(NULL)}", "null stands where settings belong; leave it out for their defaults"),
    (r"Expected a dot import path string: (\S+)", r"there is no class \1; check the name"),
    (r"Subcommand '\w+' does not accept option '(\S+)'", r"there is no option '\1'; correct or remove it"),
    (r"\b(?:fit|validate|test|predict)\.(model|data)\b", r"\1"),  # subcommands of Lightning, not of the config
)


def plain(message: str) -> str:
    """An error in one line; of the parser's about a value that fits none of several types, what is wrong with it."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if line.strip()]
    if _SEVERAL in lines:
        told = [line for line in lines if not line.startswith(_LISTED) and not _TYPE.fullmatch(line)]
        if all(line.startswith("Parser key") for line in told):
            types = next(line for line in lines if line.startswith("Subtypes:"))
            names = " or ".join(re.findall(r"(\w+)'>", types)).replace("NoneType", "null")
            told.append(f"it is to be {names}, which it is not")
        lines = told
    line = " ".join(" ".join(lines).split())
    for pattern, instead in _SAID:
        line = re.sub(pattern, instead, line)
    return line


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


def ended_by(error: SystemExit) -> int | None:
    """The signal that ended a run; None: none did. Lightning makes an exit of Ctrl-C, and one of its own of SIGTERM."""
    from lightning.pytorch.utilities.exceptions import SIGTERMException  # late: imports torch

    if isinstance(error, SIGTERMException):
        return signal.SIGTERM
    return signal.SIGINT if isinstance(error.__context__, KeyboardInterrupt) else None


def going_on(command: str, rest: Sequence[str]) -> str:
    """What to type to go on with a run that was stopped."""
    words: list[str] = []
    for word in rest:
        if words and words[-1] == "--ckpt_path":
            words.pop()
        elif not word.startswith("--ckpt_path="):
            words.append(word)
    return shlex.join(["geomed", command, *words, "--ckpt_path", "last"])


def check_checkpoint(command: str, wanted: str | None, folder: Path) -> None:
    """Refuse a checkpoint that is missing or broken; Lightning would test random weights in place of a missing last.

    Raises:
        ValueError: there is none, it cannot be read, or training is to go on from the best.
    """
    from torch import load  # late: imports torch

    if wanted == "best" and command in {"fit", "pretrain"}:
        raise ValueError("training goes on from where it was, not from its best; give --ckpt_path last, or a path")
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
